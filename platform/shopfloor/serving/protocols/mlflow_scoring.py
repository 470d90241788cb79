"""MLflow's scoring protocol, `POST /invocations`: the formats and the answers of `mlflow models serve`.

Numbers in a usual form go straight to the model. Everything else goes through MLflow's own parser, which makes a table
of whatever a body describes; how large that may become is looked at before there is one.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from shopfloor.errors import MAX_CHARACTERS, first_line
from shopfloor.serving.errors import BadRequest
from shopfloor.serving.model.loading import ServedModel
from shopfloor.serving.model.row import bad_fields
from shopfloor.serving.model.rows import RECORDS, SPLIT, too_many
from shopfloor.serving.replica.http import Answer

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel

JSON, CSV = "application/json", "text/csv"
MORE_COLUMNS = 100
"""Columns that a table may have beside the model's, which does not look at them."""
COLUMNS = 2000
"""Columns of a table for a model that does not say which it takes."""


def kind_of(content_type: str) -> str:
    """Return `JSON` or `CSV`.

    Raises:
        BadRequest: The content type is another one, or none.
    """
    kind, _, rest = content_type.partition(";")
    kind = kind.strip()
    if kind not in {JSON, CSV} or rest.strip().lower() not in {"", "charset=utf-8"}:
        raise BadRequest(415, f"The content type must be {JSON} or {CSV} in UTF-8, not {content_type[:100] or 'none'}.")
    return kind


def invoke(model: ServedModel, body: bytes, content_type: str, max_rows: int) -> Answer:
    """Answer as MLflow's scoring server does.

    Args:
        model: The version that answers.
        body: One of MLflow's formats, in JSON or CSV.
        content_type: Says which.
        max_rows: Rows that the request may hold.

    Raises:
        BadRequest: The body is none of MLflow's formats, or does not meet the model's signature.
    """
    if kind_of(content_type) == JSON:
        answer = quick(model, body, max_rows)
        if answer is not None:
            return answer
        return _through_mlflow(model.pyfunc, _bounded(body, max_rows, _columns(model)), content_type, max_rows)
    return _through_mlflow(model.pyfunc, _few_columns(body, _columns(model)), content_type, max_rows)


def quick(model: ServedModel, body: bytes, max_rows: int, *, strangers: bool = True) -> Answer | None:
    """Answer rows of numbers that come in a usual form of MLflow's JSON; `None` for anything else.

    Args:
        model: The version that answers.
        body: In JSON.
        max_rows: Rows that the request may hold.
        strangers: Whether rows may have fields that the model does not know.

    Raises:
        BadRequest: There are too many rows, or none, or the model cannot answer them.
    """
    if model.native is None or model.many_rows is None:
        return None
    rows = model.many_rows.parse(body, strangers=strangers)
    if rows is None:
        return None
    if not 0 < len(rows) <= max_rows:
        raise too_many(len(rows), max_rows) if rows else _no_row()
    try:
        answers = model.native.as_mlflow(model.many_rows.matrix(rows))
    except Exception as error:
        raise model.unanswerable(error) from error
    return 200, JSON, to_json({"predictions": answers})


def incomplete(
    model: ServedModel, body: bytes, max_rows: int, entities: Mapping[str, str]
) -> list[dict[str, Any]] | None:
    """Return the rows of a request that names entities or lacks inputs of the model; `None` where it does neither.

    Raises:
        BadRequest: The body is no JSON object, or describes too large a table.
    """
    if model.rows is None:
        return None
    parsed = _bounded(body, max_rows, _columns(model) + len(entities))
    records = _records(parsed)
    if not records:
        return None
    required = {column.name for column in model.rows.columns if column.required}
    if all(required <= row.keys() and entities.keys().isdisjoint(row) for row in records):
        return None
    return records


