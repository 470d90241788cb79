"""A search on a cluster of its own: the RayJob by KubeRay's schema, the talk with the Kubernetes API on loopback."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from shopfloor.errors import ServiceError, ShopfloorError, UsageError
from shopfloor.flows import queue
from shopfloor.settings import ClusterSettings, Settings
from shopfloor.training import job_guard, rayjob_run
from shopfloor.training.rayjob import GUARD, STEP_NAMESPACE, STEP_POD, STEP_POD_UID, Workers, body, job_name

from tests.contract import kuberay
from tests.contract.test_argo_translation import strict
from tests.support.cluster_api import Answer, serve, use_kubeconfig, write_kubeconfig
from tests.support.project import SHARED
from tests.support.waiting import wait_until

PROJECT = Path(__file__).resolve().parents[2]
TOKEN = "kube-token-that-nobody-may-see"
JOBS = "/apis/ray.io/v1/namespaces/team-a/rayjobs"
NAME = "t-flights-0123456789"
PODS = "/api/v1/namespaces/team-a/pods"
ONE = Workers(1, 1, 0)


def named(number):
    """Return the name of an attempt's job."""
    return NAME if number == 1 else f"{NAME}-{number}"


def settings(**cluster):
    values = {"namespace": "team-a", "queue": "team-a-queue", "priority_class": "high"}
    values |= {"environment_secret": "object-store", **cluster}
    return Settings(
        project_root="/project",
        profile="cluster",
        artifact_root="s3://lake/artifacts",
        request_timeout_s=1.0,
        run_id="0123abc",
        cluster=ClusterSettings(**values),
    )


@pytest.fixture(scope="module")
def problems():
    """Give what is wrong with a RayJob: by our own rules, and by KubeRay's schema where it is at hand."""
    import jsonschema_rs

    file = SHARED / "schemas/ray_rayjobs.json"
    if not file.is_file():
        return kuberay.problems
    schema = strict(json.loads(file.read_text())["v1"])
    schema["properties"]["metadata"] = {"type": "object"}  # the API server fills it in
    schemas = jsonschema_rs.Draft202012Validator(schema)
    return lambda job: [*kuberay.problems(job), *(error.message for error in schemas.iter_errors(job))]


