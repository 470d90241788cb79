"""The typed body of `POST /<use_case>/predict`, derived from a model's MLflow signature.

One JSON object is one row: a key per column, strict types, nothing unknown. What is checked here is what the OpenAPI
document says, because both come from the same pydantic-core schemas. Parsing never raises anything but `BadRequest`.
"""

from __future__ import annotations

import base64
import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticCustomError, SchemaValidator, ValidationError, core_schema

from shopfloor.serving.errors import BadRequest, NoRowSchema, Problems

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import ModelSignature

Value = bool | int | float | str | bytes | list[float] | dt.datetime | None

INT32 = 2**31 - 1
INT64 = 2**63 - 1
FLOAT32_MAX = 3.4028234663852886e38
WHOLE_IN_FLOAT = 2**53
KINDS = {"int", "bool"}
ARRAY = "Array(double)"
"""MLflow's name of the type of lists of numbers."""
NESTED = {"binary", ARRAY}
"""Types of columns whose values are not plain."""
MAX_PROBLEMS = 20
"""Fields named in one answer."""
ROW_BYTES = 16 * 1024
"""Bytes that a row may hold besides its values: blanks, a few fields too many."""
VALUE_BYTES = 256
BINARY_BYTES = 2 * 2**20
TEXT_BYTES = 100_000
"""A row is read where requests are answered, so that each millisecond of a long one is lost to all of them."""

_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "is not an input of this model",
    "finite_number": "must be a finite number",
}


@dataclass(frozen=True)
class Column:
    """One input of the model."""

    name: str
    type: str
    """MLflow's name: boolean, integer, long, float, double, string, datetime, binary or Array(double)."""
    required: bool
    kind: str = ""
    """Kind of value that a `double` stands for: `int` or `bool`, which may be missing; else empty."""
    values: tuple[str, ...] = ()
    """Texts that the model has learnt from, where they are few; it takes others too unless it is `closed`."""
    closed: bool = False
    """Whether no other text than `values` is taken."""
    length: int | None = None
    """Length of a list of numbers; `None` where it may be any."""


def columns_of(
    signature: ModelSignature | None, described: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Column, ...]:
    """Return the columns of a signature, in order.

    Args:
        signature: MLflow's.
        described: What a version says of its columns beside that: `kind` and `values` of `Column`, by name.

    Raises:
        NoRowSchema: There is no signature, or it holds tensors, nested or unnamed columns.
    """
    if signature is None or signature.inputs is None:
        raise NoRowSchema("the model was logged without a signature")
    if signature.inputs.is_tensor_spec():
        raise NoRowSchema("the model takes tensors, not rows of named columns")
    columns = []
    for spec in signature.inputs.inputs:
        if not spec.name:
            raise NoRowSchema("the model's columns have no names")
        kind_of_values = getattr(spec.type, "name", str(spec.type))
        if kind_of_values not in _FIELD_SCHEMAS:
            raise NoRowSchema(f"column {spec.name!r} has type {spec.type}, which has no plain JSON form")
        more = (described or {}).get(spec.name, {})
        kind = str(more.get("kind", "")) if kind_of_values == "double" else ""
        columns.append(
            Column(
                spec.name,
                kind_of_values,
                bool(spec.required),
                kind if kind in KINDS else "",
                tuple(map(str, more.get("values", ()))),
                bool(more.get("closed") and more.get("values")),
                int(more["length"]) if more.get("length") else None,
            )
        )
    return tuple(columns)


