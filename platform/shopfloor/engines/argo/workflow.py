"""The Workflow around the templates: what the profile says of a run, and a schedule of runs."""

from __future__ import annotations

import json
import re
from typing import Any

from shopfloor.engines.argo.containers import WORKSPACE_VOLUME
from shopfloor.engines.argo.dag import Template, Templates
from shopfloor.engines.argo.source import Source
from shopfloor.errors import UsageError
from shopfloor.pipeline.ir import Json, broken
from shopfloor.settings import ALL_RUNS, LIMITS, Settings

API_VERSION = "argoproj.io/v1alpha1"
LIMIT_BYTES = 1024 * 1024
_LIFETIMES = {
    "resourceTtlOnCompletion": "secondsAfterCompletion",
    "resourceTtlOnSuccess": "secondsAfterSuccess",
    "resourceTtlOnFailure": "secondsAfterFailure",
}
USER = 1000
"""Who a step runs as whose image does not say it: no image's root."""


def workflow(
    source: Source, settings: Settings, templates: Templates, root: Template, arguments: list[Json], run_id: str | None
) -> Json:
    """Return the manifest of a run.

    Args:
        source: The pipeline.
        settings: Say how runs are made on the cluster.
        templates: All templates.
        root: That of the pipeline.
        arguments: The pipeline's parameters.
        run_id: MLflow run.
    """
    cluster = settings.cluster
    name = _label(source.name).lower().replace("_", "-").replace(".", "-")[:50].strip("-") or "pipeline"
    labels = {"app.kubernetes.io/managed-by": "shopfloor", "shopfloor/pipeline": _label(source.name)}
    if run_id:
        labels["shopfloor/run-id"] = _label(run_id)
    pod_labels = dict(labels)
    if cluster.queue:
        pod_labels["kueue.x-k8s.io/queue-name"] = cluster.queue
    if cluster.priority_class:
        pod_labels["kueue.x-k8s.io/priority-class"] = cluster.priority_class
    names = [name for name in cluster.limits if name in {ALL_RUNS, _label(source.name)}]
    config = source.pipeline_config
    lifetime = {argo: int(config[kfp]) for kfp, argo in _LIFETIMES.items() if kfp in config}
    if "secondsAfterCompletion" not in lifetime:
        lifetime = {
            "secondsAfterSuccess": cluster.ttl_success_s,
            "secondsAfterFailure": cluster.ttl_failure_s,
            **lifetime,
        }
    spec: Json = {
        "entrypoint": root.name,
        "serviceAccountName": cluster.service_account,
        "artifactRepositoryRef": {"configMap": cluster.artifact_repository, "key": cluster.artifact_repository_key},
        "activeDeadlineSeconds": int(config.get("activeDeadlineSeconds", cluster.active_deadline_s)),
        "ttlStrategy": lifetime,
        "podGC": {"strategy": cluster.pod_gc},
        "parallelism": cluster.parallelism,
        "podMetadata": {"labels": pod_labels},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if names:  # Argo reads the numbers whenever a run begins or ends
        references = [{"configMapKeyRef": {"name": LIMITS, "key": name}} for name in names]
        spec["synchronization"] = {"semaphores": references}
    if arguments:
        spec["arguments"] = {"parameters": arguments}
    if templates.pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in sorted(templates.pull_secrets)]
    if config.get("workspace"):
        spec["volumeClaimTemplates"] = [_workspace(config["workspace"])]
    spec["templates"] = templates.all
    metadata: Json = {"generateName": f"{name}-", "namespace": cluster.namespace, "labels": labels}
    return {"apiVersion": API_VERSION, "kind": "Workflow", "metadata": metadata, "spec": spec}


def cron_workflow(workflow: dict[str, Any], schedule: str) -> dict[str, Any]:
    """Return the CronWorkflow that runs `workflow` at `schedule`.

    Args:
        workflow: From `translate`.
        schedule: Five fields as cron has them, in UTC.
    """
    metadata = dict(workflow["metadata"])
    metadata["name"] = metadata.pop("generateName").rstrip("-")
    return {
        "apiVersion": API_VERSION,
        "kind": "CronWorkflow",
        "metadata": metadata,
        "spec": {
            "schedules": [schedule],
            # Known to every server, also without a database of time zones.
            "timezone": "UTC",
            # A run that takes longer than the time between two is not joined by a second one.
            "concurrencyPolicy": "Forbid",
            "workflowMetadata": {"labels": dict(workflow["metadata"]["labels"])},
            "workflowSpec": workflow["spec"],
        },
    }


def settled(manifest: Json) -> Json:
    """Return a manifest as it will be sent: plain JSON in which no two places share an object.

    Raises:
        UsageError: It is over the 1 MiB that the cluster can store.
    """
    text = json.dumps(manifest, separators=(",", ":"))
    size = len(text.encode())
    if size > LIMIT_BYTES:
        raise UsageError(
            f"The workflow is {size / LIMIT_BYTES:.1f} MiB, over the 1 MiB that etcd stores of one object.",
            "Split the pipeline, pass large values as artifacts, or use a loop over one component.",
        )
    plain: Json = json.loads(text)
    return plain


def _workspace(workspace: Json) -> Json:
    if not workspace.get("size"):
        raise broken("the workspace has no size")
    patch = workspace.get("kubernetes", {}).get("pvcSpecPatch", {})
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": workspace["size"]}},
        **patch,
    }
    return {"metadata": {"name": WORKSPACE_VOLUME}, "spec": spec}


def _label(text: str) -> str:
    """Return `text` as the value of a label."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:63].strip("-_.")
