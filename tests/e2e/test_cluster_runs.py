"""Runs on a real cluster as a member of a team has them: through Argo's own server, with a token of few rights."""

import json
import os
import re
import ssl
import subprocess
import sys

import pytest

from tests.support import cluster as clusters
from tests.support.project import ROOT, bare_environment
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.skipif(bool(clusters.why_none()), reason=clusters.why_none()),
    pytest.mark.timeout(2 * clusters.RUN_S),
]
PIPELINES = "tests/e2e/cluster_pipelines.py"
PROFILE = """
default_engine = "argo"
tracking_uri = "{tracking_uri}"
artifact_root = "{artifact_root}"
s3_endpoint_url = "{s3_endpoint_url}"
[cluster]
namespace = "{namespace}"
image = "{image}"
environment_secret = "object-store"
argo_url = "https://localhost:{argo_port}"
"""


class Member:
    """A member of the team at a machine of their own."""

    def __init__(self, place, cluster, argo_port):
        self.cluster = cluster
        profile = place / "team.toml"
        settings = {name: getattr(cluster.settings, name) for name in ("tracking_uri", "artifact_root")}
        settings |= {"s3_endpoint_url": cluster.settings.s3_endpoint_url, "namespace": cluster.namespace}
        profile.write_text(PROFILE.format(**settings, image=clusters.IMAGE, argo_port=argo_port))
        certificate = place / "argo.pem"
        certificate.write_text(ssl.get_server_certificate(("localhost", argo_port)))
        self.environment = bare_environment("MLFLOW_", "AWS_", "ARGO_") | {
            "SHOPFLOOR_PROFILE": str(profile),
            "SHOPFLOOR_STATE_DIR": str(place / "state"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")]),
            "ARGO_TOKEN": cluster.token("member"),
            "REQUESTS_CA_BUNDLE": str(certificate),
            "AWS_ACCESS_KEY_ID": cluster.store_key["key"],
            "AWS_SECRET_ACCESS_KEY": cluster.store_key["secret"],
        }

    def shopfloor(self, *arguments, code=0):
        """Run the command and return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "shopfloor", *arguments],
            cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=clusters.RUN_S, check=False,
        )  # fmt: skip
        problem = f"{arguments}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        assert done.returncode == code, problem
        assert done.stdout or "--json" not in arguments, problem
        return done.stdout

    def answer(self, *arguments, code=0):
        """Run the command and return the document that it printed."""
        return json.loads(self.shopfloor(*arguments, "--json", code=code))

    def submit(self, pipeline, *arguments, file=PIPELINES, code=0):
        """Submit one of our pipelines and return what the command says of it."""
        return self.answer("submit", str(file), "--function", pipeline, *arguments, code=code)

    def show(self, run):
        """Return what is known of a run."""
        return self.answer("runs", "show", run["run_id"])

    def state(self, run):
        """Return how a run stands."""
        return self.show(run)["state"]

    def pod(self, run):
        """Return the running pod of a run's step, once it has printed something."""
        name = run["engine_run"].rpartition("/")[2]
        chosen = ("-n", self.cluster.namespace, "-l", f"workflows.argoproj.io/workflow={name}")

        def printing():
            pods = clusters.kubectl("get", "pods", *chosen, "--field-selector", "status.phase=Running", "-o", "name")
            running = pods.split()
            if running and clusters.kubectl("-n", self.cluster.namespace, "logs", running[0], "-c", "main"):
                return running[0].rpartition("/")[2]
            return None

        return wait_until(printing, clusters.RUN_S, every_s=1)


@pytest.fixture(scope="module")
def member(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    with clusters.team(place) as cluster, clusters.tracking(place, cluster), clusters.argo_server() as port:
        yield Member(place, cluster, port)


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
    run = member.submit("tried_again")
    pod = member.pod(run)

    if how == "deleted":
        clusters.kubectl("-n", member.cluster.namespace, "delete", "pod", pod, "--wait=false")
    else:
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        clusters.kubectl(
            "create", "--raw", f"/api/v1/namespaces/{member.cluster.namespace}/pods/{pod}/eviction", "-f", "-",
            text=json.dumps(eviction),
        )  # fmt: skip

    wait_until(lambda: member.pod(run) != pod, clusters.RUN_S, every_s=1)
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
