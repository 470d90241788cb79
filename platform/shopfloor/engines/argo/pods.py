"""What a task asks of its pod: resources, accelerators and the kfp-kubernetes settings, as fields of an Argo template.

A value that comes from the pipeline becomes an input of the template; `Pod.references` says which, for the caller.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shopfloor.engines.argo.launcher import PLACEHOLDER, parts
from shopfloor.pipeline.ir import Json, UnsupportedFeature, broken

_NAMES = {
    "secretAsVolume": ("secretNameParameter", "secretName"),
    "secretAsEnv": ("secretNameParameter", "secretName"),
    "configMapAsVolume": ("configMapNameParameter", "configMapName"),
    "configMapAsEnv": ("configMapNameParameter", "configMapName"),
    "imagePullSecret": ("secretNameParameter", "secretName"),
}


@dataclass
class Pod:
    """Fields for a template and its main container."""

    env: list[Json] = field(default_factory=list)
    volumes: list[Json] = field(default_factory=list)
    mounts: list[Json] = field(default_factory=list)
    container: Json = field(default_factory=dict)
    template: Json = field(default_factory=dict)
    pull_secrets: list[str] = field(default_factory=list)
    references: dict[str, Json] = field(default_factory=dict)
    """Input of the template to what the task's DAG gives for it (KFP's `InputParameterSpec`)."""


def pod(task: str, container: Json, settings: Json, inputs: Mapping[str, Json]) -> Pod:
    """Return what a task asks of its pod.

    Args:
        task: Its name.
        container: The executor's container.
        settings: The executor's kfp-kubernetes settings.
        inputs: The inputs that the task is given, for placeholders.

    Raises:
        UnsupportedFeature: A setting has no counterpart here.
    """
    if "{{" in json.dumps(settings):
        raise UnsupportedFeature(task, "'{{' in its platform settings, where Argo would substitute")
    made = Pod()
    _resources(made, task, container.get("resources", {}), inputs)
    for name in sorted(settings):
        translate = _SETTINGS.get(name)
        if translate is None:
            raise UnsupportedFeature(task, f"the platform setting {name!r}")
        try:
            translate(made, task, settings[name])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise broken(f"the platform setting {name!r} of task {task!r} lacks or misplaces {error}") from error
    return made


def _resources(made: Pod, task: str, resources: Json, inputs: Mapping[str, Json]) -> None:
    wanted: dict[str, dict[str, str]] = {"limits": {}, "requests": {}}
    for key, kind in (("Limit", "limits"), ("Request", "requests")):
        for what in ("Cpu", "Memory"):
            given, old = resources.get(f"resource{what}{key}"), resources.get(f"{what.lower()}{key}")
            if given or old:
                # The old fields are numbers: cores and gigabytes.
                wanted[kind][what.lower()] = given or f"{old:g}{'G' if what == 'Memory' else ''}"
    accelerator = resources.get("accelerator", {})
    count = str(accelerator.get("resourceCount") or accelerator.get("count") or "")
    kind = accelerator.get("resourceType") or accelerator.get("type") or "nvidia.com/gpu"
    if count and count != "0":
        if "/" not in kind and not PLACEHOLDER.search(kind):
            raise UnsupportedFeature(task, f"the accelerator {kind!r}, which is no resource of Kubernetes")
        wanted["limits"][kind] = count
    wanted = {kind: amounts for kind, amounts in wanted.items() if amounts}
    text = json.dumps(wanted, sort_keys=True)
    if not PLACEHOLDER.search(text):
        if wanted:
            made.container["resources"] = wanted
        return

    def fill(match: Any) -> str:
        path = parts(match[1])
        if path[:2] != ["inputs", "parameters"] or path[2] not in inputs:
            raise UnsupportedFeature(task, f"the resource placeholder {match[0]!r}")
        made.references[path[2]] = inputs[path[2]]
        return f"{{{{inputs.parameters.{path[2]}}}}}"

    # A tag is no quantity for the API server: the patch is applied when all is known.
    patch = {"containers": [{"name": "main", "resources": json.loads(PLACEHOLDER.sub(fill, text))}]}
    made.template["podSpecPatch"] = json.dumps(patch, sort_keys=True)


def _value(made: Pod, given: Any) -> str:
    """Return a name that is known now, or the tag of an input that will hold it."""
    if not isinstance(given, dict):
        return str(given)
    if "constant" in given.get("runtimeValue", {}):
        return str(given["runtimeValue"]["constant"])
    name = f"kubernetes-{len(made.references)}"
    made.references[name] = given
    return f"{{{{inputs.parameters.{name}}}}}"


def _name(made: Pod, setting: str, item: Json) -> str:
    by_parameter, plain = _NAMES[setting]
    return _value(made, item[by_parameter] if item.get(by_parameter) else item[plain])


def _constant(task: str, item: Json, key: str) -> Any:
    """Return the JSON that a setting gives as a parameter; it must be a constant."""
    given = item[key]
    if "constant" not in given.get("runtimeValue", {}):
        raise UnsupportedFeature(task, f"the platform setting {key!r} from a parameter")
    value = given["runtimeValue"]["constant"]
    return json.loads(value) if isinstance(value, str) else value


def _mount(made: Pod, volume: Json, path: str, **more: Any) -> None:
    name = volume.pop("name", f"volume-{len(made.volumes)}")
    made.volumes.append({"name": name, **volume})
    made.mounts.append({"name": name, "mountPath": path, **{key: value for key, value in more.items() if value}})


def _secret_volume(made: Pod, task: str, items: list[Json]) -> None:
    for item in items:
        secret = {"secretName": _name(made, "secretAsVolume", item), "optional": bool(item.get("optional"))}
        _mount(made, {"secret": secret}, item["mountPath"])


def _config_map_volume(made: Pod, task: str, items: list[Json]) -> None:
    for item in items:
        config_map = {"name": _name(made, "configMapAsVolume", item), "optional": bool(item.get("optional"))}
        _mount(made, {"configMap": config_map}, item["mountPath"])


def _secret_env(made: Pod, task: str, items: list[Json]) -> None:
    _key_env(made, items, "secretAsEnv", "secretKeyRef", "secretKey")


def _config_map_env(made: Pod, task: str, items: list[Json]) -> None:
    _key_env(made, items, "configMapAsEnv", "configMapKeyRef", "configMapKey")


def _key_env(made: Pod, items: list[Json], setting: str, reference: str, key: str) -> None:
    for item in items:
        name = _name(made, setting, item)
        for pair in item["keyToEnv"]:
            source = {"name": name, "key": pair[key], "optional": bool(item.get("optional"))}
            made.env.append({"name": pair["envVar"], "valueFrom": {reference: source}})


def _claim(made: Pod, task: str, items: list[Json]) -> None:
    for item in items:
        if item.get("pvcNameParameter"):
            given: Any = item["pvcNameParameter"]
        elif "constant" in item:
            given = item["constant"]
        else:
            given = {key: item[key] for key in ("taskOutputParameter", "componentInputParameter") if key in item}
        claim = {"persistentVolumeClaim": {"claimName": _value(made, given)}}
        _mount(made, claim, item["mountPath"], subPath=item.get("subPath"))


def _ephemeral_volume(made: Pod, task: str, items: list[Json]) -> None:
    for item in items:
        spec: Json = {"accessModes": item["accessModes"], "resources": {"requests": {"storage": item["size"]}}}
        if not item.get("defaultStorageClass") and item.get("storageClassName"):
            spec["storageClassName"] = item["storageClassName"]
        claim = {"spec": spec} | ({"metadata": item["metadata"]} if item.get("metadata") else {})
        _mount(made, {"name": item["volumeName"], "ephemeral": {"volumeClaimTemplate": claim}}, item["mountPath"])


def _empty_dir(made: Pod, task: str, items: list[Json]) -> None:
    for item in items:
        empty = {key: item[key] for key in ("medium", "sizeLimit") if item.get(key)}
        _mount(made, {"name": item["volumeName"], "emptyDir": empty}, item["mountPath"])


def _shared_memory(made: Pod, task: str, item: Json) -> None:
    empty = {"medium": "Memory"} | ({"sizeLimit": item["size"]} if item.get("size") else {})
    _mount(made, {"name": item.get("volumeName") or "shared-memory", "emptyDir": empty}, "/dev/shm")  # noqa: S108


def _field_env(made: Pod, task: str, items: list[Json]) -> None:
    for item in items:
        made.env.append({"name": item["name"], "valueFrom": {"fieldRef": {"fieldPath": item["fieldPath"]}}})


def _node_selector(made: Pod, task: str, item: Json) -> None:
    labels = _constant(task, item, "nodeSelectorJson") if "nodeSelectorJson" in item else item.get("labels", {})
    made.template["nodeSelector"] = {str(key): str(value) for key, value in labels.items()}


def _tolerations(made: Pod, task: str, items: list[Json]) -> None:
    found: list[Json] = []
    for item in items:
        given = _constant(task, item, "tolerationJson") if "tolerationJson" in item else item
        for one in given if isinstance(given, list) else [given]:
            seconds = {"tolerationSeconds": int(one["tolerationSeconds"])} if "tolerationSeconds" in one else {}
            found.append({key: one[key] for key in ("key", "operator", "value", "effect") if one.get(key)} | seconds)
    made.template["tolerations"] = found


def _node_affinity(made: Pod, task: str, items: list[Json]) -> None:
    affinity = made.template.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    required = affinity.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {"nodeSelectorTerms": []})
    for item in items:
        if "nodeAffinityJson" in item:
            affinity.update(_constant(task, item, "nodeAffinityJson"))
            continue
        term = {key: item[key] for key in ("matchExpressions", "matchFields") if item.get(key)}
        if "weight" in item:
            preferred = affinity.setdefault("preferredDuringSchedulingIgnoredDuringExecution", [])
            preferred.append({"weight": int(item["weight"]), "preference": term})
        else:
            required["nodeSelectorTerms"].append(term)
    if required == {"nodeSelectorTerms": []}:
        affinity.pop("requiredDuringSchedulingIgnoredDuringExecution", None)


def _pod_affinity(made: Pod, task: str, items: list[Json]) -> None:
    affinity = made.template.setdefault("affinity", {})
    for item in items:
        kind = affinity.setdefault("podAntiAffinity" if item.get("anti") else "podAffinity", {})
        term: Json = {"topologyKey": item["topologyKey"]}
        for target, expressions, labels in (
            ("labelSelector", "matchPodExpressions", "matchPodLabels"),
            ("namespaceSelector", "matchNamespaceExpressions", "matchNamespaceLabels"),
        ):
            selector = {"matchExpressions": item.get(expressions), "matchLabels": item.get(labels)}
            if any(selector.values()):
                term[target] = {key: value for key, value in selector.items() if value}
        if item.get("namespaces"):
            term["namespaces"] = item["namespaces"]
        if "weight" in item:
            preferred = kind.setdefault("preferredDuringSchedulingIgnoredDuringExecution", [])
            preferred.append({"weight": int(item["weight"]), "podAffinityTerm": term})
        else:
            kind.setdefault("requiredDuringSchedulingIgnoredDuringExecution", []).append(term)


def _metadata(made: Pod, task: str, item: Json) -> None:
    made.template["metadata"] = {key: item[key] for key in ("labels", "annotations") if item.get(key)}


def _pull_secret(made: Pod, task: str, items: list[Json]) -> None:
    for item in items:
        reference = item.get("secretNameParameter", {})
        if reference and "constant" not in reference.get("runtimeValue", {}):
            raise UnsupportedFeature(task, "the platform setting 'imagePullSecret' from a parameter")
        made.pull_secrets.append(_name(made, "imagePullSecret", item))


def _pull_policy(made: Pod, task: str, value: str) -> None:
    made.container["imagePullPolicy"] = value


def _deadline(made: Pod, task: str, value: Any) -> None:
    made.template["activeDeadlineSeconds"] = int(value)


def _security(made: Pod, task: str, item: Json) -> None:
    allowed = {"runAsUser": int, "runAsGroup": int, "runAsNonRoot": bool}
    unknown = item.keys() - allowed.keys()
    if unknown:
        raise UnsupportedFeature(task, f"the platform setting 'securityContext.{sorted(unknown)[0]}'")
    made.container["securityContext"] = {key: allowed[key](value) for key, value in item.items()}


_SETTINGS: dict[str, Callable[[Pod, str, Any], None]] = {
    "activeDeadlineSeconds": _deadline,
    "configMapAsEnv": _config_map_env,
    "configMapAsVolume": _config_map_volume,
    "emptyDirMounts": _empty_dir,
    "enabledSharedMemory": _shared_memory,
    "fieldPathAsEnv": _field_env,
    "genericEphemeralVolume": _ephemeral_volume,
    "imagePullPolicy": _pull_policy,
    "imagePullSecret": _pull_secret,
    "nodeAffinity": _node_affinity,
    "nodeSelector": _node_selector,
    "podAffinity": _pod_affinity,
    "podMetadata": _metadata,
    "pvcMount": _claim,
    "secretAsEnv": _secret_env,
    "secretAsVolume": _secret_volume,
    "securityContext": _security,
    "tolerations": _tolerations,
}
