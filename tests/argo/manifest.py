"""What of a Workflow the interpreter knows, and what Argo checks of one before it runs. All else is refused by name."""

import re
from typing import Any

from tests.argo.expressions import UnknownFeature
from tests.argo.tags import RESERVED, ArgoError, tags

Json = dict[str, Any]

FIELDS = {
    "spec": "entrypoint arguments templates onExit hooks parallelism volumeClaimTemplates",
    "arguments": "parameters artifacts",
    "template": "name inputs outputs container containerSet dag suspend resource initContainers volumes parallelism "
    "retryStrategy activeDeadlineSeconds podSpecPatch",
    "inputs": "parameters artifacts",
    "outputs": "parameters artifacts",
    "parameter": "name value default valueFrom globalName",
    "valueFrom": "path parameter expression default jsonPath",
    "artifact": "name path from s3 archive optional",
    "s3": "key",
    "archive": "none",
    "dag": "tasks target failFast",
    "task": "name template arguments depends dependencies when withItems withParam hooks onExit",
    "hook": "template arguments",
    "container": "name command args env envFrom volumeMounts",
    "containerSet": "containers volumeMounts",
    "member": "name command args env envFrom volumeMounts dependencies",
    "variable": "name value valueFrom",
    "mount": "name mountPath subPath",
    "volume": "name emptyDir persistentVolumeClaim secret configMap ephemeral",
    "claim": "metadata spec",
    "retryStrategy": "limit retryPolicy expression backoff",
    "backoff": "duration factor maxDuration",
    "resource": "action manifest",
    "suspend": "duration",
}
NO_EFFECT = {
    "spec": "serviceAccountName artifactRepositoryRef activeDeadlineSeconds ttlStrategy podGC podMetadata "
    "securityContext imagePullSecrets automountServiceAccountToken priority",
    "template": "metadata nodeSelector tolerations affinity securityContext",
    "parameter": "description",
    "container": "image imagePullPolicy resources securityContext",
    "member": "image imagePullPolicy resources securityContext",
    "resource": "setOwnerReference",
}
"""Known, and without an effect on one machine."""
_GLOBALS = ("name", "uid", "namespace", "mainEntrypoint", "serviceAccountName", "creationTimestamp", "status")


def admit(manifest: Json) -> None:
    """Check a Workflow as Argo does when it is submitted.

    Raises:
        UnknownFeature: It has a field that the interpreter does not know.
        ArgoError: It refers to what is not there.
    """
    spec = manifest["spec"]
    _fields("spec", spec)
    _arguments(spec.get("arguments", {}))
    for claim in spec.get("volumeClaimTemplates", []):
        _fields("claim", claim)
    templates = {template["name"]: template for template in spec["templates"]}
    for template in spec["templates"]:
        _template(template, templates)
        _tags(template, spec)
    _hooks(spec)
    used = [spec["entrypoint"], spec.get("onExit"), spec.get("hooks", {}).get("exit", {}).get("template")]
    for name in used:
        if name and name not in templates:
            raise ArgoError(f"template name '{name}' undefined")


def leaves(dag: Json) -> list[str]:
    """Return the tasks of a DAG on which no other depends."""
    needed = {name for task in dag["tasks"] for name in dependencies(task)}
    return sorted(task["name"] for task in dag["tasks"] if task["name"] not in needed)


_REFERENCE = re.compile(r"([a-zA-Z0-9][-a-zA-Z0-9]*?\.[A-Z][a-zA-Z]+)|([a-zA-Z0-9][-a-zA-Z0-9]*)")
RESULTS = ("Succeeded", "Failed", "Errored", "Skipped", "Omitted", "Daemoned", "AnySucceeded", "AllFailed")


def logic(task: Json) -> str:
    """Return a task's `depends` with an outcome for every task in it; empty where it waits for none."""

    def whole(name: str) -> str:
        return f"({name}.Succeeded || {name}.Skipped || {name}.Daemoned)"

    if task.get("depends"):
        return _REFERENCE.sub(lambda match: match[0] if match[1] else whole(match[2]), task["depends"])
    return " && ".join(whole(name) for name in task.get("dependencies", []))


def dependencies(task: Json) -> list[str]:
    """Return the tasks for which one waits.

    Raises:
        ArgoError: It waits for an outcome that there is not.
    """
    names: list[str] = []
    for match in _REFERENCE.finditer(logic(task)):
        name, _, result = (match[1] or match[2]).partition(".")
        if result and result not in RESULTS:
            raise ArgoError(f"task result '{result}' for task '{name}' is invalid")
        if name not in names:
            names.append(name)
    return names


def ancestors(dag: Json, name: str) -> list[str]:
    """Return the tasks for which a task waits, and those for which they wait."""
    tasks = {task["name"]: task for task in dag["tasks"]}
    names: list[str] = []
    waiting = list(dependencies(tasks[name]))
    while waiting:
        task = waiting.pop()
        if task not in names:
            names.append(task)
            waiting += dependencies(tasks[task])
    return names


