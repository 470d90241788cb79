"""What MLflow's address answers is told apart: MLflow, MLflow that refuses, something else, nobody."""

import datetime as dt
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata

import pytest
from shopfloor.cli.stack import _standings
from shopfloor.errors import AccessError, NotFoundError, ServiceError
from shopfloor.flows import plan, rollout
from shopfloor.runs.mlflow import Mlflow, RefusedError, connect, failed
from shopfloor.serving import assignment, monitoring
from shopfloor.serving.contract import TAG, Assignment
from shopfloor.settings import Settings

from tests.support.endpoints import USE_CASE


@pytest.fixture
def address():
    """Give a server's address, and the list of its answers, status and body; the last one is given again and again."""
    answers, requests = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(dict(self.headers))
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/login")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", answers, requests
    server.shutdown()
    server.server_close()


def model(*tags: dict) -> bytes:
    return json.dumps({"registered_model": {"name": "flights", "tags": list(tags)}}).encode()


ABSENT = json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no flights"}).encode()


def test_only_mlflows_own_word_means_that_there_is_no_such_model(address):
    uri, answers, _ = address
    answers.append((404, ABSENT))
    nothing = assignment.read(Mlflow(uri, 5), "flights")
    assert (nothing.assignment, nothing.has_record) == (Assignment(), False)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, b"<html>default backend - 404</html>", "is no MLflow server: status 404"),
        (404, b"{}", "is no MLflow server: status 404 without an error code"),
        (200, b"{}", "is no MLflow server: an answer without 'registered_model'"),
        (200, b"[]", "is no MLflow server"),
        (200, b"<html>sign in</html>", "is no MLflow server"),
        (302, b"", "is no MLflow server: status 302"),
        (500, b"out of connections", "answers 500: out of connections"),
        (503, b"", "answers 503"),
    ],
)
def test_any_other_answer_says_nothing_about_the_champion(address, status, body, words):
    uri, answers, _ = address
    answers.append((status, body))
    with pytest.raises(ServiceError, match=words):
        assignment.read(Mlflow(uri, 5), "flights")


@pytest.mark.parametrize(("status", "words"), [(401, "MLFLOW_TRACKING_USERNAME"), (403, "permission")])
def test_a_refused_caller_is_told_what_to_do(address, status, words):
    uri, answers, _ = address
    answers.append((status, b"no"))
    with pytest.raises(AccessError, match=words):
        Mlflow(uri, 5).get("registered-models/get", "registered_model", name="flights")


def test_an_error_of_mlflows_keeps_its_code(address):
    uri, answers, _ = address
    answers.append((400, b'{"error_code": "RESOURCE_ALREADY_EXISTS", "message": "there is one"}'))
    with pytest.raises(RefusedError, match="there is one") as caught:
        Mlflow(uri, 5).post("registered-models/create", {"name": "flights"})
    assert caught.value.error_code == "RESOURCE_ALREADY_EXISTS"


def test_a_failure_of_the_server_or_its_store_is_told_from_a_fault_of_ours():
    from mlflow.exceptions import MlflowException

    cut_off = MlflowException("API request to http://mlflow:5000/x failed with exception Read timed out.\nmore")
    assert isinstance(failed(cut_off), ServiceError)
    assert str(failed(cut_off)).startswith("MLflow did not do what was asked: API request")
    assert failed(MlflowException.invalid_parameter_value("no such filter")) is None
    assert failed(ValueError("ours")) is None


def test_silence_is_a_service_that_does_not_answer():
    with pytest.raises(ServiceError, match="does not answer: ConnectionError"):
        Mlflow("http://127.0.0.1:1", 5).get("registered-models/get", "registered_model")


def test_credentials_of_the_environment_go_with_every_question(address, monkeypatch):
    uri, answers, requests = address
    answers.append((200, model({"key": TAG, "value": '{"champion": "3"}'})))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    assert assignment.read(Mlflow(uri, 5), "flights").assignment.champion == "3"
    assert requests[-1]["Authorization"].startswith("Basic ")


