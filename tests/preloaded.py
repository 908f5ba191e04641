"""What the fork server of `notebooks` does once, so that no command of a test has to: what is slow, and the same for every project."""

import importlib
import pkgutil
import sys

# As `n2p` itself does, see `notebook_to_prod.cli.app.main`.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

import mlflow_tables
import nbformat.validator
import pandera.strategies.pandas_strategies  # noqa: F401 - what the gates import to check expectations
import papermill.execute  # noqa: F401
import pyarrow.parquet  # noqa: F401
import sklearn.ensemble
import sklearn.pipeline  # noqa: F401
from raised import record

import notebook_to_prod.cli
import notebook_to_prod.package
import notebook_to_prod.release
import notebook_to_prod.serve.app
import notebook_to_prod.serve.batch
import notebook_to_prod.serve.predictor
import notebook_to_prod.serve.server
import notebook_to_prod.serve.service
import notebook_to_prod.train

# Every module of ours that a command imports when it is called.
for stage in (notebook_to_prod.train, notebook_to_prod.package, notebook_to_prod.release, notebook_to_prod.cli):
    for module in pkgutil.walk_packages(stage.__path__, f"{stage.__name__}."):
        importlib.import_module(module.name)

for minor in range(6):
    nbformat.validator.get_validator(4, minor)

mlflow_tables.install()
mlflow_tables.empty_tables()

record()
