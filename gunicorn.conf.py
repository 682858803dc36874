"""How gunicorn serves the API. What an operator may want to change is a HOOKJETTY_ setting.

Threads, because most of a request's time is spent waiting for PostgreSQL or, when an endpoint is
registered, for a handshake. The application is not preloaded and so opens no connection before
the fork: two processes on one connection would corrupt its protocol.
"""

from __future__ import annotations

import os
from typing import Any

from app.settings import SettingsError, load

try:
    _settings = load()
except SettingsError as error:
    raise SystemExit(str(error)) from None

bind = _settings.bind
worker_class = "app.server.BufferingWorker"  # its gthread, safe from slow clients
workers = _settings.api_workers
threads = _settings.api_threads
loglevel = _settings.log_level
proc_name = "hookjetty"

keepalive = 5  # seconds an idle connection is kept
graceful_timeout = 30  # seconds that requests under way get after SIGTERM

# A disk that stalls must not stall the heartbeats of the workers.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - gunicorn makes its file with mkstemp

# A way in for other processes of this user, in the home folder, which services may not have.
control_socket_disable = True


def on_starting(server: Any) -> None:
    """Refuse what the worker would silently leave out."""
    if server.cfg.is_ssl:
        raise SystemExit("certfile, keyfile: the API speaks plain HTTP; put TLS in front of it")
