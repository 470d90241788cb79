"""MLflow's scoring protocol, `POST /invocations`: the formats and the answers of `mlflow models serve`.

Numbers in a usual form go straight to the model. Everything else goes through MLflow's own parser, which makes a table
of whatever a body describes; how large that may become is looked at before there is one.
"""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from shopfloor.errors import MAX_CHARACTERS, first_line
from shopfloor.serving.errors import BadRequest
from shopfloor.serving.model.native import as_mlflow
from shopfloor.serving.model.row import NESTED, bad_fields
from shopfloor.serving.model.rows import RECORDS, SPLIT, too_many
from shopfloor.serving.protocols.parsed import Form, Rows

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel

    from shopfloor.serving.model.loading import ServedModel
    from shopfloor.serving.model.row import Column

JSON, CSV = "application/json", "text/csv"
FORMATS = {RECORDS, SPLIT, "inputs", "instances"}
"""Keys of MLflow's formats in JSON."""
MORE_COLUMNS = 100
"""Columns that a table may have beside the model's, which does not look at them."""
COLUMNS = 2000
"""Columns of a table for a model that does not say which it takes."""
PARAMS_BYTES = 64 * 1024
"""JSON of the parameters that a request may have beside its rows."""


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


def invoke(model: ServedModel, body: bytes, content_type: str, max_rows: int) -> bytes:
    """Answer as MLflow's scoring server does; see `read` and `respond`."""
    return respond(model, read(Form.of(model, max_rows), body, content_type))


def read(form: Form, body: bytes, content_type: str) -> Rows:
    """Return the rows of a request.

    Args:
        form: What the version takes.
        body: One of MLflow's formats, in JSON or CSV.
        content_type: Says which.

    Raises:
        BadRequest: The body is none of MLflow's formats, or describes too large a table.
    """
    widest = (len(form.inputs) + MORE_COLUMNS if form.inputs else COLUMNS) + len(form.entities)
    if kind_of(content_type) == CSV:
        return _by_mlflow(form, _few_columns(body, widest), content_type)
    rows = read_as_usual(form, body)
    if rows is not None:
        return rows
    parsed = _bounded(body, form.max_rows, widest)
    if form.inputs is not None:
        _require_columns(form, parsed)
    if form.entities and form.inputs is not None:
        records = _incomplete(form, parsed)
        if records:
            return Rows(records=records)
        rows = _quick(form, body, strangers=True)
    return rows or _by_mlflow(form, parsed, content_type)


def read_as_usual(form: Form, body: bytes) -> Rows | None:
    """Return the rows of a request in JSON whose form and types are the usual ones; `None` of any other.

    Raises:
        BadRequest: There are too many rows, or none.
    """
    return _quick(form, body, strangers=not form.entities)


def respond(model: ServedModel, rows: Rows) -> bytes:
    """Return what MLflow's scoring server answers to rows that lack nothing.

    Raises:
        BadRequest: The rows do not meet the model's signature, or the model cannot answer them.
    """
    if rows.matrix is not None or (rows.typed and model.direct is not None):
        return to_json({"predictions": predictions(model, rows)})
    from mlflow.exceptions import MlflowException

    try:
        answers = model.pyfunc.predict(_checked(model.pyfunc, rows.table), params=rows.params)
        return as_mlflow(answers, rows.bare).encode()
    except MlflowException as error:
        raise BadRequest(400, _reason(error)) from error
    except BadRequest:
        raise
    except Exception as error:
        text = f"The model cannot answer: {type(error).__name__}: {first_line(error)}"
        raise BadRequest(400, text[:MAX_CHARACTERS]) from error


def predictions(model: ServedModel, rows: Rows) -> list[Any]:
    """Return a prediction for each row of a matrix, or of a table that is as the model gets it.

    Raises:
        BadRequest: The model cannot answer them.
    """
    try:
        if rows.typed and model.direct is not None:
            return model.direct(rows.table)
        if model.native is None or rows.matrix is None:
            raise AssertionError("only a model with a quick way in has its rows as a matrix")
        return model.native.as_mlflow(rows.matrix)
    except Exception as error:
        raise model.unanswerable(error) from error


