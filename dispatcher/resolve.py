"""Names to vetted addresses: event-driven, within a budget, with a short cache.

libcurl would resolve names in threads of its own, a few at a time, so twenty names on a silent
name server could stop every delivery. Here one thread asks for any number of names at once, and a
name that is not answered costs the others nothing.

* A name is absolute: search domains are never tried (``db`` is not ``db.internal.example``).
* A and AAAA are both asked. Only addresses that the policy allows are handed out; a name is
  refused only if it has none.
* ``localhost`` and names below it are loopback (RFC 6761). Then ``/etc/hosts`` counts, as
  operators expect of it; the policy judges its addresses like any others. Then DNS.
* An answer is kept for its TTL, 60 s at most; that there is none, for 5 s.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import pycares
import pycares.errno

from app.destinations import LOOPBACK, Policy, Refused, is_localhost

BUDGET_SECONDS = 5.0
MAX_TTL_SECONDS = 60.0
# A TTL of 0 would mean a query per request while hundreds wait for the same receiver.
MIN_TTL_SECONDS = 1.0
NEGATIVE_TTL_SECONDS = 5.0
MAX_CACHED_NAMES = 10_000
# No receiver has more; a name with thousands of records must not cost a policy check each.
MAX_ADDRESSES_PER_FAMILY = 16
# How long a name's addresses of one family wait for an answer about the other.
OTHER_FAMILY_SECONDS = 0.25
HOSTS_REREAD_SECONDS = 5.0
# c-ares keeps answers for up to an hour and pycares 5 offers no way to say otherwise, so a channel
# is asked for this long only; its successor knows nothing.
CHANNEL_SECONDS = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """Where a name leads: allowed addresses, or ``failure``.

    ``failure`` is ``dns`` (no such name, or nobody said in time) or ``blocked_address`` (it has
    addresses, but none we may call). ``detail`` is for operators; it may name addresses.
    """

    addresses: tuple[str, ...] = ()
    failure: str | None = None
    detail: str = ""


OnAnswer = Callable[[Answer], None]


class Resolver:
    """Answers ``known`` at once from any thread, ``lookup`` later from its own.

    ``nameservers`` are ``"192.0.2.1"``, ``"127.0.0.1:5353"`` or ``"[::1]:53"``; none means the
    system's (resolv.conf).
    """

    def __init__(
        self,
        policy: Policy,
        nameservers: Sequence[str] = (),
        *,
        budget_seconds: float = BUDGET_SECONDS,
        hosts_path: Path = Path("/etc/hosts"),
    ) -> None:
        self._policy = policy
        self._nameservers = tuple(nameservers)
        self._budget_seconds = budget_seconds
        self._hosts = _Hosts(hosts_path)
        self._cache: dict[str, _Entry] = {}  # Oldest first; written under the lock.
        self._cache_lock = threading.Lock()
        self._pending: dict[str, _Lookup] = {}
        self._asked: deque[_Waiter] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = itertools.count()
        self._channel: _Channel | None = None
        self._retired: list[_Channel] = []
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="resolver", daemon=True)

    def start(self) -> None:
        """Start the thread; ``ValueError`` if a name server is not an address."""
        try:
            self._channel = _Channel(self._selector, self._nameservers)
        except pycares.AresError as error:
            self._close()
            raise ValueError(f"nameservers {', '.join(self._nameservers)}: {error}") from error
        self._thread.start()

    def stop(self) -> None:
        """End the thread; whoever still waits hears ``dns``."""
        self._stopping = True
        self._wake()
        self._thread.join()

    def known(self, host: str, port: int, scheme: str) -> Answer | None:
        """The answer if it takes no asking: cached names, addresses, localhost, /etc/hosts."""
        entry = self._cache.get(host)
        if entry is None or time.monotonic() >= entry.expires_at:
            addresses = self._addresses_at_hand(host)
            if not addresses:
                return None
            entry = _Entry(time.monotonic() + HOSTS_REREAD_SECONDS, addresses)
            self._keep(host, entry)
        return entry.answer(self._policy, port, scheme)

    def lookup(
        self,
        host: str,
        port: int,
        scheme: str,
        on_answer: OnAnswer,
        timeout_seconds: float = BUDGET_SECONDS,
    ) -> None:
        """Have ``on_answer`` called once, on the resolver's thread, within the budget.

        ``timeout_seconds`` shortens the budget for this caller. Callers that ask for the same name
        at the same time share one query.
        """
        deadline = time.monotonic() + min(timeout_seconds, self._budget_seconds)
        self._asked.append(_Waiter(host, port, scheme, on_answer, deadline))
        self._wake()

    # --- The thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                try:
                    self._turn()
                except Exception:
                    log.exception("the resolver met a defect; it goes on")
                    time.sleep(0.01)
        finally:
            self._close()

    def _turn(self) -> None:
        """Wait for something to happen, then do all that is due."""
        for key, events in self._selector.select(self._seconds_to_wait()):
            if key.data is None:
                _drain(self._wake_reader)
            else:
                channel: _Channel = key.data
                channel.process(key.fd, events)
        while self._asked:
            self._begin(self._asked.popleft())
        for channel in self._channels():
            channel.process_timeouts()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()

    def _seconds_to_wait(self) -> float | None:
        waits = []
        if self._pending:
            waits = [channel.seconds_to_timeout() for channel in self._channels()]
        if self._timers:
            waits.append(max(0.0, self._timers[0][0] - time.monotonic()))
        return min(waits, default=None)

    def _begin(self, waiter: _Waiter) -> None:
        answer = self.known(waiter.host, waiter.port, waiter.scheme)
        if answer is not None:
            waiter.tell(answer)
            return
        lookup = self._pending.get(waiter.host)
        if lookup is None:
            lookup = self._pending[waiter.host] = _Lookup(waiter.host)
            lookup.waiters.append(waiter)
            self._at(time.monotonic() + self._budget_seconds, lambda: self._finish(lookup))
            self._ask(lookup)
        else:
            lookup.waiters.append(waiter)
        self._at(waiter.deadline, lambda: waiter.tell(Answer((), "dns", "no answer in time")))

    def _ask(self, lookup: _Lookup) -> None:
        try:
            channel = self._fresh_channel()
            for record_type in (pycares.QUERY_TYPE_A, pycares.QUERY_TYPE_AAAA):
                channel.ares.query(
                    lookup.host,
                    record_type,
                    callback=lambda result, error: self._answered(lookup, result, error),
                )
        except (pycares.AresError, UnicodeError, OSError) as error:
            lookup.detail = f"cannot be asked: {error}"
            self._finish(lookup)

    def _answered(
        self, lookup: _Lookup, result: pycares.DNSResult | None, error: int | None
    ) -> None:
        """One of a lookup's two queries is over."""
        lookup.outstanding -= 1
        if result is None:
            lookup.detail = str(pycares.errno.strerror(error or 0))
        else:
            lookup.take(result)
        # A name that does not exist has no addresses of the other family either.
        if lookup.outstanding <= 0 or error == pycares.errno.ARES_ENOTFOUND:
            self._finish(lookup)
        elif lookup.addresses:
            self._at(time.monotonic() + OTHER_FAMILY_SECONDS, lambda: self._finish(lookup))

    def _finish(self, lookup: _Lookup) -> None:
        """Keep what was learnt and tell all who wait. Later answers come to nothing."""
        if self._pending.get(lookup.host) is not lookup:
            return
        del self._pending[lookup.host]
        if lookup.addresses:
            seconds = min(max(lookup.ttl, MIN_TTL_SECONDS), MAX_TTL_SECONDS)
        else:
            seconds = NEGATIVE_TTL_SECONDS
        entry = _Entry(time.monotonic() + seconds, tuple(lookup.addresses), lookup.detail)
        self._keep(lookup.host, entry)
        for waiter in lookup.waiters:
            waiter.tell(entry.answer(self._policy, waiter.port, waiter.scheme))

    def _keep(self, host: str, entry: _Entry) -> None:
        with self._cache_lock:
            self._cache.pop(host, None)
            self._cache[host] = entry
            while len(self._cache) > MAX_CACHED_NAMES:
                del self._cache[next(iter(self._cache))]

    def _addresses_at_hand(self, host: str) -> tuple[str, ...]:
        try:
            return (str(ip_address(host)),)
        except ValueError:
            return LOOPBACK if is_localhost(host) else self._hosts.addresses(host)

    def _at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (when, next(self._timer_numbers), action))

    def _channels(self) -> list[_Channel]:
        return self._retired if self._channel is None else [self._channel, *self._retired]

    def _fresh_channel(self) -> _Channel:
        """The channel to ask now; old ones are closed once all their lookups are over."""
        now = time.monotonic()
        if self._channel is not None and now < self._channel.born_at + CHANNEL_SECONDS:
            return self._channel
        if self._channel is not None:
            old = self._channel
            self._retired.append(old)
            self._at(now + self._budget_seconds, lambda: self._close_retired(old))
        self._channel = _Channel(self._selector, self._nameservers)
        return self._channel

    def _close_retired(self, channel: _Channel) -> None:
        self._retired.remove(channel)
        channel.close()

    def _close(self) -> None:
        for lookup in list(self._pending.values()):
            self._finish(lookup)
        while self._asked:
            self._asked.popleft().tell(Answer((), "dns", "the resolver has stopped"))
        for channel in self._channels():
            channel.close()
        self._selector.close()
        self._wake_reader.close()
        self._wake_writer.close()

    def _wake(self) -> None:
        try:
            self._wake_writer.send(b"\0")
        except OSError:
            pass  # The buffer is full, so the thread will wake anyway; or it has ended.


