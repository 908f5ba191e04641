"""Seals: a bundle is replayed where its lock is installed and nothing else, and only a sealed one is promoted."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from notebooks import Done, Project, make_project

from notebook_to_prod.errors import BundleError, DependencyError, InputError
from notebook_to_prod.package.bundle import Bundle, open_bundle, write_bundle
from notebook_to_prod.package.bundle_diff import compare_bundles
from notebook_to_prod.package.elsewhere import environment_for
from notebook_to_prod.package.lock import lock_text, read_hashes, read_lock
from notebook_to_prod.package.sbom import bill_of_materials
from notebook_to_prod.package.seal import lock_digest, read_seal, seal, seal_required
from notebook_to_prod.project import Store, digest_text
from notebook_to_prod.release.registry import Registry
from notebook_to_prod.serve.export.generate import service_lock
from notebook_to_prod.serve.predictor import load_predictor
from notebook_to_prod.train.lockfile import find_lockfile

TRAIN = {
    "parameters": 'alpha = 1.0\nlibrary = ""',
    "exported": """
        #| export
        import importlib

        import pandas as pd
        from sklearn.base import BaseEstimator, TransformerMixin


        class Doubled(TransformerMixin, BaseEstimator):
            def __init__(self, library=""):
                self.library = library

            def fit(self, X, y=None):
                self.n_features_in_ = X.shape[1]
                return self

            def transform(self, X):
                if self.library:
                    importlib.import_module(self.library)  # which no lock can know
                return pd.DataFrame(X) * 2
    """,
    "train": """
        import numpy as np
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline

        import notebook_to_prod as n2p

        run = n2p.start(seed=5)
        X = pd.DataFrame(np.random.normal(size=(60, 3)), columns=["a", "b", "c"])
        y = X["a"] + X["b"]
        pipeline = make_pipeline(Doubled(library), Ridge(alpha)).fit(X[:40], y[:40])
        run.export(pipeline, X[:40], y[:40], X[40:], y[40:])
    """,
}
RUNS = {"one": ("-p", "alpha", "1.0"), "two": ("-p", "alpha", "2.0"), "lacking": ("-p", "library", "yaml")}
ASKED = {"N2P_REQUIRE_SEAL": "1"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with three runs: two of the same lock, and one whose model imports what its lock does not have."""
    project = make_project(tmp_path_factory.mktemp("seal") / "project")
    project.notebook("train.ipynb", TRAIN)
    runs = {name: project.run("train.ipynb", *parameters).json for name, parameters in RUNS.items()}
    (project.folder / "runs.json").write_text(json.dumps(runs))
    return project


def bundle_of(project: Project, run: str) -> Bundle:
    """The bundle of one of its runs."""
    return open_bundle(json.loads((project.folder / "runs.json").read_text())[run]["bundle_path"])


@pytest.fixture(scope="module")
def sealed(trained: Project) -> Done:
    """What sealing the first of them said."""
    return trained.n2p("bundle", "seal", bundle_of(trained, "one").digest[7:], "--json")


@pytest.fixture
def unreachable(tmp_path: Path) -> dict[str, str]:
    """Variables with which uv finds no package."""
    return {"UV_OFFLINE": "1", "UV_CACHE_DIR": str(tmp_path / "no cache")}


def environments(home: Path) -> list[str]:
    return [path.name for path in (home / "environments").iterdir()] if (home / "environments").exists() else []


# Sealing


def test_a_bundle_with_code_of_its_own_works_where_only_its_lock_is(trained: Project, sealed: Done) -> None:
    bundle = bundle_of(trained, "one")
    assert sealed.code == 0, sealed
    assert sealed.json["distributions"] == read_lock(bundle.lock)
    assert (sealed.json["bundle"], sealed.json["lock"]) == (bundle.digest, digest_text(bundle.lock))
    assert sealed.json["golden_rows"] == len(bundle.golden["rows"]) and sealed.json["largest_difference"] == 0.0
    count = len(read_lock(bundle.lock))
    assert sealed.stderr.splitlines() == [f"build the environment: {count} distributions", "replay 20 golden rows"]
    kept = read_seal(Store(trained.home), bundle.digest)
    assert kept is not None and kept.to_dict() == sealed.json
    shown = trained.n2p("bundle", "show", bundle.digest[7:], "--json").json
    assert shown["seal"] == sealed.json


