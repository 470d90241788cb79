"""The one reader of a compiled pipeline: KFP's intermediate representation, on KFP's own messages.

Whoever asks what a pipeline is (which tasks, after which others, what each is given, what runs it) asks here, so that
`plan`, every engine and the report mean the same. Checked once, so that the rest can rely on it. Messages know their
fields, defaults and kinds of numbers; JSON of them is made only where it is sent or kept.
"""

from __future__ import annotations

import graphlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shopfloor.errors import UsageError
from shopfloor.pipeline.keys import plain
from shopfloor.pipeline.sdk import import_kfp

Json = dict[str, Any]
Message = Any
"""One of KFP's protobuf messages, e.g. a `ComponentSpec` or a `PipelineTaskSpec`."""
KINDS: tuple[Literal["parameters"], Literal["artifacts"]] = ("parameters", "artifacts")
_NAME = re.compile(r"[A-Za-z][-A-Za-z0-9]*")
_INPUT = re.compile(r"[-A-Za-z0-9_]+")


def broken(what: str) -> UsageError:
    """Return the error for IR that contradicts itself."""
    return UsageError(f"The compiled pipeline is broken: {what}.", "Compile it again with KFP's SDK.")


@dataclass(frozen=True)
class Origin:
    """Where the value of a task's input comes from."""

    kind: Literal["constant", "input", "output", "status", "other"]
    """A constant of the pipeline, an input of the DAG around the task, an output or the final status of another task,
    or what KFP no longer writes."""
    task: str = ""
    """The other task."""
    name: str = ""
    """Name of the DAG's input, of the other task's output, or of the other kind."""
    value: Any = None
    """The constant; whole numbers are such."""
    selector: str = ""
    """KFP's expression that picks a part of the value; mostly empty."""


@dataclass(frozen=True)
class Pipeline:
    """A pipeline's IR."""

    spec: Message
    """KFP's `PipelineSpec`."""
    executors: Mapping[str, Message]
    """Executors of the components by label: KFP's `ExecutorSpec`s."""

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return str(self.spec.pipeline_info.name)

    @property
    def root(self) -> Message:
        """The component of the whole pipeline."""
        return self.spec.root

    def component(self, task: Message) -> Message:
        """Return the component of a task."""
        return self.spec.components[task.component_ref.name]

    def executor(self, component: Message) -> Message:
        """Return the executor of a component that is no DAG."""
        return self.executors[component.executor_label]

    def tasks(self) -> Iterator[tuple[str, Message]]:
        """Yield all tasks, of every DAG."""
        for component in (self.spec.root, *self.spec.components.values()):
            yield from tasks(component).items()

    def leaves(self, component: Message) -> tuple[list[str], list[tuple[str, str]]]:
        """Return the tasks under a DAG that are no DAGs, in an order in which they can run, and which waits for which.

        Args:
            component: The DAG's component.

        Returns:
            The names, and pairs of them: (before, after).
        """
        steps: list[str] = []
        edges: list[tuple[str, str]] = []
        last: dict[str, list[str]] = {}
        for name, task in in_order(component):
            inner = self.component(task)
            inner_steps, inner_edges = self.leaves(inner) if is_dag(inner) else ([name], [])
            heads = [step for step in inner_steps if step not in {after for _, after in inner_edges}]
            last[name] = inner_steps[-1:]
            steps += inner_steps
            edges += inner_edges
            edges += [(s, head) for before in sorted(producers(task)) for s in last.get(before, []) for head in heads]
        return steps, edges

    def as_json(self) -> Json:
        """Return the IR as JSON, as KFP's own tools take it, with the executors as they are now."""
        content: Json = as_json(self.spec)
        executors = {label: as_json(executor) for label, executor in self.executors.items()}
        return content | {"deploymentSpec": {**content.get("deploymentSpec", {}), "executors": executors}}


def read(ir: Json) -> Message:
    """Return KFP's `PipelineSpec` of a pipeline's IR.

    Raises:
        UsageError: It is not IR.
    """
    import_kfp()
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    try:
        return json_format.ParseDict(ir, pipeline_spec_pb2.PipelineSpec())
    except (json_format.ParseError, ValueError, TypeError, AttributeError) as error:
        raise broken(one_line(error)) from error


def checked(spec: Message) -> Pipeline:
    """Return a pipeline of which structure and references hold.

    Args:
        spec: KFP's `PipelineSpec`.

    Raises:
        UsageError: It refers to what it does not have.
    """
    if not spec.pipeline_info.name or not spec.root.dag.tasks:
        raise broken("it has no name" if not spec.pipeline_info.name else "it has no tasks")
    pipeline = unchecked(spec)
    _check(pipeline, "root", pipeline.root, ())
    return pipeline


