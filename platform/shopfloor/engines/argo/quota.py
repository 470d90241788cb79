"""Whether a team's queue could ever hold what a run asks for, and what it has free now: Kueue's own rules.

A team may read its own ClusterQueue, its cohort and its flavors. What the others could lend stands in an annotation
that `shopfloor teams render` writes; where it is missing, the borrowing limit alone bounds what can be held.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shopfloor.engines.argo.asks import Ask, PodSet, quantity, shown

LENT = "shopfloor.io/lent-by-others"
MOST_ASSIGNMENTS = 4096
Json = dict[str, Any]


@dataclass(frozen=True)
class Share:
    """A queue's part of one resource of a flavor."""

    nominal: float
    ceiling: float
    """Most that the queue can ever hold, with all that it can borrow; infinite where nobody says."""
    used: float = 0.0
    """Amount that is reserved for the queue's jobs now."""
    borrowed: float = 0.0
    lent: float = 0.0
    """Part that all others have as their own; infinite where nobody says."""


@dataclass(frozen=True)
class Flavor:
    """A flavor as a queue offers it."""

    name: str
    shares: Mapping[str, Share]
    """Resource to the queue's part of it."""
    labels: Mapping[str, str]
    """Labels of its nodes."""
    taints: Sequence[Json] = ()
    tolerations: Sequence[Json] = ()


@dataclass(frozen=True)
class Group:
    """Resources that a pod gets from the same flavor, and the flavors in the order in which they are tried."""

    resources: frozenset[str]
    flavors: tuple[Flavor, ...]


@dataclass(frozen=True)
class Quota:
    """A ClusterQueue as one team sees it."""

    name: str
    cohort: str
    groups: tuple[Group, ...]
    lent_known: bool
    """Whether it is known what others could lend."""
    stopped: str = ""
    """Reason why it admits nothing at all; empty where it does."""


@dataclass(frozen=True)
class Verdict:
    """Whether a queue could ever admit a job."""

    flavors: tuple[tuple[str, ...], ...]
    """For each of its pod sets the flavors on which it could be, in their order; none: nowhere."""
    refusal: str = ""
    """Reason why it can never be admitted, in one sentence; empty where it can."""
    nearest: str = ""
    """Job like it that could be."""


def quota_of(queue: Json, cohort: Json | None, flavors: Mapping[str, Json]) -> Quota:
    """Return a queue's quota of the objects that the API gives.

    Args:
        queue: The ClusterQueue.
        cohort: Its Cohort; `None` where it has none, or nobody may see it.
        flavors: The ResourceFlavors by name; one that is missing is taken to fit every pod.
    """
    spec, status = queue["spec"], queue.get("status") or {}
    annotation = (queue["metadata"].get("annotations") or {}).get(LENT)
    lent: dict[str, dict[str, str]] | None = json.loads(annotation) if annotation else None
    if not spec.get("cohortName"):
        lent = {}
    elif ((cohort or {}).get("spec") or {}).get("parentName"):
        lent = None  # what lies above the cohort nobody says
    pool = _of_cohort(cohort)
    used = {
        (flavor["name"], one["name"]): (quantity(one.get("total", 0)), quantity(one.get("borrowed", 0)))
        for flavor in status.get("flavorsReservation") or []
        for one in flavor.get("resources") or []
    }

    def share(flavor: str, one: Json) -> Share:
        resource, nominal = one["name"], quantity(one["nominalQuota"])
        limit = quantity(one["borrowingLimit"]) if "borrowingLimit" in one else math.inf
        others = math.inf if lent is None else quantity(lent.get(flavor, {}).get(resource, "0"))
        others += pool.get((flavor, resource), 0.0)
        return Share(nominal, nominal + min(limit, others), *used.get((flavor, resource), (0.0, 0.0)), others)

    groups = []
    for group in spec.get("resourceGroups") or []:
        members = []
        for one in group["flavors"]:
            flavor = (flavors.get(one["name"]) or {}).get("spec") or {}
            members.append(
                Flavor(
                    one["name"],
                    {resource["name"]: share(one["name"], resource) for resource in one["resources"]},
                    flavor.get("nodeLabels") or {},
                    tuple(flavor.get("nodeTaints") or ()),
                    tuple(flavor.get("tolerations") or ()),
                )
            )
        groups.append(Group(frozenset(group["coveredResources"]), tuple(members)))
    active: Json = next((one for one in status.get("conditions") or [] if one["type"] == "Active"), {})
    stopped = str(active.get("message") or "it says no why") if active.get("status") == "False" else ""
    return Quota(queue["metadata"]["name"], spec.get("cohortName") or "", tuple(groups), lent is not None, stopped)


