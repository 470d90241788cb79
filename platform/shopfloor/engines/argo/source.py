"""KFP's intermediate representation as the translator reads it: checked once, so that the rest can rely on it."""

from __future__ import annotations

import graphlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shopfloor.errors import UsageError
from shopfloor.pipeline.ir import broken as broken

Json = dict[str, Any]
ENVELOPE_SUFFIX = "-artifact"
STEP_NAME = "task-name"
"""Argo parameter that tells a template shared by many tasks which task it is."""
_NAME = re.compile(r"[A-Za-z][-A-Za-z0-9]*")
_INPUT = re.compile(r"[-A-Za-z0-9_]+")
ALWAYS = "ALL_UPSTREAM_TASKS_COMPLETED"


class UnsupportedFeature(UsageError):
    """A pipeline uses what this engine cannot translate.

    Args:
        task: Name of the task, or of the pipeline.
        feature: What of it.
    """

    def __init__(self, task: str, feature: str) -> None:
        super().__init__(
            f"Task {task!r} uses {feature}: the argo engine does not translate that.",
            "Change the task, or submit with --engine kfp.",
        )
        self.task = task
        self.feature = feature


@dataclass(frozen=True)
class Source:
    """A pipeline's IR, of which structure and references have been checked."""

    name: str
    description: str
    root: Json
    components: dict[str, Json]
    executors: dict[str, Json]
    platform: dict[str, Json]
    """Executor to its kfp-kubernetes settings."""
    pipeline_config: Json

    def component(self, task: Json) -> Json:
        """Return the component of a task."""
        return self.components[task["componentRef"]["name"]]

    def executor(self, component: Json) -> Json:
        """Return the executor of a component that is no DAG."""
        return self.executors[component["executorLabel"]]


def read(ir: Json, platforms: Json) -> Source:
    """Check a pipeline's IR.

    Args:
        ir: `PipelineSpec` as JSON.
        platforms: `{"platforms": {"kubernetes": ...}}`, or empty.

    Raises:
        UsageError: It is not IR, or refers to what it does not have.
        UnsupportedFeature: It is meant for another platform.
    """
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2 as pb2

    try:
        spec = json_format.MessageToDict(json_format.ParseDict(ir, pb2.PipelineSpec()))
        deployment = json_format.MessageToDict(
            json_format.ParseDict(spec.get("deploymentSpec", {}), pb2.PipelineDeploymentConfig())
        )
        platform = json_format.MessageToDict(json_format.ParseDict(platforms or {}, pb2.PlatformSpec()))
    except (json_format.ParseError, ValueError, TypeError, AttributeError) as error:
        raise broken(" ".join(str(error).split())[:300]) from error
    name = spec.get("pipelineInfo", {}).get("name", "")
    if not name or not spec.get("root", {}).get("dag", {}).get("tasks"):
        raise broken("it has no name" if not name else "it has no tasks")
    others = platform.get("platforms", {}).keys() - {"kubernetes"}
    if others:
        raise UnsupportedFeature(name, f"settings of the platform {sorted(others)[0]!r}")
    kubernetes = platform.get("platforms", {}).get("kubernetes", {})
    settings = kubernetes.get("deploymentSpec", {}).get("executors", {})
    source = Source(
        name=name,
        description=spec["pipelineInfo"].get("description", ""),
        root=spec["root"],
        components=spec.get("components", {}),
        executors=deployment.get("executors", {}),
        platform={label: _platform(label, item, spec) for label, item in sorted(settings.items())},
        pipeline_config=kubernetes.get("pipelineConfig", {}),
    )
    _check(source, "root", source.root, ())
    return source


def parameters(component: Json) -> dict[str, Json]:
    """Return a component's input parameters, in the order of their names."""
    return dict(sorted(component.get("inputDefinitions", {}).get("parameters", {}).items()))


def artifacts(component: Json) -> dict[str, Json]:
    """Return a component's input artifacts, in the order of their names."""
    return dict(sorted(component.get("inputDefinitions", {}).get("artifacts", {}).items()))


def outputs(component: Json, kind: str) -> dict[str, Json]:
    """Return a component's output `parameters` or `artifacts`, in the order of their names."""
    return dict(sorted(component.get("outputDefinitions", {}).get(kind, {}).items()))


def tasks(component: Json) -> dict[str, Json]:
    """Return the tasks of a DAG, in the order of their names."""
    return dict(sorted(component["dag"].get("tasks", {}).items()))


def producers(task: Json) -> set[str]:
    """Return the tasks that `task` must wait for: those it names and those whose outputs it takes."""
    found = set(task.get("dependentTasks", []))
    for given in [*inputs(task, "parameters").values(), *inputs(task, "artifacts").values()]:
        for reference in ("taskOutputParameter", "taskOutputArtifact", "taskFinalStatus"):
            if reference in given:
                found.add(given[reference].get("producerTask", ""))
    return found