def test_the_recorded_fact_stands_until_it_is_tried_again(trained: Project, sealed: Done) -> None:
    digest = bundle_of(trained, "one").digest[7:]
    same = trained.n2p("bundle", "seal", digest, "--json")
    assert (same.json, same.stderr) == (sealed.json, "")
    again = trained.n2p("bundle", "seal", digest, "--again", "--json")
    assert again.json["environment_reused"] and again.stderr == "replay 20 golden rows\n"


def test_another_bundle_of_the_same_lock_has_the_same_environment(
    trained: Project, sealed: Done, unreachable: dict[str, str]
) -> None:
    done = trained.run("train.ipynb", *RUNS["two"], "--seal", **unreachable)
    assert done.code == 0, done
    assert done.json["reused"] and done.json["seal"]["environment_reused"]
    assert done.json["seal"]["bundle"] == done.json["bundle"] != sealed.json["bundle"]
    assert len(environments(trained.home)) == 1


@pytest.mark.parametrize("command", ["seal", "run"])
def test_what_the_lock_lacks_is_named(trained: Project, sealed: Done, tmp_path: Path, command: str) -> None:
    """yaml is installed where the tests run, and on the path, but not where the bundle is sealed."""
    (tmp_path / "yaml.py").touch()
    bundle = bundle_of(trained, "lacking")
    if command == "seal":
        done = trained.n2p("bundle", "seal", bundle.digest[7:], "--json", PYTHONPATH=str(tmp_path))
        error = done.error
    else:
        done = trained.run("train.ipynb", *RUNS["lacking"], "--seal", PYTHONPATH=str(tmp_path))
        assert (done.json["status"], done.json["bundle"], done.json["seal"]) == ("finished", bundle.digest, None)
        error = done.json["seal_error"]
    assert done.code == 2 and error["type"] == "BundleError"
    assert "the module 'yaml' is missing" in error["what"] and error["where"] == f"bundle {bundle.digest[:19]}"
    assert "exported cell" in error["remedy"]
    assert read_seal(Store(trained.home), bundle.digest) is None


def test_a_bundle_that_fails_again_is_no_longer_sealed(trained: Project, sealed: Done) -> None:
    store, bundle = Store(trained.home), bundle_of(trained, "lacking")
    path = store.home / "seals" / f"{bundle.digest[7:]}.json"
    path.write_text(json.dumps(sealed.json | {"bundle": bundle.digest}))
    assert seal(store, bundle).bundle == bundle.digest
    with pytest.raises(BundleError, match="yaml"):
        seal(store, bundle, again=True)
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"bundle": "sha256:00"}'])
def test_a_damaged_seal_is_none(trained: Project, tmp_path: Path, text: str) -> None:
    digest = bundle_of(trained, "one").digest
    (tmp_path / "seals").mkdir()
    (tmp_path / "seals" / f"{digest[7:]}.json").write_text(text)
    assert read_seal(Store(tmp_path), digest) is None


def altered(store: Store, bundle: Bundle, change: Callable[[dict[str, bytes]], None]) -> Bundle:
    """A bundle with other content."""
    contents = {name: (bundle.path / name).read_bytes() for name in bundle.files}
    change(contents)
    return write_bundle(store.bundles, contents)


def test_what_predicts_otherwise_is_refused(trained: Project, sealed: Done) -> None:
    store = Store(trained.home)

    def change(contents: dict[str, bytes]) -> None:
        golden = json.loads(contents["golden.json"])
        golden["predictions"][0] += 1.0
        contents["golden.json"] = json.dumps(golden).encode()

    other = altered(store, bundle_of(trained, "one"), change)
    with pytest.raises(BundleError, match="does not predict what it recorded"):
        seal(store, other)
    assert read_seal(store, other.digest) is None


