"""The Open Inference Protocol, version 2, over HTTP: a tensor for each column, a row for each item, in JSON or bytes.

The paths stand under the use case's own, so a client's base address is `http://host:port/<use_case>`. Sources:
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/extension_binary_data.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_core import SchemaValidator, ValidationError, core_schema, from_json, to_json

from shopfloor.serving.errors import BadRequest
from shopfloor.serving.model.loading import ServedModel
from shopfloor.serving.model.row import Column
from shopfloor.serving.model.rows import SPLIT, too_many
from shopfloor.serving.protocols import tensors
from shopfloor.serving.protocols.mlflow_scoring import JSON, invoke
from shopfloor.serving.protocols.tensors import problem

if TYPE_CHECKING:
    import numpy as np

PLATFORM = "shopfloor"
_DATATYPES = {
    "boolean": "BOOL",
    "integer": "INT32",
    "long": "INT64",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
    "datetime": "BYTES",
}
_TAKES = {
    "boolean": {"BOOL"},
    "integer": {"INT8", "INT16", "INT32", "UINT8", "UINT16"},
    "long": {"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32"},
    "float": {"FP16", "FP32"},
    "double": {"FP16", "FP32", "FP64"},
    "string": {"BYTES"},
    "datetime": {"BYTES"},
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
        {"inputs": core_schema.list_schema(_INPUT, min_length=1)},
        {
            "id": core_schema.nullable_schema(_TEXT),
            "parameters": core_schema.nullable_schema(_MAP),
            "outputs": core_schema.nullable_schema(core_schema.list_schema(_OUTPUT)),
        },
    )
)


def server_metadata(version: str) -> dict[str, Any]:
    """Return what `GET /v2` answers."""
    return {"name": PLATFORM, "version": version, "extensions": ["binary_tensor_data"]}


def model_metadata(model: ServedModel, versions: list[str]) -> dict[str, Any]:
    """Return what `GET /v2/models/<name>` answers: its tensors, each of as many items as there are rows (-1).

    Args:
        model: The version that is asked about.
        versions: All that are loaded.
    """
    inputs = [
        {"name": column.name, "datatype": _DATATYPES[column.type], "shape": [-1]}
        | ({} if column.required else {"parameters": {"optional": True}})
        for column in _columns(model)
    ]
    outputs = [{"name": "prediction", "datatype": "FP64", "shape": [-1]}]
    return {"name": model.name, "versions": versions, "platform": PLATFORM, "inputs": inputs, "outputs": outputs}


def example(model: ServedModel) -> dict[str, Any]:
    """Return a request that works as it stands: the model's example as one row; nulls are left out."""
    columns = model.rows.columns if model.rows else ()
    given = [(column, model.example[column.name]) for column in columns if model.example[column.name] is not None]
    return {
        "inputs": [
            {"name": column.name, "shape": [1], "datatype": _DATATYPES[column.type], "data": [value]}
            for column, value in given
        ]
    }


@dataclass(frozen=True)
class Asked:
    """An inference request, read and held against the model's inputs."""

    request: dict[str, Any]
    tensors: dict[str, np.ndarray | list[Any]]
    """By name, all of one length."""

    def missing(self, model: ServedModel) -> list[str]:
        """Return the inputs that the model needs and that have no tensor."""
        return [column.name for column in _columns(model) if column.required and column.name not in self.tensors]

    def records(self) -> list[dict[str, Any]]:
        """Return the rows."""
        rows = zip(*map(_listed, self.tensors.values()), strict=True)
        return [dict(zip(self.tensors, row, strict=True)) for row in rows]


def infer(model: ServedModel, body: bytes, header_bytes: int | None, max_rows: int) -> tuple[bytes, int | None]:
    """Answer an inference request whose tensors are the model's inputs; see `read` and `respond`."""
    asked = read(model, body, header_bytes, max_rows)
    return respond(model, asked, predictions(model, asked, max_rows))


