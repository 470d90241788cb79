"""Runs on a real cluster as a member of a team has them: through Argo's own server, with a token of few rights."""

import contextlib
import json
import re

import pytest

from tests.support import cluster as clusters
from tests.support.member import PIPELINES, member_of_a_team
from tests.support.project import ROOT
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.skipif(bool(clusters.why_none()), reason=clusters.why_none()),
    pytest.mark.timeout(2 * clusters.RUN_S),
]


@pytest.fixture(scope="module")
def member(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    with member_of_a_team(place) as member:
        yield member


@pytest.fixture(scope="module")
def first(member):
    return member.submit("two_images", "--watch")


def test_a_run_ends_well_and_its_steps_can_be_seen_whatever_their_image(member, first):
    assert first["state"] == "succeeded"
    assert {step["name"]: step["state"] for step in member.show(first)["steps"]} == {
        "double": "succeeded",
        "elsewhere": "succeeded",
    }
    # The log of a step in another image goes with its pod, and that with its success.
    assert "twice 3" in member.shopfloor("runs", "logs", first["run_id"])
    listed = member.answer("runs", "list")["runs"]
    assert [(run["engine"], run["state"]) for run in listed if run["run_id"] == first["run_id"]] == [
        ("argo", "succeeded")
    ]


def test_a_second_run_takes_the_results_of_the_first(member, first):
    again = member.submit("two_images", "--watch")

    assert {step["name"]: step["state"] for step in member.show(again)["steps"]}["double"] == "cached"


def test_a_run_that_is_stopped_ends_with_its_exit_task(member):
    run = member.submit("lasting")
    member.pod(run)

    member.shopfloor("runs", "stop", run["run_id"], "--yes")

    assert member.state(run) == "killed"
    assert "farewell FAILED" in member.shopfloor("runs", "logs", run["run_id"], "farewell")


def test_a_step_that_takes_too_much_memory_says_so(member):
    run = member.submit("greedy", "--watch", code=1)

    [step] = member.show(run)["steps"]
    assert step["state"] == "failed"
    assert "OOMKilled" in step["error"]


@pytest.mark.parametrize("how", ["deleted", "evicted"])
def test_a_step_whose_pod_is_taken_away_is_tried_again(member, how):
    def uid():  # a pod that goes before its controller has seen it run gets a successor of the same name
        return clusters.kubectl(*of, "get", "pod", member.pod(run), "-o", "jsonpath={.metadata.uid}")

    of = ("-n", member.cluster.namespace)
    run = member.submit("tried_again")
    pod, first = member.pod(run), uid()

    if how == "deleted":
        clusters.kubectl(*of, "delete", "pod", pod, "--wait=false")
    else:
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        clusters.kubectl(
            "create", "--raw", f"/api/v1/namespaces/{member.cluster.namespace}/pods/{pod}/eviction", "-f", "-",
            text=json.dumps(eviction),
        )  # fmt: skip

    def tried_again():
        with contextlib.suppress(AssertionError):  # the pod went between two questions
            return uid() != first

    wait_until(tried_again, clusters.RUN_S, every_s=1)
    member.shopfloor("runs", "stop", run["run_id"], "--yes")


def test_a_failed_run_is_retried_as_it_was_and_resumed_with_what_was_mended(member, tmp_path):
    file = tmp_path / "door.py"
    file.write_text((ROOT / PIPELINES).read_text())
    run = member.submit("closed", "--watch", file=file, code=1)
    assert "The door is closed." in member.shopfloor("runs", "logs", run["run_id"])
    file.write_text(file.read_text().replace("raise SystemExit", "print"))

    retried = member.answer("runs", "retry", run["run_id"], "--watch", code=1)
    resumed = member.answer("runs", "resume", run["run_id"], "--watch")

    assert (retried["run_id"], retried["state"]) == (run["run_id"], "failed")
    assert (resumed["run_id"] != run["run_id"], resumed["state"]) == (True, "succeeded")
    assert {step["name"]: step["state"] for step in member.show(resumed)["steps"]} == {
        "double": "cached",
        "open-door": "succeeded",
    }


def test_a_run_whose_image_is_nowhere_says_what_it_waits_for(member):
    run = member.submit("from_nowhere")

    def reason():
        return next((step["error"] for step in member.show(run)["steps"] if "nowhere" in step["error"]), "")

    assert "pull" in wait_until(reason, clusters.RUN_S, every_s=1)
    member.shopfloor("runs", "stop", run["run_id"], "--yes")


def test_a_schedule_makes_runs_that_know_their_time(member):
    schedule = member.submit("scheduled", "--cron", "* * * * *")

    def its_run():
        runs = member.answer("runs", "list")["runs"]
        return next((run for run in runs if run["pipeline"] == "scheduled" and run["state"] == "succeeded"), None)

    run = wait_until(its_run, clusters.RUN_S, every_s=2)
    text = member.shopfloor("runs", "logs", run["run_id"], "say")
    assert re.search(r"made for 20\d\d-\d\d-\d\dT\d\d:\d\d:00Z", text)
    name = schedule["engine_run"].rpartition("/")[2]
    clusters.kubectl("-n", member.cluster.namespace, "delete", "cronworkflow", name)
