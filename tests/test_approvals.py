"""Who may do what: identity, roles, owners, and approvals of n of m that hold when people do everything at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from notebooks import UNSEALED, Project, make_project

from notebook_to_prod.errors import AccessError, InputError, NotFoundError, VerdictError
from notebook_to_prod.package.tokens import new_token
from notebook_to_prod.project import Store
from notebook_to_prod.release.approvals import count_approvals
from notebook_to_prod.release.audit import current_user, read_events
from notebook_to_prod.release.card import model_card
from notebook_to_prod.release.gated import stage_policy
from notebook_to_prod.release.people import acting, identify, read_people, who_is_told
from notebook_to_prod.release.records import gather
from notebook_to_prod.release.registry import Registry, share_event
from notebook_to_prod.release.score import ml_test_score
from notebook_to_prod.release.stages import policy_file, read_stages, stage_rules
from notebook_to_prod.release.views import find_live, verify_audit
from notebook_to_prod.scaffold.checkup import check_settings
from notebook_to_prod.scaffold.findings import FIX
from notebook_to_prod.train.record import find_run

WORKER = Path(__file__).with_name("approve_worker.py")
USERS = ("ann", "bob", "cat", "dan", "eve", "sue")
TOKENS = {user: new_token() for user in USERS}
PEOPLE = "[tool.n2p.tokens]\n" + "".join(f'{user} = "{digest}"\n' for user, (_, digest) in TOKENS.items())
PEOPLE += """
[tool.n2p.teams]
risk = ["cat", "dan"]
[tool.n2p.owners]
"*" = ["ann"]
[tool.n2p.roles]
override = ["eve"]
[tool.n2p.alerts]
drift = ["@owners", "#ml-alerts"]
request = ["@risk"]
"*" = ["ops@example.com"]
"""
STAGE = """
[tool.n2p.stages.production]
approvals = 2
approvers = ["@owners", "bob", "@risk"]
expires = "14 days"
"""


@pytest.fixture(scope="module")
def trained(ridges: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with small runs."""
    return ridges.copy_to(make_project(tmp_path_factory.mktemp("approvals") / "project"))


@pytest.fixture(scope="module")
def registry(trained: Project) -> Registry:
    return Registry(Store(trained.home))


