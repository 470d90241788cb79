"""The team's queue on the real Kueue: the simulation of a day held against it, and what a member is told of the queue.

`make test-cluster KUBECONFIG=...` runs it, on a cluster with Kueue 0.19; `tests/support/queues.py` says how.
"""

import json
import os
import subprocess
import sys

import pytest
import yaml
from shopfloor.engines.argo import waiting

from tests.support import queues as clusters
from tests.support.cluster import kubectl
from tests.support.project import ROOT
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.skipif(bool(clusters.why_none()), reason=clusters.why_none()),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module", autouse=True)
def kueue():
    """Run with Kueue as manifests/operators/kueue sets it up: jobs are stopped for what is another team's own alone."""
    if clusters.fair_sharing():
        pytest.skip("Kueue shares fairly here: manifests/operators/kueue says why not, and how it is set up")


def test_idle_quota_is_lent_and_taken_back_by_its_owner_alone():
    with clusters.queues(a=(2, 4), b=(2, 4), c=(2, 4)) as queues:
        queues.submit("a-one", "a", 2)
        queues.submit("a-two", "a", 2)
        queues.submit("a-three", "a", 2)
        assert queues.agree() == {"a-one", "a-two", "a-three"}, "all that is idle is lent"

        queues.submit("b-large", "b", 3)
        assert "b-large" not in queues.agree(), "who must borrow takes nothing from a borrower"

        queues.submit("b-own", "b", 2)
        assert "b-own" in queues.agree(), "what is the team's own comes back"

        queues.submit("c-own", "c", 1)
        after = queues.agree()
        assert {"b-own", "c-own"} <= after

        for name in sorted(after):
            queues.end(name)
            queues.agree()


def test_a_job_that_does_not_fit_holds_nothing_and_nobody_up():
    with clusters.queues(a=(3, 1), b=(1, 3)) as queues:
        queues.submit("b-one", "b", 1)
        queues.submit("a-two", "a", 2)
        queues.submit("a-four", "a", 4)
        queues.submit("a-small", "a", 1)
        assert queues.agree() == {"b-one", "a-two", "a-small"}

        queues.submit("a-never", "a", 5)
        queues.agree()
        wait_until(lambda: reasons(queues, "a").get("a-never") == "ExceedsMaxQuota", 60)

        for name in ("a-two", "a-small", "b-one"):
            queues.end(name)
        assert queues.agree() == {"a-four"}


def test_the_more_urgent_goes_first_and_stops_nobody():
    with clusters.queues(a=(2, 0), b=(2, 0)) as queues:
        queues.submit("a-runs", "a", 2)
        queues.submit("a-waits", "a", 2)
        queues.submit("a-urgent", "a", 2, "high")
        assert queues.agree() == {"a-runs"}

        queues.end("a-runs")
        assert queues.agree() == {"a-urgent"}


def reasons(queues, team):
    """Return why each job of a team that waits does so, as `runs show` says it."""
    return {
        waiting.job_of(one)[1]: waiting.waits(one, None, None).reason
        for one in queues.workloads(team)
        if waiting.is_waiting(one)
    }


PIPELINE = """
from kfp import dsl

@dsl.container_component
def train():
    return dsl.ContainerSpec(image="localhost/nobody-has-this", command=["train"])

@dsl.pipeline(name="training")
def training():
    train().set_accelerator_type("nvidia.com/gpu").set_accelerator_limit({gpus}).set_cpu_request("1m")
"""


