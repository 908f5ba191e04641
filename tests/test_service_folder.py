"""A folder of generated files that its owner edits: exporting again keeps edits, and a kill leaves no half file."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from notebooks import Project
from test_registry import in_production, register

from notebook_to_prod.errors import BundleError, InputError
from notebook_to_prod.package.bundle import Bundle, open_bundle, write_bundle
from notebook_to_prod.project import Store
from notebook_to_prod.release.registry import Registry
from notebook_to_prod.serve.export.folder import CONFLICT, STATE, merge_texts, write_folder

MODEL = "edited flights"
FIRST = {
    "app.py": b"import service\n\nversion = 1\n\nservice.run()\n",
    "k8s/base/hpa.yaml": b"minReplicas: 1\n\nbehavior: {}\n\nmaxReplicas: 10\n",
    "README.md": b"version 1\n",
    "old/notes.txt": b"of version 1\n",
}
SECOND = {name: text.replace(b"1\n", b"2\n") for name, text in FIRST.items() if name != "old/notes.txt"}
SECOND["tests/test_service.py"] = b"assert True\n"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project of test_registry, and one of its models under a name of this file's."""
    return in_production(tmp_path_factory, MODEL)


@pytest.fixture(scope="session")
def bundle(trained: Project) -> Bundle:
    registry = Registry(Store(trained.home))
    return registry.bundle(registry.resolve(f"{MODEL}@1"))


