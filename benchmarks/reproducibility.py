"""Run twenty notebooks twice each, in other folders and with other hash seeds, and compare the bundles' digests.

Run: python benchmarks/reproducibility.py
Limit: 20 of 20 identical.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from measure import table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from estimators import NAMES, cells_of
from notebooks import make_notebook


def digest(folder: Path, name: str, seed: str) -> str:
    """Run the notebook in a store of its own; the bundle's digest, or the error."""
    notebook = make_notebook(folder / "train.ipynb", cells_of(name))
    command = [Path(sysconfig.get_path("scripts")) / "n2p", "run", notebook, "--json"]
    environment = {**os.environ, "N2P_HOME": str(folder / "store"), "PYTHONHASHSEED": seed}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    answer = json.loads(done.stdout)
    return answer["bundle"] if done.returncode == 0 else f"failed: {answer['error']['what']}"


def main() -> int:
    """Print the table; return 1 unless every notebook gave the same digest twice."""
    rows, identical = [], 0
    for name in NAMES:
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            digests = [digest(Path(one), name, "1"), digest(Path(other), name, "2")]
        same = digests[0] == digests[1] and digests[0].startswith("sha256:")
        identical += same
        rows.append([name, digests[0][:19], digests[1][:19], "identical" if same else "DIFFERENT"])
        print(f"{len(rows)}/{len(NAMES)} {name}: {rows[-1][-1]}", file=sys.stderr)
    print(table(["notebook", "first run", "second run", ""], rows))
    print(
        f"{identical} of {len(NAMES)} identical, limit {len(NAMES)}: {'held' if identical == len(NAMES) else 'MISSED'}"
    )
    return int(identical != len(NAMES))


if __name__ == "__main__":
    raise SystemExit(main())
