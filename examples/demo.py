"""`make demo`: what Hookjetty does, in a minute, told by a program that uses it as yours would.

It starts a whole instance (`python -m app.run`) in a temporary folder, plays a platform that
publishes events and a receiver that verifies them, and says what happened. The exit status is 0
only if all of it went as promised. DEMO_STAY=1 leaves the instance running until Ctrl-C.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_server
from types import FrameType
from typing import Any

import psycopg2

from app import devdb
from hookjetty.client import ApiError, Client
from hookjetty.publish import publish
from hookjetty.verify import VerificationError, challenge_response, verify

ROOT = Path(__file__).resolve().parent.parent
TENANT = 7
RETRY_SCHEDULE = "0,1s,2s,5s"  # the default's first delays are 0, 5 s, 5 min and 30 min
START_SECONDS = 90
STOP_SECONDS = 60
ARRIVAL_SECONDS = 15


def main() -> int:
    """Tell the story; the exit status."""
    on_signals(_interrupt)
    began = time.monotonic()
    try:
        with a_receiver() as receiver, an_instance() as instance:
            with Client(instance.url, instance.token()) as client:
                tell(client, instance.database_url, receiver)
            print(f"\nAll of it as promised, in {time.monotonic() - began:.0f} s.")
            if os.environ.get("DEMO_STAY"):
                stay(instance)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except (Disappointment, ApiError, psycopg2.Error, devdb.DevDatabaseError) as what:
        print(f"\nNOT as promised: {what}", file=sys.stderr)
        return 1
    return 0


class Disappointment(Exception):
    """Something did not go as promised."""


def tell(client: Client, database_url: str, receiver: Receiver) -> None:
    """The story, chapter by chapter; each one checks what it tells."""
    chapter("A tenant registers an endpoint")
    shop = receiver.open("/shop")
    answer = client.register_endpoint(shop.url, events=["order.*"], secret=shop.secret)
    expect(answer["status"] == "active", f"the endpoint should be active, but: {answer}")
    expect(shop.challenges == 1, "the receiver should have been asked for its consent")
    shop_id = answer["endpoint_id"]
    say(f"POST /endpoints {shop.url} -> {shop_id}, active")
    say("before that, the receiver verified and answered a signed challenge")

    chapter("A producer publishes over HTTP")
    published_at = time.monotonic()
    first = client.publish("order.paid", '{"order": 1, "total": 12.50}')
    delivery = receiver.await_delivery(lambda d: d.event_id == first.event_id)
    say(f"POST /events order.paid -> {first.event_id}, tasks: {first.tasks}")
    say(f"arrived and verified after {1000 * (delivery.at - published_at):.0f} ms: {delivery.body}")
    expect('"data":{"order": 1, "total": 12.50}' in delivery.body, "its data should be untouched")

    chapter("A service publishes from inside its own SQL transactions")
    with contextlib.closing(psycopg2.connect(database_url)) as connection:
        with connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE orders (id integer PRIMARY KEY, total numeric)")
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO orders VALUES (2, 99.00)")
            undone = publish(connection, TENANT, "order.paid", {"order": 2})
            connection.rollback()
        with connection, connection.cursor() as cursor:
            cursor.execute("INSERT INTO orders VALUES (3, 42.00)")
            done = publish(connection, TENANT, "order.paid", {"order": 3})
            cursor.execute("SELECT array_agg(id) FROM orders")
            (orders,) = cursor.fetchone()
    receiver.await_delivery(lambda d: d.event_id == done.event_id)
    say(f"INSERT order 2, publish {undone.event_id}, ROLLBACK -> neither exists")
    say(f"INSERT order 3, publish {done.event_id}, COMMIT   -> arrived and verified")
    exists = orders != [3] or not _is_unknown(client, undone.event_id)
    expect(not exists, "what was rolled back should not exist")

    chapter("A receiver has a bad day")
    flaky = receiver.open("/flaky", statuses=[503, 503])
    client.register_endpoint(flaky.url, events=["invoice.sent"], secret=flaky.secret)
    sent = client.publish("invoice.sent", {"invoice": 1})
    receiver.await_delivery(lambda d: d.event_id == sent.event_id and d.status == 200)
    task = _finished_task(client, sent.event_id)
    for attempt in task["attempts"]:
        say(f"try {attempt['try']} at {attempt['started_at'][11:23]}: {attempt['status_code']}")
    statuses = [attempt["status_code"] for attempt in task["attempts"]]
    expect(statuses == [503, 503, 200], f"it should have taken three tries, not {statuses}")
    say(f"{task['task_id']} is {task['status']}")
    expect(task["status"] == "delivered", "in the end it should be delivered")

    chapter("Somebody forges a request")
    refusal = _post(shop.url, b'{"type":"order.paid","data":{"order":4}}')
    say(f"a POST without a valid signature -> {refusal}, by hookjetty.verify")
    expect(refusal == 400, "the receiver should refuse it")

    chapter("The tenant lost its data and asks for a replay")
    replay = client.start_replay(shop_id, first.event_id)
    say(f"POST /replay {shop_id} from {first.event_id} -> {replay['replay_id']}")
    again = [first.event_id, done.event_id]
    for event_id in again:
        receiver.await_delivery(
            lambda d, event_id=event_id: (d.event_id, d.replay) == (event_id, replay["replay_id"])
        )
        say(f"{event_id} arrived again and was verified")

    chapter("The books")
    expected = [first.event_id, done.event_id, *[sent.event_id] * 3, *again]
    delivered = [delivery.event_id for delivery in receiver.deliveries]
    expect(sorted(delivered) == sorted(expected), f"{delivered} arrived, not {expected}")
    say(f"{len(delivered)} deliveries, all of them verified, none missing, none twice")
    say("2 challenges answered, 1 forgery refused")
    expect(receiver.refused == 1, f"{receiver.refused} requests were refused, not one")


def stay(instance: Instance) -> None:
    """Leave the instance to the person at the terminal, until Ctrl-C."""
    print(f"""
