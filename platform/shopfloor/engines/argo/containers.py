"""What every Argo template of a pod has: inputs, outputs, artifacts, retries, and what the profile says of pods."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from dataclasses import dataclass, field
from typing import Any

from shopfloor.engines.argo import pods
from shopfloor.engines.argo.launcher import ABSENT
from shopfloor.engines.argo.source import ENVELOPE_SUFFIX, STEP_NAME, Source, UnsupportedFeature
from shopfloor.engines.argo.values import ROOT, WORKSPACE, constant
from shopfloor.errors import UsageError
from shopfloor.pipeline import ir
from shopfloor.pipeline.ir import Json, Message, Origin, artifacts, parameters, type_of
from shopfloor.settings import Settings

logger = logging.getLogger(__name__)

WORKSPACE_VOLUME = "kfp-workspace"
STEP_MOUNT: Json = {"name": "step", "mountPath": ROOT}
DVC_MOUNT: Json = {"name": "step", "mountPath": "/app/.dvc/tmp", "subPath": "dvc"}
"""Where DVC writes beside the project, which lies in `/app` of the platform image."""
TMP_MOUNT: Json = {"name": "step", "mountPath": "/tmp", "subPath": "tmp"}  # noqa: S108  a volume of the pod's own
RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
READ_ONLY = {**RESTRICTED, "readOnlyRootFilesystem": True}
HELPER: Json = {
    "securityContext": READ_ONLY,
    "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}},
}
"""What a container of ours beside the task's own has: a quota refuses pods in which one says no limits."""


_TAKEN_AWAY = "lastRetry.status == 'Error' || (lastRetry.exitCode == '143' && !(lastRetry.message contains 'deadline'))"
"""Whether a pod was deleted or evicted, as Kueue preempts one: an error of the pod, or a program that ended when it was
asked to. One whose own time was over is asked to end too."""


@dataclass(frozen=True)
class Use:
    """One task's use of an executor."""

    source: Source
    settings: Settings
    name: str
    """The task's name."""
    task: Message
    component: Message
    absent: frozenset[str]
    """Optional inputs that have no value here."""
    above_absent: frozenset[str]
    """Inputs of the DAG around the task that have no value."""
    run_id: str | None
    use_cache: bool
    pipeline_root: str


@dataclass
class Leaf:
    """A template that runs a pod."""

    template: Json
    references: dict[str, Origin] = field(default_factory=dict)
    """Further inputs of the template, which only the task's DAG can give."""
    pull_secrets: list[str] = field(default_factory=list)
    key: str = ""
    """First segment of its artifacts' keys."""


def retry_strategy(name: str, task: Message, queue: str | None) -> Json | None:
    """Return Argo's retry strategy of a task.

    Argo takes whole numbers alone as the factor of a backoff: another one is rounded up, and a warning says so.

    Raises:
        UsageError: It is to be tried less than no times.
    """
    policy = task.retry_policy
    if not policy.max_retry_count:
        return {"limit": "3", "retryPolicy": "Always", "expression": _TAKEN_AWAY} if queue else None
    if policy.max_retry_count < 0:
        raise UsageError(
            f"Task {name!r} is to be tried again {policy.max_retry_count} times.", "Write set_retry(0) or more."
        )
    strategy: Json = {"limit": str(policy.max_retry_count), "retryPolicy": "Always"}
    duration_s = policy.backoff_duration.ToTimedelta().total_seconds()
    if duration_s:
        factor = policy.backoff_factor or 2.0
        if not factor.is_integer():
            logger.warning(
                "Argo knows no fractions: the backoff factor %g of task %s becomes %d.", factor, name, math.ceil(factor)
            )
        longest_s = policy.backoff_max_duration.ToTimedelta().total_seconds() or 3600
        strategy["backoff"] = {
            "duration": f"{math.ceil(duration_s)}s",
            "factor": str(math.ceil(factor)),
            "maxDuration": f"{math.ceil(longest_s)}s",
        }
    return strategy


