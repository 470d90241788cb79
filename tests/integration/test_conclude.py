"""A run that nobody watches ends in MLflow as one that somebody does: outcome, gates, report."""

import html
import json
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
from shopfloor import processes
from shopfloor.engines.base import engine_url
from shopfloor.engines.local_runs import LocalEngine, log_folder
from shopfloor.errors import ConflictError, UsageError
from shopfloor.flows import runs
from shopfloor.records import Evaluation, GateResult, Search, Trial
from shopfloor.runs import conclude, index, recorder
from shopfloor.runs.mlflow import import_mlflow
from shopfloor.settings import ClusterSettings, Settings

from tests.support.cluster_api import Answer, serve

IR = {
    "components": {"comp-evaluate": {}, "comp-register": {}},
    "root": {
        "dag": {
            "tasks": {
                "evaluate": {"componentRef": {"name": "comp-evaluate"}},
                "register": {"componentRef": {"name": "comp-register"}, "dependentTasks": ["evaluate"]},
            }
        }
    },
}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    place = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)  # MLflow keeps artifacts in the directory that it is begun in
        yield import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{place}/mlflow.db")


@pytest.fixture
def settings(tmp_path):
    return Settings(project_root=tmp_path, state_dir=tmp_path / "state", artifact_root=str(tmp_path / "store"))


def begun(client):
    run = index.create_run(client, None, "judging", {"use_case": "tips"}, {index.ENGINE: "argo"})
    client.log_text(run.info.run_id, json.dumps(IR), conclude.PIPELINE_FILE)
    return run


def step(client, run, name, state, outputs=None, **tags):
    step_id = recorder.create_step(client, run.info.experiment_id, run.info.run_id, name)
    if state != "running":
        recorder.finish_step(client, run.info.run_id, step_id, name, state, 1.0, outputs or {}, None, tags)
    return step_id


def ended(client, run, tmp_path):
    run = client.get_run(run.info.run_id)
    report = html.unescape(Path(client.download_artifacts(run.info.run_id, "report.html", str(tmp_path))).read_text())
    return run.data.tags[index.STATE], run.data.tags[index.OUTCOME], run.info.status, report


def test_a_gate_that_a_step_on_a_cluster_missed_is_told(client, settings, tmp_path):
    run = begun(client)
    gate = GateResult(gate="roc_auc", bound=">= 0.9", value=0.8, passed=False, missed_by=0.1)
    evaluation = Evaluation(
        rows=10,
        metrics={"roc_auc": 0.8},
        champion=None,
        champion_metrics={},
        slices=[],
        gates=[gate],
        passed=False,
        importance={},
    )
    place = tmp_path / "evaluation"
    place.mkdir()
    (place / "evaluation.json").write_text(evaluation.model_dump_json())
    artifact = {"name": "evaluation", "uri": str(place), "metadata": {"content_hash": "x"}, "type": {}}
    step_id = step(client, run, "evaluate", "succeeded", {"evaluation": artifact})
    conclude.attach_records(settings, client, step_id, {"evaluation": artifact}, run.info.run_id)

    state = conclude.close(settings, client, run, "succeeded", "")

    recorded, outcome, status, report = ended(client, run, tmp_path)
    assert (state, recorded, status) == ("gate_missed", "gate_missed", "FAILED")
    assert outcome.startswith("Gate missed: roc_auc must be >= 0.9, is 0.8000")
    assert outcome in report
    assert "register" in report, "the step that did not run"
    assert client.get_run(run.info.run_id).data.metrics["roc_auc"] == 0.8


def test_a_search_whose_result_is_taken_gives_its_parameters_to_the_run_that_takes_it(client, settings, tmp_path):
    run = begun(client)
    trial = Trial(trial_id="t", params={"depth": 3}, metrics={}, rounds=1, seconds=1, status="finished")
    (tmp_path / "search.json").write_text(
        Search(metric="auc", mode="max", best_trial_id="t", trials=[trial]).model_dump_json()
    )
    artifact = {"name": "search", "uri": str(tmp_path), "metadata": {"content_hash": "x"}, "type": {}}
    step_id = step(client, run, "tune", "cached", {"search": artifact})

    for _ in range(2):  # what a run has already stays
        conclude.attach_records(settings, client, step_id, {"search": artifact}, run.info.run_id)

    assert [client.get_run(one).data.params.get("depth") for one in (run.info.run_id, step_id)] == ["3", "3"]


def test_the_log_of_a_cached_step_is_that_of_the_run_whose_result_it_took(client, settings, tmp_path):
    log = tmp_path / "tune.log"
    log.write_text("trial 1/1")
    maker, taker = (index.create_run(client, None, "training", {}, {index.ENGINE: "local"}) for _ in range(2))
    step_id = recorder.create_step(client, maker.info.experiment_id, maker.info.run_id, "tune")
    recorder.finish_step(client, maker.info.run_id, step_id, "tune", "succeeded", 1.0, {}, log, {})
    step(client, taker, "tune", "cached", **{index.RESULT_OF: maker.info.run_id})

    lines = list(runs.logs(settings, client, client.get_run(taker.info.run_id), "tune"))

    assert lines == [f"--- tune: result of run {maker.info.run_id}", "trial 1/1"]


def test_a_step_that_nobody_ended_fails_with_its_run_and_the_engine_says_why(client, settings, tmp_path):
    run = begun(client)
    step_id = step(client, run, "evaluate", "running")

    conclude.close(settings, client, run, "failed", "The argo run failed: no node fits")

    assert ended(client, run, tmp_path)[:3] == ("failed", "The argo run failed: no node fits", "FAILED")
    assert client.get_run(step_id).info.status == "FAILED"


