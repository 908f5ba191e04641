"""What it costs to give a 1 GB Parquet file an identity and a snapshot, beside `dvc add` of the same file.

Run: python benchmarks/data.py
Peer: `dvc add FILE` with DVC's own settings (MD5, copy on write or else a copy into `.dvc/cache`).
Both are whole processes on the same file and file system, in turn, each with an empty store, without its notes of files that it has
hashed before, and with a cold page cache: as root it is dropped before every run; otherwise the benchmark says so, and both
read from memory. Ours waits until the snapshot is on the disk; DVC leaves that to the system.
Limit: 3 times as fast as `dvc add`, as the median of the ratios of neighbouring runs.
The package is compiled before, as pip does with a package that it installs.
DVC is looked for beside this interpreter and on PATH: pip install 'notebook-to-prod[dvc]'.
"""

import compileall
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import once, table

LIMIT = 3.0
ROUNDS = 5
SIZE = 1_000_000_000  # Bytes


def write_parquet(path: Path) -> Path:
    """Write a Parquet file of `SIZE` bytes or a little more: columns of numbers and texts, the usual compression."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    random, rows = np.random.default_rng(7), 1_000_000
    carriers = pa.array(["UA", "B6", "DL", "AA"])
    writer = None
    while writer is None or path.stat().st_size < SIZE:
        columns = {f"x{number}": random.normal(size=rows) for number in range(8)}
        batch = pa.table(
            {"flight": np.arange(rows), "carrier": carriers.take(pa.array(random.integers(0, 4, rows))), **columns}
        )
        writer = writer or pq.ParquetWriter(path, batch.schema)
        writer.write_table(batch)
    writer.close()
    return path


def cool() -> bool:
    """Write back what is pending and drop the page cache; whether that was allowed."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def main() -> int:
    """Measure, print and return 1 if the limit is missed."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        folder = Path(name)
        source = write_parquet(folder / "flights.parquet")
        for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
            if subprocess.run(command, cwd=folder, check=False).returncode:
                raise SystemExit("this benchmark needs git and DVC: pip install 'notebook-to-prod[dvc]'")
        commands = {
            "dvc add": ["dvc", "add", "--quiet", source.name],
            "n2p data add": ["n2p", "data", "add", source.name],
        }
        # DVC keeps the hashes of files outside the repository, and would not hash this one again.
        environment = {
            "N2P_HOME": str(folder / "store"),
            "DVC_SITE_CACHE_DIR": str(folder / "notes"),
            "DVC_NO_ANALYTICS": "1",
        }
        compileall.compile_dir(Path(__file__).parents[1] / "notebook_to_prod", quiet=1)
        seconds: dict[str, list[float]] = {each: [] for each in commands}
        cold = True
        for _ in range(ROUNDS):
            for each, command in commands.items():
                shutil.rmtree(folder / "store", ignore_errors=True)
                shutil.rmtree(folder / ".dvc/cache", ignore_errors=True)
                shutil.rmtree(folder / "notes", ignore_errors=True)
                (folder / "flights.parquet.dvc").unlink(missing_ok=True)
                cold = cool() and cold
                seconds[each].append(once(command, folder, environment)[0])
        size = source.stat().st_size
    ratio = statistics.median(peer / ours for peer, ours in zip(*seconds.values(), strict=True))
    rows = [
        [
            each,
            f"{statistics.median(runs):.2f}",
            f"{min(runs):.2f}",
            f"{max(runs):.2f}",
            f"{size / statistics.median(runs) / 1e6:,.0f}",
        ]
        for each, runs in seconds.items()
    ]
    print(
        f"{size / 1e9:.2f} GB, {ROUNDS} runs in turn, page cache {'cold' if cold else 'WARM: not root, so it could not be dropped'}"
    )
    print(table(["command", "median s", "min s", "max s", "MB/s"], rows))
    print(f"n2p data add is {ratio:.1f} times as fast, limit {LIMIT:g}: {'held' if ratio >= LIMIT else 'MISSED'}")
    return int(ratio < LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
