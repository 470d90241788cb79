"""`plan`: for every step of a pipeline whether it would run or be reused, and why, before anything runs.

Walks the compiled pipeline with the same keys and the same result store as an engine. Where a step runs, what follows
it depends on outputs that nobody knows yet: it is reused only if they turn out the same. MLflow is asked by its REST
API, because its client takes longer to import than all of this takes; without it what depends on it is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shopfloor.data import materialization
from shopfloor.flows.submit import read, resolve_data
from shopfloor.pipeline import conditions
from shopfloor.pipeline.compilation import Compiled, run_key
from shopfloor.pipeline.keys import StepKey, component_key
from shopfloor.pipeline.results import ResultStore
from shopfloor.records import Record
from shopfloor.settings import Settings

Action = Literal["reuse", "run", "skip", "unknown"]


class Change(Record):
    """A part of a step's key that is not what it was."""

    part: str
    """E.g. `code shopfloor.training.tuning`, `parameter trials`, `input features`, `use case search`, `lock`."""
    old: str | None
    """`None`: it was not there."""
    new: str | None


class StepPlan(Record):
    """What would happen to one step."""

    step: str
    action: Action
    why: str
    """One sentence."""
    changes: list[Change]


class Plan(Record):
    """What a submit would do."""

    pipeline: str
    parameters: dict[str, Any]
    notes: list[str]
    """What could not be looked up."""
    steps: list[StepPlan]


@dataclass(frozen=True)
class _Unknown:
    """A value that a step will make."""

    step: str
    """Empty: nobody knows it at all."""


class _NoAnswer(Exception):
    """MLflow does not answer."""


def plan(
    settings: Settings,
    file: str,
    use_case: str | None,
    given: list[str],
    use_cache: bool = True,
    from_step: str | None = None,
    function: str | None = None,
) -> Plan:
    """Say for every step whether `submit` with the same arguments would run it.

    Args:
        settings: The profile.
        file: Pipeline file.
        use_case: Value of the pipeline's parameter `use_case`.
        given: Further parameters as `key=value`.
        use_cache: Whether finished steps are reused at all.
        from_step: This step and what follows it run in any case.
        function: Which of the file's pipelines.

    Raises:
        UsageError: The pipeline, a parameter or the step is wrong.
    """
    compiled, arguments = read(settings, file, use_case, given, function)
    forced = compiled.from_step_on(from_step) if use_cache else frozenset(compiled.steps)
    resolve_data(settings, compiled, arguments)
    notes: list[str] = []
    known: dict[str, Any] = dict(arguments)
    declared = compiled.ir["root"].get("inputDefinitions", {}).get("parameters", {})
    if "champion" in declared and "use_case" in arguments and not arguments.get("champion"):
        try:
            known["champion"] = _champion(settings, arguments["use_case"], run_key(settings, compiled, arguments))
        except _NoAnswer:
            notes.append(f"The MLflow server {settings.tracking_uri} does not answer, so the champion is unknown.")
            known["champion"] = _Unknown("")
    walk = _Walk(settings, compiled, forced)
    root = compiled.ir["root"]
    walk.dag(root, _with_defaults(root, known))
    if walk.deaf and not notes:
        notes.append(f"The MLflow server {settings.tracking_uri} does not answer, so what it holds is unknown.")
    shown = {name: value for name, value in known.items() if not isinstance(value, _Unknown)}
    order = {step: place for place, step in enumerate(compiled.steps)}
    steps = sorted(walk.steps, key=lambda step: order.get(step.step, len(order)))
    return Plan(pipeline=compiled.name, parameters=shown, notes=notes, steps=steps)


