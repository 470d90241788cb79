"""What a model is given of a part, and what the part's file holds then."""

import json
import os
import pickle
import threading

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shopfloor.errors import UsageError
from shopfloor.serving import batch, data_set
from shopfloor.serving.model.row import Column
from shopfloor.settings import Settings

NAN = float("nan")
NUMBERS = {
    "whole": pa.array([1, None, 3, 4], pa.int64()),
    "small": pa.array([1, 2, 3, 4], pa.uint8()),
    "yes": pa.array([True, None, False, True]),
    "no": pa.array([False, True, False, False]),
    "real": pa.array([0.5, None, NAN, -1.5]),
    "single": pa.array([0.25, 1, 2, 3], pa.float32()),
    "nothing": pa.nulls(4),
}
TABLE = pa.table({"id": ["a", "b", "c", "a"], "tags": [["x"], [], None, ["x", "y"]]} | dict(reversed(NUMBERS.items())))


class Keeping:
    """A way into a model that keeps what it is given."""

    def __init__(self):
        self.given = []

    def __call__(self, rows):
        self.given.append(rows)
        return np.arange(len(rows), dtype=np.float32)


@pytest.fixture
def settings(tmp_path):
    return Settings(project_root=tmp_path)


@pytest.fixture
def part(tmp_path, monkeypatch):
    """Four rows in two row groups, which are read in three batches."""
    monkeypatch.setattr(batch, "BATCH_ROWS", 2)
    pq.write_table(TABLE, tmp_path / "rows.parquet", row_group_size=3)
    return batch.Part(f"{tmp_path}/rows.parquet", 0, 2, 4, f"{tmp_path}/out/part.parquet")


@pytest.mark.parametrize(("single_precision", "dtype"), [(True, np.float32), (False, np.float64)])
def test_a_native_model_gets_its_columns_as_numbers_and_nan(settings, part, single_precision, dtype):
    model = Keeping()
    batch.score_part(settings, batch.Scoring("3", tuple(NUMBERS), model, single_precision, None), part)
    assert {rows.dtype for rows in model.given} == {np.dtype(dtype)}
    expected = [
        [1, 1, 1, 0, 0.5, 0.25, NAN],
        [NAN, 2, NAN, 1, NAN, 1, NAN],
        [3, 3, 0, 0, NAN, 2, NAN],
        [4, 4, 1, 0, -1.5, 3, NAN],
    ]
    np.testing.assert_array_equal(np.concatenate(model.given), expected)


@pytest.mark.parametrize(("columns", "given"), [(("real", "id"), ["real", "id"]), ((), TABLE.column_names)])
def test_a_model_without_a_native_way_gets_frames(settings, part, columns, given):
    model = Keeping()
    batch.score_part(settings, batch.Scoring("3", columns, None, False, model), part)
    pd.testing.assert_frame_equal(pd.concat(model.given, ignore_index=True), TABLE.select(given).to_pandas())


def test_a_part_holds_the_rows_as_they_were_and_their_predictions(settings, part):
    batch.score_part(settings, batch.Scoring("3", ("real",), Keeping(), True, None), part)
    table = pq.read_table(part.target, partitioning=None)
    assert str(table.select(TABLE.column_names).to_pylist()) == str(TABLE.to_pylist())  # NaN equals no NaN
    assert table["prediction"].type == pa.float32()
    assert table["model_version"].to_pylist() == ["3"] * 4


def test_a_part_gets_its_name_when_its_bytes_are_on_the_disk(settings, part, tmp_path, monkeypatch):
    synced, sync = {}, os.fsync

    def fsync(number):
        synced.setdefault(os.fstat(number).st_ino, os.path.exists(part.target))
        sync(number)

    monkeypatch.setattr(os, "fsync", fsync)
    batch.score_part(settings, batch.Scoring("3", ("real",), Keeping(), True, None), part)
    assert synced[os.stat(part.target).st_ino] is False
    assert synced[(tmp_path / "out").stat().st_ino] is True
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["part.parquet"]


def test_a_part_that_others_have_scored_meanwhile_is_not_written(settings, part, tmp_path):
    needless = threading.Event()

    def matrix(rows):
        needless.set()
        return np.zeros(len(rows))

    with pytest.raises(Exception, match="Others have done it"):
        batch.score_part(settings, batch.Scoring("1", tuple(NUMBERS), matrix, False, None), part, needless)
    assert not list((tmp_path / "out").iterdir())


def test_a_worker_leaves_a_part_that_is_there(settings, part):
    worker = batch.Scorer(settings, "", "", pickle.dumps(batch.Scoring("1", tuple(NUMBERS), Keeping(), False, None)))
    assert worker({"part": json.dumps(vars(part))}) == {"rows": 4}
    before = os.stat(part.target).st_mtime_ns
    assert worker({"part": json.dumps(vars(part))}) == {"rows": 4}
    assert os.stat(part.target).st_mtime_ns == before


