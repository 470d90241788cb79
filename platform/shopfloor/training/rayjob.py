"""A KubeRay RayJob in the team's namespace, admitted by Kueue, as a step asks for it; `rayjob_run` runs it.

Each attempt at the step has a job of its own name, which belongs to the attempt's pod and goes with it. Its command
runs under `job_guard`, which ends it when that pod has ended.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from shopfloor.attempts import Attempt
from shopfloor.environment import PATIENT, elsewhere
from shopfloor.settings import Settings

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
NAME_LENGTH = 40
"""KubeRay appends to it, and a name holds 63 characters at most."""
TTL_S = 60
"""How long a finished job's cluster stays whose step is gone: Kueue counts its GPUs as free by then."""
GUARD = "shopfloor.training.job_guard"
"""Module that runs a job's command; the job's process imports it, the step's does not."""
STEP_POD, STEP_POD_UID, STEP_NAMESPACE = "SHOPFLOOR_STEP_POD", "SHOPFLOOR_STEP_POD_UID", "SHOPFLOOR_STEP_NAMESPACE"
"""Variables of the job with the step's pod, its UID and its namespace."""
_IN_POD_LOGS = "RAY_LOG_TO_STDERR"
RESTRICTED = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


@dataclass(frozen=True)
class Workers:
    """What the work takes from the cluster: so many workers at a time, each with its share."""

    count: int
    cpus: float
    gpus: float

    def pods(self) -> tuple[int, float, int]:
        """Return how many pods, and the CPUs and whole GPUs of each; workers that share a GPU share a pod.

        CPUs are whole, as Ray counts them; of less than one a pod takes no more than it is told.
        """
        if 0 < self.gpus < 1:
            together = max(1, math.floor(1 / self.gpus + 1e-9))
            return math.ceil(self.count / together), math.ceil(self.cpus * min(together, self.count)), 1
        return self.count, self.cpus if self.cpus < 1 else math.ceil(self.cpus), math.ceil(self.gpus)


def job_name(use_case: str, identity: dict[str, Any], number: int) -> str:
    """Return the name of the job of this identity and attempt: the same for the same, a DNS label.

    Args:
        use_case: Its name.
        identity: What is asked for, as JSON.
        number: That of the attempt, from 1.
    """
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    end = f"-{digest}-{number}"
    stem = re.sub(r"[^a-z0-9]+", "-", use_case.lower()).strip("-")[: NAME_LENGTH - 2 - len(end)].rstrip("-")
    return f"t-{stem}{end}"


def attempt_number(settings: Settings) -> int:
    """Return which attempt at its step this process makes; 1 where nobody counts."""
    return Attempt.parse(settings.attempt).number if settings.attempt else 1


def owners() -> list[dict[str, str]]:
    """Return a reference to the pod of this process, for what is to go with it; none outside of a step's pod.

    Not as its controller: Kueue would take the job for a part of the pod, and admit it with that.
    """
    for name, uid in (("SHOPFLOOR_POD", "SHOPFLOOR_POD_UID"), ("KFP_POD_NAME", "KFP_POD_UID")):
        if os.environ.get(name) and os.environ.get(uid):
            return [{"apiVersion": "v1", "kind": "Pod", "name": os.environ[name], "uid": os.environ[uid]}]
    return []


def body(settings: Settings, name: str, entrypoint: str, workers: Workers) -> dict[str, Any]:
    """Return the RayJob.

    Args:
        settings: `settings.cluster` says where and under which queue; the others become the job's environment.
        name: From `job_name`.
        entrypoint: The command; it finds the cluster in RAY_ADDRESS.
        workers: What it takes.
    """
    cluster = settings.cluster
    replicas, cpus, gpus = workers.pods()
    belongs_to = owners()
    labels = {"app.kubernetes.io/managed-by": "shopfloor"}
    if settings.run_id:
        labels["shopfloor/run-id"] = settings.run_id
    queue = {"kueue.x-k8s.io/queue-name": cluster.queue, "kueue.x-k8s.io/priority-class": cluster.priority_class}
    environment = {
        **elsewhere(settings.environment()),
        **PATIENT,
        "SHOPFLOOR_RAY_ADDRESS": "auto",
        "SHOPFLOOR_STATE_DIR": "/tmp/shopfloor",  # noqa: S108
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        # What trials print is then in the pods' own logs, from where it is kept.
        _IN_POD_LOGS: "1",
    }
    for pod in belongs_to:
        environment |= {STEP_POD: pod["name"], STEP_POD_UID: pod["uid"], STEP_NAMESPACE: cluster.namespace}
        entrypoint = f"python -m {GUARD} {entrypoint}"
    container: dict[str, Any] = {
        "image": cluster.image,
        "env": [{"name": key, "value": value} for key, value in sorted(environment.items())],
        "securityContext": RESTRICTED,
    }
    if cluster.environment_secret:
        container["envFrom"] = [{"secretRef": {"name": cluster.environment_secret}}]

    def template(name: str, resources: dict[str, str], limits: dict[str, str]) -> dict[str, Any]:
        pod = {"serviceAccountName": cluster.service_account, "restartPolicy": "Never"}
        needs = {"requests": {**resources, **limits}, "limits": limits}
        return {
            # A head that an autoscaler moves to save a node ends the search.
            "metadata": {"labels": labels, "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}},
            "spec": {**pod, "containers": [{"name": name, **container, "resources": needs}]},
        }

    head = {"cpu": cluster.ray_head_cpu, "memory": cluster.ray_head_memory}
    gpu = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    if gpus:
        worker = template("ray-worker", {"cpu": str(cpus)}, gpu)
        worker["spec"]["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    else:
        worker = template("ray-worker", {"cpu": str(cpus)}, {})
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "RayJob",
        "metadata": {
            "name": name,
            "namespace": cluster.namespace,
            "labels": labels | {key: value for key, value in queue.items() if value},
            **({"ownerReferences": belongs_to} if belongs_to else {}),
        },
        "spec": {
            # The driver's log is what it prints, not what Ray has to say of itself.
            "entrypoint": f"env -u {_IN_POD_LOGS} {entrypoint}",
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": TTL_S,
            "activeDeadlineSeconds": cluster.active_deadline_s,
            "backoffLimit": 0,
            # Kueue admits it by taking this away.
            **({"suspend": True} if cluster.queue else {}),
            "submitterPodTemplate": template("ray-job-submitter", {"cpu": "200m", "memory": "512Mi"}, {}),
            "rayClusterSpec": {
                "rayVersion": metadata.version("ray"),
                # Whoever reaches the dashboard could run code: KubeRay makes this cluster a token of its own, which its
                # pods and the submitter get. One that the Secret has for another cluster does not count here.
                "authOptions": {"mode": "token"},
                "headGroupSpec": {
                    # No work on the head: it has no GPU, and its death would end all.
                    "rayStartParams": {"num-cpus": "0"},
                    "template": template("ray-head", head, {}),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": replicas,
                        "minReplicas": replicas,
                        "maxReplicas": replicas,
                        "rayStartParams": {},
                        "template": worker,
                    }
                ],
            },
        },
    }


def cluster_address() -> str:
    """Return the address of the Ray cluster on which this process is a job, as RAY_ADDRESS has it."""
    return os.environ.get("RAY_ADDRESS", "").removeprefix("ray://")
