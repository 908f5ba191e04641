"""What `n2p run` costs beside bare papermill on the same notebook, tracking included.

Run: python benchmarks/run_overhead.py [NOTEBOOK ...]
Peer: `papermill NOTEBOOK out.ipynb`, and the same notebook with a last cell that logs the model to MLflow from within.
`--force`: a run that has been answered would be answered from the record.
Limit: 1.15 times the wall time of bare papermill, as the median of the ratios of neighbouring runs.
Without arguments a notebook is written that trains 100 trees on scikit-learn's breast cancer data.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

from measure import in_turn, table

LIMIT = 1.15
ROUNDS = 7

CELLS = {
    "parameters": "seed = 7\nn_trees = 100",
    "start": "import notebook_to_prod as n2p\n\nrun = n2p.start(seed=seed)",
    "load": (
        "from sklearn.datasets import load_breast_cancer\nfrom sklearn.model_selection import train_test_split\n\n"
        "features, target = load_breast_cancer(return_X_y=True, as_frame=True)\n"
        "X_train, X_test, y_train, y_test = train_test_split(features, target, random_state=seed)"
    ),
    "fit": (
        "from sklearn.ensemble import RandomForestClassifier\nfrom sklearn.pipeline import make_pipeline\n"
        "from sklearn.preprocessing import StandardScaler\n\n"
        "pipeline = make_pipeline(StandardScaler(), RandomForestClassifier(n_trees, random_state=seed)).fit(X_train, y_train)"
    ),
    "evaluate": 'run.metric("accuracy", pipeline.score(X_test, y_test))',
    "export": "run.export(pipeline, X_train, y_train, X_test, y_test)",
}
LOG_WITHIN = (
    "import mlflow\n\n"
    "with mlflow.start_run():\n"
    '    mlflow.log_params({"seed": seed, "n_trees": n_trees})\n'
    '    mlflow.log_metric("accuracy", pipeline.score(X_test, y_test))\n'
    '    mlflow.sklearn.log_model(pipeline, name="model", serialization_format="cloudpickle")'
)


def write_notebook(path: Path, cells: dict[str, str]) -> Path:
    """Write a notebook of code cells, the first of them tagged as the parameters cell."""
    written = [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": name,
            "metadata": {"tags": ["parameters"] if name == "parameters" else []},
            "outputs": [],
            "source": source,
        }
        for name, source in cells.items()
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    path.write_text(json.dumps({"cells": written, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    return path


def compare(title: str, commands: dict[str, list[str]], folder: Path) -> float:
    """Measure the commands in turn, print them, and return the median ratio of `n2p run` to bare papermill."""
    store = {"N2P_HOME": str(folder / "store"), "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    measured = in_turn(commands, ROUNDS, folder, store)
    bare = [wall for wall, _ in measured["papermill"]]
    ratios = {
        name: statistics.median(wall / peer for (wall, _), peer in zip(runs, bare, strict=True))
        for name, runs in measured.items()
    }
    rows = [
        [name, *(f"{statistics.median(each):.2f}" for each in zip(*runs, strict=True)), f"{ratios[name]:.2f}"]
        for name, runs in measured.items()
    ]
    print(
        f"\n{title}, median of {ROUNDS} runs in turn\n{table(['command', 'wall s', 'CPU s', 'times papermill'], rows)}"
    )
    return ratios["n2p run"]


def main(notebooks: list[str]) -> int:
    """Measure, print and return 1 if the limit is exceeded."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ratios = {}
        for path in notebooks:
            source = str(Path(path).resolve())
            ratios[path] = compare(
                path,
                {"papermill": ["papermill", source, "out.ipynb"], "n2p run": ["n2p", "run", "--force", source]},
                folder,
            )
        if not notebooks:
            source = write_notebook(folder / "cancer.ipynb", CELLS).name
            within = write_notebook(folder / "within.ipynb", {**CELLS, "log": LOG_WITHIN}).name
            commands = {
                "papermill": ["papermill", source, "out.ipynb"],
                "n2p run": ["n2p", "run", "--force", source],
                "papermill, model logged within": ["papermill", within, "out.ipynb"],
            }
            ratios[source] = compare("breast cancer, 100 trees", commands, folder)
    for title, ratio in ratios.items():
        print(
            f"{title}: n2p run takes {ratio:.2f} times papermill, limit {LIMIT}: {'held' if ratio <= LIMIT else 'EXCEEDED'}"
        )
    return int(any(ratio > LIMIT for ratio in ratios.values()))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