def test_a_model_that_is_unknown_cannot_be_assigned(address):
    uri, answers, _ = address
    answers.append((404, ABSENT))
    with pytest.raises(NotFoundError, match="no model 'flights'"):
        assignment.change(Mlflow(uri, 5), "flights", assignment.Entry(Assignment()), champion="1")


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, AccessError, "MLFLOW_TRACKING_USERNAME"),
        (403, AccessError, "permission"),
        (404, ServiceError, "is no MLflow server"),
        (500, ServiceError, "answers 500: broken"),
    ],
)
def test_a_client_is_made_for_a_server_that_lets_us_in_and_any_other_is_called_what_it_is(
    address, tmp_path, status, kind, words
):
    uri, answers, _ = address
    answers.append((status, b"broken"))
    with pytest.raises(kind, match=words):
        connect(Settings(project_root=tmp_path, tracking_uri=uri))


def test_a_server_that_is_older_than_the_client_is_refused_with_both_versions(address, tmp_path):
    uri, answers, _ = address
    answers += [(200, b"{}"), (200, b"3.1.4")]
    with pytest.raises(ServiceError, match=rf"is 3.1.4, older than the client here, {metadata.version('mlflow')}"):
        connect(Settings(project_root=tmp_path, tracking_uri=uri))


def test_status_says_in_one_line_that_mlflow_refuses_the_credentials(address, tmp_path, capsys):
    uri, answers, _ = address
    answers.append((401, b"no"))
    assert _standings(Settings(project_root=tmp_path, tracking_uri=uri)) == []
    assert "Nobody can say who answers: The MLflow server" in " ".join(capsys.readouterr().err.split())


def test_who_watches_a_new_champion_goes_on_where_mlflow_fails_in_between(address, tmp_path, monkeypatch):
    uri, answers, _ = address
    monkeypatch.setattr(rollout, "GUARD_POLL_S", 0.0)
    third, fourth = (model({"key": TAG, "value": json.dumps({"champion": version})}) for version in "34")
    answers += [(200, third), (200, third), (500, b"busy"), (200, fourth)]
    case = tmp_path / "pipelines" / "flights" / "use_case.yaml"
    case.parent.mkdir(parents=True)
    case.write_text(USE_CASE.format(name="flights") + "gates: {live: {watch_s: 60}}\n")
    words = []
    assert rollout.guard(Settings(project_root=tmp_path, tracking_uri=uri), "flights", words.append) is None
    assert words[1:] == [f"Version 3 of flights is looked at again: The MLflow server at {uri} answers 500: busy"]


def test_a_log_that_cannot_be_read_is_a_store_that_does_not_answer(tmp_path):
    day = tmp_path / "predictions/flights/predictions/date=9999-01-01"
    (day / "99990101T000000.parquet").mkdir(parents=True)  # a file that cannot be read
    settings = Settings(project_root=tmp_path, artifact_root=str(tmp_path))
    with pytest.raises(ServiceError, match="The log of predictions under .* cannot be read"):
        monitoring.read_requests(settings, "flights", dt.datetime.now(dt.UTC))


def test_the_champion_that_a_plan_compares_with_is_that_of_the_ledger(address, tmp_path):
    uri, answers, _ = address
    tags = {assignment.BASE: "6", TAG: json.dumps({"champion": "3"})}
    entry = {"version": "7", "name": "flights.endpoint", "tags": [{"key": k, "value": v} for k, v in tags.items()]}
    answers += [
        (200, json.dumps({"model_versions": [entry]}).encode()),
        (200, json.dumps({"model_version": {"version": "3", "run_id": "gone"}}).encode()),
        (404, ABSENT),
    ]
    assert plan._champion(Settings(project_root=tmp_path, tracking_uri=uri), "flights", "another key") == "3"
