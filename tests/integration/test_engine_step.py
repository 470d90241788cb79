"""One step on a cluster: what another engine has computed is taken, what runs is kept."""

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import json_format
from kfp import dsl
from shopfloor.engines.argo.translation import translate
from shopfloor.engines.local import LocalRun
from shopfloor.pipeline import ir
from shopfloor.pipeline.results import ResultStore
from shopfloor.settings import ClusterSettings, Settings

PROJECT = Path(__file__).resolve().parents[2]
IMAGE = ClusterSettings().image


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def count(number: int, text: str = "by default", factor: float = 2.0, metrics: dsl.Output[dsl.Metrics] = None) -> str:
    import os

    with open(os.environ["EXECUTIONS"], "a") as file:
        file.write("x")
    metrics.log_metric("value", number * factor)
    print("counting")
    return f"{text} {number * factor}"


@dsl.pipeline
def counting(number: int):
    count(number=number)


class Silent:
    def step_started(self, step):
        return {}

    def step_finished(self, *arguments):
        self.state, self.result_of = arguments[1], arguments[6:]


@pytest.fixture
def settings(tmp_path):
    return Settings(project_root=PROJECT, state_dir=tmp_path / "state", artifact_root=str(tmp_path / "artifacts"))


def on_cluster(settings, place, number, **more):
    """Run the pipeline's one pod as Argo would."""
    place.mkdir(exist_ok=True)
    ir = json_format.MessageToDict(counting.pipeline_spec)
    manifest = translate(ir, {}, {"number": number}, settings, **more)
    template = next(item for item in manifest["spec"]["templates"] if item["name"] == "comp-count")
    values = {"number": str(number), "text": "by default", "factor": "2.0", "task-name": "count"}
    environment = {
        item["name"]: re.sub(r"^\{\{(.*)\}\}$", r"\1", item["value"], flags=re.DOTALL)
        for item in template["container"]["env"]
        if "value" in item
    }
    for name, value in values.items():
        for key in environment:
            forms = {f"inputs.parameters.{name}", f"=replace(inputs.parameters['{name}'], '$', '$$')"}
            environment[key] = value if environment[key] in forms else environment[key]
    environment |= {
        "SHOPFLOOR_ROOT": str(place),
        "SHOPFLOOR_PROJECT_ROOT": str(PROJECT),
        "SHOPFLOOR_STATE_DIR": str(place / "state"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(place),
        "EXECUTIONS": str(place / "executions"),
    }
    assert json.loads(base64.b64decode(environment["SHOPFLOOR_TASK"]))["platform"] is True
    result = subprocess.run(
        [sys.executable, *template["container"]["command"][1:]],
        env=environment,
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    executions = place / "executions"
    return result, len(executions.read_text()) if executions.exists() else 0


def test_a_step_runs_once_and_its_result_is_taken_ever_after(settings, tmp_path):
    first, ran = on_cluster(settings, tmp_path / "pod-1", 3)
    second, ran_again = on_cluster(settings, tmp_path / "pod-2", 3)
    other, ran_other = on_cluster(settings, tmp_path / "pod-3", 4)

    assert [result.returncode for result in (first, second, other)] == [0, 0, 0], first.stderr + second.stderr
    assert (ran, ran_again, ran_other) == (1, 0, 1)
    assert "counting" in first.stdout
    parameters = [tmp_path / pod / "outputs/parameters" for pod in ("pod-1", "pod-2")]
    assert [(place / "Output").read_text() for place in parameters] == ["by default 6.0"] * 2
    envelopes = [json.loads((place / "metrics-artifact").read_text()) for place in parameters]
    assert [envelope["metadata"] for envelope in envelopes] == [{"value": 6}] * 2


def test_without_the_cache_the_step_runs_and_its_result_is_kept(settings, tmp_path):
    _, ran = on_cluster(settings, tmp_path / "pod-1", 3, use_cache=False)
    _, ran_again = on_cluster(settings, tmp_path / "pod-2", 3, use_cache=False)
    _, ran_cached = on_cluster(settings, tmp_path / "pod-3", 3)

    assert (ran, ran_again, ran_cached) == (1, 1, 0)


def test_what_this_machine_has_computed_is_a_hit_on_the_cluster(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("EXECUTIONS", str(tmp_path / "executions"))
    listener = Silent()
    store = ResultStore(settings.model_copy(update={"run_id": "first"}), effect_holds=lambda effect: True)
    run = LocalRun(settings, tmp_path / "run", store, listener)
    assert run.execute(ir.unchecked(counting.pipeline_spec), {"number": 3}) is True
    again = Silent()
    rerun = LocalRun(settings, tmp_path / "again", store, again)
    assert rerun.execute(ir.unchecked(counting.pipeline_spec), {"number": 3}) is True
    assert (again.state, again.result_of) == ("cached", ("first",))

    result, ran = on_cluster(settings, tmp_path / "pod-1", 3)

    assert (listener.state, result.returncode, ran) == ("succeeded", 0, 0), result.stderr
    assert (tmp_path / "pod-1/outputs/parameters/Output").read_text() == "by default 6.0"


def test_a_server_that_does_not_answer_fails_the_step_in_one_line(settings, tmp_path):
    dead = settings.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})

    result, ran = on_cluster(dead, tmp_path / "pod-1", 3, run_id="0123")

    assert (result.returncode, ran) == (1, 0)
    assert result.stderr.splitlines()[-1].startswith("The MLflow server at http://127.0.0.1:9 does not answer: ")
    assert "Traceback" not in result.stderr
