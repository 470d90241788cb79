"""What a model is given of a part, and what the part's file holds then."""

import os
import pickle
import threading

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shopfloor.serving import batch
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
    found = pq.read_table(part.target, partitioning=None)
    assert str(found.select(TABLE.column_names).to_pylist()) == str(TABLE.to_pylist())  # NaN equals no NaN
    assert found["prediction"].type == pa.float32()
    assert found["model_version"].to_pylist() == ["3"] * 4


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
    assert worker(vars(part)) == {"rows": 4}
    before = os.stat(part.target).st_mtime_ns
    assert worker(vars(part)) == {"rows": 4}
    assert os.stat(part.target).st_mtime_ns == before
