"""Argo's REST API as the engine speaks it: requests by the official client's models, Argo's own error bodies."""

import base64
import json
import socket
from dataclasses import replace

import argo_workflows
import pytest
import yaml
from argo_workflows.model.io_argoproj_workflow_v1alpha1_create_cron_workflow_request import (
    IoArgoprojWorkflowV1alpha1CreateCronWorkflowRequest,
)
from argo_workflows.model.io_argoproj_workflow_v1alpha1_lint_cron_workflow_request import (
    IoArgoprojWorkflowV1alpha1LintCronWorkflowRequest,
)
from argo_workflows.model.io_argoproj_workflow_v1alpha1_workflow_create_request import (
    IoArgoprojWorkflowV1alpha1WorkflowCreateRequest,
)
from argo_workflows.model.io_argoproj_workflow_v1alpha1_workflow_lint_request import (
    IoArgoprojWorkflowV1alpha1WorkflowLintRequest,
)
from argo_workflows.model.io_argoproj_workflow_v1alpha1_workflow_retry_request import (
    IoArgoprojWorkflowV1alpha1WorkflowRetryRequest,
)
from argo_workflows.model.io_argoproj_workflow_v1alpha1_workflow_stop_request import (
    IoArgoprojWorkflowV1alpha1WorkflowStopRequest,
)
from argo_workflows.model.io_argoproj_workflow_v1alpha1_workflow_terminate_request import (
    IoArgoprojWorkflowV1alpha1WorkflowTerminateRequest,
)
from argo_workflows.model_utils import validate_and_convert_types
from kfp import dsl
from shopfloor.engines.argo import client as argo_client
from shopfloor.engines.argo import engine as argo_engine
from shopfloor.engines.argo import nodes as argo_nodes
from shopfloor.engines.argo.engine import ArgoEngine
from shopfloor.engines.base import Job
from shopfloor.errors import ConflictError, NotFoundError, ServiceError, UsageError
from shopfloor.settings import ClusterSettings, Settings

from tests.support.cluster_api import Answer, certificate, serve

TOKEN = "argo-token-that-nobody-may-see"
RUN = "0123456789abcdef0123456789abcdef"
WORKFLOWS = "/api/v1/workflows/team-a"
LINT = f"{WORKFLOWS}/lint"
NAME = "two-steps-0123456789ab"
HOOK = {"nodeFlag": {"hooked": True}}
MODELS = {
    ("POST", WORKFLOWS): IoArgoprojWorkflowV1alpha1WorkflowCreateRequest,
    ("POST", LINT): IoArgoprojWorkflowV1alpha1WorkflowLintRequest,
    ("PUT", f"{WORKFLOWS}/{NAME}/stop"): IoArgoprojWorkflowV1alpha1WorkflowStopRequest,
    ("PUT", f"{WORKFLOWS}/{NAME}/terminate"): IoArgoprojWorkflowV1alpha1WorkflowTerminateRequest,
    ("PUT", f"{WORKFLOWS}/{NAME}/retry"): IoArgoprojWorkflowV1alpha1WorkflowRetryRequest,
    ("POST", "/api/v1/cron-workflows/team-a"): IoArgoprojWorkflowV1alpha1CreateCronWorkflowRequest,
    ("POST", "/api/v1/cron-workflows/team-a/lint"): IoArgoprojWorkflowV1alpha1LintCronWorkflowRequest,
}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("ARGO_TOKEN", TOKEN)
    with serve() as running:
        yield running
        for heard in running.history:
            assert heard.headers["Authorization"] == f"Bearer {TOKEN}"
            model = MODELS.get((heard.method, heard.path))
            if model is not None:
                check(heard.body, model)


def check(body, model):
    """Read `body` as the official client's model: a wrong type or an unknown field is an error."""
    configuration = argo_workflows.Configuration()
    validate_and_convert_types(body, (model,), ["body"], True, True, configuration=configuration)


def settings(url, **cluster):
    values = {"argo_url": url, "namespace": "team-a", "queue": "team-a-queue", **cluster}
    return Settings(
        project_root="/project", profile="cluster", request_timeout_s=1.0, cluster=ClusterSettings(**values)
    )


@pytest.fixture(scope="module")
def job():
    @dsl.component(base_image="python:3.11", install_kfp_package=False)
    def add(a: int, b: int) -> int:
        return a + b

    @dsl.pipeline(name="two-steps")
    def two_steps(a: int = 1, use_case: str = "none"):
        first = add(a=a, b=2)
        add(a=first.output, b=3)

    from google.protobuf import json_format

    ir = json_format.MessageToDict(two_steps.pipeline_spec)
    return Job(name="two-steps", ir=ir, platforms={}, arguments={"a": 5}, run_id=RUN)


