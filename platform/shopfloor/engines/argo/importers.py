"""Importers of a pipeline by the addresses that are known before it runs: what nobody could read is refused then."""

from __future__ import annotations

from typing import Any

from shopfloor.engines.argo.launcher import IMPORTED
from shopfloor.engines.argo.source import Source, UnsupportedFeature
from shopfloor.pipeline import ir
from shopfloor.pipeline.ir import Message


def check(source: Source, dag: Message, arguments: dict[str, Any]) -> None:
    """Look at every importer below a DAG; an address that only a step will give is looked at by the launcher.

    Args:
        source: The pipeline.
        dag: The DAG's component.
        arguments: Values of its inputs, as far as they are known.

    Raises:
        UnsupportedFeature: An importer reads from where nobody here can.
    """
    for name, task in ir.tasks(dag).items():
        component = source.component(task)
        values = _values(task, component, arguments)
        if ir.is_dag(component):
            check(source, component, values)
            continue
        executor = source.executor(component)
        if not executor.HasField("importer"):
            continue
        uri = executor.importer.artifact_uri
        is_constant = uri.WhichOneof("value") == "constant"
        address = ir.value(uri.constant) if is_constant else values.get(uri.runtime_parameter)
        scheme, separator, _ = address.partition("://") if isinstance(address, str) else ("", "", "")
        if separator and scheme not in IMPORTED:
            raise UnsupportedFeature(name, f"an importer of {scheme}:// artifacts")


def _values(task: Message, component: Message, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs of a task whose values are known."""
    values = ir.defaults(component)
    for name, origin in ir.inputs(task, "parameters").items():
        values.pop(name, None)
        if origin.kind == "constant":
            values[name] = origin.value
        elif origin.kind == "input" and origin.name in arguments:
            values[name] = arguments[origin.name]
    return values
