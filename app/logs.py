"""Structured logs: one line per thing that happened, JSON for machines or text for a terminal.

Everything goes through the standard library's logging, so that gunicorn's and APScheduler's lines
look the same.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson
import structlog

from app.settings import Settings


def configure(settings: Settings, stream: TextIO = sys.stdout) -> None:
    """Set up logging for this process, to ``stream``."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    as_json = settings.log_format == "json"
    rendering: list[structlog.types.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        # Not with the local variables, as it does by default where it finds rich: they are secrets.
        else [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    )
    handler = JsonHandler(stream) if as_json else logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    # It reports every run of every job, and warns of each that is left to the run under way.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    # At DEBUG it would print every statement with its parameters, secrets' ciphertexts included.
    logging.getLogger("peewee").setLevel(logging.INFO)


def info_many(event: str, lines: Iterable[Mapping[str, Any]]) -> None:
    """One line at level INFO for each of ``lines``, as ``log.info(event, **line)`` writes it."""
    _write_many(event, lines, "info")


def debug_many(event: str, lines: Iterable[Mapping[str, Any]]) -> None:
    """Likewise at level DEBUG; ``lines`` are not even built when nobody wants to read them."""
    _write_many(event, lines, "debug")


def _write_many(event: str, lines: Iterable[Mapping[str, Any]], level: str) -> None:
    """A dispatcher writes thousands a second. In JSON they are built at once and written in one
    call: 6 us a line instead of 51 us through the processors, half of what delivering costs.
    """
    root = logging.getLogger()
    if not root.isEnabledFor(getattr(logging, level.upper())):
        return
    handler = root.handlers[0] if root.handlers else None
    if not isinstance(handler, JsonHandler):
        log = structlog.get_logger()
        for line in lines:
            getattr(log, level)(event, **line)
        return
    common = {"event": event, "level": level, "timestamp": _now()}
    text = b"\n".join([orjson.dumps({**line, **common}) for line in lines]).decode()
    if not text:
        return
    with handler.lock or nullcontext(), suppress(OSError):  # no reader: as logging, do not mind
        handler.stream.write(f"{text}\n")
        handler.flush()


class JsonHandler(logging.StreamHandler[TextIO]):
    """The handler of JSON lines; its type says that lines may be written as JSON directly."""


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
