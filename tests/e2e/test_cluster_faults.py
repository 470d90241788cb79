"""What dies, stops and changes on a cluster while a team trains, and what is left of it.

`make test-cluster KUBECONFIG=...` runs it on the stack of `tests/e2e/test_cluster_stack.py`. CLUSTER_RESTART is a
command that starts a part of Kubernetes anew, which gets its name, `kubelet` or `kube-apiserver`; without it those go
on.
"""

import collections
import contextlib
import json
import os
import shlex
import subprocess
import sys
import time

import pytest
import requests

from tests.support import cluster_stack as stacks
from tests.support.cluster import kubectl
from tests.support.cluster_stack import RUN_S, SUBMIT, SYSTEM, objects
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.skipif(bool(stacks.why_none()), reason=stacks.why_none()),
    pytest.mark.timeout(stacks.START_S + 3 * RUN_S),
]

OPERATORS = (
    ("argo", "app=workflow-controller"),
    ("argo", "app=argo-server"),
    ("kuberay-system", "app.kubernetes.io/component=kuberay-operator"),
    ("kueue-system", "control-plane=controller-manager"),
)


ENDED_JOBS = ("Complete", "Failed")


def delete_pods(namespace, *chosen):
    """Delete pods at once, and say which there were."""
    pods = [pod["metadata"]["name"] for pod in objects("pods", namespace, *chosen)]
    assert pods, f"no pod in {namespace} for {chosen}"
    kubectl("-n", namespace, "delete", "pod", *pods, "--grace-period=0", "--force", "--wait=false")
    return pods


def search_of(team):
    """Return the team's RayJob that runs, once there is one."""

    def found():
        for job in objects("rayjobs", team):
            if job.get("status", {}).get("jobStatus") == "RUNNING":
                return job
        return None

    return wait_until(found, RUN_S, every_s=1)


def ended(member, run):
    """Return a run once it has ended, whatever its services do meanwhile."""

    def its_end():
        with contextlib.suppress(AssertionError):  # MLflow is away for a moment
            shown = member.answer("runs", "show", run["run_id"])
            return shown if shown["state"] not in ("pending", "running") else None

    return wait_until(its_end, RUN_S, every_s=3)


def left_behind(team):
    """Return what still holds anything for a run; what has ended and is kept to be looked at does not."""
    left = [job for job in objects("rayjobs", team) if job["status"].get("jobDeploymentStatus") not in ENDED_JOBS]
    left += [one for one in objects("rayclusters", team) if one["metadata"]["name"] != "shopfloor-serve"]
    for workload in objects("workloads", team):
        conditions = {one["type"]: one["status"] for one in workload.get("status", {}).get("conditions", [])}
        of_the_endpoints = workload["metadata"]["name"].startswith("raycluster-shopfloor-serve")
        if conditions.get("Finished") != "True" and not of_the_endpoints:
            left.append(workload)
    for pod in objects("pods", team, "-l", "workflows.argoproj.io/workflow"):
        if pod["status"]["phase"] in ("Pending", "Running"):
            left.append(pod)
    return [one["metadata"]["name"] for one in left]


def test_a_run_that_is_stopped_leaves_nothing_behind(flights, trained):
    champion = flights.champion()
    run = flights.answer(*SUBMIT, "-p", "trials=40")
    search_of("flights")

    flights.shopfloor("runs", "stop", run["run_id"], "--yes")

    assert flights.answer("runs", "show", run["run_id"])["state"] == "killed"
    wait_until(lambda: not left_behind("flights"), 300, every_s=2)
    assert flights.champion() == champion


def test_a_run_that_is_stopped_while_its_search_waits_for_a_node_leaves_nothing_behind(flights, trained):
    run = flights.answer(*SUBMIT, "-p", "trials=39")
    flights.pod_of(run, "tune")
    nodes = [node["metadata"]["name"] for node in objects("nodes", SYSTEM)]
    kubectl("cordon", *nodes)
    try:
        wait_until(lambda: waiting_of_a_search("flights"), RUN_S, every_s=1)
        flights.shopfloor("runs", "stop", run["run_id"], "--yes")
        wait_until(lambda: not left_behind("flights"), 300, every_s=2)
    finally:
        kubectl("uncordon", *nodes)

    assert flights.answer("runs", "show", run["run_id"])["state"] == "killed"


def waiting_of_a_search(team):
    """Return the pods of the Ray clusters of searches that no node has taken."""
    pods = objects("pods", team, "--field-selector=status.phase=Pending", "-l", "ray.io/cluster!=shopfloor-serve")
    return [pod["metadata"]["name"] for pod in pods if "ray.io/cluster" in pod["metadata"]["labels"]]


