"""What a task asks of its pod: resources, accelerators and the kfp-kubernetes settings, as fields of an Argo template.

A value that comes from the pipeline becomes an input of the template; `Pod.references` says which, for the caller. One
that has no value is left out where the setting is optional.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shopfloor.engines.argo.launcher import PLACEHOLDER, parts
from shopfloor.engines.argo.source import UnsupportedFeature
from shopfloor.errors import UsageError
from shopfloor.pipeline import ir
from shopfloor.pipeline.conditions import literal
from shopfloor.pipeline.ir import Json, Origin, broken

_QUANTITY = re.compile(r"\+?(\d+\.?\d*|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?\d+)?")

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
    references: dict[str, Origin] = field(default_factory=dict)
    """Input of the template to what the task's DAG gives for it."""
    patch: Json = field(default_factory=dict)
    """Fields of the pod's specification that are known only at run time; tags stand in the texts."""
    documents: list[str] = field(default_factory=list)
    """Tags that give JSON; `_document` puts them into the patch."""
    absent: frozenset[str] = frozenset()
    """Inputs of the task's DAG that have no value."""

    def image(self, text: str, task: str, inputs: Mapping[str, Origin]) -> str:
        """Return the image of the task's container, with the tags of inputs that name it."""
        return PLACEHOLDER.sub(lambda match: _tag(self, task, inputs, match), text)


def pod_of(task: str, resources: Json, settings: Json, inputs: Mapping[str, Origin], absent: frozenset[str]) -> Pod:
    """Return what a task asks of its pod.

    Args:
        task: Its name.
        resources: What the executor's container asks for.
        settings: The executor's kfp-kubernetes settings.
        inputs: The inputs that the task is given, for placeholders.
        absent: Inputs of the task's DAG that have no value.

    Raises:
        UnsupportedFeature: A setting has no counterpart here.
        UsageError: A setting has no value and is not optional, or a resource is no amount.
    """
    if "{{" in json.dumps(settings):
        raise UnsupportedFeature(task, "'{{' in its platform settings, where Argo would substitute")
    pod = Pod(absent=absent)
    _resources(pod, task, resources, inputs)
    for name in sorted(settings):
        translate = _SETTINGS.get(name)
        if translate is None:
            raise UnsupportedFeature(task, f"the platform setting {name!r}")
        try:
            translate(pod, task, settings[name])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise broken(f"the platform setting {name!r} of task {task!r} lacks or misplaces {error}") from error
    if pod.patch:
        text = json.dumps(pod.patch, sort_keys=True)
        for number, tag in enumerate(pod.documents):
            text = text.replace(json.dumps(_document(number)), tag)
        pod.template["podSpecPatch"] = text
    return pod


def _resources(pod: Pod, task: str, resources: Json, inputs: Mapping[str, Origin]) -> None:
    requirements: dict[str, dict[str, str]] = {"limits": {}, "requests": {}}
    for key, kind in (("Limit", "limits"), ("Request", "requests")):
        for what in ("Cpu", "Memory"):
            quantity, number = resources.get(f"resource{what}{key}"), resources.get(f"{what.lower()}{key}")
            if quantity or number:
                # The old fields are numbers: cores and gigabytes.
                requirements[kind][what.lower()] = quantity or f"{number:g}{'G' if what == 'Memory' else ''}"
    accelerator = resources.get("accelerator", {})
    count = str(accelerator.get("resourceCount") or accelerator.get("count") or "")
    kind = accelerator.get("resourceType") or accelerator.get("type") or "nvidia.com/gpu"
    if count and count != "0":
        if "/" not in kind and not PLACEHOLDER.search(kind):
            raise UnsupportedFeature(task, f"the accelerator {kind!r}, which is no resource of Kubernetes")
        requirements["limits"][kind] = count
    constants: dict[str, dict[str, str]] = {}
    patched: dict[str, dict[str, str]] = {}
    for side, amounts in requirements.items():
        for what, amount in amounts.items():
            matches = [*PLACEHOLDER.finditer(what + amount)]
            if any(_placeholder_origin(pod, task, inputs, match) is None for match in matches):
                continue
            if matches:
                name, filled = (pod.image(text, task, inputs) for text in (what, amount))
                patched.setdefault(side, {})[name] = filled
            elif _QUANTITY.fullmatch(amount) is None:
                raise UsageError(
                    f"Task {task!r} asks for {amount!r} of {what}, which is no amount.",
                    "Write it as Kubernetes does: 500m, 2, 1Gi.",
                )
            else:
                constants.setdefault(side, {})[what] = amount
    if constants:
        pod.container["resources"] = constants
    if patched:
        # A tag is no quantity for the API server: the patch is applied when all is known.
        pod.patch["containers"] = [{"name": "main", "resources": patched}]