def read(
    model: ServedModel, body: bytes, header_bytes: int | None, max_rows: int, entities: Mapping[str, str] | None = None
) -> Asked:
    """Read an inference request.

    Args:
        model: The version that is to answer.
        body: JSON with `inputs`, and `id`, `parameters` and `outputs` where wanted; tensors as bytes behind it.
        header_bytes: Length of the JSON; `None` where it is all there is.
        max_rows: Rows that the request may hold.
        entities: Tensors that may come beside the model's inputs, or instead of them; name to MLflow's type.

    Raises:
        BadRequest: It is none, or its tensors are not what the model takes.
    """
    if header_bytes is not None and not 0 < header_bytes <= len(body):
        raise BadRequest(400, f"The JSON of the request cannot be {header_bytes} of its {len(body)} bytes.")
    request = _parsed(body if header_bytes is None else body[:header_bytes])
    types = dict(entities or {}) | {column.name: column.type for column in _columns(model)}
    asked = Asked(request, _tensors(request, types, b"" if header_bytes is None else body[header_bytes:]))
    missing = [] if entities else asked.missing(model)
    if missing:
        raise BadRequest(422, f"{missing[0]} is missing.", [problem(name, "is missing") for name in missing[:20]])
    lengths = {len(items) for items in asked.tensors.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise BadRequest(422, "All inputs must hold the same number of rows, at least one.")
    if max(lengths) > max_rows:
        raise too_many(max(lengths), max_rows)
    return asked


def predictions(model: ServedModel, asked: Asked, max_rows: int) -> list[Any]:
    """Return a prediction for each row of a request that has all of the model's inputs.

    Raises:
        BadRequest: An item is none that its column takes, or the model refuses the rows.
    """
    if model.native is not None and model.many_rows is not None:
        matrix = model.many_rows.stack(asked.tensors)
        try:
            return model.native.as_mlflow(matrix)
        except Exception as error:
            raise model.unanswerable(error) from error
    # The way of MLflow's scoring requests, so that types and answers are the same.
    rows = zip(*map(_listed, asked.tensors.values()), strict=True)
    split = {"columns": list(asked.tensors), "data": [list(row) for row in rows]}
    _, _, answer = invoke(model, to_json({SPLIT: split}), JSON, max_rows)
    found: list[Any] = from_json(answer)["predictions"]
    return found


def respond(model: ServedModel, asked: Asked, predicted: list[Any]) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the length of the JSON in it where tensors follow as bytes.

    Raises:
        BadRequest: The request names an output that the model does not have.
    """
    request = asked.request
    outputs = _outputs(predicted)
    wanted = {item["name"]: item.get("parameters") or {} for item in request.get("outputs") or []}
    for name in wanted:
        if name not in {output["name"] for output in outputs}:
            raise BadRequest(400, f"The model has no output {name[:100]!r}.")
    head: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if request.get("id") is not None:
        head["id"] = request["id"]
    as_bytes = (request.get("parameters") or {}).get("binary_data_output", False)
    tail = b""
    head["outputs"] = []
    for output in outputs:
        if wanted and output["name"] not in wanted:
            continue
        if wanted.get(output["name"], {}).get("binary_data", as_bytes) is True:
            part = tensors.to_bytes(output["datatype"], output.pop("data"))
            output["parameters"] = {"binary_data_size": len(part)}
            tail += part
        head["outputs"].append(output)
    text = to_json(head, inf_nan_mode="null")
    return text + tail, len(text) if tail else None


def _listed(items: np.ndarray | list[Any]) -> list[Any]:
    return items if isinstance(items, list) else list(items.tolist())


def _columns(model: ServedModel) -> tuple[Column, ...]:
    if model.rows is None:
        raise BadRequest(422, f"Version {model.version} answers /invocations only: {model.reason}.")
    return model.rows.columns


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        request: dict[str, Any] = _REQUEST.validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part)[:100] for part in first["loc"])
        said = str(first["msg"]).replace("Input should be", "must be")[:200]
        raise BadRequest(400, f"{where or 'The body'}: {said}.") from None
    except ValueError as error:
        raise BadRequest(400, f"The body is not valid JSON: {error}.") from None
    return request


def _tensors(request: dict[str, Any], types: Mapping[str, str], tail: bytes) -> dict[str, np.ndarray | list[Any]]:
    """Return the items of each tensor.

    Raises:
        BadRequest: A tensor is unknown, doubled, of another datatype or shape.
    """
    found: dict[str, np.ndarray | list[Any]] = {}
    begin = 0
    for tensor in request["inputs"]:
        name, shown = tensor["name"], tensor["name"][:100]
        kind = types.get(name)
        if kind is None:
            raise BadRequest(422, f"{shown} is not an input of this model.", [problem(shown, "is not an input")])
        if name in found:
            raise BadRequest(422, f"{shown} is given twice.", [problem(shown, "is given twice")])
        if tensor["datatype"] not in _TAKES[kind]:
            wanted = _DATATYPES[kind]
            raise BadRequest(422, f"{shown} must be of datatype {wanted}.", [problem(shown, f"must be {wanted}")])
        found[name], begin = tensors.items(shown, tensor, tail, begin)
    if begin != len(tail):
        raise BadRequest(400, f"The tensors name {begin} bytes, and {len(tail)} follow the JSON.")
    return found


def _outputs(predictions: list[Any]) -> list[dict[str, Any]]:
    """Return predictions as tensors: one, or one for each key where a prediction has several."""
    if predictions and isinstance(predictions[0], dict):
        return [_output(name, [row[name] for row in predictions]) for name in predictions[0]]
    return [_output("prediction", predictions)]


def _output(name: str, values: list[Any]) -> dict[str, Any]:
    shape = [len(values)]
    flat = values
    while flat and isinstance(flat[0], list):
        shape.append(len(flat[0]))
        flat = [item for row in flat for item in row]
    kinds = {type(item) for item in flat}
    datatype = (
        "BOOL" if kinds == {bool} else "INT64" if kinds == {int} else "FP64" if kinds <= {int, float} else "BYTES"
    )
    return {"name": name, "datatype": datatype, "shape": shape, "data": flat}
