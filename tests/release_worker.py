"""Processes that promote, roll back and register: forked from here, so that the libraries are imported once."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import alembic.command  # noqa: F401
import filelock  # noqa: F401
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
import sqlalchemy.dialects.sqlite  # noqa: F401 - imported before the fork
from mlflow.tracking import MlflowClient  # noqa: F401

from notebook_to_prod.errors import NotFoundError, VerdictError
from notebook_to_prod.project import Store
from notebook_to_prod.release.audit import read_events
from notebook_to_prod.release.registry import Registry
from notebook_to_prod.release.views import verify_audit
from notebook_to_prod.train.record import RunRecord, find_run

FORK = multiprocessing.get_context("fork")
MODEL = "flights"


def records(trained: Path, folder: Path) -> list[RunRecord]:
    """The runs of a trained project, as if MLflow had never heard of them."""
    store, found = Store(trained), []
    for path in sorted(store.runs.iterdir()):
        (folder / path.name).mkdir(parents=True, exist_ok=True)
        found.append(replace(find_run(store, path.name), mlflow_run_id=None, folder=str(folder / path.name)))
    return found


def act(registry: Registry, known: list[RunRecord], chance: random.Random, to: int | None = None) -> str:
    """Do one thing to the model; what a user would be told is told."""
    what = chance.choice(("promote", "promote", "rollback", "register" if known else "promote"))
    try:
        if what == "register":
            registry.register(chance.choice(known), MODEL)
        elif what == "promote":
            versions = registry.versions(MODEL)
            registry.promote(MODEL, to or chance.choice(versions).version, reason="soak")
        else:
            registry.rollback(MODEL, reason="soak")
    except VerdictError:
        return "too late"
    except NotFoundError:
        return "nothing before"
    return what


def agree(registry: Registry) -> dict[str, object]:
    """Hold alias, history and log against each other; raises `AssertionError`."""
    events = registry.history(MODEL)
    moves = [event for event in events if event.alias == "production"]
    alias = registry.aliased(MODEL, "production")
    assert [event.previous for event in moves] == [None, *(event.version for event in moves[:-1])][: len(moves)], moves
    assert alias == (moves[-1].version if moves else None), (alias, moves[-1:])
    versions = [each.version for each in registry.versions(MODEL)]
    registered = [event.version for event in events if event.action == "register"]
    assert sorted(registered) == versions == list(range(1, len(versions) + 1)), (registered, versions)
    assert alias is None or alias in versions
    audited = verify_audit(registry)
    assert audited.damage == [], audited
    return {"moves": len(moves), "versions": len(versions), "entries": audited.entries}


# Many at once


def soak(home: Path, known: list[RunRecord], seed: int, until: float, end: Connection) -> None:
    """Do things until the time is over, and tell what."""
    registry, chance, done = Registry(Store(home)), random.Random(seed), dict[str, int]()
    while time.time() < until or not done:
        what = act(registry, known, chance)
        done[what] = done.get(what, 0) + 1
    end.send(done)


def soak_all(trained: Path, homes: list[Path], seconds: float, processes: int) -> dict[str, object]:
    """Let processes loose on one model, spread over stores that share a registry."""
    known = records(trained, homes[0] / "records")
    first = FORK.Process(target=lambda: Registry(Store(homes[0])).register(known[0], MODEL))
    first.start()
    first.join()
    until, workers = time.time() + seconds, []
    for number in range(processes):
        end, other = FORK.Pipe()
        home = homes[number % len(homes)]
        arguments = (home, known if home == homes[0] else [], number, until, other)
        workers.append((FORK.Process(target=soak, args=arguments), end))
        workers[-1][0].start()
    told: dict[str, int] = {}
    for worker, end in workers:
        worker.join()
        assert worker.exitcode == 0, f"a process ended with {worker.exitcode}"
        for what, count in end.recv().items():
            told[what] = told.get(what, 0) + count
    stores = [agree(Registry(Store(home))) for home in homes]
    moves = {int(str(each["moves"])) for each in stores}
    logged = [event for home in homes for event in read_events(Store(home)) if event.alias]
    assert moves == {len(logged)}, "every move is in the log of one store"
    return {"told": told, "stores": stores}


# Killed


def ready(home: Path, end: Connection) -> None:
    """Move the alias again and again, each time when told to."""
    registry = Registry(Store(home))
    registry._client.search_registered_models()
    end.send("ready")
    turn, version = end.recv()
    if turn == "rollback":
        registry.rollback(MODEL, reason="killed?")
    else:
        registry.promote(MODEL, version, reason="killed?")
    end.send("done")


def check(home: Path, end: Connection) -> None:
    registry = Registry(Store(home))
    told = agree(registry)
    end.send((told, registry.aliased(MODEL, "production")))


def checked(home: Path) -> tuple[dict[str, int], int | None]:
    """What a process of its own finds after a kill."""
    end, other = FORK.Pipe()
    process = FORK.Process(target=check, args=(home, other))
    process.start()
    process.join()
    assert process.exitcode == 0, "alias, history and log do not agree"
    return end.recv()


def kill_all(trained: Path, home: Path, kills: int) -> dict[str, int]:
    """Kill promotions and rollbacks at random moments; after each, everything agrees."""
    known, chance = records(trained, home / "records"), random.Random(5)

    def begin() -> None:
        registry = Registry(Store(home))
        for record in known:
            registry.register(record, MODEL)
        for version in (1, 2):
            registry.promote(MODEL, version)

    first = FORK.Process(target=begin)
    first.start()
    first.join()
    counts = {"before": 0, "made": 0, "done": 0}
    told, alias = checked(home)
    duration = 0.0
    for number in range(-1, kills):  # the first one is not killed, to know how long it takes
        end, other = FORK.Pipe()
        process = FORK.Process(target=ready, args=(home, other))
        process.start()
        assert end.recv() == "ready"
        began = time.monotonic()
        end.send(("rollback" if number % 3 == 2 else "promote", 1 if alias == 2 else 2))
        if number < 0:
            assert end.recv() == "done"
            duration = time.monotonic() - began
        else:
            time.sleep(chance.uniform(0, 1.1 * duration))
            os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        before = told["moves"]
        told, alias = checked(home)
        counts["made" if told["moves"] > before else "before"] += number >= 0
        counts["done"] += number >= 0
        assert told["moves"] - before in (0, 1) and told["versions"] == len(known)
    return counts


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    if task["do"] == "soak":
        told = soak_all(
            Path(task["trained"]), [Path(home) for home in task["homes"]], task["seconds"], task["processes"]
        )
    else:
        told = kill_all(Path(task["trained"]), Path(task["home"]), task["kills"])
    print(json.dumps(told))
