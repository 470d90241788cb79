"""The Open Inference Protocol, version 2, over HTTP: a tensor for each column, a row for each item, in JSON or bytes.

The paths stand under the use case's own, so a client's base address is `http://host:port/<use_case>`. Sources:
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/extension_binary_data.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from pydantic_core import SchemaValidator, ValidationError, core_schema, from_json, to_json

from shopfloor.runs.mlflow import by_row
from shopfloor.serving.errors import BadRequest
from shopfloor.serving.model.row import ARRAY
from shopfloor.serving.model.rows import too_many
from shopfloor.serving.protocols import mlflow_scoring, tensors
from shopfloor.serving.protocols.parsed import Form, Rows
from shopfloor.serving.protocols.tensors import problem

if TYPE_CHECKING:
    import numpy as np

    from shopfloor.serving.model.loading import ServedModel
    from shopfloor.serving.model.row import Column

PLATFORM = "shopfloor"
MAX_OUTPUTS = 1000
_OUTPUTS_OF: WeakKeyDictionary[ServedModel, dict[str, dict[str, Any]]] = WeakKeyDictionary()
"""What each version answers, as its metadata say it, by name."""
_HOLDS: dict[str, set[type]] = {"BOOL": {bool}, "INT64": {int}, "FP64": {int, float}, "BYTES": {str}}
_JSON = {"content_type": "application/json"}
"""Parameters of an output whose items are texts of JSON."""
_DATATYPES = {
    "boolean": "BOOL",
    "integer": "INT32",
    "long": "INT64",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
    "datetime": "BYTES",
    "binary": "BYTES",
    ARRAY: "FP64",
}
_TAKES = {
    "boolean": {"BOOL"},
    "integer": {"INT8", "INT16", "INT32", "UINT8", "UINT16"},
    "long": {"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32"},
    "float": {"FP16", "FP32"},
    "double": {"FP16", "FP32", "FP64"},
    "string": {"BYTES"},
    "datetime": {"BYTES"},
    "binary": {"BYTES"},
    ARRAY: {"FP16", "FP32", "FP64"},
}

_ANY = core_schema.any_schema()
_TEXT = core_schema.str_schema(strict=True)
_MAP = core_schema.dict_schema(_TEXT, _ANY)


def _object(required: Mapping[str, Any], optional: Mapping[str, Any]) -> core_schema.CoreSchema:
    fields = {name: core_schema.typed_dict_field(schema) for name, schema in required.items()}
    fields |= {name: core_schema.typed_dict_field(schema, required=False) for name, schema in optional.items()}
    return core_schema.typed_dict_schema(fields, extra_behavior="ignore")


_INPUT = _object(
    {"name": _TEXT, "shape": core_schema.list_schema(core_schema.int_schema(strict=True)), "datatype": _TEXT},
    {"data": _ANY, "parameters": core_schema.nullable_schema(_MAP)},
)
_OUTPUT = _object({"name": _TEXT}, {"parameters": core_schema.nullable_schema(_MAP)})
_REQUEST = SchemaValidator(
    _object(
        {"inputs": core_schema.list_schema(_INPUT, min_length=1, fail_fast=True)},
        {
            "id": core_schema.nullable_schema(_TEXT),
            "parameters": core_schema.nullable_schema(_MAP),
            "outputs": core_schema.nullable_schema(core_schema.list_schema(_OUTPUT, fail_fast=True)),
        },
    )
)


def server_metadata(version: str) -> dict[str, Any]:
    """Return what `GET /v2` answers."""
    return {"name": PLATFORM, "version": version, "extensions": ["binary_tensor_data"]}


def model_metadata(model: ServedModel, versions: list[str]) -> dict[str, Any]:
    """Return what `GET /v2/models/<name>` answers: its tensors, each of as many items as there are rows (-1).

    The outputs are those of answers to the model's example and to its golden requests.

    Args:
        model: The version that is asked about.
        versions: All that are loaded.
    """
    form = Form.of(model, 1)
    inputs = [
        {"name": column.name, "datatype": _DATATYPES[column.type], "shape": [-1, *_width(column)]}
        | ({} if column.required else {"parameters": {"optional": True}})
        for column in form.columns
    ]
    outputs = list(_outputs_of(model).values())
    if model.classes:
        outputs = [one | {"parameters": {"classes": list(model.classes)}} for one in outputs]
    description = {"name": model.name, "versions": versions, "platform": PLATFORM, "inputs": inputs}
    return description | {"outputs": outputs}


def example(model: ServedModel, row: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a request that works as it stands: one row, the model's example where none is given; nulls are left out.

    Args:
        model: The version that is to answer.
        row: A value for each of its inputs.
    """
    values = model.example if row is None else row
    columns = [column for column in (model.rows.columns if model.rows else ()) if values[column.name] is not None]
    return {
        "inputs": [
            {
                "name": one.name,
                "shape": [1, len(cast(list[float], values[one.name]))] if one.type == ARRAY else [1],
                "datatype": _DATATYPES[one.type],
                "data": [values[one.name]],
            }
            for one in columns
        ]
    }


