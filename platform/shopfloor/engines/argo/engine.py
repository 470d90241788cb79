"""The `argo` engine: a run is one Argo Workflow in the team's namespace; no Kubeflow backend is needed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from shopfloor.engines.argo.client import ArgoClient
from shopfloor.engines.argo.nodes import (
    Steps,
    has_failed,
    in_time,
    last_attempts,
    pods_of,
    seconds_of,
    step_of,
    warning_of,
)
from shopfloor.engines.argo.translation import cron_workflow, translate
from shopfloor.engines.base import Job, RunState
from shopfloor.engines.manifests import text_of
from shopfloor.errors import UsageError
from shopfloor.records import StepRecord
from shopfloor.settings import Settings

RUN_ID_DIGITS = 12
"""Digits of the MLflow run's id in a workflow's name."""
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
_STEP_STATES: dict[str, Literal["pending", "running", "succeeded", "failed"]] = {
    "Pending": "pending",
    "Running": "running",
    "Succeeded": "succeeded",
    "Failed": "failed",
    "Error": "failed",
}
_PREPARING = {"PodInitializing", "ContainerCreating"}
PREPARING_S = 60.0
"""How long a pod may take to get its images and volumes before that is told."""
QUIET_S = 5.0
"""How long a run that is watched may print nothing before the server is asked why."""


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
            answer = self._client.create_cron(manifest)
        else:
            self._client.lint(manifest)
            answer = self._client.create(manifest)
        return f"{self._settings.cluster.namespace}/{answer['metadata']['name']}"

    def status(self, engine_run: str) -> RunState:
        """Return how the workflow stands.

        Raises:
            NotFoundError: There is no such workflow (any more: it goes after its time to live).
            ServiceError: The server does not answer, or refuses.
        """
        workflow = self._client.get(self._name(engine_run))
        status = workflow.get("status") or {}
        state = _STATES.get(status.get("phase", ""), "running")
        if state == "succeeded" and has_failed(status.get("nodes") or {}):
            # Argo lets a workflow succeed whose exit task failed.
            return "failed"
        if state == "failed" and workflow.get("spec", {}).get("shutdown"):
            return "killed"
        pods = pods_of(workflow)
        if state == "running" and pods and all(node.get("phase") == "Pending" for node in pods.values()):
            return "pending"
        return state

    def why(self, engine_run: str) -> str:
        """Return why a pod of the workflow failed, or, where none says so, what Argo says of the workflow.

        Raises:
            NotFoundError: There is no such workflow.
            ServiceError: The server does not answer, or refuses.
        """
        steps = Steps(self._client, self._name(engine_run))
        failed = (node for node in last_attempts(steps.all) if _STEP_STATES.get(node.get("phase", "")) == "failed")
        reasons = (f"{step_of(node)}: {reason}" for node in failed if (reason := self._reason(node)))
        return " ".join(next(reasons, steps.message).split())

    def logs(self, engine_run: str, step: str | None = None, follow: bool = False) -> Iterator[str]:
        """Yield the lines of the workflow's steps, or of one step's pods; where there are none yet, what it waits for.

        Raises:
            NotFoundError: There is no such workflow, or it has no such step.
            ServiceError: The server does not answer, or refuses.
        """
        name = self._name(engine_run)
        steps = Steps(self._client, name)
        if not follow or steps.ended:
            steps.require(engine_run, step)
        last, silent = "", True
        lines = self._client.logs(name, follow)
        for pod, line in self._with_reasons(lines, steps, step) if follow and not steps.ended else lines:
            its = steps.of(pod) if pod else ""
            if pod and step not in {None, its}:
                continue
            if pod and step is None and pod != last:
                yield f"--- {its}"
            last, silent = pod, silent and not pod
            yield line
        if silent:
            steps.read()
            steps.require(engine_run, step)
            yield from self._reasons(step, steps)

    def steps(self, engine_run: str) -> list[StepRecord]:
        """Return what Argo knows of the steps of a run, whatever image they run in.

        Raises:
            NotFoundError: There is no such workflow.
            ServiceError: The server does not answer, or refuses.
        """
        return [
            StepRecord(
                name=step_of(node),
                state=_STEP_STATES.get(node.get("phase", ""), "running"),
                seconds=seconds_of(node),
                error=self._reason(node),
            )
            for node in last_attempts(Steps(self._client, self._name(engine_run)).all)
        ]

    def _with_reasons(
        self, lines: Iterator[tuple[str, str]], steps: Steps, step: str | None
    ) -> Iterator[tuple[str, str]]:
        """Yield lines as they come, and without a pod, while none comes, why steps wait; each reason once."""
        reasons: dict[str, str] = {}
        for item in in_time(lines, QUIET_S):
            if item is not None:
                yield item
                continue
            steps.read()
            for number, node in steps.nodes.items():
                reason = self._reason(node) if node.get("phase") == "Pending" and step in {None, step_of(node)} else ""
                if reason and reasons.get(number) != reason:
                    reasons[number] = reason
                    yield "", f"{step_of(node)} waits: {reason}"

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
        answer = self._client.retry(self._name(engine_run))
        return f"{self._settings.cluster.namespace}/{answer['metadata']['name']}"

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

    def _reasons(self, step: str | None, steps: Steps) -> Iterator[str]:
        """Yield what the server says of pods that printed nothing, and of the workflow."""
        for node in steps.nodes.values():
            reason = self._reason(node)
            if reason and step in {None, step_of(node)}:
                yield f"--- {step_of(node)}"
                yield f"{node.get('phase', '')}: {reason}"
        if steps.message and step is None:
            yield steps.message

    def _reason(self, node: dict[str, Any]) -> str:
        """Return what is known of why a step waits or failed."""
        message = str(node.get("message") or "")
        cluster = self._settings.cluster
        if message in _PREPARING:
            if seconds_of(node) < PREPARING_S:
                return ""
            # Argo hands on nothing of an image that a container before the main one lacks, or of a volume.
            return warning_of(self._client, node) or (
                f"{message} for more than {PREPARING_S:.0f} s; "
                f"`kubectl get events -n {cluster.namespace} --field-selector type=Warning` says why."
            )
        if not message and node.get("phase") == "Pending" and cluster.queue:
            # Argo hands on what the scheduler says, and the scheduler does not see a pod that Kueue holds.
            return (
                f"Kueue may hold it in the queue {cluster.queue}, also where there is no such queue; "
                f"`kubectl get workloads -n {cluster.namespace}` says why."
            )
        return message


def _schedule_name(pipeline: str, use_case: str | None) -> str:
    """Return the name of a schedule: each use case has its own."""
    if not use_case:
        return pipeline
    name = re.sub(r"[^a-z0-9]+", "-", f"{pipeline}-{use_case}".lower()).strip("-")
    if len(name) <= SCHEDULE_LENGTH:
        return name
    return f"{name[: SCHEDULE_LENGTH - 9].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