def test_a_replay_that_never_ends_is_refused(trained: Project, sealed: Done) -> None:
    store = Store(trained.home)

    def change(contents: dict[str, bytes]) -> None:
        (code,) = (name for name in contents if name.startswith("code/") and b"class Doubled" in contents[name])
        contents[code] = b"import time\n\ntime.sleep(3600)\n" + contents[code]

    other = altered(store, bundle_of(trained, "one"), change)
    with pytest.raises(BundleError, match=r"not predicted within 0\.5 s") as caught:
        seal(store, other, timeout=0.5)
    assert "a wait or a lock" in (caught.value.remedy or "") and read_seal(store, other.digest) is None


def test_a_bundle_without_a_lock_is_refused(trained: Project) -> None:
    store = Store(trained.home)
    other = altered(store, bundle_of(trained, "one"), lambda contents: contents.pop("requirements.lock") and None)
    with pytest.raises(BundleError, match=r"no requirements\.lock"):
        seal(store, other)


def test_what_a_library_is_trusted_with_here_it_is_trusted_with_there(trained: Project, sealed: Done) -> None:
    """The model of the alien library `joblib` is loaded only if that is trusted, here as there."""
    import pickle

    import joblib

    store = Store(trained.home)

    def change(contents: dict[str, bytes]) -> None:
        pipeline = pickle.loads(pickle.dumps(joblib.hash), fix_imports=False)
        metadata = json.loads(contents["metadata.json"])
        metadata["uses"] += ["joblib.hashing.hash"]
        contents["metadata.json"] = json.dumps(metadata).encode()
        contents["model.pkl"] = pickle.dumps(pipeline)

    other = altered(store, bundle_of(trained, "one"), change)
    arguments = ("bundle", "seal", other.digest[7:], "--json")
    assert "joblib.hashing.hash, which is refused" in trained.n2p(*arguments).error["what"]
    trusted = trained.n2p(*arguments, N2P_TRUSTED="joblib").error["what"]
    assert "refused" not in trusted and "predict" in trusted  # it was loaded, and is no model


# The environment


def test_no_index_and_no_cache(trained: Project, tmp_path: Path, unreachable: dict[str, str]) -> None:
    home = tmp_path / "store"
    done = trained.n2p("bundle", "seal", bundle_of(trained, "one").path, "--json", N2P_HOME=str(home), **unreachable)
    assert done.code == 3 and done.error["type"] == "DependencyError"
    assert "network" in done.error["what"] and "index" in done.error["remedy"]
    assert environments(home) == [] and not (home / "seals").exists()