def vet(policy: Policy, addresses: Sequence[str], port: int, scheme: str) -> Answer:
    """Those of a name's addresses that we may connect to."""
    allowed = []
    reason = ""
    for address in addresses:
        try:
            policy.judge_address(address, port, scheme)
        except Refused as refused:
            reason = str(refused)
        else:
            allowed.append(address)
    if not allowed:
        return Answer((), "blocked_address", reason)
    return Answer(tuple(allowed))


@dataclass(slots=True)
class _Waiter:
    """Somebody who asked; told once."""

    host: str
    port: int
    scheme: str
    on_answer: OnAnswer
    deadline: float
    told: bool = False

    def tell(self, answer: Answer) -> None:
        if self.told:
            return
        self.told = True
        try:
            self.on_answer(answer)
        except Exception:
            log.exception("whoever asked for %s could not take the answer", self.host)


@dataclass(slots=True)
class _Lookup:
    """A name being asked for: two queries, and all who wait for them."""

    host: str
    waiters: list[_Waiter] = field(default_factory=list)
    outstanding: int = 2
    addresses: list[str] = field(default_factory=list)
    ttl: float = MAX_TTL_SECONDS
    detail: str = "no answer in time"

    def take(self, result: pycares.DNSResult) -> None:
        """Add an answer's addresses, IPv4 before IPv6; its shortest TTL counts, CNAMEs included.

        IPv4 goes first because hosts without a way out by IPv6 are many, and a receiver that
        has only IPv6 is found all the same.
        """
        found = []
        for record in result.answer:
            self.ttl = min(self.ttl, record.ttl)
            if isinstance(record.data, (pycares.ARecordData, pycares.AAAARecordData)):
                found.append(_as_libcurl_writes(record.data.addr))
        found = found[:MAX_ADDRESSES_PER_FAMILY]
        self.addresses = sorted(self.addresses + found, key=lambda address: ":" in address)


