"""DAG templates: one for each KFP DAG, with one Argo task per KFP task.

An optional input without a value is known before the run: a DAG that is used with and without one has two templates.
A loop is a template of its own around its body: it succeeds when there is nothing to loop over, holds the limit of
parallel iterations, and makes JSON lists of what the iterations give.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from shopfloor.engines.argo import executors, outputs
from shopfloor.engines.argo.containers import Use, retry_strategy, type_of
from shopfloor.engines.argo.launcher import PLACEHOLDER, protect
from shopfloor.engines.argo.outputs import ITERATION
from shopfloor.engines.argo.values import (
    Value,
    computed,
    constant,
    embedded,
    final_status,
    from_input,
    from_task,
    given_inputs,
    selected,
)
from shopfloor.errors import UsageError
from shopfloor.pipeline import conditions, ir
from shopfloor.pipeline.ir import ALWAYS, ENVELOPE_SUFFIX, STEP_NAME, Json, Source, UnsupportedFeature, broken
from shopfloor.settings import Settings


@dataclass(frozen=True)
class Made:
    """A template and what its users must know of it."""

    template: str
    references: tuple[tuple[str, str], ...] = ()
    """Further inputs that it needs: name, and KFP's input as JSON."""
    prefixes: tuple[tuple[str, str], ...] = ()
    """Output artifact to the part of its key that all executions share; only where there is one such."""