def pod_template(
    use: Use,
    main: Json,
    pod: pods.Pod,
    outputs: Json,
    key: str,
    envelope: str | None,
    names: list[str],
    reader: Json | None = None,
) -> Json:
    """Return a template around a main container; adds to it what all of them have.

    Args:
        use: The task.
        main: The container.
        pod: What the task asks of its pod.
        outputs: What it gives: parameters with their types, artifacts.
        key: First segment of the artifacts' keys.
        envelope: What stands for an artifact that was not made; `None`: nobody but the template describes them.
        names: Inputs of the template.
        reader: A container that runs after the main one, and without which no output parameter is there.
    """
    main["env"] = [*main.get("env", []), *pod.env]
    main["volumeMounts"] = [*main.get("volumeMounts", []), *([] if reader else [STEP_MOUNT]), *pod.mounts]
    volumes: list[Json] = [{"name": "step", "emptyDir": {}}, *pod.volumes]
    if use.source.pipeline_config.get("workspace"):
        main["volumeMounts"].append({"name": WORKSPACE_VOLUME, "mountPath": WORKSPACE})
    main["securityContext"] = {**main.get("securityContext", RESTRICTED), **pod.container.pop("securityContext", {})}
    if use.settings.cluster.environment_secret:
        main["envFrom"] = [{"secretRef": {"name": use.settings.cluster.environment_secret}}]
    main.update(pod.container)
    if not main["env"]:
        del main["env"]
    template: Json = {
        "inputs": {"parameters": template_inputs(use, names, pod.references)},
        "outputs": {
            "parameters": [
                {
                    "name": name,
                    "valueFrom": {
                        "path": f"{ROOT}/outputs/parameters/{name}",
                        **({} if reader else {"default": ABSENT}),
                    },
                }
                for name in outputs["parameters"]
            ]
        },
        "volumes": volumes,
        **pod.template,
    }
    if reader:
        # The two share the step's directory by a mount of the set: only there Argo looks for outputs in a volume.
        containers = [{"name": "main", **main}, {**reader, "dependencies": ["main"]}]
        template["containerSet"] = {"containers": containers, "volumeMounts": [STEP_MOUNT]}
    else:
        template["container"] = main
    for name, kind in outputs["artifacts"].items():
        place = f"{ROOT}/outputs/artifacts/{name}"
        facts = {"name": name, "type": kind, "uri": place, "metadata": {}, "key": f"{key}/{name}/{{{{pod.name}}}}"}
        template["outputs"]["parameters"].append(
            {
                "name": name + ENVELOPE_SUFFIX,
                "valueFrom": {
                    "path": f"{ROOT}/outputs/parameters/{name}{ENVELOPE_SUFFIX}",
                    "default": envelope or json.dumps(facts),
                },
            }
        )
        template["outputs"].setdefault("artifacts", []).append(_artifact(name, place, f"{key}/{name}/{{{{pod.name}}}}"))
    input_artifacts = [
        _artifact(
            name,
            f"{ROOT}/inputs/artifacts/{name}",
            f"{{{{=jsonpath(inputs.parameters['{name}{ENVELOPE_SUFFIX}'], "
            f"'$.{'prefix' if definition.is_artifact_list else 'key'}')}}}}",
        )
        for name, definition in artifacts(use.component).items()
        if name not in use.absent
    ]
    if input_artifacts:
        template["inputs"]["artifacts"] = input_artifacts
    if not template["outputs"]["parameters"]:
        del template["outputs"]
    strategy = retry_strategy(use.name, use.task, use.settings.cluster.queue)
    if strategy:
        template["retryStrategy"] = strategy
    return template


def _artifact(name: str, place: str, key: str) -> Json:
    """Return an artifact that lies under a key of the workflow's own; bytes as they are, none is no fault.

    The key begins with the namespace: in a bucket that teams share, each may use what lies below its name.
    """
    return {
        "name": name,
        "path": place,
        "optional": True,
        "archive": {"none": {}},
        "s3": {"key": "{{workflow.namespace}}/workflows/{{workflow.name}}/" + key},
    }


def input_names(use: Use) -> list[str]:
    """Return the Argo parameters that carry a task's inputs."""
    return [
        *(name for name in parameters(use.component) if name not in use.absent),
        *(name + ENVELOPE_SUFFIX for name in artifacts(use.component) if name not in use.absent),
    ]


def template_inputs(use: Use, names: list[str], references: dict[str, Origin]) -> list[Json]:
    """Return a template's input parameters, those with a default with it; the last one names the task.

    Raises:
        UnsupportedFeature: Two inputs would have one name.
    """
    definitions, defaults = parameters(use.component), ir.defaults(use.component)
    items: list[Json] = []
    for name in [*names, *(name for name in references if name not in names), STEP_NAME]:
        if name in use.absent:
            continue
        item = {"name": name}
        if name in defaults:
            item["default"] = constant(defaults[name], type_of(definitions[name])).text
        items.append(item)
    if len({item["name"] for item in items}) != len(items):
        raise UnsupportedFeature(use.name, "an input whose name another input's description has")
    return items


def variable(name: str, value: str) -> Json:
    """Return an environment variable with a value that is known now, or that Argo's tags make."""
    return {"name": name, "value": value}


def for_kubelet(text: str) -> str:
    """Return text for a command, an argument or a variable: the kubelet halves `$$` and expands `$(NAME)`."""
    return text.replace("$", "$$")


def input_for_kubelet(name: str) -> str:
    """Return the tag of an input for a command, an argument or a variable."""
    return f"{{{{=replace(inputs.parameters['{name}'], '$', '$$')}}}}"


def digest(value: Any) -> str:
    """Return a short hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