def scheduled(job):
    return Job(name=job.name, ir=job.ir, platforms={}, arguments=job.arguments, cron="0 3 * * *")


def workflow(phase="Running", **more):
    return {"metadata": {"name": NAME, "labels": {"shopfloor/run-id": RUN}}, "status": {"phase": phase}, **more}


def test_a_job_is_examined_and_then_created_under_the_name_of_its_run(server, job):
    server.on("POST", LINT, Answer(body=workflow()))
    server.on("POST", WORKFLOWS, Answer(body=workflow()))
    engine = ArgoEngine(settings(server.url))

    assert engine.submit(job) == f"team-a/{NAME}"

    sent = server.requests("POST", WORKFLOWS)[0].body
    assert sent["namespace"] == "team-a"
    assert sent["workflow"] == yaml.safe_load(engine.manifest(job))
    assert sent["workflow"]["metadata"]["name"] == NAME
    assert sent["workflow"]["spec"]["podMetadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a-queue"
    assert TOKEN not in json.dumps(sent)
    assert server.requests("POST", LINT)[0].body["workflow"] == sent["workflow"]


def test_a_schedule_is_a_cron_workflow(server, job):
    server.on("POST", "/api/v1/cron-workflows/team-a/lint", Answer(body={}))
    server.on("POST", "/api/v1/cron-workflows/team-a", Answer(body={"metadata": {"name": "two-steps"}}))

    assert ArgoEngine(settings(server.url)).submit(scheduled(job)) == "team-a/two-steps"

    examined, sent = (one.body["cronWorkflow"] for one in server.history)
    assert examined == sent
    assert sent["spec"]["schedules"] == ["0 3 * * *"]
    assert sent["kind"] == "CronWorkflow"


@pytest.mark.parametrize(
    ("found", "state"),
    [
        ({"status": {}}, "pending"),
        ({"status": {"phase": "Pending"}}, "pending"),
        ({"status": {"phase": "Running"}}, "running"),
        ({"status": {"phase": "Succeeded"}}, "succeeded"),
        ({"status": {"phase": "Failed"}}, "failed"),
        ({"status": {"phase": "Error"}}, "failed"),
        ({"status": {"phase": "Failed"}, "spec": {"shutdown": "Stop"}}, "killed"),
        # Argo lets a workflow succeed whose exit task failed.
        (
            {"status": {"phase": "Succeeded", "nodes": {"x": {"nodeFlag": {"hooked": True}, "phase": "Error"}}}},
            "failed",
        ),
    ],
)
def test_the_phase_of_a_workflow_is_the_state_of_the_run(server, found, state):
    server.on("GET", f"{WORKFLOWS}/{NAME}", Answer(body=found))
    assert ArgoEngine(settings(server.url)).status(f"team-a/{NAME}") == state


def test_each_use_case_has_a_schedule_of_its_own(job):
    engine = ArgoEngine(settings("http://127.0.0.1:1"))
    names = [
        yaml.safe_load(engine.manifest(replace(scheduled(job), arguments={"use_case": use_case})))["metadata"]["name"]
        for use_case in ("flight_delays", "churn", "a" * 60)
    ]
    assert names[:2] == ["two-steps-flight-delays", "two-steps-churn"]
    assert len(names[2]) <= 52


def test_a_run_is_stopped_and_retried_by_its_name(server):
    stopping = workflow(spec={"shutdown": "Stop"})
    server.on("GET", f"{WORKFLOWS}/{NAME}", Answer(body=workflow()), Answer(body=stopping))
    server.on("PUT", f"{WORKFLOWS}/{NAME}/stop", Answer(body=workflow()))
    server.on("PUT", f"{WORKFLOWS}/{NAME}/terminate", Answer(body=workflow()))
    server.on("PUT", f"{WORKFLOWS}/{NAME}/retry", Answer(body=workflow()))
    engine = ArgoEngine(settings(server.url))

    engine.stop(f"team-a/{NAME}")
    engine.stop(f"team-a/{NAME}")  # the second time at once, without its exit handlers
    assert engine.retry(f"team-a/{NAME}") == f"team-a/{NAME}"

    updates = [one for one in server.history if one.method == "PUT"]
    assert [one.path.rpartition("/")[2] for one in updates] == ["stop", "terminate", "retry"]
    assert {one.body["name"] for one in updates} == {NAME}


def test_the_log_of_a_step_is_that_of_its_pods(server):
    nodes = {
        f"{NAME}-111": {"type": "Pod", "displayName": "add", "templateName": "add-x"},
        f"{NAME}-222": {"type": "Pod", "displayName": "add-2(0)", "templateName": "add-x"},
        f"{NAME}-333": {"type": "DAG", "displayName": "root", "templateName": "root"},
    }
    runs, ended = (
        Answer(body=workflow() | {"status": {"phase": phase, "nodes": nodes}}) for phase in ("Running", "Succeeded")
    )
    server.on("GET", f"{WORKFLOWS}/{NAME}", runs, runs, ended)
    lines = [
        {"result": {"content": "one", "podName": f"{NAME}-add-x-111"}},
        {"result": {"content": "two", "podName": f"{NAME}-add-x-222"}},
    ]
    server.on("GET", f"{WORKFLOWS}/{NAME}/log", Answer(lines=lines))
    engine = ArgoEngine(settings(server.url))

    assert list(engine.logs(f"team-a/{NAME}")) == ["--- add", "one", "--- add-2", "two"]
    assert list(engine.logs(f"team-a/{NAME}", "add-2", follow=True)) == ["two"]
    assert "logOptions.follow=true" in server.requests("GET", f"{WORKFLOWS}/{NAME}/log")[-1].query
    with pytest.raises(NotFoundError, match="has no pod of a step 'tune'. It has add, add-2."):
        list(engine.logs(f"team-a/{NAME}", "tune"))


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (
            Answer(401, {"code": 16, "message": "token not valid", "details": []}),
            ServiceError,
            "refuses the token: it is",
        ),
        (
            Answer(403, {"code": 7, "message": f"workflows is forbidden for {TOKEN}", "details": []}),
            ServiceError,
            r"No right to create workflows in the namespace team-a: workflows is forbidden for \*\*\*",
        ),
        (
            Answer(404, {"code": 5, "message": "namespaces 'team-a' not found"}),
            NotFoundError,
            "There is no namespace 'team-a'",
        ),
        (Answer(404, "<html>nginx</html>"), ServiceError, "What answers at http.* is no Argo server"),
        (
            Answer(400, {"code": 3, "message": "spec.templates[0] invalid"}),
            UsageError,
            "refuses it: spec.temp",
        ),
        (Answer(422, {"message": 'Workflow "x" is invalid', "code": 422}), UsageError, 'Workflow "x" is invalid'),
        (Answer(500, {"code": 2, "message": "etcd is away"}), ServiceError, "failed with status 500: etcd is away"),
        (Answer(302, ""), ServiceError, "What answers at http.* is no Argo server"),
        (Answer(200, "<html>login</html>"), ServiceError, "What answers at http.* is no Argo server"),
        (Answer(drop=True), ServiceError, "does not answer"),
        (Answer(wait_s=2.0), ServiceError, r"did not answer within 1 s"),
    ],
)
def test_every_refusal_is_one_line_without_the_token(server, job, answer, error, text, caplog):
    server.on("POST", LINT, answer)
    with pytest.raises(error, match=text) as raised:
        ArgoEngine(settings(server.url)).submit(job)
    assert "\n" not in str(raised.value)
    assert TOKEN not in str(raised.value) + caplog.text
    assert not server.requests("POST", WORKFLOWS)


