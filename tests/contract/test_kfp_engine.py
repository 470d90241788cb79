"""Kubeflow Pipelines as the engine speaks to it: KFP's own client against a local server, its models, its protobufs."""

import base64
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import kfp_server_api
import pytest
import yaml
from google.protobuf import json_format
from kfp import dsl, kubernetes
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec import pipeline_spec_pb2
from shopfloor.engines.base import Job
from shopfloor.engines.kfp.engine import KfpEngine
from shopfloor.errors import ConflictError, NotFoundError, ServiceError, ShopfloorError, UsageError
from shopfloor.settings import ClusterSettings, Settings

from tests.support.cluster_api import Answer, serve

TOKEN = "kfp-token-that-nobody-may-see"
PROJECT = Path(__file__).resolve().parents[2]
API = "/apis/v2beta1"
IMAGE = "registry.example.org/platform:1"
RUN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("KFP_TOKEN", TOKEN)
    with serve() as running:
        running.on("GET", f"{API}/experiments", Answer(body={"experiments": []}))
        running.on("POST", f"{API}/experiments", Answer(body={"experiment_id": "e1", "display_name": "flights"}))
        yield running
        for heard in running.history:
            assert heard.headers["authorization" if "authorization" in heard.headers else "Authorization"].endswith(
                TOKEN
            )


def settings(url, **cluster):
    values = {"kfp_url": url, "namespace": "team-a", "queue": "team-a-queue", "priority_class": "high"}
    values |= {"image": IMAGE, "environment_secret": "object-store", **cluster}
    return Settings(
        project_root="/project",
        profile="cluster",
        request_timeout_s=1.0,
        artifact_root="s3://lake/artifacts",
        cluster=ClusterSettings(**values),
    )


@pytest.fixture(scope="module")
def pipeline():
    @dsl.component(base_image=IMAGE, install_kfp_package=False)
    def ours(text: str, made: dsl.Output[dsl.Dataset]) -> int:
        return len(text)

    @dsl.component(base_image="python:3.11", install_kfp_package=False)
    def theirs(count: int) -> int:
        return count

    @dsl.pipeline(name="counting")
    def counting(text: str = "a", use_case: str = "flights"):
        first = ours(text=text)
        first.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(1)
        second = theirs(count=first.outputs["Output"])
        kubernetes.add_node_selector(second, "gpu", "h100")
        kubernetes.add_pod_label(second, "kueue.x-k8s.io/queue-name", "its-own")

    ir = json_format.MessageToDict(counting.pipeline_spec)
    return ir, json_format.MessageToDict(counting.platform_spec)


def job(pipeline, **more):
    ir, platforms = pipeline
    values = {"arguments": {"text": "abc", "use_case": "flights"}, "run_id": RUN, **more}
    environment = {"SHOPFLOOR_ARTIFACT_ROOT": "s3://lake/artifacts", "SHOPFLOOR_PROJECT_ROOT": "/project"}
    return Job(name="counting", ir=ir, platforms=platforms, environment=environment, **values)