def judge(ask: Ask, quota: Quota) -> Verdict:
    """Return whether a queue could ever admit a job, were nobody else there; by Kueue's rules.

    Each pod set gets one flavor for the resources of a group, its taints tolerated and its labels asked for; what the
    pod sets of a job get of a flavor counts together.
    """
    choices: list[list[tuple[str, ...]]] = []
    for pod_set in ask.pod_sets:
        uncovered = [r for r in pod_set.requests if not any(r in group.resources for group in quota.groups)]
        if uncovered:
            covered = sorted(set().union(*(group.resources for group in quota.groups)))
            return Verdict(
                (),
                f"{_whose(ask, pod_set)} asks for {uncovered[0]}, of which the queue {quota.name} has nothing",
                f"it has {', '.join(covered) or 'nothing'}",
            )
        choices.append(list(_choices(pod_set, quota)))
        if not choices[-1]:
            names = [flavor.name for group in quota.groups for flavor in group.flavors]
            return Verdict(
                (),
                f"{_whose(ask, pod_set)} may run on the nodes of no flavor of the queue {quota.name}",
                f"it has {', '.join(names)}: look at the step's node selector and tolerations",
            )
    holding = [
        combination
        for combination in itertools.islice(itertools.product(*choices), MOST_ASSIGNMENTS)
        if _fits(ask, combination, quota)
    ]
    if holding:
        return Verdict(
            tuple(tuple(dict.fromkeys("+".join(dict.fromkeys(one[i])) for one in holding)) for i in range(len(choices)))
        )
    pod_set = _worst(ask, quota)
    return Verdict((), *_refusal(ask, pod_set, quota))


def free_now(quota: Quota, ask: Ask) -> bool:
    """Tell whether the team's own idle share would take a job at once, without borrowing or waiting."""
    groups = [list(_choices(pod_set, quota)) for pod_set in ask.pod_sets]
    return any(
        _fits(ask, combination, quota, own=True)
        for combination in itertools.islice(itertools.product(*groups), MOST_ASSIGNMENTS)
    )


def held_by_others(quota: Quota, workload: Mapping[str, Any], missing: Mapping[str, str]) -> dict[str, float]:
    """Return how much of what a job waits for the other teams hold together: their queues nobody else may see.

    Kueue says by how much the job is more than what is free now. What is neither free nor the team's, others hold;
    where the team may not borrow all that others have, nobody can tell.

    Args:
        quota: Of the team's queue.
        workload: That waits.
        missing: Flavor and resource, as in `gpu-spot nvidia.com/gpu`, to how much must become free.
    """
    requests: dict[str, float] = {}
    for part in (workload.get("status") or {}).get("resourceRequests") or []:
        for resource, amount in (part.get("resources") or {}).items():
            requests[resource] = requests.get(resource, 0.0) + quantity(amount)
    held: dict[str, float] = {}
    for what, more in missing.items():
        flavor, _, resource = what.partition(" ")
        share = _share(quota, flavor, resource)
        if resource not in requests or math.isinf(share.lent) or share.ceiling < share.nominal + share.lent:
            continue
        free = requests[resource] - quantity(more)
        held[what] = max(0.0, share.nominal + share.lent - share.used - free)
    return held


def _choices(pod_set: PodSet, quota: Quota) -> Iterator[tuple[str, ...]]:
    """Yield the flavors that a pod set could get by taints and labels: one of each group that it needs."""
    needed = [group for group in quota.groups if group.resources & set(pod_set.requests)]
    allowed = [[flavor.name for flavor in group.flavors if _may_run(pod_set, flavor)] for group in needed]
    yield from itertools.product(*allowed)


def _may_run(pod_set: PodSet, flavor: Flavor) -> bool:
    tolerations = [*pod_set.spec.get("tolerations", []), *flavor.tolerations]
    for taint in flavor.taints:
        if taint.get("effect") in {"NoSchedule", "NoExecute"} and not any(_tolerates(t, taint) for t in tolerations):
            return False
    selector = pod_set.spec.get("nodeSelector") or {}
    if any(key in flavor.labels and flavor.labels[key] != value for key, value in selector.items()):
        return False
    affinity = (pod_set.spec.get("affinity") or {}).get("nodeAffinity") or {}
    terms = (affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms") or []
    # Kueue looks at the keys alone that the flavor has; a term without any of them is met.
    return not terms or any(_term_met(term, flavor.labels) for term in terms)


def _tolerates(toleration: Json, taint: Json) -> bool:
    if toleration.get("effect") not in {None, "", taint.get("effect")}:
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in {None, "", taint.get("key")}
    return (toleration.get("key"), toleration.get("value", "")) == (taint.get("key"), taint.get("value", ""))


def _term_met(term: Json, labels: Mapping[str, str]) -> bool:
    for expression in term.get("matchExpressions") or []:
        if expression["key"] not in labels:
            continue
        value, values = labels[expression["key"]], expression.get("values") or []
        met = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": True,
            "DoesNotExist": False,
        }.get(expression["operator"], True)
        if not met:
            return False
    return True