class Templates:
    """Makes the templates of a workflow, each once."""

    def __init__(
        self, source: Source, settings: Settings, run_id: str | None, use_cache: bool, pipeline_root: str
    ) -> None:
        """Begin with no templates."""
        self._source = source
        self._settings = settings
        self._run_id = run_id
        self._use_cache = use_cache
        self._pipeline_root = pipeline_root
        self._made: dict[str, Made] = {}
        self._names: dict[str, str] = {}
        self._by_name: dict[str, Json] = {}
        self.pull_secrets: set[str] = set()

    @property
    def all(self) -> list[Json]:
        """The templates, each after those that it uses."""
        return list(self._by_name.values())

    def dag(
        self,
        name: str,
        component: Json,
        absent: frozenset[str],
        as_json: bool = False,
        retry: Json | None = None,
    ) -> Made:
        """Make the template of a DAG.

        Args:
            name: Name of its component.
            component: The component.
            absent: Its optional inputs that have no value.
            as_json: Whether outputs that are strings are given as JSON, as a loop needs them of its body.
            retry: How it is tried again as a whole.

        Raises:
            UnsupportedFeature: A task in it cannot be translated.
        """
        memo = json.dumps(["dag", name, sorted(absent), as_json, retry])
        if memo not in self._made:
            prefixes: dict[tuple[str, str], str] = {}
            tasks = [
                self._task(component, task_name, task, absent, prefixes)
                for task_name, task in ir.tasks(component).items()
            ]
            dag: Json = {"tasks": tasks}
            if any(task.get("triggerPolicy", {}).get("strategy") == ALWAYS for task in ir.tasks(component).values()):
                # What failed fails the DAG even where a later task was there to run all the same, after that task.
                dag |= {"target": " ".join(ir.tasks(component)), "failFast": False}
            template: Json = {"inputs": {"parameters": self._inputs(component, absent)}, "dag": dag}
            if retry:
                template["retryStrategy"] = retry
            if given := outputs.of_dag(self._source, component, as_json):
                template["outputs"] = {"parameters": given}
            shared = {}
            for output in ir.outputs(component, "artifacts"):
                found = {prefixes.get(selector) for selector in ir.selectors(component, "artifacts", output)}
                if len(found) == 1 and (prefix := found.pop()):
                    shared[output] = prefix
            self._made[memo] = Made(self._add(name, template), (), tuple(shared.items()))
        return self._made[memo]

    def _add(self, wanted: str, template: Json) -> str:
        """Keep a template under a name; the same one is kept once."""
        if template.get("inputs") == {"parameters": []}:
            del template["inputs"]
        text = json.dumps(template, sort_keys=True)
        if text not in self._names:
            base = re.sub(r"[^A-Za-z0-9]+", "-", wanted).strip("-")[:110] or "template"
            name, number = base, 2
            while name in self._by_name:
                name, number = f"{base}-{number}", number + 1
            self._names[text] = name
            self._by_name[name] = {"name": name, **template}
        return self._names[text]

    def _inputs(self, component: Json, absent: frozenset[str]) -> list[Json]:
        found: list[Json] = []
        for name, definition in ir.parameters(component).items():
            if name not in absent:
                item = {"name": name}
                if "defaultValue" in definition:
                    item["default"] = constant(definition["defaultValue"], type_of(definition)).text
                found.append(item)
        return found + [{"name": name + ENVELOPE_SUFFIX} for name in ir.artifacts(component) if name not in absent]

    def _task(
        self, dag: Json, name: str, task: Json, absent: frozenset[str], prefixes: dict[tuple[str, str], str]
    ) -> Json:
        """Return one task of a DAG."""
        if "artifactIterator" in task:
            raise UnsupportedFeature(name, "a loop over artifacts (artifactIterator)")
        component = self._source.component(task)
        given = self._arguments(dag, name, task, component, absent)
        declared = {**ir.parameters(component), **ir.artifacts(component)}
        item = task.get("parameterIterator", {}).get("itemInput")
        without = frozenset(
            input_name
            for input_name, definition in declared.items()
            if input_name not in given and "defaultValue" not in definition and input_name != item
        )
        told = {**given_inputs(task, "parameters"), **given_inputs(task, "artifacts")}
        for input_name in sorted(without - told.keys()):
            if not declared[input_name].get("isOptional"):
                raise broken(f"task {name!r} lacks the input {input_name!r}")
        made = self._template(name, task, component, without, given)
        for output, prefix in made.prefixes:
            prefixes[name, output] = prefix
        needed = self._needed(made.template)
        arguments = {
            input_name + (ENVELOPE_SUFFIX if input_name in ir.artifacts(component) else ""): value.text
            for input_name, value in given.items()
        }
        for extra, text in made.references:
            ir.check_references(self._source, dag, name, {"inputs": {"parameters": {extra: json.loads(text)}}})
            value = self._value(dag, name, json.loads(text), "STRING", absent, given)
            if value is None:
                raise broken(f"a setting of task {name!r} takes the input {extra!r}, which has no value")
            arguments[extra] = value.text
        arguments[STEP_NAME] = name
        result: Json = {"name": name, "template": made.template}
        parameters = [{"name": key, "value": value} for key, value in sorted(arguments.items()) if key in needed]
        if parameters:
            result["arguments"] = {"parameters": parameters}
        if depends := self._depends(dag, task, [json.loads(text) for _, text in made.references]):
            result["depends"] = depends
        if condition := task.get("triggerPolicy", {}).get("condition"):
            result["when"] = self._condition(name, condition, component, given)
        return result

    def _needed(self, template: str) -> set[str]:
        return {item["name"] for item in self._by_name[template].get("inputs", {}).get("parameters", [])}

    def _template(
        self, name: str, task: Json, component: Json, absent: frozenset[str], given: dict[str, Value]
    ) -> Made:
        """Return the template that a task uses."""
        if "parameterIterator" in task:
            return self._loop(name, task, component, absent)
        used = task["componentRef"]["name"]
        if "dag" not in component:
            return self._leaf(name, task, component, absent)
        return self.dag(used, component, absent, retry=retry_strategy(name, task, None))

    def _leaf(self, name: str, task: Json, component: Json, absent: frozenset[str]) -> Made:
        settled = (
            ("retryPolicy", "cachingOptions", "inputs")
            if self._varies(component)
            else ("retryPolicy", "cachingOptions")
        )
        memo = json.dumps(
            ["leaf", task["componentRef"]["name"], sorted(absent), [task.get(key) for key in settled]], sort_keys=True
        )
        if memo not in self._made:
            use = Use(
                self._source,
                self._settings,
                name,
                task,
                component,
                absent,
                self._run_id,
                self._use_cache,
                self._pipeline_root,
            )
            leaf = executors.leaf(use)
            self.pull_secrets.update(leaf.pull_secrets)
            self._made[memo] = Made(
                self._add(task["componentRef"]["name"], leaf.template),
                tuple((key, json.dumps(given, sort_keys=True)) for key, given in leaf.references.items()),
                tuple((output, f"{leaf.key}/{output}") for output in ir.outputs(component, "artifacts")),
            )
        return self._made[memo]

    def _varies(self, component: Json) -> bool:
        """Tell whether a task's inputs can change its template or be refused by it: then no two share it unseen."""
        executor = self._source.executor(component)
        words = [*executor.get("container", {}).get("command", []), *executor.get("container", {}).get("args", [])]
        launched = any("{{$}}" in word for word in words) and "resources" not in executor["container"]
        return not launched or component["executorLabel"] in self._source.platform

    def _loop(self, name: str, task: Json, component: Json, absent: frozenset[str]) -> Made:
        """Return the template of a loop over a task."""
        iterator = task["parameterIterator"]
        item, items = iterator.get("itemInput", ""), iterator.get("items", {})
        if item not in ir.parameters(component):
            raise broken(f"the loop {name!r} has no input {item!r}")
        if "dag" not in component and (component.get("outputDefinitions")):
            raise UnsupportedFeature(name, "a loop over a component with outputs, without a DAG around it")
        body = (
            self.dag(task["componentRef"]["name"], component, absent, as_json=True)
            if "dag" in component
            else self._leaf(name, task, component, absent)
        )
        needed = self._needed(body.template)
        passed = [n for n in sorted(needed | {key for key, _ in body.references}) if n not in {item, STEP_NAME}]
        arguments = [{"name": n, "value": f"{{{{inputs.parameters.{n}}}}}"} for n in passed]
        if item in needed:
            arguments.append({"name": item, "value": "{{item}}"})
        if STEP_NAME in needed:
            arguments.append({"name": STEP_NAME, "value": name})
        inputs = [{"name": n} for n in passed]
        if "raw" in items:
            try:
                found = json.loads(items["raw"])
            except ValueError as error:
                raise broken(f"the items of the loop {name!r} are no JSON") from error
            if not isinstance(found, list):
                raise broken(f"the items of the loop {name!r} are no list")
            if PLACEHOLDER.search(items["raw"]):
                raise UnsupportedFeature(name, "a placeholder among the items of a loop")
            over = protect(items["raw"])
        else:
            source = items.get("inputParameter", "")
            if source not in given_inputs(task, "parameters"):
                raise broken(f"the loop {name!r} has no items")
            if source in absent:
                raise UsageError(f"The loop {name!r} is over an input without a value.", "Give the parameter a list.")
            over = f"{{{{inputs.parameters.{source}}}}}"
            inputs += [{"name": source}] if source not in passed else []
        inner: Json = {"name": ITERATION, "template": body.template, "withParam": over}
        if arguments:
            inner["arguments"] = {"parameters": arguments}
        template: Json = {"inputs": {"parameters": inputs}, "dag": {"tasks": [inner]}}
        if limit := task.get("iteratorPolicy", {}).get("parallelismLimit"):
            template["parallelism"] = int(limit)
        prefixes = dict(body.prefixes)
        given = [outputs.of_loop(output, "") for output in ir.outputs(component, "parameters")]
        for output in ir.outputs(component, "artifacts"):
            if output not in prefixes:
                raise UnsupportedFeature(name, f"the collected artifact {output!r}, which several tasks may make")
            given.append(outputs.of_loop(output, prefixes[output]))
        if given:
            template["outputs"] = {"parameters": given}
        return Made(self._add(f"{task['componentRef']['name']}-loop", template), body.references, body.prefixes)

    def _arguments(self, dag: Json, name: str, task: Json, component: Json, absent: frozenset[str]) -> dict[str, Value]:
        """Return what a task is given; an input that refers to something without a value is left out."""
        declared = ir.parameters(component)
        found: dict[str, Value] = {}
        waiting = given_inputs(task, "parameters")
        # Constants may embed the others.
        for embedding in (False, True):
            for input_name, spec in waiting.items():
                text = spec.get("runtimeValue", {}).get("constant")
                if (isinstance(text, str) and bool(PLACEHOLDER.search(text))) != embedding:
                    continue
                value = self._value(dag, name, spec, type_of(declared.get(input_name, {})), absent, found)
                if value is not None:
                    found[input_name] = value
        for input_name, spec in given_inputs(task, "artifacts").items():
            if "taskOutputArtifact" in spec:
                made = spec["taskOutputArtifact"]
                found[input_name] = from_task(made["producerTask"], made["outputArtifactKey"] + ENVELOPE_SUFFIX)
            elif spec.get("componentInputArtifact") and spec["componentInputArtifact"] not in absent:
                found[input_name] = from_input(spec["componentInputArtifact"] + ENVELOPE_SUFFIX)
        return found

    def _value(
        self, dag: Json, task: str, spec: Json, kind: str, absent: frozenset[str], others: dict[str, Value]
    ) -> Value | None:
        """Return what KFP's `InputParameterSpec` stands for in a DAG."""
        if "taskFinalStatus" in spec:
            return final_status(spec["taskFinalStatus"].get("producerTask", ""))
        value: Value | None
        if "taskOutputParameter" in spec:
            made = spec["taskOutputParameter"]
            value = from_task(made["producerTask"], made["outputParameterKey"])
        elif "componentInputParameter" in spec:
            name = spec["componentInputParameter"]
            if name in absent:
                return None
            if name not in ir.parameters(dag):
                raise broken(f"task {task!r} refers to the input {name!r}, which nobody declares")
            value = from_input(name)
        elif "constant" in spec.get("runtimeValue", {}):
            text = spec["runtimeValue"]["constant"]
            if text is None:
                return None
            if isinstance(text, str) and PLACEHOLDER.search(text):
                value = embedded(text, others, task, self._pipeline_root)
            else:
                value = constant(text, kind)
        else:
            raise UnsupportedFeature(task, f"an input that is given as {', '.join(spec) or 'nothing'}")
        selector = spec.get("parameterExpressionSelector")
        return selected(value, selector, kind, task) if selector else value

    def _depends(self, dag: Json, task: Json, references: list[Json]) -> str:
        """Return what a task waits for, and with which outcome."""
        always = task.get("triggerPolicy", {}).get("strategy") == ALWAYS
        before = ir.producers(task) | ir.producers({"inputs": {"parameters": dict(enumerate(references))}})
        terms: list[str] = []
        for name in sorted(before):
            other = dag["dag"]["tasks"][name]
            if always:
                terms.append(
                    f"({name}.Succeeded || {name}.Failed || {name}.Errored || {name}.Skipped || {name}.Omitted)"
                )
            elif other.get("triggerPolicy", {}).get("condition"):
                terms.append(f"({name}.Succeeded || {name}.Skipped)")
            else:
                terms.append(f"{name}.Succeeded")
        return " && ".join(terms)

    def _condition(self, name: str, condition: str, component: Json, given: dict[str, Value]) -> str:
        declared = ir.parameters(component)

        def argument(input_name: str) -> conditions.Argument | None:
            kind = type_of(declared.get(input_name, {}))
            default = declared.get(input_name, {}).get("defaultValue")
            if input_name in given:
                expression = given[input_name].expression
            elif default is not None:
                expression = constant(default, kind).expression
            else:
                return None
            if kind in {"NUMBER_INTEGER", "NUMBER_DOUBLE"}:
                return conditions.Argument("number", f"asFloat({expression})")
            return conditions.Argument("text", expression)

        try:
            return computed(conditions.to_argo(conditions.parse(condition), argument, protect)).text
        except ValueError as error:
            raise UnsupportedFeature(name, f"the {error}") from error
