"""Templates of tasks whose image may hold anything: placeholders become Argo's tags, outputs are files.

Where there are output parameters, a container of ours reads them after the program has ended.
"""

from __future__ import annotations

import json
from typing import Any

from shopfloor.engines.argo import pods
from shopfloor.engines.argo.containers import (
    HELPER,
    STEP_MOUNT,
    Leaf,
    Use,
    digest,
    for_kubelet,
    input_for_kubelet,
    input_names,
    pod_template,
    variable,
)
from shopfloor.engines.argo.launched import reader, static
from shopfloor.engines.argo.launcher import PLACEHOLDER, flatten, parts, protect
from shopfloor.engines.argo.source import ENVELOPE_SUFFIX, STEP_NAME, UnsupportedFeature
from shopfloor.engines.argo.values import ROOT, facts
from shopfloor.pipeline import ir
from shopfloor.pipeline.conditions import literal
from shopfloor.pipeline.ir import Json, Message, artifacts, outputs, parameters

PLACES = (f"{ROOT}/outputs/parameters", f"{ROOT}/outputs/artifacts")


def native(use: Use, executor: Message, image: str, pod: pods.Pod) -> Leaf:
    """Return the template of a task in whose container no more than its own program runs.

    Args:
        use: The task.
        executor: Its executor.
        image: Its image.
        pod: What the task asks of its pod.

    Raises:
        UnsupportedFeature: Its command holds what only the launcher could fill in, or what Argo would substitute.
    """
    present = {name for name in (*parameters(use.component), *artifacts(use.component)) if name not in use.absent}
    for name, origin in ir.inputs(use.task, "parameters").items():
        if _holds_tags(origin.value):
            raise UnsupportedFeature(use.name, f"'{{{{' in the input {name!r} of an image without Python")
    words = {
        part: [_tags(use, text) for element in getattr(executor.container, part) for text in flatten(element, present)]
        for part in ("command", "args")
    }
    main: Json = {"image": image, **{part: texts for part, texts in words.items() if texts}}
    env = [variable(name, _tags(use, value)) for name, value in ir.environment_of(executor).items()]
    if env:
        main["env"] = env
    names = [*input_names(use)]
    task = static(use, executor, image)
    task_outputs = task["outputs"]
    key = digest({"image": image, "words": words, "outputs": task_outputs})
    beside = reader(use, task, key) if task_outputs["parameters"] else None
    template = pod_template(use, main, pod, task_outputs, key, None, names, beside)
    if any(task_outputs.values()):
        template["initContainers"] = [
            {
                "name": "directories",
                "image": use.settings.cluster.image,
                # The volume's root belongs to root, and the main container may run as another user than this one.
                "command": ["sh", "-c", 'umask 0 && mkdir -p "$@"', "sh", *PLACES],
                "volumeMounts": [STEP_MOUNT],
                **HELPER,
            }
        ]
    return Leaf(template, pod.references, pod.pull_secrets, key)


def _holds_tags(constant: Any) -> bool:
    """Tell whether Argo would see a tag in a constant."""
    text = PLACEHOLDER.sub("", constant if isinstance(constant, str) else json.dumps(constant))
    return protect(text) != text


def _tags(use: Use, text: str) -> str:
    """Turn KFP's placeholders into Argo's tags and keep everything else from being substituted."""
    pieces: list[str] = []
    at = 0
    for match in PLACEHOLDER.finditer(text):
        pieces += [_plain(use, text[at : match.start()]), _tag(use, match[0], parts(match[1]))]
        at = match.end()
    return "".join([*pieces, _plain(use, text[at:])])


def _plain(use: Use, text: str) -> str:
    if "{{" in text:
        raise UnsupportedFeature(
            use.name, "'{{' in the command of an image without Python, where Argo would substitute"
        )
    return for_kubelet(text)


def _tag(use: Use, placeholder: str, path: list[str]) -> str:
    known = {name: value.text for name, value in facts(for_kubelet(use.pipeline_root)).items()}
    known |= {"pipeline_task_name": f"{{{{inputs.parameters.{STEP_NAME}}}}}", "pipeline_task_uuid": "{{pod.name}}"}
    if len(path) == 1 and path[0] in known:
        return known[path[0]]
    if len(path) >= 3 and path[0] in {"inputs", "outputs"}:
        side, kind, name, rest = path[0], path[1], path[2], path[3:]
        if side == "inputs" and name in use.absent:
            return "null"
        if [side, kind] == ["inputs", "parameters"] and not rest and name in parameters(use.component):
            return input_for_kubelet(name)
        if [side, kind] == ["outputs", "parameters"] and rest == ["output_file"]:
            return f"{ROOT}/outputs/parameters/{name}"
        declared = artifacts(use.component) if side == "inputs" else outputs(use.component, "artifacts")
        if kind == "artifacts" and name in declared and not declared[name].is_artifact_list:
            if rest in (["path"], ["uri"]):
                return f"{ROOT}/{side}/artifacts/{name}"
            metadata = f"jsonpath(inputs.parameters['{name}{ENVELOPE_SUFFIX}'], '$.metadata')"
            if rest == ["metadata"]:
                # An output has none before its program has run.
                return f"{{{{=replace(toJson({metadata}), '$', '$$')}}}}" if side == "inputs" else "{}"
            if side == "inputs" and len(rest) == 2 and rest[0] == "metadata":
                picked = f"{metadata}[{literal(rest[1])}]"
                return f"{{{{=replace(type({picked}) == 'string' ? {picked} : toJson({picked}), '$', '$$')}}}}"
    raise UnsupportedFeature(use.name, f"the placeholder {placeholder!r} in the command of an image without Python")