def unchecked(spec: Message) -> Pipeline:
    """Return a pipeline that KFP's compiler has just made, or that was checked before.

    Args:
        spec: KFP's `PipelineSpec`.

    Raises:
        UsageError: What it says of its executors is not IR.
    """
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    try:
        deployment = pipeline_spec_pb2.PipelineDeploymentConfig()
        json_format.ParseDict(json_format.MessageToDict(spec.deployment_spec), deployment)
    except (json_format.ParseError, ValueError, TypeError, AttributeError) as error:
        raise broken(one_line(error)) from error
    return Pipeline(spec, deployment.executors)


def one_line(error: Exception) -> str:
    """Return what an error says, on one line of no great length."""
    return " ".join(str(error).split())[:300]


def as_json(message: Message) -> Any:
    """Return a message as JSON, its dicts in the order of their keys: a message has another order in each process."""
    from google.protobuf import json_format

    return _in_order(json_format.MessageToDict(message))


def value(message: Message) -> Any:
    """Return a protobuf `Value` as Python has it: whole numbers are such, dicts in the order of their keys."""
    return None if message.WhichOneof("kind") in {None, "null_value"} else plain(as_json(message))


def _in_order(content: Any) -> Any:
    """Return JSON with its dicts in the order of their keys."""
    if isinstance(content, list):
        return [_in_order(item) for item in content]
    return {key: _in_order(content[key]) for key in sorted(content)} if isinstance(content, dict) else content


def is_dag(component: Message) -> bool:
    """Tell whether a component is a DAG of tasks."""
    return bool(component.WhichOneof("implementation") == "dag")


def tasks(component: Message) -> dict[str, Message]:
    """Return the tasks of a DAG, in the order of their names; a message has no order of its own."""
    return dict(sorted(component.dag.tasks.items()))


def parameters(component: Message) -> dict[str, Message]:
    """Return a component's input parameters, in the order of their names."""
    return dict(sorted(component.input_definitions.parameters.items()))


def artifacts(component: Message) -> dict[str, Message]:
    """Return a component's input artifacts, in the order of their names."""
    return dict(sorted(component.input_definitions.artifacts.items()))


def outputs(component: Message, kind: str) -> dict[str, Message]:
    """Return a component's output `parameters` or `artifacts`, in the order of their names."""
    return dict(sorted(getattr(component.output_definitions, kind).items()))


def type_of(parameter: Message) -> str:
    """Return the name of a parameter's type, e.g. `NUMBER_INTEGER`; text where it says none."""
    kinds = parameter.DESCRIPTOR.fields_by_name["parameter_type"].enum_type.values_by_number
    return str(kinds[parameter.parameter_type].name) if parameter.parameter_type else "STRING"


def defaults(component: Message) -> dict[str, Any]:
    """Return the defaults of a component's parameters that have one."""
    return {
        name: value(parameter.default_value)
        for name, parameter in parameters(component).items()
        if parameter.HasField("default_value")
    }


def inputs(task: Message, kind: str) -> dict[str, Origin]:
    """Return what the inputs (`parameters` or `artifacts`) of a task are given, in the order of their names."""
    return {name: origin(source) for name, source in sorted(getattr(task.inputs, kind).items())}


def origin(source: Message) -> Origin:
    """Return where a value comes from.

    Args:
        source: KFP's `InputParameterSpec` or `InputArtifactSpec`.
    """
    kind, selector = source.WhichOneof("kind"), getattr(source, "parameter_expression_selector", "")
    if kind == "task_output_parameter":
        output = source.task_output_parameter
        return Origin("output", output.producer_task, output.output_parameter_key, selector=selector)
    if kind == "task_output_artifact":
        return Origin(
            "output", source.task_output_artifact.producer_task, source.task_output_artifact.output_artifact_key
        )
    if kind in {"component_input_parameter", "component_input_artifact"}:
        return Origin("input", name=getattr(source, kind), selector=selector)
    if kind == "task_final_status":
        return Origin("status", source.task_final_status.producer_task)
    if kind == "runtime_value" and source.runtime_value.WhichOneof("value") == "constant":
        return Origin("constant", value=value(source.runtime_value.constant), selector=selector)
    return Origin("other", name=kind or "nothing")


def iterator(task: Message) -> Message:
    """Return how a task loops, `None` where it does not."""
    kind = task.WhichOneof("iterator")
    return getattr(task, kind) if kind else None


def waits_for_all(task: Message) -> bool:
    """Tell whether a task runs once those before it have ended, however they did."""
    return bool(task.trigger_policy.strategy == task.trigger_policy.ALL_UPSTREAM_TASKS_COMPLETED)


def forbid_cache(task: Message) -> None:
    """Let a task take no stored result."""
    task.caching_options.Clear()
    task.caching_options.SetInParent()


