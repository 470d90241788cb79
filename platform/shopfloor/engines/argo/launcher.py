"""Runs one KFP component in a container of an Argo step. This file stands alone: Python 3.7 and its standard library.

It does what KFP's launcher does: builds the executor input from what Argo hands in, fills it into the component's
command, runs that, and writes every output where Argo collects it. Beside a container whose image may hold anything it
only reads the outputs (a task with `native`). It reads only its environment:

    SHOPFLOOR_TASK              what never changes of the task: JSON in base64, so that Argo substitutes nothing in it
    SHOPFLOOR_ROOT              directory of the step: inputs/artifacts, outputs/artifacts, outputs/parameters
    SHOPFLOOR_PARAMETER_<name>  one input parameter; `<name>-artifact` describes an input artifact
    SHOPFLOOR_FACT_<name>       what a placeholder of KFP says of the run, such as `pipeline_job_name`
    SHOPFLOOR_STEP, SHOPFLOOR_WORKFLOW, SHOPFLOOR_POD

In the platform image the execution goes through `shopfloor.engines.step`, which knows the result store and MLflow.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

PARAMETER = "SHOPFLOOR_PARAMETER_"
FACT = "SHOPFLOOR_FACT_"
OWN = tuple(f"SHOPFLOOR_{name}" for name in ("TASK", "ROOT", "POD", "WORKFLOW"))
OUTPUT_FILE = "executor_output.json"
ENVELOPE = "-artifact"
"""Ending of the parameter that carries an artifact's name, type, URI, metadata and key."""
IMPORTED = ("s3",)
"""Schemes of addresses that an importer may name."""
NOWHERE = "none"
"""Key of an artifact whose bytes Argo does not have; nobody made one that has no address either."""

PLACEHOLDER = re.compile(r"\{\{\$(.*?)\}\}")
_PART = re.compile(r"\.(\w+)|\['([^']*)'\]|\[\"([^\"]*)\"\]")
_JOINER = "\u2060"
_PROTECT = re.compile(r"\{(\u2060*)(?=\{)")
_REVEAL = re.compile(r"\{\u2060(\u2060*)(?=\{)")
ABSENT = _JOINER
"""Text of a parameter that has no value: what gives it did not run, or failed."""
_WHOLE = 2**53
_TRUE = {"1", "t", "T", "TRUE", "true", "True"}
_FALSE = {"0", "f", "F", "FALSE", "false", "False"}


def protect(text: str) -> str:
    """Make `text` safe to travel through Argo, which would substitute `{{...}}` in it.

    A word joiner goes between the two characters; one that stands there already is doubled. `reveal` takes it out.
    Text of joiners alone gets one more, so that none is `ABSENT`.
    """
    if text and not text.strip(_JOINER):
        return text + _JOINER
    return _PROTECT.sub("{\\1" + _JOINER, text)


def reveal(text: str) -> str:
    """Return what `protect` was given."""
    if text and not text.strip(_JOINER):
        return text[1:]
    return _REVEAL.sub(r"{\1", text)


def encode(value: Any, kind: str) -> str:
    """Return the text of a parameter's value: a string as it is, anything else as JSON; protected."""
    if kind == "STRING" and isinstance(value, str):
        return protect(value)
    if kind == "NUMBER_DOUBLE" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    elif kind != "NUMBER_DOUBLE":
        value = whole(value)
    return protect(json.dumps(value))