def test_a_small_machine_is_asked_for_no_more_than_it_is_told(problems):
    job = body(settings(ray_head_cpu="100m", ray_head_memory="2Gi"), NAME, "python -m x", Workers(1, 0.5, 0))

    cluster = job["spec"]["rayClusterSpec"]
    groups = (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    requests = [group["template"]["spec"]["containers"][0]["resources"]["requests"] for group in groups]
    assert requests == [{"cpu": "100m", "memory": "2Gi"}, {"cpu": "0.5"}]
    assert problems(job) == []


@budget(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    count=st.integers(1, 64),
    cpus=st.floats(0.1, 64).map(lambda value: round(value, 2)),
    gpus=st.one_of(st.just(0.0), st.sampled_from([0.1, 0.25, 0.5]), st.integers(1, 8).map(float)),
)
def test_any_workers_make_a_job_that_kuberay_takes(problems, count, cpus, gpus):
    job = body(settings(), NAME, "python -m x", Workers(count, cpus, gpus))

    assert problems(job) == []
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    whole = int(limits.get("nvidia.com/gpu", 0)) * group["replicas"]
    assert whole >= count * gpus - 1e-9
    assert (whole == 0) == (gpus == 0)
    if 0 < gpus < 1:
        assert whole <= -(-count // round(1 / gpus))
    requested = float(group["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]) * group["replicas"]
    assert requested >= count * cpus - 1e-6


def changed(path, value):
    """Return a job with another value at a path, `spec/rayClusterSpec/workerGroupSpecs/0/replicas`."""
    job = body(settings(), NAME, "python -m x", ONE)
    *parents, last = path.split("/")
    place = job
    for name in parents:
        place = place[int(name)] if name.isdigit() else place[name]
    place[last] = value
    return job


GROUP = "spec/rayClusterSpec/workerGroupSpecs/0"
POD = f"{GROUP}/template/spec"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata/name", "Not_A_Name"),
        ("metadata/name", "a" * 48),
        ("spec/submissionMode", "JobMode"),
        ("spec/rayClusterSpec/workers", 3),
        ("spec/shutdownAfterJobFinishes", False),
        ("spec/backoffLimit", "0"),
        ("spec/entrypoint", ""),
        (f"{GROUP}/replicas", 2),
        (f"{GROUP}/rayStartParams", {"num-cpus": 4}),
        (f"{POD}/serviceAccount_name", "me"),
        (f"{POD}/containers/0/env", [{"name": "A", "value": 1}]),
        (f"{POD}/containers/0/resources", {"limits": {"cpu": "four"}}),
        (f"{POD}/containers/0/securityContext", {"runAsNonRoot": "yes"}),
    ],
)
def test_a_job_that_kuberay_would_refuse_is_noticed_without_its_schema(path, value):
    assert kuberay.problems(body(settings(), NAME, "python -m x", ONE)) == []
    assert kuberay.problems(changed(path, value))


def test_kueue_queues_the_job_and_nothing_secret_is_in_it(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-mine")
    job = body(settings(), NAME, "python -m x", ONE)

    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a-queue"
    assert job["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "high"
    assert job["metadata"]["labels"]["shopfloor/run-id"] == "0123abc"
    assert job["spec"]["suspend"] is True
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert "suspend" not in body(settings(queue=None), NAME, "python -m x", ONE)["spec"]
    text = json.dumps(job)
    assert "a-secret-of-mine" not in text
    assert "/project" not in text
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["envFrom"] == [{"secretRef": {"name": "object-store"}}]
    environment = {item["name"]: item["value"] for item in head["env"]}
    assert environment["SHOPFLOOR_RAY_ADDRESS"] == "auto"
    assert environment["SHOPFLOOR_ARTIFACT_ROOT"] == "s3://lake/artifacts"


def test_no_autoscaler_moves_a_pod_of_a_search_to_save_a_node():
    spec = body(settings(), NAME, "python -m x", Workers(2, 1, 1))["spec"]
    cluster = spec["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for template in [spec["submitterPodTemplate"], *(group["template"] for group in groups)]:
        assert template["metadata"]["annotations"] == {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}


def test_the_name_is_that_of_what_is_asked_and_a_dns_label():
    name = job_name("Flight_Delays of a very long name that goes on", {"trials": 1}, 12)
    assert name == job_name("Flight_Delays of a very long name that goes on", {"trials": 1}, 12)
    assert name != job_name("Flight_Delays of a very long name that goes on", {"trials": 2}, 12)
    assert len(name) <= 40
    assert name.replace("-", "").isalnum()
    assert name.islower()


@pytest.fixture
def server(tmp_path, monkeypatch):
    with serve() as running:
        write_kubeconfig(tmp_path / "kubeconfig", running.url, TOKEN, monkeypatch)
        monkeypatch.setattr(rayjob_run, "POLL_S", 0.05)
        monkeypatch.setattr(rayjob_run, "PATIENCE_S", 0.0)
        pod = {"metadata": {"name": "submitter", "namespace": "team-a"}, "spec": {"containers": []}}
        running.on("GET", PODS, Answer(body={"kind": "PodList", "apiVersion": "v1", "items": [pod]}))
        running.on("GET", f"{PODS}/submitter/log", Answer(body="trial 1/2\n"), Answer(body="trial 1/2\ntrial 2/2\n"))
        running.on("POST", JOBS, Answer(201, {"metadata": {"name": NAME}}))
        running.on("DELETE", f"{JOBS}/{NAME}", Answer(body={"status": "Success"}))
        yield running


def state(deployment="", job="", suspended=False, **more):
    status = {"jobDeploymentStatus": deployment, "jobStatus": job, **more}
    return Answer(body={"spec": {"suspend": suspended}, "status": status})


def test_a_job_is_created_followed_and_its_log_handed_on(server, capsys):
    server.on(
        "GET",
        f"{JOBS}/{NAME}",
        state(suspended=True),
        state("Initializing"),
        state("Running", "RUNNING"),
        state("Complete", "SUCCEEDED"),
    )

    rayjob_run.run(settings(), named, "python -m x", ONE)

    output = capsys.readouterr().out.splitlines()
    assert output[0] == f"RayJob team-a/{NAME} is created."
    assert f"RayJob team-a/{NAME}: waits for the queue team-a-queue (kubectl get workloads -n team-a)" in output
    assert [line for line in output if line.startswith("trial")] == ["trial 1/2", "trial 2/2"]
    (created,) = server.requests("POST", JOBS)
    assert created.body == body(settings(), NAME, "python -m x", ONE)
    assert created.headers["authorization"] == f"Bearer {TOKEN}"
    assert "labelSelector=job-name%3D" + NAME in server.requests("GET", PODS)[0].query
    assert len(server.requests("DELETE", f"{JOBS}/{NAME}")) == 1


def test_a_step_that_is_tried_again_goes_on_with_the_running_job(server, capsys):
    server.on("POST", JOBS, Answer(409, {"reason": "AlreadyExists", "message": "already exists"}))
    server.on("GET", f"{JOBS}/{NAME}", state("Complete", "SUCCEEDED"))
    rayjob_run.run(settings(), named, "python -m x", ONE)
    assert "is there already: going on with it." in capsys.readouterr().out


def test_a_job_that_failed_before_makes_way_for_the_next_attempt(server, capsys):
    server.on("POST", JOBS, Answer(409, {"reason": "AlreadyExists"}), Answer(201, {"metadata": {"name": NAME}}))
    server.on(
        "GET",
        f"{JOBS}/{NAME}",
        state("Failed", "FAILED", reason="AppFailed"),
        state("Failed", "FAILED"),  # its pods are ending
        Answer(404, {"message": "gone"}),
        state("Complete", "SUCCEEDED"),
    )
    rayjob_run.run(settings(), named, "python -m x", ONE)
    assert len(server.requests("DELETE", f"{JOBS}/{NAME}")) == 2
    assert len(server.requests("POST", JOBS)) == 2
    output = capsys.readouterr().out
    assert "failed before, and makes way: Failed FAILED AppFailed" in output
    assert "is created." in output


def test_an_api_server_that_restarts_does_not_fail_the_step(server, monkeypatch):
    monkeypatch.setattr(rayjob_run, "PATIENCE_S", 60.0)
    lost = Answer(drop=True)
    server.on("POST", JOBS, Answer(503), lost, Answer(409, {"reason": "AlreadyExists"}))
    server.on("GET", f"{JOBS}/{NAME}", Answer(500), state("Running", "RUNNING"), lost, state("Complete", "SUCCEEDED"))
    rayjob_run.run(settings(), named, "python -m x", ONE)
    assert len(server.requests("POST", JOBS)) == 3


def test_the_jobs_of_earlier_attempts_make_way(server, capsys):
    own = f"{JOBS}/{named(3)}"
    server.on("GET", f"{JOBS}/{named(1)}", state("Running", "RUNNING"))
    server.on("GET", own, state("Complete", "SUCCEEDED"))
    server.on("DELETE", own, Answer(body={"status": "Success"}))

    rayjob_run.run(settings().model_copy(update={"attempt": "run/tune#3#t"}), named, "python -m x", ONE)

    assert server.requests("POST", JOBS)[0].body["metadata"]["name"] == named(3)
    assert [one.path for one in server.history if one.method == "DELETE"] == [f"{JOBS}/{named(1)}", own]
    assert f"RayJob team-a/{named(1)} is an earlier attempt's, and makes way." in capsys.readouterr().out


def test_in_a_pod_the_job_belongs_to_the_pod(server, monkeypatch):
    monkeypatch.setenv("SHOPFLOOR_POD", "step-pod")
    monkeypatch.setenv("SHOPFLOOR_POD_UID", "u2")
    server.on("GET", f"{JOBS}/{NAME}", state("Complete", "SUCCEEDED"))
    rayjob_run.run(settings(), named, "python -m x", ONE)
    [owner] = server.requests("POST", JOBS)[0].body["metadata"]["ownerReferences"]
    # A controller's reference would make it a part of a pod that Kueue manages.
    assert owner == {"apiVersion": "v1", "kind": "Pod", "name": "step-pod", "uid": "u2"}


@pytest.mark.parametrize(
    ("pods", "code"),
    [
        ([("u2", "Running")], 3),
        ([("u2", "Running"), ("u2", "Failed")], 1),
        ([("u2", "Running"), ("another", "Running")], 1),
        ([("u2", "Failed")], 1),
    ],
)
def test_the_command_of_a_job_ends_with_the_pod_of_the_step(server, monkeypatch, capfd, pods, code):
    """A command that ends by itself with 3, or goes on; in turn what the cluster says of the pod."""
    monkeypatch.setattr(job_guard, "LOOK_EVERY_S", 0.1)
    for name, value in ((STEP_POD, "step-pod"), (STEP_POD_UID, "u2"), (STEP_NAMESPACE, "team-a")):
        monkeypatch.setenv(name, value)
    answers = [
        {"metadata": {"name": "step-pod", "uid": uid}, "spec": {"containers": []}, "status": {"phase": phase}}
        for uid, phase in pods
    ]
    listed = [Answer(body={"kind": "PodList", "apiVersion": "v1", "items": [one]}) for one in answers]
    server.on("GET", PODS, *listed, *([Answer(503)] if code == 3 else []))

    program = "import sys, time; time.sleep(0.5); sys.exit(3)" if code == 3 else "import time; time.sleep(600)"
    assert job_guard.main([sys.executable, "-c", program]) == code

    assert ("step-pod has ended" in capfd.readouterr().err) == (code == 1)
    assert {one.query for one in server.requests("GET", PODS)} == {"fieldSelector=metadata.name%3Dstep-pod"}


def test_a_job_that_belongs_to_a_pod_runs_under_the_guard(monkeypatch):
    assert job_guard.__name__ == GUARD
    assert "job_guard" not in json.dumps(body(settings(), NAME, "python -m x", ONE))
    monkeypatch.setenv("SHOPFLOOR_POD", "step-pod")
    monkeypatch.setenv("SHOPFLOOR_POD_UID", "u2")

    job = body(settings(), NAME, "python -m x", ONE)["spec"]

    assert job["entrypoint"].endswith(f" python -m {GUARD} python -m x")
    [head] = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    told = {one["name"]: one["value"] for one in head["env"]}
    assert (told[STEP_POD], told[STEP_POD_UID], told[STEP_NAMESPACE]) == ("step-pod", "u2", "team-a")


@pytest.mark.parametrize("end", [("Complete", "SUCCEEDED"), ("Failed", "FAILED")])
def test_the_logs_of_its_pods_are_kept_before_the_job_goes(server, monkeypatch, end):
    kept = {}

    class Client:
        def log_artifacts(self, run_id, directory, folder):
            kept.update({(run_id, folder, file.name): file.read_text() for file in Path(directory).iterdir()})

    monkeypatch.setattr(rayjob_run, "connect", lambda settings: Client())
    server.on("GET", f"{JOBS}/{NAME}", state(*end, rayClusterName="c-1"))
    pods = [
        {"metadata": {"name": name, "namespace": "team-a", "labels": labels}, "spec": {"containers": []}}
        for name, labels in (("submitter", {}), ("w", {"ray.io/node-type": "worker"}))
    ]
    server.on("GET", PODS, Answer(body={"kind": "PodList", "apiVersion": "v1", "items": pods}))
    server.on("GET", f"{PODS}/submitter/log", Answer(503), Answer(body="from the driver"))
    server.on("GET", f"{PODS}/w/log", Answer(body="from a trial"))

    with contextlib.suppress(ShopfloorError):
        rayjob_run.run(settings().model_copy(update={"step_run_id": "s"}), named, "python -m x", ONE)

    assert kept["s", "rayjob", "driver-submitter.log"] == "from the driver"
    assert kept["s", "rayjob", "worker-w.log"] == "from a trial"
    assert any("ray.io%2Fcluster%3Dc-1" in one.query for one in server.requests("GET", PODS))
    last = [one.path for one in server.history if one.method == "DELETE" or one.path.endswith("/log")][-1]
    assert last == f"{JOBS}/{NAME}"
    assert len(server.requests("DELETE", f"{JOBS}/{NAME}")) == 1


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            {
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
                    }
                ]
            },
            "no node takes pod w: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
        ),
        (
            {
                "containerStatuses": [
                    {
                        "name": "ray-worker",
                        "image": "i",
                        "imageID": "",
                        "ready": False,
                        "restartCount": 0,
                        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
                    }
                ]
            },
            "pod w waits: ImagePullBackOff: no such image",
        ),
    ],
)
def test_an_admitted_job_says_which_pod_keeps_it_from_its_work(server, capfd, status, words):
    begins = state("Initializing", None, rayClusterName="c-1")
    server.on("GET", f"{JOBS}/{NAME}", begins, begins, state("Complete", "SUCCEEDED"))
    pod = {"metadata": {"name": "w", "namespace": "team-a"}, "spec": {"containers": []}, "status": status}
    server.on("GET", PODS, Answer(body={"kind": "PodList", "apiVersion": "v1", "items": [pod]}))

    rayjob_run.run(settings(), named, "python -m x", ONE)

    assert capfd.readouterr().out.count(f"Initializing; {words}") == 1


