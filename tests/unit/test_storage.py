"""Artifacts stand behind their URI complete or not at all; a full disk is named."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from shopfloor import storage
from shopfloor.errors import NotFoundError, ShopfloorError
from shopfloor.settings import Settings


@pytest.fixture
def settings(tmp_path):
    return Settings(project_root=tmp_path, state_dir=tmp_path, artifact_root=str(tmp_path / "artifacts"))


def artifact():
    return SimpleNamespace(name="a", uri="", metadata={})


def publish_something(settings):
    with storage.publish(settings, artifact(), "step") as directory:
        (directory / "file").write_text("text")


@pytest.mark.parametrize(
    "keep",
    [publish_something, lambda settings: storage.remembered(settings, "a stamp", lambda: "an answer")],
)
def test_what_lies_in_the_state_directory_is_for_this_account_alone_whoever_comes_first(tmp_path, keep):
    state = tmp_path / "state"
    keep(Settings(project_root=tmp_path, state_dir=state, artifact_root=str(state / "artifacts")))
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o700]


def test_the_same_content_has_the_same_hash_at_another_place(settings):
    artifacts = [artifact(), artifact()]
    for item in artifacts:
        with storage.publish(settings, item, "step") as directory:
            (directory / "file").write_text("text")
    assert artifacts[0].uri != artifacts[1].uri
    assert artifacts[0].metadata == artifacts[1].metadata


def test_a_step_that_fails_half_way_publishes_nothing(settings):
    item = artifact()
    with pytest.raises(RuntimeError), storage.publish(settings, item, "step") as directory:
        (directory / "file").write_text("half")
        raise RuntimeError
    assert item.uri == ""
    assert [path for path in (settings.project_root / "artifacts").rglob("*") if path.is_file()] == []


def test_a_full_disk_is_named_with_what_to_do():
    with (
        pytest.raises(ShopfloorError, match="The disk that holds /dev is full. Free some space and submit again"),
        storage.naming_full_disk(Path("/dev")),
    ):
        Path("/dev/full").write_text("x")


def test_an_artifact_that_is_gone_says_that_the_step_will_run_again(settings):
    with pytest.raises(NotFoundError, match="is gone. Submit again"):
        storage.local_copy(settings, str(settings.project_root / "nothing"))


def test_writing_atomically_replaces_the_whole_text(tmp_path):
    file = tmp_path / "state.json"
    storage.write_atomically(file, "long old text")
    storage.write_atomically(file, "new")
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_whose_size_inode_and_time_are_kept_is_hashed_again_all_the_same(settings, tmp_path):
    file = tmp_path / "rows.parquet"
    file.write_text("old")
    before, status = storage.stored(settings, str(file)), file.stat()
    with file.open("r+") as handle:
        handle.write("new")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert storage.stored(settings, str(file)) != before


def test_an_artifact_gets_its_name_when_its_bytes_are_on_the_disk(settings, monkeypatch):
    synced, synced_before = set(), []
    sync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda number: (synced.add(os.readlink(f"/proc/self/fd/{number}")), sync(number)))
    monkeypatch.setattr(Path, "rename", lambda path, to: (synced_before.append(set(synced)), rename(path, to))[1])
    item = artifact()
    with storage.publish(settings, item, "step") as directory:
        (directory / "part").mkdir()
        (directory / "part/file").write_text("text")
    assert synced_before == [{str(directory), f"{directory}/part", f"{directory}/part/file"}]
    assert str(Path(item.uri).parent) in synced


def test_what_was_remembered_long_ago_is_forgotten_when_something_new_is(settings):
    storage.remembered(settings, "a stamp", lambda: "an answer")
    [file] = (settings.state_dir / "hashes").glob("*/*")
    old, young = file.with_name("old"), file.with_name("young")
    for other in (old, young):
        file.rename(other)
        storage.remembered(settings, "a stamp", lambda: "an answer")
    os.utime(old, (0, 0))
    file.unlink()
    assert storage.remembered(settings, "a stamp", lambda: "another") == "another"
    assert set(file.parent.iterdir()) == {file, young}