def _placeholder_origin(pod: Pod, task: str, inputs: Mapping[str, Origin], match: re.Match[str]) -> Origin | None:
    """Return what a placeholder's input is given, `None` where it has no value."""
    path = parts(match[1])
    if path[:2] != ["inputs", "parameters"] or len(path) != 3 or path[2] not in inputs:
        raise UnsupportedFeature(task, f"the placeholder {match[0]!r} in what it asks of its pod")
    return inputs[path[2]] if _has_value(pod, inputs[path[2]]) else None


def _tag(pod: Pod, task: str, inputs: Mapping[str, Origin], match: re.Match[str]) -> str:
    """Return the tag of the input that a placeholder names."""
    origin = _placeholder_origin(pod, task, inputs, match)
    name = parts(match[1])[2]
    if origin is None:
        raise _valueless(task, "image", inputs[name])
    pod.references[name] = origin
    return f"{{{{inputs.parameters.{name}}}}}"


def _has_value(pod: Pod, origin: Origin) -> bool:
    return not (origin.kind == "input" and origin.name in pod.absent)


def _valueless(task: str, setting: str, origin: Origin) -> UsageError:
    return UsageError(
        f"Task {task!r} takes its {setting} from the parameter {origin.name!r}, which has no value.",
        "Give the pipeline's parameter a value with -p.",
    )


def _value(pod: Pod, origin: Origin) -> str:
    """Return a name that is known now, or the tag of an input that will hold it."""
    return str(origin.value) if origin.kind == "constant" else f"{{{{inputs.parameters.{_reference(pod, origin)}}}}}"


def _reference(pod: Pod, origin: Origin) -> str:
    """Return the input that holds a value."""
    name = f"kubernetes-{len(pod.references)}"
    pod.references[name] = origin
    return name


def _origin(source: Any) -> Origin:
    """Return where the value of a setting comes from: a text that is known, or KFP's `InputParameterSpec` as JSON."""
    if not isinstance(source, dict):
        return Origin("constant", value=source)
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    return ir.origin(json_format.ParseDict(source, pipeline_spec_pb2.TaskInputsSpec.InputParameterSpec()))


def _with_names(pod: Pod, task: str, setting: str, items: list[Json]) -> list[tuple[Json, str]]:
    """Return the items of a setting that name something, with its name.

    Raises:
        UsageError: One has no value and is not optional.
    """
    by_parameter, plain = _NAMES[setting]
    pairs: list[tuple[Json, str]] = []
    for item in items:
        origin = _origin(item[by_parameter] if item.get(by_parameter) else item[plain])
        if not _has_value(pod, origin):
            if not item.get("optional") and setting != "imagePullSecret":
                raise _valueless(task, setting, origin)
            continue
        pairs.append((item, _value(pod, origin)))
    return pairs


def _document(number: int) -> str:
    """Return what stands in a patch for the JSON of a tag."""
    return f"\0{number}"


def _constant(origin: Origin) -> Any:
    """Return the JSON that a setting gives as a constant; `None` where it comes from a parameter."""
    return json.loads(origin.value) if isinstance(origin.value, str) else origin.value


