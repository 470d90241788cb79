"""What a run asks of a queue, whether it could ever get it, why it waits: by Kueue's rules, on its objects."""

import datetime as dt
import json

import pytest
from shopfloor.engines.argo import asks, quota, waiting
from shopfloor.engines.argo.asks import Ask, PodSet
from shopfloor.records import Cost, Usage
from shopfloor.training.admission import Meter, usages_of

GI = 1024**3
LABELS = {"cpu": {"pool": "cpu"}, "gpu-spot": {"pool": "gpu-spot"}, "gpu-ondemand": {"pool": "gpu-ondemand"}}


def shares(cpu, memory, gpu):
    names = ("cpu", "memory", "nvidia.com/gpu")
    return [
        {"name": name, "nominalQuota": str(own), "borrowingLimit": str(more)}
        for name, (own, more) in zip(names, (cpu, memory, gpu), strict=True)
    ]


def queue(lent=None, cohort="shopfloor", **status):
    flavors = [
        {"name": "cpu", "resources": shares(("64", "64"), ("256Gi", "256Gi"), ("0", "0"))},
        {"name": "gpu-ondemand", "resources": shares(("48", "48"), ("192Gi", "192Gi"), ("4", "4"))},
        {"name": "gpu-spot", "resources": shares(("96", "288"), ("384Gi", "1152Gi"), ("8", "24"))},
    ]
    covered = ["cpu", "memory", "nvidia.com/gpu"]
    annotations = {} if lent is None else {quota.LENT: json.dumps(lent)}
    spec = {"resourceGroups": [{"coveredResources": covered, "flavors": flavors}]}
    spec |= {"cohortName": cohort} if cohort else {}
    return {"metadata": {"name": "vision", "annotations": annotations}, "spec": spec, "status": status}


PLENTY = {name: {"cpu": "500", "memory": "2000Gi", "nvidia.com/gpu": "50"} for name in LABELS}


def read(**options):
    flavors = {name: {"spec": {"nodeLabels": labels}} for name, labels in LABELS.items()}
    return quota.quota_of(queue(**{"lent": PLENTY, **options}), None, flavors)


def search(workers, gpus=1, **spec):
    head = PodSet("head", 1, {"cpu": 1, "memory": 4 * GI})
    return Ask("tune", "RayJob", (head, PodSet("workers", workers, {"cpu": 4, "nvidia.com/gpu": gpus}, spec)))


def test_a_job_that_fits_names_the_flavors_in_their_order():
    verdict = quota.judge(search(8), read())

    assert not verdict.refusal
    assert verdict.flavors == (("cpu", "gpu-ondemand", "gpu-spot"), ("gpu-ondemand", "gpu-spot"))


@pytest.mark.parametrize(
    ("workers", "gpus", "why", "nearest"),
    [
        (
            40,
            1,
            "asks for 40 nvidia.com/gpu, and the queue vision can hold 32 of gpu-spot (8 its own) at most",
            "32 pods",
        ),
        (3, 12, "asks for 36 nvidia.com/gpu", "2 pods of 4 cpu, 12 nvidia.com/gpu on gpu-spot could be admitted"),
        (1, 64, "asks for 64 nvidia.com/gpu", "nearest is gpu-spot, with 32 nvidia.com/gpu"),
    ],
)
def test_a_job_that_nothing_could_ever_hold_is_told_the_nearest_that_could(workers, gpus, why, nearest):
    verdict = quota.judge(search(workers, gpus), read())

    assert why in verdict.refusal
    assert nearest in verdict.nearest


def test_what_others_do_not_have_cannot_be_borrowed_from_them():
    lent = {**PLENTY, "gpu-spot": {"cpu": "500", "memory": "2000Gi", "nvidia.com/gpu": "2"}}

    assert not quota.judge(search(10), read(lent=lent)).refusal
    assert "can hold 10 of gpu-spot" in quota.judge(search(11), read(lent=lent)).refusal


def test_without_the_sum_of_the_others_the_borrowing_limit_counts_alone_and_is_told():
    own = quota.quota_of(queue(), None, {})

    assert not own.lent_known
    assert not quota.judge(search(32), own).refusal
    assert quota.judge(search(33), own).refusal


def test_a_queue_without_a_cohort_borrows_nothing():
    assert "can hold 8 of gpu-spot" in quota.judge(search(9), read(cohort="", lent=None)).refusal


