"""The Open Inference Protocol, version 2, over HTTP with JSON tensors: one tensor for each column, one row each item.

The paths stand under the use case's own, so a client's base address is `http://host:port/<use_case>`. Rows go the way
of MLflow's scoring requests, so that types, limits and answers are the same. Source of the protocol:
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from shopfloor.serving.predictors import ServedModel
from shopfloor.serving.schema import BadRequest, Column

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


def server_metadata(version: str) -> dict[str, Any]:
    """Return what `GET /v2` answers."""
    return {"name": PLATFORM, "version": version, "extensions": []}


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


def infer(model: ServedModel, body: bytes, max_rows: int) -> dict[str, Any]:
    """Answer an inference request.

    Args:
        model: The version that answers.
        body: JSON with `inputs`, and `id`, `parameters` and `outputs` where wanted.
        max_rows: Rows that the request may hold.

    Raises:
        BadRequest: It is none, or does not meet the model's signature.
    """
    request = _parsed(body)
    columns = {column.name: column for column in _columns(model)}
    tensors = _tensors(request, columns)
    rows = len(next(iter(tensors.values())))
    if rows > max_rows:
        raise BadRequest(413, f"The request holds {rows} rows; at most {max_rows} are answered at once.")
    split = {"columns": list(tensors), "data": [list(row) for row in zip(*tensors.values(), strict=True)]}
    _, _, answer = model.invoke(json.dumps({"dataframe_split": split}).encode(), "application/json", max_rows)
    outputs = _outputs(json.loads(answer)["predictions"])
    wanted = [item.get("name") for item in request.get("outputs") or [] if isinstance(item, dict)]
    unknown = [name for name in wanted if name not in {output["name"] for output in outputs}]
    if unknown:
        raise BadRequest(400, f"The model has no output {str(unknown[0])[:100]!r}.")
    answered = {"model_name": model.name, "model_version": model.version}
    given = request.get("id")
    return (
        answered
        | ({"id": given} if isinstance(given, str) else {})
        | {"outputs": [output for output in outputs if not wanted or output["name"] in wanted]}
    )


def _columns(model: ServedModel) -> tuple[Column, ...]:
    if model.rows is None:
        raise BadRequest(422, f"Version {model.version} answers /invocations only: {model.reason}.")
    return model.rows.columns


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise BadRequest(400, "The body nests too deeply.") from None
    except ValueError as error:
        raise BadRequest(400, f"The body is not valid JSON: {error}.") from None
    if not isinstance(request, dict) or not isinstance(request.get("inputs"), list) or not request["inputs"]:
        raise BadRequest(400, "The body must be a JSON object with a list `inputs`.")
    return request


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _tensors(request: dict[str, Any], columns: dict[str, Column]) -> dict[str, list[Any]]:
    """Return the items of each tensor, all of them of one length.

    Raises:
        BadRequest: A tensor is unknown, missing, doubled, of another datatype or shape.
    """
    tensors: dict[str, list[Any]] = {}
    for tensor in request["inputs"]:
        if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
            raise BadRequest(400, "Every input must be an object with a name, a shape, a datatype and data.")
        name = tensor["name"]
        shown = name[:100]
        column = columns.get(name)
        if column is None:
            raise BadRequest(422, f"{shown} is not an input of this model.", [_problem(shown, "is not an input")])
        if name in tensors:
            raise BadRequest(422, f"{shown} is given twice.", [_problem(shown, "is given twice")])
        if str(tensor.get("datatype")) not in _TAKES[column.type]:
            wanted = _DATATYPES[column.type]
            raise BadRequest(422, f"{shown} must be of datatype {wanted}.", [_problem(shown, f"must be {wanted}")])
        tensors[name] = _items(shown, tensor)
    missing = [name for name, column in columns.items() if column.required and name not in tensors]
    if missing:
        raise BadRequest(422, f"{missing[0]} is missing.", [_problem(name, "is missing") for name in missing[:20]])
    lengths = {len(items) for items in tensors.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise BadRequest(422, "All inputs must hold the same number of rows, at least one.")
    return tensors


def _items(name: str, tensor: dict[str, Any]) -> list[Any]:
    shape, data = tensor.get("shape"), tensor.get("data")
    if not isinstance(data, list):
        raise BadRequest(422, f"{name} has no list `data`; binary tensors are not read.", [_problem(name, "no data")])
    items = [item[0] if isinstance(item, list) and len(item) == 1 else item for item in data]
    if shape not in ([len(items)], [len(items), 1]):
        problem = f"its shape must be [{len(items)}] or [{len(items)}, 1], as it has {len(items)} items"
        raise BadRequest(422, f"{name}: {problem}.", [_problem(name, problem)])
    if any(isinstance(item, list | dict) for item in items):
        raise BadRequest(422, f"{name} must hold plain values.", [_problem(name, "must hold plain values")])
    return items


def _problem(field: str, problem: str) -> dict[str, str]:
    return {"field": field, "problem": problem}


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
