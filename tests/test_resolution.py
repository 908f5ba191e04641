"""What `pip install notebook-to-prod[fast]` asks for can be had on every Python that the package names."""

import re
import subprocess
import sysconfig
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
UV = Path(sysconfig.get_path("scripts")) / "uv"
# In CI: at work behind no network, a resolver says one of these.
NO_INDEX = re.compile(
    r"[Ff]ailed to fetch|error sending request|dns error|[Nn]etwork (?:connectivity )?is (?:disabled|unreachable)"
)
PYTHONS = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["test"]["strategy"]["matrix"][
    "python"
]


SETTINGS = ConfigParser(delimiters=["="], interpolation=None)
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")


def asked_for(*extras: str) -> str:
    """What `pip install notebook-to-prod[EXTRAS]` reads in the metadata, which setup.py takes from here."""
    return "\n".join(SETTINGS["DEFAULT"][key] for key in ("requirements", *(f"extra_{name}" for name in extras)))


def resolve(python: str, *arguments: str, text: str = "") -> dict[str, str]:
    """Name and version of what uv finds for this Python and system; skips where no index answers."""
    command = [UV, "pip", "compile", "--quiet", "--python-version", python, "--no-annotate", "--no-header", *arguments]
    done = subprocess.run(command, input=text, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode and NO_INDEX.search(done.stderr):
        pytest.skip(f"no package index answers: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^([\w.-]+)==(\S+)", done.stdout, re.MULTILINE))


def test_the_workflow_runs_every_python_that_the_package_names() -> None:
    assert PYTHONS == ["3.11", "3.12", "3.13"]
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("python", PYTHONS)
def test_fast_resolves_without_building_anything(python: str) -> None:
    found = resolve(python, "-", "--only-binary", ":all:", text=asked_for("fast"))
    assert {"httptools", "msgspec", "onnxruntime", "scikit-learn", "mlflow"} <= found.keys()


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_all_extras_resolve(python: str) -> None:
    extras = [key.removeprefix("extra_") for key in SETTINGS["DEFAULT"] if key.startswith("extra_")]
    found = resolve(python, "-", text=asked_for(*extras))
    assert {"dvc", "shap", "psycopg", "river"} <= found.keys()


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_every_version_of_the_locks_can_be_had(python: str) -> None:
    # Each lock alone, without what its packages ask for: a wheel for the core; a wheel or an sdist for the rest.
    core = resolve(python, "environments/core.lock", "--no-deps", "--only-binary", ":all:")
    everything = resolve(python, "environments/all.lock", "--no-deps")
    assert len(core) > 100
    assert core.items() <= everything.items()
