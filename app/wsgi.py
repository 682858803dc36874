"""``app.wsgi:create_app()``: the application that gunicorn serves. Wiring only."""

from __future__ import annotations

import logging

from flask import Flask
from peewee import PeeweeException

from app import __version__, logs
from app.blueprints import documentation, ops
from app.blueprints.admin import audit as admin_audit
from app.blueprints.admin import endpoints as admin_endpoints
from app.blueprints.admin import event_types as admin_event_types
from app.blueprints.admin import operator as admin_operator
from app.blueprints.admin import surface as admin_surface
from app.blueprints.admin import tasks as admin_tasks
from app.blueprints.admin import tenants as admin_tenants
from app.blueprints.common import Api, Service, install
from app.blueprints.tenant import (
    endpoints,
    event_types,
    events,
    replays,
    surface,
    tasks,
)
from app.db import db, is_away, open_database
from app.ingest import Ingest
from app.settings import Settings, load

log = logging.getLogger(__name__)


def create_app(settings: Settings | None = None) -> Flask:
    """The API on the given settings, or on those of this process's environment.

    ``SettingsError`` or ``SchemaMismatch`` says what has to be set or run first. A database that
    is away is no reason not to start: requests get ``dependency_down`` until it is there. Leaves
    no connection open, so that the process may fork.
    """
    if settings is None:
        settings = load()
        logs.configure(settings)
    app = assemble(settings)
    open_database(settings.database_url or "", "hookjetty api")
    try:
        db.ready()
        app.extensions["hookjetty"].check_database()
    except PeeweeException as error:
        if not is_away(error):
            raise
        log.warning("the database is away, starting without it: %s", str(error).strip())
    finally:
        db.give_up()
    return app


def assemble(settings: Settings) -> Flask:
    """All surfaces on one application, which knows no database yet."""
    app = Flask(__name__, static_folder=None)
    app.config.update(
        API_TITLE="Hookjetty",
        API_VERSION=__version__,
        OPENAPI_VERSION="3.1.1",
    )
    app.json.sort_keys = False  # type: ignore[attr-defined]  # of Flask's own provider
    app.url_map.merge_slashes = False  # a redirect would be an answer outside of every dialect

    service = app.extensions["hookjetty"] = Service.from_settings(settings)
    install(app, [surface.dialect(), admin_surface.dialect()])
    api = Api(app)
    of_tenants = (endpoints, event_types, events, tasks, replays)
    of_admins = (
        admin_endpoints,
        admin_event_types,
        admin_tasks,
        admin_tenants,
        admin_audit,
        admin_operator,
    )
    for module in (*of_tenants, *of_admins, ops, documentation):
        api.register_blueprint(module.blp)

    app.wsgi_app = Ingest(  # type: ignore[assignment]  # what Flask documents
        app.wsgi_app,
        f"{surface.PREFIX}/events",
        service.tokens,
        service.limits,
        lambda: service.is_checked,
    )
    return app
