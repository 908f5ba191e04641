"""What an auditor's questions cost in a registry of 1,000 versions: CPU seconds of whole processes, median of several.

Run: python benchmarks/registry.py
Peer: MLflow's own client, asked for the model's versions and tags.
Limit: 1 s of CPU for `n2p history`, `n2p show` and `n2p live --at`.
"""

import json
import logging
import os
import sqlite3
import sys
import tempfile
from pathlib import Path

from measure import cpu_seconds, table

from notebook_to_prod.project import Store
from notebook_to_prod.release.audit import Event, append_event
from notebook_to_prod.train.tracking import open_client

LIMIT = 1.0
VERSIONS = 1_000
PEER = (
    "from mlflow.tracking import MlflowClient; client = MlflowClient('{uri}', '{uri}');"
    " client.search_model_versions(\"name='flights'\", max_results=10000); client.get_registered_model('flights')"
)


def fill(store: Store) -> None:
    """Make the versions, each registered and promoted: the first by MLflow, copies of it in the tables themselves."""
    client = open_client(store)
    client.create_registered_model("flights")
    tags = {
        "n2p.bundle": "sha256:" + "0" * 64,
        "n2p.run_id": "run",
        "n2p.run_key": "key",
        "n2p.notebook": "train.ipynb",
    }
    client.create_model_version("flights", "/somewhere", tags=tags)
    client.set_registered_model_alias("flights", "production", "1")
    with sqlite3.connect(store.home / "mlflow.db") as database:
        copies(database, "model_versions")
        copies(database, "model_version_tags")
        database.execute("update registered_model_aliases set version = ?", (VERSIONS,))
        events = []
        for version in range(1, VERSIONS + 1):
            moment = f"2026-01-{1 + version // 50:02d}T{version % 24:02d}:00:00.000+00:00"
            made = Event(moment, "register", "flights", version, "ada", bundle="sha256:" + "0" * 64)
            moved = Event(moment, "promote", "flights", version, "ada", "production", version - 1 or None, "better")
            events += [(made, 2 * version - 1), (moved, 2 * version)]
        rows = [(f"n2p.event.{number:08d}.x", json.dumps(event.to_dict()), "flights") for event, number in events]
        database.executemany("insert into registered_model_tags (key, value, name) values (?, ?, ?)", rows)
    append_event(store, events[0][0])


def copies(database: sqlite3.Connection, name: str) -> None:
    """Copy the rows of version 1 to all the others."""
    columns = [column[1] for column in database.execute(f"pragma table_info({name})")]
    chosen = ", ".join("number.copied" if column == "version" else f"original.{column}" for column in columns)
    numbers = "with recursive number(copied) as (select 2 union all select copied + 1 from number where copied < ?)"
    question = f"{numbers} insert into {name} ({', '.join(columns)}) select {chosen} from {name} as original, number where original.version = 1"
    database.execute(question, (VERSIONS,))


def main() -> int:
    """Measure, print and return 1 if the limit is exceeded."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder).resolve())
        fill(store)
        os.environ["N2P_HOME"] = str(store.home)
        ours = {
            "n2p history flights": ["n2p", "history", "flights"],
            "n2p show flights": ["n2p", "show", "flights"],
            "n2p show flights@production": ["n2p", "show", "flights@production"],
            "n2p live flights --at": ["n2p", "live", "flights", "--at", "2026-01-10"],
        }
        peer = {"mlflow client": [sys.executable, "-c", PEER.format(uri=store.tracking_uri)]}
        seconds = cpu_seconds({**ours, **peer}, rounds=3)
    slowest = max(seconds[name] for name in ours)
    print(table(["question", "CPU s"], [[name, f"{value:.3f}"] for name, value in seconds.items()]))
    print(
        f"{VERSIONS:,} versions, slowest {slowest:.3f} s of CPU, limit {LIMIT} s: {'held' if slowest <= LIMIT else 'EXCEEDED'}"
    )
    return int(slowest > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
