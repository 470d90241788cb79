"""Why the teams' queues stop jobs for one reason alone: with a second one, jobs stop one another again and again."""

import pytest

from tests.simulation.day import rendered
from tests.simulation.kueue import FIRST, SECOND, Cohort, Job

TWO = {"a": {"gpu-spot": (2, 2)}, "b": {"gpu-spot": (2, 2)}}
FLAVORS = {
    "flights": {"gpu-spot": (3, 4)},
    "vision": {"gpu-spot": (4, 3), "gpu-ondemand": (1, 7)},
    "speech": {"gpu-ondemand": (8, 0)},
}


def job(name, team, gpus, created, priority=100):
    return Job(name, team, [(gpus, {"nvidia.com/gpu": 1000})], float(created), priority)


def settled(cohort, *jobs):
    """Submit jobs one after the other; return what is admitted in the end."""
    for one in jobs:
        cohort.now = one.created
        cohort.submit(one)
        cohort.settle()
    return {name for queue in cohort.queues.values() for name in queue.jobs}


def urgency():
    return job("large", "b", 3, 1, 1000), job("urgent", "a", 4, 2, 1000), job("own", "a", 2, 3)


def flavors():
    first = job("ends", "speech", 1, 0), job("elsewhere", "vision", 8, 1), job("large", "flights", 7, 2)
    return *first, job("waits", "vision", 7, 3), job("own", "vision", 4, 4), job("more", "vision", 1, 5)


def test_urgency_within_a_team_stops_nothing():
    assert settled(Cohort(rendered(TWO)), *urgency()) == {"own"}


def test_urgency_that_stops_jobs_makes_a_circle_with_what_is_taken_back():
    queues = rendered(TWO)
    for queue in queues:
        queue["spec"]["preemption"]["withinClusterQueue"] = "LowerPriority"

    with pytest.raises(AssertionError, match="never come to rest"):
        settled(Cohort(queues, [FIRST, SECOND]), *urgency())


def test_a_team_that_borrows_of_one_flavor_keeps_what_is_its_own_of_another():
    assert settled(Cohort(rendered(FLAVORS)), *flavors()) == {"ends", "elsewhere", "own", "more"}


@pytest.mark.parametrize("strategies", [[FIRST], [FIRST, SECOND]], ids=["one", "both"])
def test_fair_sharing_stops_jobs_in_vain_whenever_another_one_ends(strategies):
    cohort, jobs = Cohort(rendered(FLAVORS), strategies), flavors()
    before = settled(cohort, *jobs)
    stops = {one.name: len(one.preempted) for one in jobs}

    cohort.finish(jobs[0])
    cohort.settle()

    after = {name for queue in cohort.queues.values() for name in queue.jobs}
    assert after == before - {"ends"}
    assert {one.name for one in jobs if len(one.preempted) > stops[one.name]} == {"large", "own", "more"}
