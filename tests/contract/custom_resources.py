"""What objects of Kueue and KubeRay may say: the fields that we write, as their types have them.

No package carries their schemas, so the fields stand here; the schemas of the pinned releases, where they are at hand,
are a second judge, which refuses unknown fields too. Rules that stand in no schema are those of their webhooks and
controllers.
"""

import json
import re
from functools import cache

from tests.contract import kuberay
from tests.support.manifests import Json
from tests.support.project import SHARED

QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
REFERENCE = {"name": str, "key": str}
TOLERATION = {"key": str, "operator": {"Exists", "Equal"}, "effect": {"NoSchedule", "NoExecute"}, "value": str}
SCHEMAS = {
    "RayCluster": ("ray.io/v1", "ray_rayclusters.json"),
    "ClusterQueue": ("kueue.x-k8s.io/v1beta2", "kueue_clusterqueues.json"),
    "LocalQueue": ("kueue.x-k8s.io/v1beta2", "kueue_localqueues.json"),
    "Cohort": ("kueue.x-k8s.io/v1beta2", "kueue_cohorts.json"),
    "ResourceFlavor": ("kueue.x-k8s.io/v1beta2", "kueue_resourceflavors.json"),
    "WorkloadPriorityClass": ("kueue.x-k8s.io/v1beta2", "kueue_workloadpriorityclasses.json"),
}
"""Kinds that are no part of Kubernetes: their version, and the schema of the pinned release."""
FIELDS = {
    "RayCluster": {
        "rayVersion": str,
        "authOptions": {"mode": {"token"}, "secretName": str},
        "gcsFaultToleranceOptions": {
            "redisAddress": str,
            "externalStorageNamespace": str,
            "redisPassword": {"valueFrom": {"secretKeyRef": REFERENCE}},
        },
        "headGroupSpec": "head",
        "workerGroupSpecs": "workers",
    },
    "ClusterQueue": {
        "cohortName": str,
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": str}},
        "queueingStrategy": {"BestEffortFIFO", "StrictFIFO"},
        "flavorFungibility": {
            "whenCanBorrow": {"MayStopSearch", "TryNextFlavor"},
            "whenCanPreempt": {"MayStopSearch", "TryNextFlavor"},
        },
        "preemption": {
            "reclaimWithinCohort": {"Never", "LowerPriority", "Any"},
            "withinClusterQueue": {"Never", "LowerPriority", "LowerOrNewerEqualPriority"},
        },
        "fairSharing": {"weight": int},
        "resourceGroups": list,
    },
    "LocalQueue": {"clusterQueue": str},
    "ResourceFlavor": {"nodeLabels": {"shopfloor.io/pool": str}, "tolerations": list},
    "Cohort": {},
}


def problems(one: Json) -> list[str]:
    """Return what is wrong with an object of one of these kinds, each with its place."""
    kind = one["kind"]
    version, file = SCHEMAS[kind]
    faults = [] if one["apiVersion"] == version else [f"apiVersion is not {version}"]
    if kind == "WorkloadPriorityClass":
        faults += [
            f"{key} is no field" for key in one.keys() - {"apiVersion", "kind", "metadata", "value", "description"}
        ]
        faults += [] if type(one["value"]) is int else ["value is no int"]
    else:
        spec = one.get("spec", {})
        faults += kuberay._fields("spec", FIELDS[kind], spec)
        faults += {"RayCluster": _ray_cluster, "ClusterQueue": _cluster_queue}.get(kind, lambda _: [])(one)
        for number, toleration in enumerate(spec.get("tolerations", [])):
            faults += kuberay._fields(f"spec.tolerations[{number}]", TOLERATION, toleration)
    if (validator := _schema(file, version.rpartition("/")[2])) is not None:
        faults += [f"{list(error.instance_path)}: {error.message}" for error in validator.iter_errors(one)]
    return faults


def _ray_cluster(one: Json) -> list[str]:
    """Return what KubeRay's controller refuses beyond its schema."""
    spec, name = one["spec"], one["metadata"]["name"]
    faults = []
    if len(name) > 53:
        faults.append("the names of its services would be too long")
    for group in spec["workerGroupSpecs"]:
        if not 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            faults.append(f"replicas of {group['groupName']} are not between its bounds")
        if group["groupName"] == "head":
            faults.append("the name `head` is Kueue's")
    head = spec["headGroupSpec"]
    if "redis-password" in head["rayStartParams"] or "labels" in head["rayStartParams"]:
        faults.append("rayStartParams says what gcsFaultToleranceOptions or labels say")
    if tuple(map(int, spec["rayVersion"].split(".")[:2])) < (2, 52):
        faults.append("tokens need Ray 2.52")
    return faults


def _cluster_queue(one: Json) -> list[str]:
    """Return what Kueue refuses beyond its schema, by the rules (CEL) that stand in it and in its documentation."""
    spec, faults, names = one["spec"], [], []
    for group in spec["resourceGroups"]:
        for flavor in group["flavors"]:
            names.append(flavor["name"])
            if [resource["name"] for resource in flavor["resources"]] != group["coveredResources"]:
                faults.append(f"{flavor['name']} does not list the covered resources in their order")
            for resource in flavor["resources"]:
                quantities = [resource["nominalQuota"], *filter(None, [resource.get("borrowingLimit")])]
                faults += [f"{value} is no quantity" for value in quantities if not QUANTITY.fullmatch(str(value))]
                if resource.keys() - {"name", "nominalQuota", "borrowingLimit", "lendingLimit"}:
                    faults.append(f"{flavor['name']}: a resource has an unknown field")
                if "borrowingLimit" in resource and not spec.get("cohortName"):
                    faults.append("a limit of borrowing needs a cohort")
    if len(set(names)) != len(names):
        faults.append("a flavor is listed twice")
    return faults


@cache
def _schema(file, version):
    import jsonschema_rs

    from tests.contract.test_argo_translation import strict

    path = SHARED / "schemas" / file
    if not path.is_file():
        return None
    schema = strict(json.loads(path.read_text())[version])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema_rs.Draft202012Validator(schema)
