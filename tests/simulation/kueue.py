"""Kueue's rules on the queues of teams that share one cohort, without a cluster: who is admitted where, and who yields.

What Kueue 0.19 documents for such queues: BestEffortFIFO, borrowing limits, flavors in their order, reclaiming within
the cohort; and, where it is switched on, fair sharing by the dominant share, with its two strategies. A job that is
stopped for another one is gone at once; on a cluster its pods take their time.
`tests/e2e/test_cluster_queue.py` holds this against the real Kueue.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import cmp_to_key

from shopfloor.engines.argo.asks import quantity

FIRST, SECOND = "LessThanOrEqualToFinalShare", "LessThanInitialShare"
NO_FIT, NO_CANDIDATES, PREEMPT, RECLAIM, FIT = range(5)
MOST_CYCLES = 2000
FlavorResource = tuple[str, str]


@dataclass(eq=False)
class Job:
    """A job of some pod sets: admitted as a whole, or not at all."""

    name: str
    team: str
    pod_sets: list[tuple[int, dict[str, int]]]
    """Pods of each set, and what one of them requests, in thousandths."""
    created: float
    priority: int = 0
    seconds: float = 0.0
    """How long it has still to run."""
    flavors: list[dict[str, str]] = field(default_factory=list)
    """For each pod set the flavor of each resource, while it is admitted."""
    admitted: float | None = None
    preempted: list[tuple[float, str]] = field(default_factory=list)
    """When it was stopped for another one, and for whose sake."""

    usage: Counter = field(default_factory=Counter)
    """Its part of each flavor's resources, while it is admitted."""


@dataclass
class Assignment:
    """Where a job could be, and what would have to happen for it."""

    flavors: list[dict[str, str]]
    mode: int
    needing: set[FlavorResource]
    """What others would have to give up."""


class Queue:
    """One team's ClusterQueue, as `shopfloor teams render` writes it."""

    def __init__(self, manifest: dict) -> None:
        self.name = manifest["metadata"]["name"]
        spec = manifest["spec"]
        assert spec["queueingStrategy"] == "BestEffortFIFO"
        assert spec["flavorFungibility"] == {"whenCanBorrow": "MayStopSearch", "whenCanPreempt": "TryNextFlavor"}
        assert spec["preemption"]["reclaimWithinCohort"] == "Any"
        self.preempts_its_own = {"Never": False, "LowerPriority": True}[spec["preemption"]["withinClusterQueue"]]
        (group,) = spec["resourceGroups"]
        self.flavors = [one["name"] for one in group["flavors"]]
        self.nominal: dict[FlavorResource, int] = {}
        self.limit: dict[FlavorResource, int] = {}
        for flavor in group["flavors"]:
            for one in flavor["resources"]:
                key = flavor["name"], one["name"]
                assert "lendingLimit" not in one
                self.nominal[key], self.limit[key] = (
                    thousandths(one["nominalQuota"]),
                    thousandths(one["borrowingLimit"]),
                )
        self.usage: Counter = Counter()
        self.jobs: dict[str, Job] = {}
        self.pending: dict[str, Job] = {}
        self.sticky = ""
        """Job for which others were stopped: it stays the head until it is admitted, or has nothing to wait for."""

    def borrows(self, key: FlavorResource) -> bool:
        return self.usage[key] > self.nominal.get(key, 0)


