"""Curves as SVG: readable on light and dark ground, and nothing is fetched to view them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 74, 58  # what surrounds the plot
TICKS = 6
STROKES = ("", "7 4", "2 4")  # colour is not all that tells the lines apart

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #52514e }
.title { font-size: 15px; font-weight: 600; fill: #0b0b0b }
.ground { fill: #fcfcfb } .grid { stroke: #dcdbd6 } .axis { stroke: #8a8983 }
.line { fill: none; stroke-width: 2; stroke-linejoin: round }
.c0 { stroke: #2a78d6 } .c1 { stroke: #c2571b } .c2 { stroke: #15856d }
.d0 { fill: #2a78d6 } .d1 { fill: #c2571b } .d2 { fill: #15856d }
@media (prefers-color-scheme: dark) {
text { fill: #c3c2b7 } .title { fill: #ffffff }
.ground { fill: #1a1a19 } .grid { stroke: #3a3a37 } .axis { stroke: #8a8983 }
.c0 { stroke: #5a9ff0 } .c1 { stroke: #ef8a4f } .c2 { stroke: #3fbf9f }
.d0 { fill: #5a9ff0 } .d1 { fill: #ef8a4f } .d2 { fill: #3fbf9f }
}
"""

Points = Sequence[tuple[float, float]]


def curves(
    title: str, x_label: str, y_label: str, lines: Mapping[str, Points], *, log_x: bool = False
) -> str:
    """A chart with a line for each name; the vertical axis begins at 0."""
    every = [point for points in lines.values() for point in points]
    across = _Axis([x for x, _ in every], LEFT, WIDTH - RIGHT, log=log_x)
    up = _Axis([0.0, *(y for _, y in every)], HEIGHT - BOTTOM, TOP, log=False)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
        _text(LEFT, 26, title, "start", "title"),
    ]
    for tick in up.ticks():
        y = up(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 8, y + 4, _number(tick), "end"))
    for tick in across.ticks():
        x = across(tick)
        parts.append(f'<path class="axis" d="M{x:.1f} {HEIGHT - BOTTOM}v5"/>')
        parts.append(_text(x, HEIGHT - BOTTOM + 20, _number(tick), "middle"))
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_label, "middle"))
    parts.append(_text(LEFT - 60, TOP - 14, y_label, "start"))
    legend_x = WIDTH - RIGHT
    for place, (name, points) in enumerate(lines.items()):
        dashes = f' stroke-dasharray="{STROKES[place]}"' if STROKES[place] else ""
        path = "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in points)
        parts.append(f'<path class="line c{place}"{dashes} d="M{path}"/>')
        if len(points) <= 12:
            for x, y in points:
                parts.append(
                    f'<circle class="d{place}" r="3.5" cx="{across(x):.1f}" cy="{up(y):.1f}">'
                    f"<title>{escape(name)}: {_number(x)}, {_number(y)}</title></circle>"
                )
    # The legend, from the right: names are short, and a letter is about 8 wide.
    for place, name in reversed(list(enumerate(lines))):
        if len(lines) > 1:
            parts.append(_text(legend_x, TOP - 14, name, "end"))
            legend_x -= 8 * len(name) + 8
            dashes = f' stroke-dasharray="{STROKES[place]}"' if STROKES[place] else ""
            parts.append(
                f'<path class="line c{place}"{dashes} d="M{legend_x - 24} {TOP - 18}h24"/>'
            )
            legend_x -= 44
    return "\n".join([*parts, "</svg>\n"])


class _Axis:
    """From values to places along it."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool) -> None:
        self._start, self._end, self._log = start, end, log
        low, high = min(values), max(values)
        if log:
            self._low, self._high = low, high if high > low else low * 10
            return
        self._step = _round_step((high - low) / TICKS or 1.0)
        self._low = math.floor(low / self._step) * self._step
        self._high = math.ceil(high / self._step) * self._step or self._step

    def __call__(self, value: float) -> float:
        if self._log:
            share = math.log(value / self._low) / math.log(self._high / self._low)
        else:
            share = (value - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> Iterator[float]:
        """Round numbers, from end to end."""
        if not self._log:
            for number in range(round((self._high - self._low) / self._step) + 1):
                yield self._low + number * self._step
            return
        wide = self._high / self._low > 300
        power = math.floor(math.log10(self._low))
        while 10**power <= self._high:
            for factor in (1,) if wide else (1, 2, 5):
                if self._low <= factor * 10**power * 1.000001 and factor * 10**power <= self._high:
                    yield factor * 10.0**power
            power += 1


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10 … that is not below.

    >>> _round_step(0.3), _round_step(13)
    (0.5, 20.0)
    """
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * 0.999)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    of_kind = f' class="{kind}"' if kind else ""
    return f'<text{of_kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    """As short as it can be.

    >>> _number(2_000_000), _number(12_500), _number(0.5)
    ('2 M', '12,500', '0.5')
    """
    if value >= 1_000_000:
        return f"{value / 1_000_000:g} M"
    return f"{value:,.0f}" if value >= 100 else f"{round(value, 6):g}"
