"""From a pipeline file to what an engine runs: KFP's intermediate representation and checked arguments."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shopfloor.errors import NotFoundError, UsageError
from shopfloor.keys import step_key
from shopfloor.settings import Settings

_TYPES = {
    "NUMBER_INTEGER": "a whole number",
    "NUMBER_DOUBLE": "a number",
    "BOOLEAN": "true or false",
    "STRING": "text",
    "LIST": "a JSON list",
    "STRUCT": "a JSON object",
}
RESOLVED_AT_SUBMIT = ("champion", "data_rev")
"""Parameters that say where to look, not what is there: they do not count in the run's key."""


@dataclass(frozen=True)
class Compiled:
    """A compiled pipeline."""

    name: str
    spec: Any
    """KFP's `PipelineSpec` message."""
    ir: dict[str, Any]
    """The same as JSON."""
    steps: list[str]
    """Names of the leaf tasks, in an order that respects their dependencies."""
    edges: list[tuple[str, str]]
    """Which leaf task waits for which: (before, after)."""


def compile_pipeline(settings: Settings, file: str) -> Compiled:
    """Compile the one pipeline that a Python file defines.

    Args:
        settings: Its project's modules can be imported by the file.
        file: Path, relative to the working directory or the project.

    Raises:
        NotFoundError: There is no such file.
        UsageError: It is not a pipeline, or more than one, or KFP refuses it.
    """
    path = next((p for p in (Path(file), settings.project_root / file) if p.is_file()), None)
    if path is None:
        known = ", ".join(
            f"pipelines/{p.name}" for p in sorted((settings.project_root / "pipelines").glob("[a-z]*.py"))
        )
        raise NotFoundError(f"There is no pipeline file {file}.", f"Known pipelines: {known}.")
    if path.suffix != ".py":
        raise UsageError(f"{file} is not a Python file.", "Name a file such as pipelines/training.py.")
    from google.protobuf import json_format
    from kfp import compiler
    from kfp.dsl.graph_component import GraphComponent

    found = [value for value in vars(_load(settings, path)).values() if isinstance(value, GraphComponent)]
    if len(found) != 1:
        raise UsageError(
            f"{file} defines {len(found)} pipelines, not one.", "A pipeline is a function with @dsl.pipeline."
        )
    with tempfile.TemporaryDirectory() as directory:
        try:
            compiler.Compiler().compile(found[0], str(Path(directory) / "pipeline.yaml"))
        except (ValueError, TypeError, RuntimeError) as error:
            raise UsageError(f"{file} does not compile: {error}", "Mend the pipeline.") from error
    spec = found[0].pipeline_spec
    ir = json_format.MessageToDict(spec)
    steps, edges = _leaves(ir, ir["root"]["dag"]["tasks"])
    return Compiled(name=spec.pipeline_info.name, spec=spec, ir=ir, steps=steps, edges=edges)


def parse_parameters(compiled: Compiled, given: list[str]) -> dict[str, Any]:
    """Turn `key=value` texts into the pipeline's arguments.

    Raises:
        UsageError: An unknown parameter, a value of the wrong type, a missing or doubled one.
    """
    declared: dict[str, Any] = compiled.ir["root"].get("inputDefinitions", {}).get("parameters", {})
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"Parameter {text!r} has no value.", "Write it as key=value.")
        if name not in declared:
            raise UsageError(
                f"Pipeline {compiled.name!r} has no parameter {name!r}.", f"It has {', '.join(sorted(declared))}."
            )
        values[name] = _convert(name, value, declared[name]["parameterType"])
    return values


def require_parameters(compiled: Compiled, values: dict[str, Any]) -> None:
    """Refuse a run that lacks a parameter without a default.

    Raises:
        UsageError: One is missing.
    """
    declared: dict[str, Any] = compiled.ir["root"].get("inputDefinitions", {}).get("parameters", {})
    missing = [
        name
        for name, definition in declared.items()
        if name not in values and "defaultValue" not in definition and not definition.get("isOptional")
    ]
    if missing:
        hint = "Give it with --use-case." if missing == ["use_case"] else "Give them with -p key=value."
        raise UsageError(f"Pipeline {compiled.name!r} needs {', '.join(missing)}.", hint)


def run_key(settings: Settings, compiled: Compiled, arguments: dict[str, Any]) -> str:
    """Return the hash of all that goes into a run: the DAG, every step's code, the parameters, the data version."""
    what = {name: value for name, value in arguments.items() if name not in RESOLVED_AT_SUBMIT}
    code: dict[str, str] = {}
    for name, executor in sorted(compiled.ir["deploymentSpec"]["executors"].items()):
        command = [*executor["container"].get("command", []), *executor["container"].get("args", [])]
        source = next((part for part in command if "\nfrom kfp import dsl" in part), "")
        function = command[command.index("--function_to_execute") + 1] if "--function_to_execute" in command else name
        known = {"use_case": arguments["use_case"]} if "use_case" in arguments else {}
        code[name] = step_key(settings, source, function, known, {}).key
    text = json.dumps({"arguments": what, "code": code, "dag": compiled.ir["root"]["dag"]}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _load(settings: Settings, path: Path) -> Any:
    root = str(settings.project_root)
    if root not in sys.path:
        sys.path.insert(0, root)
    specification = importlib.util.spec_from_file_location(f"_pipeline_{path.stem}", path)
    if specification is None or specification.loader is None:
        raise UsageError(f"{path} is not a Python file.", "Name a file such as pipelines/training.py.")
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{path} cannot be loaded: {type(error).__name__}: {error}", "Mend the file.") from error
    return module


def _convert(name: str, text: str, kind: str) -> Any:
    try:
        if kind == "NUMBER_INTEGER":
            return int(text)
        if kind == "NUMBER_DOUBLE":
            return float(text)
        if kind == "BOOLEAN":
            return {"true": True, "false": False}[text.lower()]
        if kind in {"LIST", "STRUCT"}:
            value = json.loads(text)
            if not isinstance(value, list if kind == "LIST" else dict):
                raise ValueError
            return value
    except (ValueError, KeyError):
        raise UsageError(f"Parameter {name!r} must be {_TYPES[kind]}, not {text!r}.", f"Write -p {name}=...") from None
    return text


def _leaves(ir: dict[str, Any], tasks: dict[str, Any]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the leaf tasks under `tasks`, nested DAGs opened, and the edges between them."""
    steps: list[str] = []
    edges: list[tuple[str, str]] = []
    inside: dict[str, list[str]] = {}
    waiting = dict(tasks)
    while waiting:
        ready = [
            name
            for name, task in waiting.items()
            if not any(before in waiting for before in task.get("dependentTasks", []))
        ]
        for name in ready or list(waiting):
            task = waiting.pop(name)
            component = ir["components"][task["componentRef"]["name"]]
            if "dag" in component:
                inner_steps, inner_edges = _leaves(ir, component["dag"]["tasks"])
                heads = [step for step in inner_steps if step not in {after for _, after in inner_edges}]
                edges += inner_edges
            else:
                inner_steps = heads = [name]
            inside[name] = inner_steps
            steps += inner_steps
            for before in task.get("dependentTasks", []):
                last = inside.get(before, [])[-1:]
                edges += [(step, head) for step in last for head in heads]
    return steps, edges