def _width(column: Column) -> list[int]:
    """Return the dimensions of a column's items: lists have one, of any length where that is not known."""
    return [column.length if column.length is not None else -1] if column.type == ARRAY else []


def infer(model: ServedModel, body: bytes, header_bytes: int | None, max_rows: int) -> tuple[bytes, int | None]:
    """Answer an inference request whose tensors are the model's inputs; see `read` and `respond`."""
    rows = read(Form.of(model, max_rows), body, header_bytes)
    return respond(model, rows.request, predictions(model, rows))


def read(form: Form, body: bytes, header_bytes: int | None) -> Rows:
    """Read an inference request.

    Args:
        form: What the version takes.
        body: JSON with `inputs`, and `id`, `parameters` and `outputs` where wanted; tensors as bytes behind it.
        header_bytes: Length of the JSON; `None` where it is all there is.

    Raises:
        BadRequest: It is none, or its tensors are not what the model takes.
    """
    if header_bytes is not None and not 0 < header_bytes <= len(body):
        raise BadRequest(400, f"The JSON of the request cannot be {header_bytes} of its {len(body)} bytes.")
    request = _parsed(body if header_bytes is None else body[:header_bytes])
    entities = dict(form.entities)
    types = entities | {column.name: column.type for column in form.columns}
    items = _tensors(request, types, b"" if header_bytes is None else body[header_bytes:])
    missing = [column.name for column in form.columns if column.required and column.name not in items]
    if missing and not entities:
        raise BadRequest(422, f"{missing[0]} is missing.", [problem(name, "is missing") for name in missing[:20]])
    lengths = {len(one) for one in items.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise BadRequest(422, "All inputs must hold the same number of rows, at least one.")
    if max(lengths) > form.max_rows:
        raise too_many(max(lengths), form.max_rows)
    wishes = _wishes(request)
    if missing or not entities.keys().isdisjoint(items):
        return Rows(records=_records(items), request=wishes)
    if form.quick and form.many_rows is not None:
        return Rows(matrix=form.many_rows.stack(items), request=wishes)
    # The way of MLflow's scoring requests, so that types and answers are the same.
    if form.direct:  # the usual form has every column, and in order
        items = {one.name: items.get(one.name, [None] * max(lengths)) for one in form.columns}
    data = [list(row.values()) for row in _records(items)]
    table = mlflow_scoring.of_split(form, from_json(to_json({"columns": list(items), "data": data})))
    return replace(table, request=wishes)


def predictions(model: ServedModel, rows: Rows) -> list[Any]:
    """Return a prediction for each row of a request that has all of the model's inputs.

    Raises:
        BadRequest: The model refuses the rows.
    """
    if rows.matrix is not None:
        return mlflow_scoring.predictions(model, rows)
    answers: list[Any] = by_row(from_json(mlflow_scoring.respond(model, rows))["predictions"], len(rows.table))
    return answers


def respond(model: ServedModel, request: Mapping[str, Any], predicted: list[Any]) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the length of the JSON in it where tensors follow as bytes.

    Args:
        model: The version that answered.
        request: `id`, `parameters` and `outputs` of the request, where it has them.
        predicted: A prediction for each row.

    Raises:
        BadRequest: The request names an output that the model does not have.
    """
    outputs = _outputs(predicted, _outputs_of(model))
    choices = {item["name"]: item.get("parameters") or {} for item in request.get("outputs") or []}
    for name in choices:
        if name not in {output["name"] for output in outputs}:
            raise BadRequest(400, f"The model has no output {name[:100]!r}.")
    head: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if request.get("id") is not None:
        head["id"] = request["id"]
    as_bytes = (request.get("parameters") or {}).get("binary_data_output", False)
    tail = b""
    head["outputs"] = []
    for output in outputs:
        if choices and output["name"] not in choices:
            continue
        if choices.get(output["name"], {}).get("binary_data", as_bytes) is True:
            part = tensors.to_bytes(output["datatype"], output.pop("data"))
            output["parameters"] = output.get("parameters", {}) | {"binary_data_size": len(part)}
            tail += part
        head["outputs"].append(output)
    text = to_json(head, inf_nan_mode="null")
    return text + tail, len(text) if tail else None


def _wishes(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a request says of its answer.

    Raises:
        BadRequest: It names more outputs than any model has.
    """
    outputs = request.get("outputs") or []
    if len(outputs) > MAX_OUTPUTS:
        raise BadRequest(400, f"The request names {len(outputs)} outputs; at most {MAX_OUTPUTS} are looked at.")

    def only(parameters: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
        return {name: (parameters or {}).get(name) is True}

    return {
        "id": request.get("id"),
        "parameters": only(request.get("parameters"), "binary_data_output"),
        "outputs": [
            {"name": one["name"], "parameters": only(one["parameters"], "binary_data") if one.get("parameters") else {}}
            for one in outputs
        ],
    }


def _records(items: Mapping[str, np.ndarray | list[Any]]) -> list[dict[str, Any]]:
    """Return the rows of tensors of one length."""
    rows = zip(*map(_listed, items.values()), strict=True)
    return [dict(zip(items, row, strict=True)) for row in rows]


def _listed(items: np.ndarray | list[Any]) -> list[Any]:
    return items if isinstance(items, list) else list(items.tolist())


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        request: dict[str, Any] = _REQUEST.validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part)[:100] for part in first["loc"])
        message = str(first["msg"]).replace("Input should be", "must be")[:200]
        raise BadRequest(400, f"{where or 'The body'}: {message}.") from None
    except ValueError as error:
        raise BadRequest(400, f"The body is not valid JSON: {error}.") from None
    return request