class RowSchema:
    """Checks the body of one row and describes it as JSON Schema."""

    def __init__(self, columns: tuple[Column, ...], single_precision: bool = False) -> None:
        """Derive the check.

        Args:
            columns: The model's inputs.
            single_precision: The model computes in 32 bits, so that a larger number would become infinite in it.
        """
        self.columns = columns
        self.max_bytes = ROW_BYTES + sum(
            6 * len(column.name) + _MOST_BYTES.get(column.type, VALUE_BYTES) for column in columns
        )
        """Bytes of the body of one row, at most."""
        fields = {column.name: _field(column, single_precision) for column in columns}
        self._schema = core_schema.typed_dict_schema(fields, extra_behavior="forbid")
        self.single_precision = single_precision
        names = self.fields()
        self._validator = SchemaValidator(core_schema.typed_dict_schema(names, extra_behavior="forbid"))

    def parse(self, body: bytes) -> list[Value]:
        """Return the row's values in the order of the columns; what is left out or null is `None`.

        Raises:
            BadRequest: 400 where the body is not one JSON object, 413 where it is larger than any row of these
                columns, 422 where a field is wrong, with the fields named.
        """
        return list(checked(self._validator, body, self.max_bytes).values())

    def fields(self) -> dict[str, core_schema.TypedDictField]:
        """Return the checks of the columns, by name."""
        return {column.name: _field(column, self.single_precision, _TAKEN) for column in self.columns}

    def values(self) -> list[core_schema.CoreSchema]:
        """Return the checks of the columns' values, in order; null where a value may be missing."""
        checks = [_value(column, self.single_precision, _TAKEN) for column in self.columns]
        return [
            check if column.required else core_schema.nullable_schema(check)
            for column, check in zip(self.columns, checks, strict=True)
        ]

    def optional_fields(self, described: bool = False) -> dict[str, core_schema.TypedDictField]:
        """Return the checks of the columns, by name, where any of them may be left out.

        Args:
            described: As the document describes them, not as they are taken.
        """
        schemas = _FIELD_SCHEMAS if described else _TAKEN
        return {
            column.name: core_schema.typed_dict_field(
                core_schema.nullable_schema(_value(column, self.single_precision, schemas)), required=False
            )
            for column in self.columns
        }

    def frame(self, rows: Sequence[Sequence[Value]]) -> pd.DataFrame:
        """Return checked rows as the model gets them: of the types that its signature names, times in UTC."""
        import pandas as pd

        by_column = zip(*rows, strict=True)
        return pd.DataFrame(
            {column.name: _items(column, values) for column, values in zip(self.columns, by_column, strict=True)}
        )

    def json_schema(self) -> dict[str, Any]:
        """Return the row as JSON Schema, the form that OpenAPI 3.1 takes."""
        return json_schema(self._schema)

    def example(self, row: Mapping[str, Any] | None) -> dict[str, Value]:
        """Return a body that passes the check: `row` where it does, else one made of the types alone.

        Args:
            row: The first row of the model's input example, where it has one.
        """
        import json

        candidate = {column.name: _plain(row.get(column.name), column) for column in self.columns} if row else None
        if candidate is not None:
            try:
                self.parse(json.dumps(candidate, allow_nan=False).encode())
            except (BadRequest, ValueError, TypeError):
                candidate = None
        return candidate or {column.name: _anything(column) for column in self.columns}


def _anything(column: Column) -> Value:
    """Return a value that a column takes."""
    if column.type == ARRAY:
        return [0.0] * (column.length if column.length is not None else 1)
    return column.values[0] if column.closed else _ANYTHING[column.type]


def json_schema(schema: core_schema.CoreSchema) -> dict[str, Any]:
    """Return a check as JSON Schema, the form that OpenAPI 3.1 takes."""
    generated = GenerateJsonSchema().generate(schema)
    for field in generated.get("properties", {}).values():
        field.pop("title", None)  # pydantic's guess at one; the name is all there is
    return generated


def columns_named(types: Mapping[str, str]) -> tuple[Column, ...]:
    """Return columns that may be left out, from name to MLflow's type."""
    return tuple(Column(name, kind, required=False) for name, kind in types.items())


def checked(validator: SchemaValidator, body: bytes, max_bytes: int) -> dict[str, Value]:
    """Return the JSON object of a row as `validator` takes it.

    Raises:
        BadRequest: As `RowSchema.parse`.
    """
    if len(body) > max_bytes:
        if body.lstrip()[:1] != b"{":
            raise _no_object()
        raise BadRequest(413, f"A row of this model holds at most {max_bytes} bytes, not {len(body)}.")
    try:
        row: dict[str, Value] = validator.validate_json(body)
    except ValidationError as error:
        raise _bad_request(error) from None
    except ValueError as error:  # what the JSON parser itself cannot represent
        raise BadRequest(400, f"The body is not valid JSON: {error}.") from None
    return row


def bad_fields(problems: Problems) -> BadRequest:
    """Return the refusal of a row with these wrong fields: the first few in the message, the others in the list."""
    text = ", ".join(f"{item['field']}: {item['problem']}" for item in problems[:3])
    more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
    return BadRequest(422, f"{text}{more}.", problems[:MAX_PROBLEMS])


