"""The stack of `manifests/` on a real cluster: what a platform team applies, and what two teams do on it.

`make test-cluster KUBECONFIG=...` runs it; `tests/support/cluster_stack.py` says what the cluster must have.
"""

import pytest
import requests

from tests.support import cluster_stack as stacks
from tests.support.cluster_stack import RUN_S, SYSTEM, TEAMS, objects

pytestmark = [
    pytest.mark.skipif(bool(stacks.why_none()), reason=stacks.why_none()),
    pytest.mark.timeout(stacks.START_S + 2 * RUN_S),
]


def test_every_service_comes_up_and_the_queues_are_ready(cluster_stack):
    for team in TEAMS:
        (queue,) = objects("localqueues", team)
        conditions = {one["type"]: one["status"] for one in queue["status"]["conditions"]}
        assert conditions["Active"] == "True", queue["status"]
    statuses = [one for pod in objects("pods", SYSTEM) for one in pod["status"]["containerStatuses"]]
    assert {one["name"]: one["restartCount"] for one in statuses if one["name"] != "bootstrap"} == {
        "mlflow": 0,
        "object-store": 0,
        "postgres": 0,
    }


def test_a_member_finds_every_service_and_is_let_in(flights):
    findings = {one["subject"]: one["verdict"] for one in flights.answer("doctor")}

    assert {findings[name] for name in ("configuration", "object store", "mlflow", "ray")} == {"ok"}


def test_a_team_trains_by_a_search_that_kueue_admits_and_its_champion_answers(flights, trained):
    assert trained["state"] == "succeeded", trained
    assert "RayJob flights/" in flights.shopfloor("runs", "logs", trained["run_id"], "tune")
    assert flights.champion() == "1"
    assert requests.post(f"{flights.endpoint()}/predict", json={}, timeout=10).status_code == 401


def test_a_team_sees_nothing_of_another(flights, vision, trained):
    assert vision.answer("runs", "list")["runs"] == []
    assert vision.answer("models", "list")["versions"] == []
    theirs = requests.post(f"{flights.endpoint()}/predict", json={}, timeout=10, headers=vision.bearer())
    assert theirs.status_code == 401
    for place in ("workflows", "secrets", "pods", "rayclusters"):
        assert not vision.may("list", place, "flights")
    assert vision.may("list", "workflows", "vision")
