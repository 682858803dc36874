"""Processes that another one keeps running: dispatchers one by one, and all parts of `make run`.

Each child has a session of its own, so that Ctrl-C reaches the supervisor alone and it can stop
them in good order. Should the supervisor be killed, the kernel tells its children (Linux).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # holds our packages

POLL_SECONDS = 0.1
# What a dispatcher may need beyond the timeout of the attempts that it has under way.
DRAIN_MARGIN_SECONDS = 15
# Before something that ended by itself is started again; longer if it happens again and again.
PAUSES_SECONDS = (1, 2, 4, 8, 16, 30)
STEADY_SECONDS = 60
# A dispatcher ends with this when settings or schema do not fit: another start would not help.
REFUSED = 2


def run_dispatchers(count: int, drain_seconds: float, report: Callable[[str], None]) -> int:
    """Run so many dispatcher processes until told to stop. Returns the exit status.

    The first signal drains them all, the second ends them at once (status 1). One that ends by
    itself is started again, unless it refused to start: then the others drain too (status 2).
    """
    signals = Signals()
    children = dispatchers(count, report)
    refused = False
    try:
        for child in children:
            child.start()
        while not refused:
            signals.wait(POLL_SECONDS)
            refused = any(child.ended() == REFUSED for child in children)
            for child in () if refused else children:
                child.keep_running()
    except StopRequested:
        report("stopping")
    finally:
        in_order = end(children, drain_seconds, signals)
    return REFUSED if refused else 0 if in_order else 1


def dispatchers(count: int, report: Callable[[str], None]) -> list[Child]:
    """So many dispatcher processes, not started yet."""
    command = [sys.executable, "-m", "dispatcher"]
    # In a process of ours it is one dispatcher, however many were asked for and in whatever way.
    environ = {name: text for name, text in os.environ.items() if name != _COUNT_FILE}
    return [
        # It has nothing to lose that its leases do not give back.
        Child(f"dispatcher {number}", command, signal.SIGKILL, report, environ | {_COUNT: "1"})
        for number in range(1, count + 1)
    ]


_COUNT, _COUNT_FILE = "HOOKJETTY_DISPATCHERS", "HOOKJETTY_DISPATCHERS_FILE"


class StopRequested(Exception):
    """A person or a service manager wants us to stop."""


class Signals:
    """SIGINT, SIGTERM and the terminal's SIGHUP: the first asks to stop, the second to hurry."""

    def __init__(self) -> None:
        self.count = 0
        self._interrupts = False
        # Explicitly, since a shell starts background jobs with SIGINT ignored, and whoever starts
        # us may have blocked signals. An ignored SIGHUP stays so: that is what nohup is for.
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._on_signal)

    @property
    def hurry(self) -> bool:
        """Whether somebody has lost patience."""
        return self.count >= 2

    def wait(self, seconds: float) -> None:
        """Sleep; raises ``StopRequested`` as soon as a signal has come."""
        deadline = time.monotonic() + seconds
        while self.count == 0 and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if self.count > 0:
            raise StopRequested

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Here a signal raises ``StopRequested`` on the spot, for a call that may take minutes."""
        self._interrupts = True
        try:
            self.wait(0)
            yield
        finally:
            self._interrupts = False

    def _on_signal(self, _number: int, _frame: object) -> None:
        self.count += 1
        if self._interrupts:
            raise StopRequested


class Child:
    """A process that is started again whenever it ends by itself.

    ``if_orphaned`` is what the kernel sends it when we die; ``report`` is told what happens to it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        if_orphaned: signal.Signals,
        report: Callable[[str], None],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.name = name
        self._command = command
        self._if_orphaned = if_orphaned
        self._report = report
        self._environ = environ
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._restart_at = 0.0
        self._restarts = 0

    def start(self) -> None:
        """Start it, with our own packages on its path whatever the working directory is."""
        path = [str(ROOT), *filter(None, [self._environ.get("PYTHONPATH")])]
        parent = os.getpid()

        def follow_parent() -> None:
            """Have the kernel signal the child when we die, which may have happened already."""
            if sys.platform == "linux":
                pr_set_pdeathsig = 1
                _LIBC.prctl(pr_set_pdeathsig, self._if_orphaned)
                if os.getppid() != parent:
                    os._exit(1)

        self._process = subprocess.Popen(
            self._command,
            env={**self._environ, "PYTHONPATH": os.pathsep.join(path)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=follow_parent,  # noqa: PLW1509 - this process has one thread
        )
        self._started_at = time.monotonic()
        self._restart_at = 0.0

    @property
    def pid(self) -> int | None:
        """Its process id; None before its first start."""
        return None if self._process is None else self._process.pid

    def ended(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return None if self._process is None else self._process.poll()

    def keep_running(self) -> None:
        """Start it again, after a pause, if it has ended."""
        status = self.ended()
        if status is None:
            return
        if not self._restart_at:
            lived = time.monotonic() - self._started_at
            self._restarts = 0 if lived > STEADY_SECONDS else self._restarts
            pause = PAUSES_SECONDS[min(self._restarts, len(PAUSES_SECONDS) - 1)]
            self._restarts += 1
            self._restart_at = time.monotonic() + pause
            self._report(f"the {self.name} {in_words(status)}; starting it again in {pause} s")
        elif time.monotonic() > self._restart_at:
            self.kill()
            self.start()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it and what it may have left behind: gunicorn's workers outlive a killed master."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def end(children: Sequence[Child], seconds: float, signals: Signals) -> bool:
    """SIGTERM, and SIGKILL for what is left after ``seconds``, or when there is a hurry.

    Returns whether all of them ended before that.
    """
    for child in children:
        child.signal(signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while running := any(child.ended() is None for child in children):
        if signals.hurry or time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    for child in children:
        child.kill()
    return not running


def in_words(status: int) -> str:
    """How a process ended."""
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"


_LIBC = ctypes.CDLL(None)  # before the fork, after which little is safe
