"""Locks of projects, whichever tool wrote them: what they demand, and what of it is here."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
from notebooks import Project

from notebook_to_prod.errors import InputError, LockMismatchError
from notebook_to_prod.train.lockfile import find_lockfile, lock_project, require_locked

ROOT = Path(__file__).parents[1]
NUMPY = importlib.metadata.version("numpy")

FITTING = {
    "requirements.txt": f"# none # of this\n--index-url https://index.example\n-e .\nnumpy == {NUMPY}  # exactly\npandas[excel]>=1; python_version > '3'\n",
    "requirements.lock": f"numpy=={NUMPY} \\\n    --hash=sha256:00\n",
    "uv.lock": f"[[package]]\nname = 'numpy'\nversion = '{NUMPY}'\n[[package]]\nname = 'other-platform'\nversion = '1'\n[[package]]\nname = 'me'\nversion = '1'\nsource = {{editable = '.'}}\n",
    "poetry.lock": f"[[package]]\nname = 'numpy'\nversion = '{NUMPY}'\n",
    "pylock.toml": f"[[packages]]\nname = 'numpy'\nversion = '{NUMPY}'\n",
    "environment.yml": f"dependencies:\n  - python>=3.11\n  - cudatoolkit=11.8\n  - conda-forge::numpy={NUMPY}=py311_0\n  - pip: [papermill]\n",
    "environment.yaml": "dependencies: [pip]\n",
}


@pytest.mark.parametrize("name", FITTING)
def test_a_lock_that_fits(project: Project, name: str) -> None:
    (project.folder / name).write_text(FITTING[name])
    lock = require_locked(project.folder)
    assert lock is not None and lock.path.name == name


@pytest.mark.parametrize("name", [name for name in FITTING if name != "environment.yaml"])
def test_a_lock_of_another_version_says_how_to_install_it(project: Project, name: str) -> None:
    (project.folder / name).write_text(FITTING[name].replace(NUMPY, "1.0.7"))
    with pytest.raises(LockMismatchError, match=rf"numpy is {NUMPY}, the lock says ==1.0.7") as caught:
        require_locked(project.folder)
    assert "--allow-unlocked" in (caught.value.remedy or "") and caught.value.exit_code == 3


@pytest.mark.parametrize("name", [name for name in FITTING if name != "requirements.lock"])
def test_another_tools_lock_is_kept(project: Project, name: str) -> None:
    text = FITTING[name] if name != "requirements.txt" else f"numpy=={NUMPY}\n"
    (project.folder / name).write_text(text)
    assert lock_project(project.folder) == (project.folder / name, False)
    assert (project.folder / name).read_text() == text and not (project.folder / "requirements.lock").exists()


def test_included_files_of_any_encoding(project: Project) -> None:
    (project.folder / "requirements.txt").write_text(
        "-r base.txt\n-r requirements.txt\nsix @ https://a.example/six.whl#egg=six\n"
    )
    (project.folder / "base.txt").write_bytes(f"numpy=={NUMPY}\r\nnot-here-7==1\r\n".encode("utf-16"))
    lock = find_lockfile(project.folder)
    assert lock is not None and lock.demands == {"numpy": f"=={NUMPY}", "not-here-7": "==1", "six": ""}
    assert lock.differences({"numpy": NUMPY, "six": "1"}) == ["not-here-7 ==1 is not installed"]


def test_of_conda_only_what_pip_installs_must_be_there(project: Project) -> None:
    (project.folder / "environment.yml").write_text("dependencies: [cudatoolkit=11.8, {pip: [not-here-7==1]}]\n")
    with pytest.raises(LockMismatchError) as caught:
        require_locked(project.folder)
    assert "not-here-7" in caught.value.what and "cudatoolkit" not in caught.value.what


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("poetry.lock", b"[[package"),
        ("environment.yaml", b"dependencies: ["),
        ("requirements.txt", b"-r no.txt"),
        ("requirements.txt", b"\xff"),
    ],
)
def test_a_lock_that_cannot_be_read(project: Project, name: str, content: bytes) -> None:
    (project.folder / name).write_bytes(content)
    with pytest.raises(InputError, match="the lock cannot be read") as caught:
        find_lockfile(project.folder)
    assert name in str(caught.value) and caught.value.remedy
    if name == "requirements.txt":
        with pytest.raises(InputError, match="the lock cannot be read"):
            lock_project(project.folder)


def test_the_training_image_installs_the_lock_of_the_project() -> None:
    lines = [
        line for line in (ROOT / "environments/train.Dockerfile").read_text().splitlines() if not line.startswith("#")
    ]
    text = "\n".join(lines)
    assert re.search(r"^FROM scratch AS project\nCOPY environments/core.lock /requirements.lock$", text, re.MULTILINE)
    assert "COPY --from=project requirements.lock /requirements.lock" in text
    installs = re.findall(r"pip install ([^&\n]*)", text)
    assert [each.strip() for each in installs] == [
        "--require-hashes -r /requirements.lock",
        "--no-deps --no-build-isolation .",
    ]
    assert text.count("pip check") == 1


def test_what_n2p_lock_writes_is_what_is_here(project: Project) -> None:
    """Installed versions stay, and what no index has is left out with its requirements kept."""
    (project.folder / "requirements.in").write_text("numpy\nnotebook-to-prod\n")
    path, written = lock_project(project.folder)
    assert written and path.name == "requirements.lock"
    lock = require_locked(project.folder)
    assert lock is not None and lock.demands["numpy"] == f"=={NUMPY}"
    assert "notebook-to-prod" not in lock.demands and "papermill" in lock.demands
    assert "file://" not in path.read_text()


def test_a_lock_that_is_there_is_preferred_to_what_is_here(project: Project) -> None:
    (project.folder / "requirements.in").write_text("six\n")
    (project.folder / "requirements.lock").write_text("six==1.15.0\n")
    lock_project(project.folder)
    found = find_lockfile(project.folder)
    assert found is not None and found.demands == {"six": "==1.15.0"}
