"""The `argo` engine: a run is one Argo Workflow in the team's namespace; no Kubeflow backend is needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from shopfloor.engines.argo.translation import cron_workflow, translate
from shopfloor.engines.argo_client import ArgoClient
from shopfloor.engines.base import Job, RunState
from shopfloor.errors import NotFoundError, UsageError
from shopfloor.settings import Settings

RUN_ID_DIGITS = 12
"""Of the MLflow run's id in a workflow's name."""
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
        import yaml

        return str(yaml.safe_dump(self._manifest(job), sort_keys=False, width=120))

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
        state = _STATES.get(workflow.get("status", {}).get("phase", ""), "running")
        if state == "failed" and workflow.get("spec", {}).get("shutdown"):
            return "killed"
        return state

    def logs(self, engine_run: str, step: str | None = None, follow: bool = False) -> Iterator[str]:
        """Yield the lines of the workflow's steps, or of one step's pods.

        Raises:
            NotFoundError: There is no such workflow, or it has no such step.
            ServiceError: The server does not answer, or refuses.
        """
        name = self._name(engine_run)
        pods = _pods(self._client.get(name), name)
        if step is not None and step not in pods.values():
            raise NotFoundError(
                f"Workflow {engine_run} has no pod of a step {step!r}.",
                f"It has {', '.join(sorted(set(pods.values()))) or 'none yet'}.",
            )
        last = ""
        for pod, line in self._client.logs(name, follow):
            if step is None:
                if pod != last:
                    yield f"--- {pods.get(pod, pod)}"
                    last = pod
                yield line
            elif pods.get(pod) == step:
                yield line

    def stop(self, engine_run: str) -> None:
        """End the workflow; its exit handlers still run.

        Raises:
            NotFoundError: There is no such workflow.
            ServiceError: The server does not answer, or refuses.
        """
        self._client.stop(self._name(engine_run))

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
            return cron_workflow(workflow, job.cron)
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


def _pods(workflow: dict[str, Any], name: str) -> dict[str, str]:
    """Return the step of each pod of a workflow, by the pod's name: workflow, template and the node's hash."""
    nodes = (workflow.get("status") or {}).get("nodes") or {}
    return {
        f"{name}-{node.get('templateName', '')}-{node_id.rpartition('-')[2]}": _step_of(node)
        for node_id, node in nodes.items()
        if node.get("type") == "Pod"
    }


def _step_of(node: dict[str, Any]) -> str:
    """Return the task of a node: one of a loop is called `task(0:item)`, one of a retried task `task(0)`."""
    return str(node.get("displayName", "")).partition("(")[0]