def _template(template: Json, templates: dict[str, Json]) -> None:
    _fields("template", template)
    kinds = [kind for kind in ("container", "containerSet", "dag", "resource", "suspend") if kind in template]
    if len(kinds) != 1:
        raise UnknownFeature(f"template {template['name']!r} is {kinds or 'of no kind'}")
    for side in ("inputs", "outputs"):
        _fields(side, template.get(side, {}))
        _parameters(template.get(side, {}).get("parameters", []))
        _artifacts(template.get(side, {}).get("artifacts", []))
    if "retryStrategy" in template:
        _fields("retryStrategy", template["retryStrategy"])
        _fields("backoff", template["retryStrategy"].get("backoff", {}))
    for volume in template.get("volumes", []):
        _fields("volume", volume)
    members = template.get("containerSet", {}).get("containers", [])
    _fields("containerSet", template.get("containerSet", {}))
    if kinds == ["containerSet"] and "main" not in {member["name"] for member in members}:
        raise ArgoError(f'templates.{template["name"]}.containerSet.containers must have a container named "main"')
    for container in (
        *template.get("initContainers", []),
        *([template["container"]] if kinds == ["container"] else []),
        *members,
    ):
        _fields("member" if container in members else "container", container)
        for variable in container.get("env", []):
            _fields("variable", variable)
        for mount in container.get("volumeMounts", []):
            _fields("mount", mount)
    for kind in ("resource", "suspend"):
        _fields(kind, template.get(kind, {}))
    if kinds == ["dag"]:
        _dag(template, templates)


def _dag(template: Json, templates: dict[str, Json]) -> None:
    dag = template["dag"]
    _fields("dag", dag)
    names = [task["name"] for task in dag["tasks"]]
    if len(set(names)) != len(names):
        raise ArgoError(f"templates.{template['name']}: a task's name is not unique")
    for task in dag["tasks"]:
        _fields("task", task)
        _arguments(task.get("arguments", {}))
        _hooks(task)
        if task["template"] not in templates:
            raise ArgoError(
                f"templates.{template['name']}.tasks.{task['name']} template name '{task['template']}' undefined"
            )
        for other in dependencies(task):
            if other not in names:
                raise ArgoError(f"templates.{template['name']}.tasks.{task['name']} dependency '{other}' not defined")
        if task["name"] in ancestors(dag, task["name"]):
            raise ArgoError(f"templates.{template['name']}.tasks dependency cycle detected: {task['name']}")
        inputs = templates[task["template"]].get("inputs", {}).get("parameters", [])
        arguments = {item["name"] for item in task.get("arguments", {}).get("parameters", [])}
        for item in inputs:
            if item["name"] not in arguments and not {"default", "value"} & item.keys():
                where = f"templates.{template['name']}.tasks.{task['name']}"
                raise ArgoError(f"{where} inputs.parameters.{item['name']} was not supplied")
    for target in filter(None, dag.get("target", "").split(" ")):
        if target not in names:
            raise ArgoError(f"templates.{template['name']}.targets target '{target}' is not defined")


def _hooks(holder: Json) -> None:
    unknown = holder.get("hooks", {}).keys() - {"exit"}
    if unknown:
        raise UnknownFeature(f"the hook {sorted(unknown)[0]!r}")
    for hook in holder.get("hooks", {}).values():
        _fields("hook", hook)
        _arguments(hook.get("arguments", {}))


def _arguments(arguments: Json) -> None:
    _fields("arguments", arguments)
    _parameters(arguments.get("parameters", []))
    _artifacts(arguments.get("artifacts", []))


def _parameters(parameters: list[Json]) -> None:
    for parameter in parameters:
        _fields("parameter", parameter)
        _fields("valueFrom", parameter.get("valueFrom", {}))
        for key in ("value", "default"):
            if not isinstance(parameter.get(key, ""), str):
                raise UnknownFeature(f"the {key} of parameter {parameter['name']!r} is no string")


def _artifacts(artifacts: list[Json]) -> None:
    for artifact in artifacts:
        _fields("artifact", artifact)
        _fields("s3", artifact.get("s3", {}))
        if "s3" in artifact and artifact.get("archive") != {"none": {}}:
            raise UnknownFeature(f"an archive of artifact {artifact['name']!r}")


def _fields(kind: str, value: Json) -> None:
    fields = {*FIELDS[kind].split(), *NO_EFFECT.get(kind, "").split()}
    unknown = value.keys() - fields
    if unknown:
        raise UnknownFeature(f"the field {sorted(unknown)[0]!r} of {kind} {value.get('name', '')!r}".rstrip(" '\""))


def _tags(template: Json, spec: Json) -> None:
    """Check the tags that must be resolved: those of other prefixes and expressions are not looked at."""
    inputs, outputs = template.get("inputs", {}), template.get("outputs", {})
    names = {f"inputs.parameters.{item['name']}" for item in inputs.get("parameters", [])}
    names |= {f"inputs.artifacts.{item['name']}{end}" for item in inputs.get("artifacts", []) for end in ("", ".path")}
    names |= {f"outputs.{kind}.{item['name']}.path" for kind in outputs for item in outputs[kind]}
    names |= {f"workflow.{name}" for name in _GLOBALS} | {"workflow.creationTimestamp.RFC3339", "inputs.parameters"}
    names |= {f"workflow.parameters.{item['name']}" for item in spec.get("arguments", {}).get("parameters", [])}
    if {"container", "containerSet", "resource"} & template.keys():
        names.add("pod.name")
    tasks = {task["name"]: task for task in template.get("dag", {}).get("tasks", [])}
    loops = any("withItems" in task or "withParam" in task for task in tasks.values())
    for tag in tags(template):
        name = tag.strip()
        if tag.startswith("=") or not name.startswith(RESERVED) or name in names:
            continue
        if name.startswith("tasks.") and name.split(".")[1] in tasks:
            continue
        if name.startswith("workflow.outputs.") or (name.startswith("item.") and loops):
            continue
        raise ArgoError(f"templates.{template['name']}: failed to resolve {{{{{tag}}}}}")
