"""What runs on the cluster cost: from what their steps recorded in MLflow to the run, the version and the sums."""

import datetime as dt
import json

import pytest
from shopfloor.errors import NotFoundError
from shopfloor.flows import costs
from shopfloor.records import Usage
from shopfloor.runs import conclude
from shopfloor.runs import index as run_records
from shopfloor.runs import recorder as tracking
from shopfloor.runs.mlflow import JOB_USAGE, POD_USAGE, Mlflow
from shopfloor.settings import ClusterSettings
from shopfloor.training import admission

PRICES = {"cpu": {"cpu": 0.05}, "gpu-spot": {"gpu": 1.0}}
POD = [Usage(flavor="cpu", seconds=7200, resources={"cpu": 2.0}, waited_s=3)]
SEARCH = [
    Usage(flavor="cpu", seconds=1800, resources={"cpu": 1.0}, waited_s=60),
    Usage(flavor="gpu-spot", seconds=1800, resources={"cpu": 8.0, "nvidia.com/gpu": 4.0}, waited_s=60),
]
SPENT = 2 * 2 * 0.05 + 0.5 * 0.05 + 4 * 0.5


@pytest.fixture
def settings(servers):
    return servers.model_copy(update={"cluster": ClusterSettings(prices=PRICES, queue="default", namespace="vision")})


@pytest.fixture
def client(settings):
    return tracking.connect(settings)


def text(usages):
    return json.dumps([usage.model_dump(mode="json") for usage in usages])


def ended_run(settings, client, use_case, steps, **tags):
    """Make a run whose steps recorded what they had, and end it; return its id."""
    own = {run_records.ENGINE: "argo", run_records.TEAM: "vision", **tags}
    run = client.get_run(run_records.create_run(client, use_case, "training", {}, own).info.run_id)
    for name, usages in steps.items():
        step = tracking.create_step(client, run.info.experiment_id, run.info.run_id, name)
        for tag, used in usages.items():
            client.set_tag(step, tag, text(used))
        tracking.finish_step(client, run.info.run_id, step, name, "succeeded", 1.0, {}, None, {})
    conclude.close(settings, client, run, "succeeded", "")
    return run.info.run_id


def test_a_run_that_ended_says_what_it_cost_and_which_steps_nobody_counted(settings, client):
    steps = {"tune": {POD_USAGE: POD, JOB_USAGE: SEARCH}, "prepare": {}}

    run_id = ended_run(settings, client, "costs_a", steps)

    run = client.get_run(run_id)
    assert run.data.metrics["cost"] == pytest.approx(SPENT)
    assert run.data.metrics["gpu_seconds"] == 7200
    assert json.loads(run.data.tags[run_records.COST])["uncounted"] == ["prepare"]
    assert run.data.tags[run_records.UNCOUNTED] == "prepare"


def test_a_run_of_this_machine_costs_nothing_and_says_nothing(settings, client):
    run_id = ended_run(settings, client, "costs_b", {"tune": {}}, **{run_records.ENGINE: "local"})

    assert "cost" not in client.get_run(run_id).data.metrics


def test_a_version_costs_what_the_steps_cost_whose_results_it_took(settings, client):
    first = ended_run(settings, client, "costs_c", {"tune": {JOB_USAGE: SEARCH}})
    second = ended_run(settings, client, "costs_c", {"tune": {}, "register": {POD_USAGE: POD}})
    (cached,) = (one for one in run_records.children_of(client, client.get_run(second)) if one.info.run_name == "tune")
    client.set_tag(cached.info.run_id, run_records.RESULT_OF, first)

    cost = run_records.whole_cost_of(settings, client, client.get_run(second))

    assert cost.amount == pytest.approx(SPENT)
    assert run_records.cost_of(settings, run_records.children_of(client, client.get_run(second))).amount < 1