ROWS = pa.table({"whole": [1, 2, 3, 4], "real": [0.5, 1, 2, 3], "shop": ["a", "b", "c", "d"]})
COLUMNS = (Column("whole", "long", True), Column("real", "double", False), Column("shop", "string", True))


@pytest.mark.parametrize("at_hand", [True, False])
@pytest.mark.parametrize(
    ("name", "values", "problem"),
    [
        ("whole", pa.array([1, 2.5, 3, 4]), "is no whole number"),
        ("whole", pa.array([1, None, 3, 4], pa.int64()), "is missing"),
        ("whole", pa.array([1, NAN, 3, 4]), "is missing"),
        ("whole", pa.array([1, 2, 3, 2**63], pa.uint64()), "is outside of"),
        ("whole", pa.array([1, 2, 3, 1e30]), "is no whole number in a row, or too large"),
        ("real", pa.array([1, 2, 3, float("inf")]), "is not finite"),
        ("shop", pa.array(["a", None, "c", "d"]), "is missing"),
    ],
)
def test_a_value_that_the_endpoint_refuses_is_refused_with_its_column(name, values, problem, at_hand):
    rows = ROWS.set_column(ROWS.column_names.index(name), name, values).to_batches()[0]
    matrix = np.column_stack([rows.column(i).to_numpy(zero_copy_only=False) for i in (0, 1)]).astype(float)
    with pytest.raises(UsageError, match=f"rows.parquet: column '{name}' {problem}"):
        data_set.require_values("rows.parquet", COLUMNS, rows, matrix if at_hand else None)


def test_what_the_endpoint_takes_is_taken():
    rows = ROWS.set_column(0, "whole", pa.array([1.0, 2, 3, 4])).set_column(1, "real", pa.array([None, NAN, 3e38, 1]))
    data_set.require_values("rows.parquet", COLUMNS, rows.to_batches()[0], None)


def parts(settings, directory, columns=COLUMNS):
    return data_set.parts_of(settings, str(directory), f"{directory}/out", "1", columns, 10)


def test_files_and_row_groups_without_rows_are_in_no_part(settings, tmp_path):
    data = tmp_path / "rows"
    data.mkdir()
    with pq.ParquetWriter(data / "a.parquet", ROWS.schema) as writer:
        for table in (ROWS[:0], ROWS, ROWS[:0]):
            writer.write_table(table)
    pq.write_table(ROWS[:0], data / "b.parquet")
    [part] = parts(settings, data)
    assert part.rows == 4
    batch.score_part(settings, batch.Scoring("3", ("real",), Keeping(), True, None), part)
    assert len(pq.read_table(part.target, partitioning=None)) == 4


@pytest.mark.parametrize("name", ["prediction", "model_version"])
def test_a_file_that_was_scored_before_is_refused(settings, tmp_path, name):
    pq.write_table(ROWS.append_column(name, ROWS["real"]), tmp_path / "rows.parquet")
    with pytest.raises(UsageError, match=f"has a column '{name}' already: it was scored before"):
        parts(settings, tmp_path)


@pytest.mark.parametrize(("kind", "values"), [("double", [True] * 4), ("boolean", [1] * 4), ("long", ["1"] * 4)])
def test_a_column_of_another_type_than_the_endpoint_takes_is_refused(settings, tmp_path, kind, values):
    pq.write_table(pa.table({"a": values}), tmp_path / "rows.parquet")
    with pytest.raises(UsageError, match=f"column 'a' is .* needs it as {kind}"):
        parts(settings, tmp_path, (Column("a", kind, True),))


def test_columns_that_stand_in_the_names_of_directories_stay_and_are_given_to_the_model(settings, tmp_path):
    data = tmp_path / "rows"
    for shop, year in (("eu", 2023), ("caf%C3%A9", 2024)):
        (data / f"shop={shop}/year={year}").mkdir(parents=True)
        pq.write_table(ROWS.drop_columns("shop"), data / f"shop={shop}/year={year}/part.parquet")
    model = Keeping()
    data_parts = parts(settings, data)
    for part in data_parts:
        batch.score_part(settings, batch.Scoring("3", ("year", "real"), model, False, None), part)
        assert set(pq.read_table(part.target, partitioning=None)["shop"].to_pylist()) == {part.partition["shop"]}
    assert {part.partition["shop"] for part in data_parts} == {"eu", "café"}
    assert {rows[0, 0] for rows in model.given} == {2023, 2024}
