"""What features.py gives is checked by column: features and labels are numbers, and a missing one is named."""

import os
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from shopfloor.data.contract import TIME, as_numbers, classes_of, require_rows
from shopfloor.data.features import keep_sources
from shopfloor.errors import DataError, UsageError
from shopfloor.settings import Settings

ROWS = pd.DataFrame({TIME: pd.to_datetime(["2013-01-01", "2013-01-02"], utc=True), "late": [0, 1]})


@pytest.mark.parametrize(
    ("values", "kind"),
    [([1, 2], "int64"), ([True, False], "float64"), ([1.5, None], "float64"), (["1", "2.5"], "float64")],
)
def test_what_can_be_read_as_numbers_is(values, kind):
    assert as_numbers(pd.Series(values, name="a")).dtype == kind


def test_a_feature_of_text_is_named_with_what_it_holds():
    column = pd.Series([None, "3", "drizzle"], name="weather")
    with pytest.raises(DataError, match="The feature 'weather' holds 'drizzle': a feature is a number"):
        as_numbers(column)


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("binary", [0, 1]),
        ("binary", [True, False]),
        ("regression", [0.5, 2.0]),
        ("multiclass", ["a", "b"]),
        ("multiclass", [3, 7]),
    ],
)
def test_labels_are_of_the_task_0_and_1_or_yes_and_no_or_any_numbers_or_classes(task, labels):
    assert list(require_rows(ROWS.assign(late=labels), "late", task).late) == labels


@pytest.mark.parametrize(
    ("task", "labels", "why"),
    [
        ("binary", [1, 2], "label 'late' is 2 in 1 of 2 rows; it is 0 or 1 where task is binary"),
        (
            "multiclass",
            ["a", 1],
            "label 'late' is 1 in some rows; where task is multiclass, all are texts or all whole",
        ),
        ("multiclass", [0.5, 1.5], "label 'late' is 0.5 in some rows; where task is multiclass"),
        ("regression", [0.5, float("inf")], "label 'late' is inf in 1 of 2 rows; it is a finite number"),
    ],
)
def test_a_label_that_is_none_of_the_task_is_told_with_the_key_to_mend(task, labels, why):
    with pytest.raises(DataError, match=f"{why}.* or task in use_case.yaml"):
        require_rows(ROWS.assign(late=labels), "late", task)


@pytest.mark.parametrize(
    ("rows", "target", "kind", "why"),
    [
        (ROWS, "delayed", UsageError, f"returns no column 'delayed', but {TIME}, late"),
        (ROWS.drop(columns=TIME), "late", UsageError, f"returns no column '{TIME}', but late"),
        (ROWS.assign(late=["no", "yes"]), "late", DataError, "The label 'late' holds 'no': a label is a number"),
        (ROWS.assign(late=[1.0, None]), "late", DataError, "The label 'late' is missing in 1 of 2 rows"),
    ],
)
def test_a_wrong_target_is_named_with_what_there_is(rows, target, kind, why):
    with pytest.raises(kind, match=why):
        require_rows(rows, target, "binary")


def test_classes_are_those_of_the_training_set_and_one_that_it_lacks_is_named():
    splits = {name: pd.DataFrame({"kind": kinds}) for name, kinds in (("train", ["b", "a", "b"]), ("test", ["a"]))}
    assert classes_of(splits, "kind") == ["a", "b"]
    splits["test"].loc[0] = "c"
    with pytest.raises(DataError, match="Split 'test' has rows of class 'c', split 'train' has none"):
        classes_of(splits, "kind")


def test_sources_get_their_name_when_their_bytes_are_on_the_disk(tmp_path, monkeypatch):
    settings = Settings(project_root=tmp_path, artifact_root=str(tmp_path / "artifacts"))
    (tmp_path / "sources").mkdir()
    ROWS.to_parquet(tmp_path / "sources/rows.parquet")
    synced, named = set(), []
    sync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda number: (synced.add(os.fstat(number).st_ino), sync(number)))
    monkeypatch.setattr(Path, "rename", lambda path, to: (named.append(set(synced)), rename(path, to))[1])
    uri = keep_sources(settings, SimpleNamespace(name="toy"), tmp_path / "sources")
    assert named == [{(Path(uri) / "rows.parquet").stat().st_ino, Path(uri).stat().st_ino}]
    assert keep_sources(settings, SimpleNamespace(name="toy"), tmp_path / "sources") == uri
    assert [path.name for path in Path(uri).parent.iterdir()] == [Path(uri).name]