def _decoded(text: str) -> bytes:
    """Return the bytes that stand in base64.

    Raises:
        ValueError: They do not.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise PydanticCustomError("base64", "must be bytes in base64") from None


def _integer(limit: int) -> core_schema.CoreSchema:
    return core_schema.int_schema(ge=-limit - 1, le=limit, strict=True)


def _whole(limit: int) -> core_schema.CoreSchema:
    """Return what `_integer` takes, and the same numbers with a point: to JSON Schema, 15.0 is an integer."""

    def to_int(value: float) -> int:
        if not value.is_integer():
            raise ValueError
        return int(value)

    with_point = core_schema.no_info_after_validator_function(to_int, core_schema.float_schema(strict=True))
    return core_schema.union_schema(
        [_integer(limit), core_schema.chain_schema([with_point, _integer(limit)])],
        mode="left_to_right",
        custom_error_type="whole_number",
        custom_error_message=f"must be a whole number from {-limit - 1} to {limit}",
    )


def _real(limit: float | None = None) -> core_schema.CoreSchema:
    if limit is None:
        return core_schema.float_schema(allow_inf_nan=False, strict=True)
    return core_schema.float_schema(allow_inf_nan=False, ge=-limit, le=limit, strict=True)


_FIELD_SCHEMAS: dict[str, core_schema.CoreSchema] = {
    "boolean": core_schema.bool_schema(strict=True),
    "integer": _integer(INT32),
    "long": _integer(INT64),
    "float": _real(FLOAT32_MAX),
    "double": _real(),
    "string": core_schema.str_schema(strict=True),
    "datetime": core_schema.datetime_schema(strict=True),
    "int": _integer(WHOLE_IN_FLOAT),
    "bool": core_schema.bool_schema(strict=True),
    "binary": core_schema.str_schema(strict=True, metadata={"pydantic_js_updates": {"contentEncoding": "base64"}}),
    ARRAY: core_schema.list_schema(_real(), strict=True),
}
_TAKEN = _FIELD_SCHEMAS | {
    "integer": _whole(INT32),
    "long": _whole(INT64),
    "int": _whole(WHOLE_IN_FLOAT),
    "binary": core_schema.no_info_after_validator_function(_decoded, core_schema.str_schema(strict=True)),
}
"""Schemas of what is taken for what the document describes."""
_ANYTHING: dict[str, Value] = {
    "boolean": False,
    "integer": 0,
    "long": 0,
    "float": 0.0,
    "double": 0.0,
    "string": "",
    "datetime": "2013-01-01T00:00:00Z",
    "binary": "",
}
_MOST_BYTES = {"string": TEXT_BYTES, "binary": BINARY_BYTES, ARRAY: TEXT_BYTES}


def _field(
    column: Column, single_precision: bool, schemas: Mapping[str, core_schema.CoreSchema] = _FIELD_SCHEMAS
) -> core_schema.TypedDictField:
    schema = _value(column, single_precision, schemas)
    if column.required:
        return core_schema.typed_dict_field(schema, required=True)
    optional = core_schema.with_default_schema(core_schema.nullable_schema(schema), default=None)
    return core_schema.typed_dict_field(optional, required=False)


def _value(
    column: Column, single_precision: bool, schemas: Mapping[str, core_schema.CoreSchema]
) -> core_schema.CoreSchema:
    if column.closed:
        return core_schema.literal_schema(list(column.values))
    if column.length is not None:
        return core_schema.list_schema(_real(), min_length=column.length, max_length=column.length, strict=True)
    if column.values and schemas is _FIELD_SCHEMAS:
        return core_schema.union_schema([core_schema.literal_schema(list(column.values)), schemas[column.type]])
    if column.kind:
        return schemas[column.kind]
    return _real(FLOAT32_MAX) if single_precision and column.type == "double" else schemas[column.type]


_DTYPES = {"boolean": "bool", "integer": "int32", "long": "int64", "float": "float32", "double": "float64"}


def _items(column: Column, values: Sequence[Value]) -> Any:
    """Return the values of a column as those of a frame's."""
    import numpy as np
    import pandas as pd

    if column.type == "datetime":  # one without a zone is in UTC
        times: pd.Series[Any] = pd.Series(list[Any](values), dtype=object)
        return pd.to_datetime(times, utc=True).dt.tz_localize(None)
    if column.type == ARRAY:
        lists = np.empty(len(values), dtype=object)
        for number, value in enumerate(values):
            lists[number] = None if value is None else np.array(value, dtype=np.float64)
        return lists
    texts = {"string", "binary"}
    exact = column.type in texts or (column.type in {"boolean", "integer", "long"} and None in values)
    if exact:
        items = np.empty(len(values), dtype=object)
        items[:] = values
        return items
    return np.array(values, dtype=_DTYPES[column.type])  # a missing number becomes NaN


def _bad_request(error: ValidationError) -> BadRequest:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    first = problems[0]
    if first["type"] == "json_invalid":
        return BadRequest(400, f"The body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}.")
    if not first["loc"]:
        return _no_object()
    return bad_fields([{"field": str(item["loc"][0])[:200], "problem": in_words(item)} for item in problems])


def _no_object() -> BadRequest:
    return BadRequest(400, "The body must be one JSON object with a key for each input of the model.")


def in_words(problem: Any) -> str:
    """Return what pydantic found wrong with a field, as a client is told."""
    return _WORDS.get(problem["type"]) or problem["msg"].replace("Input should be", "must be")


def _plain(value: Any, column: Column) -> Any:
    """Return `value` of an input example as JSON holds it in a column of this type; a missing one is null."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if column.type == ARRAY:
        return [float(number) for number in value]
    if hasattr(value, "isoformat"):
        return None if value != value else f"{value.isoformat()}{'' if value.tzinfo else 'Z'}"
    if hasattr(value, "item"):
        value = value.item()
        if isinstance(value, float) and math.isnan(value):
            return None
    if (column.type in {"integer", "long"} or column.kind == "int") and isinstance(value, float) and value.is_integer():
        return int(value)
    return bool(value) if column.kind == "bool" and value in (0, 1) else value
