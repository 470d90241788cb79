"""The stack of `manifests/` on a real cluster: what a platform team applies, and what two teams do on it.

`make test-cluster KUBECONFIG=...` runs it; `tests/support/cluster_stack.py` says what the cluster must have.
"""

import collections

import pytest
import requests

from tests.support import cluster_stack as stacks
from tests.support.cluster import kubectl
from tests.support.cluster_stack import RUN_S, SYSTEM, TEAMS, objects
from tests.support.waiting import wait_until

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


def test_a_bucket_takes_two_volumes_of_the_disk(flights):
    flights.shopfloor("data", "prepare", "flight_delays")
    files = kubectl("-n", SYSTEM, "exec", "object-store-0", "--", "ls", "/data").split()
    buckets = collections.Counter(file.rpartition("_")[0] for file in files if file.endswith(".dat"))

    assert buckets["shopfloor-data"] == 2, files
    assert set(buckets.values()) == {2}, buckets


def test_a_member_finds_every_service_and_is_let_in(flights):
    findings = {one["subject"]: one["verdict"] for one in flights.answer("doctor")}

    assert {findings[name] for name in ("configuration", "object store", "mlflow", "ray")} == {"ok"}


def test_a_team_trains_by_a_search_that_kueue_admits_and_its_champion_answers(flights, trained):
    assert trained["state"] == "succeeded", trained
    assert "RayJob flights/" in flights.shopfloor("runs", "logs", trained["run_id"], "tune")
    assert flights.champion() == "1"
    assert requests.post(f"{flights.endpoint()}/predict", json={}, timeout=10).status_code == 401


def test_a_schedule_judges_what_the_champion_does_for_real_requests(flights, trained):
    described = requests.get(f"{flights.endpoint()}/openapi.json", timeout=10, headers=flights.bearer()).json()
    content = described["paths"]["/flight_delays/predict"]["post"]["requestBody"]["content"]["application/json"]
    row = content["example"]
    for _ in range(30):
        answer = requests.post(f"{flights.endpoint()}/predict", json=row, timeout=10, headers=flights.bearer())
        assert answer.status_code == 200, answer.text
    file = ("submit", "pipelines/monitoring.py", "--use-case", "flight_delays")
    schedule = flights.answer(*file, "--cron", "* * * * *")["engine_run"].rpartition("/")[2]

    def its_run():
        runs = flights.answer("runs", "list")["runs"]
        ended = [one for one in runs if one["pipeline"] == "monitoring" and one["state"] not in ("pending", "running")]
        return next(iter(ended), None)

    run = wait_until(its_run, RUN_S, every_s=2)
    kubectl("-n", "flights", "delete", "cronworkflow", schedule)

    assert run["state"] == "succeeded", flights.shopfloor("runs", "logs", run["run_id"])
    shown = flights.answer("runs", "show", run["run_id"])
    assert shown["metrics"]["requests"] >= 30
    assert shown["metrics"]["drift"] > 0.3, "one row again and again is far from the test set"
    assert "gates are undecided" in shown["outcome"]


def test_a_team_sees_nothing_of_another(flights, vision, trained):
    assert vision.answer("runs", "list")["runs"] == []
    assert vision.answer("models", "list")["versions"] == []
    theirs = requests.post(f"{flights.endpoint()}/predict", json={}, timeout=10, headers=vision.bearer())
    assert theirs.status_code == 401
    for place in ("workflows", "secrets", "pods", "rayclusters"):
        assert not vision.may("list", place, "flights")
    assert vision.may("list", "workflows", "vision")
