"""A process that retrains a model and is killed: when a stage has done its work and nobody knows of it, or inside a notebook."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

from notebook_to_prod.project import Store, open_store
from notebook_to_prod.release.registry import Registry
from notebook_to_prod.watch import retrain as pipeline
from notebook_to_prod.watch import retrain_stages
from notebook_to_prod.watch.retrain_state import Retraining, keep_state


def killed_at(stage: str, folder: Path, variables: Mapping[str, str], name: str) -> None:
    """Retrain `name`, and die as the state that has `stage` is about to be written; `cell` is the middle of the notebook."""

    def keep(store: Store, found: Retraining) -> Retraining:
        if found.stage == stage:
            os.kill(os.getpid(), signal.SIGKILL)
        return keep_state(store, found)

    def progress(text: str) -> None:
        if stage == "cell" and text.endswith("fit"):
            os.kill(os.getpid(), signal.SIGKILL)

    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    pipeline.keep_state = retrain_stages.keep_state = keep
    pipeline.retrain(Registry(open_store()), name, progress=progress)