def test_what_a_cohort_has_itself_is_there_for_all():
    lent = {name: {"cpu": "500", "memory": "2000Gi", "nvidia.com/gpu": "0"} for name in LABELS}
    cohort = {
        "spec": {
            "resourceGroups": [
                {"flavors": [{"name": "gpu-spot", "resources": shares(("0", "0"), ("0", "0"), ("6", "0"))}]}
            ]
        }
    }

    own = quota.quota_of(queue(lent=lent), cohort, {})

    assert not quota.judge(search(14), own).refusal
    assert quota.judge(search(15), own).refusal


def test_pod_sets_of_a_job_count_together():
    both = Ask("x", "RayJob", (PodSet("a", 20, {"nvidia.com/gpu": 1}), PodSet("b", 20, {"nvidia.com/gpu": 1})))
    spot = {"nodeSelector": {"pool": "gpu-spot"}}
    fixed = Ask("x", "RayJob", tuple(PodSet(one.name, 20, one.requests, spot) for one in both.pod_sets))

    assert quota.judge(both, read()).refusal  # 20 on spot, and on demand there are 8
    assert quota.judge(fixed, read()).refusal
    assert not quota.judge(
        Ask("x", "RayJob", (fixed.pod_sets[0], PodSet("b", 12, {"nvidia.com/gpu": 1}, spot))), read()
    ).refusal


@pytest.mark.parametrize(
    ("spec", "flavors"),
    [
        ({"nodeSelector": {"pool": "gpu-ondemand"}}, ("gpu-ondemand",)),
        ({"nodeSelector": {"zone": "a"}}, ("gpu-ondemand", "gpu-spot")),
        (
            {
                "affinity": {
                    "nodeAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": {
                            "nodeSelectorTerms": [
                                {"matchExpressions": [{"key": "pool", "operator": "NotIn", "values": ["gpu-spot"]}]}
                            ]
                        }
                    }
                }
            },
            ("gpu-ondemand",),
        ),
    ],
)
def test_nodes_that_a_pod_does_not_want_are_no_candidates(spec, flavors):
    assert quota.judge(search(1, **spec), read()).flavors[1] == flavors


