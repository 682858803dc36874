"""The baseline: what most Python teams have. Celery, `requests`, and one task per delivery.

It does the same work as a dispatcher, in the ordinary way: read the delivery, sign it, POST it,
write the attempt and the new status into PostgreSQL, commit. Where there is a choice it takes the
faster one: a broker in memory on a Unix socket, no results kept, a session per process that keeps
its connections, one statement for all that is to be read.

It runs in bench/.venv, with this folder as its working directory:

    python -m celery --app baseline worker --pool prefork --concurrency 4
    python -m baseline 4000       enqueues the deliveries 1 to 4,000
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import sys
import time
from functools import lru_cache

import psycopg2
import requests
from celery import Celery

TIMEOUT_SECONDS = 15
KEPT_BYTES = 1024

app = Celery("baseline", broker=os.environ["BASELINE_BROKER"])
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=64,
    broker_connection_retry_on_startup=True,
)


@app.task
def deliver(delivery_id: int) -> None:
    """One delivery."""
    connection, session = _tools()
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT e.id, e.type, e.data::text, e.created_at, n.url, n.secret
            FROM baseline.deliveries d
            JOIN baseline.events e ON e.id = d.event_id
            JOIN baseline.endpoints n ON n.id = d.endpoint_id
            WHERE d.id = %s
            """,
            (delivery_id,),
        )
        event_id, type_, data, created_at, url, secret = cursor.fetchone()
        body = (
            f'{{"id":"evt_{event_id}","type":"{type_}",'
            f'"timestamp":"{created_at.isoformat()}","data":{data}}}'
        ).encode()
        now = int(time.time())
        signed = f"evt_{event_id}.{now}.".encode() + body
        signature = base64.b64encode(hmac.digest(secret.encode(), signed, hashlib.sha256))
        response = session.post(
            url,
            data=body,
            headers={
                "content-type": "application/json",
                "webhook-id": f"evt_{event_id}",
                "webhook-timestamp": str(now),
                "webhook-signature": f"v1,{signature.decode()}",
            },
            timeout=TIMEOUT_SECONDS,
            allow_redirects=False,
        )
        connection.autocommit = False
        cursor.execute(
            """
            INSERT INTO baseline.attempts (delivery_id, started_at, status_code, total_us, headers,
                                           body)
            VALUES (%s, to_timestamp(%s), %s, %s, %s, %s)
            """,
            (
                delivery_id,
                now,
                response.status_code,
                response.elapsed.microseconds,
                "\n".join(f"{name}: {value}" for name, value in response.headers.items()),
                response.text[:KEPT_BYTES],
            ),
        )
        cursor.execute(
            "UPDATE baseline.deliveries SET status = %s WHERE id = %s",
            ("delivered" if response.ok else "failed", delivery_id),
        )
        connection.commit()
        connection.autocommit = True


@lru_cache(maxsize=1)
def _tools() -> tuple[psycopg2.extensions.connection, requests.Session]:
    """Of this process, made after the fork."""
    connection = psycopg2.connect(os.environ["BASELINE_DATABASE"])
    connection.autocommit = True
    session = requests.Session()
    adapter = requests.adapters.HTTPAdapter(pool_connections=200)
    session.mount("http://", adapter)
    session.trust_env = False  # looking for proxies and .netrc costs every request a while
    return connection, session


def main() -> int:
    """Enqueue."""
    with app.producer_pool.acquire() as producer:
        for delivery_id in range(1, int(sys.argv[1]) + 1):
            deliver.apply_async((delivery_id,), producer=producer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
