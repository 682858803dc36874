"""Log lines: the same whether one or a batch of them is written."""

from __future__ import annotations

import io
import json

import pytest
import structlog

from app import logs
from app.db import db
from app.settings import load

LINE = {"task": "task_1", "status_code": None, "note": "ä\n\u2028"}


@pytest.fixture
def stream():
    structlog.contextvars.clear_contextvars()
    yield io.StringIO()
    structlog.reset_defaults()


def test_a_batch_of_lines_looks_like_single_ones(stream):
    logs.configure(load({"HOOKJETTY_LOG_FORMAT": "json"}), stream)
    structlog.get_logger().info("attempt", **LINE)
    logs.info_many("attempt", [LINE, LINE])
    single, *batch = (json.loads(line) for line in stream.getvalue().rstrip().split("\n"))
    for line in batch:
        assert line | {"timestamp": single["timestamp"]} == single
        assert len(line["timestamp"]) == len(single["timestamp"])


def test_a_batch_of_lines_is_text_where_a_person_reads_it(stream):
    logs.configure(load({"HOOKJETTY_LOG_FORMAT": "console"}), stream)
    logs.info_many("attempt", [LINE, LINE])
    assert stream.getvalue().count("task_1") == 2


def test_a_batch_is_not_written_above_its_level(stream):
    settings = load({"HOOKJETTY_LOG_FORMAT": "json", "HOOKJETTY_LOG_LEVEL": "warning"})
    logs.configure(settings, stream)
    logs.info_many("attempt", [LINE])
    assert stream.getvalue() == ""


@pytest.mark.usefixtures("database")
def test_secrets_in_statements_are_not_logged_at_debug(stream):
    """Peewee logs every statement with its parameters at DEBUG."""
    logs.configure(load({"HOOKJETTY_LOG_FORMAT": "json", "HOOKJETTY_LOG_LEVEL": "debug"}), stream)
    db.execute_sql("SELECT %s", ("ciphertext-canary",))
    assert "ciphertext-canary" not in stream.getvalue()


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_does_not_show_what_variables_hold(stream, log_format):
    logs.configure(load({"HOOKJETTY_LOG_FORMAT": log_format}), stream)
    canary = "whsec_canary"
    try:
        len(canary) / 0
    except ZeroDivisionError:
        structlog.get_logger().exception("it_failed")
    assert "ZeroDivisionError" in stream.getvalue()
    assert canary not in stream.getvalue()
