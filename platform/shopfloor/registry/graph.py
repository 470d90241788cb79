"""An ONNX graph as a model of rows: what its columns are, and outputs of one value a row.

MLflow answers one value a row for each output. A classifier's probabilities are one output of as many values as there
are classes, and a map in what comes from scikit-learn: they are taken apart by nodes that are put behind them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shopfloor.errors import UsageError
from shopfloor.use_case import Task

_TYPES = {
    "tensor(float)": "double",
    "tensor(double)": "double",
    "tensor(int64)": "long",
    "tensor(int32)": "integer",
    "tensor(string)": "string",
    "tensor(bool)": "boolean",
}
"""ONNX's types and MLflow's for a column: of numbers with a point all are taken, whatever the graph makes of them."""
_LABELS = ("classlabels_int64s", "classlabels_ints", "classlabels_strings")
_TABLE_OF_ELSEWHERE = "Log it in MLflow with a signature of tensors, and import that."


@dataclass(frozen=True)
class Graph:
    """A graph that takes rows."""

    model: Any
    task: Task | None
    classes: Sequence[int | str]
    names: Sequence[str] | None
    count: int | None
    types: Mapping[str, str]
    """Of the columns that have names; the type of all of them under an empty name, where they have none."""


def read(path: Path, name: str) -> Graph:
    """Return the graph of a file, its outputs taken apart.

    Args:
        path: The file.
        name: What it is called in an error.

    Raises:
        UsageError: It takes no rows of columns, or answers something else than values of a row.
        Exception: What ONNX says of a broken file.
    """
    import onnx
    import onnxruntime

    model = onnx.load(str(path))
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    for one in inputs:
        if one.type not in _TYPES or len(one.shape) > 2 or (len(inputs) > 1 and one.shape[1:] not in ([], [1])):
            raise UsageError(
                f"{name} takes {one.name!r}, {one.type} of shape {one.shape}: no columns of a row.", _TABLE_OF_ELSEWHERE
            )
    task, classes = _one_value_each(model, session, name)
    if len(inputs) > 1:
        types = {one.name: _TYPES[one.type] for one in inputs}
        return Graph(model, task, classes, list(types), len(types), types)
    width = inputs[0].shape[1] if len(inputs[0].shape) == 2 else 1
    return Graph(model, task, classes, None, width if isinstance(width, int) else None, {"": _TYPES[inputs[0].type]})


def _one_value_each(model: Any, session: Any, name: str) -> tuple[Task | None, tuple[int | str, ...]]:
    """Let every output of a graph be one value a row; return the task and the classes, as far as the graph says."""
    graph, classes = model.graph, _labels(model.graph)
    maps = {node.output[0]: node for node in graph.node if node.op_type == "ZipMap"}
    outputs = {one.name: one for one in session.get_outputs()}
    tables = [key for key, one in outputs.items() if key in maps or (len(one.shape) == 2 and one.shape[1] != 1)]
    if not tables:
        return ("multiclass", classes) if classes else (None, ())
    if len(tables) > 1 or any(len(one.shape) > 2 for one in outputs.values() if one.name not in maps):
        raise UsageError(f"{name} answers several values a row in several outputs.", "Leave one in the graph.")
    width = len(classes) if classes else outputs[tables[0]].shape[1]
    if not isinstance(width, int):
        raise UsageError(f"{name} does not say how many values a row {tables[0]!r} holds.", "Give the output a shape.")
    table = tables[0]
    if table in maps:
        node = maps[table]
        table = node.input[0]
        graph.node.remove(node)
    if classes == (0, 1):
        _take_apart(model, table, {"probability": 1})
        return "binary", ()
    _take_apart(model, table, {str(one): index for index, one in enumerate(classes or range(width))})
    return ("multiclass", classes) if classes else (None, ())


def _take_apart(model: Any, table: str, columns: Mapping[str, int]) -> None:
    """Let a graph have these columns of a table for its outputs, and no other ones."""
    from onnx import TensorProto, helper

    graph = model.graph
    taken = {one for node in graph.node for one in (*node.input, *node.output)} | {one.name for one in graph.input}
    del graph.output[:]
    for name, index in columns.items():
        unique = name
        while unique in taken:
            unique += "_"
        number = f"shopfloor_index_{index}"
        graph.initializer.append(helper.make_tensor(number, TensorProto.INT64, [], [index]))
        graph.node.append(helper.make_node("Gather", [table, number], [unique], axis=1))
        graph.output.append(helper.make_tensor_value_info(unique, TensorProto.FLOAT, [None]))
    if not any(one.domain in {"", "ai.onnx"} for one in model.opset_import):
        model.opset_import.append(helper.make_opsetid("", 13))


def _labels(graph: Any) -> tuple[int | str, ...]:
    """Return the classes that a node of the graph names."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in _LABELS and (attribute.ints or attribute.strings):
                return tuple(attribute.ints) or tuple(one.decode() for one in attribute.strings)
    return ()