def test_a_create_whose_answer_was_lost_is_found_again(server, job):
    server.on("POST", LINT, Answer(body={}))
    server.on("POST", WORKFLOWS, Answer(drop=True))
    server.on("GET", f"{WORKFLOWS}/{NAME}", Answer(body=workflow()))
    assert ArgoEngine(settings(server.url)).submit(job) == f"team-a/{NAME}"


def test_a_name_that_another_run_has_is_a_conflict(server, job):
    server.on("POST", LINT, Answer(body={}))
    server.on("POST", WORKFLOWS, Answer(409, {"code": 6, "message": f'workflows "{NAME}" already exists'}))
    other = workflow() | {"metadata": {"name": NAME, "labels": {"shopfloor/run-id": "another"}}}
    server.on("GET", f"{WORKFLOWS}/{NAME}", Answer(body=other), Answer(body=workflow()))
    engine = ArgoEngine(settings(server.url))

    with pytest.raises(ConflictError, match="already exists"):
        engine.submit(job)
    assert engine.submit(job) == f"team-a/{NAME}"  # the same run's, sent twice


def test_a_log_that_is_cut_goes_on_where_it_was(server, monkeypatch):
    monkeypatch.setattr(argo_client, "REOPEN_S", 0.01)
    lines = [{"result": {"content": text, "podName": f"{NAME}-add-111"}} for text in ("one", "two", "three")]
    nodes = {f"{NAME}-111": {"type": "Pod", "displayName": "add", "templateName": "add"}}
    runs, ended = (
        Answer(body=workflow() | {"status": {"phase": phase, "nodes": nodes}}) for phase in ("Running", "Succeeded")
    )
    server.on("GET", f"{WORKFLOWS}/{NAME}", runs, runs, ended)
    server.on("GET", f"{WORKFLOWS}/{NAME}/log", Answer(lines=lines[:2], cut=True), Answer(lines=lines))

    assert list(ArgoEngine(settings(server.url)).logs(f"team-a/{NAME}", "add", follow=True)) == ["one", "two", "three"]


