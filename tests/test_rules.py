"""The rules and dashboard of an exported service are what Prometheus and Grafana take: every key is one of theirs, every expression parses and is about a series that there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from jinja2 import Environment, StrictUndefined
from jsonschema import Draft202012Validator

import notebook_to_prod
from notebook_to_prod.serve.observe.measures import MEASURES

TEMPLATES = Path(notebook_to_prod.__file__).parent / "serve/templates/service/monitoring"
NAMES = {"slug": "flights", "admin": None, "model": 'Flüge: "spät" {{ 1 }}'}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}, "propertyNames": {"pattern": "^[A-Za-z_]\\w*$"}}
DURATION = {"type": "string", "pattern": "^\\d+(ms|s|m|h|d|w|y)$"}
RECORDED = {
    "properties": {
        "record": {"type": "string", "pattern": "^[A-Za-z_:][A-Za-z0-9_:]*$"},
        "expr": {"type": "string"},
        "labels": TEXTS,
    },
    "required": ["record", "expr"],
    "additionalProperties": False,
}
ALERT = {
    "properties": {
        "alert": {"type": "string", "minLength": 1},
        "expr": {"type": "string"},
        "for": DURATION,
        "keep_firing_for": DURATION,
        "labels": TEXTS,
        "annotations": TEXTS,
    },
    "required": ["alert", "expr", "for", "labels", "annotations"],  # the last three are ours to ask
    "additionalProperties": False,
}
GROUP = {
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "interval": DURATION,
        "limit": {"type": "integer"},
        "rules": {"type": "array", "minItems": 1, "items": {"type": "object", "oneOf": [RECORDED, ALERT]}},
    },
    "required": ["name", "rules"],
    "additionalProperties": False,
    "type": "object",
}
RULES = {
    "type": "object",
    "properties": {"groups": {"type": "array", "items": GROUP}},
    "required": ["groups"],
    "additionalProperties": False,
}
SERIES = {name: {*measure.labels, "le"} for measure in MEASURES for name in measure.series}
OF_PROMETHEUS = {"up": {"job", "instance"}}
SHOWN = re.compile(r"\{\{ (?:\$labels\.(\w+)|\$value)(?: \| humanize(?:Duration|Percentage|1024)?)? \}\}")


def rendered(name: str) -> str:
    """A file of an exported service."""
    environment = Environment(autoescape=False, undefined=StrictUndefined)
    environment.filters["yaml"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")).render(NAMES)


def selectors(node: Any) -> Iterator[Any]:
    """The series that an expression asks for."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        if (child := getattr(node, name, None)) is not None and not isinstance(child, str):
            yield from selectors(child)
    for child in getattr(node, "args", None) or ():
        yield from selectors(child)


def faults(text: str) -> list[str]:
    """What Prometheus would not take of a file of rules, or would never find."""
    content = yaml.safe_load(text)
    found = [f"{error.json_path}: {error.message}" for error in Draft202012Validator(RULES).iter_errors(content)]
    if found:
        return found
    rules = [rule for group in content["groups"] for rule in group["rules"]]
    series = SERIES | OF_PROMETHEUS | {rule["record"]: set() for rule in rules if "record" in rule}
    for group in content["groups"]:
        told = [(rule.get("record"), rule.get("alert"), json.dumps(rule.get("labels"))) for rule in group["rules"]]
        found += [f"{group['name']}: {each} is there twice" for each in {*told} if told.count(each) > 1]
    if len(names := [group["name"] for group in content["groups"]]) > len({*names}):
        found.append(f"groups have the same name: {names}")
    for rule in rules:
        found += [f"{rule['expr']}: {why}" for why in expression_faults(rule["expr"], series)]
        for shown in rule.get("annotations", {}).values() if "alert" in rule else ():
            for label in (match[1] for match in SHOWN.finditer(shown) if match[1]):
                if label not in rule["expr"] + "".join(r["expr"] for r in rules if r.get("record", "") in rule["expr"]):
                    found.append(f"{shown}: nothing has the label {label}")
    return found