@dataclass(slots=True)
class _Entry:
    """What is known of a name, and the verdicts on it by port and scheme."""

    expires_at: float
    addresses: tuple[str, ...]
    detail: str = ""
    answers: dict[tuple[int, str], Answer] = field(default_factory=dict)

    def answer(self, policy: Policy, port: int, scheme: str) -> Answer:
        if not self.addresses:
            return Answer((), "dns", self.detail)
        answer = self.answers.get((port, scheme))
        if answer is None:
            answer = vet(policy, self.addresses, port, scheme)
            self.answers[port, scheme] = answer
        return answer


class _Channel:
    """A c-ares channel and its sockets in the selector."""

    def __init__(self, selector: selectors.BaseSelector, nameservers: Sequence[str]) -> None:
        self.born_at = time.monotonic()
        self._selector: selectors.BaseSelector | None = selector
        self._fds: set[int] = set()
        # c-ares waits so long for a name server it does not know, five times its usual time
        # (250 ms at least) for one it does, and doubles that on each try: six tries outlast the
        # budget. It does not hear a late answer once it has asked again. "b": DNS only.
        self.ares = pycares.Channel(
            timeout=2.0,
            tries=6,
            lookups="b",
            servers=nameservers or None,
            sock_state_cb=self._watch,
        )

    def _watch(self, fd: int, readable: bool, writable: bool) -> None:
        """c-ares opened, uses or is about to close a socket."""
        if self._selector is None:
            return  # Closing; c-ares says so from another thread.
        events = selectors.EVENT_READ * bool(readable) | selectors.EVENT_WRITE * bool(writable)
        if fd not in self._fds:
            if events:
                self._fds.add(fd)
                self._selector.register(fd, events, self)
        elif events:
            self._selector.modify(fd, events, self)
        else:
            self._fds.discard(fd)
            self._selector.unregister(fd)

    def process(self, fd: int, events: int) -> None:
        bad = pycares.ARES_SOCKET_BAD
        self.ares.process_fd(
            fd if events & selectors.EVENT_READ else bad,
            fd if events & selectors.EVENT_WRITE else bad,
        )

    def process_timeouts(self) -> None:
        self.ares.process_fd(pycares.ARES_SOCKET_BAD, pycares.ARES_SOCKET_BAD)

    def seconds_to_timeout(self) -> float:
        return float(self.ares.timeout(1.0))

    def close(self) -> None:
        self.ares.cancel()
        selector, self._selector = self._selector, None
        if selector is not None:
            for fd in self._fds:
                selector.unregister(fd)
        self.ares.close()


