"""The columns of a table become a model's inputs by their types, and one that cannot be an input is named."""

import datetime as dt
import decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shopfloor.data.building import rows_of_table
from shopfloor.errors import DataError, ShopfloorError, UsageError

from tests.support.cases import use_case

LABEL = {"y": [0, 1, 0]}
NAN, INF = float("nan"), float("inf")


def read(tmp_path, columns, **features):
    """Return what is made of a table with these columns and a label."""
    arrays = {**LABEL, **columns}
    table = pa.Table.from_arrays([pa.array(values) for values in arrays.values()], names=[n.strip("*") for n in arrays])
    pq.write_table(table, tmp_path / "rows.parquet")
    section = {"source": "rows", "target": "y", "split": {"by": "random"}} | features
    return rows_of_table(use_case(features=section), tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    ("values", "kind", "dtype", "first"),
    [
        ([3, 4, 5], "int", "int64", 3),
        (pa.array([3, 4, 5], pa.uint8()), "int", "int64", 3),
        ([3, None, 5], "int", "float64", 3.0),
        ([0.5, None, NAN], "float", "float64", 0.5),
        ([decimal.Decimal("1.25"), None, decimal.Decimal("2.50")], "float", "float64", 1.25),
        ([True, False, True], "bool", "bool", True),
        ([True, None, False], "bool", "float64", 1.0),
        (["a", None, "\u00fc"], "str", "object", "a"),
        (pa.array(["a", "b", None]).dictionary_encode(), "str", "object", "a"),
        ([dt.datetime(2020, 1, 2), None, None], "datetime", "datetime64[us]", dt.datetime(2020, 1, 2)),
        ([dt.date(2020, 1, 2), None, None], "datetime", "datetime64[us]", dt.datetime(2020, 1, 2)),
        (
            pa.array([dt.datetime(2020, 1, 2, tzinfo=dt.UTC)] * 3, pa.timestamp("ns", "Asia/Tokyo")),
            "datetime",
            "datetime64[us]",
            dt.datetime(2020, 1, 2),
        ),
    ],
)
def test_a_column_comes_to_the_model_as_its_type_says(tmp_path, values, kind, dtype, first):
    frame, kinds, _ = read(tmp_path, {"spal\u00ebte 1": values})
    assert kinds == {"spal\u00ebte 1": kind}
    column = frame["spal\u00ebte 1"]
    assert str(column.dtype) == dtype
    assert column.iloc[0] == first
    assert column.isna().sum() == pa.array(values).to_pandas().isna().sum()


def test_lists_of_numbers_come_as_arrays_and_bytes_as_they_are(tmp_path):
    frame, kinds, _ = read(tmp_path, {"x": [[1, 2], None, [3]], "photo": [b"a", None, b"\0"]})
    assert kinds == {"x": "numbers", "photo": "bytes"}
    assert frame["x"].iloc[0].tolist() == [1.0, 2.0]
    assert [value if value is None else bytes(value) for value in frame["photo"]] == [b"a", None, b"\0"]


def test_a_time_orders_the_rows_and_those_without_are_left_out(tmp_path):
    times = [dt.datetime(2020, 2, 1), None, dt.datetime(2020, 1, 1)]
    frame, kinds, timeless = read(tmp_path, {"x": [1, 2, 3], "at": times, "id": [7, 8, 9]}, time="at", leave_out=["id"])
    assert (list(frame.x), list(frame.id), timeless) == ([3, 1], [9, 7], 1)
    assert str(frame["event_timestamp"].dtype) == "datetime64[us, UTC]"
    assert kinds == {"x": "int"}


def test_a_column_of_file_names_comes_to_the_model_as_their_content(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/\u00e4.png").write_bytes(b"\x89PNG")
    names = ["pictures/\u00e4.png", None, "pictures/\u00e4.png"]
    frame, kinds, _ = read(tmp_path, {"picture": names, "id": [7, 8, 9]}, files=["picture"], leave_out=["id"])
    assert kinds == {"picture": "str"}
    assert list(frame["picture"]) == ["iVBORw==", None, "iVBORw=="]


@pytest.mark.parametrize("name", ["none.png", "../rows.parquet", "/etc/hostname", ".", 7])
def test_a_name_that_is_no_file_of_the_data_is_told_with_its_row(tmp_path, name):
    values = ["rows.parquet", name, "rows.parquet"] if isinstance(name, str) else [name] * 3
    with pytest.raises(DataError, match=rf"'picture' in table 'rows' names '{name}' in row [12]: the data have"):
        read(tmp_path, {"picture": values}, files=["picture"])


@pytest.mark.parametrize(
    ("columns", "features", "error", "why"),
    [
        (
            {"x": [["a"], ["b"], ["c"]]},
            {},
            DataError,
            "'x' in table 'rows' is list<.*>: a list holds numbers",
        ),
        ({"x": [{"a": 1}] * 3}, {}, DataError, "'x' in table 'rows' is struct<.*>: the model gets numbers"),
        ({"x": [[1.0], [NAN], [INF]]}, {}, DataError, "'x' in table 'rows' has lists in which 2 numbers are missing"),
        ({"x": [1.0, INF, 2.0]}, {}, DataError, "feature 'x' in table 'rows' is infinite in 1 of 3 rows"),
        (
            {"x": [None, 2**53 + 1, 1]},
            {},
            DataError,
            "'x' in table 'rows' is missing in some rows and 2..53",
        ),
        ({"x": pa.array([2**63, 1, 2], pa.uint64())}, {}, DataError, "'x' in table 'rows' holds a number of more than"),
        ({"x": pa.nulls(3)}, {}, DataError, "column 'x' in table 'rows' has no value in a row"),
        ({"x": [dt.datetime(1066, 1, 1)] * 3}, {}, DataError, "'x' in table 'rows' is 1066-.* a time lies between"),
        ({"x": [1, 2, 3], "x*": [4, 5, 6]}, {}, UsageError, "column 'x' stands twice in table 'rows'"),
        ({"x": [1, 2, 3], " ": [1, 2, 3]}, {}, UsageError, "name ' ' of a column in table 'rows' is empty"),
        ({"prediction": [1, 2, 3]}, {}, UsageError, "name 'prediction' of a column in table 'rows' is reserved"),
        ({}, {}, UsageError, "No column is left for the model in table 'rows'"),
        (
            {"x": [1, 2, 3]},
            {"target": "z"},
            UsageError,
            "features.target of .* names 'z', .* it has 'y', 'x'",
        ),
        ({"x": [1, 2, 3]}, {"leave_out": ["z"]}, UsageError, "features.leave_out of use_case.yaml names 'z'"),
        ({"x": [1, 2, 3]}, {"files": ["z"]}, UsageError, "features.files of use_case.yaml names 'z'"),
        ({"x": [1, 2, 3], "y": [0, None, 1]}, {}, DataError, "label 'y' is missing in 1 of 3 rows"),
        ({"x": pa.array([], pa.int64()), "y": pa.array([], pa.int64())}, {}, DataError, "table 'rows' has no rows"),
    ],
)
def test_what_can_be_no_input_is_named(tmp_path, columns, features, error, why):
    with pytest.raises(ShopfloorError, match=why) as raised:
        read(tmp_path, columns, **features)
    assert type(raised.value) is error
    assert "\n" not in str(raised.value)