def of_split(form: Form, split: dict[str, Any]) -> Rows:
    """Return the rows of a table in MLflow's format of columns and data; see `read`."""
    rows = _quick(form, to_json({SPLIT: split}), strangers=True) if form.direct else None
    return rows or _by_mlflow(form, {SPLIT: split}, JSON)


def _require_columns(form: Form, parsed: dict[str, Any]) -> None:
    """Refuse what names no rows of the model's columns: MLflow says so as well, but only once it has been imported.

    Raises:
        BadRequest: The body has none of the formats, or no row has a column that each needs.
    """
    formats = FORMATS & parsed.keys()
    if len(formats) != 1:
        raise BadRequest(400, f"The body must have one of MLflow's formats: {', '.join(sorted(FORMATS))}.")
    value = parsed[formats.pop()]
    if isinstance(value, dict):
        names = value.get("columns", []) if SPLIT in parsed else list(value)
    else:
        names = [name for row in value if isinstance(row, dict) for name in row] if isinstance(value, list) else []
    allowed = {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
    lacking = [column.name for column in form.columns if column.required and column.name not in allowed]
    if allowed and lacking and not form.entities:
        problems = [{"field": name, "problem": "is missing"} for name in lacking[:20]]
        raise BadRequest(400, f"The rows lack {', '.join(lacking[:20])}.", problems)


def _quick(form: Form, body: bytes, *, strangers: bool) -> Rows | None:
    """Return rows of plain values that come in a usual form of MLflow's JSON; `None` for anything else.

    Args:
        form: What the version takes.
        body: In JSON.
        strangers: Whether rows may have fields that the model does not know.

    Raises:
        BadRequest: There are too many rows, or none.
    """
    rows = form.many_rows.parse(body, strangers=strangers) if form.many_rows else None
    if form.many_rows is None or rows is None:
        return None
    if not 0 < len(rows) <= form.max_rows:
        raise too_many(len(rows), form.max_rows) if rows else _no_row()
    if form.direct:
        return Rows(table=form.row_schema.frame(rows), typed=True)
    return Rows(matrix=form.many_rows.matrix(rows))


def _incomplete(form: Form, parsed: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the rows of a request that names entities or lacks inputs of the model; `None` where it does neither."""
    records = _records(parsed)
    if not records:
        return None
    required = {column.name for column in form.columns if column.required}
    entities = dict(form.entities)
    if all(required <= row.keys() and entities.keys().isdisjoint(row) for row in records):
        return None
    names = entities.keys() | {column.name for column in form.columns}
    rows = [{name: value for name, value in row.items() if name in names} for row in records]
    for row in rows:
        for name, value in row.items():
            if isinstance(value, list | dict):
                raise _not_plain(name)
    return rows


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


def _by_mlflow(form: Form, data: dict[str, Any] | bytes, content_type: str) -> Rows:
    """Have MLflow's scoring server read a body, and keep what it hands to the model.

    Raises:
        BadRequest: It cannot read it.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc.scoring_server import invocations

    signature = ModelSignature.from_dict(form.signature) if form.signature else None
    model = _Listener(Model(signature=signature))
    try:
        answer = invocations(data, content_type, model, model.metadata.get_input_schema())
    except MlflowException as error:
        raise BadRequest(400, _reason(error)) from error
    except Exception as error:  # its parsers leave the strangest bodies to the web framework
        raise BadRequest(400, f"The body cannot be read: {first_line(error)}.") from error
    if answer.status != 200:
        raise BadRequest(answer.status, answer.response)
    table = _known(form, model.data)
    count = len(next(iter(table.values()), [])) if isinstance(table, dict) else len(table)
    if count > form.max_rows:
        raise too_many(count, form.max_rows)
    if model.params and len(to_json(model.params)) > PARAMS_BYTES:
        raise BadRequest(413, f"The params hold more than {PARAMS_BYTES} bytes.")
    return Rows(table=table, params=model.params, bare=not answer.response.startswith("{"))


def _known(form: Form, table: Any) -> Any:
    """Return a frame without the columns that the model does not know, times in it as the model gets them.

    Raises:
        BadRequest: A column of plain values holds others.
    """
    if form.inputs is None or not hasattr(table, "columns"):
        return table
    columns = {column.name: column for column in form.columns}
    table = table.loc[:, [name in columns for name in table.columns]]
    for number, name in enumerate(table.columns):
        column = table.iloc[:, number]
        if columns[name].closed:
            _require_known(column, columns[name])
        if (
            columns[name].type not in NESTED
            and column.dtype == object
            and any(isinstance(value, list | dict) for value in column)
        ):
            raise _not_plain(str(name))
    for one in form.columns:
        if one.name in table.columns and (one.kind or one.type == "datetime"):
            table = table.assign(**{one.name: _as_kind(table[one.name], one)})
    return table


def _require_known(values: Any, column: Column) -> None:
    """Refuse a text that is none of the few that there are.

    Raises:
        BadRequest: One is not.
    """
    if not values.dropna().isin(column.values).all():
        words = ", ".join(map(repr, column.values))
        raise bad_fields([{"field": column.name, "problem": f"must be one of {words}"}])


def _as_kind(values: Any, column: Column) -> Any:
    """Return a column of times in UTC without a zone, or one of whole numbers or of yes and no as it is.

    Raises:
        BadRequest: It is not what the column is.
    """
    import pandas as pd

    if column.type == "datetime":
        return pd.to_datetime(values, utc=True).dt.tz_localize(None)
    numbers = values.dropna()
    if column.kind == "bool" and not numbers.isin([0, 1]).all():
        raise bad_fields([{"field": column.name, "problem": "must be true or false"}])
    if column.kind == "int" and not (numbers % 1 == 0).all():
        raise bad_fields([{"field": column.name, "problem": "must be a whole number"}])
    return values


def _not_plain(name: str) -> BadRequest:
    return BadRequest(400, f"{name} must hold plain values.", [{"field": name, "problem": "must hold plain values"}])


class _Listener:
    """Stands where MLflow's scoring server has its model, and keeps what that would be asked."""

    def __init__(self, metadata: Any) -> None:
        self.metadata = metadata
        self.data: Any = None
        self.params: dict[str, Any] | None = None

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> list[Any]:
        self.data, self.params = data, params
        return []


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


def _checked(pyfunc: PyFuncModel, table: Any) -> Any:
    """Return a table as the model gets it: MLflow itself predicts from a missing required number.

    Raises:
        BadRequest: A required value is missing, or a number is not finite.
    """
    import numpy as np
    import pandas as pd

    if not isinstance(table, pd.DataFrame):
        return table
    if not len(table):
        raise _no_row()
    schema = pyfunc.metadata.get_input_schema()
    has_names = schema is not None and schema.has_input_names() and not schema.is_tensor_spec()
    required = set(schema.required_input_names()) if has_names else set()
    problems = []
    for name in table.columns:
        if name in required and table[name].isna().any():
            problems.append({"field": str(name), "problem": "is missing in a row"})
        elif table[name].dtype.kind == "f" and np.isinf(table[name]).any():
            problems.append({"field": str(name), "problem": "must be a finite number"})
    if problems:
        raise bad_fields(problems)
    types = {spec.name: getattr(spec.type, "name", "") for spec in schema.inputs} if has_names else {}
    numbers = {name for name, kind in types.items() if kind in {"double", "float"}}
    # What is left out is missing; MLflow would hand on a frame that lacks a column.
    return table.assign(**dict.fromkeys(numbers - required - set(table.columns), math.nan))


def _reason(error: Any) -> str:
    """Return what is wrong, without MLflow's copy of the data and its schema."""
    message = str(error.message)
    if "Failed to enforce schema" in message:
        message = message.rpartition("Error: ")[2]
    return message.partition("\nInput:")[0][:MAX_CHARACTERS]