def test_a_run_ends_well_though_every_pod_and_controller_dies_in_its_middle(flights, trained):
    champion = flights.champion()
    run = flights.answer(*SUBMIT, "-p", "trials=6", "-p", "register_only=true")
    search_of("flights")

    for namespace, label in OPERATORS:
        delete_pods(namespace, "-l", label)
    delete_pods(SYSTEM)
    delete_pods("flights", "-l", "app.kubernetes.io/name=redis")
    if restart := os.environ.get("CLUSTER_RESTART"):
        for part in ("kube-apiserver", "kubelet"):
            subprocess.run([*shlex.split(restart), part], check=True, timeout=300)
    job = search_of("flights")
    delete_pods("flights", "-l", f"ray.io/cluster={job['status']['rayClusterName']}")
    step = flights.pod_of(run, "tune")
    kubectl("-n", "flights", "delete", "pod", step, "--grace-period=0", "--force", "--wait=false")
    delete_pods("flights", "-l", "ray.io/cluster=shopfloor-serve")

    shown = ended(flights, run)
    if shown["state"] != "succeeded":  # a search does not wait for an object store that is away for long
        shown = flights.answer("runs", "resume", run["run_id"], "--watch")
    assert shown["state"] == "succeeded", shown
    wait_until(lambda: flights.champion() == champion, RUN_S, every_s=2)
    wait_until(lambda: not left_behind("flights"), 300, every_s=2)


def test_a_challenger_answers_its_part_of_the_requests_and_none_after_its_end(flights, tmp_path):
    versions = []
    for number in ("one", "two"):  # the same flowers, but another file, and so another version
        place = tmp_path / number
        flights.run(sys.executable, "-m", "pipelines.iris.elsewhere", str(place))
        example = ("--example", str(place / "rows.json"))
        versions.append(flights.answer("models", "import", str(place / "model.skops"), "--name", "iris", *example))
    champion, challenger = (one["version"] for one in versions)
    flights.shopfloor("models", "promote", f"iris/{champion}", "--reason", "begins", "--yes")
    row = json.loads((tmp_path / "one/rows.json").read_text())[0]
    address = flights.endpoint().replace("flight_delays", "iris") + "/predict"

    def answering():
        answer = requests.post(address, json=row, timeout=10, headers=flights.bearer())
        answer.raise_for_status()
        return answer.json()["version"]

    wait_until(lambda: answering() == champion, 120, every_s=1)
    flights.shopfloor("deploy", f"iris@{challenger}", "--canary", "50", "--yes")
    shares = collections.Counter(answering() for _ in range(100))
    flights.shopfloor("rollout", "end", "iris", "--reason", "seen enough", "--yes")
    after = collections.Counter(answering() for _ in range(30))
    flights.shopfloor("models", "promote", f"iris/{challenger}", "--reason", "better", "--yes")
    promoted = answering()
    flights.shopfloor("models", "rollback", "iris", "--reason", "complaints", "--yes")

    assert set(shares) == {champion, challenger}
    assert 25 <= shares[challenger] <= 75
    assert after == {champion: 30}
    assert (promoted, answering()) == (challenger, champion)
    flights.shopfloor("undeploy", "iris", "--yes")
    assert requests.post(address, json=row, timeout=10, headers=flights.bearer()).status_code == 404


def test_a_schedule_of_a_team_makes_runs_until_it_is_deleted_with_the_one_that_goes_on(flights, trained):
    schedule = flights.answer(*SUBMIT, "--cron", "* * * * *")
    name = schedule["engine_run"].rpartition("/")[2]
    known = {one["run_id"] for one in flights.answer("runs", "list")["runs"]}

    def its_run():
        runs = flights.answer("runs", "list")["runs"]
        return next((one for one in runs if one["run_id"] not in known), None)

    run = wait_until(its_run, RUN_S, every_s=2)
    kubectl("-n", "flights", "delete", "cronworkflow", name)
    wait_until(lambda: flights.answer("runs", "show", run["run_id"])["state"] == "killed", 300, every_s=2)

    time_of_deletion = time.time()
    wait_until(lambda: time.time() - time_of_deletion > 61, 90, every_s=1)  # the next full minute makes none
    assert {one["run_id"] for one in flights.answer("runs", "list")["runs"]} == known | {run["run_id"]}
    wait_until(lambda: not left_behind("flights"), 300, every_s=2)


def test_a_run_that_has_cost_enough_stops_and_goes_on_where_it_may_cost_more(flights, trained):
    # A number of trials that no run before had: a search that is done costs nothing.
    trials = 20 + len(flights.answer("runs", "list", "--limit", "1000")["runs"])
    limits = ("-p", f"trials={trials}", "-p", "register_only=true", "--max-cost", "0.5", "--watch")
    stopped = flights.answer("runs", "show", flights.answer(*SUBMIT, *limits, code=1)["run_id"])
    [failed] = [step for step in stopped["steps"] if step["state"] == "failed"]
    assert "may cost 0.5" in failed["error"], stopped
    wait_until(lambda: not left_behind("flights"), 300, every_s=2)

    resumed = flights.answer("runs", "resume", stopped["run_id"], "--max-cost", "1000", "--watch")

    assert resumed["state"] == "succeeded", resumed
    costs = {line["name"]: line["cost"]["amount"] for line in flights.answer("costs", "--by", "run")["lines"]}
    assert costs[stopped["run_id"]] >= 0.5
    assert costs[resumed["run_id"]] > 0
