"""How a team's queue stands: what waits in it and why, in words, what holds its quota, how long others waited.

All of it is read from Workloads, Kueue's own objects for jobs and pods; asks no server.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shopfloor.engines.argo.asks import quantity
from shopfloor.records import Record
from shopfloor.training.admission import at, conditions, holds, waited_s

Json = dict[str, Any]
_WORDS = {
    "WaitingForQuota": "the quota that it needs is in use",
    "ExceedsMaxQuota": "it asks for more than the queue can ever have",
    "NoMatchingFlavor": "no flavor of the queue has nodes on which it may run",
    "TopologyPlacementFailed": "no group of nodes is free that is as near together as it asks for",
    "WaitingForPreemptedWorkloads": "others make room for it: they are being stopped",
    "Misconfigured": "its queue is wrong or not there",
    "Suspended": "its queue is stopped",
    "PendingEvaluation": "Kueue has not looked at it yet",
    "WaitingForPodsReady": "Kueue lets the pods of others start first",
    "Inadmissible": "it cannot be admitted as it is",
    "OnHold": "it is held back",
    "AdmissionGated": "a gate holds it back",
    "Pending": "it waits for its turn",
    "UnsatisfiedAdmissionChecks": "it has its quota, and a check of the cluster's is not met yet",
    "NoReservation": "the quota that it needs is in use",
    "Preempted": "it was stopped for another one, and waits for its turn again",
    "PodsReadyTimeout": "its pods were not ready in time, and it waits for its turn again",
    "NodeFailures": "a node of it failed, and it waits for its turn again",
    "ClusterQueueStopped": "the queue was stopped",
    "LocalQueueStopped": "the team's queue was stopped",
    "InactiveWorkload": "somebody took it out of the queue",
    "Deactivated": "somebody took it out of the queue",
    "RequeuingLimitExceeded": "it was stopped too often, and is not tried again",
}
"""Kueue's reasons in words: those of its conditions QuotaReserved, Admitted and Evicted."""
_SAID = (
    ("maximum capacity", "ExceedsMaxQuota"),
    ("insufficient unused quota", "WaitingForQuota"),
    ("doesn't match node affinity", "NoMatchingFlavor"),
    ("untolerated taint", "NoMatchingFlavor"),
    ("unavailable in ClusterQueue", "NoMatchingFlavor"),
)
"""What Kueue's messages hold, and the reason that it means, where it calls the reason `Pending` as by default."""
_PREEMPTED = {
    "InClusterQueue": "a more urgent job of the same team",
    "InCohortReclamation": "another team, which took back what is its own",
    "InCohortFairSharing": "another team, which had less than its fair share",
    "InCohortReclaimWhileBorrowing": "another team, which took back what is its own",
}
_MORE = re.compile(r"insufficient unused quota for (\S+) in flavor (\S+), (\S+) more needed")


class Waiting(Record):
    """A job that is in the queue and not admitted."""

    job: str
    """Kind and name of what waits, as in `RayJob t-flights-1`."""
    run: str | None
    """Run that it belongs to, where that is known."""
    reason: str
    """Kueue's own word for why."""
    why: str
    """The reason as a sentence."""
    since: dt.datetime
    """Time since which it waits."""
    ahead: int | None
    """Number of jobs before it in the team's queue; `None` where nobody knows."""
    missing: dict[str, str] = {}
    """Flavor and resource, as in `gpu-spot nvidia.com/gpu`, to how much more of it must become free."""


class Holder(Record):
    """A run of the team that holds quota."""

    run: str
    """Id of the run; the job's own name where it is nobody's run."""
    since: dt.datetime
    resources: dict[str, dict[str, float]]
    """Flavor to its resources and how much of each."""


class Estimate(Record):
    """How long jobs of the team stood in the queue."""

    p50_s: float
    p90_s: float
    samples: int
    """Number of jobs that it rests on."""


def job_of(workload: Mapping[str, Any]) -> tuple[str, str]:
    """Return the kind and the name of what a Workload stands for."""
    owners = workload["metadata"].get("ownerReferences") or []
    owner = next((one for one in owners if one.get("controller")), owners[0] if owners else {})
    return str(owner.get("kind", "Workload")), str(owner.get("name", workload["metadata"]["name"]))


def is_waiting(workload: Mapping[str, Any]) -> bool:
    """Tell whether a Workload still waits to be admitted."""
    return not (holds(workload, "Admitted") or holds(workload, "Finished"))