class Cohort:
    """The queues of all teams."""

    def __init__(self, manifests: list[dict], strategies: list[str] | None = None) -> None:
        """Take the queues of manifests, with the strategies of fair sharing; none where Kueue does not share so."""
        self._strategies = strategies or []
        self._parked: set[str] = set()
        self.queues = {queue.name: queue for queue in map(Queue, manifests)}
        # Without fair sharing, what a queue takes from itself and from others together is not simulated.
        assert strategies or not any(queue.preempts_its_own for queue in self.queues.values())
        self.total: Counter = Counter()
        for queue in self.queues.values():
            self.total.update(queue.nominal)
        self.lendable: Counter = Counter()
        for (_, resource), amount in self.total.items():
            self.lendable[resource] += amount
        self.now = 0.0

    # What Kueue's cache says.

    def used(self, key: FlavorResource) -> float:
        return sum(queue.usage[key] for queue in self.queues.values())

    def available(self, queue: Queue, key: FlavorResource) -> float:
        free = self.total[key] - self.used(key)
        return min(free, queue.nominal.get(key, 0) + queue.limit.get(key, 0) - queue.usage[key])

    def ceiling(self, queue: Queue, key: FlavorResource) -> float:
        return min(self.total[key], queue.nominal.get(key, 0) + queue.limit.get(key, 0))

    def share(self, queue: Queue, more: Counter | None = None) -> float:
        """Return the dominant share of what a queue borrows, of it and of what it would get."""
        borrowed: Counter = Counter()
        for key in queue.nominal:
            over = queue.usage[key] + (more or {}).get(key, 0) - queue.nominal[key]
            if over > 0:
                borrowed[key[1]] += over
        ratios = [amount / self.lendable[name] for name, amount in borrowed.items() if self.lendable[name]]
        return max(ratios, default=0.0)

    def fits(self, queue: Queue, usage: Counter) -> bool:
        return all(amount <= self.available(queue, key) for key, amount in usage.items())

    # What happens.

    def submit(self, job: Job) -> None:
        self.queues[job.team].pending[job.name] = job

    def finish(self, job: Job) -> None:
        self._remove(job)
        self._parked.clear()  # who did not fit is looked at again: when something ends, and not when something begins
        job.seconds = 0.0
        job.flavors = []

    def settle(self) -> list[Job]:
        """Let Kueue admit and preempt until nothing moves; return what was admitted and runs."""
        before = self._admissions()
        for _ in range(MOST_CYCLES):
            heads = [head for queue in self.queues.values() if (head := self._head(queue))]
            if not heads:
                break
            entries = [(job, self._assign(self.queues[job.team], job)) for job in heads]
            victims: set[str] = set()
            self._promised: list[tuple[Queue, Counter]] = []
            for job, assignment in self._ordered(entries):
                self._process(job, assignment, victims)
            for queue, usage in self._promised:
                queue.usage.subtract(usage)
            if victims:
                self._parked.clear()
        else:
            raise AssertionError("the queues never come to rest")
        running = [job for queue in self.queues.values() for job in queue.jobs.values()]
        return [job for job in running if (job.name, len(job.preempted)) not in before]

    def _admissions(self) -> set[tuple[str, int]]:
        return {(job.name, len(job.preempted)) for queue in self.queues.values() for job in queue.jobs.values()}

    def _head(self, queue: Queue) -> Job | None:
        waiting = [job for job in queue.pending.values() if job.name not in self._parked]
        return min(waiting, key=lambda job: (job.name != queue.sticky, *in_order(job)), default=None)

    def _process(self, job: Job, assignment: Assignment, victims: set[str]) -> None:
        """Do with a head what this cycle can: admit it, stop others for it, leave it for the next cycle, or park it."""
        queue = self.queues[job.team]
        if assignment.mode in {NO_FIT, NO_CANDIDATES}:
            self._park(queue, job)
            return
        usage = usage_of(job, assignment.flavors)
        if assignment.mode == FIT:
            if self.fits(queue, usage):
                del queue.pending[job.name]
                job.flavors, job.admitted, job.usage = assignment.flavors, self.now, usage
                queue.jobs[job.name] = job
                queue.usage.update(usage)
                queue.sticky = "" if queue.sticky == job.name else queue.sticky
            return
        targets = self._targets(queue, job, usage, assignment.needing)
        if not targets:
            self._park(queue, job)
            return
        queue.sticky = job.name
        for target in targets:
            self._preempt(target, job)
        victims |= {target.name for target in targets}
        queue.usage.update(usage)  # no other head of this cycle gets what was cleared for this one
        self._promised.append((queue, usage))

    def _park(self, queue: Queue, job: Job) -> None:
        self._parked.add(job.name)
        queue.sticky = "" if queue.sticky == job.name else queue.sticky

    def _preempt(self, job: Job, for_whom: Job) -> None:
        self._remove(job)
        job.seconds -= self.now - (job.admitted or 0.0)
        job.preempted.append((self.now, for_whom.team))
        job.flavors, job.admitted = [], None
        self.submit(job)

    def _remove(self, job: Job) -> None:
        queue = self.queues[job.team]
        del queue.jobs[job.name]
        queue.usage.subtract(job.usage)

    # The order of a cycle: who borrows nothing first, then (with fair sharing) the smallest share, urgency, age.

    def _ordered(self, entries: list[tuple[Job, Assignment]]):
        left = list(entries)
        while left:
            best = min(left, key=cmp_to_key(self._compare))
            left.remove(best)
            yield best

    def _compare(self, one: tuple[Job, Assignment], other: tuple[Job, Assignment]) -> int:
        keys = []
        for job, assignment in (one, other):
            queue, usage = self.queues[job.team], usage_of(job, assignment.flavors)
            borrowing = any(queue.usage[key] + amount > queue.nominal.get(key, 0) for key, amount in usage.items())
            share = self.share(queue, usage) if self._strategies else 0.0
            keys.append((borrowing, share, -job.priority, job.created))
        return (keys[0] > keys[1]) - (keys[0] < keys[1])

    # Flavors.

    def _assign(self, queue: Queue, job: Job) -> Assignment:
        assumed: Counter = Counter()
        result = Assignment([], FIT, set())
        for count, requests in job.pod_sets:
            totals = {name: count * amount for name, amount in requests.items() if amount}
            best_mode, best_borrow, best_flavor, best_needing = NO_FIT, True, "", set()
            for flavor in queue.flavors:
                mode, borrow, needing = self._mode(queue, job, flavor, totals, assumed)
                better = (mode > NO_CANDIDATES, mode, not borrow) > (
                    best_mode > NO_CANDIDATES,
                    best_mode,
                    not best_borrow,
                )
                if mode != NO_FIT and (better or best_mode == NO_FIT):
                    best_mode, best_borrow, best_flavor, best_needing = mode, borrow, flavor, needing
                if mode == FIT:
                    break  # MayStopSearch where it can borrow, TryNextFlavor where it would have to preempt
            if best_mode == NO_FIT:
                return Assignment([], NO_FIT, set())
            result.flavors.append(dict.fromkeys(totals, best_flavor))
            result.needing |= best_needing
            result.mode = min(result.mode, best_mode)
            for name, amount in totals.items():
                assumed[best_flavor, name] += amount
        return result

    def _mode(self, queue: Queue, job: Job, flavor: str, totals: dict, assumed: Counter):
        """Return how a pod set could get a flavor, whether by borrowing, and what others would have to give up."""
        worst, borrow, needing = FIT, False, set()
        for name, amount in totals.items():
            key = flavor, name
            value = assumed[key] + amount
            if value > self.ceiling(queue, key):
                return NO_FIT, True, set()
            borrow |= queue.usage[key] + value > queue.nominal.get(key, 0)
            if value <= self.available(queue, key):
                continue
            if not self._strategies and value > queue.nominal.get(key, 0):
                return NO_FIT, True, set()  # who must borrow takes nothing from anybody
            needing.add(key)
            targets = self._targets(queue, job, Counter({key: value}), {key})
            mode = NO_CANDIDATES
            if targets:
                mode = PREEMPT if any(target.team == queue.name for target in targets) else RECLAIM
            worst = min(worst, mode)
        return worst, borrow, needing

    # Preemption.

    def _targets(self, queue: Queue, job: Job, usage: Counter, needing: set[FlavorResource]) -> list[Job]:
        """Return which jobs would be stopped so that one gets what it needs; nothing is changed."""
        saved = {one.name: one.usage.copy() for one in self.queues.values()}
        try:
            return self._simulated(queue, job, usage, needing)
        finally:
            for one in self.queues.values():
                one.usage = saved[one.name]

    def _simulated(self, queue: Queue, job: Job, usage: Counter, needing: set[FlavorResource]) -> list[Job]:
        def uses(one: Job) -> bool:
            return any(one.usage[key] for key in needing)

        own = [one for one in queue.jobs.values() if one.priority < job.priority and uses(one)]
        own = own if queue.preempts_its_own else []
        others = [
            one
            for other in self.queues.values()
            if other is not queue and any(other.borrows(key) for key in needing)
            for one in other.jobs.values()
            if uses(one)
        ]
        candidates: dict[str, list[Job]] = {}
        for one in sorted(
            [*own, *others], key=lambda one: (one.team == queue.name, one.priority, -one.admitted, one.name)
        ):
            candidates.setdefault(one.team, []).append(one)

        def fits() -> bool:
            queue.usage.subtract(usage)
            result = self.fits(queue, usage)
            queue.usage.update(usage)
            return result

        if not self._strategies:
            targets = self._reclaimed(queue, usage, needing, [one for team in candidates.values() for one in team])
            return self._spared(queue, usage, targets)
        queue.usage.update(usage)  # shares hold the job that comes
        within_nominal = not any(queue.borrows(key) for key in needing)
        targets, done, again = self._first_strategy(queue, candidates, within_nominal, fits)
        if not done and SECOND in self._strategies:
            done = self._second_strategy(queue, again, targets, fits)
        queue.usage.subtract(usage)
        return self._spared(queue, usage, targets) if done else []

    def _spared(self, queue: Queue, usage: Counter, targets: list[Job]) -> list[Job]:
        """Return the targets without those that need not have been stopped."""
        for target in reversed(targets[:-1]):
            self.queues[target.team].usage.update(target.usage)
            if self.fits(queue, usage):
                targets = [one for one in targets if one is not target]
            else:
                self.queues[target.team].usage.subtract(target.usage)
        return targets

    def _reclaimed(
        self, queue: Queue, usage: Counter, needing: set[FlavorResource], candidates: list[Job]
    ) -> list[Job]:
        """Return who is stopped without fair sharing: borrowers, for a job within its team's own share."""
        own_share = all(queue.usage[key] + amount <= queue.nominal.get(key, 0) for key, amount in usage.items())
        targets: list[Job] = []
        for target in candidates:
            other = self.queues[target.team]
            if other is not queue and not (own_share and any(other.borrows(key) for key in needing)):
                continue
            other.usage.subtract(target.usage)
            targets.append(target)
            if self.fits(queue, usage):
                return targets
        return []

    def _next(self, queue: Queue, candidates: dict[str, list[Job]], dropped: set[str]) -> Queue | None:
        """Return the queue with the largest share that still has a candidate."""
        best: Queue | None = None
        for other in self.queues.values():
            if other.name in dropped or not candidates.get(other.name):
                continue
            if other is not queue and not any(other.borrows(key) for key in other.nominal):
                dropped.add(other.name)
            elif best is None or self.share(other) > self.share(best):
                best = other
        return best

    def _first_strategy(self, queue: Queue, candidates: dict[str, list[Job]], within_nominal: bool, fits):
        targets: list[Job] = []
        again: dict[str, list[Job]] = {}
        dropped: set[str] = set()
        while (other := self._next(queue, candidates, dropped)) is not None:
            while candidates[other.name]:
                target = candidates[other.name].pop(0)
                if other is not queue and not within_nominal:
                    after = self.share(other, Counter({key: -amount for key, amount in target.usage.items()}))
                    if self.share(queue) > after:
                        again.setdefault(other.name, []).append(target)
                        continue
                other.usage.subtract(target.usage)
                targets.append(target)
                if fits():
                    return targets, True, again
                break
        return targets, False, again

    def _second_strategy(self, queue: Queue, candidates: dict[str, list[Job]], targets: list[Job], fits) -> bool:
        dropped: set[str] = set()
        while (other := self._next(queue, candidates, dropped)) is not None:
            target = candidates[other.name].pop(0)
            if self.share(queue) < self.share(other):
                other.usage.subtract(target.usage)
                targets.append(target)
                if fits():
                    return True
            dropped.add(other.name)
        return False


def in_order(job: Job) -> tuple:
    """Return by what jobs of a queue are ordered: the more urgent first, then the older."""
    return -job.priority, job.created, job.name


def thousandths(amount: str) -> int:
    """Return a quantity in whole thousandths: sums of them are exact."""
    return round(quantity(amount) * 1000)


def usage_of(job: Job, flavors: list[dict[str, str]]) -> Counter:
    """Return what a job takes of each flavor's resources where its pod sets are on these flavors."""
    usage: Counter = Counter()
    for (count, requests), chosen in zip(job.pod_sets, flavors, strict=False):
        for name, amount in requests.items():
            if name in chosen:
                usage[chosen[name], name] += count * amount
    return usage
