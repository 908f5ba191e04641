"""The audit log: whatever is done to it afterwards is found, and what was cut short is finished."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import mlflow_tables
import pytest
from notebooks import Project

from notebook_to_prod.errors import InputError, StoreError
from notebook_to_prod.package import keys
from notebook_to_prod.project import Store
from notebook_to_prod.release.audit import (
    Event,
    Head,
    append_event,
    find_damage,
    head_path,
    read_events,
    read_head,
    record_event,
    store_id,
    verify_log,
)
from notebook_to_prod.release.registry import Registry, share_event
from notebook_to_prod.release.views import export_log, make_checkpoint, verify_audit

mlflow_tables.install()

REASONS = ("first model", "späte Flüge", 'a "quoted" one', "two\nlines", "")


def filled(home: Path, entries: int, old: int = 0) -> Store:
    """A store with a log, its first `old` lines of before there were chains."""
    store = Store(home)
    home.mkdir(parents=True, exist_ok=True)
    event = Event("2026-01-01T00:00:00.000+00:00", "register", "flights", 1, "ada")
    if old:
        lines = [json.dumps(replace(event, version=number).to_dict()) + "\n" for number in range(1, old + 1)]
        store.audit.write_text("".join(lines))
    for number in range(entries):
        append_event(store, replace(event, action="promote", version=number, reason=REASONS[number % len(REASONS)]))
    return store


# Edits: each takes the log and chance, and returns another log


def flip(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def delete(data: bytes, chance: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    del lines[chance.randrange(len(lines))]
    return b"".join(lines)


def swap(data: bytes, chance: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    one, other = chance.sample(range(len(lines)), 2)
    lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines)


def truncate(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def double(data: bytes, chance: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    lines.insert(chance.randrange(len(lines) + 1), chance.choice(lines))
    return b"".join(lines)


def forge(data: bytes, chance: random.Random) -> bytes:
    """An entry told differently, its number and chain kept."""
    lines = data.splitlines(keepends=True)
    at = chance.randrange(len(lines))
    lines[at] = (json.dumps({**json.loads(lines[at]), "user": "nobody"}) + "\n").encode()
    return b"".join(lines)


EDITS = (flip, delete, swap, truncate, double, forge)


@pytest.mark.parametrize("old", [0, 7])
def test_a_thousand_edits_are_all_found(old: int, tmp_path: Path) -> None:
    store, chance = filled(tmp_path / "store", 30, old), random.Random(old)
    data, head = store.audit.read_bytes(), read_head(store)
    assert find_damage(data, head) == [] and head and head.sequence == 30 + old
    for number in range(1000):
        edit = EDITS[number % len(EDITS)]
        edited = edit(data, chance)
        assert edited != data
        found = find_damage(edited, head)
        assert found, (edit.__name__, number)
        first = next(at for at, pair in enumerate(zip(data, edited, strict=False)) if pair[0] != pair[1]) if (
            edited[: len(data)] != data[: len(edited)]
        ) else min(len(data), len(edited))  # fmt: skip
        line = data[:first].count(b"\n") + 1
        assert min(each.line for each in found) <= max(line + 1, old + 2 if old else 0), (edit.__name__, line, found)


def test_every_edit_of_the_head_is_found(tmp_path: Path) -> None:
    store = filled(tmp_path / "store", 5)
    text, chance = head_path(store).read_bytes(), random.Random(1)
    content = json.loads(text)
    for number in range(200):
        edited = (flip, truncate)[number % 2](text, chance)
        head_path(store).write_bytes(edited)
        try:
            same = json.loads(edited) == content
        except ValueError:
            same = False
        assert same or verify_log(store), edited
    head_path(store).unlink()
    assert [each.line for each in verify_log(store)] == [0]


# What stays visible


@pytest.mark.parametrize(
    "harm",
    [
        lambda store: store.audit.write_bytes(delete(store.audit.read_bytes(), random.Random(3))),
        lambda store: store.audit.write_bytes(truncate(store.audit.read_bytes(), random.Random(3))),
        lambda store: store.audit.write_bytes(b""),
        lambda store: store.audit.unlink(),
        lambda store: head_path(store).unlink(),
        lambda store: head_path(store).write_text("{"),
        lambda store: store.audit.write_bytes(double(store.audit.read_bytes(), random.Random(3))),
    ],
)
def test_damage_does_not_stop_a_change_and_stays_visible_after_it(
    harm: Callable[[Store], None], tmp_path: Path
) -> None:
    store = filled(tmp_path / "store", 6)
    harm(store)
    assert verify_log(store)
    for version in (7, 8):
        record_event(store, "promote", "flights", version)
    assert verify_log(store)
    assert store.audit.read_text().count('"version": 8') >= 1


# Killed while appending


def test_an_append_that_was_cut_short_at_any_byte_is_finished(tmp_path: Path) -> None:
    store = filled(tmp_path / "store", 3, old=1)
    before, head = store.audit.read_bytes(), read_head(store)
    append_event(store, Event("2026-01-02", "rollback", "flights", 2, "ada", reason="späte Flüge"))
    after = store.audit.read_bytes()
    line = after[len(before) :].decode().rstrip("\n")
    assert head
    for size in range(len(before), len(after) + 1, 7):
        store.audit.write_bytes(after[:size])
        head_path(store).write_text(json.dumps(asdict(replace(head, pending=line))))
        assert verify_log(store) == []
        record_event(store, "promote", "flights", 3)
        assert store.audit.read_bytes().startswith(after) and verify_log(store) == []
        assert [event.action for event in read_events(store)][-2:] == ["rollback", "promote"]


def test_many_writers_make_one_chain(tmp_path: Path) -> None:
    store = filled(tmp_path / "store", 1, old=2)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: record_event(store, "promote", "flights", number), range(40)))
    assert verify_log(store) == []
    events = list(read_events(store))
    assert len(events) == 43 and sorted(event.version for event in events[3:]) == list(range(40))


def test_a_log_without_a_chain_is_taken_in(tmp_path: Path) -> None:
    store = filled(tmp_path / "store", 0, old=4)
    assert read_head(store) is None and verify_log(store) == []
    record_event(store, "promote", "flights", 4)
    assert read_head(store) == replace(read_head(store) or Head(), sequence=5) and verify_log(store) == []
    store.audit.write_text(store.audit.read_text().replace("ada", "eve", 1))
    (found,) = verify_log(store)
    assert found.line == 5 and "lines up to 4" in found.what


# Checkpoints and commands


def test_what_is_written_anew_is_found_by_a_signed_checkpoint(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("N2P_KEYS", str(project.folder / "keys"))
    registry = Registry(Store(project.home))
    registry.store.home.mkdir()
    with pytest.raises(StoreError, match="no audit log"):
        make_checkpoint(registry)
    registry._client.create_registered_model("flights")
    for reason in ("one", "two"):
        share_event(registry, "override", "flights", 1, reason=reason)
    assert verify_audit(registry).damage == []
    assert not make_checkpoint(registry).key and verify_audit(registry).unsigned == ()
    share_event(registry, "override", "flights", 1, reason="three")
    keys.trust_key(registry.store, keys.new_key("team"), "team")
    with pytest.raises(InputError, match="has to be signed"):
        make_checkpoint(registry)
    made, audited = make_checkpoint(registry, "team"), verify_audit(registry)
    assert (made.sequence, audited.checkpoints, audited.unsigned, audited.damage) == (3, 2, (2,), [])

    exported = project.n2p("audit", "export", "--format", "csv", "--to", "audit.csv", "--json")
    assert exported.code == 0 and (project.folder / "audit.csv").read_text().count("override") == 3
    assert export_log(registry.store) == registry.store.audit.read_text()
    said = project.n2p("audit", "verify", N2P_KEYS=str(project.folder / "keys")).stdout
    assert "signed by team, whose key is trusted" in said and said.count("not signed") == 1
    assert "key is trusted" not in project.n2p("audit", "verify", N2P_HOME=str(copied_without_trust(project))).stdout
    sound = project.n2p("audit", "verify", "--json")
    assert (sound.code, sound.json["entries"], sound.json["damage"], sound.json["unsigned"]) == (0, 3, [], [2])

    events = list(read_events(registry.store))
    registry.store.audit.unlink()
    head_path(registry.store).unlink()
    for event in events:
        append_event(registry.store, replace(event, user="nobody"))
    assert verify_log(registry.store) == []
    done = project.n2p("audit", "verify", "--json")
    told = [each["what"] for each in done.json["damage"]]
    assert done.code == 1 and all("not the one of the checkpoint" in each for each in told[:2])
    assert told[2:] == ["MLflow and the log tell this event differently"] * 3
    assert [each["line"] for each in done.json["damage"]] == [2, 3, 1, 2, 3]


def copied_without_trust(project: Project) -> Path:
    """A copy of the store that believes no key; what it verifies is the same log."""
    copy = Path(shutil.copytree(project.home, project.folder / "copy"))
    for path in copy.glob("trusted*"):
        path.unlink()
    return copy


def test_where_there_is_no_log_nothing_is_sound_and_nothing_is_made(project: Project) -> None:
    for command in (("verify",), ("export", "--to", "audit.csv")):
        done = project.n2p("audit", *command, "--json")
        assert (done.code, done.error["what"]) == (3, "there is no store here") and not project.home.exists()
    project.home.mkdir()
    done = project.n2p("audit", "verify", "--json")
    assert done.code == 3 and "no audit log here" in done.error["what"]


def test_a_log_that_may_only_be_read_is_verified(tmp_path: Path) -> None:
    registry = Registry(filled(tmp_path / "store", 3))
    store_id(registry.store)
    registry._client.create_registered_model("flights")
    share_event(registry, "override", "flights", 1, reason="one")
    made = make_checkpoint(registry)
    before = {path: path.read_bytes() for path in registry.store.home.rglob("*") if path.is_file()}
    with as_reader(registry.store.home):
        audited = verify_audit(Registry(registry.store))
    assert (audited.damage, audited.entries, [each.line for each in audited.signers]) == ([], 4, [made.sequence])
    assert {path: path.read_bytes() for path in registry.store.home.rglob("*") if path.is_file()} == before
    registry.store.audit.write_text(registry.store.audit.read_text().replace("one", "two"))
    with as_reader(registry.store.home):
        assert verify_audit(Registry(registry.store)).damage


@contextlib.contextmanager
def as_reader(home: Path) -> Iterator[None]:
    """Have this process lack the right to write in a folder, whoever it runs as."""
    folders = [home, *(path for path in home.rglob("*") if path.is_dir())]
    for path in (home, *home.parents):
        if path.stat().st_uid == os.geteuid() and path != Path(tempfile.gettempdir()) and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    for path in folders:
        path.chmod(0o555)
    if privileged := os.geteuid() == 0:
        os.setresuid(65534, 65534, 0)  # to be root again below
    try:
        yield
    finally:
        if privileged:
            os.setresuid(0, 0, 0)
        for path in folders:
            path.chmod(0o755)


# A store by its name


def test_a_store_keeps_its_name_wherever_it_is_moved(tmp_path: Path) -> None:
    store = filled(tmp_path / "store", 1)
    name = store_id(store)
    moved = Store((tmp_path / "store").rename(tmp_path / "elsewhere"))
    assert store_id(moved) == name != store_id(Store(tmp_path / "another"))
    # a store of before there was a file is called what its log calls it
    record_event(moved, "promote", "flights", 1)
    (moved.home / "store.id").unlink()
    assert store_id(moved) == name
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: store_id(Store(tmp_path / "many")), range(8)))) == 1


def test_an_event_that_was_promised_is_not_appended_twice(tmp_path: Path) -> None:
    store = filled(tmp_path / "store", 1)
    event = Event("2026-01-02", "promote", "flights", 2, "ada", id="b")
    head = read_head(store)
    assert head
    line = json.dumps({**event.to_dict(), "sequence": head.sequence + 1, "chain": head.digest})
    head_path(store).write_text(json.dumps(asdict(replace(head, pending=line))))
    append_event(store, event, once=True)
    assert [each.id for each in read_events(store)] == ["", "b"] and verify_log(store) == []


def test_a_line_is_written_whole_by_a_disk_that_takes_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:7]))
    assert verify_log(store := filled(tmp_path / "store", 2)) == [] and len(list(read_events(store))) == 2


def test_an_export_leaves_nothing_out_and_holds_no_formula(tmp_path: Path) -> None:
    store = filled(tmp_path / "store", 2)
    record_event(store, "promote", "flights", 1, reason='=HYPERLINK("x")')
    assert "'=HYPERLINK" in export_log(store, "csv")
    lines = store.audit.read_text().splitlines(keepends=True)
    store.audit.write_text("".join(lines) + lines[0][:40])
    assert export_log(store, "csv").count("\n") == 4
    store.audit.write_text(lines[0] + lines[1][:40] + "\n" + lines[2])
    for form in ("csv", "jsonl"):
        with pytest.raises(StoreError, match="damaged") as caught:
            export_log(store, form)
        assert (caught.value.where or "").endswith("line 2")
    old = filled(tmp_path / "old", 0, old=2)
    old.audit.write_text(old.audit.read_text()[:-20])
    record_event(old, "promote", "flights", 3)
    assert export_log(old, "csv").count("\n") == 3, "what a power cut left before there were chains"