def _from_parameter(pod: Pod, origin: Origin) -> str:
    """Return what stands in the patch for the JSON of a parameter."""
    pod.documents.append(f"{{{{inputs.parameters.{_reference(pod, origin)}}}}}")
    return _document(len(pod.documents) - 1)


def _mount(pod: Pod, volume: Json, path: str, **more: Any) -> None:
    name = volume.pop("name", f"volume-{len(pod.volumes)}")
    pod.volumes.append({"name": name, **volume})
    pod.mounts.append({"name": name, "mountPath": path, **{key: value for key, value in more.items() if value}})


def _secret_volume(pod: Pod, task: str, items: list[Json]) -> None:
    for item, name in _with_names(pod, task, "secretAsVolume", items):
        secret = {"secretName": name, "optional": bool(item.get("optional"))}
        _mount(pod, {"secret": secret}, item["mountPath"])


def _config_map_volume(pod: Pod, task: str, items: list[Json]) -> None:
    for item, name in _with_names(pod, task, "configMapAsVolume", items):
        config_map = {"name": name, "optional": bool(item.get("optional"))}
        _mount(pod, {"configMap": config_map}, item["mountPath"])


def _secret_env(pod: Pod, task: str, items: list[Json]) -> None:
    _key_env(pod, _with_names(pod, task, "secretAsEnv", items), "secretKeyRef", "secretKey")


def _config_map_env(pod: Pod, task: str, items: list[Json]) -> None:
    _key_env(pod, _with_names(pod, task, "configMapAsEnv", items), "configMapKeyRef", "configMapKey")


def _key_env(pod: Pod, items: list[tuple[Json, str]], reference: str, key: str) -> None:
    for item, name in items:
        for pair in item["keyToEnv"]:
            source = {"name": name, "key": pair[key], "optional": bool(item.get("optional"))}
            pod.env.append({"name": pair["envVar"], "valueFrom": {reference: source}})


def _claim(pod: Pod, task: str, items: list[Json]) -> None:
    for item in items:
        if item.get("pvcNameParameter"):
            source: Any = item["pvcNameParameter"]
        elif "constant" in item:
            source = item["constant"]
        else:
            source = {key: item[key] for key in ("taskOutputParameter", "componentInputParameter") if key in item}
        origin = _origin(source)
        if not _has_value(pod, origin):
            raise _valueless(task, "volume claim", origin)
        claim = {"persistentVolumeClaim": {"claimName": _value(pod, origin)}}
        _mount(pod, claim, item["mountPath"], subPath=item.get("subPath"))


def _ephemeral_volume(pod: Pod, task: str, items: list[Json]) -> None:
    for item in items:
        spec: Json = {"accessModes": item["accessModes"], "resources": {"requests": {"storage": item["size"]}}}
        if not item.get("defaultStorageClass") and item.get("storageClassName"):
            spec["storageClassName"] = item["storageClassName"]
        claim = {"spec": spec} | ({"metadata": item["metadata"]} if item.get("metadata") else {})
        _mount(pod, {"name": item["volumeName"], "ephemeral": {"volumeClaimTemplate": claim}}, item["mountPath"])


def _empty_dir(pod: Pod, task: str, items: list[Json]) -> None:
    for item in items:
        empty = {key: item[key] for key in ("medium", "sizeLimit") if item.get(key)}
        _mount(pod, {"name": item["volumeName"], "emptyDir": empty}, item["mountPath"])


def _shared_memory(pod: Pod, task: str, item: Json) -> None:
    empty = {"medium": "Memory"} | ({"sizeLimit": item["size"]} if item.get("size") else {})
    _mount(pod, {"name": item.get("volumeName") or "shared-memory", "emptyDir": empty}, "/dev/shm")  # noqa: S108


def _field_env(pod: Pod, task: str, items: list[Json]) -> None:
    for item in items:
        pod.env.append({"name": item["name"], "valueFrom": {"fieldRef": {"fieldPath": item["fieldPath"]}}})


