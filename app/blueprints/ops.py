"""What operators and their tools ask: does it live, is it ready, how is the backlog?

Nobody has to show a token here, and nothing of a tenant's is told.
"""

from __future__ import annotations

import threading
from typing import Any

from flask import Response
from marshmallow import fields, validate
from peewee import OperationalError
from prometheus_client import CONTENT_TYPE_LATEST

from app import errors, stats
from app.blueprints.common import Blueprint, check_database, may_answer, service
from app.db import SchemaMismatch, db, dependable, schema_version, sqlstate
from app.schemas.base import Outgoing
from app.schemas.fields import Text

blp = Blueprint("ops", __name__, description="For operators.")

QUERY_CANCELED = "57014"  # past its statement_timeout


class Alive(Outgoing):
    """The process lives."""

    status = Text(validate=validate.Equal("ok"))


class Ready(Outgoing):
    """Requests can be answered."""

    status = Text(validate=validate.Equal("ready"))
    schema_version = fields.Integer(metadata={"minimum": 1})


# One scrape of a process at a time asks the tables, however many ask us.
_scraping = threading.Lock()


@blp.route("/healthz", methods=["GET"])
@blp.response(200, Alive())
def live() -> Any:
    """The process lives

    Asks nobody, so it is 200 while the database is away.
    """
    return {"status": "ok"}


@blp.route("/readyz", methods=["GET"])
@may_answer("dependency_down")
@blp.response(200, Ready())
def ready() -> Any:
    """Requests can be answered

    The database is there, has the right schema, and next week's partitions.
    """
    with dependable():
        try:
            service().check_database()
        except SchemaMismatch as error:
            raise errors.dependency_down(str(error)) from error
        missing = _missing_partitions()
        if missing:
            raise errors.dependency_down(
                f"next week's partition of {', '.join(missing)} is missing: start a dispatcher"
            )
        return {"status": "ready", "schema_version": schema_version()}


@blp.route("/metrics", methods=["GET"])
@may_answer("dependency_down")
@blp.response(200, {"type": "string"}, content_type="text/plain")
def metrics() -> Any:
    """Backlog, age of the oldest due task, tasks by status

    In Prometheus' text format.
    """
    with dependable(), _scraping:
        check_database()
        try:
            text = stats.exposition()
        except OperationalError as error:
            if sqlstate(error) != QUERY_CANCELED:
                raise
            raise errors.dependency_down("the database is too busy to be counted") from error
        return Response(text, content_type=CONTENT_TYPE_LATEST)


def _missing_partitions() -> list[str]:
    """The tables that cannot take rows a week from now."""
    rows = db.execute_sql(
        """
        SELECT parent FROM unnest(ARRAY['events', 'tasks', 'attempts']) AS parent
        WHERE NOT EXISTS (
            SELECT FROM hookjetty.partitions p
            WHERE p.parent = parent.parent AND NOT p.detaching
              AND hookjetty.id_at(now() + interval '7 days') BETWEEN p.from_id AND p.upto_id - 1)
        """
    )
    return [parent for (parent,) in rows.fetchall()]
