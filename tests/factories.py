"""Rows that tests start from, made with SQL so that they need no API and no dispatcher."""

from __future__ import annotations

import json
from typing import Any

from app.db import db
from dispatcher import claim as claims


def make_endpoint(
    tenant_id: int = 7,
    url: str | None = None,
    *,
    events=("*",),
    status: str = "active",
    **columns: Any,
) -> int:
    """An endpoint; its secret is not a real one unless given. Returns its id."""
    db.execute_sql("INSERT INTO hookjetty.tenants VALUES (%s) ON CONFLICT DO NOTHING", (tenant_id,))
    columns = {
        "tenant_id": tenant_id,
        "url": url or "https://example.com/",
        "events": list(events),
        "status": status,
        "secret": "not encrypted",
        "reason": "gone" if status == "disabled" else None,
    } | columns
    names = ", ".join(columns)
    row = db.execute_sql(
        f"INSERT INTO hookjetty.endpoints (url_key, {names}) VALUES (gen_random_uuid()::text,"
        f" {', '.join(['%s'] * len(columns))}) RETURNING id",
        list(columns.values()),
    ).fetchone()
    if url:
        db.execute_sql("UPDATE hookjetty.endpoints SET url_key = url WHERE id = %s", row)
    return row[0]


def publish(
    tenant_id: int = 7, type: str = "export.done", data: Any = None, key: str | None = None
):
    """An event through the SQL function; returns (event_id, number of tasks)."""
    return db.execute_sql(
        "SELECT * FROM hookjetty.publish_event(%s, %s, %s, %s)",
        (tenant_id, type, json.dumps(data or {"n": 1}), key),
    ).fetchone()


def claim(*, most=None, limit=500, slots=20, steps=10, lease_seconds=60.0, floors=None):
    """One claim over the endpoints with ready tasks; ``most`` bounds some of them by their id."""

    def allot(candidates):
        left, parts = limit, []
        for each in candidates:
            parts.append(min(left, each.slots, (most or {}).get(each.endpoint_id, limit)))
            left -= parts[-1]
        return parts

    return claims.claim(
        claims.visit(claims.START),
        allot,
        slots=slots,
        steps=steps,
        lease_seconds=lease_seconds,
        floors=floors,
    )


def make_task(
    endpoint_id: int, event_id: int = 1, tenant_id: int = 7, *, age: str = "0 s", **columns: Any
) -> int:
    """A task that was made so long ago, in whatever state; returns its id."""
    columns = {
        "tenant_id": tenant_id,
        "endpoint_id": endpoint_id,
        "event_id": event_id,
        "status": "delivered",
        "ready": False,
    } | columns
    if columns["status"] == "failed":
        columns.setdefault("failure", "timeout")
    if columns["status"] in ("pending", "retry", "delivering"):
        columns.setdefault("next_try_at", "2999-01-01")
    if columns["status"] == "delivering":
        columns.setdefault("attempt_id", 1)
    names, places = ", ".join(columns), ", ".join(["%s"] * len(columns))
    return db.execute_sql(
        f"INSERT INTO hookjetty.tasks (id, {names})"
        " SELECT hookjetty.new_id() - hookjetty.id_at(now())"
        f" + hookjetty.id_at(now() - %s::interval), {places} RETURNING id",
        [age, *columns.values()],
    ).fetchone()[0]


def task_rows(where: str = "true") -> list[dict[str, Any]]:
    """Tasks as they are stored, in the order they were made."""
    cursor = db.execute_sql(f"SELECT * FROM hookjetty.tasks WHERE {where} ORDER BY id")
    return rows(cursor)


def attempt_rows(where: str = "true") -> list[dict[str, Any]]:
    """Attempts as they are stored."""
    return rows(
        db.execute_sql(f"SELECT * FROM hookjetty.attempts WHERE {where} ORDER BY task_id, id")
    )


def rows(cursor: Any) -> list[dict[str, Any]]:
    """A cursor's rows by column name."""
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def most_rows_of_a_node(plan: dict[str, Any]) -> float:
    """How many rows the busiest node of an EXPLAIN (ANALYZE, FORMAT JSON) looked at."""
    looked_at = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
    below = (most_rows_of_a_node(each) for each in plan.get("Plans", []))
    return max([looked_at * plan["Actual Loops"], *below])