def test_a_taint_that_nobody_tolerates_keeps_a_flavor_away():
    taint = {"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}
    flavors = {name: {"spec": {"nodeTaints": [taint]}} for name in LABELS}
    closed = quota.quota_of(queue(lent=PLENTY), None, flavors)
    toleration = {"key": "nvidia.com/gpu", "operator": "Exists"}

    assert "may run on the nodes of no flavor" in quota.judge(search(1), closed).refusal
    gpu = PodSet("main", 1, {"nvidia.com/gpu": 1}, {"tolerations": [toleration]})
    assert not quota.judge(Ask("x", "pod", (gpu,)), closed).refusal


def test_a_resource_that_the_queue_has_not_is_named():
    verdict = quota.judge(Ask("x", "pod", (PodSet("main", 1, {"nvidia.com/mig-1g.10gb": 1}),)), read())

    assert "nvidia.com/mig-1g.10gb, of which the queue vision has nothing" in verdict.refusal


def test_what_the_team_uses_leaves_less_of_its_own_share():
    used = [{"name": "gpu-spot", "resources": [{"name": "nvidia.com/gpu", "total": "5", "borrowed": "0"}]}]

    own = read(flavorsReservation=used)

    assert quota.free_now(own, search(4))
    assert not quota.free_now(own, search(5))  # 3 of spot, 4 on demand


def test_a_queue_that_is_stopped_says_so():
    stopped = read(conditions=[{"type": "Active", "status": "False", "message": "is stopped"}])

    assert stopped.stopped == "is stopped"


def workflow(**template):
    pod = {
        "name": "train",
        "container": {"resources": {"requests": {"cpu": "2"}, "limits": {"memory": "1Gi"}}},
        **template,
    }
    loop = {"name": "each", "dag": {"tasks": [{"name": "iteration", "template": "train", "withParam": "[]"}]}}
    tasks = [{"name": "fit", "template": "train"}, {"name": "all", "template": "each"}]
    labels = {asks.QUEUE_LABEL: "default"}
    templates = [pod, loop, {"name": "root", "dag": {"tasks": tasks}}]
    return {"spec": {"entrypoint": "root", "podMetadata": {"labels": labels}, "templates": templates}}


def test_steps_ask_for_what_their_pods_request_with_the_namespaces_defaults():
    fit, each = asks.asks_of(workflow(), {"cpu": "100m", "memory": "2Gi"})

    assert fit == Ask("fit", "pod", (PodSet("main", 1, {"cpu": 2.0, "memory": float(GI)}, {}),))
    assert (each.step, each.repeated) == ("all", True)


def test_a_container_that_runs_before_counts_where_it_is_larger():
    first = [{"resources": {"requests": {"cpu": "3", "memory": "10Mi"}}}]

    fit = asks.asks_of(workflow(initContainers=first), {})[0]

    assert fit.pod_sets[0].requests == {"cpu": 3.0, "memory": float(GI)}


def test_what_the_run_gives_is_open():
    patch = json.dumps({"containers": [{"name": "main", "resources": {"limits": {"nvidia.com/gpu": "{{x}}"}}}]})

    assert asks.asks_of(workflow(podSpecPatch=patch), {})[0].open == ("nvidia.com/gpu",)


def test_pods_that_go_past_kueue_ask_for_nothing():
    past = workflow()
    past["spec"]["podMetadata"]["labels"] = {}

    assert asks.asks_of(past, {}) == []


def workload(name="w", priority=0, created="2026-11-26T10:00:00Z", admitted=None, finished=None, gpus=0, **more):
    """Return a Workload of a RayJob as Kueue 0.19 writes it."""
    conditions = list(more.pop("conditions", []))
    status = {}
    if admitted:
        conditions += [
            {"type": kind, "status": "True", "reason": kind, "message": "", "lastTransitionTime": admitted}
            for kind in ("QuotaReserved", "Admitted")
        ]
        assignments = [
            {"name": "head", "flavors": {"cpu": "cpu"}, "resourceUsage": {"cpu": "1"}, "count": 1},
            {
                "name": "workers",
                "flavors": {"cpu": "gpu-spot", "nvidia.com/gpu": "gpu-spot"},
                "resourceUsage": {"cpu": "8", "nvidia.com/gpu": str(gpus)},
                "count": 2,
            },
        ]
        status["admission"] = {"clusterQueue": "vision", "podSetAssignments": assignments if gpus else assignments[:1]}
    if finished:
        conditions.append({"type": "Finished", "status": "True", "reason": "Succeeded", "lastTransitionTime": finished})
    owner = {"kind": "RayJob", "name": name, "controller": True}
    metadata = {"name": f"rayjob-{name}", "uid": name, "creationTimestamp": created, "ownerReferences": [owner]}
    return {
        "metadata": metadata,
        "spec": {"priority": priority, **more},
        "status": {"conditions": conditions, **status},
    }


def pending(reason, message, **more):
    condition = {"type": "QuotaReserved", "status": "False", "reason": reason, "message": message}
    return workload(conditions=[condition | {"lastTransitionTime": "2026-11-26T10:00:01Z"}], **more)


def test_a_job_that_waits_for_quota_says_how_much_must_become_free():
    message = (
        "couldn't assign flavors to pod set workers: insufficient unused quota for nvidia.com/gpu in flavor gpu-spot,"
        " 3 more needed, insufficient unused quota for nvidia.com/gpu in flavor gpu-ondemand, 8 more needed"
    )

    told = waiting.waits(pending("WaitingForQuota", message), "r1", 2)

    assert told.job == "RayJob w"
    assert (told.reason, told.ahead, told.run) == ("WaitingForQuota", 2, "r1")
    assert told.missing == {"gpu-spot nvidia.com/gpu": "3", "gpu-ondemand nvidia.com/gpu": "8"}
    assert told.why.startswith("the quota that it needs is in use: 3 gpu-spot nvidia.com/gpu")
    assert told.since == dt.datetime(2026, 11, 26, 10, tzinfo=dt.UTC)


def test_a_job_that_was_stopped_for_another_team_says_so_and_waits_since_then():
    conditions = [
        {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": ""},
        {
            "type": "Evicted",
            "status": "True",
            "reason": "Preempted",
            "message": "Preempted to accommodate a workload",
            "lastTransitionTime": "2026-11-26T11:30:00Z",
        },
        {"type": "Preempted", "status": "True", "reason": "InCohortReclamation", "message": ""},
    ]

    told = waiting.waits(workload(conditions=conditions), None, None)

    assert "another team, which took back what is its own" in told.why
    assert told.since == dt.datetime(2026, 11, 26, 11, 30, tzinfo=dt.UTC)


def test_what_can_never_be_admitted_keeps_kueues_own_words():
    told = waiting.waits(pending("ExceedsMaxQuota", "insufficient quota for cpu in flavor cpu, 4 > 2"), None, 0)

    assert told.why == (
        "it asks for more than the queue can ever have (insufficient quota for cpu in flavor cpu, 4 > 2)"
    )


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("insufficient unused quota for cpu in flavor cpu, 2 more needed", "WaitingForQuota"),
        (
            "insufficient quota for cpu in flavor cpu, (0) + current podset request (9) > maximum capacity (8)",
            "ExceedsMaxQuota",
        ),
        ("flavor gpu doesn't match node affinity", "NoMatchingFlavor"),
        ("something else", "Pending"),
    ],
)
def test_a_reason_that_kueue_leaves_general_is_read_from_its_message(message, reason):
    told = waiting.waits(pending("Pending", f"couldn't assign flavors to pod set main: {message}"), None, 0)

    assert told.reason == reason