def test_costs_are_summed_by_team_use_case_and_version(settings, client):
    ended_run(settings, client, "costs_d", {"tune": {JOB_USAGE: SEARCH}}, **{run_records.VERSION: "costs_d/1"})
    ended_run(settings, client, "costs_d", {"tune": {JOB_USAGE: SEARCH}}, **{run_records.VERSION: "costs_d/1"})
    ended_run(settings, client, "costs_d", {"tune": {JOB_USAGE: SEARCH}}, **{run_records.TEAM: "flights"})

    by = {what: costs.summary(settings, what, "costs_d", None) for what in ("team", "use-case", "version", "run")}

    one = 0.5 * 0.05 + 2
    assert {line.name: (line.runs, line.cost.amount) for line in by["team"].lines} == {
        "vision": (2, pytest.approx(2 * one)),
        "flights": (1, pytest.approx(one)),
    }
    assert [line.name for line in by["version"].lines] == ["costs_d/1", "no version"]
    assert [(line.name, line.runs) for line in by["use-case"].lines] == [("costs_d", 3)]
    assert len(by["run"].lines) == 3
    assert by["run"].total.amount == pytest.approx(3 * one)
    assert costs.summary(settings, "team", "costs_d", dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)).lines == []


def test_a_use_case_that_never_ran_is_said_to_have_no_runs(settings, client):
    with pytest.raises(NotFoundError, match="Use case 'costs_nobody' has no runs"):
        costs.summary(settings, "team", "costs_nobody", None)


def test_what_has_no_price_is_named(settings, client):
    ended_run(settings, client, "costs_e", {"tune": {JOB_USAGE: SEARCH}})
    cluster = settings.cluster.model_copy(update={"prices": {"cpu": {"cpu": 0.05}}})

    total = costs.summary(settings.model_copy(update={"cluster": cluster}), "team", "costs_e", None).total

    assert total.unpriced == ["gpu-spot"]


def test_what_steps_had_is_found_again_for_the_next_run(settings, client):
    ended_run(settings, client, "costs_f", {"tune": {POD_USAGE: POD, JOB_USAGE: SEARCH}})

    found = costs.recorded(Mlflow(settings.tracking_uri, 10), "costs_f")

    assert {(one.step, one.kind, one.waited_s, one.has_gpus) for one in found} == {
        ("tune", "pod", 3, False),
        ("tune", "RayJob", 60, True),
    }
    assert costs.recorded(Mlflow(settings.tracking_uri, 10), "nobody") == []


def test_a_ledger_writes_what_a_job_had_and_stops_a_run_that_has_cost_enough(settings, client):
    run = run_records.create_run(client, "costs_g", "training", {}, {run_records.ENGINE: "argo"})
    step = tracking.create_step(client, run.info.experiment_id, run.info.run_id, "tune")
    condition = {"status": "True", "reason": "Admitted", "lastTransitionTime": "2026-11-26T10:00:00Z"}
    ended = {"type": "Finished", "status": "True", "lastTransitionTime": "2026-11-26T12:00:00Z"}
    workload = {
        "metadata": {"uid": "1", "creationTimestamp": "2026-11-26T09:59:00Z"},
        "status": {
            "conditions": [{"type": "Admitted", **condition}, ended],
            "admission": {
                "podSetAssignments": [
                    {"name": "w", "flavors": {"nvidia.com/gpu": "gpu-spot"}, "resourceUsage": {"nvidia.com/gpu": "2"}}
                ]
            },
        },
    }
    own = settings.model_copy(update={"run_id": run.info.run_id, "step_run_id": step})

    admission.Ledger(own.model_copy(update={"max_cost": 4.5}), JOB_USAGE, lambda: [workload]).write()

    usage = json.loads(client.get_run(step).data.tags[JOB_USAGE])
    assert usage == [{"flavor": "gpu-spot", "seconds": 7200, "resources": {"nvidia.com/gpu": 2}, "waited_s": 60}]
    assert admission.spent(own).amount == 4
    with pytest.raises(admission.BudgetSpentError, match=r"has cost 4\.00 USD, and may cost 3\.5"):
        admission.Ledger(own.model_copy(update={"max_cost": 3.5}), JOB_USAGE, lambda: [workload]).write()


def test_a_ledger_that_cannot_write_fails_nothing(settings):
    def fails():
        raise OSError("the API server restarts")

    admission.Ledger(settings.model_copy(update={"max_cost": 1.0}), POD_USAGE, fails).write()
