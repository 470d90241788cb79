"""A stored result counts only while it is whole: its entry, its artifacts' bytes, its effects."""

import json
import logging
import threading
from types import SimpleNamespace

import pytest
from shopfloor.pipeline.results import ResultStore
from shopfloor.settings import Settings
from shopfloor.storage import publish, stored

KEY = "ab" * 32
PARTS = {"code": "1", "parameter use_case": '"flights"'}


@pytest.fixture
def settings(tmp_path):
    return Settings(project_root=tmp_path, state_dir=tmp_path / "state", artifact_root=str(tmp_path / "artifacts"))


@pytest.fixture
def made(settings):
    artifact = SimpleNamespace(name="model", uri="", metadata={})
    with publish(settings, artifact, "tune") as directory:
        (directory / "model.bin").write_bytes(b"0123456789")
    return {"model": {"name": "model", "uri": artifact.uri, "metadata": artifact.metadata, "type": {}}, "Output": 3}


def store(settings, holds=lambda effect: True):
    return ResultStore(settings, holds)


def entry(settings):
    return settings.project_root / "artifacts/results/ab" / f"{KEY}.json"


def test_a_whole_result_is_found_by_another_process_too(settings, made):
    store(settings).put(KEY, PARTS, made)
    assert store(settings).get(KEY).outputs == made
    assert store(settings).get("cd" * 32).outputs is None


def test_with_a_key_an_entry_counts_only_for_who_has_it_and_none_that_a_stranger_wrote(settings, made, monkeypatch):
    store(settings).put(KEY, PARTS, made)
    monkeypatch.setenv("SHOPFLOOR_RESULTS_KEY", "the team's")
    strangers = store(settings).find(KEY)
    store(settings).put(KEY, PARTS, made)

    assert strangers.reason == f"The stored result {KEY[:12]} is damaged or not signed with $SHOPFLOOR_RESULTS_KEY"
    assert store(settings).find(KEY).outputs == made
    monkeypatch.setenv("SHOPFLOOR_RESULTS_KEY", "another")
    assert store(settings).find(KEY).outputs is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace('"Output": 3', '"Output": 4'),
        lambda text: text.replace(KEY, "cd" * 32),
        lambda text: "[]",
        lambda text: "null",
    ],
)
def test_a_damaged_entry_does_not_count_and_is_named(settings, made, damage, caplog):
    store(settings).put(KEY, PARTS, made)
    text = entry(settings).read_text()
    assert damage(text) != text
    entry(settings).write_text(damage(text))

    assert store(settings).get(KEY).outputs is None
    assert f"The stored result {KEY[:12]} is damaged; the step runs again." in caplog.text


def test_one_changed_byte_of_an_artifact_is_noticed(settings, made, caplog):
    store(settings).put(KEY, PARTS, made)
    assert store(settings).get(KEY).outputs == made
    file = settings.project_root / made["model"]["uri"] / "model.bin"
    file.write_bytes(b"0123456780")

    assert store(settings).get(KEY).outputs is None
    assert "is not what was stored: its bytes changed; the step runs again." in caplog.text


def test_an_artifact_that_is_gone_is_noticed(settings, made, caplog):
    store(settings).put(KEY, PARTS, made)
    (settings.project_root / made["model"]["uri"] / "model.bin").unlink()
    (settings.project_root / made["model"]["uri"]).rmdir()
    assert store(settings).get(KEY).outputs is None
    assert "is gone; the step runs again." in caplog.text


def test_a_file_of_another_publisher_counts_while_it_is_there_and_what_lay_nowhere_always(settings, caplog):
    file = settings.state_dir / "runs/1/steps/write/0/file"
    file.parent.mkdir(parents=True)
    file.write_text("text")
    outputs = {
        name: {"name": name, "uri": str(file.parent / name), "metadata": {}, "type": {}} for name in ("file", "metrics")
    }
    store(settings).put(KEY, PARTS, outputs)
    assert store(settings).get(KEY).outputs["file"] == outputs["file"]
    file.unlink()
    assert store(settings).get(KEY).outputs is None
    assert f"Artifact {file} is gone; the step runs again." in caplog.text


def test_an_effect_that_no_longer_holds_is_a_reason_and_no_damage(settings, made, caplog):
    made["model"]["metadata"]["effect"] = {"kind": "champion", "use_case": "flights", "version": "3"}
    store(settings).put(KEY, PARTS, made)
    lookup = store(settings, lambda effect: False).find(KEY)
    assert lookup.outputs is None
    assert lookup.reason == "The champion version 3 of flights no longer holds"
    with caplog.at_level(logging.WARNING):
        assert store(settings, lambda effect: False).get(KEY).outputs is None
    assert caplog.text == ""


def test_the_bytes_are_read_again_only_when_a_file_changed(settings, made, monkeypatch):
    from shopfloor import storage

    uri = made["model"]["uri"]
    first = stored(settings, uri)
    monkeypatch.setattr(storage, "hash_directory", lambda path: pytest.fail("it was read again"))
    assert stored(settings, uri) == first
    monkeypatch.undo()
    (settings.project_root / uri / "model.bin").write_bytes(b"another")
    assert stored(settings, uri) != first


def test_what_a_step_last_depended_on_is_kept_for_each_use_case(settings):
    other = {**PARTS, "parameter use_case": '"fraud"'}
    store(settings).used("tune", KEY, PARTS)
    store(settings).used("tune", KEY, other)
    store(settings).used("tune", "cd" * 32, {**PARTS, "code": "2"})

    assert store(settings).last_parts("tune", PARTS) == {**PARTS, "code": "2"}
    assert store(settings).last_parts("tune", other) == other
    assert store(settings).last_parts("evaluate", PARTS) is None


def test_two_writers_at_once_leave_one_whole_entry(settings, made):
    def write():
        for _ in range(20):
            store(settings).put(KEY, PARTS, made)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store(settings).get(KEY).outputs == made
    assert [path.name for path in entry(settings).parent.iterdir()] == [entry(settings).name]
    assert json.loads(entry(settings).read_text())["parts"] == PARTS


@pytest.mark.parametrize(
    ("root", "uri", "ours", "counts"),
    [
        ("s3://lake/team", "s3://lake/team/steps/tune/1", True, True),
        ("s3://lake/team", "s3://lake/another/steps/tune/1", True, False),
        ("s3://lake/team", "s3://lake/team-b/steps/tune/1", True, False),
        ("s3://lake/team", "gs://public/iris.csv", False, True),
        ("s3://lake/team", "/etc/passwd", False, False),
        ("s3://lake/team", "file:///etc/passwd", False, False),
        ("s3://lake/team", "{state}/../../etc", False, False),
        ("s3://lake/team", "{state}/runs/1/steps/out", False, True),
    ],
)
def test_a_result_points_into_the_store_or_what_this_project_keeps_and_nowhere_else(settings, root, uri, ours, counts):
    results = store(settings.model_copy(update={"artifact_root": root}))
    assert results._may_be_at(uri.format(state=settings.state_dir), ours) is counts


def test_an_entry_that_names_a_file_of_this_machine_does_not_count(settings, made, caplog):
    made["model"] |= {"uri": "/etc/hostname", "metadata": {}}
    store(settings).put(KEY, PARTS, made)
    assert store(settings).get(KEY).outputs is None
    assert "points at /etc/hostname" in caplog.text
