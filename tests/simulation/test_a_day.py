"""The rendered queues, at a size that no test cluster has: a day of RayJobs of three teams, by Kueue's rules.

Each rule is looked at whenever the queues have come to rest: after every submission and every end of a job.
"""

import heapq
import itertools
from collections import Counter

import pytest

from tests.simulation import day
from tests.simulation.kueue import Cohort, usage_of

SEEDS = (1, 2, 3)


class Day:
    """Runs a trace, and keeps what was seen."""

    def __init__(self, seed, only=None):
        self.cohort = Cohort([one for one in day.queues() if only in {None, one["metadata"]["name"]}])
        self.jobs = [job for job in day.trace(seed) if only in {None, job.team}]
        self.worked_s = Counter()
        self.seed = seed
        self.states = 0
        self.lent_s = Counter()
        self.broken = {"nominal": [], "idle": [], "limits": []}
        self.ends = {}
        self.waited = {}

    def run(self):
        ends, number = [], itertools.count()
        arrivals = list(reversed(self.jobs))
        while arrivals or ends:
            time = min([job.created for job in arrivals[-1:]] + [end[0] for end in ends[:1]])
            self._count(time)
            self.cohort.now = time
            if ends and ends[0][0] == time:
                _, _, job, admitted = heapq.heappop(ends)
                if job.admitted != admitted or not job.flavors:
                    continue  # it was stopped in between
                self.cohort.finish(job)
                self.ends[job.name] = time
            else:
                self.cohort.submit(arrivals.pop())
            for job in self.cohort.settle():
                self.waited.setdefault(job.name, time - job.created)
                heapq.heappush(ends, (time + job.seconds, next(number), job, job.admitted))
            self._look()
        return self

    def _count(self, until):
        for queue in self.cohort.queues.values():
            for key, used in queue.usage.items():
                if key[1] == "nvidia.com/gpu":
                    seconds = until - self.cohort.now
                    self.lent_s[queue.name] += max(0, used - queue.nominal.get(key, 0)) * seconds
                    self.worked_s[queue.name] += used * max(0.0, min(until, day.END) - self.cohort.now)

    def _look(self):
        self.states += 1
        cohort = self.cohort
        for queue in cohort.queues.values():
            for key, used in queue.usage.items():
                if used > queue.nominal.get(key, 0) + queue.limit.get(key, 0) + 1e-6:
                    self.broken["limits"].append((queue.name, key))
            running = Counter()
            for job in queue.jobs.values():
                running.update(job.usage)
            if running - queue.usage or queue.usage - running:
                self.broken["limits"].append((queue.name, "holds what no job has"))
        for key, total in cohort.total.items():
            if cohort.used(key) > total + 1e-6:
                self.broken["limits"].append(key)
        for queue in cohort.queues.values():
            for job in queue.pending.values():
                self._look_at(queue, job)

    def _look_at(self, queue, job):
        for usage in placements(queue, job):
            if all(queue.usage[key] + amount <= queue.nominal.get(key, 0) for key, amount in usage.items()):
                self.broken["nominal"].append((self.cohort.now, job.name))
            if self.cohort.fits(queue, usage):
                self.broken["idle"].append((self.cohort.now, job.name))


def placements(queue, job):
    """Yield what a job would use, for each flavor that its workers could be on; what has no GPU is on CPU nodes."""
    head, workers, submitter = job.pod_sets
    for flavor in queue.flavors:
        chosen = [dict.fromkeys(head[1], "cpu"), dict.fromkeys(workers[1], flavor), dict.fromkeys(submitter[1], "cpu")]
        yield usage_of(job, chosen)


@pytest.fixture(scope="module", params=SEEDS)
def result(request):
    return Day(request.param).run()


def test_the_day_is_one_that_can_go_wrong(result):
    assert len(result.jobs) == 3 * day.JOBS
    assert result.states == 2 * len(result.jobs)
    assert sum(waited > 600 for waited in result.waited.values()) > 30, "nobody waits"
    assert sum(bool(job.preempted) for job in result.jobs) > 15, "nobody is stopped"


def test_no_team_is_kept_from_its_own_share(result):
    assert result.broken["nominal"] == []


def test_idle_quota_is_lent(result):
    assert result.broken["idle"] == []
    assert all(result.lent_s[team] > 0 for team in day.TEAMS), "somebody never borrowed"


def test_what_was_lent_is_taken_back(result):
    reclaimed = {(by, job.team) for job in result.jobs for _, by in job.preempted if by != job.team}

    assert {by for by, _ in reclaimed} == set(day.TEAMS), "somebody never took anything back"


@pytest.mark.parametrize("team", day.TEAMS)
def test_a_team_gets_at_least_as_much_done_as_with_its_own_share_alone(team, result):
    alone = Day(result.seed, only=team).run()

    assert result.worked_s[team] >= 0.98 * alone.worked_s[team]


def test_nothing_is_half_admitted_and_nothing_blocks_the_rest(result):
    assert result.broken["limits"] == []
    assert set(result.ends) == {job.name for job in result.jobs}, "a job never ended"
    assert not any(queue.usage - Counter() for queue in result.cohort.queues.values())
