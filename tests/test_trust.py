"""A pickle is refused by name before anything in it runs, and what models are made of is not refused."""

from __future__ import annotations

import builtins
import os
import pickle
import warnings
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import scipy.stats
from notebooks import Project
from sklearn.utils import all_estimators

from notebook_to_prod.errors import BundleError, NotFoundError
from notebook_to_prod.package import keys
from notebook_to_prod.package.trust import Allowed, load_pickle, pickle_globals, trusted_libraries
from notebook_to_prod.project import Store


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def recorded(data: bytes) -> frozenset[str]:
    return frozenset(f"{module}.{name}" for module, name in pickle_globals(data))


def load(data: bytes, names: frozenset[str] | None = None, **options: Any) -> Any:
    """Load as if the pickle's own names were recorded, as a forger would have it."""
    return load_pickle(data, Allowed(recorded(data) if names is None else names, **options), "model.pkl")


def forged(text: str) -> bytes:
    """A pickle written by hand, which names what it likes."""
    return b"\x80\x04" + text.encode()


ATTACKS = {
    "os.system": pickle.dumps(Call(os.system, "touch proof")),
    "eval": pickle.dumps(Call(builtins.eval, "open('proof', 'w')")),
    "exec": pickle.dumps(Call(builtins.exec, "open('proof', 'w')")),
    "open": pickle.dumps(Call(open, "proof", "w")),
    "import": pickle.dumps(Call(builtins.__import__, "antigravity")),
    "nested": pickle.dumps({"steps": [("scale", Call(os.system, "touch proof"))]}),
    "subprocess": forged("csubprocess\nPopen\n(S'touch proof'\ntR."),
    "numpy's runstring": forged("cnumpy.testing._private.utils\nrunstring\n(S\"open('proof', 'w')\"\n(dtR."),
    "pandas' eval": forged("cpandas\neval\n(S'1'\ntR."),
    "pandas' read_pickle": forged("cpandas\nread_pickle\n(S'proof'\ntR."),
    "numpy's memmap": forged("cnumpy\nmemmap\n(S'proof'\nS'uint8'\nS'w+'\nI0\n(I4\ntltR."),
    "numpy's savetxt": forged("cnumpy\nsavetxt\n(S'proof'\n(I1\nltR."),
    "a library through another": forged("cjoblib\nos.system\n(S'touch proof'\ntR."),
    "a module of a trusted library": forged("csklearn._config\nos.system\n(S'touch proof'\ntR."),
    "a method that writes": forged("cpandas\nDataFrame.to_csv\n(cpandas\nDataFrame\n)RS'proof'\ntR."),
    "getattr": forged("cbuiltins\ngetattr\n(cbuiltins\nobject\nS'__subclasses__'\ntR)R."),
    "psutil": forged("cpsutil\nPopen\n(S'touch proof'\ntR."),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_by_name_though_the_list_allows_it(
    attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError) as refused:
        load(ATTACKS[attack])
    assert "which is refused" in refused.value.what and "." in refused.value.what
    assert list(tmp_path.iterdir()) == []


def test_the_attacks_work_without_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(ATTACKS["os.system"])
    assert (tmp_path / "proof").exists()


def test_what_was_not_there_at_export_is_refused() -> None:
    data = pickle.dumps(np.float64(1))
    with pytest.raises(BundleError, match=r"numpy\.dtype.*not part of the model|scalar.*not part of the model"):
        load(data, frozenset())


DATA = np.abs(np.random.default_rng(0).normal(size=(60, 4))), np.array([0, 1] * 30)


@pytest.mark.filterwarnings("ignore:Class PassiveAggressive.* is deprecated:FutureWarning")
@pytest.mark.parametrize("name, kind", all_estimators(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_estimator_of_scikit_learn_loads(name: str, kind: type) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = kind().fit(*DATA)
    except Exception:  # noqa: BLE001 - any
        pytest.skip("needs arguments or other data")
    assert type(load(pickle.dumps(fitted))) is kind


VALUES = {
    "frame": pd.DataFrame(
        {
            "text": ["a", None],
            "category": pd.Categorical(["x", "y"]),
            "moment": pd.to_datetime(["2020-01-01", "2021-01-01"]).tz_localize("Europe/Berlin"),
            "whole": pd.array([1, None], "Int64"),
            "arrow": pd.array([1, 2], "int64[pyarrow]"),
        },
        index=pd.MultiIndex.from_tuples([(1, 2), (3, 4)]),
    ),
    "zone": ZoneInfo("Europe/Berlin"),
    "sparse": scipy.sparse.csr_matrix(np.eye(2)),
    "distribution": scipy.stats.norm(1, 2),
    "masked": np.ma.array([1, 2], mask=[False, True]),
    "generator": np.random.default_rng(1),
    "stamp": pd.Timestamp("2020-01-01", tz="UTC"),
    "interval": pd.Interval(1, 2),
    "offset": pd.offsets.Day(1),
    "missing": [pd.NA, pd.NaT],
    "function": np.log1p,
}


@pytest.mark.parametrize("name", VALUES)
def test_values_that_models_hold_load(name: str) -> None:
    loaded = load(pickle.dumps(VALUES[name]))
    assert type(loaded) is type(VALUES[name])


def test_a_bound_method_of_an_estimator_loads() -> None:
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(DATA[0])
    assert np.array_equal(load(pickle.dumps(scaler.transform))(DATA[0]), scaler.transform(DATA[0]))


def test_a_library_is_trusted_by_saying_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rich.text

    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(rich.text.Text("a"))
    with pytest.raises(BundleError, match="'rich'"):
        load(data)
    monkeypatch.setenv("N2P_TRUSTED", " other, rich")
    assert trusted_libraries() == {"other", "rich"}
    assert load(data, trusted=trusted_libraries()).plain == "a"
    monkeypatch.delenv("N2P_TRUSTED")
    (tmp_path / "pyproject.toml").write_text('[tool.n2p]\ntrusted = ["rich"]\n')
    assert trusted_libraries() == {"rich"}


# Keys


def test_trust_in_a_key_is_taken_back_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N2P_KEYS", str(tmp_path / "keys"))
    monkeypatch.delenv("N2P_TRUSTED_KEYS", raising=False)
    store, ours, theirs = Store(tmp_path), keys.new_key("ours"), keys.new_key("theirs")
    with pytest.raises(NotFoundError, match="nothing to take back"):
        keys.distrust_key(store, "ours")
    keys.trust_key(store, ours, "ours")
    keys.trust_key(store, theirs, "theirs")
    with pytest.raises(NotFoundError, match="there are ours, theirs"):
        keys.distrust_key(store, "our")
    assert keys.distrust_key(store, "ours") == ours and keys.trusted_keys(store) == {"theirs": theirs}
    monkeypatch.setenv("N2P_TRUSTED_KEYS", ours)
    with pytest.raises(NotFoundError, match="out of N2P_TRUSTED_KEYS"):
        keys.distrust_key(store, ours)
    assert keys.trusted_keys(store) == {"theirs": theirs, ours: ours}
    monkeypatch.delenv("N2P_TRUSTED_KEYS")
    keys.distrust_key(store, "theirs")
    assert keys.require_signature(tmp_path, "sha256:" + "0" * 64, keys.trusted_keys(store)) is None


def test_distrust_on_the_command_line(project: Project) -> None:
    made = project.n2p("keys", "new", "team", "--json", N2P_KEYS=str(project.folder / "keys")).json["public"]
    assert project.n2p("keys", "trust", made, "--name", "team").code == 0
    assert project.n2p("keys", "distrust", "team", "--json").json == {"distrusted": {"team": made}, "trusted": {}}
    again = project.n2p("keys", "distrust", "team")
    assert again.code == NotFoundError.exit_code and "trusts no key 'team'" in again.stderr