def documents(text):
    ir, platforms = yaml.safe_load_all(text)
    json_format.ParseDict(ir, pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(platforms, pipeline_spec_pb2.PlatformSpec())
    executors = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for config in executors.values():
        json_format.ParseDict(config, KubernetesExecutorConfig())
    return ir, executors


def test_the_profile_adds_queue_priority_and_secret_and_the_pipeline_goes_first(pipeline):
    ir, executors = documents(KfpEngine(settings("http://127.0.0.1:1")).manifest(job(pipeline)))

    assert executors["exec-ours"]["podMetadata"]["labels"] == {
        "kueue.x-k8s.io/queue-name": "team-a-queue",
        "kueue.x-k8s.io/priority-class": "high",
    }
    assert executors["exec-ours"]["secretAsEnv"][0]["secretName"] == "object-store"
    assert executors["exec-theirs"]["podMetadata"]["labels"] == {
        "kueue.x-k8s.io/queue-name": "its-own",
        "kueue.x-k8s.io/priority-class": "high",
    }
    assert executors["exec-theirs"]["nodeSelector"]["labels"] == {"gpu": "h100"}
    assert "secretAsEnv" not in executors["exec-theirs"]
    container = ir["deploymentSpec"]["executors"]["exec-ours"]["container"]
    assert container["resources"]["accelerator"]["resourceType"] == "nvidia.com/gpu"


def test_a_step_of_the_platform_goes_through_the_content_key_and_any_other_stays_as_it_is(pipeline):
    before, _ = pipeline
    ir, _ = documents(KfpEngine(settings("http://127.0.0.1:1")).manifest(job(pipeline)))
    executors, originals = (one["deploymentSpec"]["executors"] for one in (ir, before))

    container = executors["exec-ours"]["container"]
    own = [*originals["exec-ours"]["container"]["command"], *originals["exec-ours"]["container"]["args"]]
    assert container["command"][:3] == ["python3", "-m", "shopfloor.engines.kfp.step"]
    assert container["args"] == own
    task = json.loads(base64.b64decode(container["command"][3]))
    assert task["command"] == own
    assert task["outputs"]["artifacts"]["made"]["schemaTitle"] == "system.Dataset"
    environment = {item["name"]: item["value"] for item in container["env"]}
    assert environment["SHOPFLOOR_RUN_ID"] == RUN
    assert environment["SHOPFLOOR_ARTIFACT_ROOT"] == "s3://lake/artifacts"
    assert "SHOPFLOOR_PROJECT_ROOT" not in environment
    assert executors["exec-theirs"] == originals["exec-theirs"]


def test_a_run_is_what_compile_writes_in_the_experiment_of_the_use_case(server, pipeline, capsys):
    server.on("POST", f"{API}/runs", Answer(body={"run_id": "r1"}))
    engine = KfpEngine(settings(server.url))

    assert engine.submit(job(pipeline)) == "r1"

    assert server.requests("POST", f"{API}/experiments")[0].body["display_name"] == "flights"
    sent = server.requests("POST", f"{API}/runs")[0].body
    assert set(sent) <= set(kfp_server_api.V2beta1Run.attribute_map.values())
    assert sent["experiment_id"] == "e1"
    assert sent["display_name"] == f"counting-{RUN[:12]}"
    assert sent["runtime_config"]["parameters"] == {"text": "abc", "use_case": "flights"}
    assert sent["service_account"] == "shopfloor-run"
    ir, executors = documents(engine.manifest(job(pipeline)))
    assert sent["pipeline_spec"]["pipeline_spec"]["root"]["dag"] == ir["root"]["dag"]
    spec = sent["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert spec == executors
    assert TOKEN not in json.dumps(sent)
    assert capsys.readouterr().out == ""


def test_a_schedule_is_a_recurring_run_whose_seconds_are_zero(server, pipeline):
    server.on("POST", f"{API}/recurringruns", Answer(body={"recurring_run_id": "rr1"}))

    nightly = job(pipeline, run_id="scheduled.counting", cron="0 3 * * *")
    assert KfpEngine(settings(server.url)).submit(nightly) == "rr1"

    sent = server.requests("POST", f"{API}/recurringruns")[0].body
    assert set(sent) <= set(kfp_server_api.V2beta1RecurringRun.attribute_map.values())
    assert sent["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"
    assert sent["mode"] == "ENABLE"
    assert sent["display_name"] == "counting"


def test_a_step_of_a_schedule_knows_the_backends_run_and_that_it_makes_the_record(pipeline):
    nightly = job(pipeline, run_id="scheduled.counting", cron="0 3 * * *")

    ir, platforms = documents(KfpEngine(settings("http://127.0.0.1:1")).manifest(nightly))

    container = ir["deploymentSpec"]["executors"]["exec-ours"]["container"]
    assert {"name": "SHOPFLOOR_RUN_ID", "value": "scheduled.counting"} in container["env"]
    field = {"name": "SHOPFLOOR_KFP_RUN", "fieldPath": "metadata.labels['pipeline/runid']"}
    assert platforms["exec-ours"]["fieldPathAsEnv"] == [field]
    assert "fieldPathAsEnv" not in platforms["exec-theirs"]


def test_without_cache_no_task_takes_the_backends_own_result(pipeline):
    ir, _ = documents(KfpEngine(settings("http://127.0.0.1:1")).manifest(job(pipeline, use_cache=False)))
    assert [task["cachingOptions"] for task in ir["root"]["dag"]["tasks"].values()] == [{}, {}]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("PENDING", "pending"),
        ("RUNNING", "running"),
        ("SUCCEEDED", "succeeded"),
        ("FAILED", "failed"),
        ("CANCELED", "killed"),
        ("CANCELING", "running"),
    ],
)
def test_the_state_of_the_backend_is_the_state_of_the_run(server, state, expected):
    server.on("GET", f"{API}/runs/r1", Answer(body={"run_id": "r1", "state": state}))
    assert KfpEngine(settings(server.url)).status("r1") == expected


def test_a_run_that_failed_says_why_by_its_task_or_by_itself(server):
    task = {"display_name": "add", "child_tasks": [{"pod_name": "x-system-container-impl-1"}]}
    run = {"run_id": "r1", "state": "FAILED", "error": {"code": 13, "message": "no quota\nfor it"}}
    server.on("GET", f"{API}/runs/r1", Answer(body={**run, "run_details": {"task_details": [task]}}))
    engine = KfpEngine(settings(server.url))

    assert engine.why("r1") == "no quota for it"

    task["error"] = {"code": 13, "message": "OOMKilled"}
    server.on("GET", f"{API}/runs/r1", Answer(body={**run, "run_details": {"task_details": [task]}}))
    assert engine.why("r1") == "add: OOMKilled"


def test_a_run_is_stopped_and_retried(server):
    server.on("POST", f"{API}/runs/r1:terminate", Answer(body={}))
    server.on("POST", f"{API}/runs/r1:retry", Answer(body={}))
    engine = KfpEngine(settings(server.url))

    engine.stop("r1")
    assert engine.retry("r1") == "r1"

    assert [one.path for one in server.history] == [f"{API}/runs/r1:terminate", f"{API}/runs/r1:retry"]


def test_steps_and_log_of_a_run_are_those_of_its_pods(server):
    tasks = [
        {"display_name": "add", "state": "SUCCEEDED", "child_tasks": [{"pod_name": "x-system-container-impl-1"}]},
        {"display_name": "add-2", "state": "SUCCEEDED", "child_tasks": [{"pod_name": "x-system-container-impl-2"}]},
        {"display_name": "add-driver", "state": "SUCCEEDED", "child_tasks": [{"pod_name": "x-system-driver-3"}]},
    ]
    run = {"run_id": "r1", "state": "SUCCEEDED", "run_details": {"task_details": tasks}}
    server.on("GET", f"{API}/runs/r1", Answer(body=run))
    for number, text in ((1, "one"), (2, "two\nthree")):
        path = f"/apis/v1alpha1/runs/r1/nodes/x-system-container-impl-{number}/log"
        server.on("GET", path, Answer(body=text))
    engine = KfpEngine(settings(server.url))

    assert [(step.name, step.state) for step in engine.steps("r1")] == [("add", "succeeded"), ("add-2", "succeeded")]
    assert list(engine.logs("r1")) == ["--- add", "one", "--- add-2", "two", "three"]
    assert list(engine.logs("r1", "add-2", follow=True)) == ["two", "three"]
    with pytest.raises(NotFoundError, match="kubectl logs -n team-a -l pipeline/runid=r1 -c main"):
        list(engine.logs("r1", "tune"))


def test_a_run_whose_answer_was_lost_is_found_by_its_name(server, pipeline):
    server.on("GET", f"{API}/experiments", Answer(body={"experiments": [{"experiment_id": "e1", "display_name": "x"}]}))
    server.on("POST", f"{API}/runs", Answer(drop=True))
    server.on("GET", f"{API}/runs", Answer(body={"runs": [{"run_id": "r7"}]}))
    assert KfpEngine(settings(server.url)).submit(job(pipeline)) == "r7"


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (Answer(401, {"code": 16, "message": "Request header error"}), ServiceError, "refuses the token: it is wrong"),
        (
            Answer(403, {"code": 7, "message": f"User {TOKEN} is not authorized"}),
            ServiceError,
            r"No right to get runs in the namespace team-a: User \*\*\* is not authorized",
        ),
        (Answer(404, {"code": 5, "message": "Run r1 not found"}), NotFoundError, "Run r1 not found"),
        (Answer(409, {"code": 6, "message": "already exists"}), ConflictError, "already exists"),
        (Answer(400, {"code": 3, "message": "Failed to parse"}), UsageError, "refuses it: Failed to parse"),
        (Answer(500, {"code": 13, "message": "Internal"}), ServiceError, "failed with status 500: Internal"),
        (Answer(502, "<html>bad gateway</html>"), ServiceError, "failed with status 502"),
        (Answer(drop=True), ServiceError, "does not answer"),
        (Answer(wait_s=2.0), ServiceError, "did not answer within 1 s"),
    ],
)
def test_every_refusal_is_one_line_without_the_token(server, answer, error, text, caplog):
    server.on("GET", f"{API}/runs/r1", answer)
    with pytest.raises(error, match=text) as raised:
        KfpEngine(settings(server.url)).status("r1")
    assert isinstance(raised.value, ShopfloorError)
    assert "\n" not in str(raised.value)
    assert TOKEN not in str(raised.value) + caplog.text
    assert len(server.history) == 1  # no silent second try