def test_a_job_that_fails_says_why(server):
    server.on("GET", f"{JOBS}/{NAME}", state("Failed", "FAILED", reason="AppFailed", message="exit code 1"))
    with pytest.raises(ShopfloorError, match=f"RayJob team-a/{NAME} failed: Failed FAILED AppFailed exit code 1"):
        rayjob_run.run(settings(), named, "python -m x", ONE)


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (Answer(401, {"message": "Unauthorized"}), ServiceError, "refuses the token"),
        (
            Answer(403, {"reason": "Forbidden", "message": 'rayjobs.ray.io is forbidden: User "x"'}),
            ServiceError,
            "No right to create rayjobs in the namespace team-a: rayjobs.ray.io is forbidden",
        ),
        (
            Answer(404, {"message": "the server could not find the requested resource"}),
            ServiceError,
            "has no KubeRay .*kubectl kustomize manifests/operators/kuberay",
        ),
        (Answer(422, {"message": 'RayJob "x" is invalid: spec'}), UsageError, 'RayJob "x" is invalid'),
        (Answer(500, {"message": "etcdserver: leader changed"}), ServiceError, "failed with status 500"),
        (Answer(drop=True), ServiceError, "does not answer"),
        (Answer(wait_s=2.0), ServiceError, "does not answer"),
    ],
)
def test_every_refusal_is_one_line_without_the_token(server, answer, error, text):
    server.on("POST", JOBS, answer)
    with pytest.raises(error, match=text) as raised:
        rayjob_run.run(settings(), named, "python -m x", ONE)
    assert "\n" not in str(raised.value)
    assert TOKEN not in str(raised.value)


