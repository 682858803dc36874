"""The statements of a dispatcher without any sending: claim, then record as if all was answered.

``drain`` in this process; ``python -m bench.statements`` is a process that does it when told to, on
the database of its settings.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass

from app.db import db, open_database
from app.settings import Settings, load
from bench.inside import Claimer, record_as_delivered


@dataclass
class Spent:
    """What it took."""

    tasks: int = 0
    claim_seconds: float = 0.0
    record_seconds: float = 0.0


def drain(settings: Settings) -> Spent:
    """Until nothing is ready: a whole round over the endpoints has brought nothing."""
    spent = Spent()
    claimer = Claimer(settings)
    found_in_round = True
    while True:
        before = time.perf_counter()
        claims = claimer.claim()
        between = time.perf_counter()
        if claims.tasks:
            record_as_delivered(claims.tasks)
        spent.tasks += len(claims.tasks)
        spent.claim_seconds += between - before
        spent.record_seconds += time.perf_counter() - between
        found_in_round |= bool(claims.tasks)
        if claims.end:
            if not found_in_round:
                return spent
            found_in_round = False


def main() -> int:
    """Say that it is ready, wait for the word, drain, and tell what it took."""
    settings = load()
    open_database(settings.database_direct_url or "", "hookjetty bench statements")
    db.ready(for_hot_statements=True)
    print("ready", flush=True)
    if not sys.stdin.readline():
        return 1
    print(json.dumps(asdict(drain(settings))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
