"""The `argo` engine: a run is one Argo Workflow in the team's namespace; no Kubeflow backend is needed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any, ClassVar

from shopfloor.engines.argo.client import ENDED, ArgoClient
from shopfloor.engines.argo.translation import cron_workflow, translate
from shopfloor.engines.base import Job, RunState
from shopfloor.engines.manifests import text_of
from shopfloor.errors import NotFoundError, UsageError
from shopfloor.settings import Settings

RUN_ID_DIGITS = 12
"""Of the MLflow run's id in a workflow's name."""
SCHEDULE_LENGTH = 52
"""Argo refuses longer names of CronWorkflows: it appends the time."""
_STATES: dict[str, RunState] = {
    "": "pending",
    "Pending": "pending",
    "Running": "running",
    "Succeeded": "succeeded",
    "Failed": "failed",
    "Error": "failed",
}


class ArgoEngine:
    """Runs pipelines as Argo Workflows; a run is named `<namespace>/<workflow>`."""

    name: ClassVar[str] = "argo"

    def __init__(self, settings: Settings) -> None:
        """Use the server and the namespace of `settings.cluster`."""
        self._settings = settings
        self._client = ArgoClient(settings)

    def manifest(self, job: Job) -> str:
        """Return, as YAML, exactly what `submit` would send.

        Raises:
            UsageError: The engine cannot run such a pipeline.
        """
        return text_of(self._manifest(job))

    def submit(self, job: Job) -> str:
        """Create the workflow, or for a job with a schedule the CronWorkflow, and return its name.

        Raises:
            UsageError: The pipeline cannot be translated, or the server finds a fault in it.
            ConflictError: There is a schedule of that name.
            ServiceError: The server does not answer, or refuses.
        """
        manifest = self._manifest(job)
        if job.cron is not None:
            made = self._client.create_cron(manifest)
        else:
            self._client.lint(manifest)
            made = self._client.create(manifest)
        return f"{self._settings.cluster.namespace}/{made['metadata']['name']}"

    def status(self, engine_run: str) -> RunState:
        """Return how the workflow stands.

        Raises:
            NotFoundError: There is no such workflow (any more: it goes after its time to live).
            ServiceError: The server does not answer, or refuses.
        """
        workflow = self._client.get(self._name(engine_run))
        status = workflow.get("status") or {}
        state = _STATES.get(status.get("phase", ""), "running")
        if state == "succeeded" and any(_failed_hook(node) for node in (status.get("nodes") or {}).values()):
            # Argo lets a workflow succeed whose exit task failed.
            return "failed"
        if state == "failed" and workflow.get("spec", {}).get("shutdown"):
            return "killed"
        pods = _pods(workflow)
        if state == "running" and pods and all(node.get("phase") == "Pending" for node in pods.values()):
            return "pending"
        return state

    def logs(self, engine_run: str, step: str | None = None, follow: bool = False) -> Iterator[str]:
        """Yield the lines of the workflow's steps, or of one step's pods; where there are none yet, what it waits for.

        Raises:
            NotFoundError: There is no such workflow, or it has no such step.
            ServiceError: The server does not answer, or refuses.
        """
        name = self._name(engine_run)
        steps = _Steps(self._client, name)
        if not follow or steps.ended:
            steps.require(engine_run, step)
        last, silent = "", True
        for pod, line in self._client.logs(name, follow):
            its = steps.of(pod)
            if step not in {None, its}:
                continue
            if step is None and pod != last:
                yield f"--- {its}"
            last, silent = pod, False
            yield line
        if silent:
            steps.read()
            steps.require(engine_run, step)
            yield from self._reasons(step, steps)

    def stop(self, engine_run: str) -> None:
        """End the workflow; its exit handlers still run, unless it was asked to stop before.

        Raises:
            NotFoundError: There is no such workflow.
            ServiceError: The server does not answer, or refuses.
        """
        name = self._name(engine_run)
        if self._client.get(name).get("spec", {}).get("shutdown"):
            self._client.terminate(name)
        else:
            self._client.stop(name)

    def retry(self, engine_run: str) -> str:
        """Let Argo run again what failed of the workflow, with the code that it has.

        Raises:
            NotFoundError: There is no such workflow.
            UsageError: It has not failed.
            ServiceError: The server does not answer, or refuses.
        """
        made = self._client.retry(self._name(engine_run))
        return f"{self._settings.cluster.namespace}/{made['metadata']['name']}"

    def _manifest(self, job: Job) -> dict[str, Any]:
        workflow = translate(job.ir, job.platforms, job.arguments, self._settings, job.run_id, job.use_cache)
        if job.cron is not None:
            schedule = cron_workflow(workflow, job.cron)
            schedule["metadata"]["name"] = _schedule_name(schedule["metadata"]["name"], job.arguments.get("use_case"))
            return schedule
        if job.run_id:
            # A name of its own, not one that the server makes up: a create whose answer was lost is found again.
            metadata = workflow["metadata"]
            workflow["metadata"] = {"name": f"{metadata.pop('generateName')}{job.run_id[:RUN_ID_DIGITS]}", **metadata}
        return workflow

    def _name(self, engine_run: str) -> str:
        """Return the workflow's name.

        Raises:
            UsageError: It is in another namespace than the profile's.
        """
        namespace, _, name = engine_run.rpartition("/")
        ours = self._settings.cluster.namespace
        if namespace != ours:
            raise UsageError(
                f"Workflow {engine_run} is in another namespace than the profile's, {ours}.",
                "Name the profile that it was submitted with.",
            )
        return name

    def _reasons(self, step: str | None, steps: _Steps) -> Iterator[str]:
        """Yield what the server says of pods that printed nothing, and of the workflow."""
        cluster = self._settings.cluster
        for node in steps.nodes.values():
            if step not in {None, _step_of(node)}:
                continue
            message = node.get("message", "")
            if not message and node.get("phase") == "Pending" and cluster.queue:
                # Argo hands on what the scheduler says, and the scheduler does not see a pod that Kueue holds.
                message = (
                    f"Kueue may hold it in the queue {cluster.queue}, also where there is no such queue; "
                    f"`kubectl get workloads -n {cluster.namespace}` says why."
                )
            if message:
                yield f"--- {_step_of(node)}"
                yield f"{node.get('phase', '')}: {message}"
        if steps.message and step is None:
            yield steps.message


class _Steps:
    """The steps of a workflow by their pods, read anew where a pod is not known yet."""

    def __init__(self, client: ArgoClient, name: str) -> None:
        self._client = client
        self._name = name
        self._unknown: set[str] = set()
        self.read()

    def read(self) -> None:
        """Ask the server how the workflow stands."""
        workflow = self._client.get(self._name)
        status = workflow.get("status") or {}
        self.nodes = _pods(workflow)
        self.ended = status.get("phase", "") in ENDED
        self.message = str(status.get("message") or "")

    def of(self, pod: str) -> str:
        """Return the step of a pod; of one that no step has, the pod's name."""
        number = _number(pod)
        if number not in self.nodes and number not in self._unknown:
            self.read()
            self._unknown |= {number} - self.nodes.keys()
        return _step_of(self.nodes[number]) if number in self.nodes else pod

    def require(self, engine_run: str, step: str | None) -> None:
        """Refuse a step that has no pod.

        Raises:
            NotFoundError: It names those that have.
        """
        known = sorted({_step_of(node) for node in self.nodes.values()})
        if step is not None and step not in known:
            raise NotFoundError(
                f"Workflow {engine_run} has no pod of a step {step!r}.", f"It has {', '.join(known) or 'none yet'}."
            )


