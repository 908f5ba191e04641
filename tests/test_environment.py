"""The environment: what is imported later is seeded too, and what changes bits is part of the identity."""

from __future__ import annotations

import importlib.util
import json
import platform
from pathlib import Path

import pytest
from notebooks import Project

from notebook_to_prod.package.reproduce import environment_differences
from notebook_to_prod.train.environment import describe_environment, kernel_environment

# Torch is too large to install for a test: this has the names of it that are called, and its generator.
STAND_IN = """
import random, types
from . import late
generator, deterministic = random.Random(), None
def manual_seed(seed): generator.seed(seed)
def rand(): return generator.random()
def use_deterministic_algorithms(mode, warn_only=False): globals().update(deterministic=(mode, warn_only))
def are_deterministic_algorithms_enabled(): return deterministic == (True, True)
backends = types.SimpleNamespace(cudnn=types.SimpleNamespace(deterministic=False, benchmark=True))
"""
ASK = """
import importlib.util, json, sys
{before}
from notebook_to_prod.train.environment import seed_everything
seed_everything({first})
imported = "torch" in sys.modules
seed_everything({seed})
found = importlib.util.find_spec("torch") is not None  # as libraries ask whether torch is there
import torch
flags = [torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark]
draws = [float(torch.rand({shape})) for _ in range(3)]
finders = [type(finder).__name__ for finder in sys.meta_path]
print(json.dumps({{"imported": imported, "found": found, "flags": flags, "draws": draws, "finders": finders, "file": torch.__spec__.origin}}))
"""


def ask(project: Project, seed: int, *, before: str = "", shape: str = "", first: int = 1) -> dict[str, object]:
    """What torch does in a process of its own."""
    script = project.folder / "ask.py"
    script.write_text(ASK.format(seed=seed, before=before, shape=shape, first=first))
    done = project.command("python", script)
    assert done.code == 0, done
    return done.json


@pytest.fixture(params=["stand-in", "real"])
def shape(request: pytest.FixtureRequest, project: Project) -> str:
    """Torch on the path of the script, and what its `rand` takes."""
    if request.param == "real":
        if importlib.util.find_spec("torch") is None:
            pytest.skip("torch is not installed")
        return "1"
    (project.folder / "torch").mkdir()
    (project.folder / "torch/__init__.py").write_text(STAND_IN)
    (project.folder / "torch/late.py").touch()
    return ""


def test_torch_is_seeded_when_it_is_imported(shape: str, project: Project) -> None:
    later = ask(project, 7, shape=shape)
    assert (later["imported"], later["found"], later["flags"]) == (False, True, [True, True, False])
    assert "_TorchSeeder" not in later["finders"]
    assert later == ask(project, 7, shape=shape, first=3)
    before = ask(project, 7, shape=shape, before="import torch")
    assert before == later | {"imported": True}
    assert ask(project, 8, shape=shape)["draws"] != later["draws"]


def test_a_torch_that_cannot_be_imported_stays_absent(project: Project) -> None:
    script = (
        "from notebook_to_prod.train.environment import seed_everything; seed_everything(1); import absent_torch_user"
    )
    done = project.command("python", "-c", script)
    assert done.stderr.strip().endswith("ModuleNotFoundError: No module named 'absent_torch_user'")
    (project.folder / "torch.py").write_text("raise ImportError('no driver')")
    script = "from notebook_to_prod.train.environment import seed_everything; seed_everything(1); import torch"
    done = project.command("python", "-c", script)
    assert done.stderr.strip().endswith("ImportError: no driver")


def described(project: Project, **variables: str) -> dict[str, object]:
    code = "import json; from notebook_to_prod.train.environment import *; print(json.dumps(describe_environment({})))"
    done = project.command("python", "-c", code, **variables)
    assert done.code == 0, done
    return done.json


def test_the_kernel_of_linear_algebra_is_part_of_the_identity(project: Project) -> None:
    plain = described(project)
    if not plain["blas"] or plain["blas"][0]["internal_api"] != "openblas" or platform.machine() != "x86_64":
        pytest.skip("needs OpenBLAS, whose kernel can be chosen")
    other = "Nehalem" if plain["blas"][0]["architecture"] != "Nehalem" else "Prescott"
    chosen = described(project, OPENBLAS_CORETYPE=other)
    assert chosen["blas"] == [plain["blas"][0] | {"architecture": other}]
    assert chosen["digest"] != plain["digest"]
    (sentence,) = environment_differences(plain, chosen)
    assert sentence.startswith("blas was openblas") and sentence.endswith(other)


def test_what_else_is_loaded_is_not(project: Project, tmp_path: Path) -> None:
    code = "import json, scipy.linalg; from notebook_to_prod.train.environment import *; print(json.dumps(describe_environment({})))"
    assert project.command("python", "-c", code).json["blas"] == described(project)["blas"]


def test_the_release_of_the_operating_system_is_recorded_and_no_part_of_the_identity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = describe_environment(kernel_environment(2))
    assert now["release"] == platform.release()
    monkeypatch.setattr(platform, "release", lambda: "7.0.0-generic")
    upgraded = describe_environment(kernel_environment(2))
    assert (upgraded["release"], upgraded["digest"]) == ("7.0.0-generic", now["digest"])
    assert environment_differences(now, upgraded) == []


def test_what_differs_is_named() -> None:
    now = describe_environment(kernel_environment(2))
    other = json.loads(json.dumps(now))
    other["distributions"]["numpy"], other["files"]["pandas"], other["variables"]["OMP_NUM_THREADS"] = "1.0", "0", "9"
    found = environment_differences(now, other)
    assert found[0] == f"numpy was {now['distributions']['numpy']}, is 1.0"
    assert found[1:] == [
        f"pandas {now['distributions']['pandas']} is another build",
        "OMP_NUM_THREADS was 2, is 9",
    ]
    assert environment_differences({"python": now["python"]}, now | {"processor": None}) == []
