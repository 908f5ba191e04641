"""What the fork server of `notebooks` imports once, so that no command of a test has to: what is slow to import and keeps no state."""

import sys

# As `n2p` itself does, see `notebook_to_prod.cli.app.main`.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

import mlflow.tracking  # noqa: F401
import papermill  # noqa: F401
import pyarrow.parquet  # noqa: F401
import sklearn.ensemble
import sklearn.pipeline  # noqa: F401

import notebook_to_prod.train.engine  # noqa: F401
