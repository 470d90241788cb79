"""Importers of a pipeline by the addresses that are known before it runs: what nobody could read is refused then."""

from __future__ import annotations

from typing import Any

from shopfloor.engines.argo import source as ir
from shopfloor.engines.argo.launcher import IMPORTED
from shopfloor.engines.argo.source import Json, Source, UnsupportedFeature


def check(source: Source, dag: Json, known: dict[str, Any]) -> None:
    """Look at every importer below a DAG; an address that only a step will give is looked at by the launcher.

    Args:
        source: The pipeline.
        dag: The DAG's component.
        known: Values of its inputs, as far as they are known.

    Raises:
        UnsupportedFeature: An importer reads from where nobody here can.
    """
    for name, task in ir.tasks(dag).items():
        component = source.component(task)
        values = _values(task, component, known)
        if "dag" in component:
            check(source, component, values)
            continue
        importer = source.executor(component).get("importer")
        if importer is None:
            continue
        uri = importer.get("artifactUri", {})
        address = uri.get("constant", values.get(uri.get("runtimeParameter")))
        scheme, found, _ = address.partition("://") if isinstance(address, str) else ("", "", "")
        if found and scheme not in IMPORTED:
            raise UnsupportedFeature(name, f"an importer of {scheme}:// artifacts")


def _values(task: Json, component: Json, known: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs of a task whose values are known."""
    values = {
        name: definition["defaultValue"]
        for name, definition in ir.parameters(component).items()
        if "defaultValue" in definition
    }
    for name, given in task.get("inputs", {}).get("parameters", {}).items():
        values.pop(name, None)
        if "constant" in given.get("runtimeValue", {}):
            values[name] = given["runtimeValue"]["constant"]
        elif given.get("componentInputParameter") in known:
            values[name] = known[given["componentInputParameter"]]
    return values
