"""Every error has its exit code, crosses process borders whole, and prints what, where and remedy."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest
from notebooks import Project

from notebook_to_prod import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.N2PError)]
EXIT_CODES = {
    errors.VerdictError: 1,
    errors.UnavailableError: 3,
    errors.KernelStartError: 3,
    errors.RunInterruptedError: 130,
}


def make(kind: type[errors.N2PError]) -> errors.N2PError:
    ids = {"run_id": "r-1", "cell_id": "fit"} if issubclass(kind, errors.RunError) else {}
    return kind("ça ne va pas", where="train.ipynb, cell 'fit'", remedy="mend it", **ids)


def test_the_tree_is_whole() -> None:
    assert len(KINDS) == 23
    assert {kind.__name__ for kind in KINDS} == set(errors.__all__)


@pytest.mark.parametrize("kind", KINDS)
def test_exit_code(kind: type[errors.N2PError]) -> None:
    expected = next((code for root, code in EXIT_CODES.items() if issubclass(kind, root)), 2)
    assert make(kind).exit_code == expected == make(kind).to_dict()["exit_code"]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", KINDS)
def test_pickle_keeps_everything(kind: type[errors.N2PError], protocol: int) -> None:
    before = make(kind)
    before.add_note("seen twice")
    after = pickle.loads(pickle.dumps(before, protocol))
    assert type(after) is kind
    assert after.to_dict() == before.to_dict()
    assert (str(after), after.args, after.__notes__) == (str(before), before.args, before.__notes__)


def _raise() -> None:
    raise make(errors.CellError)


def test_crosses_a_process_pool() -> None:
    with ProcessPoolExecutor(1) as pool, pytest.raises(errors.CellError) as caught:
        pool.submit(_raise).result()
    assert caught.value.to_dict() == make(errors.CellError).to_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_to_dict_is_json_with_what_where_remedy(kind: type[errors.N2PError]) -> None:
    printed = json.loads(json.dumps(make(kind).to_dict()))
    assert printed["type"] == kind.__name__
    assert (printed["what"], printed["where"], printed["remedy"]) == (
        "ça ne va pas",
        "train.ipynb, cell 'fit'",
        "mend it",
    )
    assert issubclass(kind, errors.RunError) == ("run_id" in printed) == ("cell_id" in printed)


def test_text_shows_only_what_is_known() -> None:
    assert str(errors.InputError("no such file")) == "no such file"
    assert str(errors.InputError("no such file", where="a.csv")).splitlines() == ["no such file", "  where:  a.csv"]


def test_the_command_ends_with_the_code_and_one_json_object(project: Project) -> None:
    missing = project.run("missing.ipynb")
    assert missing.code == missing.error["exit_code"] == 2
    assert missing.error["type"] == "NotFoundError"
    assert missing.stderr.startswith("error: no such notebook\n  where:  missing.ipynb\n  remedy: ")


@pytest.mark.parametrize(
    "arguments", [["run", "--json"], ["rum", "--json"], ["run", "a.ipynb", "--json", "--timeout", "0"]]
)
def test_wrong_usage_ends_with_2_and_one_json_object(project: Project, arguments: list[str]) -> None:
    wrong = project.n2p(*arguments)
    assert (wrong.code, wrong.error["type"], wrong.error["exit_code"]) == (2, "UsageError", 2)


def test_verbose_shows_the_traceback(project: Project) -> None:
    assert "Traceback" not in project.n2p("run", "missing.ipynb").stderr
    assert "Traceback" in project.n2p("run", "missing.ipynb", "-v").stderr
