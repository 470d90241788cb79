"""What `kfp.local` does otherwise than Kubeflow Pipelines in the flow of a pipeline, put right for the time of a run.

Each replacement says what it changes in which version; `tests/integration/test_local_flow.py` fails where an update
moves it.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

from shopfloor.errors import UsageError
from shopfloor.pipeline import conditions
from shopfloor.pipeline.keys import plain

Replacement = tuple[Any, str, Any]
"""A module or class, the name of its attribute, and what stands there during a run."""


def check(pipeline_spec: Any) -> None:
    """Refuse a pipeline with a condition that nobody can read, before anything runs.

    Args:
        pipeline_spec: KFP's `PipelineSpec` message.

    Raises:
        UsageError: A condition is not of the part of CEL that KFP writes.
    """
    for component in (pipeline_spec.root, *pipeline_spec.components.values()):
        for name, task in component.dag.tasks.items():
            if task.trigger_policy.condition:
                try:
                    conditions.parse(task.trigger_policy.condition)
                except conditions.ConditionError as error:
                    raise UsageError(
                        f"Nobody can read the {error} of task {name!r}.",
                        "KFP's compiler escapes nothing in a condition: compare with a text without ' and \\.",
                    ) from error


def replacements() -> list[Replacement]:
    """Return what is replaced during a run."""
    from kfp.local import executor_input_utils, executor_output_utils
    from kfp.local.orchestrator import enhanced_dag_orchestrator as orchestrator
    from kfp.local.orchestrator import task_spec_utils
    from kfp.local.orchestrator.orchestrator_utils import OrchestratorUtils

    execute_task, run_loop = orchestrator.execute_task, orchestrator._run_parallel_for_task
    to_python = executor_output_utils.pb2_value_to_python
    executor_input, as_dict = executor_input_utils.construct_executor_input, executor_input_utils.executor_input_to_dict
    task_root = executor_input_utils.construct_local_task_root
    iteration = task_spec_utils.create_parameter_loop_iteration_task_spec
    dag_arguments = task_spec_utils.build_nested_dag_arguments
    numbers = itertools.count(1)

    def execute(**kwargs: Any) -> Any:
        from kfp.local import status

        task = kwargs["task_spec"]
        component = kwargs["components"][task.component_ref.name]
        if task.trigger_policy.condition and not _holds(task, component, kwargs["io_store"]):
            return {}, status.Status.SUCCESS
        return execute_task(**kwargs)

    def loop(**kwargs: Any) -> Any:
        failed = run_loop(**kwargs)
        component = kwargs["components"][kwargs["task_spec"].component_ref.name]
        for output in () if failed else _outputs(component):
            try:
                kwargs["io_store"].get_task_output(kwargs["task_name"], output)
            except ValueError:
                kwargs["io_store"].put_task_output(kwargs["task_name"], output, [])
        return failed

    def value_or_none(value: Any) -> Any:
        return None if value.WhichOneof("kind") is None else to_python(value)

    def input_with_values(component_spec: Any, arguments: dict[str, Any], **kwargs: Any) -> Any:
        values = {name: value for name, value in arguments.items() if value is not None}
        message = executor_input(component_spec=component_spec, arguments=values, **kwargs)
        for name, value in list(message.inputs.parameter_values.items()):
            if value.WhichOneof("kind") is None:
                del message.inputs.parameter_values[name]
        return message

    def input_with_whole_numbers(executor_input: Any, component_spec: Any) -> dict[str, Any]:
        message: dict[str, Any] = as_dict(executor_input, component_spec)
        values = message.get("inputs", {}).get("parameterValues", {})
        values |= {name: plain(value) for name, value in values.items() if isinstance(value, list | dict)}
        return message

    def iteration_with_inputs(original_task_spec: Any, loop_item: Any, loop_task_name: str) -> Any:
        task = iteration(original_task_spec, loop_item, loop_task_name)
        for name, source in original_task_spec.inputs.parameters.items():
            if source.HasField("task_output_parameter"):
                task.inputs.parameters[name].CopyFrom(source)
        return task

    def arguments_with_artifacts(task_name: str, task_spec: Any, component_spec: Any, io_store: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = dag_arguments(task_name, task_spec, component_spec, io_store)
        if task_spec.inputs.artifacts and not task_spec.inputs.parameters:
            arguments |= OrchestratorUtils.make_task_arguments(task_spec.inputs, io_store)
        return arguments

    return [
        # PATCH kfp 2.17: ConditionEvaluator puts values into the text of a condition and evaluates that as Python: a
        # text with a quote or a line break skips every branch, and one that is Python chooses the branch. It also
        # finds no output but those that are called Output. So it lets every task pass, and the task itself decides.
        (orchestrator.ConditionEvaluator, "evaluate_condition", staticmethod(lambda *_: True)),
        (orchestrator, "execute_task", execute),
        # PATCH kfp 2.17: a loop over nothing gives nothing, and what collects its outputs is an error.
        (orchestrator, "_run_parallel_for_task", loop),
        # PATCH kfp 2.17: a parameter whose default is None, or whose value is, is an error.
        (
            executor_output_utils,
            "pb2_value_to_python",
            lambda v: None if v.WhichOneof("kind") is None else to_python(v),
        ),
        (executor_input_utils, "construct_executor_input", input_with_values),
        # PATCH kfp 2.17: whole numbers in lists and dictionaries become floats.
        (executor_input_utils, "executor_input_to_dict", input_with_whole_numbers),
        # PATCH kfp 2.17: tasks of one component share a directory, so a later one overwrites what an earlier one wrote.
        (executor_input_utils, "construct_local_task_root", lambda **kwargs: f"{task_root(**kwargs)}-{next(numbers)}"),
        # PATCH kfp 2.17: in a loop, what comes from a task before the loop is replaced by the loop's item.
        (task_spec_utils, "create_parameter_loop_iteration_task_spec", iteration_with_inputs),
        # PATCH kfp 2.17: a pipeline within a pipeline that is given artifacts and no parameters is given nothing.
        (task_spec_utils, "build_nested_dag_arguments", arguments_with_artifacts),
        # PATCH kfp 2.17: an output that is one of several artifacts (`dsl.OneOf`) is an error.
        (OrchestratorUtils, "get_dag_output_artifacts", staticmethod(_one_of)),
    ]


def _outputs(component: Any) -> list[str]:
    return [*component.output_definitions.parameters, *component.output_definitions.artifacts]


def _one_of(dag_outputs_spec: Any, io_store: Any) -> dict[str, Any]:
    """Return the output artifacts of a DAG, each from the first of its possible sources that ran."""
    outputs: dict[str, Any] = {}
    for name, source in dag_outputs_spec.artifacts.items():
        for selector in source.artifact_selectors:
            with contextlib.suppress(ValueError):
                outputs[name] = io_store.get_task_output(selector.producer_subtask, selector.output_artifact_key)
                break
        else:
            raise ValueError(f"None of the tasks that may give {name!r} ran.")
    return outputs


def _holds(task: Any, component: Any, io_store: Any) -> bool:
    """Tell whether a task's condition holds with the inputs that the task is given."""
    from google.protobuf import json_format
    from kfp.local.orchestrator.orchestrator_utils import OrchestratorUtils

    condition = conditions.parse(task.trigger_policy.condition)
    values: dict[str, Any] = dict.fromkeys(conditions.parameters(condition))
    for name, definition in component.input_definitions.parameters.items():
        if definition.HasField("default_value"):
            values[name] = json_format.MessageToDict(definition.default_value)
    try:
        values |= OrchestratorUtils.make_task_arguments(task.inputs, io_store)
    except ValueError:
        # An input comes from a task that did not run: nor does this one.
        return False
    try:
        return bool(conditions.evaluate(condition, values))
    except conditions.ConditionError as error:
        raise UsageError(
            f"The condition {task.trigger_policy.condition!r} cannot be decided: it meets {error}.",
            "Compare texts with texts and numbers with numbers.",
        ) from error
