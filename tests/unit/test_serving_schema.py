"""The body of /predict: what is let in, what is refused, and that the OpenAPI document says the same."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shopfloor.serving.errors import BadRequest
from shopfloor.serving.model.row import ARRAY, FLOAT32_MAX, Column, RowSchema

COLUMNS = (
    Column("hour", "long", True),
    Column("distance", "double", True),
    Column("seats", "double", False),
    Column("weekend", "boolean", False),
    Column("carrier", "string", False),
)
SCHEMA = RowSchema(COLUMNS, single_precision=True)
GOOD = {"hour": 7, "distance": 733.5, "seats": 189.0, "weekend": False, "carrier": "UA"}


def refusal(body: bytes | dict) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        SCHEMA.parse(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert 400 <= caught.value.status < 500
    return caught.value


def test_values_come_in_the_order_of_the_signature_whatever_the_order_in_the_body():
    assert SCHEMA.parse(b'{"distance": 3, "carrier": "B6", "hour": 2}') == [2, 3.0, None, None, "B6"]


def test_an_optional_column_may_be_null_or_left_out():
    assert SCHEMA.parse(json.dumps(GOOD | {"seats": None, "carrier": None}).encode())[2:] == [None, False, None]
    assert SCHEMA.parse(b'{"hour": 1, "distance": 1.0}') == [1, 1.0, None, None, None]


def test_a_whole_number_with_a_point_is_an_integer_as_json_schema_says():
    hour = SCHEMA.parse(json.dumps(GOOD | {"hour": 15.0}).encode())[0]
    assert (hour, type(hour)) == (15, int)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hour", True),
        ("hour", 1e19),
        ("hour", 1.5),
        ("hour", "7"),
        ("hour", None),
        ("hour", [7]),
        ("hour", 2**63),
        ("hour", math.nan),
        ("distance", True),
        ("distance", "far"),
        ("distance", None),
        ("distance", {"km": 3}),
        ("distance", math.nan),
        ("distance", math.inf),
        ("distance", -math.inf),
        ("distance", 2 * FLOAT32_MAX),
        ("distance", 10**400),
        ("seats", math.nan),
        ("seats", False),
        ("weekend", 1),
        ("weekend", "true"),
        ("carrier", 7),
        ("colour", "blue"),
    ],
)
def test_a_wrong_value_is_refused_and_its_field_named(field, value):
    error = refusal(GOOD | {field: value})
    assert error.status == 422
    assert [item["field"] for item in error.fields] == [field]
    assert field in error.message


def test_a_missing_column_is_named():
    error = refusal({"hour": 7})
    assert error.fields == [{"field": "distance", "problem": "is missing"}]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b"{",
        b'{"hour": 7',
        b"hour=7",
        b"\xff\xfe\x00",
        b'{"hour": 7, "distance": 1} trailing',
        b"[" * 100_000,
        b'{"hour":' * 10_000,
        b'{"hour": 1' + b"0" * 10_000 + b', "distance": 1}',
        b'{"hour": 7, "distance": 1, "carrier": "\\ud800"}',
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body):
    assert refusal(body).status == 400


def test_a_body_that_is_larger_than_any_row_is_not_looked_at():
    assert refusal(b'{"hour":' * 100_000).status == 413


def test_an_answer_names_only_the_first_of_a_thousand_wrong_fields():
    error = refusal({f"unknown_{number}": number for number in range(1000)})
    assert len(error.fields) == 20
    assert len(error.message) < 500


@given(
    hour=st.integers(-(2**63), 2**63 - 1),
    distance=st.floats(allow_nan=False, allow_infinity=False, width=32),
    seats=st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32),
)
def test_every_row_of_the_right_types_gets_through_unchanged(hour, distance, seats):
    body = json.dumps({"hour": hour, "distance": distance, "seats": seats}).encode()
    assert SCHEMA.parse(body)[:3] == [hour, distance, seats]


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_body_ends_in_anything_but_values_or_a_refusal(body):
    try:
        SCHEMA.parse(body)
    except BadRequest as error:
        assert 400 <= error.status < 500  # noqa: PT017  either way is right


@given(
    st.dictionaries(
        st.sampled_from([column.name for column in COLUMNS]) | st.text(max_size=5),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers()),
    )
)
def test_no_json_object_ends_in_anything_but_values_or_a_refusal(row):
    try:
        SCHEMA.parse(json.dumps(row).encode())
    except BadRequest as error:
        assert 400 <= error.status < 500  # noqa: PT017  either way is right


def test_the_json_schema_names_types_and_what_is_required():
    described = SCHEMA.json_schema()
    assert list(described["properties"]) == [column.name for column in COLUMNS]
    assert described["properties"]["hour"]["type"] == "integer"
    assert described["properties"]["seats"]["anyOf"][1] == {"type": "null"}
    assert described["required"] == ["hour", "distance"]
    assert described["additionalProperties"] is False


def test_lists_bytes_and_closed_texts_are_taken_as_the_document_says():
    schema = RowSchema(
        (
            Column("embedding", ARRAY, True, length=2),
            Column("samples", ARRAY, False),
            Column("photo", "binary", True),
            Column("plan", "string", True, values=("basic", "pro"), closed=True),
            Column("city", "string", False, values=("Rom", "Wien")),
        )
    )
    row = {"embedding": [1, 0.5], "photo": "AAE=", "plan": "pro", "city": "Oslo"}
    assert schema.parse(json.dumps(row).encode()) == [[1.0, 0.5], None, b"\0\1", "pro", "Oslo"]
    assert schema.frame([schema.parse(json.dumps(row).encode())]).iloc[0]["embedding"].tolist() == [1.0, 0.5]
    document = schema.json_schema()["properties"]
    assert document["photo"] == {"type": "string", "contentEncoding": "base64"}
    assert (document["embedding"]["minItems"], document["embedding"]["maxItems"]) == (2, 2)
    assert document["plan"] == {"enum": ["basic", "pro"], "type": "string"}
    for field, value, problem in (
        ("embedding", [1.0], "should have at least 2 items"),
        ("embedding", [1.0, None], "valid number"),
        ("samples", ["a"], "valid number"),
        ("photo", "no base64", "must be bytes in base64"),
        ("plan", "Pro", "must be 'basic' or 'pro'"),
    ):
        with pytest.raises(BadRequest) as refused:
            schema.parse(json.dumps(row | {field: value}).encode())
        assert refused.value.fields[0]["field"] == field
        assert problem in refused.value.fields[0]["problem"]
    assert schema.parse(json.dumps(schema.example(None)).encode())[0] == [0.0, 0.0]


def test_an_example_is_taken_from_the_model_and_always_passes_the_check():
    example = SCHEMA.example({"hour": 7.0, "distance": 733.5, "seats": math.nan, "weekend": True, "carrier": "UA"})
    assert example == {"hour": 7, "distance": 733.5, "seats": None, "weekend": True, "carrier": "UA"}
    for row in (None, {}, {"hour": "seven"}, {"hour": 7, "distance": math.inf}):
        assert SCHEMA.parse(json.dumps(SCHEMA.example(row)).encode())