@pytest.fixture(scope="session")
def other(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Another bundle, as a later version would have."""
    contents = {name: (bundle.path / name).read_bytes() for name in bundle.files}
    metadata = json.loads(contents["metadata.json"])
    contents["metadata.json"] = json.dumps({**metadata, "seed": 12345}).encode()
    return write_bundle(tmp_path_factory.mktemp("bundles"), contents)


@pytest.fixture
def folder(tmp_path: Path, bundle: Bundle) -> Path:
    """The first export."""
    write_folder(tmp_path / "service", FIRST, bundle, {"version": "1"})
    return tmp_path / "service"


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What becomes of each file


def test_untouched_files_are_replaced_added_and_removed(
    folder: Path, bundle: Bundle, other: Bundle, tmp_path: Path
) -> None:
    report = write_folder(folder, SECOND, other, {"version": "2"})
    assert report.by_action == {
        "removed": ["old/notes.txt"],
        "replaced": ["README.md", "app.py", "k8s/base/hpa.yaml", "bundle"],
        "written": ["tests/test_service.py"],
    }
    assert not (folder / "old").exists()
    write_folder(tmp_path / "new", SECOND, other, {"version": "2"})
    assert files(folder) == files(tmp_path / "new"), "the same as a first export"


def test_edits_are_merged_and_files_of_the_user_stay(folder: Path, other: Bundle) -> None:
    (folder / "k8s/base/hpa.yaml").write_bytes(FIRST["k8s/base/hpa.yaml"].replace(b"behavior: {}", b"behavior: slow"))
    (folder / "old/notes.txt").write_text("mine")
    (folder / "k8s/base/mine.yaml").write_text("mine")
    (folder / "README.md").unlink()
    report = write_folder(folder, SECOND, other, {"version": "2"})
    changed = {"old/notes.txt": "kept", "k8s/base/hpa.yaml": "merged", "README.md": "deleted", "app.py": "replaced"}
    assert changed.items() <= report.actions.items()
    assert (folder / "k8s/base/hpa.yaml").read_bytes() == b"minReplicas: 2\n\nbehavior: slow\n\nmaxReplicas: 10\n"
    assert (folder / "old/notes.txt").read_text() == (folder / "k8s/base/mine.yaml").read_text() == "mine"
    assert not (folder / "README.md").exists()
    again = write_folder(folder, SECOND, other, {"version": "2"})
    assert (again.actions["k8s/base/hpa.yaml"], again.actions["README.md"]) == ("kept", "deleted")


def test_a_conflict_waits_until_somebody_has_settled_it(folder: Path, bundle: Bundle) -> None:
    app, beside = folder / "app.py", folder / "app.py.new"
    app.write_bytes(FIRST["app.py"].replace(b"version = 1", b"version = 'mine'"))
    edited = app.read_bytes()
    for _ in range(2):
        assert write_folder(folder, SECOND, bundle, {}).paths(CONFLICT) == ("app.py",)
        assert (app.read_bytes(), beside.read_bytes()) == (edited, SECOND["app.py"])

    third = {**SECOND, "app.py": SECOND["app.py"].replace(b"version = 2", b"version = 3")}
    beside.write_bytes(b"half taken over")
    assert write_folder(folder, third, bundle, {}).paths(CONFLICT) == ("app.py",)
    assert beside.read_bytes() == b"half taken over", "an edit of FILE.new is an edit too"

    beside.unlink()  # settled: the next merge starts from what was offered
    app.write_bytes(SECOND["app.py"].replace(b"run()", b"run(4)"))
    later = {**SECOND, "app.py": third["app.py"].replace(b"version = 3", b"version = 4")}
    assert write_folder(folder, later, bundle, {}).actions["app.py"] == "merged"
    assert app.read_bytes() == b"import service\n\nversion = 4\n\nservice.run(4)\n"


def test_force_takes_the_new_text(folder: Path, bundle: Bundle) -> None:
    (folder / "app.py").write_text("mine")
    (folder / "README.md").unlink()
    write_folder(folder, SECOND, bundle, {})
    report = write_folder(folder, SECOND, bundle, {}, force=True)
    assert (report.actions["app.py"], report.actions["README.md"]) == ("replaced", "written")
    assert {name: (folder / name).read_bytes() for name in SECOND} == SECOND
    assert list(folder.rglob("*.new")) == []


def test_a_file_of_the_user_where_a_new_one_belongs_is_a_conflict(folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.md").write_text("elsewhere")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(tmp_path / "elsewhere.md")
    (folder / "tests").mkdir()
    (folder / "tests/test_service.py").write_text("mine")
    report = write_folder(folder, SECOND, bundle, {})
    assert report.paths(CONFLICT) == ("README.md", "tests/test_service.py")
    assert (folder / "tests/test_service.py").read_text() == "mine"
    assert (folder / "README.md").is_symlink() and (tmp_path / "elsewhere.md").read_text() == "elsewhere"


def test_without_git_every_difference_is_a_conflict(
    folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "app.py").write_bytes(FIRST["app.py"].replace(b"run()", b"run(4)"))
    monkeypatch.setenv("PATH", "")
    assert write_folder(folder, SECOND, bundle, {}).paths(CONFLICT) == ("app.py",)


def test_line_ends_and_binary_texts_are_not_mangled() -> None:
    assert merge_texts(b"a\r\nb\r\n\r\nc", b"a\r\n\r\nc", b"a\r\n\r\nd") == b"a\r\nb\r\n\r\nd"
    assert merge_texts(b"\x00mine", b"\x00", b"\x00theirs") is None


@pytest.mark.parametrize("harm", ["remove", "add", "change"])
def test_a_bundle_that_is_not_whole_is_written_again(harm: str, folder: Path, bundle: Bundle) -> None:
    model = folder / "bundle" / "model.pkl"
    model.write_bytes(b"changed") if harm == "change" else model.unlink()
    if harm == "add":
        write_folder(folder, FIRST, bundle, {})
        (folder / "bundle" / "more.txt").touch()
    assert write_folder(folder, FIRST, bundle, {}).actions["bundle"] == "replaced"
    assert open_bundle(folder / "bundle", bundle.digest).files.keys() == bundle.files.keys()


# What is refused


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2, "files": {}}', '{"format": 1, "files": {"a": 1}}'])
def test_a_record_that_is_none_is_refused(text: str, folder: Path, bundle: Bundle) -> None:
    (folder / STATE).write_text(text)
    before = files(folder)
    with pytest.raises(InputError, match="record of the last export"):
        write_folder(folder, SECOND, bundle, {})
    assert files(folder) == before


def test_a_merge_whose_base_is_missing_changes_nothing(folder: Path, bundle: Bundle) -> None:
    (folder / "app.py").write_text("mine")
    for text in (folder / ".n2p-export").iterdir():
        text.unlink()
    with pytest.raises(InputError, match="missing or damaged"):
        write_folder(folder, SECOND, bundle, {})
    assert (folder / "README.md").read_bytes() == FIRST["README.md"]
    write_folder(folder, SECOND, bundle, {}, force=True)
    assert (folder / "app.py").read_bytes() == SECOND["app.py"]


# Killed


def killed_at(step: int, folder: Path, bundle: Bundle) -> bool:
    """Export in a process that kills itself before its `step`th rename or removal; whether it got there."""
    process = os.fork()
    if process == 0:
        seen = 0

        def count(event: str, _: tuple[object, ...]) -> None:
            nonlocal seen
            if event in {"os.rename", "os.remove", "os.rmdir"}:
                seen += 1
                if seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            write_folder(folder, SECOND, bundle, {"version": "2"})
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def kills(folder: Path, other: Bundle, tmp_path: Path) -> Iterator[Path]:
    """The folder as each kill leaves it."""
    for step in range(1, 200):
        copy = Path(shutil.copytree(folder, tmp_path / f"killed-{step}"))
        if not killed_at(step, copy, other):
            return
        yield copy


def test_a_kill_leaves_whole_files_and_the_next_export_finishes(
    folder: Path, bundle: Bundle, other: Bundle, tmp_path: Path
) -> None:
    (folder / "k8s/base/hpa.yaml").write_bytes(FIRST["k8s/base/hpa.yaml"].replace(b"behavior: {}", b"behavior: slow"))
    done = Path(shutil.copytree(folder, tmp_path / "done"))
    write_folder(done, SECOND, other, {"version": "2"})
    old, new, begun = files(folder), files(done), 0
    for copy in kills(folder, other, tmp_path):
        owned = {name: text for name, text in files(copy).items() if not name.startswith(".n2p-export")}
        assert all(text in (old.get(name), new.get(name)) for name, text in owned.items() if not name.endswith(".tmp"))
        if (copy / "bundle").exists():
            with_digest = [digest for digest in (bundle.digest, other.digest) if opens(copy / "bundle", digest)]
            assert len(with_digest) == 1, "never half a bundle"
        begun += owned != {name: text for name, text in old.items() if not name.startswith(".n2p-export")}
        write_folder(copy, SECOND, other, {"version": "2"})
        finished = {name: text for name, text in files(copy).items() if not name.endswith(".tmp")}
        assert finished == new
        shutil.rmtree(copy)
    assert begun > 3, "some were killed half way"


def opens(path: Path, digest: str) -> bool:
    try:
        open_bundle(path, digest)
    except BundleError:
        return False
    return True


# The command


def test_the_command_tells_what_it_kept_and_ends_with_1_on_a_conflict(trained: Project, tmp_path: Path) -> None:
    export = ("export-service", f"{MODEL}@production", tmp_path / "service", "--no-hashes")
    first = trained.n2p(*export, "--json")
    assert (first.code, [*first.json["changes"]]) == (0, ["written"]), first
    service = tmp_path / "service"
    made = files(service)
    assert trained.n2p(*export, "--json").json["changes"].keys() == {"unchanged"}
    assert files(service) == made

    # What a later version of the package would write differs from the record: here the record is taken back.
    state = json.loads((service / STATE).read_text())
    before = (service / "compose.yaml").read_bytes().replace(b"127.0.0.1:8000:8000", b"127.0.0.1:8001:8000")
    digest = write_folder(tmp_path / "store", {"compose.yaml": before}, open_bundle(service / "bundle"), {}).folder
    (text,) = (path for path in (digest / ".n2p-export").iterdir() if path.read_bytes() == before)
    shutil.copy(text, service / ".n2p-export" / text.name)
    state["files"]["compose.yaml"] = {"last": f"sha256:{text.name}"}
    (service / STATE).write_text(json.dumps(state))
    (service / "compose.yaml").write_bytes(before.replace(b"8001", b"9000"))
    (service / "locustfile.py").unlink()

    done = trained.n2p(*export)
    assert done.code == 1, done
    for told in ("conflict   compose.yaml", "deleted    locustfile.py", "FILE.new", "--force"):
        assert told in done.stdout
    assert (service / "compose.yaml.new").read_bytes() == made["compose.yaml"]
    assert trained.n2p(*export, "--force").code == 0
    assert files(service) == made


def test_the_folder_of_another_model_is_left_alone(trained: Project, tmp_path: Path) -> None:
    (other,) = register(trained, "other flights", "five")
    service = tmp_path / "service"
    assert trained.n2p("export-service", f"{MODEL}@1", service, "--no-hashes").code == 0
    before = files(service)
    refused = trained.n2p("export-service", f"other flights@{other.version}", service, "--no-hashes", "--json")
    assert (refused.code, refused.error["type"]) == (2, "InputError")
    assert MODEL in refused.error["what"] and files(service) == before
