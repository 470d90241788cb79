"""Argo's REST API as the engine speaks it: requests by the official client's models, Argo's own error bodies."""

import json
import socket

import argo_workflows
import pytest
import yaml
from argo_workflows.model.io_argoproj_workflow_v1alpha1_create_cron_workflow_request import (
    IoArgoprojWorkflowV1alpha1CreateCronWorkflowRequest,
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
from argo_workflows.model_utils import validate_and_convert_types
from kfp import dsl
from shopfloor.engines.argo_engine import ArgoEngine
from shopfloor.engines.base import Job
from shopfloor.errors import ConflictError, NotFoundError, ServiceError, UsageError
from shopfloor.settings import ClusterSettings, Settings

from tests.contract.servers import Answer, serve

TOKEN = "argo-token-that-nobody-may-see"
RUN = "0123456789abcdef0123456789abcdef"
WORKFLOWS = "/api/v1/workflows/team-a"
LINT = f"{WORKFLOWS}/lint"
NAME = "two-steps-0123456789ab"
MODELS = {
    ("POST", WORKFLOWS): IoArgoprojWorkflowV1alpha1WorkflowCreateRequest,
    ("POST", LINT): IoArgoprojWorkflowV1alpha1WorkflowLintRequest,
    ("PUT", f"{WORKFLOWS}/{NAME}/stop"): IoArgoprojWorkflowV1alpha1WorkflowStopRequest,
    ("PUT", f"{WORKFLOWS}/{NAME}/retry"): IoArgoprojWorkflowV1alpha1WorkflowRetryRequest,
    ("POST", "/api/v1/cron-workflows/team-a"): IoArgoprojWorkflowV1alpha1CreateCronWorkflowRequest,
}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("ARGO_TOKEN", TOKEN)
    with serve() as running:
        yield running
        for heard in running.heard:
            assert heard.headers["Authorization"] == f"Bearer {TOKEN}"
            model = MODELS.get((heard.method, heard.path))
            if model is not None:
                check(heard.body, model)


def check(body, model):
    """Read `body` as the official client's model: a wrong type or an unknown field is an error."""
    configuration = argo_workflows.Configuration()
    validate_and_convert_types(body, (model,), ["body"], True, True, configuration=configuration)


def settings(url, **cluster):
    given = {"argo_url": url, "namespace": "team-a", "queue": "team-a-queue", **cluster}
    return Settings(project_root="/project", profile="cluster", request_timeout_s=1.0, cluster=ClusterSettings(**given))


@pytest.fixture(scope="module")
def job():
    @dsl.component(base_image="python:3.11", install_kfp_package=False)
    def add(a: int, b: int) -> int:
        return a + b

    @dsl.pipeline(name="two-steps")
    def two_steps(a: int = 1):
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

    sent = server.asked("POST", WORKFLOWS)[0].body
    assert sent["namespace"] == "team-a"
    assert sent["workflow"] == yaml.safe_load(engine.manifest(job))
    assert sent["workflow"]["metadata"]["name"] == NAME
    assert sent["workflow"]["spec"]["podMetadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a-queue"
    assert TOKEN not in json.dumps(sent)
    assert server.asked("POST", LINT)[0].body["workflow"] == sent["workflow"]


def test_a_schedule_is_a_cron_workflow(server, job):
    server.on("POST", "/api/v1/cron-workflows/team-a", Answer(body={"metadata": {"name": "two-steps"}}))

    assert ArgoEngine(settings(server.url)).submit(scheduled(job)) == "team-a/two-steps"

    sent = server.heard[0].body["cronWorkflow"]
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
    ],
)
def test_the_phase_of_a_workflow_is_the_state_of_the_run(server, found, state):
    server.on("GET", f"{WORKFLOWS}/{NAME}", Answer(body=found))
    assert ArgoEngine(settings(server.url)).status(f"team-a/{NAME}") == state


def test_a_run_is_stopped_and_retried_by_its_name(server):
    server.on("PUT", f"{WORKFLOWS}/{NAME}/stop", Answer(body=workflow()))
    server.on("PUT", f"{WORKFLOWS}/{NAME}/retry", Answer(body=workflow()))
    engine = ArgoEngine(settings(server.url))

    engine.stop(f"team-a/{NAME}")
    assert engine.retry(f"team-a/{NAME}") == f"team-a/{NAME}"

    assert [one.body["name"] for one in server.heard] == [NAME, NAME]


def test_the_log_of_a_step_is_that_of_its_pods(server):
    nodes = {
        f"{NAME}-111": {"type": "Pod", "displayName": "add", "templateName": "add-x"},
        f"{NAME}-222": {"type": "Pod", "displayName": "add-2(0)", "templateName": "add-x"},
        f"{NAME}-333": {"type": "DAG", "displayName": "root", "templateName": "root"},
    }
    server.on("GET", f"{WORKFLOWS}/{NAME}", Answer(body=workflow() | {"status": {"phase": "Running", "nodes": nodes}}))
    lines = [
        {"result": {"content": "one", "podName": f"{NAME}-add-x-111"}},
        {"result": {"content": "two", "podName": f"{NAME}-add-x-222"}},
    ]
    server.on("GET", f"{WORKFLOWS}/{NAME}/log", Answer(lines=lines))
    engine = ArgoEngine(settings(server.url))

    assert list(engine.logs(f"team-a/{NAME}")) == ["--- add", "one", "--- add-2", "two"]
    assert list(engine.logs(f"team-a/{NAME}", "add-2", follow=True)) == ["two"]
    assert "logOptions.follow=true" in server.heard[-1].query
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
        (Answer(404, {"code": 5, "message": "namespaces 'team-a' not found"}), NotFoundError, "not found"),
        (Answer(404, "<html>nginx</html>"), ServiceError, "does not answer as an Argo server does"),
        (
            Answer(400, {"code": 3, "message": "spec.templates[0] invalid"}),
            UsageError,
            "refuses the workflow: spec.temp",
        ),
        (Answer(422, {"message": 'Workflow "x" is invalid', "code": 422}), UsageError, 'Workflow "x" is invalid'),
        (Answer(500, {"code": 2, "message": "etcd is away"}), ServiceError, "failed with status 500: etcd is away"),
        (Answer(302, ""), ServiceError, "does not answer as an Argo server does"),
        (Answer(200, "<html>login</html>"), ServiceError, "does not answer as an Argo server does"),
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
    assert not server.asked("POST", WORKFLOWS)


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
        with pytest.raises(ServiceError, match=r"wants a token. Put a token into \$ARGO_TOKEN"):
            ArgoEngine(settings(server.url)).submit(job)
        assert "Authorization" not in server.heard[0].headers

        file = tmp_path / "token"
        for token in ("first", "second"):  # a mounted file is replaced now and then
            file.write_text(f"{token}\n")
            with pytest.raises(ServiceError, match="refuses the token"):
                ArgoEngine(settings(server.url, token_file=file)).submit(job)
            assert server.heard[-1].headers["Authorization"] == f"Bearer {token}"


def test_a_run_of_another_namespace_is_refused(server):
    with pytest.raises(UsageError, match="team-b/x is in another namespace than the profile's, team-a"):
        ArgoEngine(settings(server.url)).status("team-b/x")