def whole(value: Any) -> Any:
    """Return a JSON value in which whole numbers are integers: the protobuf that carries it knows floats alone."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) <= _WHOLE else value
    if isinstance(value, list):
        return [whole(item) for item in value]
    return {key: whole(item) for key, item in value.items()} if isinstance(value, dict) else value


def decode(text: str, kind: str) -> Any:
    """Return the value of a parameter's text.

    Raises:
        ValueError: It is no value of its type.
    """
    text = reveal(text)
    if kind == "STRING":
        return text
    value = json.loads(text.lower() if kind == "BOOLEAN" else text)
    if kind == "NUMBER_INTEGER" and value is not None:
        return int(value)
    return float(value) if kind == "NUMBER_DOUBLE" and value is not None else value


def parse(text: str, kind: str) -> Any:
    """Return the value of what a program wrote into the file of an output parameter, as KFP's launcher reads it.

    Raises:
        ValueError: It is no value of its type.
    """
    if kind == "STRING":
        return text
    text = text.strip()
    if kind == "NUMBER_INTEGER":
        return int(text)
    if kind == "NUMBER_DOUBLE":
        return float(text)
    if kind == "BOOLEAN":
        if text not in _TRUE | _FALSE:
            raise ValueError("no boolean")
        return text in _TRUE
    return json.loads(text)


def parts(placeholder: str) -> list[str]:
    """Return the path in a placeholder: `.inputs.parameters['x']` is `["inputs", "parameters", "x"]`."""
    return [next(group for group in match.groups() if group is not None) for match in _PART.finditer(placeholder)]


def flatten(element: str, provided: set[str]) -> list[str]:
    """Resolve `Concat` and `IfPresent` of one element of a command; what is left are strings with placeholders."""
    if not element.startswith(('{"Concat": ', '{"IfPresent": ')):
        return [element]
    return _flatten(json.loads(element), provided)


def _flatten(node: Any, provided: set[str]) -> list[str]:
    if isinstance(node, str):
        return [node]
    if isinstance(node, list):
        return [text for item in node for text in _flatten(item, provided)]
    if "Concat" in node:
        return ["".join(text for item in node["Concat"] for text in _flatten(item, provided))]
    choice = node["IfPresent"]
    branch = choice.get("Then") if choice["InputName"] in provided else choice.get("Else")
    return [] if branch is None else _flatten(branch, provided)


def resolve(text: str, executor_input: dict[str, Any], constants: dict[str, str]) -> str:
    """Fill the placeholders of `text` in; one that means nothing stays as it is."""

    def value(match: re.Match[str]) -> str:
        path = parts(match[1])
        target = _lookup(path, executor_input, constants) if match[1] else executor_input
        return match[0] if target is None else target if isinstance(target, str) else json.dumps(target)

    return PLACEHOLDER.sub(value, text)


def _lookup(path: list[str], executor_input: dict[str, Any], constants: dict[str, str]) -> Any:
    if len(path) == 1:
        return constants.get(path[0]) if path[0] != "outputMetadataUri" else executor_input["outputs"]["outputFile"]
    if path == ["outputs", "output_file"]:
        return executor_input["outputs"]["outputFile"]
    side: dict[str, Any] = executor_input.get(path[0], {})
    if path[:2] == ["inputs", "parameters"] and len(path) == 3:
        return side.get("parameterValues", {}).get(path[2])
    if path[:2] == ["outputs", "parameters"] and path[3:] == ["output_file"]:
        return side.get("parameters", {}).get(path[2], {}).get("outputFile")
    if len(path) < 3 or path[1] != "artifacts" or path[2] not in side.get("artifacts", {}):
        return None
    artifacts = side["artifacts"][path[2]]["artifacts"]
    if len(path) == 3:
        return artifacts
    if path[3] == "metadata":
        return artifacts[0]["metadata"] if len(path) == 4 else artifacts[0]["metadata"].get(path[4])
    return artifacts[0].get({"path": "uri", "uri": "uri", "name": "name"}.get(path[3], ""))


def build_executor_input(task: dict[str, Any], root: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Return KFP's `ExecutorInput` as JSON.

    Args:
        task: The static task.
        root: The step's directory.
        environment: Holds the inputs.

    Raises:
        ValueError: An input is no value of its type; the message names it.
    """
    inputs, outputs = task["inputs"], task["outputs"]
    values: dict[str, Any] = {}
    for name, kind in inputs["parameters"].items():
        text = environment[PARAMETER + name]
        if text == ABSENT:
            continue
        try:
            values[name] = decode(text, kind)
        except ValueError as error:
            raise ValueError(f"Input {name!r} is no {kind}: {text[:200]!r}.") from error
    artifacts: dict[str, Any] = {}
    for name, is_list in inputs["artifacts"].items():
        envelope = json.loads(reveal(environment[PARAMETER + name + ENVELOPE]))
        place = root / "inputs" / "artifacts" / name
        if is_list:
            items = [_received(item, place / item["key"].rpartition("/")[2]) for item in _items(envelope)]
        elif envelope["key"] == NOWHERE and not envelope["uri"]:
            continue
        else:
            items = [_received(envelope, place)]
        artifacts[name] = {"artifacts": items}
    return {
        "inputs": {"parameterValues": values, "artifacts": artifacts},
        "outputs": {
            "parameters": {
                name: {"outputFile": str(root / "outputs" / "parameters" / name)} for name in outputs["parameters"]
            },
            "artifacts": {
                name: {
                    "artifacts": [
                        {
                            "name": name,
                            "type": kind,
                            "uri": str(root / "outputs" / "artifacts" / name),
                            "metadata": {},
                        }
                    ]
                }
                for name, kind in outputs["artifacts"].items()
            },
            "outputFile": str(root / OUTPUT_FILE),
        },
    }


