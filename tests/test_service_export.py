"""The exported service: a folder that installs from its lock, starts by its README, and answers as it was recorded."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from notebooks import SCRIPTS, Project, make_project, once
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_registry import in_production

from notebook_to_prod.errors import InputError
from notebook_to_prod.package.bundle import Bundle, open_bundle
from notebook_to_prod.project import Store
from notebook_to_prod.release.registry import Registry
from notebook_to_prod.serve.export.generate import export_service, runtime_modules
from notebook_to_prod.serve.observe.measures import MEASURES
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
    return in_production(tmp_path_factory, MODEL)


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
    wanted = {
        ".dockerignore",
        ".gitignore",
        "Dockerfile",
        "README.md",
        "app.py",
        "requirements.lock",
        "bundle",
        "notebook_to_prod",
    }
    wanted |= {"compose.yaml", "monitoring", "k8s", "tests", "locustfile.py", ".n2p-export.json", ".n2p-export"}
    wanted |= {"service.toml"}
    assert {path.name for path in service.iterdir()} == wanted
    modules = {path.relative_to(service).as_posix() for path in service.glob("notebook_to_prod/**/*") if path.is_file()}
    packages = {
        "",
        *(module.rpartition(".")[0].replace(".", "/") + "/" for module in runtime_modules() if "." in module),
    }
    runtime = {f"notebook_to_prod/{module.replace('.', '/')}.py" for module in runtime_modules()}
    page = "notebook_to_prod/serve/templates/dashboard.html"
    assert modules == runtime | {page} | {f"notebook_to_prod/{package}__init__.py" for package in packages}


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


def tool(name: str) -> Path:
    """An installed tool; the test is skipped where there is none."""
    found = shutil.which(name, path=f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}")
    return Path(found) if found else pytest.skip(f"{name} is not installed")


def checked(*command: str | Path, cwd: Path | None = None) -> str:
    """What a tool printed; fails if it complained."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile in their order, continued lines joined."""
    lines = [line for line in dockerfile.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def test_the_dockerfile_is_clean_and_copies_what_is_there(service: Path) -> None:
    checked(SCRIPTS / "hadolint", service / "Dockerfile")
    text = (service / "Dockerfile").read_text()
    assert f"ARG PYTHON_VERSION={sys.version_info.major}.{sys.version_info.minor}\n" in text
    found = instructions(text)
    copied = {name for word, rest in found if word == "COPY" and "--from" not in rest for name in rest.split()[:-1]}
    admitted = {
        line.removeprefix("!") for line in (service / ".dockerignore").read_text().split() if line.startswith("!")
    }
    assert copied == {"app.py", "service.tom[l]", "bundle", "notebook_to_prod", "requirements.lock"}, (
        "settings are optional"
    )
    assert admitted == {"app.py", "service.toml", "bundle", "notebook_to_prod", "requirements.lock"}
    stages = [position for position, (word, _) in enumerate(found) if word == "FROM"]
    last = found[stages[-1] :]
    assert len(stages) == 2
    assert [rest for word, rest in last if word == "USER"] == ["10001:10001"]
    assert not any(" install " in rest for word, rest in last if word == "RUN"), "the last stage installs nothing"
    assert {"HEALTHCHECK", "EXPOSE", "CMD"} <= {word for word, _ in last}


def test_the_generated_code_is_clean(service: Path) -> None:
    code = (service / "app.py", service / "locustfile.py", service / "tests")
    checked(SCRIPTS / "ruff", "check", "--isolated", *code)
    checked(SCRIPTS / "ruff", "format", "--isolated", "--line-length", "160", "--check", *code)


# Compose, Prometheus and Grafana


def test_compose_is_valid_and_locked_down(service: Path) -> None:
    services = yaml.safe_load((service / "compose.yaml").read_text())["services"]
    for name, each in services.items():
        assert each["read_only"] is True, name
        assert (each["cap_drop"], each["security_opt"]) == (["ALL"], ["no-new-privileges:true"]), name
        assert {"cpus", "memory", "pids"} <= each["deploy"]["resources"]["limits"].keys(), name
        assert all(port.startswith("127.0.0.1:") for port in each["ports"]), name
        assert re.fullmatch(r"[\w./-]+:(?!latest)[\w.-]+", each["image"]), name
        mounts = [mount for mount in each.get("volumes", []) if mount.startswith("./")]
        assert all((service / mount.split(":")[0]).exists() and mount.endswith(":ro") for mount in mounts), name
    rendered = yaml.safe_load(checked(tool("docker-compose"), "config", cwd=service))
    assert rendered["services"].keys() == {"service", "prometheus", "grafana"}


def test_prometheus_finds_the_service_and_its_rules(service: Path) -> None:
    prometheus = yaml.safe_load((service / "monitoring/prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["service:8000"]}]
    groups = yaml.safe_load((service / "monitoring/rules.yml").read_text())["groups"]
    recorded = {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}
    asked = {name for group in groups for rule in group["rules"] for name in re.findall(r"\bn2p:\w+:\w+", rule["expr"])}
    assert asked <= recorded
    assert all(rule.keys() >= {"for", "labels", "annotations"} for rule in groups[-1]["rules"])


def test_grafana_finds_its_source_and_dashboard(service: Path) -> None:
    grafana = service / "monitoring/grafana"
    (source,) = yaml.safe_load((grafana / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((grafana / "provisioning/dashboards/dashboards.yaml").read_text())["providers"]
    compose = yaml.safe_load((service / "compose.yaml").read_text())["services"]["grafana"]
    dashboard = json.loads((grafana / "dashboards/service.json").read_text())
    assert dashboard["title"] == MODEL
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"]) >= 6
    assert f"./monitoring/grafana/dashboards:{provider['options']['path']}:ro" in compose["volumes"]
    home = compose["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/service.json"


def test_only_metrics_of_the_agreed_table_are_asked_for(service: Path) -> None:
    known = {name for measure in MEASURES for name in measure.series}
    labels = {label for measure in MEASURES for label in measure.labels} | {"le"}
    for path in (service / "monitoring").rglob("*.*"):
        text = path.read_text()
        assert set(re.findall(r"\bn2p_\w+", text)) <= known, path
        grouped = {label for found in re.findall(r"\b(?:by|ignoring) \(([^)]*)\)", text) for label in found.split(", ")}
        assert grouped <= labels, path


# Kubernetes

OVERLAYS = ("staging", "production", "canary", "canary-ingress")


def documents(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def test_every_file_of_kubernetes_is_there_and_used(service: Path) -> None:
    used = set()
    for path in (service / "k8s").rglob("kustomization.yaml"):
        (kustomization,) = documents(path)
        patches = [patch["path"] for patch in kustomization.get("patches", []) if "path" in patch]
        for name in (*kustomization["resources"], *patches):
            target = (path.parent / name).resolve()
            assert target.is_file() or (target / "kustomization.yaml").is_file(), (path, name)
            used.add(target)
        used.add(path.resolve())
    assert {path.resolve() for path in (service / "k8s").rglob("*") if path.is_file()} == {
        path for path in used if path.is_file()
    }
    assert {path.name for path in (service / "k8s/overlays").iterdir()} == set(OVERLAYS)


def test_the_base_is_valid_and_fits_together(service: Path) -> None:
    paths = [path for path in sorted((service / "k8s/base").iterdir()) if path.name != "kustomization.yaml"]
    base = {each["kind"]: each for path in paths for each in documents(path)}
    pod = base["Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"].items()
    (container,) = pod["spec"]["containers"]
    for selector in (
        base["Deployment"]["spec"]["selector"]["matchLabels"],
        base["Service"]["spec"]["selector"],
        base["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        base["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels
    assert base["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == base["Deployment"]["metadata"]["name"]
    assert "replicas" not in base["Deployment"]["spec"], "the autoscaler says how many"
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"startupProbe", "readinessProbe", "livenessProbe", "resources", "lifecycle"} <= container.keys()
    checked(tool("kubernetes-validate"), "--strict", *paths)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_valid(overlay: str, service: Path, tmp_path: Path) -> None:
    rendered = tmp_path / f"{overlay}.yaml"
    rendered.write_text(checked(tool("kubectl"), "kustomize", service / "k8s/overlays" / overlay))
    made = documents(rendered)
    deployments = {each["metadata"]["name"]: each for each in made if each["kind"] == "Deployment"}
    if overlay.startswith("canary"):
        ((name, canary),) = deployments.items()
        assert (name, canary["spec"]["replicas"]) == ("late-flights-canary", 1)
        assert canary["spec"]["selector"]["matchLabels"]["track"] == "canary"
        others = {each["kind"] for each in made} - {"Deployment"}
        assert others == ({"Service", "Ingress"} if overlay == "canary-ingress" else set())
    else:
        assert deployments.keys() == {"late-flights"}
        assert {"Namespace", "Service", "HorizontalPodAutoscaler", "NetworkPolicy"} <= {each["kind"] for each in made}
    for each in deployments.values():
        assert each["spec"]["template"]["spec"]["containers"][0]["image"] == "late-flights:1"
    checked(tool("kubernetes-validate"), "--strict", rendered)


# The folder on a machine that has nothing else


@dataclass(frozen=True)
class Image:
    """What the Dockerfile makes, in a folder instead of a layer."""

    root: Path  # The image's `/`
    command: list[str]  # CMD
    probe: list[str]  # HEALTHCHECK

    @property
    def service(self) -> Path:
        return self.root / "service"

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of this machine but its temporary folder; bytecode is not written, as the image has it."""
        return {"PATH": f"{self.root}/venv/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": "/tmp"}

    def run(self, *command: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment | variables
        return subprocess.run(
            [shutil.which(command[0], path=environment["PATH"]) or command[0], *command[1:]],
            cwd=cwd or self.service,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="session")
def image(service: Path, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image, by the Dockerfile's own COPY and `RUN ... install` lines; what would change this machine is left out."""

    def build(project: Project) -> None:
        root, tools = project.folder / "root", project.folder / "bin"
        tools.mkdir()
        (tools / "python").symlink_to(Path(sys.base_prefix) / f"bin/python3.{sys.version_info.minor}")
        (tools / "pip").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pip "$@"\n')
        (tools / "pip").chmod(0o755)
        path, folder = f"{tools}:/usr/bin:/bin", root
        for word, rest in instructions((service / "Dockerfile").read_text()):
            if word == "WORKDIR":
                folder = root / rest.strip("/")
            elif word == "COPY" and "--from" not in rest:
                *names, target = rest.split()
                place = root / target.strip("/") if target.startswith("/") else folder / target
                place.mkdir(parents=True, exist_ok=True)
                for source in (each for name in names for each in service.glob(name)):
                    copy = shutil.copy if source.is_file() else partial(shutil.copytree, dirs_exist_ok=True)
                    copy(source, place)
            elif word == "RUN" and " install " in rest:
                assert "--require-hashes" in rest
                script = re.sub(r"(?<= )/(?=venv|requirements)", f"{root}/", rest)
                kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
                done = subprocess.run(
                    ["bash", "-euc", script],
                    env=kept | {"PATH": path, "PIP_NO_COMPILE": "1"},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode == 0, done.stderr[-3000:]

    root = once(tmp_path_factory, "image", build).folder / "root"
    found = dict(instructions((service / "Dockerfile").read_text()))
    return Image(root, json.loads(found["CMD"]), json.loads(found["HEALTHCHECK"].partition("CMD ")[2]))


@pytest.fixture(scope="session")
def running(image: Image) -> Iterator[str]:
    """The address of the image's service, started by its CMD, on a free port of this machine only."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = {"8000": port, "0.0.0.0": "127.0.0.1"}
    program, *rest = (words.get(word, word) for word in image.command)
    with served([image.root / "venv/bin" / program, *rest], image.service, image.environment) as url:
        yield url


@contextlib.contextmanager
def served(command: list[str | Path], folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """The address of a service that a command of that folder runs."""
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield listening(process)
    finally:
        process.terminate()
        process.communicate(timeout=30)


def listening(process: subprocess.Popen[str]) -> str:
    """The address that a service says it runs on."""
    said = []
    assert process.stdout
    for line in process.stdout:
        said.append(line)
        if found := re.search(r"running on (http://\S+)", line):
            return found[1]
    return pytest.fail("".join(said))


def test_the_image_holds_what_the_lock_names_and_no_pip(image: Image, service: Path) -> None:
    listed = image.run(
        "python", "-c", "import importlib.metadata as m, json; print(json.dumps([d.name for d in m.distributions()]))"
    )
    installed = {canonicalize_name(name) for name in json.loads(listed.stdout)}
    locked = requirements((service / "requirements.lock").read_text()).keys()
    assert {"fastapi", "scikit-learn"} <= installed <= locked
    assert installed & (TRAINING_SIDE | {"pip", "pytest"}) == set()
    assert not (image.root / "venv/bin/pip").exists()


def test_the_image_answers_as_recorded_and_writes_nothing(running: str, image: Image, bundle: Bundle) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in image.service.rglob("*")}

    before = state()
    answer = httpx.post(f"{running}/predict", json={"rows": bundle.golden["rows"]}, timeout=60, trust_env=False).json()
    assert answer["predictions"] == bundle.golden["predictions"]
    assert answer["probabilities"] == bundle.golden["probabilities"]
    assert (answer["model"], answer["version"], answer["bundle"]) == (MODEL, "1", bundle.digest)
    probe = [word.replace(":8000", f":{running.rpartition(':')[2]}") for word in image.probe]
    assert image.run(*probe).returncode == 0
    assert image.run(*image.probe[:2], image.probe[2].replace(":8000", ":9")).returncode != 0
    assert state() == before, "the file system may be read-only"


def test_the_services_own_tests_pass_and_can_fail(running: str, image: Image, service: Path, tmp_path: Path) -> None:
    own = ("python", "-m", "unittest", "discover", "tests")
    passed = image.run(*own, cwd=service, SERVICE_URL=running)
    assert passed.returncode == 0, passed.stderr
    assert "OK" in passed.stderr

    for name in ("tests", "bundle"):
        shutil.copytree(service / name, tmp_path / name)
    golden = json.loads((tmp_path / "bundle/golden.json").read_text())
    golden["probabilities"][0] = golden["probabilities"][0][::-1]
    (tmp_path / "bundle/golden.json").write_text(json.dumps(golden))
    failed = image.run(*own, cwd=tmp_path, SERVICE_URL=running)
    assert "FAILED (failures=1)" in failed.stderr


def test_the_services_own_tests_start_it_by_themselves(image: Image, service: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(service, tmp_path / "service")
    passed = image.run("python", "-m", "unittest", "discover", "tests", cwd=copy)
    assert passed.returncode == 0, passed.stderr


def test_locust_sends_the_golden_rows(running: str, service: Path, tmp_path: Path) -> None:
    report = tmp_path / "load"
    options = ("--headless", "--users", "4", "--spawn-rate", "4", "--run-time", "3s", "--csv", str(report))
    checked(tool("locust"), "-f", service / "locustfile.py", "--host", running, *options, "--only-summary")
    with report.with_name("load_stats.csv").open() as file:
        *_, total = csv.DictReader(file)
    assert int(total["Request Count"]) > 0
    assert int(total["Failure Count"]) == 0


@pytest.fixture
def stranger(service: Path, image: Image, tmp_path: Path) -> Project:
    """A copy of the service, with the image's environment in the place of the one that the README makes."""
    project = make_project(tmp_path / "stranger")
    copy = Path(shutil.copytree(service, project.folder / "service"))
    (copy / ".venv").symlink_to(image.root / "venv")
    return Project(copy, {"PATH": "/usr/local/bin:/usr/bin:/bin"})


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


@contextlib.contextmanager
def started(project: Project, command: str) -> Iterator[str]:
    with served(["bash", "-euc", f"exec {command}"], project.folder, project.environment({})) as url:
        yield url


def test_the_readme_leads_to_the_recorded_answers(stranger: Project, bundle: Bundle) -> None:
    blocks = shell_blocks(stranger.folder)
    make_environment, install, start = blocks[0].strip().splitlines()
    assert make_environment == f"python{bundle.metadata['python']} -m venv .venv"
    assert install == ".venv/bin/pip install --require-hashes -r requirements.lock", "what the image installs"
    assert start.endswith("python app.py --port 8000")
    (ask_it,) = (block for block in blocks if block.startswith("curl"))
    (own_tests,) = (block for block in blocks if "unittest" in block)
    assert own_tests.strip() == ".venv/bin/python -m unittest discover tests"
    with started(stranger, start.replace("8000", "0")) as url:
        asked = json.loads(shell(stranger, ask_it.replace("http://127.0.0.1:8000", url)))
        assert asked["predictions"] == bundle.golden["predictions"][:1]
        assert httpx.get(f"{url}/ready", trust_env=False).json()["status"] in ("loading", "ready")
    (shown,) = re.findall(r"```json\n(.*?)```", (stranger.folder / "README.md").read_text(), re.DOTALL)
    assert json.loads(shown).items() <= asked.items()


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


def test_routes_of_a_team_and_a_listener_apart(stranger: Project) -> None:
    """`python app.py` has both; another server would pass the listener over, and is refused."""
    app = stranger.folder / "app.py"
    added = "\n    @app.get('/team')\n    def team() -> str:\n        return 'ours'\n"
    app.write_text(
        re.sub(r'(def extend.*?""".*?""")', lambda found: found[1] + added, app.read_text(), flags=re.DOTALL)
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (stranger.folder / "service.toml").write_text(f'[security]\nadmin = "127.0.0.1:{port}"\n')
    with started(stranger, ".venv/bin/python app.py --port 0") as url:
        assert httpx.get(f"{url}/team", trust_env=False).json() == "ours"
        assert httpx.get(f"{url}/metrics", trust_env=False).status_code == 404
        assert "n2p_" in httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    refused = subprocess.run(
        [stranger.folder / ".venv/bin/python", "-m", "uvicorn", "app:app", "--port", "0"],
        cwd=stranger.folder,
        env=stranger.environment({}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode != 0 and "running on" not in refused.stderr
    assert "[security] admin" in refused.stderr and "python app.py" in refused.stderr


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


def test_a_listener_apart_is_in_every_file_that_names_ports(predictor: Predictor, tmp_path: Path) -> None:
    folder = tmp_path / "service"
    export_service(predictor, folder, hashes=False)
    settings = folder / "service.toml"
    assert tomllib.loads(settings.read_text()) == {}
    told = settings.read_text().replace("# [security]", "[security]").replace("# admin = ", "admin = ")
    for host, port in (("127.0.0.1", 8000), ("0.0.0.0", 9000)):
        settings.write_text(told.replace("127.0.0.1:9000", f"{host}:9000"))
        report = export_service(predictor, folder, hashes=False)
        assert not report.paths("conflict") and report.actions["service.toml"] == "kept"
        (deployment,) = documents(folder / "k8s/base/deployment.yaml")
        template = deployment["spec"]["template"]
        assert template["metadata"]["annotations"]["prometheus.io/port"] == str(port)
        ports = [each["containerPort"] for each in template["spec"]["containers"][0]["ports"]]
        (policy,) = documents(folder / "k8s/base/networkpolicy.yaml")
        opened = [each["port"] for rule in policy["spec"]["ingress"] for each in rule["ports"]]
        assert (ports, opened) == (([8000], ["http"]) if port == 8000 else ([8000, 9000], ["http", "admin"]))
        assert f'"service:{port}"' in (folder / "monitoring/prometheus.yml").read_text()
        published = yaml.safe_load((folder / "compose.yaml").read_text())["services"]["service"]["ports"]
        assert published == [f"127.0.0.1:{each}:{each}" for each in ports]


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
    kept = {path for path in written if path.parts[0].startswith(".n2p-export")}  # texts of the files that differ too
    for path in written - kept - {Path(name) for name in ("requirements.lock", "Dockerfile", "README.md")}:
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
