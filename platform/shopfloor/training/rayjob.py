"""A command on a Ray cluster of its own: a KubeRay RayJob in the team's namespace, admitted by Kueue.

The step that asks for it waits, hands on its log, and deletes it when it is cancelled. The name is made of what is
asked for, so that a step which is tried again joins the job that is running; one that has failed makes way for it.
In a pod, the job belongs to what the pod belongs to (Argo's Workflow), and goes with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from shopfloor.environment import elsewhere
from shopfloor.errors import ServiceError, ShopfloorError, UsageError, first_line
from shopfloor.runs.mlflow import JOB_USAGE
from shopfloor.settings import Settings
from shopfloor.training import admission

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
NAME_LENGTH = 40
"""KubeRay appends to it, and a name holds 63 characters at most."""
POLL_S = 3.0
PATIENCE_S = 300.0
"""How long the Kubernetes API may fail, one question after another, before the step does: an API server restarts."""
TTL_S = 3600
"""How long a finished job stays to be looked at."""
HEAD = {"cpu": "1", "memory": "4Gi"}
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

    def pods(self) -> tuple[int, int, int]:
        """Return how many pods, and the CPUs and whole GPUs of each; workers that share a GPU share a pod."""
        if 0 < self.gpus < 1:
            together = max(1, math.floor(1 / self.gpus + 1e-9))
            return math.ceil(self.count / together), math.ceil(self.cpus * min(together, self.count)), 1
        return self.count, max(1, math.ceil(self.cpus)), math.ceil(self.gpus)


def job_name(use_case: str, identity: dict[str, Any]) -> str:
    """Return the name of the job of this identity: the same for the same, a DNS label."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    stem = re.sub(r"[^a-z0-9]+", "-", use_case.lower()).strip("-")[: NAME_LENGTH - 13]
    return f"t-{stem}-{digest}"


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
    labels = {"app.kubernetes.io/managed-by": "shopfloor"}
    if settings.run_id:
        labels["shopfloor/run-id"] = settings.run_id
    queue = {"kueue.x-k8s.io/queue-name": cluster.queue, "kueue.x-k8s.io/priority-class": cluster.priority_class}
    environment = {
        **elsewhere(settings.environment()),
        "SHOPFLOOR_RAY_ADDRESS": "auto",
        "SHOPFLOOR_STATE_DIR": "/tmp/shopfloor",  # noqa: S108
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    }
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
        },
        "spec": {
            "entrypoint": entrypoint,
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
                    "template": template("ray-head", HEAD, {}),
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


def run(settings: Settings, name: str, entrypoint: str, workers: Workers) -> None:
    """Run a command as a RayJob and wait for its end; its log is printed as it comes.

    Args:
        settings: See `body`.
        name: From `job_name`.
        entrypoint: The command.
        workers: What it takes.

    Raises:
        ServiceError: The Kubernetes API does not answer or refuses.
        ShopfloorError: The job failed.
        BudgetSpentError: The run has cost what it may; the job is deleted, its checkpoints stay.
        KeyboardInterrupt: The step was cancelled; the job is deleted.
    """
    jobs = _Jobs(settings, name)
    with _cancellable():
        try:
            jobs.create(body(settings, name, entrypoint, workers))
            jobs.wait()
        except (KeyboardInterrupt, admission.BudgetSpentError):
            jobs.delete()
            raise


class _Jobs:
    """One RayJob, by the Kubernetes API."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._namespace = settings.cluster.namespace
        self._printed = 0
        self._uid = ""
        self._ledger = admission.Ledger(settings, JOB_USAGE, self._workloads)
        self._looked_s = time.monotonic()
        self._custom, self._core = admission.apis()

    def create(self, job: dict[str, Any]) -> None:
        """Create the job, or go on with one of the name that has not failed."""
        owners = self._owners()
        if owners:
            job = job | {"metadata": job["metadata"] | {"ownerReferences": owners}}
        while not self._created(job):
            status = self._status()
            if status is not None and not _has_failed(status):
                self._say("is there already: going on with it.")
                return
            if status is not None:
                self._say(f"failed before, and makes way: {self._in_words(status)}")
                self.delete()
            while self._status() is not None:  # its pods go before it
                time.sleep(POLL_S)
        self._say("is created.")

    def _created(self, job: dict[str, Any]) -> bool:
        """Create the job; `False` where one of the name is there."""

        def create() -> bool:
            self._custom.create_namespaced_custom_object(GROUP, VERSION, self._namespace, PLURAL, job, **self._limit())
            return True

        # A creation whose answer was lost is found by its name when it is tried again.
        return bool(self._patiently("create", create, {409: False}))

    def wait(self) -> None:
        """Return when the job has succeeded.

        Raises:
            ShopfloorError: It failed, or somebody deleted it.
        """
        before = ""
        while True:
            status = self._status()
            if status is None:
                raise ShopfloorError(
                    f"RayJob {self._namespace}/{self._name} was deleted.", "Submit again to begin a new one."
                )
            words = self._in_words(status)
            if words != before:
                self._say(words, ": ")
                before = words
            self._hand_on_log()
            succeeded = status.get("jobStatus") == "SUCCEEDED" or status.get("jobDeploymentStatus") == "Complete"
            if succeeded or _has_failed(status):
                with contextlib.suppress(admission.BudgetSpentError):
                    self._account(last=True)
            if succeeded:
                return
            self._account()
            if _has_failed(status):
                raise ShopfloorError(
                    f"RayJob {self._namespace}/{self._name} failed: {words}",
                    f"Its log stands above; kubectl describe rayjob -n {self._namespace} {self._name}",
                )
            time.sleep(POLL_S)

    def delete(self) -> None:
        """Delete the job and all that it made; says so where it cannot."""
        with contextlib.suppress(admission.BudgetSpentError):
            self._account(last=True)
        try:
            self._custom.delete_namespaced_custom_object(
                GROUP, VERSION, self._namespace, PLURAL, self._name, **self._limit()
            )
            self._say("is deleted.")
        except Exception as error:
            self._say(f"was not deleted: {first_line(error, 200)}")

    def _account(self, last: bool = False) -> None:
        """Write down what the job has had: at times, and at its end.

        Raises:
            BudgetSpentError: The run has cost what it may.
        """
        if self._settings.cluster.queue and (last or time.monotonic() - self._looked_s > admission.LOOK_EVERY_S):
            self._looked_s = time.monotonic()
            self._ledger.write()

    def _workloads(self) -> list[dict[str, Any]]:
        return admission.workloads_of(self._custom, self._namespace, self._uid, self._settings.request_timeout_s)

    def _say(self, text: str, between: str = " ") -> None:
        print(f"RayJob {self._namespace}/{self._name}{between}{text}", flush=True)  # noqa: T201  the step's log

    def _status(self) -> dict[str, Any] | None:
        """Return the job's status, `None` where there is no such job."""

        def get() -> Any:
            return self._custom.get_namespaced_custom_object(
                GROUP, VERSION, self._namespace, PLURAL, self._name, **self._limit()
            )

        job = self._patiently("get", get, {404: None})
        if job is None:
            return None
        status: dict[str, Any] = job.get("status") or {}
        self._uid = str((job.get("metadata") or {}).get("uid", ""))
        return status | {"suspended": bool((job.get("spec") or {}).get("suspend"))}

    def _patiently(self, verb: str, ask: Callable[[], Any], answers: dict[int, Any]) -> Any:
        """Return what the API answers, asked again while it is silent or fails; `answers` are those to a status."""
        from kubernetes.client import ApiException

        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return ask()
            except ApiException as error:
                if error.status in answers:
                    return answers[error.status]
                failure = self._refused(error, verb)
                if error.status not in {429, 500, 502, 503, 504} or time.monotonic() > deadline:
                    raise failure from error
            except Exception as error:
                failure = self._silent(error)
                if time.monotonic() > deadline:
                    raise failure from error
            self._say(f"waits: {failure.message}", ": ")
            time.sleep(POLL_S)

    def _owners(self) -> list[dict[str, Any]]:
        """Return a reference to what this step's pod belongs to, or to the pod; none outside a pod of the namespace."""
        if "KUBERNETES_SERVICE_HOST" not in os.environ:
            return []
        # Without the right to read pods, or in another namespace, the job only lacks an owner.
        with contextlib.suppress(Exception):
            pod = self._core.read_namespaced_pod(socket.gethostname(), self._namespace, **self._limit())
            for owner in pod.metadata.owner_references or []:
                return [{"apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name, "uid": owner.uid}]
            return [{"apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid}]
        return []

    def _in_words(self, status: dict[str, Any]) -> str:
        if status["suspended"]:
            return f"waits for the queue {self._settings.cluster.queue} (kubectl get workloads -n {self._namespace})"
        parts = [
            status.get("jobDeploymentStatus"),
            status.get("jobStatus"),
            status.get("reason"),
            status.get("message"),
        ]
        return " ".join(dict.fromkeys(str(part) for part in parts if part)) or "created"

    def _hand_on_log(self) -> None:
        """Print what the submitter has logged since the last look; a log that cannot be read is no failure."""
        with contextlib.suppress(Exception):
            pods = self._core.list_namespaced_pod(
                self._namespace, label_selector=f"job-name={self._name}", **self._limit()
            )
            for pod in pods.items[:1]:
                text = self._core.read_namespaced_pod_log(pod.metadata.name, self._namespace, **self._limit())
                lines = (text or "").splitlines()
                for line in lines[self._printed :]:
                    print(line, flush=True)  # noqa: T201
                self._printed = max(self._printed, len(lines))

    def _limit(self) -> dict[str, float]:
        return {"_request_timeout": self._settings.request_timeout_s}

    def _refused(self, error: Any, verb: str) -> ShopfloorError:
        try:
            message = str(json.loads(error.body or "{}").get("message", ""))
        except (ValueError, AttributeError):
            message = ""
        message = " ".join(message.split())[:300]
        if error.status == 404:
            return ServiceError("The cluster knows no RayJobs.", "Let the platform team install the KubeRay operator.")
        if error.status == 401:
            return ServiceError("The Kubernetes API refuses the token.", "Renew the service account's token.")
        if error.status == 403:
            return ServiceError(
                f"No right to {verb} rayjobs in the namespace {self._namespace}: {message}",
                f"Give the service account {self._settings.cluster.service_account} create, get and delete on them.",
            )
        if error.status in {400, 422}:
            return UsageError(f"The cluster refuses the RayJob: {message}", "Mend the profile or search.workers.")
        return ServiceError(f"The Kubernetes API failed with status {error.status}: {message}", "Try again.")

    def _silent(self, error: Exception) -> ServiceError:
        message = first_line(error, 200)
        return ServiceError(f"The Kubernetes API does not answer: {message}.", "Try again: the job goes on.")


def _has_failed(status: dict[str, Any]) -> bool:
    return status.get("jobStatus") in {"FAILED", "STOPPED"} or status.get("jobDeploymentStatus") == "Failed"


@contextlib.contextmanager
def _cancellable() -> Iterator[None]:
    """Let SIGTERM, with which a pod is ended, do within the block what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def cluster_address() -> str:
    """Return the address of the Ray cluster on which this process is a job, as RAY_ADDRESS has it."""
    return os.environ.get("RAY_ADDRESS", "").removeprefix("ray://")