def test_a_job_that_somebody_deleted_is_no_endless_wait(server):
    with pytest.raises(ShopfloorError, match=f"RayJob team-a/{NAME} was deleted"):
        rayjob_run.run(settings(), named, "python -m x", ONE)


def test_a_cancelled_step_deletes_its_job(server):
    server.on("GET", f"{JOBS}/{NAME}", state("Running", "RUNNING"))
    script = "\n".join(
        [
            "import sys",
            "from shopfloor.training import rayjob, rayjob_run",
            "from shopfloor.settings import Settings",
            "rayjob_run.POLL_S = 0.05",
            "settings = Settings.model_validate_json(sys.argv[1])",
            f"rayjob_run.run(settings, lambda number: {NAME!r}, 'x', rayjob.Workers(1, 1, 0))",
        ]
    )
    step = subprocess.Popen(
        [sys.executable, "-c", script, settings().model_dump_json()],
        env={**os.environ, "PYTHONPATH": str(PROJECT / "platform")},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    wait_until(lambda: server.requests("GET", f"{JOBS}/{NAME}"))
    step.send_signal(signal.SIGTERM)
    out, _ = step.communicate(timeout=30)

    assert step.returncode != 0
    assert len(server.requests("DELETE", f"{JOBS}/{NAME}")) == 1
    assert f"RayJob team-a/{NAME} is deleted." in out


def test_jobs_that_no_driver_has_begun_end_with_a_run_that_was_stopped(server):
    def job(name, run="0123abc", **status):
        return {"metadata": {"name": name, "labels": {"shopfloor/run-id": run}}, "status": status}

    jobs = [
        job("suspended", jobDeploymentStatus="Suspended"),
        job("waits", jobDeploymentStatus="Initializing", jobStatus=""),
        job("runs", jobDeploymentStatus="Running", jobStatus="RUNNING"),
        job("failed", jobDeploymentStatus="Failed", jobStatus=""),
        job("another", run="4567def", jobDeploymentStatus="Initializing"),
    ]
    server.on("GET", JOBS, Answer(body={"items": [*jobs, job("new") | {"status": None}]}))
    ended = ("suspended", "waits", "new")
    for name in ended:
        server.on("DELETE", f"{JOBS}/{name}", Answer(body={"status": "Success"}))

    queue.end_waiting_jobs(settings().model_copy(update={"ray_address": "rayjob"}), "0123abc")
    queue.end_waiting_jobs(settings(), "0123abc")  # its searches join a cluster that is there

    assert [one.path for one in server.history if one.method == "DELETE"] == [f"{JOBS}/{name}" for name in ended]


def test_a_job_that_could_not_be_ended_is_told(server, caplog):
    server.on("GET", JOBS, Answer(403, {"message": 'rayjobs.ray.io is forbidden: User "x" cannot list'}))

    queue.end_waiting_jobs(settings().model_copy(update={"ray_address": "rayjob"}), "0123abc")

    assert "may still wait for its nodes: No right to list rayjobs" in caplog.text


def test_without_a_cluster_one_line_says_so(tmp_path, monkeypatch):
    use_kubeconfig(tmp_path / "none", monkeypatch)
    with pytest.raises(UsageError, match="There is no Kubernetes cluster to talk to"):
        rayjob_run.run(settings(), named, "x", ONE)