def _node_selector(pod: Pod, task: str, item: Json) -> None:
    labels = item.get("labels", {})
    if "nodeSelectorJson" in item:
        origin = _origin(item["nodeSelectorJson"])
        labels = _constant(origin)
        if labels is None:
            if _has_value(pod, origin):
                pod.patch["nodeSelector"] = _from_parameter(pod, origin)
            return
    pod.template["nodeSelector"] = {str(key): str(value) for key, value in labels.items()}


def _tolerations(pod: Pod, task: str, items: list[Json]) -> None:
    tolerations: list[Json] = []
    later: list[str] = []
    for item in items:
        origin = _origin(item["tolerationJson"]) if "tolerationJson" in item else Origin("constant", value=item)
        constant = _constant(origin)
        if constant is None:
            if _has_value(pod, origin):
                name = f"fromJSON(inputs.parameters['{_reference(pod, origin)}'])"
                later.append(f"type({name}) == 'array' ? {name} : [{name}]")
            continue
        for one in constant if isinstance(constant, list) else [constant]:
            seconds = {"tolerationSeconds": int(one["tolerationSeconds"])} if "tolerationSeconds" in one else {}
            tolerations.append(
                {key: one[key] for key in ("key", "operator", "value", "effect") if one.get(key)} | seconds
            )
    if later:
        # One or a list of them; an empty one is none, as in KFP.
        lists = ", ".join([f"fromJSON({literal(json.dumps(tolerations))})", *later])
        pod.documents.append(f"{{{{=toJson(filter(concat({lists}), len(#) > 0))}}}}")
        pod.patch["tolerations"] = _document(len(pod.documents) - 1)
    else:
        pod.template["tolerations"] = tolerations


def _node_affinity(pod: Pod, task: str, items: list[Json]) -> None:
    affinity = pod.template.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    required = affinity.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {"nodeSelectorTerms": []})
    for item in items:
        if "nodeAffinityJson" in item:
            origin = _origin(item["nodeAffinityJson"])
            constant = _constant(origin)
            if constant is not None:
                affinity.update(constant)
            elif _has_value(pod, origin):
                pod.patch["affinity"] = {"nodeAffinity": _from_parameter(pod, origin)}
            continue
        term = {key: item[key] for key in ("matchExpressions", "matchFields") if item.get(key)}
        if "weight" in item:
            preferred = affinity.setdefault("preferredDuringSchedulingIgnoredDuringExecution", [])
            preferred.append({"weight": int(item["weight"]), "preference": term})
        else:
            required["nodeSelectorTerms"].append(term)
    if required == {"nodeSelectorTerms": []}:
        affinity.pop("requiredDuringSchedulingIgnoredDuringExecution", None)
    if not affinity:
        del pod.template["affinity"]["nodeAffinity"]
    if not pod.template["affinity"]:
        del pod.template["affinity"]


def _pod_affinity(pod: Pod, task: str, items: list[Json]) -> None:
    affinity = pod.template.setdefault("affinity", {})
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


def _metadata(pod: Pod, task: str, item: Json) -> None:
    pod.template["metadata"] = {key: item[key] for key in ("labels", "annotations") if item.get(key)}


def _pull_secret(pod: Pod, task: str, items: list[Json]) -> None:
    for _, name in _with_names(pod, task, "imagePullSecret", items):
        if "{{" in name:
            pod.patch.setdefault("imagePullSecrets", []).append({"name": name})
        else:
            pod.pull_secrets.append(name)


def _pull_policy(pod: Pod, task: str, value: str) -> None:
    pod.container["imagePullPolicy"] = value


def _deadline(pod: Pod, task: str, value: Any) -> None:
    pod.template["activeDeadlineSeconds"] = str(int(value))


def _security(pod: Pod, task: str, item: Json) -> None:
    allowed = {"runAsUser": int, "runAsGroup": int, "runAsNonRoot": bool}
    unknown = item.keys() - allowed.keys()
    if unknown:
        raise UnsupportedFeature(task, f"the platform setting 'securityContext.{sorted(unknown)[0]}'")
    pod.container["securityContext"] = {key: allowed[key](value) for key, value in item.items()}


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
