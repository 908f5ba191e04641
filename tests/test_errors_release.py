"""What the registry, its people, stages, webhooks and rollouts refuse: what, where, and what to do about it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from provoked import Wrong, check, each_of, settings, written

from notebook_to_prod.errors import AccessError, DataError, InputError, NotFoundError, StoreError
from notebook_to_prod.package.schema import Column, Schema
from notebook_to_prod.project import Store, open_store
from notebook_to_prod.release.audit import read_events
from notebook_to_prod.release.change import parse_events
from notebook_to_prod.release.environments import promote_between
from notebook_to_prod.release.flavour import restored_table
from notebook_to_prod.release.gated import stage_policy
from notebook_to_prod.release.moves import promoting
from notebook_to_prod.release.outbox import dead_path, read_dead, send_again
from notebook_to_prod.release.people import identify, read_people
from notebook_to_prod.release.records import card_settings
from notebook_to_prod.release.registry import Registry
from notebook_to_prod.release.rollout import parse_challenger, parse_period, parse_rollout, parse_steps
from notebook_to_prod.release.score import declared_evidence
from notebook_to_prod.release.stages import policy_file, read_stages, require_identity, stage_rules
from notebook_to_prod.release.versions import check_alias, check_name, parse_reference
from notebook_to_prod.release.views import parse_time
from notebook_to_prod.release.webhook import read_webhooks, signed_headers, verify_webhook


def people(text: str) -> Any:
    settings(f"[tool.n2p]\n{text}")
    return read_people()


def stages(text: str) -> Any:
    settings(f"[tool.n2p.stages]\n{text}")
    return read_stages()


def card(text: str) -> Any:
    settings(f"[tool.n2p]\n{text}")
    return card_settings()


def score(text: str) -> Any:
    settings(f"[tool.n2p]\n{text}")
    return declared_evidence(Path.cwd())


def hooks(text: str) -> Any:
    settings(f"[[tool.n2p.webhooks]]\n{text}")
    return read_webhooks()


def with_variable(name: str, value: str, act: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        return act()


DIGEST = "sha256:" + "0" * 64

PEOPLE = {
    "owners that are a list": Wrong(
        lambda: people("owners = []"), InputError, "a table is needed", "[tool.n2p.owners]", 'flights = ["ann"]'
    ),
    "owners in a text": Wrong(
        lambda: people('owners = {flights = "ann"}'),
        InputError,
        "'flights' needs a list of names",
        "[tool.n2p.owners]",
        'flights = ["ann"',
    ),
    "a team called owners": Wrong(
        lambda: people("teams = {owners = []}"),
        InputError,
        "'owners' cannot be a team",
        "[tool.n2p.teams]",
        "@owners are those of a model",
    ),
    "a team in a team": Wrong(
        lambda: people('teams = {all = ["@risk"]}'),
        InputError,
        "team 'all' has the team '@risk' in it",
        "[tool.n2p.teams]",
        "name its people",
    ),
    "a team that there is not": Wrong(
        lambda: people('teams = {risk = ["ann"]}\nowners = {flights = ["@rsk"]}'),
        InputError,
        "no team '@rsk', did you mean '@risk'?",
        "owners] flights",
        "the teams are @risk",
    ),
    "a role that there is not": Wrong(
        lambda: people('roles = {promot = ["ann"]}'),
        InputError,
        "'promot', did you mean 'promote'?",
        "[tool.n2p.roles]",
        "the keys are",
    ),
    "a token in place of its digest": Wrong(
        lambda: people('tokens = {ann = "hunter2"}'),
        InputError,
        "'ann' needs the digest of a token",
        "[tool.n2p.tokens]",
        "n2p token new",
    ),
    "a token of two people": Wrong(
        lambda: people(f'tokens = {{ann = "{DIGEST}", bob = "{DIGEST}"}}'),
        InputError,
        "have the same token",
        "[tool.n2p.tokens]",
        "n2p token new",
    ),
    "an alert that there is not": Wrong(
        lambda: read_people().who_is_told("flights", "drifts"),
        InputError,
        "no alert 'drifts'",
        "[tool.n2p.alerts]",
        "the alerts are",
    ),
    "a token that nobody has": Wrong(
        lambda: with_variable("N2P_TOKEN", "hunter2", identify),
        AccessError,
        "not one of this project's",
        "N2P_TOKEN",
        "n2p token new",
    ),
    "a token that is empty": Wrong(
        lambda: with_variable("N2P_TOKEN", " ", identify), AccessError, "the token is empty", "N2P_TOKEN", "unset it"
    ),
    "a role that one does not have": Wrong(
        lambda: (people('roles = {promote = ["somebody else"]}'), promoting("flights", None, False, False)),
        AccessError,
        "does not have the role 'promote'",
        "roles] promote",
        "ask somebody else",
    ),
    "stages that are a list": Wrong(
        lambda: (settings("[tool.n2p]\nstages = []"), read_stages()),
        InputError,
        "a table is needed",
        "[tool.n2p.stages]",
        "production = true",
    ),
    "a stage of two words": Wrong(
        lambda: stages('"a b" = true'), InputError, "'a b' cannot be a stage", "[tool.n2p.stages]", "a lower-case word"
    ),
    "a misspelt stage": Wrong(
        lambda: stages("prodution = true"),
        InputError,
        "'prodution' is nearly production",
        "[tool.n2p.stages]",
        "write production",
    ),
    "a stage that is a number": Wrong(
        lambda: stages("production = 3"), InputError, "stages has 3 for production", "[tool.n2p.stages]", "true, false"
    ),
    "a policy that there is not": Wrong(
        lambda: policy_file(stages('production = "none.toml"')["production"]),
        InputError,
        "there is no policy 'none.toml'",
        "stages.production]",
        "the path of a file",
    ),
    "a stage with a misspelt key": Wrong(
        lambda: stages("production = {aprovals = 1}"),
        InputError,
        "'aprovals', did you mean 'approvals'?",
        "stages.production]",
        "the keys are",
    ),
    "less than no approvals": Wrong(
        lambda: stages("production = {approvals = -1}"),
        InputError,
        "approvals is -1",
        "stages.production]",
        "from 0 on",
    ),
    "approvers of nothing": Wrong(
        lambda: stages('production = {approvers = ["ann"]}'),
        InputError,
        "approvers without approvals asks nobody",
        "stages.production]",
        "approvals = 1",
    ),
    "approvals for a while": Wrong(
        lambda: stages('production = {approvals = 1, expires = "a while"}'),
        InputError,
        "expires is 'a while'",
        "stages.production]",
        '"14 days"',
    ),
    "more approvals than approvers": Wrong(
        lambda: stages('production = {approvals = 2, approvers = ["ann"]}'),
        InputError,
        "production asks for 2 approvals, and has 1 approvers",
        "stages.production] approvals",
        "name more approvers",
    ),
    "a stage that asks for tokens": Wrong(
        lambda: (stages('production = {identity = "token"}'), require_identity(identify(), stage_rules("production"))),
        AccessError,
        "production asks for a token",
        "N2P_TOKEN",
        "n2p token new",
    ),
    "gates that are half required": Wrong(
        lambda: with_variable("N2P_REQUIRE_GATE", "maybe", lambda: stage_policy("production")),
        InputError,
        "N2P_REQUIRE_GATE is 'maybe'",
        "environment",
        "0 or 1",
    ),
    "an unsealed promotion without a reason": Wrong(
        lambda: promoting("flights", None, True, False),
        InputError,
        "a promotion without a seal needs a reason",
        "--unsealed",
        "--reason TEXT",
    ),
    "a card that is a number": Wrong(
        lambda: card("card = 3"),
        InputError,
        "[tool.n2p.card] is not a table",
        "[tool.n2p.card]",
        "below [tool.n2p.card]",
    ),
    "a card with its owners": Wrong(
        lambda: card('card = {owners = "ann"}'),
        InputError,
        "'owners' are not a setting of the card",
        "[tool.n2p.card]",
        "[tool.n2p.owners]",
    ),
    "a card with a misspelt setting": Wrong(
        lambda: card('card = {purpse = "x"}'),
        InputError,
        "unknown setting 'purpse'",
        "[tool.n2p.card]",
        "the settings are",
    ),
    "a score that is a number": Wrong(
        lambda: score("score = 3"), InputError, "score is not a table", "[tool.n2p.score]", "[tool.n2p.score.KEY]"
    ),
    "a score of no test": Wrong(
        lambda: score("score = {nothing = {}}"),
        InputError,
        "there is no test 'nothing'",
        "[tool.n2p.score]",
        "the tests are",
    ),
}


def test_secrets_are_not_shown(project: Any) -> None:
    assert "hunter2" not in str(check(PEOPLE["a token that nobody has"]))
    assert "hunter2" not in str(check(PEOPLE["a token in place of its digest"]))
    assert "hunter2" not in str(check(WEBHOOKS["a webhook with its secret"]))
    assert "hunter2" not in str(check(WEBHOOKS["a webhook with a password"]))


def one_of(names: Any) -> str:
    return next(iter(names))


def evidence() -> Any:
    from notebook_to_prod.release.score import KEYS

    return score(f'score = {{{one_of(KEYS)} = {{by = "Ada"}}}}')


def text_of_card() -> Any:
    from notebook_to_prod.release.records import TEXTS

    return card(f"card = {{{one_of(TEXTS)} = 3}}")


URL = 'url = "https://hooks.example.com"\n'
SECRET = "whsec_" + "A" * 32


WEBHOOKS = {
    "webhooks that are a table": Wrong(
        lambda: (settings("[tool.n2p]\nwebhooks = {}"), read_webhooks()),
        InputError,
        "webhooks is not a list",
        "[[tool.n2p.webhooks]]",
        "begin each webhook",
    ),
    "two webhooks of one name": Wrong(
        lambda: hooks(f'{URL}name = "a"\n[[tool.n2p.webhooks]]\n{URL}name = "a"'),
        InputError,
        "two webhooks have the same name",
        "number 2, name",
        "a name of its own",
    ),
    "a webhook with a misspelt key": Wrong(
        lambda: hooks(f"{URL}tiemout = 3"), InputError, "no key 'tiemout'", "number 1, tiemout", "the keys are"
    ),
    "a webhook that waits for a while": Wrong(
        lambda: hooks(f'{URL}timeout = "a while"'),
        InputError,
        "timeout is 'a while'",
        "number 1, timeout",
        "a number above 0",
    ),
    "a webhook of events in a text": Wrong(
        lambda: hooks(f'{URL}events = "promote"'),
        InputError,
        "events is 'promote'",
        "number 1, events",
        "a list of texts",
    ),
    "a webhook that goes nowhere": Wrong(
        lambda: hooks('name = "a"'), InputError, "a webhook has no url", "number 1, url", "write url ="
    ),
    "a webhook with its secret": Wrong(
        lambda: hooks(f'{URL}secret = "hunter2"'),
        InputError,
        "secret is not the name of a variable",
        "number 1, secret",
        "no place for a secret",
    ),
    "a webhook by mail": Wrong(
        lambda: hooks('url = "mailto:ann@example.com"'),
        InputError,
        "not one of http or https",
        "number 1, url",
        "https://HOST/PATH",
    ),
    "a webhook with a password": Wrong(
        lambda: hooks('url = "https://ann:hunter2@x.example"'),
        InputError,
        "holds a password",
        "number 1, url",
        "$PASSWORD",
    ),
    "a webhook of no event": Wrong(
        lambda: hooks(f'{URL}events = ["promotion"]'),
        InputError,
        "there is no event 'promotion'",
        "number 1, events",
        "the events are",
    ),
    "a webhook whose variable is no address": Wrong(
        lambda: with_variable("N2P_TEST_URL", "nowhere", lambda: hooks('url = "$N2P_TEST_URL"')[0].address()),
        InputError,
        "not one of http or https",
        "webhooks",
        "https://HOST/PATH",
    ),
    "a secret that is no base64": Wrong(
        lambda: verify_webhook({}, b"", "hunter2"),
        InputError,
        "not 24 to 64 bytes in base64",
        "secret",
        "n2p events secret",
    ),
    "a request that nobody signed": Wrong(
        lambda: verify_webhook({}, b"", SECRET),
        InputError,
        "the signature of the request is not valid",
        "webhook-signature",
        "answer 401",
    ),
    "a request that is late": Wrong(lambda: late(), InputError, "s ago", "webhook-timestamp", "answer 401"),
    "a place that is damaged": Wrong(
        lambda: place("{"), StoreError, "the place of a webhook is damaged", "", "delete the file"
    ),
    "events given up that are damaged": Wrong(
        lambda: (written(str(dead_path(open_store())), "{\n"), read_dead(open_store())),
        StoreError,
        "given up is damaged",
        "line 1",
        "delete the line",
    ),
    "an event that was not given up": Wrong(
        lambda: send_again(open_store(), [], "abc"),
        NotFoundError,
        "no event that was given up has the id 'abc'",
        "",
        "n2p events list --dead",
    ),
}


def late() -> Any:
    body = b"{}"
    return verify_webhook(
        signed_headers("msg_1", body, base64.b64decode(SECRET.removeprefix("whsec_")), 1000.0),
        body,
        SECRET,
        moment=2000.0,
    )


def place(content: str) -> Any:
    from notebook_to_prod.release.outbox import read_place

    hook = hooks(URL)[0]
    written(f".n2p/events/{hook.key}.json", content)
    return read_place(open_store(), hook)


SCHEMA = Schema("dataframe", (Column("distance", "float64", "number"),))

VERSIONS = {
    "a name with a slash": Wrong(
        lambda: check_name("a/b"), InputError, "'a/b' cannot be a model's name", "NAME", "use letters"
    ),
    "an alias called latest": Wrong(
        lambda: check_alias("latest"), InputError, "'latest' cannot be an alias", "--to", "a word such as"
    ),
    "a reference without a version": Wrong(
        lambda: parse_reference("flights"),
        InputError,
        "'flights' does not say which version",
        "NAME@VERSION",
        "flights@production",
    ),
    "a reference without a name": Wrong(
        lambda: parse_reference("@"), InputError, "'@' does not say which version", "NAME@VERSION", "NAME@production"
    ),
    "a time of words": Wrong(
        lambda: parse_time("yesterday"), InputError, "'yesterday' is not a time", "--at", "2026-03-01"
    ),
    "a model that there is not": Wrong(
        lambda: Registry(open_store()).resolve("flights@production"),
        NotFoundError,
        "there is no model 'flights'",
        "flights@production",
        "n2p register RUN",
    ),
    "a version that there is not": Wrong(
        lambda: Registry(open_store()).resolve("flights@3"),
        NotFoundError,
        "there is no version 3 of 'flights'",
        "flights",
        "n2p register RUN",
    ),
    "the history of no model": Wrong(
        lambda: Registry(open_store()).history("flights"),
        NotFoundError,
        "there is no model 'flights'",
        ".n2p",
        "n2p register RUN",
    ),
    "a history that is damaged": Wrong(
        lambda: parse_events("flights", {"n2p.event.1": "{"}),
        StoreError,
        "the history of the model is damaged",
        "tag n2p.event.1 of 'flights'",
        "delete the tag",
    ),
    "an audit log that is damaged": Wrong(
        lambda: (written(".n2p/audit.jsonl", "{}\n"), list(read_events(open_store()))),
        StoreError,
        "the audit log is damaged",
        "audit.jsonl",
        "",
    ),
    "a rollout that is damaged": Wrong(
        lambda: parse_rollout("flights", "[]"),
        StoreError,
        "the rollout of the model is damaged",
        "of 'flights'",
        "n2p history",
    ),
    "steps that fall": Wrong(
        lambda: parse_steps("50,10"), InputError, "'50,10' are no steps", "--steps", "rising percents"
    ),
    "steps of nothing": Wrong(
        lambda: parse_steps("nan"), InputError, "'nan' are no steps", "--steps", "rising percents"
    ),
    "a challenger without its part": Wrong(
        lambda: parse_challenger("3"), InputError, "'3' is no version with its part", "--also", "3:20%"
    ),
    "a period of words": Wrong(
        lambda: parse_period("a while", "--every"), InputError, "'a while' is no time", "--every", "write"
    ),
    "one store under two names": Wrong(
        lambda: promote_between(Store(Path("x"), "a"), Store(Path("x"), "b"), "flights"),
        InputError,
        "a and b are the same store",
        "x",
        "a home of its own",
    ),
    "a table without a column": Wrong(
        lambda: restored_table(SCHEMA, pd.DataFrame({"x": [1.0]})),
        DataError,
        "the column 'distance' is missing",
        "predict",
        "give the columns distance",
    ),
    "a matrix of other columns": Wrong(
        lambda: restored_table(SCHEMA, [[1.0, 2.0]]),
        DataError,
        "the table has 2 columns",
        "predict",
        "give the columns distance",
    ),
    "a test without evidence": Wrong(evidence, InputError, "needs `by` and `evidence`", "[tool.n2p.score]", "by ="),
    "a card of numbers": Wrong(text_of_card, InputError, "needs a text", "[tool.n2p.card]", "write"),
}


@pytest.mark.usefixtures("project")
@each_of(PEOPLE, WEBHOOKS, VERSIONS)
def test_it_is_refused(wrong: Wrong) -> None:
    check(wrong)
