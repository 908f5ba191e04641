"""Carry a training notebook to production: reproduced, packaged, gated, released, served, watched, retrained."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from notebook_to_prod.package.bundle import Bundle, open_bundle
    from notebook_to_prod.package.features.definition import FeatureView, features
    from notebook_to_prod.package.features.online import open_online
    from notebook_to_prod.package.features.point_in_time import point_in_time
    from notebook_to_prod.package.schema import Schema, infer_schema
    from notebook_to_prod.package.session import Run, start
    from notebook_to_prod.release.announce import on_event
    from notebook_to_prod.release.registry import Registry
    from notebook_to_prod.release.versions import ModelVersion
    from notebook_to_prod.release.webhook import verify_webhook
    from notebook_to_prod.serve.local import Predictor
    from notebook_to_prod.serve.predictor import load_predictor
    from notebook_to_prod.train.data import load
    from notebook_to_prod.train.parameters import secret
    from notebook_to_prod.train.record import RunRecord, RunSpec
    from notebook_to_prod.train.run import run_notebook

# The public names and the modules they live in; each is imported when it is first used.
_HOMES = {
    "Bundle": "package.bundle",
    "FeatureView": "package.features.definition",
    "ModelVersion": "release.versions",
    "Predictor": "serve.local",
    "Registry": "release.registry",
    "Run": "package.session",
    "RunRecord": "train.record",
    "RunSpec": "train.record",
    "Schema": "package.schema",
    "features": "package.features.definition",
    "infer_schema": "package.schema",
    "load": "train.data",
    "load_predictor": "serve.predictor",
    "on_event": "release.announce",
    "open_bundle": "package.bundle",
    "open_online": "package.features.online",
    "point_in_time": "package.features.point_in_time",
    "run_notebook": "train.run",
    "secret": "train.parameters",
    "start": "package.session",
    "verify_webhook": "release.webhook",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'notebook_to_prod' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"notebook_to_prod.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


def load_ipython_extension(shell: Any) -> None:
    "What `%load_ext notebook_to_prod` calls: brings `%n2p` and `%%n2p parameters`."
    importlib.import_module("notebook_to_prod.jupyter.magics").load(shell)