def _items(envelope: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the artifacts of a collected list; what loops in loops collected is one list."""
    items: list[dict[str, Any]] = []
    for item in envelope["items"]:
        items += _items(item) if "items" in item else [item]
    return items


def _received(envelope: dict[str, Any], place: Path) -> dict[str, Any]:
    """Return an input artifact: where its bytes came with it they are local, else its own address holds."""
    # Argo leaves an empty directory where an optional artifact was not there.
    came = place.is_file() or (place.is_dir() and any(place.iterdir()))
    uri = envelope["uri"] if "://" in envelope["uri"] and not came else str(place)
    return {"name": envelope["name"], "type": envelope["type"], "uri": uri, "metadata": envelope["metadata"]}


def run_command(task: dict[str, Any], executor_input: dict[str, Any], constants: dict[str, str]) -> int:
    """Run the component's own command and return its exit code."""
    provided = {name for side in executor_input["inputs"].values() for name in side}
    elements = [part for element in task["command"] for part in flatten(element, provided)]
    command = [resolve(element, executor_input, constants) for element in elements]
    # What a step in the platform image makes on the cluster belongs to its pod.
    hidden = {*OWN} - ({"SHOPFLOOR_POD"} if task["platform"] else set())
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in hidden and not name.startswith((PARAMETER, FACT))
    }
    environment.update(task["environment"])
    # A copy of what it prints stays for whoever records the step.
    log = Path(executor_input["outputs"]["outputFile"]).parent / "step.log" if task["platform"] else None
    return attend(command, environment, log)


def attend(command: list[str], environment: dict[str, str], log: Path | None) -> int:
    """Run a command and return its exit code; a request to end reaches all its processes, which may clear up.

    Args:
        command: The command: with KFP a shell that waits for Python, and that would hand no request to end on.
        environment: Its variables.
        log: File that gets a copy of what it prints.
    """
    sys.stdout.flush()
    alive, held = os.pipe()
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE if log else None,
        stderr=subprocess.STDOUT if log else None,
        start_new_session=True,
        pass_fds=[held],
    )
    os.close(held)
    requests = []

    def hand_on(received: int, _frame: Any) -> None:
        requests.append(received)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, received)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    if log and process.stdout:
        read = process.stdout.fileno()
        with log.open("ab") as copy:
            for chunk in iter(lambda: os.read(read, 65536), b""):
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
                copy.write(chunk)
    code = process.wait()
    if requests:
        os.read(alive, 1)  # ends when the last of its processes has ended
    return code if code >= 0 else 128 - code


