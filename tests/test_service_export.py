"""The exported service: a folder that installs from its lock, starts by its README, and answers as it was recorded."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from notebooks import SCRIPTS, Project, make_project
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_bundle import once
from test_registry import register, train

from notebook_to_prod.errors import InputError
from notebook_to_prod.package.bundle import Bundle, open_bundle
from notebook_to_prod.project import Store
from notebook_to_prod.release.registry import Registry
from notebook_to_prod.serve.generate import export_service, runtime_modules
from notebook_to_prod.serve.predictor import Predictor, load_predictor

MODEL = "late flights"
TRAINING_SIDE = {
    "notebook-to-prod",
    "mlflow",
    "papermill",
    "jupyterlab",
    "jupyter-client",
    "ipython",
    "ipykernel",
    "nbdev",
    "scrapbook",
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a model in production."""
    project = once(tmp_path_factory, "trained", train)
    (model,) = register(project, MODEL, "five")
    Registry(Store(project.home)).promote(MODEL, model.version)
    return project


@pytest.fixture(scope="session")
def service(trained: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `n2p export-service` wrote."""

    def export(project: Project) -> None:
        done = trained.n2p("export-service", f"{MODEL}@production", project.folder / "service", "--json")
        assert done.code == 0, done
        assert done.json["service"] == str(project.folder / "service")

    return once(tmp_path_factory, "exported", export).folder / "service"


@pytest.fixture(scope="session")
def bundle(service: Path) -> Bundle:
    return open_bundle(service / "bundle")


@pytest.fixture
def predictor(bundle: Bundle, trained: Project) -> Predictor:
    registry = Registry(Store(trained.home))
    metrics = registry.metrics(registry.resolve(f"{MODEL}@1"))
    assert metrics.keys() == {"score"}
    return load_predictor(bundle.path, bundle.digest, MODEL, "1", metrics)


def requirements(lock: str) -> dict[str, tuple[Requirement, list[str]]]:
    """The requirements of a lock by name, each with its hashes."""
    lines = [
        line for line in lock.replace("\\\n", " ").splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    found = [
        (Requirement(line.split("--hash=")[0]), [part.strip() for part in line.split("--hash=")[1:]]) for line in lines
    ]
    return {canonicalize_name(requirement.name): (requirement, hashes) for requirement, hashes in found}


def shell_blocks(service: Path) -> list[str]:
    """The commands that the README shows."""
    return re.findall(r"```bash\n(.*?)```", (service / "README.md").read_text(encoding="utf-8"), re.DOTALL)


# What is in the folder


def test_the_folder_holds_the_service_and_nothing_else(service: Path) -> None:
    wanted = {".dockerignore", "Dockerfile", "README.md", "app.py", "requirements.lock", "bundle", "notebook_to_prod"}
    assert {path.name for path in service.iterdir()} == wanted
    modules = {path.relative_to(service).as_posix() for path in service.glob("notebook_to_prod/**/*") if path.is_file()}
    packages = {
        "",
        *(module.rpartition(".")[0].replace(".", "/") + "/" for module in runtime_modules() if "." in module),
    }
    runtime = {f"notebook_to_prod/{module.replace('.', '/')}.py" for module in runtime_modules()}
    assert modules == runtime | {f"notebook_to_prod/{package}__init__.py" for package in packages}


def test_nothing_in_the_folder_tells_where_it_was_made(service: Path, trained: Project) -> None:
    places = (str(trained.folder), str(service.parent), str(Path.home()))
    files = [path for path in service.rglob("*") if path.is_file()]
    assert [path for path in files for place in places if place.encode() in path.read_bytes()] == []


def test_the_lock_pins_and_hashes_what_is_installed_here(service: Path) -> None:
    locked = requirements((service / "requirements.lock").read_text())
    assert {"fastapi", "uvicorn", "pydantic", "scikit-learn", "numpy", "pandas"} <= locked.keys()
    assert TRAINING_SIDE & locked.keys() == set()
    for name, (requirement, hashes) in locked.items():
        assert [pin.operator for pin in requirement.specifier] == ["=="], requirement
        assert hashes, name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes), name
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(version(name)), requirement


def test_the_dockerfile_is_clean_and_copies_what_is_there(service: Path) -> None:
    linted = subprocess.run([SCRIPTS / "hadolint", service / "Dockerfile"], capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout
    text = (service / "Dockerfile").read_text()
    assert f"ARG PYTHON_VERSION={sys.version_info.major}.{sys.version_info.minor}\n" in text
    assert "--require-hashes" in text
    copied = set(re.findall(r"^COPY (\S+) ", text, re.MULTILINE)) - {"--from=requirements"}
    admitted = {
        line.removeprefix("!") for line in (service / ".dockerignore").read_text().split() if line.startswith("!")
    }
    assert copied == admitted == {"app.py", "bundle", "notebook_to_prod", "requirements.lock"}


# The folder on a machine that has nothing else


@pytest.fixture
def stranger(service: Path, tmp_path: Path) -> Project:
    """A copy of the service, and a shell whose Python is the one the README names."""
    project = make_project(tmp_path / "stranger")
    copy = shutil.copytree(service, project.folder / "service")
    python = tmp_path / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    python.parent.mkdir()
    python.symlink_to(Path(sys.base_prefix) / "bin" / python.name)
    return Project(Path(copy), {"PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin"})


def shell(project: Project, script: str) -> str:
    """Run `script` with bash in the project's folder."""
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=project.folder,
        env=project.environment({}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def listening(process: subprocess.Popen[str]) -> str:
    """The address that uvicorn says it runs on."""
    said = []
    assert process.stderr
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"running on (http://\S+)", line):
            return found[1]
    return pytest.fail("".join(said))


@contextlib.contextmanager
def started(project: Project, command: str) -> Iterator[str]:
    process = subprocess.Popen(
        ["bash", "-euc", f"exec {command}"],
        cwd=project.folder,
        env=project.environment({}),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield listening(process)
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_the_readme_leads_to_the_recorded_answers_on_a_bare_machine(stranger: Project, bundle: Bundle) -> None:
    run_it, _, ask_it = shell_blocks(stranger.folder)
    make_environment, install, start = run_it.strip().splitlines()
    assert "--require-hashes" in install
    shell(stranger, f"{make_environment}\n{install} --quiet")

    installed = {
        canonicalize_name(each["name"]) for each in json.loads(shell(stranger, ".venv/bin/pip list --format json"))
    }
    assert installed & TRAINING_SIDE == set()
    assert installed - {"pip", "setuptools"} <= requirements((stranger.folder / "requirements.lock").read_text()).keys()

    assert start.endswith("uvicorn app:app --port 8000")
    with started(stranger, start.replace("8000", "0")) as url:
        answer = httpx.post(f"{url}/predict", json={"rows": bundle.golden["rows"]}, timeout=60, trust_env=False).json()
        assert answer["predictions"] == bundle.golden["predictions"]
        assert answer["probabilities"] == bundle.golden["probabilities"]
        assert (answer["model"], answer["version"], answer["bundle"]) == (MODEL, "1", bundle.digest)
        asked = json.loads(shell(stranger, ask_it.replace("http://127.0.0.1:8000", url)))
        assert asked["predictions"] == bundle.golden["predictions"][:1]
        assert httpx.get(f"{url}/ready", trust_env=False).json()["status"] == "ready"


@pytest.mark.parametrize("name", ["model.pkl", "golden.json", "code", "manifest.json"])
def test_a_service_whose_bundle_was_changed_does_not_start(
    name: str, service: Path, tmp_path: Path, trained: Project
) -> None:
    copy = Path(shutil.copytree(service, tmp_path / "service"))
    path = copy / "bundle" / name
    path = next(path.glob("*.py")) if path.is_dir() else path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = trained.command("python", "-m", "uvicorn", "app:app", "--port", "0", cwd=copy)
    assert done.code != 0
    assert "BundleError" in done.stderr
    assert "running on" not in done.stderr


# What is refused, and the ways to go without


def test_without_hashes_the_lock_names_only_versions(trained: Project, service: Path, tmp_path: Path) -> None:
    done = trained.n2p("export-service", f"{MODEL}@1", tmp_path / "service", "--no-hashes", "--json")
    assert done.code == 0, done
    plain = requirements((tmp_path / "service/requirements.lock").read_text())
    assert all(hashes == [] for _, hashes in plain.values())
    hashed = requirements((service / "requirements.lock").read_text())
    here = {
        name for name, (requirement, _) in hashed.items() if requirement.marker is None or requirement.marker.evaluate()
    }
    assert plain.keys() == here
    for name in ("Dockerfile", "README.md"):
        assert "--require-hashes" not in (tmp_path / "service" / name).read_text()
    linted = subprocess.run(
        [SCRIPTS / "hadolint", tmp_path / "service/Dockerfile"], capture_output=True, text=True, check=False
    )
    assert linted.returncode == 0, linted.stdout


def test_a_folder_that_is_not_empty_is_left_alone(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InputError, match="not empty") as caught:
            export_service(predictor, target, hashes=False)
        assert caught.value.where == str(target)
        assert caught.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_filled(predictor: Predictor, tmp_path: Path) -> None:
    export_service(predictor, tmp_path, hashes=False)
    assert (tmp_path / "app.py").exists()


def test_the_same_model_makes_the_same_service(predictor: Predictor, service: Path, tmp_path: Path) -> None:
    export_service(predictor, tmp_path / "again", hashes=False)
    written = {path.relative_to(service) for path in service.rglob("*") if path.is_file()}
    for path in written - {Path(name) for name in ("requirements.lock", "Dockerfile", "README.md")}:
        assert (tmp_path / "again" / path).read_bytes() == (service / path).read_bytes(), path


def test_an_index_that_does_not_answer_leaves_nothing_behind(trained: Project, tmp_path: Path) -> None:
    nowhere = {
        "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple",
        "UV_NO_CACHE": "1",
        "UV_HTTP_RETRIES": "0",
        "UV_NO_CONFIG": "1",
    }
    done = trained.n2p("export-service", f"{MODEL}@1", tmp_path / "service", "--json", **nowhere)
    assert (done.code, done.error["type"]) == (3, "DependencyError")
    assert "--no-hashes" in done.error["remedy"]
    assert [*tmp_path.iterdir()] == []
