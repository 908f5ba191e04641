"""What the fork server of `notebooks` does once, so that no command of a test has to: what is slow, and the same for every store and project."""

import importlib
import logging
import pkgutil
import sqlite3
import sys
import tempfile
from pathlib import Path

# As `n2p` itself does, see `notebook_to_prod.cli.app.main`.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

import mlflow.store.db.utils
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store
import mlflow.tracking
import nbformat.validator
import pandera.strategies.pandas_strategies  # noqa: F401 - what the gates import to check expectations
import papermill.execute  # noqa: F401
import pyarrow.parquet  # noqa: F401
import sklearn.ensemble
import sklearn.pipeline  # noqa: F401
import sqlalchemy

import notebook_to_prod.cli
import notebook_to_prod.package
import notebook_to_prod.release
import notebook_to_prod.train

# Every module of ours that a command imports when it is called.
for stage in (notebook_to_prod.train, notebook_to_prod.package, notebook_to_prod.release, notebook_to_prod.cli):
    for module in pkgutil.walk_packages(stage.__path__, f"{stage.__name__}."):
        importlib.import_module(module.name)

for minor in range(6):
    nbformat.validator.get_validator(4, minor)

_initialize_tables = mlflow.store.db.utils._initialize_tables


def _empty_tables() -> bytes:
    """The database that MLflow makes, after all its migrations, when nothing is in it yet."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mlflow.db"
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # as `open_client` does
        engine = sqlalchemy.create_engine(f"sqlite:///{path}")
        _initialize_tables(engine)
        engine.dispose()
        return path.read_bytes()


EMPTY = _empty_tables()


def initialize_tables(engine: sqlalchemy.engine.Engine) -> None:
    """Write those tables instead of making them anew by fifty migrations, into an empty database of SQLite."""
    if engine.dialect.name != "sqlite" or sqlalchemy.inspect(engine).get_table_names():
        return _initialize_tables(engine)
    connection = engine.raw_connection()
    try:
        tables = sqlite3.connect(":memory:")
        tables.deserialize(EMPTY)
        tables.backup(connection.driver_connection)
        tables.close()
    finally:
        connection.close()
    return None


# Commands in a process of their own, `Project.start` and `Project.command`, go MLflow's long way.
mlflow.store.db.utils._initialize_tables = initialize_tables
