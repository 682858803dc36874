"""Structured logs: one line per thing that happened, JSON for machines or text for a terminal.

Everything goes through the standard library's logging, so that gunicorn's and APScheduler's lines
look the same.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

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
        else [structlog.dev.ConsoleRenderer()]
    )
    handler = logging.StreamHandler(stream)
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
