"""A transport on its own, without a database: requests in, outcomes out."""

from __future__ import annotations

import itertools
import ssl
import threading
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path

import trustme

from app.destinations import Policy
from dispatcher.resolve import Resolver
from dispatcher.transport import FAILURES, Outcome, Request, Transport

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
HERE = Policy(allow_networks=LOOPBACK)
HEADERS = ["content-type: application/json", "webhook-id: evt_7"]


class Wire:
    """A running transport, and what its outcomes were."""

    def __init__(self, *, policy=HERE, nameservers=("127.0.0.1:9",), resolver=None, **options):
        self.outcomes: dict[object, Outcome] = {}
        self._arrived = threading.Condition()
        self._numbers = itertools.count()
        resolver = resolver or Resolver(policy, nameservers, hosts_path=Path("/nonexistent"))
        self.transport = Transport(policy, resolver, on_done=self._on_done, **options)

    def _on_done(self, outcome):
        with self._arrived:
            assert outcome.tag not in self.outcomes, "an outcome came twice"
            self.outcomes[outcome.tag] = outcome
            self._arrived.notify_all()

    def submit(self, *requests):
        """Submit them all at once; each gets a number of its own as its tag."""
        for request in requests:
            request.tag = next(self._numbers)
        self.transport.submit_many(requests)
        return [request.tag for request in requests]

    def wait_for(self, tags, seconds=10.0):
        """Their outcomes, in the order of the tags."""
        with self._arrived:
            done = self._arrived.wait_for(lambda: all(t in self.outcomes for t in tags), seconds)
            assert done, f"no outcome for {[t for t in tags if t not in self.outcomes]}"
            return [self.outcomes[tag] for tag in tags]

    def send(self, *requests, seconds=10.0):
        outcomes = self.wait_for(self.submit(*requests), seconds)
        for outcome in outcomes:
            assert outcome.failure is None or outcome.failure in FAILURES
        return outcomes

    def send_one(self, url, **options):
        return self.send(post(url, **options))[0]


def post(url, *, body=b"{}", headers=HEADERS, timeout=5.0):
    return Request(url, list(headers), body, timeout)


@contextmanager
def wired(**options):
    wire = Wire(**options)
    wire.transport.start()
    try:
        yield wire
    finally:
        wire.transport.stop()


def response(status=b"200 OK", headers=(), body=b""):
    head = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def serving(certificate: trustme.LeafCert) -> ssl.SSLContext:
    """The context of a server that shows this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context
