"""An empty database of MLflow, made once by MLflow itself and then written as it is: fifty migrations take a second and more for every store."""

import logging
import sqlite3
import tempfile
from functools import cache
from pathlib import Path

import mlflow.store.db.utils
import sqlalchemy

_migrate = mlflow.store.db.utils._initialize_tables


@cache
def empty_tables() -> bytes:
    """The database after all migrations, when nothing is in it yet."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mlflow.db"
        engine = sqlalchemy.create_engine(f"sqlite:///{path}")
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # as `open_client` does
        _migrate(engine)
        engine.dispose()
        return path.read_bytes()


def initialize_tables(engine: sqlalchemy.engine.Engine) -> None:
    """What MLflow calls for a new database: one of SQLite without tables gets those."""
    if engine.dialect.name != "sqlite" or sqlalchemy.inspect(engine).get_table_names():
        return _migrate(engine)
    connection = engine.raw_connection()
    try:
        tables = sqlite3.connect(":memory:")
        tables.deserialize(empty_tables())
        tables.backup(connection.driver_connection)
        tables.close()
    finally:
        connection.close()
    return None


def install() -> None:
    """Do so in this process; commands in a process of their own, `Project.start` and `Project.command`, go MLflow's long way."""
    mlflow.store.db.utils._initialize_tables = initialize_tables