def _fits(ask: Ask, combination: Sequence[tuple[str, ...]], quota: Quota, own: bool = False) -> bool:
    """Tell whether pod sets on these flavors stay within what the queue can hold, or within its own idle share."""
    totals: dict[tuple[str, str], float] = {}
    for pod_set, names in zip(ask.pod_sets, combination, strict=True):
        for resource in pod_set.requests:
            flavor = next(
                flavor
                for group in quota.groups
                if resource in group.resources
                for flavor in group.flavors
                if flavor.name in names
            )
            totals[flavor.name, resource] = totals.get((flavor.name, resource), 0.0) + pod_set.total(resource)
    for (name, resource), total in totals.items():
        share = _share(quota, name, resource)
        if total > (max(0.0, share.nominal - share.used) if own else share.ceiling):
            return False
    return True


def _share(quota: Quota, flavor: str, resource: str) -> Share:
    for group in quota.groups:
        for one in group.flavors:
            if one.name == flavor and resource in one.shares:
                return one.shares[resource]
    return Share(0.0, 0.0)


def _worst(ask: Ask, quota: Quota) -> PodSet:
    """Return the pod set that fits least."""

    def part(pod_set: PodSet) -> float:
        return min((_overrun(pod_set, flavors, quota)[0] for flavors in _choices(pod_set, quota)), default=math.inf)

    return max(ask.pod_sets, key=part)


def _overrun(pod_set: PodSet, flavors: Sequence[str], quota: Quota) -> tuple[float, str, str, Share]:
    """Return by how much a pod set is more than flavors can hold, and of which resource of which flavor."""
    worst = (-1.0, "", "", Share(0.0, 0.0))
    for resource in pod_set.requests:
        group = next(group for group in quota.groups if resource in group.resources)
        name = next(flavor.name for flavor in group.flavors if flavor.name in flavors)
        share = _share(quota, name, resource)
        ratio = pod_set.total(resource) / share.ceiling if share.ceiling else math.inf
        worst = max(worst, (ratio, resource, name, share), key=lambda one: one[0])
    return worst


def _refusal(ask: Ask, pod_set: PodSet, quota: Quota) -> tuple[str, str]:
    """Return why no flavor holds a job, and the nearest job that one could."""
    options = [(_fitting(pod_set, flavors, quota), flavors) for flavors in _choices(pod_set, quota)]
    count, flavors = max(options, key=lambda one: one[0])
    if not count:
        # Not even one pod: the flavor that has most of what is asked for most urgently.
        flavors = min((f for _, f in options), key=lambda one: _overrun(pod_set, one, quota)[0])
    _, resource, name, share = _overrun(pod_set, flavors, quota)
    total = shown(resource, pod_set.total(resource))
    most = f"{shown(resource, share.ceiling)} of {name} ({shown(resource, share.nominal)} its own)"
    why = f"{_whose(ask, pod_set)} asks for {total} {resource}, and the queue {quota.name} can hold {most} at most"
    if count:
        each = ", ".join(f"{shown(r, amount)} {r}" for r, amount in sorted(pod_set.requests.items()))
        return why, f"{count} pods of {each} on {'+'.join(flavors)} could be admitted"
    return why, f"nearest is {name}, with {shown(resource, share.ceiling)} {resource}"


def _fitting(pod_set: PodSet, flavors: Sequence[str], quota: Quota) -> int:
    """Return how many pods of a set flavors could hold."""
    counts = []
    for resource, amount in pod_set.requests.items():
        group = next(group for group in quota.groups if resource in group.resources)
        name = next(flavor.name for flavor in group.flavors if flavor.name in flavors)
        ceiling = _share(quota, name, resource).ceiling
        counts.append(pod_set.count if math.isinf(ceiling) else math.floor(ceiling / amount + 1e-9))
    return min([*counts, pod_set.count])


def _of_cohort(cohort: Json | None) -> dict[tuple[str, str], float]:
    """Return the quota that a cohort has itself, for all of its queues."""
    return {
        (flavor["name"], one["name"]): quantity(one["nominalQuota"])
        for group in ((cohort or {}).get("spec") or {}).get("resourceGroups") or []
        for flavor in group["flavors"]
        for one in flavor["resources"]
    }


def _whose(ask: Ask, pod_set: PodSet) -> str:
    return f"Step {ask.step}" if ask.kind == "pod" else f"Step {ask.step} (RayJob, {pod_set.name})"
