"""The notebook that reports on a model: by papermill as it is, and by `n2p run` on a real log."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from notebooks import Project

NOTEBOOK = Path(__file__).parents[1] / "nbs/examples/monitoring.ipynb"


def outputs(path: Path) -> dict[str, list[dict[str, Any]]]:
    """What each cell gave, less the scraps of scrapbook."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    given = {each["id"]: each.get("outputs", []) for each in cells}
    return {
        id: [each for each in found if not any("scrapbook" in kind for kind in each.get("data", {}))]
        for id, found in given.items()
    }


def told(outputs: list[dict[str, Any]]) -> str:
    parts = [
        [
            each.get("text", ""),
            *each.get("data", {}).get("text/plain", []),
            *each.get("data", {}).get("text/markdown", []),
        ]
        for each in outputs
    ]
    return "".join("".join(part) for each in parts for part in each)


def pictures(path: Path) -> set[str]:
    return {id for id, found in outputs(path).items() if any("image/png" in each.get("data", {}) for each in found)}


def test_the_outputs_that_are_kept_are_those_of_the_demonstration() -> None:
    assert pictures(NOTEBOOK) == {"traffic-plot", "drift-map", "distributions", "quality"}
    assert "Look at this" in told(outputs(NOTEBOOK)["verdict"]) and NOTEBOOK.stat().st_size < 400_000


def test_papermill_runs_the_demonstration_and_its_verdict_can_stop_it(project: Project) -> None:
    stopped = project.papermill(
        "--no-progress-bar", NOTEBOOK, "report.ipynb", "-p", "html", "drift.html", "-p", "stop_on_drift", "True"
    )
    report = project.folder / "report.ipynb"
    assert stopped.code == 1 and "RuntimeError: 4 drifted: dep_delay" in stopped.stderr, stopped.stderr[-3000:]
    assert pictures(report) == pictures(NOTEBOOK) and "Drift of flights" in (project.folder / "drift.html").read_text()


TRAIN = """
import numpy as np, pandas as pd
import notebook_to_prod as n2p
from sklearn.linear_model import LogisticRegression
run = n2p.start(seed=seed)
random = np.random.default_rng(seed)
X = pd.DataFrame({"delay": random.exponential(20, 2_000), "distance": random.gamma(3, 400, 2_000)})
y = np.where(X["delay"] > 20, "late", "on time")
run.export(LogisticRegression(max_iter=1_000).fit(X, y), X, y, X[:500], y[:500])
"""
BEGAN = datetime(2026, 3, 1, tzinfo=UTC)


def serve(project: Project, digest: str, days: int, rows: int, columns: list[dict[str, Any]]) -> None:
    """A log as a service writes it, of some days; half of the rows have a label."""
    import numpy as np

    from notebook_to_prod.serve.log.segments import SegmentWriter

    random, folder = np.random.default_rng(1), project.home / "predictions" / "flüge"
    folder.mkdir(parents=True)
    writer = SegmentWriter(folder)
    writer.begin()
    who = {
        "model": "flüge",
        "version": "1",
        "bundle": digest,
        "classes": ["late", "on time"],
        "columns": columns,
    }
    writer.append(json.dumps(("m", who)).encode())
    for number in range(days * rows):
        moment = int((BEGAN + timedelta(days=number / rows)).timestamp() * 1e6)
        row = [float(random.exponential(20)), float(random.gamma(3, 400))]
        said = "late" if row[0] > 20 else "on time"
        entry = ("p", moment, f"r{number}", 0, "predict", "", "", 900, [row], [said], None)
        writer.append(json.dumps(entry).encode())
        if number % 2:
            writer.append(json.dumps(("l", moment, [[f"r{number}", 0, said]])).encode())
    writer.end()


def test_a_real_log_is_reported_by_n2p_run_and_a_table_by_papermill(project: Project) -> None:
    from notebook_to_prod.package.bundle import open_bundle

    project.notebook("flüge.ipynb", {"parameters": "seed = 7", "train": TRAIN})
    made = project.run("flüge.ipynb").json
    assert project.n2p("register", made["run_id"], "--name", "flüge").code == 0
    digest = made["bundle"]
    folder = project.home / "bundles" / digest.removeprefix("sha256:")
    bundle = open_bundle(folder)
    columns = [
        {"name": each.name, "dtype": each.dtype, "kind": each.kind, "missing": each.missing}
        for each in bundle.schema.columns
    ]
    serve(project, digest, 6, 300, columns)
    report = project.folder / "report.ipynb"
    done = project.run(
        NOTEBOOK,
        "-o",
        report,
        "--cwd",
        project.folder,
        "-p",
        "model",
        "flüge@1",
        "-p",
        "since",
        "2026-03-02",
        "-p",
        "until",
        "2026-03-05",
    )
    assert done.code == 0, done
    found = outputs(report)
    assert "1,200" in told(found["read"]) and "4 of 1d" in told(found["read"]), told(found["read"])
    assert "Nothing to look at" in told(found["verdict"]) and "150 of 300" in told(found["quality"])
    assert "0.90 ms" in told(found["versions"]) and pictures(report) == pictures(NOTEBOOK)

    (project.folder / "table.csv").write_text(
        "delay,distance\n" + "".join(f"{20 + each % 90},{each}\n" for each in range(500))
    )
    done = project.papermill(
        "--no-progress-bar", NOTEBOOK, report, "-p", "model", str(folder), "-p", "data", "table.csv"
    )
    assert done.code == 0, done.stderr[-3000:]
    found = outputs(report)
    assert "the times of the rows are not known" in told(found["traffic-plot"]) and "1 of all rows" in told(
        found["read"]
    )


def test_a_model_that_there_is_not_says_so(project: Project) -> None:
    done = project.papermill("--no-progress-bar", NOTEBOOK, "report.ipynb", "-p", "model", "absent")
    assert done.code == 1 and "NotFoundError" in done.stderr and "absent" in done.stderr
