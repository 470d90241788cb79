"""Templates of tasks whose image may hold anything: placeholders become Argo's tags, outputs are files."""

from __future__ import annotations

import re

from shopfloor.engines.argo import pods
from shopfloor.engines.argo.containers import RESTRICTED, Leaf, Use, digest, input_names, pod_template, variable
from shopfloor.engines.argo.launched import static
from shopfloor.engines.argo.launcher import PLACEHOLDER, flatten, parts, protect
from shopfloor.engines.argo.values import ROOT, WORKSPACE, given_inputs
from shopfloor.pipeline.ir import (
    ENVELOPE_SUFFIX,
    STEP_NAME,
    Json,
    UnsupportedFeature,
    artifacts,
    outputs,
    parameters,
)


def native(use: Use, container: Json, asked: pods.Pod) -> Leaf:
    """Return the template of a task in whose container no more than its own program runs.

    Args:
        use: The task.
        container: The executor's container.
        asked: What the task asks of its pod.

    Raises:
        UnsupportedFeature: Its command holds what only the launcher could fill in, or what Argo would substitute.
    """
    provided = {name for name in (*parameters(use.component), *artifacts(use.component)) if name not in use.absent}
    for name, given in given_inputs(use.task, "parameters").items():
        value = given.get("runtimeValue", {}).get("constant")
        if isinstance(value, str) and protect(PLACEHOLDER.sub("", value)) != PLACEHOLDER.sub("", value):
            raise UnsupportedFeature(use.name, f"'{{{{' or '$$' in the input {name!r} of an image without Python")
    env_names = {item["name"] for item in (*container.get("env", []), *asked.env)}
    words = {
        part: [
            _tags(use, text, env_names) for element in container.get(part, []) for text in flatten(element, provided)
        ]
        for part in ("command", "args")
    }
    main: Json = {"image": container["image"], **{part: texts for part, texts in words.items() if texts}}
    env = [variable(item["name"], _tags(use, item.get("value", ""), set())) for item in container.get("env", [])]
    if env:
        main["env"] = env
    names = [*input_names(use)]
    task = static(use, container)["outputs"]
    key = digest({"image": container["image"], "words": words, "outputs": task})
    template = pod_template(use, main, asked, task, key, None, names)
    places = sorted({f"{ROOT}/outputs/parameters", f"{ROOT}/outputs/artifacts"}) if any(task.values()) else []
    if places:
        template["initContainers"] = [
            {
                "name": "directories",
                "image": use.settings.cluster.image,
                # The main container may run as another user.
                "command": ["sh", "-c", 'mkdir -p "$@" && chmod -R a+rwX "$0"', ROOT, *places],
                "securityContext": RESTRICTED,
                "volumeMounts": [{"name": "step", "mountPath": ROOT}],
            }
        ]
    return Leaf(template, asked.references, asked.pull_secrets, key)


def _tags(use: Use, text: str, env_names: set[str]) -> str:
    """Turn KFP's placeholders into Argo's tags and keep everything else from being substituted."""
    made: list[str] = []
    at = 0
    for match in PLACEHOLDER.finditer(text):
        made += [_plain(use, text[at : match.start()], env_names), _tag(use, match[0], parts(match[1]))]
        at = match.end()
    return "".join([*made, _plain(use, text[at:], env_names)])


def _plain(use: Use, text: str, env_names: set[str]) -> str:
    if "{{" in text:
        raise UnsupportedFeature(
            use.name, "'{{' in the command of an image without Python, where Argo would substitute"
        )
    # The kubelet halves `$$`, and expands `$(NAME)` where it knows the name.
    text = text.replace("$$", "$$$$")
    return re.sub(r"\$\((\w+)\)", lambda match: f"${match[0]}" if match[1] in env_names else match[0], text)


def _tag(use: Use, placeholder: str, path: list[str]) -> str:
    facts = {
        "pipeline_job_name": "{{workflow.name}}",
        "pipeline_job_resource_name": "{{workflow.name}}",
        "pipeline_job_uuid": "{{workflow.uid}}",
        "pipeline_task_name": f"{{{{inputs.parameters.{STEP_NAME}}}}}",
        "pipeline_task_uuid": "{{pod.name}}",
        "pipeline_root": use.pipeline_root,
        "workspace_path": WORKSPACE,
    }
    if len(path) == 1 and path[0] in facts:
        return facts[path[0]]
    if len(path) >= 3 and path[0] in {"inputs", "outputs"}:
        side, kind, name, rest = path[0], path[1], path[2], path[3:]
        if side == "inputs" and name in use.absent:
            return "null"
        if [side, kind] == ["inputs", "parameters"] and not rest and name in parameters(use.component):
            return f"{{{{inputs.parameters.{name}}}}}"
        if [side, kind] == ["outputs", "parameters"] and rest == ["output_file"]:
            return f"{ROOT}/outputs/parameters/{name}"
        declared = artifacts(use.component) if side == "inputs" else outputs(use.component, "artifacts")
        if kind == "artifacts" and name in declared and not declared[name].get("isArtifactList"):
            if rest in (["path"], ["uri"]):
                return f"{ROOT}/{side}/artifacts/{name}"
            if side == "inputs" and len(rest) == 2 and rest[0] == "metadata" and rest[1].isidentifier():
                return f"{{{{=jsonpath(inputs.parameters['{name}{ENVELOPE_SUFFIX}'], '$.metadata.{rest[1]}')}}}}"
    raise UnsupportedFeature(use.name, f"the placeholder {placeholder!r} in the command of an image without Python")
