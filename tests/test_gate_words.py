"""A gate that says no names the setting that it held its number against, and each setting says what it is."""

from __future__ import annotations

import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
from notebooks import SCRIPTS

from notebook_to_prod.cli.gate import answer
from notebook_to_prod.cli.output import Terminal
from notebook_to_prod.package.gates.policy import Policy, meanings, read_policy, setting_of
from notebook_to_prod.package.gates.run import choose_gates
from notebook_to_prod.package.gates.verdict import Report, Verdict, judge, save_report
from notebook_to_prod.project import Store

PARTS = [type(value) for value in vars(Policy()).values() if hasattr(value, "__dataclass_fields__")]
WITHOUT = {"data.constant", "data.unused", "explain.shap", "serving.skew"}  # These hold nothing against a setting


@pytest.mark.parametrize("kind", PARTS, ids=lambda kind: kind.__name__)
def test_each_setting_says_what_it_is(kind: type) -> None:
    assert [each.name for each in fields(kind) if not meanings(kind).get(each.name)] == []


def test_each_gate_names_a_setting_that_there_is() -> None:
    told = {gate.name: setting_of(gate.name) for gate in choose_gates(Policy())}
    assert {gate for gate, setting in told.items() if setting is None} == WITHOUT
    for setting in filter(
        None, (*told.values(), setting_of("quality.support", "class"), setting_of("fairness.groups", "a: ratio"))
    ):
        family, name = setting.removeprefix("[tool.n2p.gates.").split("] ")
        assert hasattr(getattr(Policy(), family), name), setting


def test_the_policy_that_is_shown_can_be_given_back(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        "[tool.n2p.gates.quality]\nmetrics = {roc_auc = 0.6}\nslices = ['a: #b']\n"
    )
    shown = subprocess.run(
        [SCRIPTS / "n2p", "gate", "--show-policy"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "  calibration: 0.1  # Largest expected calibration error" in shown.stdout
    (tmp_path / "shown.yaml").write_text(shown.stdout)
    again = read_policy(tmp_path / "shown.yaml")
    assert again.digest == read_policy(tmp_path / "pyproject.toml").digest


def test_a_no_names_its_setting_and_a_remedy(tmp_path: Path) -> None:
    store = Store(tmp_path)
    verdicts = (judge("quality.metric", 0.7, 0.8, "roc_auc"), Verdict("data.constant", "fail", "a column is constant"))
    report = save_report(store, Report(f"sha256:{'0' * 64}", "sha256:1", verdicts))
    result = answer(Terminal(json=True, verbose=False), store, report, "flights", None)
    assert result.data["settings"] == {"quality.metric": "[tool.n2p.gates.quality] metrics"}
    lines = dict(result.lines)
    assert lines["setting"] == "quality.metric is held against [tool.n2p.gates.quality] metrics"
    assert "--override" in lines["remedy"]
    fine = Report(report.bundle, report.policy, (judge("quality.metric", 0.9, 0.8, "roc_auc"),))
    assert "remedy" not in dict(
        answer(Terminal(json=True, verbose=False), store, save_report(store, fine), "flights", None).lines
    )
