"""What a RayJob may say: KubeRay's rules for the fields that we write, Kubernetes' own client for the pods in it.

No package has KubeRay's types, so the fields stand here as its `RayJobSpec` has them; its schema, where it is at hand,
is a second judge. The pods are held against the models that the Kubernetes client is generated from.
"""

import re
from typing import Any

from kubernetes import client

Json = dict[str, Any]
QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
NAME_LENGTH = 47
"""Longest name of a RayJob, as KubeRay's webhook checks it: names of its cluster and its pods are made of it."""
JOB = {
    "entrypoint": str,
    "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "activeDeadlineSeconds": int,
    "backoffLimit": int,
    "suspend": bool,
    "submitterPodTemplate": "pod",
    "rayClusterSpec": {
        "rayVersion": str,
        "authOptions": {"mode": {"token"}},
        "headGroupSpec": "head",
        "workerGroupSpecs": "workers",
    },
}
GROUP = {"rayStartParams": "strings", "template": "pod"}
WORKERS = {**GROUP, "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int}
PLAIN = {"str": str, "int": int, "bool": bool}


def problems(job: Json) -> list[str]:
    """Return what is wrong with a RayJob, each with its place; nothing where all of it is right."""
    spec = job["spec"]
    if faults := _fields("spec", JOB, spec):
        return faults
    if (job["apiVersion"], job["kind"]) != ("ray.io/v1", "RayJob"):
        faults.append("it is no RayJob of ray.io/v1")
    name = job["metadata"]["name"]
    if not NAME.fullmatch(name) or len(name) > NAME_LENGTH:
        faults.append(f"metadata.name: {name}")
    faults += [
        f"label {key}: {value}" for key, value in job["metadata"]["labels"].items() if not LABEL.fullmatch(value)
    ]
    if not spec.get("entrypoint"):
        faults.append("spec.entrypoint is empty")
    for field in ("ttlSecondsAfterFinished", "suspend"):
        if spec.get(field) and not spec.get("shutdownAfterJobFinishes"):
            faults.append(f"spec.{field} needs shutdownAfterJobFinishes")
    if spec.get("backoffLimit", 0) < 0 or spec.get("activeDeadlineSeconds", 1) <= 0:
        faults.append("spec.backoffLimit or activeDeadlineSeconds is no such number")
    for group in spec["rayClusterSpec"].get("workerGroupSpecs", []):
        if not 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            faults.append(f"replicas of {group['groupName']} are not between its bounds")
    return faults


def _fields(path: str, schema: Json, value: Json) -> list[str]:
    faults = [f"{path}.{name} is no field" for name in value.keys() - schema.keys()]
    for name, content in value.items():
        kind, place = schema.get(name), f"{path}.{name}"
        if isinstance(kind, dict):
            faults += _fields(place, kind, content)
        elif kind == "head":
            faults += _fields(place, GROUP, content)
        elif kind == "workers":
            for number, one in enumerate(content):
                faults += _fields(f"{place}[{number}]", WORKERS, one)
        elif kind == "pod":
            faults += _kubernetes(place, "V1PodTemplateSpec", content)
        elif kind == "strings":
            faults += [f"{place}.{key} is no string" for key, one in content.items() if not isinstance(one, str)]
        elif isinstance(kind, set):
            faults += [] if content in kind else [f"{place}: {content}"]
        elif kind is not None and type(content) is not kind:
            faults.append(f"{place} is no {kind.__name__}")
    return faults


def _kubernetes(path: str, kind: str, value: Any) -> list[str]:
    """Hold a value against a type of the Kubernetes client: `V1Container`, `list[V1EnvVar]`, `dict(str, str)`."""
    if match := re.fullmatch(r"list\[(.*)\]", kind):
        return [
            problem for number, one in enumerate(value) for problem in _kubernetes(f"{path}[{number}]", match[1], one)
        ]
    if match := re.fullmatch(r"dict\(str, (.*)\)", kind):
        faults = [problem for key, one in value.items() for problem in _kubernetes(f"{path}.{key}", match[1], one)]
        if path.endswith((".requests", ".limits")):
            faults += [f"{path}.{key}: {one}" for key, one in value.items() if not QUANTITY.fullmatch(str(one))]
        return faults
    if kind in PLAIN:
        return [] if type(value) is PLAIN[kind] else [f"{path} is no {kind}"]
    model = getattr(client, kind, None)
    if model is None:
        return []
    types = {model.attribute_map[name]: inner for name, inner in model.openapi_types.items()}
    faults = [f"{path}.{name} is no field of {kind}" for name in value.keys() - types.keys()]
    for name, one in value.items():
        if name in types:
            faults += _kubernetes(f"{path}.{name}", types[name], one)
    return faults