def ordered(workloads: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the Workloads that wait in the order in which Kueue takes them: the more urgent first, then by age."""
    waiting = [one for one in workloads if is_waiting(one)]
    return sorted(waiting, key=lambda one: (-priority_of(one), one["metadata"]["creationTimestamp"]))


def priority_of(workload: Mapping[str, Any]) -> int:
    """Return how urgent a Workload is."""
    return int(workload["spec"].get("priority") or 0)


def waits(workload: Mapping[str, Any], run: str | None, ahead: int | None) -> Waiting:
    """Return why and since when a Workload waits.

    Args:
        workload: One for which `is_waiting` holds.
        run: Id of the run that it belongs to.
        ahead: Number of jobs before it.
    """
    known = conditions(workload)
    reserved, evicted = known.get("QuotaReserved", {}), known.get("Evicted", {})
    current = reserved or {"reason": "Pending", "message": ""}
    if reserved.get("status") == "True":
        current = known.get("Admitted") or {"reason": "UnsatisfiedAdmissionChecks", "message": ""}
    reason, message = str(current.get("reason") or "Pending"), str(current.get("message") or "")
    since = at(workload["metadata"]["creationTimestamp"])
    if reason == "Pending":
        reason = next((word for part, word in _SAID if part in message), reason)
    words = _WORDS.get(reason, reason)
    if workload["spec"].get("active") is False:
        reason, words = "Deactivated", _WORDS["Deactivated"]
    if evicted.get("status") == "True":
        since = at(evicted["lastTransitionTime"])
        words += f"; it ran before and was stopped: {_why_evicted(known)}"
    elif reason == "Pending" and message:
        words += f" ({_sentence(message)})"
    missing = {f"{flavor} {resource}": more for resource, flavor, more in _MORE.findall(message)}
    if missing:
        words += ": " + ", ".join(f"{more} {what}" for what, more in missing.items()) + " must become free"
    elif reason in {
        "ExceedsMaxQuota",
        "NoMatchingFlavor",
        "Inadmissible",
        "Misconfigured",
        "UnsatisfiedAdmissionChecks",
    }:
        words += f" ({_sentence(message)})" if message else ""
    kind, name = job_of(workload)
    return Waiting(job=f"{kind} {name}", run=run, reason=reason, why=words, since=since, ahead=ahead, missing=missing)


def unschedulable(pod: Mapping[str, Any], run: str | None) -> Waiting | None:
    """Return why and since when Kubernetes finds no node for a pod; `None` of one without such trouble."""
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if (condition.get("type"), condition.get("reason")) == ("PodScheduled", "Unschedulable"):
            return Waiting(
                job=f"Pod {pod['metadata']['name']}",
                run=run,
                reason="Unschedulable",
                why=f"it has its quota, and no node takes it: {_sentence(str(condition.get('message') or ''))}",
                since=at(condition.get("lastTransitionTime") or pod["metadata"]["creationTimestamp"]),
                ahead=None,
            )
    return None


def held_by(workloads: Iterable[Mapping[str, Any]], run_of: Mapping[str, str]) -> list[Holder]:
    """Return what holds a team's quota, by run, the longest first.

    Args:
        workloads: Of the team's namespace.
        run_of: Run by the name of the job or pod.
    """
    holders: dict[str, Holder] = {}
    for workload in workloads:
        admission = (workload.get("status") or {}).get("admission")
        if not admission or holds(workload, "Finished"):
            continue
        kind, name = job_of(workload)
        run = run_of.get(name, f"{kind} {name}")
        reserved = conditions(workload).get("QuotaReserved", {})
        since = at(reserved.get("lastTransitionTime") or workload["metadata"]["creationTimestamp"])
        before = holders.get(run)
        resources = {flavor: dict(amounts) for flavor, amounts in (before.resources if before else {}).items()}
        for part in admission.get("podSetAssignments") or []:
            for resource, amount in (part.get("resourceUsage") or {}).items():
                of_flavor = resources.setdefault((part.get("flavors") or {}).get(resource, ""), {})
                of_flavor[resource] = of_flavor.get(resource, 0.0) + quantity(amount)
        holders[run] = Holder(run=run, since=min(since, before.since) if before else since, resources=resources)
    return sorted(holders.values(), key=lambda holder: holder.since)


def ahead_of(workloads: Sequence[Mapping[str, Any]], priority: int) -> int:
    """Return how many of a team's jobs a new one of this urgency would stand behind."""
    return sum(priority_of(one) >= priority for one in workloads if is_waiting(one))


def waits_of(workloads: Iterable[Mapping[str, Any]], gpus: bool) -> list[float]:
    """Return how long jobs stood in the queue that were admitted, those alone that asked for GPUs or did not."""
    seconds = []
    for workload in workloads:
        waited = waited_s(workload)
        if waited is not None and _has_gpus(workload) == gpus:
            seconds.append(waited)
    return seconds


def estimate(seconds: Iterable[float]) -> Estimate | None:
    """Return the median and the ninetieth percentile of times, by the nearest rank; `None` where there is none."""
    values = sorted(seconds)
    if not values:
        return None
    p50, p90 = (values[max(0, math.ceil(part * len(values)) - 1)] for part in (0.5, 0.9))
    return Estimate(p50_s=p50, p90_s=p90, samples=len(values))


def _has_gpus(workload: Mapping[str, Any]) -> bool:
    admission = (workload.get("status") or {}).get("admission") or {}
    parts = admission.get("podSetAssignments") or []
    return any("/" in resource for part in parts for resource in part.get("resourceUsage") or {})


def _why_evicted(known: Mapping[str, Json]) -> str:
    preempted, evicted = known.get("Preempted", {}), known.get("Evicted", {})
    if evicted.get("reason") == "Preempted" and preempted.get("reason") in _PREEMPTED:
        return f"for {_PREEMPTED[preempted['reason']]}"
    return _sentence(str(evicted.get("message") or evicted.get("reason") or "it does not say why"))


def _sentence(text: str) -> str:
    return " ".join(text.split())[:300].rstrip(". ")