@pytest.fixture(scope="module")
def member(tmp_path_factory):
    """Give two teams, and a function that runs a command as a member of the first with a pipeline of so many GPUs."""
    place = tmp_path_factory.mktemp("member")
    (place / "pipelines").mkdir()
    (place / "pyproject.toml").write_text("")
    (place / "platform/profiles").mkdir(parents=True)
    with clusters.queues(a=(3, 1), b=(1, 3)) as queues:
        namespace = queues.namespace("a")
        config = yaml.safe_load(kubectl("config", "view", "--raw", "--minify", "-o", "yaml"))
        token = kubectl("-n", namespace, "create", "token", "member", "--duration", "1h").strip()
        config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
        (place / "kubeconfig").write_text(yaml.safe_dump(config))
        (place / "platform/profiles/team.toml").write_text(
            'default_engine = "argo"\ntracking_uri = "http://127.0.0.1:9"\nartifact_root = "artifacts"\n'
            f'[cluster]\nnamespace = "{namespace}"\nqueue = "runs"\npriority_class = "{queues.prefix}-low"\n'
            f"prices = {{ {queues.flavor} = {{ gpu = 2 }} }}\n"
        )

        def run(*words, gpus=1):
            (place / "pipelines/training.py").write_text(PIPELINE.format(gpus=gpus))
            return subprocess.run(
                [sys.executable, "-m", "shopfloor", *words, "--profile", "team"],
                cwd=place,
                env={**os.environ, "KUBECONFIG": str(place / "kubeconfig"), "PYTHONPATH": str(ROOT / "platform")},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )

        yield queues, run


def planned(run, gpus):
    done = run("plan", "pipelines/training.py", "--json", gpus=gpus)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_member_is_told_whether_a_run_could_ever_start_and_where_it_would_stand(member):
    queues, run = member
    queues.submit("a-runs", "a", 3)
    queues.submit("b-runs", "b", 1)
    queues.submit("a-waits", "a", 2)
    assert queues.agree() == {"a-runs", "b-runs"}

    plan = planned(run, 2)
    queue = plan["queue"]
    (step,) = queue["steps"]

    assert plan["notes"] == [note for note in plan["notes"] if "MLflow" in note], plan["notes"]
    assert (queue["cluster_queue"], queue["cohort"], queue["pending"]) == (queues.namespace("a"), queues.cohort, 1)
    assert (step["refusal"], step["flavors"], step["at_once"], step["ahead"]) == ("", [queues.flavor], False, 1)
    assert step["hourly"] == {queues.flavor: 4}
    (gpus,) = (one for one in queue["flavors"] if one["resource"] == "nvidia.com/gpu")
    assert (gpus["own"], gpus["most"], gpus["used"], gpus["borrowed"]) == ("3", "4", "3", "0")
    assert [(one["run"], one["resources"][queues.flavor]["nvidia.com/gpu"]) for one in queue["held_by"]] == [
        ("Job a-runs", 3)
    ]


def test_kueue_never_admits_what_is_refused_and_is_not_refused_what_it_admits(member):
    queues, run = member

    refused = {gpus: planned(run, gpus)["queue"]["steps"][0]["refusal"] for gpus in (4, 5)}

    assert refused[4] == ""
    assert "asks for 5 nvidia.com/gpu" in refused[5]
    assert f"nearest is {queues.flavor}, with 4 nvidia.com/gpu" in refused[5]
    done = run("submit", "pipelines/training.py", gpus=5)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: Step train asks for 5 nvidia.com/gpu")


def test_a_member_sees_no_queue_but_his_own(member):
    queues, _ = member
    account = f"system:serviceaccount:{queues.namespace('a')}:member"
    other = queues.namespace("b")

    def may(*words):
        done = subprocess.run(["kubectl", "auth", "can-i", *words, "--as", account], capture_output=True, text=True)
        return done.stdout.strip() == "yes"

    assert may("get", f"clusterqueues.kueue.x-k8s.io/{queues.namespace('a')}")
    assert may("get", f"cohorts.kueue.x-k8s.io/{queues.cohort}")
    assert not may("get", f"clusterqueues.kueue.x-k8s.io/{other}")
    assert not may("list", "clusterqueues.kueue.x-k8s.io")
    assert not may("list", "resourceflavors.kueue.x-k8s.io")
    assert not may("list", "workloads.kueue.x-k8s.io", "-n", other)