class Team:
    """The people of the project, who take turns in this process."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.path, self.patch = folder / "pyproject.toml", patch
        self.rules()

    def rules(self, stage: str = STAGE, people: str = PEOPLE) -> None:
        self.path.write_text(people + stage)

    def be(self, user: str | None) -> None:
        """Go on as that person, known by a token, or as who the operating system says."""
        if user is None:
            self.patch.delenv("N2P_TOKEN", raising=False)
        else:
            self.patch.setenv("N2P_TOKEN", TOKENS[user][0])


@pytest.fixture
def team(trained: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Team]:
    monkeypatch.chdir(trained.folder)
    yield Team(trained.folder, monkeypatch)
    (trained.folder / "pyproject.toml").write_text("")


def register(registry: Registry, name: str, count: int = 1) -> None:
    for path in sorted(registry.store.runs.iterdir())[:count]:
        registry.register(find_run(registry.store, path.name), name)


def worker(project: Project, **task: Any) -> Any:
    """What `approve_worker.py` found."""
    command, environment = [sys.executable, str(WORKER), json.dumps(task)], project.environment({}) | UNSEALED
    done = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# The configuration


@pytest.mark.parametrize(
    ("text", "what", "remedy"),
    [
        ("[tool.n2p.roles]\npromotes = ['ann']", "did you mean 'promote'", "the keys are register"),
        ("[tool.n2p.roles]\npromote = ['@rsk']", "no team '@rsk', did you mean '@risk'", "tool.n2p.teams"),
        ("[tool.n2p.roles]\npromote = 'ann'", "'promote' needs a list", 'promote = \\["ann"'),
        ("[tool.n2p.stages]\nproducton = true", "nearly production", "write production"),
        ("[tool.n2p.role]\npromote = ['ann']", "did you mean 'roles'", "the settings are"),
        ("[tool.n2p]\nowners = ['ann']", "a table is needed", "flights ="),
        ("[tool.n2p.owners]\nflights = ['@owners']", "no team '@owners'", "@risk"),
        ("[tool.n2p.owners]\nflights = ['']", "'flights' needs a list", "ann"),
        ("[tool.n2p.alerts]\ndrfit = ['ann']", "did you mean 'drift'", "performance"),
        ("[tool.n2p.tokens]\nann = 'secret'", "'ann' needs the digest", "n2p token new ann"),
        ("[tool.n2p.tokens]\nann = 'n2p_abc'", "token of 'ann' itself", "make another"),
        (f"[tool.n2p.tokens]\nann = 'sha256:{'0' * 64}'\nbob = ['sha256:{'0' * 64}']", "the same token", "bob"),
        ("[tool.n2p.stages]\nProduction = true", "'Production' cannot be a stage", "lower-case"),
        ("[tool.n2p.stages]\nproduction = 2", "stages has 2 for production", "or a table"),
        ("[tool.n2p.stages.production]\napproval = 2", "unknown key 'approval'", "approvals"),
        ("[tool.n2p.stages.production]\napprovals = true", "approvals is True", "a number"),
        ("[tool.n2p.stages.production]\napprovals = -1", "approvals is -1", "a number"),
        ("[tool.n2p.stages.production]\ngates = 1", "gates is 1", "true, false or the path"),
        ("[tool.n2p.stages.production]\nidentity = 'face'", "identity is 'face'", "token"),
        ("[tool.n2p.stages.production]\napprovals = 1\nexpires = '0 days'", "expires is '0 days'", "14 days"),
        ("[tool.n2p.stages.production]\napprovals = 1\nexpires = 14", "expires is 14", "14 days"),
        ("[tool.n2p.stages.production]\napprovers = ['ann']", "approvers without approvals", "approvals = 1"),
        ("[tool.n2p.stages.production]\napprovals = 1\napprovers = ['@rsk']", "no team '@rsk'", "teams"),
        ("[tool.n2p.stages.production]\napprovals = 3\napprovers = ['@risk']", "3 approvals, and has 2", "fewer"),
        (
            "[tool.n2p.owners]\nflights = ['ann']\n[tool.n2p.stages.production]\napprovals = 2\napprovers = ['@owners']",
            "has 1 approvers of 'flights': ann",
            "name more",
        ),
        (
            "[tool.n2p.roles]\napprove = ['cat']\n[tool.n2p.stages.production]\napprovals = 2\napprovers = ['@risk']",
            "2 approvals, and has 1 approvers: cat",
            "role `approve`",
        ),
    ],
)
def test_a_wrong_word_is_named_with_its_remedy(text: str, what: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(f'{text}\n[tool.n2p.teams]\nrisk = ["cat", "dan"]\n')
    with pytest.raises(InputError, match=what) as caught:
        read_stages(tmp_path)
    assert caught.match(remedy) and "pyproject.toml, [tool.n2p" in (caught.value.where or "")
    assert "n2p_abc" not in str(caught.value), "a token is not repeated"


def test_a_line_still_means_what_it_meant(tmp_path: Path) -> None:
    assert read_stages(tmp_path)["production"].gates is True
    (tmp_path / "pyproject.toml").write_text('[tool.n2p.stages]\nproduction = false\ncanary = "strict.toml"\n')
    with pytest.raises(InputError, match=r"there is no policy 'strict\.toml'"):
        policy_file(read_stages(tmp_path)["canary"], tmp_path)
    (tmp_path / "strict.toml").write_text("")
    assert policy_file(read_stages(tmp_path)["canary"], tmp_path) == tmp_path / "strict.toml"
    assert {name: each.gates for name, each in read_stages(tmp_path).items()} == {
        "production": False,
        "canary": "strict.toml",
    }
    (tmp_path / "pyproject.toml").write_text("[tool.n2p.stages.production]\napprovals = 1\n[tool.n2p.stages.canary]\n")
    assert {name: each.gates for name, each in read_stages(tmp_path).items()} == {"production": True, "canary": False}


def test_a_policy_that_is_lost_stops_its_own_stage_only(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("N2P_REQUIRE_GATE", raising=False)
    (project.folder / "pyproject.toml").write_text('[tool.n2p.stages]\ncanary = "lost.toml"\n')
    assert stage_policy("production") is not None and stage_policy("staging") is None
    with pytest.raises(InputError, match="there is no policy"):
        stage_policy("canary")
    told = [each for each in check_settings(project.folder, deep=False) if each.state == FIX]
    assert ["there is no policy 'lost.toml'" in each.what for each in told] == [True]


def test_who_is_told(team: Team) -> None:
    assert who_is_told("flights", "drift") == ("ann", "#ml-alerts", "ops@example.com")
    assert who_is_told("flights", "request") == ("cat", "dan", "ops@example.com")
    assert who_is_told("flights", "promote") == ("ops@example.com",)
    with pytest.raises(InputError, match="no alert 'promoted', did you mean 'promote'"):
        who_is_told("flights", "promoted")


# Identity and roles


def test_a_token_says_who_somebody_is_or_nothing_does(trained: Project, registry: Registry, team: Team) -> None:
    assert (identify().user, identify().known_by) == (current_user(), "os")
    team.be("bob")
    assert (identify().user, identify().known_by) == ("bob", "token")
    register(registry, "named")
    assert [(each.user, each.identity) for each in registry.history("named")] == [("bob", "token")]
    before = len(list(read_events(registry.store)))
    for wrong, what in (("n2p_unknown", "not one of"), ("", "empty"), (" ", "empty"), (TOKENS["bob"][1], "not one of")):
        team.patch.setenv("N2P_TOKEN", wrong)
        with pytest.raises(AccessError, match=what):
            registry.promote("named", 1, "canary")
    done = trained.n2p("promote", "named", "1", "--to", "canary", "--json", N2P_TOKEN="")
    assert (done.code, done.error["type"]) == (2, "AccessError") and "empty" in done.error["what"]
    assert len(list(read_events(registry.store))) == before, "nobody is let in under the system's name"
    done = trained.n2p("promote", "named", "1", "--to", "canary", "--json", N2P_TOKEN=TOKENS["cat"][0] + "\n")
    assert (done.code, done.json["user"], done.json["identity"]) == (0, "cat", "token")
    assert "by cat (token)" in trained.n2p("history", "named").stdout


def test_a_token_is_printed_once_with_the_line_that_lets_it_in(trained: Project, team: Team) -> None:
    made = trained.n2p("token", "new", "zoe@example.com", "--json").json
    assert made["token"] not in team.path.read_text() and made["token"] not in made["line"]
    team.rules(people=PEOPLE.replace("[tool.n2p.tokens]\n", f"[tool.n2p.tokens]\n{made['line']}\n"))
    team.patch.setenv("N2P_TOKEN", made["token"])
    assert identify().user == "zoe@example.com"
    again = trained.n2p("token", "new", "zoe@example.com", "--json").json
    assert again["token"] != made["token"] and f'["{made["digest"]}", "{again["digest"]}"]' in again["line"]
    assert trained.n2p("token", "new", "@risk").code == 2


def test_roles_hold_in_python_and_on_the_command_line(trained: Project, registry: Registry, team: Team) -> None:
    roles = '[tool.n2p.roles]\nregister = ["@owners"]\npromote = ["@risk"]\narchive = []\n'
    team.rules("", PEOPLE.replace("[tool.n2p.roles]\n", roles))
    team.be("bob")
    with pytest.raises(
        AccessError, match=r"bob \(known by a token\) does not have the role 'register' for 'held'"
    ) as no:
        register(registry, "held")
    assert (
        no.value.exit_code == 2 and no.value.remedy == "ask ann" and "[tool.n2p.roles] register" in str(no.value.where)
    )
    team.be("ann")
    register(registry, "held", 2)
    for forbidden in (
        lambda: registry.promote("held", 1),
        lambda: registry.rollback("held"),
        lambda: registry.archive("held", 1),
        lambda: share_event(registry, "override", "held", 1, reason="why"),
        lambda: share_event(registry, "override", "", 0, reason="of a bundle without a name"),
    ):
        with pytest.raises(AccessError, match="does not have the role"):
            forbidden()
    refused = trained.n2p("promote", "held", "1", "--json", N2P_TOKEN=TOKENS["ann"][0])
    assert (refused.code, refused.error["type"], refused.error["remedy"]) == (2, "AccessError", "ask cat, dan")
    team.be("cat")
    with pytest.raises(AccessError, match="role 'override'"):
        registry.promote("held", 1, override=True, reason="why")
    assert registry.promote("held", 1) and registry.promote("held", 2) and registry.rollback("held").user == "cat"
    team.be("eve")
    assert share_event(registry, "override", "held", 1, reason="why").user == "eve"
    assert acting("revoke", "held").user == "eve"


# Approvals


def test_n_of_m_on_the_command_line(trained: Project, registry: Registry, team: Team) -> None:
    team.be("ann")
    register(registry, "flights")
    as_user = lambda user, *words: trained.n2p(*words, N2P_TOKEN=TOKENS[user][0])  # noqa: E731
    refused = as_user("sue", "promote", "flights", "1", "--reason", "better", "--json")
    assert (refused.code, refused.error["type"]) == (1, "VerdictError")
    assert refused.error["what"] == "production asks for 2 approvals of flights@1, and there are 0 of 2"
    assert refused.error["remedy"] == "bob, cat, dan may still approve: n2p approve flights@1 --to production"
    no = as_user("ann", "approve", "flights@1", "--json")
    assert (no.code, no.error["type"]) == (2, "AccessError")
    assert "ann (known by a token) registered it" in no.error["what"] and no.error["remedy"] == "ask bob, cat, dan"
    given = as_user("bob", "approve", "flights@1", "--reason", "read the report", "--json").json
    assert given["changed"] and (given["user"], given["identity"]) == ("bob", "token")
    assert given["approvals"]["given"] == ["bob"] and given["approvals"]["may"] == ["cat", "dan"]
    assert "counts once" in as_user("bob", "approve", "flights@1").stdout
    shown = as_user("sue", "show", "flights@1").stdout
    assert "production: 1 of 2: bob; until " in shown and "cat, dan may still approve" in shown
    team.be("cat")
    assert registry.approve("flights", 1)
    assert as_user("cat", "approve", "flights@1", "--revoke", "--json").json["approvals"]["given"] == ["bob"]
    team.be("dan")
    assert registry.approve("flights", 1)
    done = as_user("sue", "promote", "flights", "1", "--json").json
    assert (done["changed"], done["approvals"], done["gates"]) == (True, "2 of 2: bob, dan", "not asked")
    lines = as_user("sue", "history", "flights").stdout
    assert "for production by bob (token) read the report" in lines and "approvals 2 of 2: bob, dan" in lines
    assert as_user("bob", "approve", "flights@production").code == 2

    events = registry.history("flights")
    assert [each.action for each in events] == [
        "register",
        "request",
        "approve",
        "approve",
        "revoke",
        "approve",
        "promote",
    ]
    assert {each.bundle for each in events} == {events[0].bundle} and len({each.rules for each in events[1:]}) == 1
    assert find_live(registry, "flights") == events[-1] and verify_audit(registry).damage == []


def test_who_may_not_approve(registry: Registry, team: Team) -> None:
    team.be("ann")
    register(registry, "refused")
    assert registry.revoke("refused", 1) is None, "there is nothing to take back"
    team.be("eve")
    with pytest.raises(AccessError, match=r"eve .* is not an approver of production for 'refused'") as caught:
        registry.approve("refused", 1)
    assert caught.value.remedy == "ask ann, bob, cat, dan"
    team.be("bob")
    with pytest.raises(InputError, match="canary asks for no approvals") as nothing:
        registry.approve("refused", 1, "canary")
    assert nothing.value.remedy == "the stages that ask are production"
    with pytest.raises(NotFoundError):
        registry.approve("refused", 2)
    assert registry.approve("refused", 1) and registry.approve("refused", 1) is None
    with pytest.raises(VerdictError, match="without your own there are 0 of 2"):
        registry.promote("refused", 1)
    assert [each.action for each in registry.history("refused")] == ["register", "approve"], "nobody has asked"
    team.be("sue")
    for _ in range(2):
        with pytest.raises(VerdictError, match="there is 1 of 2: bob") as few:
            registry.promote("refused", 1)
    assert few.value.exit_code == 1 and [each.action for each in registry.history("refused")][2:] == ["request"]


def test_card_and_score_tell_of_approvals(trained: Project, registry: Registry, team: Team) -> None:
    team.be("eve")
    register(registry, "told")
    version = registry.read("told", 1)
    tell = lambda: gather(registry, version, trained.folder)  # noqa: E731
    (empty,) = [each.to_dict() for each in model_card(tell()).sections if each.title == "Owners and approvals"]
    assert any("approvals" in each for each in empty["missing"])
    for user in ("bob", "cat"):
        team.be(user)
        registry.approve("told", 1, reason="fine")
    registry.revoke("told", 1)
    (people,) = [each.to_dict() for each in model_card(tell()).sections if each.title == "Owners and approvals"]
    who = {row[""]: row["who"] for row in people["tables"][0]}
    assert (who["owners"], who["approvers for production"]) == ("ann", "2 of ann, bob, cat, dan")
    assert (who["has the role override"], who["is told of everything"]) == ("eve", "ops@example.com")
    assert who["is told of drift"] == "ann, #ml-alerts" and people["text"][0].startswith("production: 1 of 2: bob;")
    assert [(row["by"], row["known by"], row["why"]) for row in people["tables"][1]] == [("bob", "a token", "fine")]
    assert people["missing"] == []
    (review,) = [each for each in ml_test_score(tell(), ["approve"]).tests if each.key == "review"]
    assert review.points == 1.0 and review.evidence[0].what == "approved for production, by bob"


def test_what_an_approval_does_not_hold_for(registry: Registry, team: Team) -> None:
    team.be("ann")
    register(registry, "bound", 2)
    for user in ("bob", "cat"):
        team.be(user)
        assert registry.approve("bound", 1)
    assert registry.approvals("bound", 1).is_complete and registry.approvals("bound", 2).given == ()
    digest = registry.read("bound", 1).bundle
    other = registry.read("bound", 2).bundle
    registry._client.set_model_version_tag("bound", "1", "n2p.bundle", other)
    swapped = registry.approvals("bound", 1)
    assert swapped.given == () and all("another bundle" in why for _, why in swapped.void)
    registry._client.set_model_version_tag("bound", "1", "n2p.bundle", digest)

    team.rules(people=PEOPLE.replace('risk = ["cat", "dan"]', 'risk = ["dan"]'))
    assert registry.approvals("bound", 1).void == (("cat", "cat is not an approver any more"),)
    team.be("sue")
    with pytest.raises(VerdictError, match="there is 1 of 2: bob"):
        registry.promote("bound", 1)
    team.rules()
    later = (datetime.fromisoformat(registry.history("bound")[-1].time) + timedelta(days=14, minutes=1)).isoformat()
    expired = count_approvals(
        registry.history("bound"), stage_rules("production"), read_people(), "bound", 1, digest, moment=later
    )
    assert expired.given == () and all("expired" in why for _, why in expired.void)

    team.rules(STAGE + 'identity = "token"\n')
    assert registry.approvals("bound", 1).is_complete
    team.be(None)
    for act in (registry.approve, registry.promote, registry.revoke):
        with pytest.raises(AccessError, match="asks for a token"):
            act("bound", 1)
    with pytest.raises(AccessError, match="asks for a token"):
        registry.rollback("bound")
    nameless = replace(registry.history("bound")[2], identity="os")
    counted = count_approvals([nameless], stage_rules("production"), read_people(), "bound", 1, digest)
    assert counted.void == ((nameless.user, "it was given without a token"),)

    team.be("bob")
    registry.archive("bound", 2)
    with pytest.raises(InputError, match="archived"):
        registry.approve("bound", 2)


def test_an_override_passes_only_by_those_who_are_named(registry: Registry, team: Team) -> None:
    team.be("ann")
    register(registry, "urgent", 2)
    team.be("bob")
    registry.approve("urgent", 1)
    nobody = PEOPLE.replace('[tool.n2p.roles]\noverride = ["eve"]\n', "")
    team.rules(people=nobody)
    team.be("sue")
    with pytest.raises(AccessError, match="may not go past missing approvals"):
        registry.promote("urgent", 1, override=True, reason="now")
    team.rules()
    team.be("eve")
    event = registry.promote("urgent", 1, override=True, reason="the old one is down")
    assert event and (event.approvals, event.user) == ("overridden, 1 of 2: bob", "eve")
    assert [each.action for each in registry.history("urgent")] == ["register", "register", "approve", "promote"]


def test_a_rollback_asks_nobody_and_what_it_left_is_approved_anew(registry: Registry, team: Team) -> None:
    team.be("ann")
    register(registry, "back", 2)
    for version in (1, 2):
        for user in ("bob", "cat"):
            team.be(user)
            registry.approve("back", version)
        team.be("sue")
        assert registry.promote("back", version)
    event = registry.rollback("back", reason="late flights missed")
    assert (event.version, event.approvals, event.user) == (1, "not asked", "sue")
    assert registry.approvals("back", 2).given == () and registry.approvals("back", 1).is_complete
    team.be("dan")
    with pytest.raises(VerdictError, match="0 of 2"):
        registry.promote("back", 2)
    asked = registry.history("back")[-1]
    assert (asked.action, asked.user, asked.stage, asked.alias) == ("request", "dan", "production", None)
    with pytest.raises(AccessError, match="asked for it, so somebody else has to approve"):
        registry.approve("back", 2)


def test_an_approver_rejects_a_request_with_a_reason(trained: Project, registry: Registry, team: Team) -> None:
    team.rules(STAGE)
    team.be("sue")
    register(registry, "unwanted")
    with pytest.raises(VerdictError, match="0 of 2"):
        registry.promote("unwanted", 1)
    with pytest.raises(InputError, match="needs a reason"):
        registry.reject("unwanted", 1)
    with pytest.raises(AccessError, match=r"sue .*is not an approver"):
        registry.reject("unwanted", 1, reason="I changed my mind")
    for user in ("ann", "bob"):
        team.be(user)
        registry.approve("unwanted", 1)
    token = {"N2P_TOKEN": TOKENS["ann"][0]}
    done = trained.n2p("approve", "unwanted@1", "--reject", "--reason", "the slices of bob are missing", **token)
    assert done.code == 0 and done.stdout.startswith("rejected"), done
    found = registry.approvals("unwanted", 1)
    assert found.given == () and found.requested is None
    team.be("dan")
    with pytest.raises(VerdictError, match="0 of 2"):
        registry.promote("unwanted", 1)
    assert dict(registry.approvals("unwanted", 1).apart)["sue"] == "registered it"
    registry.withdraw("unwanted", 1)
    again = trained.n2p("approve", "unwanted@1", "--reject", "--reason", "x", **token)
    assert again.stdout.startswith("rejected"), again
    again = trained.n2p("approve", "unwanted@1", "--reject", "--reason", "y", **token)
    assert "it stands rejected already" in again.stdout
    refused, unasked = (event for event in registry.history("unwanted") if event.action == "reject")
    assert (refused.reason, unasked.reason) == ("the slices of bob are missing", "x")
    assert verify_audit(registry).damage == []


def test_a_rejection_of_what_nobody_has_asked_for_stands_until_somebody_asks(
    trained: Project, registry: Registry, team: Team
) -> None:
    team.rules(STAGE)
    team.be("sue")
    register(registry, "unasked")
    for user in ("ann", "bob"):
        team.be(user)
        registry.approve("unasked", 1)
    assert registry.approvals("unasked", 1).is_complete
    event = registry.reject("unasked", 1, reason="the labels are of another year")
    assert event is not None
    assert event.action == "reject"
    assert registry.approvals("unasked", 1).given == ()
    team.be("ann")
    with pytest.raises(AccessError, match="bob rejected it: the labels are of another year") as caught:
        registry.approve("unasked", 1)
    assert caught.value.remedy == "somebody has to ask for it anew: n2p promote unasked 1 --to production"
    team.be("dan")
    with pytest.raises(VerdictError, match="0 of 2"):
        registry.promote("unasked", 1)
    for user in ("ann", "bob"):
        team.be(user)
        registry.approve("unasked", 1)
    team.be("dan")
    assert registry.promote("unasked", 1).approvals not in (None, "not asked")
    with pytest.raises(InputError, match="asks for no approvals"):
        registry.reject("unasked", 1, to="canary", reason="not there either")


def test_a_request_leaves_enough_who_may_approve_and_can_be_withdrawn(
    trained: Project, registry: Registry, team: Team
) -> None:
    team.rules(STAGE.replace("approvals = 2", "approvals = 1").replace('"@owners", "bob", "@risk"', '"ann", "bob"'))
    team.be("ann")
    register(registry, "narrow")
    team.be("bob")
    with pytest.raises(VerdictError, match=r"0 can be had if bob asks for it: bob asked for it, ann registered") as no:
        registry.promote("narrow", 1)
    assert "who is no approver" in (no.value.remedy or "")
    assert [each.action for each in registry.history("narrow")] == ["register"], "what could not be granted"

    team.rules(STAGE.replace("approvals = 2", "approvals = 1").replace('"@owners", "bob", "@risk"', '"bob", "cat"'))
    with pytest.raises(VerdictError, match="0 of 1"):
        registry.promote("narrow", 1)
    team.be("sue")
    with pytest.raises(AccessError, match=r"bob asked for it, not sue"):
        registry.withdraw("narrow", 1)
    team.rules(STAGE.replace("approvals = 2", "approvals = 1").replace('"@owners", "bob", "@risk"', '"bob"'))
    with pytest.raises(VerdictError, match="0 of 1") as dead:
        registry.promote("narrow", 1)
    assert "let bob withdraw the request" in (dead.value.remedy or "")
    token = {"N2P_TOKEN": TOKENS["bob"][0]}
    done = trained.n2p("approve", "narrow@1", "--withdraw", "--reason", "nobody else is left", **token)
    assert done.code == 0 and done.stdout.startswith("withdrawn")
    assert "there was no request" in trained.n2p("approve", "narrow@1", "--withdraw", **token).stdout
    assert trained.n2p("approve", "narrow@1", "--withdraw", "--revoke", **token).code == 2
    assert trained.n2p("approve", "narrow@1", **token).code == 0
    assert registry.promote("narrow", 1)
    assert [each.action for each in registry.history("narrow")][1:] == ["request", "withdraw", "approve", "promote"]
    assert verify_audit(registry).damage == []


# Many at once, and killed


def test_people_at_once_are_counted_exactly(trained: Project, registry: Registry, team: Team) -> None:
    team.rules(STAGE.replace("approvals = 2", "approvals = 3"))
    team.be("eve")
    register(registry, "crowd")
    tokens = {user: TOKENS[user][0] for user in USERS}
    approvers, movers = [tokens[user] for user in ("ann", "bob", "cat", "dan")], [tokens["sue"], tokens["sue"]]
    told = worker(trained, do="at once", home=str(trained.home), name="crowd", approvers=approvers, movers=movers)
    events = told["events"]
    assert told["sound"] and told["same"] and (told["approved"], told["promoted"]) == (4, 1)
    assert sorted(each["user"] for each in events if each["action"] == "approve") == ["ann", "bob", "cat", "dan"]
    assert sum(each["action"] == "request" for each in events) <= 1
    (at,) = [at for at, each in enumerate(events) if each["action"] == "promote"]
    before = [each["user"] for each in events[:at] if each["action"] == "approve"]
    assert len(before) >= 3 and events[at]["approvals"] == f"{len(before)} of 3: {', '.join(before)}"


def test_an_approval_that_is_killed_is_there_with_its_entry_or_not_at_all(
    trained: Project, registry: Registry, team: Team
) -> None:
    team.be("eve")
    register(registry, "cut")
    told = worker(trained, do="killed", home=str(trained.home), name="cut", token=TOKENS["bob"][0])
    made = {each["step"]: each["given"] for each in told}
    assert made == {
        "write_json": [],
        "set_registered_model_tag": [],
        "_share": ["bob"],
        "delete_registered_model_tag": ["bob"],
        "append_event": ["bob"],
    }
    assert all(each["same"] and each["sound"] for each in told)
    assert not list((registry.store.home / "intents").glob("*"))