def test_a_version_that_no_index_has(trained: Project, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    lock = lock_text({"numpy": "0.0.1"})
    other = altered(
        store, bundle_of(trained, "one"), lambda contents: contents.update({"requirements.lock": lock.encode()})
    )
    with pytest.raises(DependencyError, match=r"numpy==0\.0\.1"):
        seal(store, other)


BUILD = """
import sys
from pathlib import Path
from notebook_to_prod.package.elsewhere import environment_for
from notebook_to_prod.project import Store
print(environment_for(Store(Path(sys.argv[1])), sys.argv[2], Path(sys.argv[3]).read_text()).reused)
"""


def test_a_build_that_is_killed_is_built_again(trained: Project, tmp_path: Path) -> None:
    store, bundle = Store(tmp_path / "store"), bundle_of(trained, "one")
    python, lock = bundle.metadata["python"], bundle.path / "requirements.lock"
    process = subprocess.Popen([sys.executable, "-c", BUILD, store.home, python, lock])
    built = store.home / "environments"
    while not list(built.glob(".*.tmp/lib/python*/site-packages/*")) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert environments(store.home) and not list(built.glob("[!.]*")), "killed too late"
    again = environment_for(store, python, lock.read_text())
    assert not again.reused
    look = "import importlib.metadata as metadata; print(*[each.name for each in metadata.distributions()])"
    inside = subprocess.run([again.interpreter, "-I", "-c", look], capture_output=True, text=True, check=True).stdout
    assert set(inside.split()) == read_lock(bundle.lock).keys()
    assert environment_for(store, python, lock.read_text()).reused


def test_an_environment_whose_interpreter_is_gone_is_built_again(tmp_path: Path) -> None:
    store, told = Store(tmp_path / "store"), list[str]()
    asked = (store, f"{sys.version_info.major}.{sys.version_info.minor}", f"six=={version('six')}\n", told.append)
    first = environment_for(*asked)
    first.interpreter.unlink()
    assert environment_for(*asked) == first and not first.reused
    assert environment_for(*asked) == replace(first, reused=True)
    assert told == ["build the environment: 1 distributions"] * 2


def test_two_processes_build_what_both_need_once(tmp_path: Path) -> None:
    home, lock = tmp_path / "store", tmp_path / "requirements.lock"
    lock.write_text(f"six=={version('six')}\n")
    command = [sys.executable, "-c", BUILD, home, f"{sys.version_info.major}.{sys.version_info.minor}", lock]
    builders = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(builder.communicate(timeout=240)[0] for builder in builders) == ["False\n", "True\n"]
    assert [builder.returncode for builder in builders] == [0, 0] and len(environments(home)) == 1


@pytest.mark.slow
def test_two_commands_build_what_both_need_once(trained: Project, tmp_path: Path) -> None:
    home, paths = tmp_path / "store", [bundle_of(trained, name).path for name in ("one", "two")]
    done = trained.together(*(("bundle", "seal", path, "--json") for path in paths), N2P_HOME=str(home))
    assert [each.code for each in done] == [0, 0], done
    assert sorted(each.json["environment_reused"] for each in done) == [False, True]
    assert len(environments(home)) == 1


# Promotion


@pytest.fixture(scope="module")
def registered(trained: Project, sealed: Done) -> Project:
    """The same project with the three bundles as versions 1 to 3 of `model`; the first was sealed before."""
    runs = json.loads((trained.folder / "runs.json").read_text())
    for name in RUNS:
        assert trained.n2p("register", runs[name]["run_id"], "--name", "model").code == 0
    return trained


def tag(project: Project, number: int) -> str | None:
    """What MLflow says of the seal of a version."""
    return MlflowClient(project.address).get_model_version("model", str(number)).tags.get("n2p.sealed")


def test_promotion_seals_what_is_not_sealed(registered: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N2P_REQUIRE_SEAL", "1")
    registry, told = Registry(Store(registered.home)), list[str]()
    bundle = bundle_of(registered, "two")
    lock = lock_digest(bundle)
    assert registry.resolve("model@1").sealed == lock, "it was sealed before it was registered"
    (registered.home / "seals" / f"{bundle.digest[7:]}.json").unlink(missing_ok=True)
    if tag(registered, 2):
        MlflowClient(registered.address).delete_model_version_tag("model", "2", "n2p.sealed")

    event = registry.promote("model", 2, progress=told.append)
    assert event is not None and not event.unsealed and told == ["seal: replay 20 golden rows"]
    assert read_seal(registry.store, bundle.digest) and tag(registered, 2) == lock
    again = registry.promote("model", 2, to="staging", progress=told.append)
    assert again is not None and not again.unsealed and len(told) == 1
    assert registry.promote("model", 2, to="staging") is None


def test_what_cannot_be_sealed_is_promoted_with_a_reason_only(
    registered: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("N2P_REQUIRE_SEAL", "1")
    registry = Registry(Store(registered.home))
    registry.promote("model", 1, to="canary")
    refused = registered.n2p("promote", "model", "3", "--to", "canary", "--json", **ASKED)
    assert refused.code == 2 and "'yaml'" in refused.error["what"]
    assert refused.stderr.splitlines()[0] == "seal: replay 20 golden rows"
    with pytest.raises(InputError, match="needs a reason") as caught:
        registry.promote("model", 3, to="canary", reason=" ", unsealed=True)
    assert (caught.value.where, "--reason" in str(caught.value.remedy)) == ("--unsealed", True)
    assert registry.aliased("model", "canary") == 1
    arguments = ("--to", "canary", "--unsealed", "--reason", "yaml is in the image")
    reasoned = registered.n2p("promote", "model", "3", *arguments, "--json", **ASKED)
    assert reasoned.code == 0 and reasoned.json["unsealed"] is True and tag(registered, 3) is None
    assert registry.aliased("model", "canary") == 3

    registry.rollback("model", "canary")
    canary = [event for event in registry.history("model") if event.alias == "canary"]
    moves = [(event.action, event.version, event.unsealed) for event in canary]
    assert moves == [("promote", 1, False), ("promote", 3, True), ("rollback", 1, False)]
    assert "unsealed: yaml is in the image" in registered.n2p("history", "model").stdout


def test_no_index_promotes_nothing(registered: Project, tmp_path: Path, unreachable: dict[str, str]) -> None:
    """The environment of the lock is there no more, and cannot be built again."""
    home = tmp_path / "store"
    done = registered.n2p(
        "promote", "model", "3", "--to", "shadow", "--json",
        N2P_HOME=str(home), MLFLOW_TRACKING_URI=registered.address, **ASKED, **unreachable,
    )  # fmt: skip
    assert done.code == 3 and done.error["type"] == "DependencyError"
    assert "shadow" not in MlflowClient(registered.address).get_registered_model("model").aliases


def test_another_store_believes_the_registry(
    registered: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unreachable: dict[str, str]
) -> None:
    shared = {"MLFLOW_TRACKING_URI": registered.address, **ASKED, **unreachable}
    for name, value in shared.items():
        monkeypatch.setenv(name, value)
    event = Registry(Store(tmp_path / "store")).promote("model", 1, to="elsewhere")
    assert event is not None and not event.unsealed


def test_a_project_may_do_without(registered: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, configuration = Registry(Store(registered.home)), registered.folder / "pyproject.toml"
    monkeypatch.chdir(registered.folder)
    monkeypatch.setenv("N2P_REQUIRE_SEAL", "")
    configuration.write_text("[tool.n2p]\nrequire_seal = false\n")
    try:
        event = registry.promote("model", 3, to="lenient")
        monkeypatch.setenv("N2P_REQUIRE_SEAL", "1")
        with pytest.raises(BundleError, match="'yaml'"):
            registry.promote("model", 3, to="strict")
    finally:
        configuration.write_text("")
    assert event is not None and event.unsealed


@pytest.mark.parametrize(
    ("variable", "written", "expected"),
    [
        ("", "", True),
        ("1", "require_seal = false", True),
        ("0", "require_seal = true", False),
        ("", "require_seal = false", False),
        ("no", "", InputError),
        ("", "require_seal = 'no'", InputError),
        ("", "require_seal =", InputError),
    ],
)
def test_the_setting(
    project: Project, monkeypatch: pytest.MonkeyPatch, variable: str, written: str, expected: bool | type[Exception]
) -> None:
    (project.folder / "pyproject.toml").write_text(f"[tool.n2p]\n{written}\n")
    monkeypatch.setenv("N2P_REQUIRE_SEAL", variable)
    if isinstance(expected, bool):
        assert seal_required() is expected
    else:
        with pytest.raises(expected):
            seal_required()


def test_a_grid_is_not_sealed(trained: Project) -> None:
    done = trained.n2p("run", "train.ipynb", "--grid", "alpha=1,2", "--seal", "--json")
    assert done.code == 2 and "bundle seal" in done.error["what"]


# Hashes


@pytest.fixture(scope="module")
def hashed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose lock has hashes, with one run."""
    project = make_project(tmp_path_factory.mktemp("hashes") / "project")
    (project.folder / "requirements.in").write_text("scikit-learn\npandas\n")
    assert project.n2p("lock").code == 0
    project.notebook("train.ipynb", TRAIN)
    (project.folder / "runs.json").write_text(json.dumps({"one": project.run("train.ipynb", *RUNS["one"]).json}))
    return project


def test_the_lock_of_the_bundle_has_the_hashes_of_the_project(hashed: Project) -> None:
    bundle, lock = bundle_of(hashed, "one"), find_lockfile(hashed.folder)
    versions, hashes = read_lock(bundle.lock), read_hashes(bundle.lock)
    assert versions["scikit-learn"] == version("scikit-learn") and hashes.keys() == versions.keys()
    assert lock is not None
    assert hashes == {name: lock.hashes[f"{name}=={number}"] for name, number in versions.items()}
    for component in bundle.sbom["components"]:
        contents = [f"sha256:{each['content']}" for each in component["hashes"] if each["alg"] == "SHA-256"]
        assert contents == hashes[component["name"]]
    record = json.loads((hashed.folder / "runs.json").read_text())["one"]
    assert record["reads"] == [] and record["spec"]["hashes"]


def test_a_reproduction_has_the_hashes_whatever_has_become_of_the_lock(hashed: Project, trained: Project) -> None:
    record, same = (json.loads((each.folder / "runs.json").read_text())["one"] for each in (hashed, trained))
    lock = hashed.folder / "requirements.lock"
    kept = lock.read_text()
    try:
        lock.unlink()
        certificate = hashed.n2p("reproduce", record["run_id"], "--json")
    finally:
        lock.write_text(kept)
    assert certificate.code == 0 and certificate.json["level"] == "bytes", certificate
    assert read_hashes(bundle_of(trained, "one").lock) == {}
    assert record["bundle"] != same["bundle"] and record["run_key"] != same["run_key"]
    assert {**record["spec"], "hashes": ""} == same["spec"]


def test_hashes_that_the_store_has_lost_are_missed(hashed: Project) -> None:
    (kept,) = (hashed.home / "hashes").iterdir()
    content = kept.read_bytes()
    kept.unlink()
    try:
        done = hashed.n2p("reproduce", "latest", "--json")
    finally:
        kept.write_bytes(content)
    assert done.code == 2 and "hashes" in done.error["what"]


def test_hashes_are_required_where_it_is_sealed(hashed: Project) -> None:
    store, bundle = Store(hashed.home), bundle_of(hashed, "one")
    assert seal(store, bundle).distributions == read_lock(bundle.lock)

    def forge(contents: dict[str, bytes]) -> None:
        text = contents["requirements.lock"].decode()
        for digest in read_hashes(text)["joblib"]:
            text = text.replace(digest, "sha256:" + "00" * 32)
        contents["requirements.lock"] = text.encode()

    with pytest.raises(InputError, match="joblib") as refused:
        seal(store, altered(store, bundle, forge))
    assert "hash is not that of the lock" in refused.value.what and refused.value.exit_code == 2


def test_a_service_and_a_comparison_read_such_a_lock(hashed: Project, trained: Project) -> None:
    bundle, other = bundle_of(hashed, "one"), bundle_of(trained, "one")
    assert compare_bundles(bundle, other).requirements == {}
    lock = service_lock(load_predictor(bundle.path, bundle.digest, "model", "1", {}), hashes=False)
    assert read_lock(lock).items() >= read_lock(bundle.lock).items() and "--hash" not in lock


def test_hashes_for_all_or_none() -> None:
    versions = {"a": "1", "b": "2"}
    hashes = {"a==1": ["sha256:00"], "b==2": ["sha512:01", "sha256:02"], "b==3": ["sha256:03"]}
    text = lock_text(versions, hashes)
    assert read_lock(text) == versions and read_hashes(text) == {"a": ["sha256:00"], "b": ["sha512:01", "sha256:02"]}
    components = bill_of_materials(text, "model", {})["components"]
    assert [each["hashes"][0]["alg"] for each in components] == ["SHA-256", "SHA-512"]
    assert lock_text(versions, {"a==1": ["sha256:00"], "b==3": ["sha256:03"]}) == lock_text(versions)
    assert lock_text({}, hashes) == lock_text({})
