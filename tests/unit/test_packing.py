"""Rows from one process to another: whatever a body describes comes back as it was, and nothing is unpickled."""

import ast
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shopfloor.serving.beside import packing
from shopfloor.serving.beside.packing import pack, unpack
from shopfloor.serving.protocols.parsed import Rows

BESIDE = Path(packing.__file__).parent
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=2**63, max_value=2**80),
    st.floats(),
    st.text(st.characters(codec="utf-8"), max_size=9),
)
NAMES = st.sampled_from(["a", "b", "\x00é", ""])
VALUES = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(NAMES, st.lists(PLAIN, max_size=2), max_size=2)
CELLS = {
    "object": VALUES | st.binary(max_size=5) | st.sampled_from([pd.NaT, pd.Timestamp("2013-01-02 03:04:05.678901")]),
    "float64": st.floats(),
    "float32": st.floats(width=32),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint8": st.integers(0, 255),
    "bool": st.booleans(),
    "datetime64[ns]": st.datetimes(min_value=pd.Timestamp("1700-01-01"), max_value=pd.Timestamp("2200-01-01")),
    "Int64": st.none() | st.integers(-(2**63), 2**63 - 1),
    "string": st.none() | st.text("xé", max_size=3),
    "<U3": st.text("xé", max_size=3),
}
often = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def back(**shapes):
    """Give rows as the other process gets them."""
    return unpack(*pack(Rows(**shapes)))


def assert_same(one, other):
    """Hold two values to be of one type and equal, NaN to NaN and -0.0 to -0.0."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, its in zip(one, other, strict=True):
            assert_same(mine, its)
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert_same(one.tolist(), other.tolist())
    elif isinstance(one, float):
        assert (math.isnan(one) and math.isnan(other)) or (one, math.copysign(1, one)) == (
            other,
            math.copysign(1, other),
        )
    else:
        assert one is other or one == other


@st.composite
def frames(draw):
    rows = draw(st.integers(0, 4))
    names = draw(st.lists(NAMES | st.integers(0, 3), max_size=4))  # also twice the same
    kinds = [draw(st.sampled_from(sorted(CELLS))) for _ in names]
    columns = [draw(st.lists(CELLS[kind], min_size=rows, max_size=rows)) for kind in kinds]
    index = draw(st.none() | st.lists(st.integers() | NAMES, min_size=rows, max_size=rows))
    frame = pd.DataFrame(
        {number: series(kind, cells) for number, (kind, cells) in enumerate(zip(kinds, columns, strict=True))},
        index=pd.RangeIndex(rows),
    )
    frame.columns = names
    if index is not None:
        frame.index = index
    return frame


def series(kind, cells):
    values = np.empty(len(cells), dtype=object)
    values[:] = cells
    return pd.Series(values if kind == "object" else cells, dtype=object if kind == "<U3" else kind)


@often
@given(frames())
def test_a_frame_comes_back_with_its_dtypes_names_order_and_cells(frame):
    copy = back(table=frame).table
    assert list(copy.dtypes) == list(frame.dtypes)
    assert_same(copy.columns.tolist(), frame.columns.tolist())
    assert_same(copy.index.tolist(), frame.index.tolist())
    assert (type(copy.index), copy.index.dtype) == (type(frame.index), frame.index.dtype)
    for number in range(frame.shape[1]):
        assert_same(copy.iloc[:, number].astype(object).tolist(), frame.iloc[:, number].astype(object).tolist())


@often
@given(
    st.lists(st.dictionaries(st.text("ab", max_size=2), PLAIN), max_size=4),
    st.none() | st.dictionaries(st.text("ab"), VALUES),
)
def test_records_and_params_come_back_as_they_were(records, params):
    copy = back(records=records, params=params)
    assert_same(copy.records, records)
    assert_same(copy.params, params)


@often
@given(VALUES)
def test_whatever_else_mlflow_makes_of_a_body_comes_back(value):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(["x", None, [1]], dtype=object), "c": np.float32(0.1)}
    assert_same(back(table=arrays | {"d": value}).table, arrays | {"d": value})
    assert_same(back(table=[value, (1, value)]).table, [value, (1, value)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_matrix_comes_back_bit_by_bit_and_in_its_order(dtype, order):
    matrix = np.array([[1.5, np.nan], [-0.0, np.inf], [5e-324, 1e30]], dtype=dtype, order=order)
    copy = back(matrix=matrix).matrix
    assert (copy.dtype, copy.flags.f_contiguous) == (matrix.dtype, matrix.flags.f_contiguous)
    assert copy.tobytes() == matrix.tobytes()


def test_long_content_goes_in_pieces_and_comes_back_whole():
    records = [{"text": "x" * 1000, "number": number} for number in range(1000)]
    head, parts = pack(Rows(records=records, params={"a": ["y" * 1000] * 1000}))
    assert max(map(len, parts)) < 2 * packing.PIECE_BYTES
    assert len(parts) > 10
    assert unpack(head, parts).records == records


def test_what_no_body_describes_is_refused():
    with pytest.raises(TypeError, match="a set is nothing that a body describes"):
        pack(Rows(table={"a": {1, 2}}))


def test_no_process_beside_a_replica_unpickles_anything():
    for file in BESIDE.glob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
        assert "pickle" not in names, file