class _Hosts:
    """/etc/hosts, reread when it has changed; a file that cannot be read is empty."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._look_again_at = 0.0
        self._read_as: tuple[int, int] | None = None
        self._addresses: dict[str, tuple[str, ...]] = {}

    def addresses(self, host: str) -> tuple[str, ...]:
        now = time.monotonic()
        if now >= self._look_again_at:
            self._look_again_at = now + HOSTS_REREAD_SECONDS
            self._reread()
        return self._addresses.get(host, ())

    def _reread(self) -> None:
        try:
            status = self._path.stat()
            if (status.st_mtime_ns, status.st_ino) == self._read_as:
                return
            self._addresses = _parse_hosts(self._path.read_text("utf-8", "replace"))
            self._read_as = (status.st_mtime_ns, status.st_ino)
        except OSError:
            self._addresses, self._read_as = {}, None


def _parse_hosts(text: str) -> dict[str, tuple[str, ...]]:
    """Names in lower case with their addresses, from the text of a hosts(5) file.

    >>> _parse_hosts("10.0.0.7 Db db.example # the database")
    {'db': ('10.0.0.7',), 'db.example': ('10.0.0.7',)}
    """
    found: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        try:
            address = str(ip_address(address))
        except ValueError:
            continue
        if "%" in address:
            continue  # A link-local address with its zone; the policy refuses these.
        for name in (each.lower().removesuffix(".") for each in names):
            found[name] = (*found.get(name, ()), address)
    return found


def _as_libcurl_writes(address: str) -> str:
    """libcurl names peers as inet_ntop(3) does; pinned and connected must compare equal."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.inet_ntop(family, socket.inet_pton(family, address))


def _drain(reader: socket.socket) -> None:
    try:
        while reader.recv(4096):
            pass
    except BlockingIOError:
        pass