def _tensors(request: dict[str, Any], types: Mapping[str, str], tail: bytes) -> dict[str, np.ndarray | list[Any]]:
    """Return the items of each tensor.

    Raises:
        BadRequest: A tensor is unknown, doubled, of another datatype or shape.
    """
    columns: dict[str, np.ndarray | list[Any]] = {}
    begin = 0
    for tensor in request["inputs"]:
        name, short = tensor["name"], tensor["name"][:100]
        kind = types.get(name)
        if kind is None:
            raise BadRequest(422, f"{short} is not an input of this model.", [problem(short, "is not an input")])
        if name in columns:
            raise BadRequest(422, f"{short} is given twice.", [problem(short, "is given twice")])
        if tensor["datatype"] not in _TAKES[kind]:
            dtype = _DATATYPES[kind]
            raise BadRequest(422, f"{short} must be of datatype {dtype}.", [problem(short, f"must be {dtype}")])
        form = {ARRAY: "list", "binary": "bytes"}.get(kind, "plain")
        columns[name], begin = tensors.items(short, tensor, tail, begin, form)
    if begin != len(tail):
        raise BadRequest(400, f"The tensors name {begin} bytes, and {len(tail)} follow the JSON.")
    return columns


def _outputs_of(model: ServedModel) -> dict[str, dict[str, Any]]:
    """Return what a version answers, as its metadata say it, by name."""
    if model not in _OUTPUTS_OF:
        known = len(model.known_answers)
        answers = model.known_answers if model.classes else by_row(model.as_mlflow, known)
        _OUTPUTS_OF[model] = {
            output["name"]: {name: value for name, value in output.items() if name != "data"}
            | {"shape": [-1, *output["shape"][1:]]}
            for output in _outputs(answers if known else [])
        }
    return _OUTPUTS_OF[model]


def _named(predictions: Sequence[Any]) -> dict[str, list[Any]]:
    """Return the items of each output: one, or one for each key where predictions have several.

    What a prediction says by name itself, as the probabilities of classes, is a row of one tensor in the same order.
    """
    if set(map(type, predictions)) != {dict}:
        return {"prediction": list(predictions)}
    return {name: [_unnamed(row.get(name)) for row in predictions] for name in predictions[0]}


def _unnamed(value: Any) -> Any:
    numbers = isinstance(value, dict) and all(isinstance(one, int | float) for one in value.values())
    return list(value.values()) if numbers else value


def _regular(values: list[Any]) -> bool:
    """Tell whether items are all plain, or all lists of one shape, to any depth."""
    kinds = set(map(type, values))
    if list not in kinds:
        return dict not in kinds
    return len(kinds) == 1 and len(set(map(len, values))) == 1 and _regular([item for row in values for item in row])


def _outputs(predictions: Sequence[Any], said: Mapping[str, dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Return predictions as tensors; what makes none (lists of any length, nested objects) is a text of JSON a row.

    Args:
        predictions: An item a row.
        said: What the metadata say of the outputs, which these rows alone may not show.
    """
    outputs = []
    for name, values in _named(predictions).items():
        one = (said or {}).get(name, {})
        if one.get("parameters") == _JSON or not _regular(values):
            texts = [to_json(value).decode() for value in values]
            outputs.append(_tensor(name, "BYTES", [len(texts)], texts) | {"parameters": dict(_JSON)})
        else:
            outputs.append(_output(name, values, one.get("datatype")))
    return outputs


def _output(name: str, values: list[Any], said: str | None) -> dict[str, Any]:
    shape = [len(values)]
    flat = values
    while flat and isinstance(flat[0], list):
        shape.append(len(flat[0]))
        flat = [item for row in flat for item in row]
    kinds = set(map(type, flat)) - {type(None)}
    candidates = ([said] if said else []) + (list(_HOLDS) if kinds else ["FP64"])
    datatype = next((one for one in candidates if kinds <= _HOLDS[one]), "BYTES")
    return _tensor(name, datatype, shape, flat)


def _tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}