def command_of(executor: Message) -> list[str]:
    """Return the words of a container's command and of its arguments."""
    return [*executor.container.command, *executor.container.args]


def environment_of(executor: Message) -> dict[str, str]:
    """Return the variables that a container sets."""
    return {variable.name: variable.value for variable in executor.container.env}


def in_order(component: Message) -> Iterator[tuple[str, Message]]:
    """Yield the tasks of a DAG, each after those that it waits for, otherwise by name."""
    waiting = tasks(component)
    while waiting:
        ready = [name for name, task in waiting.items() if not producers(task) & waiting.keys()]
        for name in ready or list(waiting):
            yield name, waiting.pop(name)


def producers(task: Message) -> set[str]:
    """Return the tasks that `task` must wait for: those it names and those whose outputs it takes."""
    origins = [source for kind in KINDS for source in inputs(task, kind).values()]
    return {*task.dependent_tasks, *(source.task for source in origins if source.kind in {"output", "status"})}


def selectors(component: Message, kind: str, name: str) -> list[tuple[str, str]]:
    """Return which outputs of which tasks an output of a DAG is taken from: the first of them that ran."""
    declared = getattr(component.dag.outputs, kind)
    if name not in declared:
        return []
    if kind == "artifacts":
        return [(item.producer_subtask, item.output_artifact_key) for item in declared[name].artifact_selectors]
    one = declared[name].WhichOneof("kind") == "value_from_parameter"
    items = [declared[name].value_from_parameter] if one else declared[name].value_from_oneof.parameter_selectors
    return [(item.producer_subtask, item.output_parameter_key) for item in items]


def check_origin(pipeline: Pipeline, component: Message, task: str, source: Origin, kind: str = "parameters") -> None:
    """Check that what an input of a task is given refers to what its DAG has.

    Args:
        pipeline: The pipeline.
        component: The DAG's component.
        task: Name of the task.
        source: What the input is given.
        kind: `parameters` or `artifacts`.

    Raises:
        UsageError: It does not.
    """
    if source.kind == "input" and source.name not in getattr(component.input_definitions, kind):
        raise broken(f"task {task!r} refers to input {source.name!r}, which nobody declares")
    if source.kind in {"output", "status"} and source.task not in component.dag.tasks:
        raise broken(f"task {task!r} refers to the task {source.task!r}, which is not beside it")
    if source.kind == "output":
        producer = component.dag.tasks[source.task].component_ref.name
        exists = producer in pipeline.spec.components
        if not exists or source.name not in outputs(pipeline.spec.components[producer], kind):
            raise broken(f"task {task!r} refers to output {source.name!r} of {source.task!r}, which is not there")


def _check(pipeline: Pipeline, name: str, component: Message, above: tuple[str, ...]) -> None:
    """Follow every reference from a DAG downwards."""
    for task_name, task in tasks(component).items():
        if not _NAME.fullmatch(task_name):
            raise broken(f"{task_name!r} is no name of a task")
        used = task.component_ref.name
        if used not in pipeline.spec.components:
            raise broken(f"task {task_name!r} has no component {used!r}")
        if used in above or used == name:
            raise broken(f"component {used!r} contains itself")
        inner = pipeline.component(task)
        if is_dag(inner) and not inner.dag.tasks:
            raise broken(f"component {used!r} has no tasks")
        for other in sorted(producers(task) - component.dag.tasks.keys()):
            raise broken(f"task {task_name!r} refers to the task {other!r}, which is not beside it")
        for kind in KINDS:
            for source in inputs(task, kind).values():
                check_origin(pipeline, component, task_name, source, kind)
        for input_name in (*task.inputs.parameters, *task.inputs.artifacts, *parameters(inner)):
            if not _INPUT.fullmatch(input_name):
                raise broken(f"{input_name!r} is no name of an input")
        if is_dag(inner):
            _check(pipeline, used, inner, (*above, name))
        elif inner.executor_label not in pipeline.executors:
            raise broken(f"component {used!r} has no executor {inner.executor_label!r}")
    order = graphlib.TopologicalSorter({name: sorted(producers(task)) for name, task in tasks(component).items()})
    try:
        order.prepare()
    except graphlib.CycleError as error:
        raise broken(f"the tasks {', '.join(sorted(set(error.args[1])))} wait for one another") from error
    for kind in KINDS:
        for output in getattr(component.dag.outputs, kind):
            for task_name, key in selectors(component, kind, output):
                if task_name not in component.dag.tasks:
                    raise broken(f"output {output!r} refers to the task {task_name!r}, which is not there")
                if key not in outputs(pipeline.component(component.dag.tasks[task_name]), kind):
                    raise broken(f"output {output!r} refers to output {key!r} of {task_name!r}, which is not there")
