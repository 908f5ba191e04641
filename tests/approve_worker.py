"""What tests/test_approvals.py starts in a process of its own: people who approve and promote at once, or are killed while they do."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# What every process needs, imported before the fork
import alembic.command  # noqa: F401
import filelock  # noqa: F401
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
import sqlalchemy.dialects.sqlite  # noqa: F401
from mlflow.tracking import MlflowClient

from notebook_to_prod.errors import VerdictError
from notebook_to_prod.project import Store
from notebook_to_prod.release import change
from notebook_to_prod.release.audit import read_events
from notebook_to_prod.release.registry import Registry
from notebook_to_prod.release.views import verify_audit

FORK = multiprocessing.get_context("fork")


def forked(token: str | None, act: Callable[[Registry], Any], home: Path, gate: Any = None) -> tuple[Any, Connection]:
    """Start a person in a process of their own, who waits at the gate if there is one."""
    end, other = FORK.Pipe()

    def run() -> None:
        os.environ |= {"N2P_TOKEN": token} if token else {}
        registry = Registry(Store(home))
        registry._client.search_registered_models()
        other.send("ready")
        if gate is not None:
            gate.wait()
        other.send(act(registry))

    process = FORK.Process(target=run)
    process.start()
    assert end.recv() == "ready"  # one after the other, since each opens the database under a lock
    return process, end


def asked(token: str | None, act: Callable[[Registry], Any], home: Path) -> Any:
    """What a person finds."""
    process, end = forked(token, act, home)
    process.join()
    assert process.exitcode == 0, process.exitcode
    return end.recv()


def approve(name: str) -> Callable[[Registry], bool]:
    return lambda registry: registry.approve(name, 1) is not None


def promote(name: str) -> Callable[[Registry], bool]:
    def until_done(registry: Registry) -> bool:
        while True:
            with contextlib.suppress(VerdictError):
                return registry.promote(name, 1) is not None
            time.sleep(0.5)

    return until_done


def found(name: str) -> Callable[[Registry], dict[str, Any]]:
    def look(registry: Registry) -> dict[str, Any]:
        events = [event.to_dict() for event in registry.history(name)]
        logged = [event.to_dict() for event in read_events(registry.store, name)]
        given = registry.approvals(name, 1).given
        return {"events": events, "same": events == logged, "given": given, "sound": not verify_audit(registry).damage}

    return look


def at_once(home: Path, name: str, approvers: list[str], movers: list[str]) -> dict[str, Any]:
    """Everybody approves, the first of them twice, while others try to promote."""
    hands = [*approvers, approvers[0]]
    gate = FORK.Barrier(len(hands) + len(movers))
    people = [forked(token, approve(name), home, gate) for token in hands]
    people += [forked(token, promote(name), home, gate) for token in movers]
    for process, _ in people:
        process.join()
        assert process.exitcode == 0, process.exitcode
    told = [end.recv() for _, end in people]
    new = {"approved": sum(told[: len(hands)]), "promoted": sum(told[len(hands) :])}
    return asked(None, found(name), home) | new


def killed(home: Path, name: str, token: str) -> list[dict[str, Any]]:
    """Approve, and be killed as soon as each of the steps of that has been made; what others find then."""

    def die_after(holder: Any, step: str) -> Callable[[Registry], None]:
        def act(registry: Registry) -> None:
            made = getattr(holder, step)

            def last(*arguments: Any, **more: Any) -> None:
                made(*arguments, **more)
                os.kill(os.getpid(), signal.SIGKILL)

            setattr(holder, step, last)
            registry.approve(name, 1)

        return act

    def found_and_revoked(registry: Registry) -> dict[str, Any]:
        told = found(name)(registry)
        registry.revoke(name, 1)
        return told

    steps = [(change, "write_json"), (MlflowClient, "set_registered_model_tag"), (change, "_share")]
    steps += [(MlflowClient, "delete_registered_model_tag"), (change, "append_event")]
    told = []
    for holder, step in steps:
        process, _ = forked(token, die_after(holder, step), home)
        process.join()
        assert process.exitcode == -signal.SIGKILL, (step, process.exitcode)
        told.append({"step": step} | asked(token, found_and_revoked, home))
    return told


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    act = {"at once": at_once, "killed": killed}[task.pop("do")]
    print(json.dumps(act(Path(task.pop("home")), **task)))