The instance keeps running; Ctrl-C ends it and deletes what it made. In another terminal:

  export HOOKJETTY_VAR={instance.folder} HOOKJETTY_URL={instance.url}
  .venv/bin/hookjetty publish order.paid '{{"order": 5}}' --tenant {TENANT}
  HOOKJETTY_TOKEN=$(.venv/bin/hookjetty token --role admin) examples/curl/list-tasks.sh {TENANT}
""")
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):
        while instance.process.poll() is None:
            time.sleep(0.2)


# --------------------------------------------------------------------------- the receiver


@dataclass(frozen=True)
class Delivery:
    """A verified request; ``at`` is this process's monotonic clock."""

    event_id: str
    body: str
    status: int
    replay: str | None
    at: float


class Hook:
    """One path of the receiver, and the secret that its requests are signed with."""

    def __init__(self, url: str, statuses: list[int]) -> None:
        self.url = url
        self.secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        self.statuses = statuses
        self.challenges = 0


class Receiver(ThreadingHTTPServer):
    """Remembers what arrived. A hook answers with its ``statuses``, then with 200."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hooks: dict[str, Hook] = {}
        self.deliveries: list[Delivery] = []
        self.refused = 0
        self.changed = threading.Condition()

    def open(self, path: str, statuses: list[int] | None = None) -> Hook:
        """One more path to deliver to."""
        url = f"http://127.0.0.1:{self.server_port}{path}"
        self.hooks[path] = Hook(url, statuses or [])
        return self.hooks[path]

    def take(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, object]:
        """What a receiver does: verify, answer a challenge, keep the event, say thank you."""
        hook = self.hooks[path]
        with self.changed:
            try:
                event = verify(body, headers, hook.secret)
            except VerificationError as reason:
                self.refused += 1
                return 400, {"error": str(reason)}
            consent = challenge_response(event)
            if consent is not None:
                hook.challenges += 1
                return 200, consent
            status = hook.statuses.pop(0) if hook.statuses else 200
            replay = headers.get("webhook-replay")
            self.deliveries.append(
                Delivery(event["id"], body.decode(), status, replay, time.monotonic())
            )
            self.changed.notify_all()
            return status, {}

    def await_delivery(self, wanted: Callable[[Delivery], bool]) -> Delivery:
        """The first delivery that is ``wanted``, which may have come already."""

        def found() -> Delivery | None:
            return next(filter(wanted, self.deliveries), None)

        with self.changed:
            delivery = self.changed.wait_for(found, ARRIVAL_SECONDS)
        if delivery is None:
            raise Disappointment(f"a delivery did not arrive within {ARRIVAL_SECONDS} s")
        return delivery


class Handler(BaseHTTPRequestHandler):
    """HTTP for the receiver."""

    server: Receiver
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): text for name, text in self.headers.items()}
        status, answer = self.server.take(self.path, body, headers)
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """The story is told elsewhere."""


@contextlib.contextmanager
def a_receiver() -> Iterator[Receiver]:
    """A receiver that listens."""
    receiver = Receiver()
    thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.1})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.shutdown()
        thread.join()
        receiver.server_close()


# --------------------------------------------------------------------------- the instance


class Instance:
    """`make run` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        with create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.folder = folder
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "demo.log"
        self.environ = {
            name: text for name, text in os.environ.items() if not name.startswith("HOOKJETTY_")
        } | {
            "HOOKJETTY_VAR": str(folder),
            "HOOKJETTY_BIND": f"127.0.0.1:{port}",
            # Endpoints on this machine are refused otherwise.
            "HOOKJETTY_ALLOW_NETWORKS": "127.0.0.0/8",
            "HOOKJETTY_RETRY_SCHEDULE": RETRY_SCHEDULE,
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app.run"],
                cwd=ROOT,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops it in order
            )

    def await_start(self) -> None:
        """Until the API answers, which is the last thing to start."""
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Disappointment(
                    f"the instance does not start:\n{self.log.read_text()[-4000:]}"
                )
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=5):  # noqa: S310 - ours
                return True
        except (urllib.error.URLError, ConnectionError):
            return False

    def token(self) -> str:
        """A token of the tenant, as `hookjetty token` prints it."""
        scope = "webhooks:read webhooks:write events:write"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "app.cli", "token"),
                "--tenant",
                str(TENANT),
                "--scope",
                scope,
            ],
            cwd=ROOT,
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise Disappointment(f"hookjetty token: {done.stderr}")
        return done.stdout.strip()

    @property
    def database_url(self) -> str:
        """The embedded PostgreSQL."""
        return (self.folder / "database_url").read_text().strip()

    def stop(self) -> None:
        """Let it finish what is under way, and stop; a second signal to the demo hurries it."""
        on_signals(lambda *_: self.process.terminate())
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def an_instance() -> Iterator[Instance]:
    """A running instance, of which nothing is left behind."""
    folder = Path(tempfile.mkdtemp(prefix="hookjetty-demo-"))
    try:
        instance = Instance(folder)
        try:
            chapter("Hookjetty starts: PostgreSQL, a dispatcher, the API")
            began = time.monotonic()
            instance.await_start()
            say(f"{instance.url} answers after {time.monotonic() - began:.1f} s")
            yield instance
        finally:
            instance.stop()
    finally:
        devdb.DevDatabase(folder, {}, temporary=True).remove()
        shutil.rmtree(folder)


# ------------------------------------------------------------------------------- telling


def chapter(title: str) -> None:
    print(f"\n{title}", flush=True)


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Disappointment(otherwise)


def _is_unknown(client: Client, event_id: str) -> bool:
    try:
        client.get_event(event_id)
    except ApiError as error:
        return error.code == "not_found"
    return False


def _finished_task(client: Client, event_id: str) -> dict[str, Any]:
    """The one task of an event, once its last attempt, which has arrived, is recorded."""
    (task,) = client.get_event(event_id)["tasks"]
    deadline = time.monotonic() + ARRIVAL_SECONDS
    while (task := client.get_task(task["task_id"]))["status"] == "delivering":
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)  # a tenant may call ten times a second
    return task


def _post(url: str, body: bytes) -> int:
    request = urllib.request.Request(  # noqa: S310 - ours
        url,
        data=body,
        headers={
            "webhook-id": "evt_1",
            "webhook-timestamp": str(int(time.time())),
            "webhook-signature": "v1,Zm9yZ2Vk",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310 - ours
            return response.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def on_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    """What to do when a person or the terminal wants this to end; `nohup` is left its way."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
