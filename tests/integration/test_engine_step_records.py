"""A step on a cluster stands in MLflow as one of any other engine: a child of the run, with its numbers and its log."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from shopfloor.runs import conclude
from shopfloor.runs import index as run_records
from shopfloor.runs import recorder as tracking

PROJECT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, sys
made = json.loads(sys.argv[1])["outputs"]
print("at work", flush=True)
if json.loads(sys.argv[1])["inputs"]["parameterValues"]["fails"]:
    raise ValueError("no luck")
artifact = {"name": "metrics", "uri": made["artifacts"]["metrics"]["artifacts"][0]["uri"], "metadata": {"auc": 0.7}}
json.dump({"artifacts": {"metrics": {"artifacts": [artifact]}}}, open(made["outputFile"], "w"))
"""


@pytest.fixture
def settings(servers, tmp_path):
    return servers.model_copy(update={"project_root": PROJECT, "artifact_root": str(tmp_path / "store")})


def pod(settings, place, run_id, name, fails, workflow="run-x7", **variables):
    place.mkdir()
    task = {
        "command": [sys.executable, "-c", PROGRAM, "{{$}}"],
        "environment": {},
        "inputs": {"parameters": {"fails": "BOOLEAN"}, "artifacts": {}},
        "defaults": {},
        "outputs": {"parameters": {}, "artifacts": {"metrics": {"schemaTitle": "system.Metrics"}}},
        "cache": True,
        "platform": True,
        "key": "k",
    }
    environment = (
        os.environ
        | settings.environment()
        | {
            "SHOPFLOOR_TASK": base64.b64encode(json.dumps(task).encode()).decode(),
            "SHOPFLOOR_ROOT": str(place),
            "SHOPFLOOR_STATE_DIR": str(place / "state"),
            "SHOPFLOOR_STEP": name,
            "SHOPFLOOR_WORKFLOW": workflow,
            "SHOPFLOOR_POD": "pod",
            "SHOPFLOOR_RUN_ID": run_id,
            "SHOPFLOOR_PARAMETER_fails": json.dumps(fails),
        }
        | variables
    )
    return subprocess.run(
        [sys.executable, "-m", "shopfloor.engines.argo.launcher"], env=environment, cwd=place, check=False
    ).returncode


def test_steps_stand_in_mlflow_with_state_numbers_log_and_error(settings, tmp_path):
    client = tracking.connect(settings)
    run = run_records.create_run(client, None, "counting", {}, {run_records.ENGINE: "argo"})

    codes = [
        pod(settings, tmp_path / "first", run.info.run_id, "train", fails=False),
        pod(settings, tmp_path / "second", run.info.run_id, "train-2", fails=False),
        pod(settings, tmp_path / "third", run.info.run_id, "train-3", fails=True),
    ]

    steps = {step.name: step for step in run_records.steps_of(client, client.get_run(run.info.run_id))}
    assert codes == [0, 0, 1]
    assert {name: step.state for name, step in steps.items()} == {
        "train": "succeeded",
        "train-2": "cached",
        "train-3": "failed",
    }
    assert (steps["train"].result_of, steps["train-2"].result_of) == ("", run.info.run_id)
    assert steps["train-3"].error == "The step's process ended with exit code 1: ValueError: no luck"
    assert steps["train-3"].error_kind == "exit"
    assert client.get_run(run.info.run_id).data.metrics["train.auc"] == 0.7
    assert client.get_run(steps["train"].run_id).info.status == "FINISHED"
    log = client.download_artifacts(steps["train"].run_id, "step.log", str(tmp_path))
    assert Path(log).read_text() == "at work\n"


def test_of_attempts_at_a_step_the_newest_counts(settings, tmp_path):
    client = tracking.connect(settings)
    run = run_records.create_run(client, None, "counting", {}, {run_records.ENGINE: "argo"})

    codes = [
        pod(settings, tmp_path / f"try-{n}", run.info.run_id, "train", fails=n == 0, SHOPFLOOR_NODE=f"r.train({n})")
        for n in range(2)
    ]
    codes.append(
        pod(settings, tmp_path / "item", run.info.run_id, "train", fails=False, SHOPFLOOR_NODE="r.loop(1:a).train")
    )

    run = client.get_run(run.info.run_id)
    assert codes == [1, 0, 0]
    assert [step.state for step in run_records.steps_of(client, run)] == ["succeeded", "cached"]
    assert conclude.close(settings, client, run, "succeeded", "") == "succeeded"


def test_each_run_of_a_schedule_makes_its_record_in_its_first_step(settings, tmp_path):
    client = tracking.connect(settings)
    marker = run_records.scheduled("nightly")

    codes = [
        pod(settings, tmp_path / f"pod-{number}", marker, name, fails=False, workflow=workflow)
        for number, (name, workflow) in enumerate([("train", "n-1"), ("judge", "n-1"), ("train", "n-2")])
    ]

    codes.append(pod(settings, tmp_path / "kfp", marker, "train", fails=False, SHOPFLOOR_KFP_RUN="0a1b-2c"))

    assert codes == [0, 0, 0, 0]
    runs = [run for run in run_records.list_runs(client, None, 100) if run.data.tags[run_records.PIPELINE] == "nightly"]
    assert [run.data.tags[run_records.ENGINE_RUN] for run in runs] == ["0a1b-2c", "shopfloor/n-2", "shopfloor/n-1"]
    assert [run.data.tags[run_records.ENGINE] for run in runs] == ["kfp", "argo", "argo"]
    assert [[step.name for step in run_records.steps_of(client, run)] for run in runs] == [
        ["train"],
        ["train"],
        ["train", "judge"],
    ]