def test_jobs_are_taken_by_urgency_and_then_by_age():
    old, urgent, new = (
        pending("WaitingForQuota", "", name="old"),
        pending("WaitingForQuota", "", name="urgent", priority=10, created="2026-11-26T10:30:00Z"),
        pending("WaitingForQuota", "", name="new", created="2026-11-26T10:20:00Z"),
    )
    running = workload("running", admitted="2026-11-26T10:00:00Z")

    names = [one["metadata"]["uid"] for one in waiting.ordered([new, running, old, urgent])]

    assert names == ["urgent", "old", "new"]
    assert waiting.ahead_of([new, running, old, urgent], 0) == 3
    assert waiting.ahead_of([new, running, old, urgent], 5) == 1


def test_the_quota_is_held_by_runs():
    first = workload("a", admitted="2026-11-26T10:05:00Z", gpus=2)
    second = workload("b", admitted="2026-11-26T10:01:00Z", gpus=1)
    other = workload("c", admitted="2026-11-26T10:09:00Z")
    ended = workload("d", admitted="2026-11-26T09:00:00Z", finished="2026-11-26T09:10:00Z", gpus=4)

    held = waiting.held_by([first, second, other, ended], {"a": "r1", "b": "r1"})

    assert [one.run for one in held] == ["r1", "RayJob c"]
    assert held[0].resources == {"cpu": {"cpu": 2.0}, "gpu-spot": {"cpu": 16.0, "nvidia.com/gpu": 3.0}}
    assert held[0].since == dt.datetime(2026, 11, 26, 10, 1, tzinfo=dt.UTC)


def test_waits_are_told_by_the_nearest_rank_and_not_at_all_without_history():
    jobs = [workload(admitted=f"2026-11-26T10:{minute:02}:00Z", gpus=1) for minute in range(1, 11)]

    assert waiting.estimate(waiting.waits_of(jobs, gpus=True)) == waiting.Estimate(p50_s=300, p90_s=540, samples=10)
    assert waiting.estimate(waiting.waits_of(jobs, gpus=False)) is None


def test_a_job_has_what_it_was_admitted_to_until_its_end():
    now = dt.datetime(2026, 11, 26, 12, tzinfo=dt.UTC)

    head, workers = usages_of(workload(admitted="2026-11-26T10:10:00Z", finished="2026-11-26T10:40:00Z", gpus=2), now)

    assert head == Usage(flavor="cpu", seconds=1800, resources={"cpu": 1}, waited_s=600)
    assert (workers.flavor, workers.gpus, workers.seconds) == ("gpu-spot", 2, 1800)
    assert usages_of(workload(), now) == []
    assert usages_of(workload(admitted="2026-11-26T11:59:00Z"), now)[0].seconds == 60


def test_a_meter_adds_up_what_a_job_had_before_and_after_it_was_stopped():
    states = iter(
        [
            ("11:00", workload(admitted="2026-11-26T10:30:00Z", gpus=1)),
            ("11:10", workload()),
            ("11:30", workload(admitted="2026-11-26T11:20:00Z", gpus=1)),
        ]
    )
    clock = []

    def look():
        time, one = next(states)
        clock.append(dt.datetime.fromisoformat(f"2026-11-26T{time}:00Z"))
        return [one]

    meter = Meter(look, lambda: clock[-1])
    for _ in range(3):
        usages = meter.look()

    assert sum(usage.gpus * usage.seconds for usage in usages) == 1800 + 600
    assert {usage.waited_s for usage in usages} == {1800}


def test_a_cost_is_the_seconds_times_the_price_and_says_what_has_none():
    usages = [
        Usage(flavor="gpu-spot", seconds=1800, resources={"cpu": 8, "nvidia.com/gpu": 2}),
        Usage(flavor="cpu", seconds=3600, resources={"cpu": 4}),
        Usage(flavor="h100", seconds=60, resources={"nvidia.com/gpu": 1}),
    ]

    cost = Cost.of(usages, {"gpu-spot": {"gpu": 1.1}, "cpu": {"cpu": 0.05}}, "USD", ["prepare"])

    assert cost.amount == pytest.approx(1.1 + 0.2)
    assert cost.gpu_seconds == {"gpu-spot": 3600, "h100": 60}
    assert cost.cpu_seconds == {"gpu-spot": 14400, "cpu": 14400}
    assert (cost.unpriced, cost.uncounted) == (["h100"], ["prepare"])