def expression_faults(text: str, series: dict[str, set[str]]) -> list[str]:
    """Why an expression is none, or asks for what there is not."""
    try:
        parsed = promql_parser.parse(text)
    except ValueError as error:
        return [str(error)]
    found = []
    for each in selectors(parsed):
        if each.name not in series:
            found.append(f"there is no series {each.name}")
        elif each.name in SERIES:
            found += [
                f"{each.name} has no label {matcher.name}"
                for matcher in each.matchers.matchers
                if matcher.name not in SERIES[each.name]
            ]
    return found if [*selectors(parsed)] else ["it asks for no series"]


def test_the_rules_are_what_prometheus_takes() -> None:
    text = rendered("rules.yml")
    assert faults(text) == []
    alerts = [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"] if "alert" in rule]
    assert len(alerts) > 5
    for rule in alerts:
        for shown in rule["annotations"].values():
            left = SHOWN.sub("", shown)
            assert "{{" not in left.replace(NAMES["model"], "") and "$" not in left, shown


BROKEN = {
    "a misspelt key": ("annotations:", "anotations:", "'anotations' was unexpected"),
    "no expression": ("expr: sum(n2p_in_flight) > 100", "exp: 1", "'exp' was unexpected"),
    "a time of no unit": ("for: 10m", "for: 10 minutes", "'10 minutes' does not match"),
    "a parenthesis": ("(n2p_feature_drift)", "(n2p_feature_drift", "unclosed left parenthesis"),
    "a rate of an instant": ("sum(n2p_in_flight)", "rate(n2p_in_flight)", "expected type matrix"),
    "a function": ("abs(", "absolute(", "unknown function"),
    "a series": ("sum(n2p_in_flight)", "sum(n2p_in_fligth)", "there is no series n2p_in_fligth"),
    "a label of a series": ('{kind!="cache"}', '{sort!="cache"}', "has no label sort"),
    "a label of an annotation": ("$labels.feature", "$labels.column", "nothing has the label column"),
    "a name": ("record: n2p:feature_drift:max", "record: n2p-feature-drift", "does not match"),
    "a rule twice": ("record: n2p:request_seconds:p99_5m", "record: n2p:request_seconds:p50_5m", "is there twice"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_rule_is_found(case: str) -> None:
    old, new, told = BROKEN[case]
    text = rendered("rules.yml")
    assert old in text
    assert told in " ".join(error_texts(text.replace(old, new, 1)))


def error_texts(text: str) -> list[str]:
    """The faults of a file, with those of each form that a rule may have."""
    content = yaml.safe_load(text)
    errors = [*Draft202012Validator(RULES).iter_errors(content)]
    return [part.message for error in errors for part in (error, *(error.context or ()))] or faults(text)


def test_the_dashboard_asks_for_series_that_there_are() -> None:
    panels = json.loads(rendered("grafana/dashboards/service.json"))["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    assert len(asked) > 8
    for text in asked:
        assert expression_faults(text.replace("$__rate_interval", "5m"), SERIES) == [], text


def test_prometheus_would_read_the_rules_and_ask_the_service() -> None:
    content = yaml.safe_load(rendered("prometheus.yml"))
    assert content.keys() == {"global", "rule_files", "scrape_configs"} and content["rule_files"] == ["rules.yml"]
    assert all(promql_parser.parse_duration(value) for value in content["global"].values())
    assert content["global"].keys() <= {"scrape_interval", "evaluation_interval", "scrape_timeout", "external_labels"}
    (job,) = content["scrape_configs"]
    assert job == {"job_name": "flights", "static_configs": [{"targets": ["service:8000"]}]}
    up = {
        matcher.value
        for group in yaml.safe_load(rendered("rules.yml"))["groups"]
        for rule in group["rules"]
        for each in selectors(promql_parser.parse(rule["expr"]))
        if each.name == "up"
        for matcher in each.matchers.matchers
    }
    assert up == {job["job_name"]}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_agrees(tmp_path: Path) -> None:
    for name in ("rules.yml", "prometheus.yml"):
        (tmp_path / name).write_text(rendered(name), encoding="utf-8")
    subprocess.run(["promtool", "check", "config", tmp_path / "prometheus.yml"], check=True, capture_output=True)
