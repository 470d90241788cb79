"""What a run asks of its queue, read from the manifests that it is made with; asks no server.

Kueue takes each pod of a step as a job of its own, and a RayJob as a whole: all its pods are admitted together or none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from shopfloor.engines.argo.outputs import ITERATION

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
Json = dict[str, Any]


@dataclass(frozen=True)
class PodSet:
    """Pods that are alike."""

    name: str
    count: int
    requests: Mapping[str, float]
    """Resource to the amount for each pod: CPUs, bytes, whole devices."""
    spec: Json = field(default_factory=dict)
    """Fields of the pod that say on which nodes it may run: `nodeSelector`, `affinity`, `tolerations`."""

    def total(self, resource: str) -> float:
        """Return what all pods ask for together."""
        return self.count * self.requests.get(resource, 0.0)


@dataclass(frozen=True)
class Ask:
    """One job as the queue takes it: admitted as a whole, or not at all."""

    step: str
    kind: Literal["pod", "RayJob"]
    pod_sets: tuple[PodSet, ...]
    repeated: bool = False
    """Whether there may be several such jobs, as in a loop."""
    open: tuple[str, ...] = ()
    """Resources of which only the run itself will say how much it asks for."""


def asks_of(workflow: Json, defaults: Mapping[str, str]) -> list[Ask]:
    """Return what the pods of a workflow ask for, a step at a time, in the order of the templates.

    Args:
        workflow: From `translate`.
        defaults: What a container gets that does not say what it requests, from the namespace's LimitRanges.

    Returns:
        Nothing where the workflow's pods go past Kueue.
    """
    spec = workflow["spec"]
    if QUEUE_LABEL not in spec.get("podMetadata", {}).get("labels", {}):
        return []
    templates = {template["name"]: template for template in spec["templates"]}
    asks: dict[tuple[str, str], Ask] = {}
    for step, name, repeated in _steps(templates, spec["entrypoint"]):
        template = templates[name]
        containers = _containers(template)
        if not containers:
            continue
        pod = {key: template[key] for key in ("nodeSelector", "affinity", "tolerations") if key in template}
        requests = _requests(containers, template.get("initContainers", []), defaults)
        patched = _patched(template.get("podSpecPatch", ""))
        ask = Ask(step, "pod", (PodSet("main", 1, requests, pod),), repeated, patched)
        asks.setdefault((step, name), ask)
    return list(asks.values())


def ask_of_ray_job(step: str, job: Json, defaults: Mapping[str, str]) -> Ask:
    """Return what a RayJob asks for: its head, its workers and the pod that submits to it.

    Args:
        step: The step that makes it.
        job: From `rayjob.body`.
        defaults: See `asks_of`.
    """
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    groups = [("head", 1, cluster["headGroupSpec"]["template"])]
    groups += [(one["groupName"], one["replicas"], one["template"]) for one in cluster["workerGroupSpecs"]]
    groups.append(("submitter", 1, spec["submitterPodTemplate"]))
    pod_sets = tuple(
        PodSet(
            name,
            count,
            _requests(template["spec"]["containers"], template["spec"].get("initContainers", []), defaults),
            {
                key: template["spec"][key]
                for key in ("nodeSelector", "affinity", "tolerations")
                if key in template["spec"]
            },
        )
        for name, count, template in groups
    )
    return Ask(step, "RayJob", pod_sets)


def default_requests(limit_ranges: Iterable[Json]) -> dict[str, str]:
    """Return what the LimitRanges of a namespace give a container that does not say what it requests."""
    defaults: dict[str, str] = {}
    for one in limit_ranges:
        for limit in one.get("spec", {}).get("limits", []):
            if limit.get("type") == "Container":
                defaults |= {**limit.get("default", {}), **limit.get("defaultRequest", {})}
    return defaults


def quantity(text: str | float) -> float:
    """Return a quantity of Kubernetes as a number: CPUs, bytes, whole devices."""
    from kubernetes.utils.quantity import parse_quantity

    return float(parse_quantity(text))


def shown(resource: str, amount: float) -> str:
    """Return an amount of a resource as a person writes it."""
    if resource in {"memory", "ephemeral-storage"} and amount >= 1024**3:
        return f"{amount / 1024**3:.4g}Gi"
    if resource in {"memory", "ephemeral-storage"}:
        return f"{amount / 1024**2:.4g}Mi"
    return f"{amount:.10g}"


def _steps(
    templates: Mapping[str, Json], name: str, repeated: bool = False, seen: frozenset[str] = frozenset(), step: str = ""
) -> Iterable[tuple[str, str, bool]]:
    """Yield the step, the template and whether it is repeated, of every task that is a pod."""
    template = templates.get(name, {})
    if name in seen or "dag" not in template:
        if step:
            yield step, name, repeated
        return
    for task in template["dag"]["tasks"]:
        again = repeated or "withParam" in task
        inner = step if task["name"] == ITERATION else task["name"]
        yield from _steps(templates, task["template"], again, seen | {name}, inner)
        for hook in (task.get("hooks") or {}).values():
            yield from _steps(templates, hook["template"], again, seen | {name}, hook["template"])


def _containers(template: Json) -> list[Json]:
    if "container" in template:
        return [template["container"], *template.get("sidecars", [])]
    if "script" in template:
        return [template["script"], *template.get("sidecars", [])]
    return list(template.get("containerSet", {}).get("containers", []))


def _requests(containers: list[Json], first: list[Json], defaults: Mapping[str, str]) -> dict[str, float]:
    """Return what a pod requests as the scheduler counts it: its containers together, or the largest before them."""
    total: dict[str, float] = {}
    for container in containers:
        for name, amount in _of_container(container, defaults).items():
            total[name] = total.get(name, 0.0) + amount
    for container in first:
        for name, amount in _of_container(container, defaults).items():
            total[name] = max(total.get(name, 0.0), amount)
    return {name: amount for name, amount in total.items() if amount}


def _of_container(container: Json, defaults: Mapping[str, str]) -> dict[str, float]:
    resources = container.get("resources", {})
    amounts = {**defaults, **resources.get("limits", {}), **resources.get("requests", {})}
    return {name: quantity(amount) for name, amount in amounts.items()}


def _patched(patch: str) -> tuple[str, ...]:
    """Return the resources that a patch of the pod sets by what the run gives."""
    try:
        containers = json.loads(patch).get("containers", []) if patch else []
    except ValueError:  # tags that give JSON stand in it
        return ("resources",) if '"resources"' in patch else ()
    names: set[str] = set()
    for container in containers:
        for side in (container.get("resources") or {}).values():
            names |= set(side)
    return tuple(sorted(names))
