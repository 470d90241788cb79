"""KFP's SDK with what we mend in it: its import, which brings in too much, and what its compiler gets wrong."""

from __future__ import annotations

import importlib
import json
import sys
from types import ModuleType
from typing import Any

_CHANNEL, _FIELD = "pipelinechannel--", "-subvar-"
"""What KFP's compiler adds to the name of a parameter for a group, and of an item for one of its fields."""


def import_kfp() -> None:
    """Import KFP's SDK without its client, which comes when somebody asks for it.

    PATCH kfp 2.17: `import kfp` brings in the client and with it every model of Kubernetes: 0.5 of its 0.7 s.
    """
    if "kfp" in sys.modules:
        return
    stand_in: Any = ModuleType("kfp.client")
    stand_in.Client = None
    sys.modules["kfp.client"] = stand_in
    try:
        import kfp
    finally:
        del sys.modules["kfp.client"]

    def client(name: str) -> Any:
        if name != "Client":
            raise AttributeError(f"module 'kfp' has no attribute {name!r}")
        return importlib.import_module("kfp.client").Client

    del kfp.Client
    kfp.__getattr__ = client


def mend(spec: Any) -> None:
    """Mend in a pipeline what KFP's compiler gets wrong, so that every engine is given what its author wrote.

    PATCH kfp 2.17: where a loop goes over a list that stands outside the group around it (an exit handler), the group
    is given the item instead of the list. Where a text in a loop in a loop holds the outer item, that is not handed
    on, and the pipeline is asked for the inner one. A field of an item within a text is an input that nobody gives.

    Args:
        spec: KFP's `PipelineSpec` message; it is changed.
    """
    groups = {name: component for name, component in spec.components.items() if component.HasField("dag")}
    for component in (spec.root, *groups.values()):
        for task in component.dag.tasks.values():
            if (item := task.parameter_iterator.item_input) and task.component_ref.name in groups:
                _take_fields(task, groups[task.component_ref.name], item)
    _hand_on(spec.root, groups, ())


def _take_fields(task: Any, body: Any, item: str) -> None:
    """Let the tasks of a loop's body take the fields of an item from the item."""
    for name in [name for name in body.input_definitions.parameters if name.startswith(f"{item}{_FIELD}")]:
        field = name.removeprefix(f"{item}{_FIELD}")
        body.input_definitions.parameters[item].parameter_type = body.input_definitions.parameters[item].parameter_type
        del body.input_definitions.parameters[name]
        task.inputs.parameters.pop(name, None)
        for user in body.dag.tasks.values():
            for source in user.inputs.parameters.values():
                if source.component_input_parameter == name:
                    source.component_input_parameter = item
                    source.parameter_expression_selector = f"parseJson(string_value)[{json.dumps(field)}]"


def _hand_on(component: Any, groups: dict[str, Any], above: tuple[str, ...]) -> None:
    """Give each group in a DAG the inputs of the DAG that are taken in it, and nothing that the DAG does not have."""
    declared = component.input_definitions.parameters
    for task in component.dag.tasks.values():
        name = task.component_ref.name
        if name not in groups or name in above:
            continue
        inputs = groups[name].input_definitions.parameters
        for input_name, source in list(task.inputs.parameters.items()):
            if source.component_input_parameter and source.component_input_parameter not in declared:
                del task.inputs.parameters[input_name]
                inputs.pop(input_name, None)
        for missing in sorted(_missing_inputs(groups[name], groups, (*above, name))):
            outer = missing if missing in declared else missing.removeprefix(_CHANNEL)
            if outer in declared:
                task.inputs.parameters[missing].component_input_parameter = outer
                inputs[missing].parameter_type = declared[outer].parameter_type
        _hand_on(groups[name], groups, (*above, name))


def _missing_inputs(group: Any, groups: dict[str, Any], above: tuple[str, ...]) -> set[str]:
    """Return the inputs that the tasks of a group take, however deep they stand, and that it does not have."""
    inputs = {
        source.component_input_parameter
        for task in group.dag.tasks.values()
        for source in task.inputs.parameters.values()
    }
    for task in group.dag.tasks.values():
        name = task.component_ref.name
        if name in groups and name not in above:
            inputs |= _missing_inputs(groups[name], groups, (*above, name)) - {task.parameter_iterator.item_input}
    return inputs - {"", *group.input_definitions.parameters}