class _Walk:
    """Goes through the DAGs of a pipeline in the order in which an engine would."""

    def __init__(self, settings: Settings, compiled: Compiled, forced: frozenset[str]) -> None:
        self.steps: list[StepPlan] = []
        self.deaf = False
        self._settings = settings
        self._ir = compiled.ir
        self._forced = forced
        self._store = ResultStore(settings, self._holds)

    def dag(self, component: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Plan the tasks of a DAG and return its outputs."""
        tasks: dict[str, Any] = component["dag"]["tasks"]
        made: dict[str, dict[str, Any]] = {}
        waiting = dict(tasks)
        while waiting:
            ready = [n for n, task in waiting.items() if not set(task.get("dependentTasks", [])) & waiting.keys()]
            for name in ready or list(waiting):
                made[name] = self._task(name, waiting.pop(name), given, made)
        return _dag_outputs(component, made)

    def _task(
        self, name: str, task: Mapping[str, Any], given: Mapping[str, Any], made: Mapping[str, dict[str, Any]]
    ) -> dict[str, Any]:
        component = self._ir["components"][task["componentRef"]["name"]]
        inputs = _with_defaults(component, _inputs(task, given, made))
        if (condition := task.get("triggerPolicy", {}).get("condition")) is not None:
            holds = _holds(condition, inputs)
            if holds is False:
                self._mark(component, name, "skip", "Its condition is not met.")
                return {}
            if holds is None:
                waits = next((value.step for value in inputs.values() if isinstance(value, _Unknown)), "")
                self._mark(component, name, "unknown", f"Whether it runs depends on what {waits or 'comes'} gives.")
                return {}
        if "parameterIterator" in task or "artifactIterator" in task:
            self._mark(component, name, "unknown", "A loop: each of its items is looked up when the run comes to it.")
            return {}
        if "dag" in component:
            return self.dag(component, inputs)
        return self._leaf(name, component, inputs)

    def _leaf(self, name: str, component: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        executor = self._ir["deploymentSpec"]["executors"][component["executorLabel"]]
        container = executor.get("container")
        outputs = {
            output: _Unknown(name)
            for kind in ("parameters", "artifacts")
            for output in component.get("outputDefinitions", {}).get(kind, {})
        }
        if container is None:
            self.steps.append(StepPlan(step=name, action="run", why="It is no container.", changes=[]))
            return outputs
        key = self._key(component, container, inputs)
        last = self._store.last_parts(name, key.parts)
        unknown = {part: value for part, value in inputs.items() if isinstance(value, _Unknown)}
        changes = _changes(last, key.parts, {f"input {part}" for part in unknown} | {f"parameter {p}" for p in unknown})
        if name in self._forced:
            return self._run(name, "Asked for.", changes, outputs)
        if changes or (last is None and unknown):
            why = "It has not run yet." if last is None else _in_words(changes)
            return self._run(name, why, changes, outputs)
        if unknown:
            part, value = next(iter(unknown.items()))
            of = f" of {value.step}" if value.step else ""
            self.steps.append(
                StepPlan(step=name, action="run", why=f"Unless the new {part}{of} is the same.", changes=[])
            )
            return outputs
        try:
            found = self._store.find(key.key)
        except _NoAnswer:
            self.deaf = True
            self.steps.append(StepPlan(step=name, action="unknown", why="MLflow does not answer.", changes=[]))
            return outputs
        if found.outputs is None:
            why = (
                f"{found.reason}." if found.reason else "It has not run yet." if last is None else "No result is kept."
            )
            return self._run(name, why, [], outputs)
        self.steps.append(StepPlan(step=name, action="reuse", why="Nothing that it depends on changed.", changes=[]))
        return dict(found.outputs)

    def _run(self, name: str, why: str, changes: list[Change], outputs: dict[str, Any]) -> dict[str, Any]:
        self.steps.append(StepPlan(step=name, action="run", why=why, changes=changes))
        return outputs

    def _key(self, component: Mapping[str, Any], container: Mapping[str, Any], inputs: Mapping[str, Any]) -> StepKey:
        declared = component.get("inputDefinitions", {}).get("artifacts", {})
        artifacts: dict[str, list[Any]] = {}
        parameters: dict[str, Any] = {}
        for name, value in inputs.items():
            if isinstance(value, _Unknown):
                continue
            if name in declared:
                artifacts[name] = value if isinstance(value, list) else [value]
            else:
                parameters[name] = value
        command = [*container.get("command", []), *container.get("args", [])]
        environment = {item["name"]: item.get("value", "") for item in container.get("env", [])}
        return component_key(self._settings, command, parameters, artifacts, environment)

    def _mark(self, component: Mapping[str, Any], name: str, action: Action, why: str) -> None:
        """Give every leaf under a task the same plan."""
        if "dag" not in component:
            self.steps.append(StepPlan(step=name, action=action, why=why, changes=[]))
            return
        for inner, task in component["dag"]["tasks"].items():
            self._mark(self._ir["components"][task["componentRef"]["name"]], inner, action, why)

    def _holds(self, effect: dict[str, str]) -> bool:
        """Tell whether what a step once did to the world is still so."""
        from shopfloor.serving.deploy import rollout

        use_case, version = effect["use_case"], effect["version"]
        if effect["kind"] == materialization.EFFECT_KIND:
            return materialization.holds(self._settings, effect)
        if effect["kind"] == "model_version":
            return _ask(self._settings, "model-versions/get", name=use_case, version=version) is not None
        live = rollout.live_versions(self._settings, use_case)
        if effect["kind"] == "deployment":
            return version in live.values()
        alias = _alias(self._settings, use_case)
        return live.get("champion") == version and alias is not None and str(alias["version"]) == version


def _champion(settings: Settings, model: str, key: str) -> str:
    """Return the version to compare with, as `submit` would: not the one that a run with this very key made."""
    version = _alias(settings, model)
    if version is None:
        return ""
    run = _ask(settings, "runs/get", run_id=version.get("run_id", ""))
    parent = _tags(run).get("mlflow.parentRunId") if run else None
    maker = _ask(settings, "runs/get", run_id=parent) if parent else run
    if maker and _tags(maker).get("shopfloor.run_key") == key:
        params = {item["key"]: item["value"] for item in maker["run"]["data"].get("params", [])}
        return str(params.get("champion", ""))
    return str(version["version"])


def _alias(settings: Settings, model: str) -> dict[str, Any] | None:
    answer = _ask(settings, "registered-models/alias", name=model, alias="champion")
    return answer["model_version"] if answer else None


def _ask(settings: Settings, path: str, **params: str) -> dict[str, Any] | None:
    """Return MLflow's answer, `None` where what is asked for does not exist."""
    import requests

    try:
        answer = requests.get(
            f"{settings.tracking_uri}/api/2.0/mlflow/{path}", params=params, timeout=settings.request_timeout_s
        )
        found: dict[str, Any] = answer.json()
    except (requests.RequestException, ValueError) as error:
        raise _NoAnswer from error
    if answer.status_code >= 500:
        raise _NoAnswer
    return found if answer.ok else None


def _tags(run: Mapping[str, Any]) -> dict[str, str]:
    return {item["key"]: item["value"] for item in run["run"]["data"].get("tags", [])}


def _with_defaults(component: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    declared = component.get("inputDefinitions", {}).get("parameters", {})
    defaults = {name: one["defaultValue"] for name, one in declared.items() if "defaultValue" in one}
    return {**defaults, **{name: value for name, value in given.items() if value is not None}}


def _inputs(task: Mapping[str, Any], given: Mapping[str, Any], made: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the values of a task's inputs, `_Unknown` for those that a step will make."""
    values: dict[str, Any] = {}
    for kind, output, outer in (
        ("parameters", "taskOutputParameter", "componentInputParameter"),
        ("artifacts", "taskOutputArtifact", "componentInputArtifact"),
    ):
        for name, source in task.get("inputs", {}).get(kind, {}).items():
            if output in source:
                producer = source[output]["producerTask"]
                wanted = source[output].get("outputParameterKey") or source[output].get("outputArtifactKey")
                values[name] = made.get(producer, {}).get(wanted, _Unknown(producer))
            elif outer in source:
                values[name] = given.get(source[outer])
            elif "runtimeValue" in source:
                values[name] = source["runtimeValue"].get("constant")
            else:
                values[name] = _Unknown("")
    return values


def _dag_outputs(component: Mapping[str, Any], made: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    outputs = component["dag"].get("outputs", {})
    for name, source in outputs.get("parameters", {}).items():
        selector = source.get("valueFromParameter")
        if selector:
            producer = selector["producerSubtask"]
            found[name] = made.get(producer, {}).get(selector["outputParameterKey"], _Unknown(producer))
    for name, source in outputs.get("artifacts", {}).items():
        selectors = source.get("artifactSelectors", [])
        if len(selectors) == 1:
            producer = selectors[0]["producerSubtask"]
            found[name] = made.get(producer, {}).get(selectors[0]["outputArtifactKey"], _Unknown(producer))
    return found


def _changes(last: Mapping[str, str] | None, now: Mapping[str, str], open_: set[str]) -> list[Change]:
    """Return the parts that differ, but for those that nobody knows yet."""
    if last is None:
        return []
    return [
        Change(part=part, old=last.get(part), new=now.get(part))
        for part in sorted(last.keys() | now.keys())
        if part not in open_ and last.get(part) != now.get(part)
    ]


def _in_words(changes: list[Change]) -> str:
    parts = [change.part for change in changes]
    shown = ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")
    return f"Changed: {shown}."


def _holds(condition: str, inputs: Mapping[str, Any]) -> bool | None:
    """Tell whether a condition holds, `None` where nobody can tell yet."""
    unknown = {name for name, value in inputs.items() if isinstance(value, _Unknown)}
    try:
        tree = conditions.parse(condition)
        values = dict.fromkeys(conditions.parameters(tree), None) | dict(inputs)
        return conditions.evaluate(tree, {name: value for name, value in values.items() if name not in unknown})
    except conditions.ConditionError:
        return None