def test_a_disk_that_has_no_room_for_the_report_hides_no_outcome(client, settings, tmp_path, monkeypatch, caplog):
    run = begun(client)
    monkeypatch.setattr(tempfile, "tempdir", "/dev/full")  # where MLflow's client writes a text first
    conclude.end(settings, client, run.info.run_id, "failed", "The disk is full.", [], [], {}, None)
    tags = client.get_run(run.info.run_id).data.tags
    assert (tags[index.STATE], tags[index.OUTCOME]) == ("failed", "The disk is full.")
    assert f"Run {run.info.run_id} has no report: " in caplog.text


def test_a_step_that_made_the_champion_gives_the_run_its_version(client, settings, tmp_path):
    run = begun(client)
    effect = {"kind": "champion", "version": "7", "use_case": "tips"}
    step(client, run, "promote", "succeeded", {"champion": {"uri": "x", "metadata": {"effect": effect}, "type": {}}})

    conclude.close(settings, client, run, "succeeded", "")

    state, outcome, status, report = ended(client, run, tmp_path)
    assert (state, outcome, status) == ("succeeded", "Version 7 is the champion.", "FINISHED")
    assert "/versions/7" in report


def test_the_first_step_of_a_scheduled_run_makes_its_record_and_the_others_find_it(client, settings):
    marker = index.scheduled("nightly")
    assert index.is_scheduled(marker)
    assert not index.is_scheduled("0123")

    ids = [index.scheduled_run(client, settings, marker, None, {}, name) for name in ("n-1", "n-1", "n-2")]

    assert ids[0] == ids[1] != ids[2]
    run = client.get_run(ids[0])
    assert (run.data.tags[index.PIPELINE], run.data.tags[index.STATE]) == ("nightly", "running")


def test_of_two_commands_that_retry_a_run_here_one_waits_and_then_sees_that_it_goes_on(client, settings, monkeypatch):
    failed = {index.ENGINE: "local", index.STATE: "failed"}
    run = index.create_run(client, None, "twice", {}, failed)
    monkeypatch.setattr(runs, "LOCK_TIMEOUT_S", 0.1)
    with (
        runs._alone(settings, run.info.run_id),
        pytest.raises(ConflictError, match="Another command retries run"),
    ):
        runs.retry(settings, client, client.get_run(run.info.run_id), None)

    before = client.get_run(run.info.run_id)
    client.set_tag(run.info.run_id, index.STATE, "running")  # by a command of another machine
    with pytest.raises(UsageError, match="goes on: running"):
        runs.retry(settings, client, before, None)


@pytest.fixture
def process():
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def goes_on(client, process):
    tags = {index.ENGINE: "local", index.PROCESS: f"{socket.gethostname()} {processes.identify(process.pid)}"}
    return client.get_run(index.create_run(client, None, "here", {}, tags).info.run_id)


def test_a_run_of_this_machine_is_followed_and_stopped_from_another_terminal(client, settings, process):
    settings = settings.model_copy(update={"tracking_uri": client.tracking_uri})
    run = goes_on(client, process)
    engine, log = LocalEngine(settings), log_folder(settings, run.info.run_id) / "work.log"
    log.parent.mkdir(parents=True)
    log.write_text("one\ntw")
    lines = runs.logs(settings, client, run, follow=True)

    assert engine.status(run.info.run_id) == "running"
    assert [next(lines), next(lines)] == ["--- work", "one"], "of a line that is not whole nothing is told"
    assert runs.stop(settings, client, run) == "killed"

    assert process.wait() < 0
    assert list(lines) == ["tw"]
    assert (engine.status(run.info.run_id), engine.why(run.info.run_id)) == (
        "killed",
        "The process of the run was killed.",
    )


def test_a_step_that_was_killed_is_said_to_have_failed_for_the_engines_reason(client, settings):
    def node(number, task, phase, message=""):
        inputs = {"parameters": [{"name": "task-name", "value": task}]}
        return {f"w-{number}": {"type": "Pod", "phase": phase, "message": message, "inputs": inputs}}

    nodes = node(1, "evaluate", "Failed", "main: OOMKilled (exit code 137)") | node(2, "register", "Failed", "no")
    with serve() as server:
        server.on("GET", "/api/v1/workflows/team/w", Answer(body={"status": {"phase": "Failed", "nodes": nodes}}))
        cluster = ClusterSettings(namespace="team", argo_url=server.url)
        settings = settings.model_copy(update={"cluster": cluster})
        run = begun(client)
        step(client, run, "evaluate", "running")
        step(client, run, "register", "failed", **{index.ERROR: "it says itself"})
        for tag, value in {index.ENGINE_RUN: "team/w", index.ENGINE_URL: engine_url(settings, "argo")}.items():
            client.set_tag(run.info.run_id, tag, value)

        assert runs.reconcile(settings, client, client.get_run(run.info.run_id)) == "failed"

    errors = {record.name: (record.state, record.error) for record in index.steps_of(client, run)}
    assert errors == {
        "evaluate": ("failed", "main: OOMKilled (exit code 137)"),
        "register": ("failed", "it says itself"),
    }


def test_a_run_that_wrote_its_end_while_others_looked_for_dead_ones_keeps_it(client, settings, process, monkeypatch):
    run = goes_on(client, process)
    process.kill()
    process.wait()
    client.set_tag(run.info.run_id, index.STATE, "succeeded")
    monkeypatch.setattr(index, "open_runs", lambda client: [run])  # as it was read before

    conclude.close_dead_runs(settings, client)

    assert client.get_run(run.info.run_id).data.tags[index.STATE] == "succeeded"
