"""A pipeline as Argo's translation reads it: with its settings for Kubernetes, and with what cannot be translated."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shopfloor.errors import UsageError
from shopfloor.pipeline import ir
from shopfloor.pipeline.ir import Json

ENVELOPE_SUFFIX = "-artifact"
STEP_NAME = "task-name"
"""Argo parameter that tells a template shared by many tasks which task it is."""


class UnsupportedFeature(UsageError):
    """A pipeline uses what this engine cannot translate.

    Args:
        task: Name of the task, or of the pipeline.
        feature: What of it.
    """

    def __init__(self, task: str, feature: str) -> None:
        super().__init__(
            f"Task {task!r} uses {feature}: the argo engine does not translate that.",
            "Change the task, or submit with --engine kfp.",
        )
        self.task = task
        self.feature = feature


@dataclass(frozen=True)
class Source(ir.Pipeline):
    """A pipeline of which all has been checked, with its settings for Kubernetes."""

    platform: dict[str, Json]
    """Executor to its kfp-kubernetes settings."""
    pipeline_config: Json


def read(content: Json, platforms: Json) -> Source:
    """Check a pipeline's IR and its settings for Kubernetes.

    Args:
        content: `PipelineSpec` as JSON.
        platforms: `{"platforms": {"kubernetes": ...}}`, or empty.

    Raises:
        UsageError: It is not IR, or refers to what it does not have.
        UnsupportedFeature: It is meant for another platform.
    """
    pipeline = ir.checked(ir.read(content))
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    try:
        platform = ir.as_json(json_format.ParseDict(platforms or {}, pipeline_spec_pb2.PlatformSpec()))
    except (json_format.ParseError, ValueError, TypeError, AttributeError) as error:
        raise ir.broken(ir.one_line(error)) from error
    others = platform.get("platforms", {}).keys() - {"kubernetes"}
    if others:
        raise UnsupportedFeature(pipeline.name, f"settings of the platform {sorted(others)[0]!r}")
    kubernetes = platform.get("platforms", {}).get("kubernetes", {})
    settings = kubernetes.get("deploymentSpec", {}).get("executors", {})
    return Source(
        spec=pipeline.spec,
        executors=pipeline.executors,
        platform={label: _platform(label, item, pipeline) for label, item in sorted(settings.items())},
        pipeline_config=kubernetes.get("pipelineConfig", {}),
    )


def _platform(label: str, settings: Json, pipeline: ir.Pipeline) -> Json:
    """Return an executor's kfp-kubernetes settings, checked against their own schema."""
    from google.protobuf import json_format
    from kfp.kubernetes import kubernetes_executor_config_pb2

    try:
        message = json_format.ParseDict(settings, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
    except (json_format.ParseError, ValueError, TypeError, AttributeError) as error:
        unknown = re.search(r'no field named "(\w+)"', str(error))
        users = [name for name, task in pipeline.tasks() if pipeline.component(task).executor_label == label]
        if unknown:
            raise UnsupportedFeature(min(users, default=label), f"the platform setting {unknown[1]!r}") from error
        raise ir.broken(ir.one_line(error)) from error
    checked: Json = ir.as_json(message)
    return checked
