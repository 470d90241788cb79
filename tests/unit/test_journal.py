"""What a killed process leaves in its journal, and who gets it."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shopfloor.serving import journal as journals
from shopfloor.serving.journal import Entry, Journal, left_behind
from shopfloor.serving.log_files import read_log
from shopfloor.serving.prediction_log import PredictionLog
from shopfloor.settings import Settings

from tests.unit.test_traffic import prediction

ENTRIES = [Entry(["1", 1.5, True], [b'{"a": 1}\n', b"\x00\xff"]), Entry(["2", None, False], [b"", b"\n"])]


def left(directory):
    """Return what was left behind, and take it."""
    return [(list(values), list(blobs)) for _, entries in left_behind(directory) for values, blobs in entries]


def die(journal):
    """Let go of the files as a process does that is killed."""
    for descriptor in journal._open.values():
        os.close(descriptor)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.lists(st.text() | st.floats(allow_nan=False) | st.booleans()), st.lists(st.binary()))))
def test_what_was_appended_is_left_behind_as_it_was(tmp_path_factory, entries):
    directory = tmp_path_factory.mktemp("journal")
    journal = Journal(directory, "one")
    for values, blobs in entries:
        journal.append(Entry(values, blobs))
    assert left(directory) == []  # its writer lives
    die(journal)
    assert left(directory) == [(values, blobs) for values, blobs in entries]
    assert not list(directory.iterdir())


def test_an_entry_that_was_cut_off_is_left_out_and_those_before_are_not(tmp_path):
    journal = Journal(tmp_path, "one")
    for entry in ENTRIES:
        journal.append(entry)
    die(journal)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert left(tmp_path) == [(["1", 1.5, True], [b'{"a": 1}\n', b"\x00\xff"])]


def test_two_who_look_at_once_do_not_get_the_same_and_what_fails_stays(tmp_path):
    journal = Journal(tmp_path, "one")
    journal.append(ENTRIES[0])
    die(journal)
    looking = left_behind(tmp_path)
    next(looking)
    assert left(tmp_path) == []
    looking.close()  # the store took nothing
    assert len(left(tmp_path)) == 1


def test_a_disk_that_takes_half_an_entry_or_none_spoils_nothing_and_says_so_once(tmp_path, monkeypatch, caplog):
    journal = Journal(tmp_path, "one")
    journal.append(ENTRIES[0])
    write = os.write
    monkeypatch.setattr(journals.os, "write", lambda descriptor, frame: write(descriptor, frame[:9]))
    journal.append(ENTRIES[1])
    monkeypatch.setattr(journals.os, "write", full)
    journal.append(ENTRIES[1])
    monkeypatch.undo()
    journal.append(ENTRIES[0])
    die(journal)
    assert len(left(tmp_path)) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def full(*_):
    raise OSError(errno.ENOSPC, "no space left")


def test_what_was_written_before_its_journal_was_removed_is_not_written_again(tmp_path, monkeypatch):
    place, root = Settings(project_root=tmp_path), str(tmp_path / "log")
    log = PredictionLog(root, "flights", "r1", place, 3600, journal=tmp_path / "journal")
    log.add(prediction(1))
    monkeypatch.setattr(Journal, "remove", lambda self, name: None)  # it died before
    log.flush()
    log.add(prediction(2, output=b"line\n" * 3))
    die(log._journal)
    monkeypatch.undo()
    other = PredictionLog(root, "flights", "r2", place, 3600, journal=tmp_path / "journal")
    other.adopt()
    other.close()
    rows = read_log(place, root, "flights", "predictions").to_pylist()
    assert [(row["request_id"], row["output"]) for row in rows] == [("1", '{"prediction": 1}'), ("2", "line\n" * 3)]
    assert not list((tmp_path / "journal" / "flights").iterdir())


def test_without_a_place_for_a_journal_there_is_none_and_predictions_are_kept(tmp_path, caplog):
    (tmp_path / "journal").write_text("a file where a directory should be")
    place, root = Settings(project_root=tmp_path), str(tmp_path / "log")
    log = PredictionLog(root, "flights", "r1", place, 3600, journal=tmp_path / "journal")
    log.add(prediction(1))
    log.close()
    assert "there is no journal" in caplog.text
    assert len(read_log(place, root, "flights", "predictions")) == 1


@pytest.mark.parametrize("when", ["before", "behind"])
def test_a_directory_that_takes_no_more_files_ends_the_journal_and_not_the_log(tmp_path, monkeypatch, when):
    place, root, directory = Settings(project_root=tmp_path), str(tmp_path / "log"), tmp_path / "journal"
    log = PredictionLog(root, "flights", "r1", place, 3600, journal=directory)
    log.add(prediction(1))
    if when == "behind":
        log.flush()
        log.add(prediction(2))
    monkeypatch.setattr(Journal, "_begin", full)
    log.flush()
    log.add(prediction(3))
    log.close()
    assert len(read_log(place, root, "flights", "predictions")) == (3 if when == "behind" else 2)
    assert not list(Path(directory, "flights").iterdir())


def test_while_the_store_takes_nothing_the_journal_takes_no_more_files(tmp_path):
    (tmp_path / "log").write_text("a file where a directory should be")
    place, root, directory = Settings(project_root=tmp_path), str(tmp_path / "log"), tmp_path / "journal"
    log = PredictionLog(root, "flights", "r1", place, 3600, journal=directory)
    for number in range(5):
        log.add(prediction(number))
        with pytest.raises(OSError, match="log"):
            log.flush()
    assert len(list((directory / "flights").iterdir())) == 2
    (tmp_path / "log").unlink()
    log.close()
    rows = read_log(place, root, "flights", "predictions").to_pylist()
    assert [row["request_id"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert not list((directory / "flights").iterdir())


@pytest.mark.parametrize("values", [["1"], ["1", "no time", "1", "live", "/predict", 200, False, 0.1]])
def test_a_journal_that_nobody_can_read_is_dropped_and_counted_and_those_behind_it_are_written(tmp_path, values):
    place, root, directory = Settings(project_root=tmp_path), str(tmp_path / "log"), tmp_path / "journal"
    other = Journal(directory / "flights", "another-version")
    other.append(Entry(values, [b"", b"", b""]))
    die(other)
    gone = PredictionLog(root, "flights", "gone", place, 3600, journal=directory)
    gone.add(prediction(1))
    die(gone._journal)
    log = PredictionLog(root, "flights", "r1", place, 3600, journal=directory)
    log.adopt()
    log.close()
    assert log.dropped == 1
    assert len(read_log(place, root, "flights", "predictions")) == 1
