"""What every Argo template of a pod has: inputs, outputs, artifacts, retries, and what the profile says of pods."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any

from shopfloor.engines.argo import pods
from shopfloor.engines.argo.values import ROOT, WORKSPACE, constant, default_of
from shopfloor.pipeline.ir import (
    ENVELOPE_SUFFIX,
    STEP_NAME,
    Json,
    Source,
    UnsupportedFeature,
    artifacts,
    parameters,
)
from shopfloor.settings import Settings

WORKSPACE_VOLUME = "kfp-workspace"
NO_ARTIFACT = json.dumps({"name": "", "type": {}, "uri": "", "metadata": {}, "key": "none"})
"""Envelope of an artifact that nobody made."""
RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@dataclass(frozen=True)
class Use:
    """One task's use of an executor."""

    source: Source
    settings: Settings
    name: str
    """The task's name."""
    task: Json
    component: Json
    absent: frozenset[str]
    """Optional inputs that have no value here."""
    run_id: str | None
    use_cache: bool
    pipeline_root: str


@dataclass
class Leaf:
    """A template that runs a pod."""

    template: Json
    references: dict[str, Json] = field(default_factory=dict)
    """Further inputs of the template, which only the task's DAG can give."""
    pull_secrets: list[str] = field(default_factory=list)
    key: str = ""
    """First segment of its artifacts' keys."""


def retry_strategy(name: str, task: Json, queue: str | None) -> Json | None:
    """Return Argo's retry strategy of a task.

    Raises:
        UnsupportedFeature: The backoff's factor is no whole number: Argo takes no other.
    """
    policy = task.get("retryPolicy")
    if not policy or not policy.get("maxRetryCount"):
        # Kueue preempts a pod by deleting it, which Argo counts as an error of the pod, not of its program.
        return {"limit": "3", "retryPolicy": "OnError"} if queue else None
    strategy: Json = {"limit": str(policy["maxRetryCount"]), "retryPolicy": "Always"}
    duration = float(str(policy.get("backoffDuration", "0s")).removesuffix("s") or 0)
    if duration:
        factor = float(policy.get("backoffFactor") or 2.0)
        if not factor.is_integer():
            raise UnsupportedFeature(name, f"a retry with the backoff factor {factor:g}")
        longest = float(str(policy.get("backoffMaxDuration", "3600s")).removesuffix("s") or 3600)
        strategy["backoff"] = {
            "duration": f"{math.ceil(duration)}s",
            "factor": str(int(factor)),
            "maxDuration": f"{math.ceil(longest)}s",
        }
    return strategy


def pod_template(
    use: Use, main: Json, asked: pods.Pod, made: Json, key: str, envelope: str | None, names: list[str]
) -> Json:
    """Return a template around a main container; adds to it what all of them have.

    Args:
        use: The task.
        main: The container.
        asked: What the task asks of its pod.
        made: Its outputs: parameters with their types, artifacts.
        key: First segment of the artifacts' keys.
        envelope: What stands for an artifact that was not made; `None`: nobody but the template describes them.
        names: Inputs of the template.
    """
    main["env"] = [*main.get("env", []), *asked.env]
    main["volumeMounts"] = [{"name": "step", "mountPath": ROOT}, *asked.mounts]
    volumes: list[Json] = [{"name": "step", "emptyDir": {}}, *asked.volumes]
    if use.source.pipeline_config.get("workspace"):
        main["volumeMounts"].append({"name": WORKSPACE_VOLUME, "mountPath": WORKSPACE})
    main["securityContext"] = {**RESTRICTED, **asked.container.pop("securityContext", {})}
    if use.settings.cluster.environment_secret:
        main["envFrom"] = [{"secretRef": {"name": use.settings.cluster.environment_secret}}]
    main.update(asked.container)
    if not main["env"]:
        del main["env"]
    template: Json = {
        "inputs": {"parameters": template_inputs(use, names, asked.references)},
        "outputs": {
            "parameters": [
                {
                    "name": name,
                    "valueFrom": {"path": f"{ROOT}/outputs/parameters/{name}", "default": default_of(kind)},
                }
                for name, kind in made["parameters"].items()
            ]
        },
        "container": main,
        "volumes": volumes,
        **asked.template,
    }
    for name, kind in made["artifacts"].items():
        place = f"{ROOT}/outputs/artifacts/{name}"
        described = {"name": name, "type": kind, "uri": place, "metadata": {}, "key": f"{key}/{name}/{{{{pod.name}}}}"}
        template["outputs"]["parameters"].append(
            {
                "name": name + ENVELOPE_SUFFIX,
                "valueFrom": {
                    "path": f"{ROOT}/outputs/parameters/{name}{ENVELOPE_SUFFIX}",
                    "default": envelope or json.dumps(described),
                },
            }
        )
        template["outputs"].setdefault("artifacts", []).append(_artifact(name, place, f"{key}/{name}/{{{{pod.name}}}}"))
    received = [
        _artifact(
            name,
            f"{ROOT}/inputs/artifacts/{name}",
            f"{{{{=jsonpath(inputs.parameters['{name}{ENVELOPE_SUFFIX}'], "
            f"'$.{'prefix' if definition.get('isArtifactList') else 'key'}')}}}}",
        )
        for name, definition in artifacts(use.component).items()
        if name not in use.absent
    ]
    if received:
        template["inputs"]["artifacts"] = received
    if not template["outputs"]["parameters"]:
        del template["outputs"]
    strategy = retry_strategy(use.name, use.task, use.settings.cluster.queue)
    if strategy:
        template["retryStrategy"] = strategy
    return template


def _artifact(name: str, place: str, key: str) -> Json:
    """Return an artifact that lies under a key of the workflow's own; bytes as they are, none is no fault."""
    return {
        "name": name,
        "path": place,
        "optional": True,
        "archive": {"none": {}},
        "s3": {"key": "{{workflow.name}}/" + key},
    }


def input_names(use: Use) -> list[str]:
    """Return the Argo parameters that carry a task's inputs."""
    return [
        *(name for name in parameters(use.component) if name not in use.absent),
        *(name + ENVELOPE_SUFFIX for name in artifacts(use.component) if name not in use.absent),
    ]


def template_inputs(use: Use, names: list[str], references: dict[str, Json]) -> list[Json]:
    """Return a template's input parameters, those with a default with it; the last one names the task.

    Raises:
        UnsupportedFeature: Two inputs would have one name.
    """
    definitions = parameters(use.component)
    found: list[Json] = []
    for name in [*names, *(name for name in references if name not in names), STEP_NAME]:
        definition = definitions.get(name, {})
        if name in use.absent:
            continue
        item = {"name": name}
        if "defaultValue" in definition:
            item["default"] = constant(definition["defaultValue"], type_of(definition)).text
        found.append(item)
    if len({item["name"] for item in found}) != len(found):
        raise UnsupportedFeature(use.name, "an input whose name another input's description has")
    return found


def variable(name: str, value: str) -> Json:
    """Return an environment variable."""
    return {"name": name, "value": value}


def type_of(definition: Json) -> str:
    """Return a parameter's KFP type."""
    return str(definition.get("parameterType", "STRING"))


def digest(value: Any) -> str:
    """Return a short hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
