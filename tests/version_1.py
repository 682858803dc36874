"""Rows as they are found in a database of schema version 1, in every table and every state.

Endpoints of tenant 7 are named by the path of their URL, tenant 8 has one more. Some tasks are due,
some wait; some are of weeks past.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import psycopg2

from tests.acceptance.receiver import RecordingReceiver
from tests.conftest import TENANT_PREFIX

# As version 1 encrypted with the tests' key: the endpoints' secrets, one that was replaced, and an
# answer. And that key's fingerprint.
SECRETS = {
    7: (
        "gAAAAABrAk-j5jyb2rqTzdfG4vwE6xaQLiiC2PTavVJdXTtNFg3p2xuu65crclmP9eLzSa_1t6J4UTFt"
        "qe_849yjCumo_fm4E8t9aZOVHiONuoHyMvpfQr98Nm7ati8naRDKGXTwCRer"
    ),
    8: (
        "gAAAAABrAk-jCYRxDfSbSaMf4GngKi0uXcnsimcLZyQR6ZCzaRUsbuQ5UVreoazNzmZQKD1S54rjUhtv"
        "tGfVP1K9OrlNtbc9dFBhuCSt2itRxx-f25terkNk2YpxxVTqtmStsg0YUebI"
    ),
}
RETIRED_SECRET = (
    "gAAAAABrAk-j2QcJ8U8qxQVl0-_Jrd_MmcOyanHOos4s8r3iol5XVj0nHIvANzZ0CLHGftHQBu1rB_Vv6IPh"
    "LoYW32ral3nVQQY2z_YNKgwYaeyAbfE-KFM="
)
SEALED_ANSWER = (
    "gAAAAABrAk-jO7OFIMsKnjAzB497-5Ue4P7sY5gD1H_GbzNFqTCNZhYRKWzHtTvEYeGe1GhcRC08QgO9ZaUr"
    "sqXcpu1JrZ5LeA=="
)
FINGERPRINT = "2dde7917aff9fbe0"

REMEMBERED_BODY = b'{"type": "export.done", "data": {"n": 1}}'
REMEMBERED_ANSWER = '{"event_id": "evt_1", "tasks": 0}'

# The tasks that are to be delivered, and the others that are open, which wait.
DELIVERABLE = """
    SELECT t.id FROM hookjetty.tasks t JOIN hookjetty.endpoints e ON e.id = t.endpoint_id
    WHERE e.status IN ('active', 'pending')
      AND t.status IN ('pending', 'delivering', 'retry', 'waiting') ORDER BY t.id
"""
OTHERS = """
    SELECT t.id FROM hookjetty.tasks t JOIN hookjetty.endpoints e ON e.id = t.endpoint_id
    WHERE e.status IN ('paused', 'disabled')
      AND t.status IN ('pending', 'delivering', 'retry', 'waiting') ORDER BY t.id