def finite(artifact: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """Return an artifact's metadata without what is NaN or infinite, which is no JSON; the log says so."""

    def is_one(value: Any) -> bool:
        if isinstance(value, (dict, list)):
            return all(map(is_one, value.values() if isinstance(value, dict) else value))
        return not isinstance(value, float) or math.isfinite(value)

    for key in metadata:
        if not is_one(metadata[key]):
            sys.stderr.write(f"{artifact}: {key} is {metadata[key]}, and left out.\n")
    return {key: value for key, value in metadata.items() if is_one(value)}


def collect(task: dict[str, Any], executor_input: dict[str, Any], key_end: str) -> None:
    """Write one file for each output parameter, and one with the envelope of each output artifact.

    Args:
        task: The static task.
        executor_input: What the component was run with.
        key_end: Last segment of the artifacts' keys.

    Raises:
        ValueError: An output is no value of its type; the message names it.
    """
    outputs = executor_input["outputs"]
    file = Path(outputs["outputFile"])
    output: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name, kind in task["outputs"]["parameters"].items():
        place = Path(outputs["parameters"][name]["outputFile"])
        values = output.get("parameterValues", {})
        if name not in values and not place.is_file():
            raise ValueError(f"Output {name!r} was not written.")
        try:
            value = values[name] if name in values else parse(place.read_text(encoding="utf-8"), kind)
            _write(place, encode(value, kind))
        except ValueError as error:
            raise ValueError(f"Output {name!r} is no {kind}.") from error
    if task.get("native"):
        # What Argo is told of its artifacts stands in the template.
        return
    for name, kind in task["outputs"]["artifacts"].items():
        declared = outputs["artifacts"][name]["artifacts"][0]
        artifact = {**declared, **next(iter(output.get("artifacts", {}).get(name, {}).get("artifacts", [])), {})}
        _bring(Path(declared["uri"]), artifact)
        envelope = {
            "name": artifact["name"],
            "type": kind,
            "uri": artifact["uri"],
            "metadata": finite(name, artifact["metadata"]),
            "key": f"{task['key']}/{name}/{key_end}",
        }
        place = Path(outputs["outputFile"]).parent / "outputs" / "parameters" / f"{name}{ENVELOPE}"
        _write(place, protect(json.dumps(envelope)))


def _bring(expected: Path, artifact: dict[str, Any]) -> None:
    """Put what a component left at a path of its own choice where Argo collects it."""
    uri = artifact.get("custom_path") or artifact["uri"]
    own = Path(uri.replace("file://", "", 1))
    if "://" in uri and not uri.startswith("file://"):
        return
    if own != expected and own.exists() and not expected.exists():
        shutil.copytree(own, expected) if own.is_dir() else shutil.copy2(own, expected)


def _write(place: Path, text: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    # Argo takes one newline from the end of what it reads.
    place.write_text(text + "\n" if text.endswith("\n") else text, encoding="utf-8")


def _filled(value: Any, executor_input: dict[str, Any], constants: dict[str, str]) -> Any:
    """Return a JSON value with the placeholders in all its texts filled in."""
    if isinstance(value, str):
        return resolve(value, executor_input, constants)
    if isinstance(value, list):
        return [_filled(item, executor_input, constants) for item in value]
    if isinstance(value, dict):
        return {
            _filled(key, executor_input, constants): _filled(item, executor_input, constants)
            for key, item in value.items()
        }
    return value


def _import_artifact(task: dict[str, Any], executor_input: dict[str, Any], constants: dict[str, str]) -> int:
    """Stand in for KFP's importer: the artifact is what its address and its metadata say.

    Raises:
        ValueError: Nobody here can read what is at such an address.
    """
    importer = _filled(task["importer"], executor_input, constants)
    scheme, _, rest = importer["uri"].partition("://")
    if rest and scheme not in IMPORTED:
        raise ValueError(f"The argo engine does not import {scheme}:// artifacts: {importer['uri']}")
    artifact = {"name": "artifact", "uri": importer["uri"], "metadata": importer["metadata"]}
    Path(executor_input["outputs"]["outputFile"]).write_text(
        json.dumps({"artifacts": {"artifact": {"artifacts": [artifact]}}}), encoding="utf-8"
    )
    return 0


def main() -> int:
    """Run the task that the environment names.

    Returns:
        The component's exit code; 1 where its inputs or outputs are not what it declares.
    """
    task: dict[str, Any] = json.loads(base64.b64decode(os.environ["SHOPFLOOR_TASK"]))
    root, pod = Path(os.environ["SHOPFLOOR_ROOT"]), os.environ["SHOPFLOOR_POD"]
    constants = {name[len(FACT) :]: value for name, value in os.environ.items() if name.startswith(FACT)}
    constants.update(pipeline_task_name=os.environ["SHOPFLOOR_STEP"], pipeline_task_uuid=pod)
    for folder in ("outputs/artifacts", "outputs/parameters", "home", "state", "tmp"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    try:
        executor_input = build_executor_input(task, root, dict(os.environ))
        if task.get("native"):
            collect(task, executor_input, pod)
            return 0
        values = executor_input["inputs"]["parameterValues"]
        for name, value in values.items():
            values[name] = _filled(value, executor_input, constants)

        def execute() -> int:
            if "importer" in task:
                return _import_artifact(task, executor_input, constants)
            return run_command(task, executor_input, constants)

        if task["platform"] and "importer" not in task:
            from shopfloor.engines.failures import telling
            from shopfloor.engines.step import run

            task = {**task, "command": telling(task["command"])}
            code = run(task, executor_input, execute)
        else:
            code = execute()
        if code == 0:
            collect(task, executor_input, pod)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