def test_a_token_that_says_when_it_expired_is_told_so(job, monkeypatch):
    claims = base64.urlsafe_b64encode(json.dumps({"exp": 1_700_000_000}).encode()).decode().rstrip("=")
    monkeypatch.setenv("ARGO_TOKEN", f"header.{claims}.signature")
    with serve() as server:
        server.on("POST", LINT, Answer(401, {"code": 16, "message": "token not valid"}))
        with pytest.raises(ServiceError, match="it expired at 2023-11-14 22:13 UTC") as raised:
            ArgoEngine(settings(server.url)).submit(job)
    assert claims not in str(raised.value)


def test_a_netrc_does_not_take_the_tokens_place(server, job, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.on("GET", f"{WORKFLOWS}/{NAME}", Answer(body=workflow()))
    ArgoEngine(settings(server.url)).status(f"team-a/{NAME}")
    assert server.history[0].headers["Authorization"] == f"Bearer {TOKEN}"


def test_a_certificate_that_nobody_vouches_for_is_one_line(job, monkeypatch, tmp_path):
    file = certificate(tmp_path / "server.pem")
    with serve(file) as server:
        server.on("GET", f"{WORKFLOWS}/{NAME}", Answer(body=workflow()))
        monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
        monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
        with pytest.raises(ServiceError, match="no certificate that is trusted. Give the file"):
            ArgoEngine(settings(server.url)).status(f"team-a/{NAME}")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(file))
        assert ArgoEngine(settings(server.url)).status(f"team-a/{NAME}") == "running"


def test_a_pod_that_prints_nothing_says_what_it_waits_for(server):
    nodes = {f"{NAME}-111": {"type": "Pod", "displayName": "add", "templateName": "add", "phase": "Pending"}}
    held = workflow() | {"status": {"phase": "Running", "nodes": nodes}}
    server.on("GET", f"{WORKFLOWS}/{NAME}", Answer(body=held))
    server.on("GET", f"{WORKFLOWS}/{NAME}/log", Answer(lines=[]))
    engine = ArgoEngine(settings(server.url))

    assert engine.status(f"team-a/{NAME}") == "pending"
    assert "Kueue may hold it in the queue team-a-queue" in "\n".join(engine.logs(f"team-a/{NAME}"))


def pod(number, task, phase, message="", **more):
    inputs = {"parameters": [{"name": "task-name", "value": task}]}
    node = {"id": f"{NAME}-{number}", "displayName": f"{task}(0)", "templateName": "x", "inputs": inputs}
    return {f"{NAME}-{number}": {"type": "Pod", "phase": phase, "message": message, **node, **more}}


def test_the_steps_of_a_run_are_those_of_its_pods_whatever_their_image(server):
    nodes = {
        **pod(1, "fetch", "Failed", "Error (exit code 1)", startedAt="2026-11-20T10:00:00Z"),
        **pod(2, "fetch", "Succeeded", startedAt="2026-11-20T10:00:05Z", finishedAt="2026-11-20T10:00:08Z"),
        **pod(3, "train", "Pending", "ImagePullBackOff: Back-off pulling image", startedAt="2026-11-20T10:00:09Z"),
        f"{NAME}-9": {"type": "Retry", "displayName": "fetch", "children": [f"{NAME}-1", f"{NAME}-2"]},
        f"{NAME}-0": {"type": "DAG", "displayName": "root"},
    }
    server.on("GET", f"{WORKFLOWS}/{NAME}", Answer(body=workflow() | {"status": {"phase": "Running", "nodes": nodes}}))

    fetch, train = ArgoEngine(settings(server.url)).steps(f"team-a/{NAME}")

    assert (fetch.name, fetch.state, fetch.seconds) == ("fetch", "succeeded", 3.0)
    assert (train.name, train.state, train.error) == (
        "train",
        "pending",
        "ImagePullBackOff: Back-off pulling image",
    )