def selectors(component: Json, kind: str, name: str) -> list[tuple[str, str]]:
    """Return which outputs of which tasks an output of a DAG is taken from: the first of them that ran."""
    output = component["dag"].get("outputs", {}).get(kind, {}).get(name, {})
    if kind == "artifacts":
        return [
            (item.get("producerSubtask", ""), item.get("outputArtifactKey", ""))
            for item in output.get("artifactSelectors", [])
        ]
    found = output.get("valueFromOneof", {}).get("parameterSelectors") or [output.get("valueFromParameter")]
    return [(item.get("producerSubtask", ""), item.get("outputParameterKey", "")) for item in found if item]


def check_references(source: Source, component: Json, name: str, task: Json) -> None:
    """Check that the inputs of a task refer to what its DAG has.

    Raises:
        UsageError: One does not.
    """
    for reference in producers(task):
        if reference not in component["dag"]["tasks"]:
            raise broken(f"task {name!r} refers to the task {reference!r}, which is not beside it")
    for what in _dangling(source, component, task):
        raise broken(f"task {name!r} refers to {what}")


def inputs(task: Json, kind: str) -> dict[str, Json]:
    """Return the inputs (`parameters` or `artifacts`) that a task is given."""
    found: dict[str, Json] = task.get("inputs", {}).get(kind, {})
    return found


def _platform(label: str, settings: Json, spec: Json) -> Json:
    """Return an executor's kfp-kubernetes settings, checked against their own schema."""
    from google.protobuf import json_format
    from kfp.kubernetes import kubernetes_executor_config_pb2 as pb2

    try:
        message = json_format.ParseDict(settings, pb2.KubernetesExecutorConfig())
    except (json_format.ParseError, ValueError, TypeError, AttributeError) as error:
        unknown = re.search(r'no field named "(\w+)"', str(error))
        users = [
            task_name
            for component in [spec["root"], *spec.get("components", {}).values()]
            for task_name, task in component.get("dag", {}).get("tasks", {}).items()
            if spec["components"].get(task.get("componentRef", {}).get("name"), {}).get("executorLabel") == label
        ]
        if unknown:
            raise UnsupportedFeature(min(users, default=label), f"the platform setting {unknown[1]!r}") from error
        raise broken(" ".join(str(error).split())[:300]) from error
    made: Json = json_format.MessageToDict(message)
    return made


def _check(source: Source, name: str, component: Json, above: tuple[str, ...]) -> None:
    """Follow every reference from a DAG downwards."""
    for task_name, task in tasks(component).items():
        if not _NAME.fullmatch(task_name):
            raise broken(f"{task_name!r} is no name of a task")
        used = task.get("componentRef", {}).get("name", "")
        if used not in source.components:
            raise broken(f"task {task_name!r} has no component {used!r}")
        if used in above or used == name:
            raise broken(f"component {used!r} contains itself")
        inner = source.components[used]
        if "dag" in inner and not inner["dag"].get("tasks"):
            raise broken(f"component {used!r} has no tasks")
        check_references(source, component, task_name, task)
        for input_name in (*inputs(task, "parameters"), *inputs(task, "artifacts"), *parameters(inner)):
            if not _INPUT.fullmatch(input_name):
                raise broken(f"{input_name!r} is no name of an input")
        if "dag" in inner:
            _check(source, used, inner, (*above, name))
        elif inner.get("executorLabel", "") not in source.executors:
            raise broken(f"component {used!r} has no executor {inner.get('executorLabel', '')!r}")
    _check_order(component)
    for kind in ("parameters", "artifacts"):
        for output in component["dag"].get("outputs", {}).get(kind, {}):
            for task_name, key in selectors(component, kind, output):
                if task_name not in component["dag"]["tasks"]:
                    raise broken(f"output {output!r} refers to the task {task_name!r}, which is not there")
                if key not in outputs(source.component(component["dag"]["tasks"][task_name]), kind):
                    raise broken(f"output {output!r} refers to output {key!r} of {task_name!r}, which is not there")


def _dangling(source: Source, component: Json, task: Json) -> Iterator[str]:
    """Yield what the inputs of a task refer to and nobody has."""
    for kind, word in (("parameters", "Parameter"), ("artifacts", "Artifact")):
        declared = (parameters if kind == "parameters" else artifacts)(component)
        for given in inputs(task, kind).values():
            above = given.get(f"componentInput{word}")
            if above is not None and above not in declared:
                yield f"input {above!r}, which nobody declares"
            made = given.get(f"taskOutput{word}")
            if made is not None:
                producer = source.components.get(
                    component["dag"]["tasks"][made.get("producerTask", "")].get("componentRef", {}).get("name", ""), {}
                )
                key = made.get(f"output{word}Key", "")
                if key not in outputs(producer, kind):
                    yield f"output {key!r} of {made.get('producerTask')!r}, which is not there"


def _check_order(component: Json) -> None:
    order = graphlib.TopologicalSorter({name: sorted(producers(task)) for name, task in tasks(component).items()})
    try:
        order.prepare()
    except graphlib.CycleError as error:
        raise broken(f"the tasks {', '.join(sorted(set(error.args[1])))} wait for one another") from error
