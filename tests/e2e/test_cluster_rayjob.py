"""A step's RayJob on the real KubeRay: with a token of its own, its logs kept, killed in the middle and tried again."""

import json

import pytest
import requests

from tests.support import cluster as clusters
from tests.support.member import member_of_a_team
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.skipif(bool(clusters.why_none("rayjobs.ray.io")), reason=clusters.why_none("rayjobs.ray.io")),
    pytest.mark.timeout(3 * clusters.RUN_S),
]


@pytest.fixture(scope="module")
def member(tmp_path_factory):
    with member_of_a_team(tmp_path_factory.mktemp("rayjobs")) as member:
        yield member


def jobs(member):
    """Return the RayJobs that there are, by name."""
    found = json.loads(clusters.kubectl("-n", member.cluster.namespace, "get", "rayjobs", "-o", "json"))
    return {job["metadata"]["name"]: job for job in found["items"]}


def kept(member, run):
    """Return the logs that are kept with a run's step, by the kind of pod."""
    url = member.cluster.settings.tracking_uri
    [step] = [one for one in member.show(run)["steps"] if one["name"] == "on-ray"]
    place = {"run_id": step["run_id"], "path": "rayjob"}
    listed = requests.get(f"{url}/api/2.0/mlflow/artifacts/list", params=place, timeout=60).json()
    names = [file["path"] for file in listed.get("files", [])]
    return {
        name.split("/")[1].split("-")[0]: requests.get(
            f"{url}/get-artifact", params=place | {"path": name}, timeout=60
        ).text
        for name in names
    }


@pytest.mark.parametrize(("pipeline", "state"), [("ray_job", "succeeded"), ("ray_job_fails", "failed")])
def test_the_logs_of_a_job_are_kept_however_it_ends_and_it_goes(member, pipeline, state):
    run = member.submit(pipeline, "--watch", code=0 if state == "succeeded" else 1)

    assert member.state(run) == state
    logs = kept(member, run)
    assert set(logs) == {"driver", "head", "worker"}
    assert "heard by the driver" in logs["driver"]
    assert "said by a worker" in logs["worker"] + logs["head"]
    assert "heard by the driver" in member.shopfloor("runs", "logs", run["run_id"], "on-ray")
    assert jobs(member) == {}


def test_a_job_whose_step_is_killed_goes_with_it_and_the_next_attempt_has_its_own(member):
    run = member.submit("ray_job_tried_again")
    pod = member.pod(run)
    first = wait_until(
        lambda: next(
            (job for job in jobs(member).values() if job.get("status", {}).get("jobStatus") == "RUNNING"), None
        ),
        clusters.RUN_S,
        every_s=1,
    )
    [owner] = first["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("Pod", pod)

    # Without a moment to delete the job itself.
    clusters.kubectl("-n", member.cluster.namespace, "delete", "pod", pod, "--grace-period=0", "--force")

    wait_until(lambda: first["metadata"]["name"] not in jobs(member), clusters.RUN_S, every_s=1)
    wait_until(lambda: member.state(run) == "succeeded", clusters.RUN_S, every_s=2)
    logs = kept(member, run)
    assert "attempt 2" in logs["driver"]
    assert [step["state"] for step in member.show(run)["steps"]] == ["succeeded"]
    assert jobs(member) == {}


def test_a_job_whose_step_dies_without_a_word_ends_while_the_pod_stays_to_be_looked_at(member):
    run = member.submit("ray_job_without_end")
    pod = member.pod(run)
    namespace = member.cluster.namespace

    def status(name=None):
        return next((job.get("status", {}) for key, job in jobs(member).items() if name in (None, key)), {})

    wait_until(lambda: status().get("jobStatus") == "RUNNING", clusters.RUN_S, every_s=1)
    [name] = jobs(member)
    # As the kernel does with what takes too much memory; the image has no pgrep.
    find = "for one in /proc/[0-9]*; do grep -q 'executor_[m]ain' $one/cmdline && kill -9 ${one#/proc/}; done; true"
    clusters.kubectl("-n", namespace, "exec", pod, "-c", "main", "--", "sh", "-c", find)

    wait_until(lambda: member.state(run) == "failed", clusters.RUN_S, every_s=2)
    assert "Failed" in clusters.kubectl("-n", namespace, "get", "pod", pod, "-o", "jsonpath={.status.phase}")
    wait_until(lambda: status(name).get("jobDeploymentStatus") == "Failed", 180, every_s=2)
    clusters.kubectl("-n", namespace, "delete", "rayjob", name)
