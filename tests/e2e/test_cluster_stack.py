"""The stack of `manifests/` on a real cluster: what a platform team applies, what two teams do on it, and what befalls them.

`make test-cluster KUBECONFIG=...` runs it; `tests/support/cluster_stack.py` says what the cluster must have. The stack is
taken away at the end, with all that it keeps, unless CLUSTER_KEEP is set.
"""

import json
import subprocess

import pytest
import requests

from tests.support import cluster_stack as stacks
from tests.support.cluster import kubectl
from tests.support.cluster_stack import RUN_S, SUBMIT, SYSTEM, TEAMS, Member, Stack, objects
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.skipif(bool(stacks.why_none()), reason=stacks.why_none()),
    pytest.mark.timeout(stacks.START_S + 2 * RUN_S),
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with stacks.applied(tmp_path_factory.mktemp("stack") / "project") as stack:
        yield stack


@pytest.fixture(scope="module")
def flights(stack):
    return Member(stack, "flights")


@pytest.fixture(scope="module")
def vision(stack):
    return Member(stack, "vision")


@pytest.fixture(scope="module")
def first(flights):
    """Give the first run as its end is told."""
    flights.shopfloor("data", "prepare", "flight_delays")
    return flights.answer(*SUBMIT, "--watch")


def test_every_service_comes_up_and_the_queues_are_ready(stack):
    for team in TEAMS:
        (queue,) = objects("localqueues", team)
        conditions = {one["type"]: one["status"] for one in queue["status"]["conditions"]}
        assert conditions["Active"] == "True", queue["status"]
    (job,) = objects("jobs", SYSTEM) or [None]
    assert job is None or job["status"]["succeeded"] == 1  # it makes way ten minutes after its end
    assert [pod["metadata"]["name"] for pod in objects("pods", SYSTEM) if _restarts(pod) > 3] == []


def _restarts(pod):
    return max(one["restartCount"] for one in pod["status"]["containerStatuses"])


def test_a_team_trains_by_a_search_that_kueue_admits_and_its_champion_answers(flights, first):
    assert first["state"] == "succeeded", first
    assert {step["state"] for step in first["steps"]} == {"succeeded"}
    (job,) = objects("rayjobs", "flights")
    assert job["status"]["jobStatus"] == "SUCCEEDED"
    owners = {
        owner["name"]: workload
        for workload in objects("workloads", "flights")
        for owner in workload["metadata"]["ownerReferences"]
    }
    admitted = owners[job["metadata"]["name"]]["status"]
    assert admitted["admission"]["clusterQueue"] == "flights"
    assert flights.champion() == "1"
    assert "trial 3/3" in flights.shopfloor("runs", "logs", first["run_id"], "tune")


def test_without_its_secret_no_service_answers(flights, first):
    assert requests.post(f"{flights.endpoint()}/predict", json={}, timeout=10).status_code == 401
    mlflow, store, head = (
        "mlflow.shopfloor-system:5000",
        "object-store.shopfloor-system:9000",
        "shopfloor-serve-head-svc:8265",
    )
    for url, status in (
        (f"http://{mlflow}/api/2.0/mlflow/experiments/get?experiment_id=1", "401"),
        (f"http://{store}/shopfloor", "403"),
        (f"http://{head}/api/jobs/", "401"),
    ):
        assert flights.run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url) == status