def test_an_api_that_is_down_is_one_line():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(ServiceError, match=f"The Kubeflow Pipelines API {url} does not answer"):
        KfpEngine(settings(url)).status("r1")


def test_the_command_that_the_backend_runs_computes_once_and_takes_the_stored_result_then(tmp_path):
    @dsl.component(base_image=IMAGE, install_kfp_package=False)
    def double(count: int) -> int:
        print("computed")
        return 2 * count

    @dsl.pipeline(name="doubling")
    def doubling(count: int = 2):
        double(count=count)

    ir = json_format.MessageToDict(doubling.pipeline_spec)
    asked = Job(name="doubling", ir=ir, platforms={}, arguments={})
    sent, _ = documents(KfpEngine(settings("http://127.0.0.1:1")).manifest(asked))
    container = sent["deploymentSpec"]["executors"]["exec-double"]["container"]
    environment = {
        **os.environ,
        **{item["name"]: item["value"] for item in container["env"]},
        "SHOPFLOOR_PROJECT_ROOT": str(PROJECT),
        "SHOPFLOOR_STATE_DIR": str(tmp_path / "state"),
        "SHOPFLOOR_ARTIFACT_ROOT": str(tmp_path / "artifacts"),
        "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "platform")]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }

    def run(count, place):
        output = tmp_path / place / "output_metadata.json"
        executor_input = json.dumps(
            {
                "inputs": {"parameterValues": {"count": count}},
                "outputs": {
                    "parameters": {"Output": {"outputFile": str(tmp_path / place / "Output")}},
                    "outputFile": str(output),
                },
            }
        )
        command = [part.replace("{{$}}", executor_input) for part in (*container["command"], *container["args"])]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert result.returncode == 0, result.stdout + result.stderr
        return "computed" in result.stdout, json.loads(output.read_text())["parameterValues"]

    assert run(4, "first") == (True, {"Output": 8})
    assert run(4, "again") == (False, {"Output": 8})
    assert run(5, "other") == (True, {"Output": 10})