def _failed_hook(node: dict[str, Any]) -> bool:
    """Tell whether a node is that of an exit task, and failed."""
    return bool((node.get("nodeFlag") or {}).get("hooked")) and node.get("phase") in {"Failed", "Error"}


def _pods(workflow: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the nodes of a workflow that are pods, by the number at the end of the pod's name."""
    nodes = (workflow.get("status") or {}).get("nodes") or {}
    return {_number(node_id): node for node_id, node in nodes.items() if node.get("type") == "Pod"}


def _number(name: str) -> str:
    """Return the hash at the end of a node's id and of its pod's name; what stands before it Argo may cut short."""
    return name.rpartition("-")[2]


def _step_of(node: dict[str, Any]) -> str:
    """Return the task of a node: one of a loop is called `task(0:item)`, one of a retried task `task(0)`."""
    return str(node.get("displayName", "")).partition("(")[0]


def _schedule_name(pipeline: str, use_case: str | None) -> str:
    """Return the name of a schedule: each use case has its own."""
    if not use_case:
        return pipeline
    name = re.sub(r"[^a-z0-9]+", "-", f"{pipeline}-{use_case}".lower()).strip("-")
    if len(name) <= SCHEDULE_LENGTH:
        return name
    return f"{name[: SCHEDULE_LENGTH - 9].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
