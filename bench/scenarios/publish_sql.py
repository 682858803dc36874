"""What a producer in the same database gets: `publish_event`, one a transaction, by pgbench."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

from app.db import db
from bench.ground import EVENT_DATA, BenchError, Ground

CLIENTS = 8


def measure(ground: Ground) -> dict[str, Any]:
    """Transactions per second. No dispatcher runs, so none has to be woken."""
    targets = ground.targets
    with ground.fresh():
        # pgbench knows no arrays: the endpoints are looked up in the text of the statement.
        tenants = ",".join(str(target.tenant_id) for target in targets)
        types = ",".join(target.type for target in targets)
        script = ground.var / "publish.pgbench"
        script.write_text(
            f"\\set n random(1, {len(targets)})\n"
            f"SELECT * FROM hookjetty.publish_event(('{{{tenants}}}'::bigint[])[:n],"
            f" ('{{{types}}}'::text[])[:n], '{EVENT_DATA}'::json);\n"
        )
        ground.calm()
        answer = subprocess.run(
            [
                ground.database.bin("pgbench"),
                *("--no-vacuum", "--protocol=prepared", f"--client={CLIENTS}", "--jobs=1"),
                *(f"--time={max(1, round(ground.scale.seconds))}", f"--file={script}", ground.url),
            ],
            check=False,
            capture_output=True,
            text=True,
            env={"PATH": os.defpath},
        )
        done = re.search(r"actually processed: (\d+)", answer.stdout)
        rate = re.search(r"tps = ([\d.]+)", answer.stdout)
        if answer.returncode != 0 or done is None or rate is None:
            raise BenchError(f"pgbench failed: {answer.stdout}{answer.stderr}")
        tasks = db.execute_sql("SELECT count(*) FROM hookjetty.tasks").fetchone()[0]
        if tasks != int(done[1]):
            raise BenchError(f"{done[1]} events were published, and {tasks} tasks made")
    return {"publish_sql_per_s": float(rate[1])}