def _records(parsed: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the rows of MLflow's two formats of data frames, where they are well-formed."""
    rows = parsed.get(RECORDS)
    if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
        return rows
    split = parsed.get(SPLIT)
    if not isinstance(split, dict) or not isinstance(names := split.get("columns"), list):
        return None
    data = split.get("data")
    if not isinstance(data, list) or not all(isinstance(row, list) and len(row) == len(names) for row in data):
        return None
    return [dict(zip(map(str, names), row, strict=True)) for row in data]


def _through_mlflow(pyfunc: PyFuncModel, data: dict[str, Any] | bytes, content_type: str, max_rows: int) -> Answer:
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc.scoring_server import invocations

    checked = _Checked(pyfunc, max_rows)
    try:
        answer = invocations(data, content_type, checked, pyfunc.metadata.get_input_schema())
    except MlflowException as error:
        raise checked.refusal or BadRequest(400, _reason(error)) from error
    except Exception as error:  # its parsers leave the strangest bodies to the web framework
        raise BadRequest(400, f"The body cannot be read: {first_line(error)}.") from error
    if answer.status != 200:
        raise BadRequest(answer.status, answer.response)
    return answer.status, answer.mimetype, answer.response.encode()


def _columns(model: ServedModel) -> int:
    return len(model.rows.columns) + MORE_COLUMNS if model.rows else COLUMNS


def _no_row() -> BadRequest:
    return BadRequest(400, "The request holds no row.")


def _bounded(body: bytes, max_rows: int, max_columns: int) -> dict[str, Any]:
    """Return the JSON of a request, of which no table larger than this will be made.

    Raises:
        BadRequest: 400 where it is no JSON object, 413 where it describes a larger table.
    """
    try:
        parsed = from_json(body)
    except ValueError as error:
        raise BadRequest(400, f"The body is not valid JSON: {error}.") from None
    if not isinstance(parsed, dict):
        raise BadRequest(400, "The body must be a JSON object with one of MLflow's formats.")
    for name, value in parsed.items():
        rows, columns = _size(name, value)
        if rows > max_rows:
            raise too_many(rows, max_rows)
        if columns > max_columns:
            raise _too_wide(columns, max_columns)
    return parsed


def _too_wide(columns: int, max_columns: int) -> BadRequest:
    return BadRequest(413, f"The request names {columns} columns; at most {max_columns} are looked at.")


def _size(name: str, value: Any) -> tuple[int, int]:
    """Return rows and columns of the table that a format's value describes."""
    if name == SPLIT and isinstance(value, dict):
        parts = [part for key in ("index", "data") if isinstance(part := value.get(key), list)]
        names = value.get("columns")
        data = value.get("data")
        widest = max((len(row) for row in data if isinstance(row, list)), default=0) if isinstance(data, list) else 0
        return max(map(len, parts), default=0), max(len(names) if isinstance(names, list) else 0, widest)
    if name in {RECORDS, "instances", "inputs"}:
        if isinstance(value, list):
            return len(value), len({key for row in value if isinstance(row, dict) for key in row})
        if isinstance(value, dict):
            return max((len(items) for items in value.values() if isinstance(items, list)), default=0), len(value)
    return 0, 0


def _few_columns(body: bytes, max_columns: int) -> bytes:
    """Return the CSV of a request whose table is no wider than this.

    Raises:
        BadRequest: 400 where it is no CSV in UTF-8, 413 where it is wider.
    """
    try:
        header = next(csv.reader(io.StringIO(body.decode())), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadRequest(400, f"The body is not valid CSV: {error}.") from None
    if len(header) > max_columns:
        raise _too_wide(len(header), max_columns)
    return body


class _Checked:
    """A pyfunc model that looks at the parsed rows once more: MLflow itself predicts from a missing required number."""

    def __init__(self, pyfunc: PyFuncModel, max_rows: int) -> None:
        self.metadata = pyfunc.metadata
        self.refusal: BadRequest | None = None
        self._pyfunc = pyfunc
        self._max_rows = max_rows
        schema = self.metadata.get_input_schema()
        named = schema is not None and schema.has_input_names() and not schema.is_tensor_spec()
        self._required = set(schema.required_input_names()) if named else set()
        numbers = (
            {spec.name for spec in schema.inputs if str(spec.type) in {"DataType.double", "DataType.float"}}
            if named
            else set()
        )
        self._optional = numbers - self._required

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        self.refusal = self._refuse(data)
        if self.refusal:
            raise self.refusal
        for column in self._optional - set(getattr(data, "columns", self._optional)):
            data[column] = math.nan  # left out is missing; MLflow would hand on a frame that lacks a column
        return self._pyfunc.predict(data, params=params)

    def _refuse(self, data: Any) -> BadRequest | None:
        import numpy as np
        import pandas as pd

        rows = len(next(iter(data.values()), [])) if isinstance(data, dict) else len(data)
        if rows > self._max_rows:
            return too_many(rows, self._max_rows)
        if not isinstance(data, pd.DataFrame):
            return None
        if not rows:
            return _no_row()
        problems = []
        for name in data.columns:
            if name in self._required and data[name].isna().any():
                problems.append({"field": str(name), "problem": "is missing in a row"})
            elif data[name].dtype.kind == "f" and np.isinf(data[name]).any():
                problems.append({"field": str(name), "problem": "must be a finite number"})
        return bad_fields(problems) if problems else None


def _reason(error: Any) -> str:
    """Return what is wrong, without MLflow's copy of the data, its schema and its traceback."""
    message = str(error.message)
    trace = error.json_kwargs.get("stack_trace", "")
    if "unexpected error while evaluating" in message and trace:
        lines = [line.strip() for line in trace.splitlines() if re.match(r"\w[\w.]*(Error|Exception): ", line)]
        return f"The model cannot answer: {lines[-1] if lines else message}"[:MAX_CHARACTERS]
    if "Failed to enforce schema" in message:
        message = message.rpartition("Error: ")[2]
    return message.partition("\nInput:")[0][:MAX_CHARACTERS]