"""
RUNNING = "SELECT id FROM hookjetty.replays WHERE status = 'running'"


def load(url: str, receiver: RecordingReceiver) -> None:
    """Fill a database that has tests/schemas/1.sql and nothing else."""
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT hookjetty.make_partitions(now() - interval '3 weeks', 3)")
        endpoints = _endpoints(cursor, receiver)
        _present(cursor, endpoints)
        _past(cursor, endpoints)
        _rest(cursor, endpoints)
    connection.close()


def _endpoints(cursor: Any, receiver: RecordingReceiver) -> dict[str, int]:
    cursor.execute("INSERT INTO hookjetty.tenants (id) VALUES (7), (8)")
    rows: dict[str, dict[str, Any]] = {
        "active": {"verified_at": "2026-01-01"},
        "failing": {"failures": 3, "failing_since": "2026-01-01", "hold_until": "2026-01-02"},
        "resumed": {"settling": True, "version": 5},
        "paused": {"status": "paused"},
        "disabled": {"status": "disabled", "reason": "gone"},
        "deleted": {"status": "deleted"},
        "pending": {
            "status": "pending",
            "handshake_at": "2026-01-01",
            "handshake_tries": 2,
            "handshake_failure": "timeout",
        },
        "other": {"tenant_id": 8, "events": ["export.*", "import.done"]},
    }
    ids = {}
    for name, columns in rows.items():
        target = receiver.url(f"/{name}")
        row = {
            "tenant_id": 7,
            "url": target,
            "url_key": target,
            "events": ["*"],
            "status": "active",
        } | columns
        row["secret"] = SECRETS[row["tenant_id"]]
        cursor.execute(
            f"INSERT INTO hookjetty.endpoints ({', '.join(row)})"
            f" VALUES ({', '.join(['%s'] * len(row))}) RETURNING id",
            list(row.values()),
        )
        (ids[name],) = cursor.fetchone()
    retired = [{"secret": RETIRED_SECRET, "until": "2026-01-01T00:00:00Z"}]
    cursor.execute(
        "UPDATE hookjetty.endpoints SET retired_secrets = %s WHERE id = %s",
        (json.dumps(retired), ids["other"]),
    )
    return ids


def _present(cursor: Any, endpoints: dict[str, int]) -> None:
    """Events of today, made by version 1 itself, and their tasks in all stages of delivery."""
    for tenant_id, data, key in (
        (7, '{"n":  1.50, "name": "\\u00e9"}', "order-1"),
        (7, '{"n": 2}', None),
        (7, '{"n": 3}', None),
        (8, '{"n": 4}', "order-1"),
    ):
        cursor.execute(
            "SELECT hookjetty.publish_event(%s, 'export.done', %s, %s)", (tenant_id, data, key)
        )
    # Failed and is due again; will be due soon; under way when its dispatcher was killed.
    for name, status, ready, tries, failure, due_in in (
        ("active", "retry", True, 2, "http_5xx", "-1 minute"),
        ("active", "retry", False, 1, "timeout", "2 s"),
        ("failing", "delivering", False, 1, None, "-1 minute"),
        ("failing", "delivering", False, 1, None, "2 s"),
    ):
        cursor.execute(
            "UPDATE hookjetty.tasks SET status = %s, ready = %s, tries = %s, step = %s,"
            " failure = %s, next_try_at = now() + %s::interval, attempt_id = hookjetty.new_id()"
            " WHERE id = (SELECT min(id) FROM hookjetty.tasks"
            "             WHERE endpoint_id = %s AND status = 'pending')",
            (status, ready, tries, tries, failure, due_in, endpoints[name]),
        )
    # Resumed a moment ago; paused while a task was to be tried again.
    cursor.execute(
        "UPDATE hookjetty.tasks SET status = 'waiting', ready = false, next_try_at = NULL"
        " WHERE endpoint_id = %s",
        (endpoints["resumed"],),
    )
    cursor.execute(
        "UPDATE hookjetty.tasks SET tries = 1, step = 1, failure = 'reset' WHERE endpoint_id = %s",
        (endpoints["paused"],),
    )


def _past(cursor: Any, endpoints: dict[str, int]) -> None:
    """An event of each of the last three weeks, what came of it, and the attempts."""
    for week in (3, 2, 1):
        cursor.execute(
            "INSERT INTO hookjetty.events (id, tenant_id, type, data, fanout)"
            " SELECT hookjetty.id_at(now() - %s * interval '7 days') + n, 7, 'export.done',"
            " '{\"old\": true}', 5 FROM generate_series(1, 3) n RETURNING id",
            (week,),
        )
        first = min(row[0] for row in cursor.fetchall())
        for number, (name, columns) in enumerate(
            (
                ("active", {"status": "delivered", "tries": 1}),
                ("active", {"status": "failed", "tries": 10, "step": 9, "failure": "connect"}),
                ("deleted", {"status": "canceled"}),
                ("paused", {"status": "waiting"}),
                ("active", {"status": "retry", "tries": 3, "step": 3, "failure": "http_4xx"}),
                ("disabled", {"status": "failed", "failure": "expired"}),
            )
        ):
            row: dict[str, Any] = {
                "id": first + 100 + number,
                "tenant_id": 7,
                "endpoint_id": endpoints[name],
                "event_id": first + number % 3,
                "ready": columns["status"] == "retry",
                "next_try_at": "2026-01-01" if columns["status"] == "retry" else None,
                "attempt_id": first + 200 + number if columns.get("tries") else None,
            } | columns
            cursor.execute(
                f"INSERT INTO hookjetty.tasks ({', '.join(row)})"
                f" VALUES ({', '.join(['%s'] * len(row))})",
                list(row.values()),
            )
            if row["attempt_id"] is None:
                continue
            delivered = row["status"] == "delivered"
            cursor.execute(
                "INSERT INTO hookjetty.attempts (id, task_id, tenant_id, endpoint_id, try,"
                " started_at, status_code, failure, resolve_us, connect_us, first_byte_us,"
                " total_us, address, response_headers, response_body, truncated, resent)"
                " VALUES (%s, %s, 7, %s, %s, hookjetty.id_time(%s), %s, %s, 10, 200, 3000, 4000,"
                " '127.0.0.1', 'Content-Length: 2', 'ok', %s, %s)",
                (
                    row["attempt_id"],
                    row["id"],
                    row["endpoint_id"],
                    row["tries"],
                    row["id"],
                    200 if delivered else None,
                    None if delivered else row["failure"],
                    not delivered,
                    delivered,
                ),
            )


def _rest(cursor: Any, endpoints: dict[str, int]) -> None:
    """A replay that is under way and others, and what API and dispatchers keep for themselves."""
    cursor.execute(
        "INSERT INTO hookjetty.replays"
        " (tenant_id, endpoint_id, status, from_id, upto_id, cursor_id, events, finished_at)"
        " SELECT 7, endpoint_id, status, hookjetty.id_at(now() - interval '15 days'),"
        "        hookjetty.id_at(now()), hookjetty.id_at(now() - interval '8 days'), 3, finished_at"
        " FROM (VALUES (%(active)s, 'running', NULL), (%(failing)s, 'finished', now()),"
        "              (%(paused)s, 'canceled', now())) v (endpoint_id, status, finished_at)",
        endpoints,
    )
    cursor.execute(
        "INSERT INTO hookjetty.tasks (id, tenant_id, endpoint_id, event_id, status, ready, lane,"
        " next_try_at, replay_id)"
        " SELECT hookjetty.new_id(), 7, r.endpoint_id, e.id, 'pending', true, 1, now(), r.id"
        " FROM hookjetty.replays r, (SELECT min(id) FROM hookjetty.events) e (id)"
        " WHERE r.status = 'finished'"
    )
    cursor.execute(
        "INSERT INTO hookjetty.idempotency_keys"
        " (owner, method, path, key, body_sha256, status_code, answer, sealed)"
        " VALUES (7, 'POST', %s, 'remembered', %s, 202, %s, false),"
        "        (7, 'POST', %s, 'secret', %s, 201, %s, true)",
        (
            f"{TENANT_PREFIX}/events",
            hashlib.sha256(REMEMBERED_BODY).digest(),
            REMEMBERED_ANSWER,
            f"{TENANT_PREFIX}/endpoints",
            hashlib.sha256(b"{}").digest(),
            SEALED_ANSWER,
        ),
    )
    cursor.execute(
        "SELECT hookjetty.count_hit('tenant 7', 10, '1 s'),"
        " hookjetty.take_tokens('events of 7', 1, 1000, 1000)"
    )
    cursor.execute(
        "INSERT INTO hookjetty.dispatchers (id, host, pid, seen_at)"
        " VALUES (1, 'gone', 1, now() - interval '1 hour')"
    )
    cursor.execute(
        "INSERT INTO hookjetty.secret_keys (fingerprint) VALUES (%s)",
        (FINGERPRINT,),
    )