def test_a_workflow_that_failed_says_why_by_its_pod_or_by_itself(server):
    pods = {**pod(1, "fetch", "Succeeded"), **pod(2, "train", "Failed", "OOMKilled (exit code 137)")}
    for nodes, why in ((pods, "train: OOMKilled (exit code 137)"), ({}, "no such template")):
        status = {"phase": "Failed", "message": "no such\ntemplate", "nodes": nodes}
        server.on("GET", f"{WORKFLOWS}/{NAME}", Answer(body=workflow() | {"status": status}))

        assert ArgoEngine(settings(server.url)).why(f"team-a/{NAME}") == why


def test_a_pod_whose_first_container_lacks_its_image_says_so_in_kubernetes_own_words(server, monkeypatch):
    monkeypatch.setattr(argo_nodes, "EVENTS_WAIT_S", 0.1)
    held = pod(1, "train", "Pending", "PodInitializing", startedAt="2026-11-20T10:00:00Z")
    server.on("GET", f"{WORKFLOWS}/{NAME}", Answer(body=workflow() | {"status": {"phase": "Running", "nodes": held}}))
    events = [
        warning(f"{NAME}-x-2", "FailedMount", "another pod's"),
        warning(f"{NAME}-x-1", "Failed", 'Failed to pull image "nowhere/platform:1": not found'),
        warning(f"{NAME}-x-1", "Failed", "Error: ErrImagePull"),
    ]
    refused = Answer(status=403, body={"code": 7, "message": "events is forbidden"})
    server.on("GET", "/api/v1/stream/events/team-a", Answer(lines=events, silent_s=0.5), refused)
    engine = ArgoEngine(settings(server.url))

    first, second = (engine.steps(f"team-a/{NAME}")[0].error for _ in range(2))

    assert first == 'Failed: Failed to pull image "nowhere/platform:1": not found'
    assert "`kubectl get events -n team-a --field-selector type=Warning` says why." in second


def warning(pod_name, reason, message):
    event = {"type": "Warning", "reason": reason, "message": message, "involvedObject": {"name": pod_name}}
    return {"result": event}


def test_a_run_that_is_watched_says_once_why_a_step_waits(server, monkeypatch):
    monkeypatch.setattr(argo_engine, "QUIET_S", 0.05)
    waits = pod(1, "train", "Pending", "Unschedulable: 0/1 nodes are available")
    held, ended = (
        Answer(body=workflow() | {"status": {"phase": phase, "nodes": waits}}) for phase in ("Running", "Failed")
    )
    server.on("GET", f"{WORKFLOWS}/{NAME}", held, held, held, ended)
    server.on("GET", f"{WORKFLOWS}/{NAME}/log", Answer(lines=[], silent_s=0.5))

    lines = list(ArgoEngine(settings(server.url)).logs(f"team-a/{NAME}", follow=True))

    assert lines[0] == "train waits: Unschedulable: 0/1 nodes are available"
    assert sum(line.startswith("train waits") for line in lines) == 1


def test_a_server_that_is_down_is_one_line(monkeypatch, job):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(ServiceError, match=f"The Argo server {url} does not answer"):
        ArgoEngine(settings(url)).submit(job)


def test_without_a_token_the_line_says_where_one_goes(job, monkeypatch, tmp_path):
    monkeypatch.delenv("ARGO_TOKEN", raising=False)
    with serve() as server:
        server.on("POST", LINT, Answer(401, {"code": 16, "message": "no token", "details": []}))
        with pytest.raises(ServiceError, match=r"wants a token. Put a valid token into \$ARGO_TOKEN"):
            ArgoEngine(settings(server.url)).submit(job)
        assert "Authorization" not in server.history[0].headers

        file = tmp_path / "token"
        for token in ("first", "second"):  # a mounted file is replaced now and then
            file.write_text(f"{token}\n")
            with pytest.raises(ServiceError, match="refuses the token"):
                ArgoEngine(settings(server.url, token_file=file)).submit(job)
            assert server.history[-1].headers["Authorization"] == f"Bearer {token}"


def test_a_run_of_another_namespace_is_refused(server):
    with pytest.raises(UsageError, match="team-b/x is in another namespace than the profile's, team-a"):
        ArgoEngine(settings(server.url)).status("team-b/x")
