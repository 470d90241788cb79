"""Runs as Ray jobs on a real cluster of two nodes, with a real MLflow server; and the commands that steer runs."""

import contextlib
import functools
import html
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil
import pytest
import requests
from shopfloor.engines.base import Job
from shopfloor.engines.ray import RayEngine
from shopfloor.errors import NotFoundError, UsageError
from shopfloor.flows import dispatch, upgrade
from shopfloor.flows import runs as control
from shopfloor.flows.changeover import Part
from shopfloor.flows.submission import Submission
from shopfloor.runs import index
from shopfloor.runs.recorder import connect
from shopfloor.settings import ClusterSettings, load_settings
from shopfloor.stack.services import TITLES

from tests.support import project
from tests.support.project import ROOT, bare_environment
from tests.support.waiting import free_port, wait_until

JOB = Job(name="three", ir={}, platforms={}, arguments={}, file=Path(__file__))
PIPELINE = """
from kfp import dsl

component = dsl.component(base_image="python:3.11", install_kfp_package=False)

@component
def begin(text: str) -> str:
    print("begins with", text)
    return text + "!"

@component
def work(text: str, seconds: float) -> str:
    import time
    print("works", flush=True)
    time.sleep(seconds)
    # defect
    return text.upper()

@component
def count(text: str, join: bool) -> int:
    if not join:
        return len(text)
    import os
    import ray
    ray.init(address=os.environ["SHOPFLOOR_RAY_ADDRESS"], log_to_driver=False)
    nodes = sum(node["Alive"] for node in ray.nodes())
    print("joined a cluster of", nodes, "nodes")
    return nodes

@dsl.pipeline(name="three")
def three(text: str, seconds: float = 0.0, join: bool = False):
    worked = work(text=begin(text=text).output, seconds=seconds)
    count(text=worked.output, join=join)
"""
CLUSTER = """
import sys, time
from types import SimpleNamespace
from ray.cluster_utils import Cluster
from shopfloor.stack import ray_head

ray_head.start_hook(SimpleNamespace(), True)
node = {"node_ip_address": "127.0.0.1", "num_cpus": 2, "object_store_memory": 100_000_000}
port, *ports = map(int, sys.argv[1:])
agents = ("dashboard_agent_listen_port", "metrics_agent_port", "runtime_env_agent_port", "metrics_export_port")
dashboard = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
cluster = Cluster(initialize_head=True, head_node_args={**node, **dashboard, **dict(zip(agents, ports[:4]))})
cluster.add_node(**node, **dict(zip(agents, ports[4:])))
time.sleep(600)
"""
LOOP = """
from kfp import dsl

@dsl.component(base_image="python:3.11", install_kfp_package=False)
def show(text: str) -> None:
    print("GOT", text)
    if text == "b":
        raise RuntimeError("bad item")

@dsl.pipeline(name="loop")
def loop():
    with dsl.ParallelFor(["a", "b", "c"], parallelism=1) as item:
        show(text=item)
"""
DEFECT = 'raise ValueError("the work is broken")'


def end(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.terminate()
        for member in psutil.wait_procs(family, timeout=10)[1]:
            member.kill()
    process.wait()


def spawn(command, log, **environment):
    with log.open("ab") as output:
        return subprocess.Popen(
            [str(part) for part in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}", **environment},
            start_new_session=True,
        )


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    """An MLflow server and a Ray cluster of two nodes: their addresses."""
    logs = tmp_path_factory.mktemp("services")
    mlflow, dashboard = free_port(), free_port()
    temporary = tempfile.mkdtemp(prefix="sf-")  # Ray's sockets need a short path
    token = logs / "token"
    token.write_text("0123456789abcdef" * 4)
    (Path(temporary) / "ray").mkdir()
    started = [
        spawn(
            [sys.executable, "-m", "shopfloor.stack.mlflow_server", mlflow, logs / "mlflow"],
            logs / "mlflow.log",
            MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        ),
        # `0` keeps every process of the cluster on 127.0.0.1.
        spawn(
            [sys.executable, "-c", CLUSTER, dashboard, *(free_port() for _ in range(8))],
            logs / "ray.log",
            RAY_TMPDIR=temporary,
            PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
            RAY_USAGE_STATS_ENABLED="0",
            RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="0",
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN_PATH=str(token),
        ),
    ]
    found = {
        "mlflow": f"http://127.0.0.1:{mlflow}",
        "dashboard": f"http://127.0.0.1:{dashboard}",
        "token": str(token),
    }
    headers = {"Authorization": f"Bearer {token.read_text()}"}

    def nodes():
        answer = requests.get(f"{found['dashboard']}/nodes?view=summary", timeout=5, headers=headers)
        summary = answer.json()["data"]["summary"]
        return sum(node["raylet"]["state"] == "ALIVE" for node in summary)

    try:
        wait_until(lambda: nodes() == 2)
        wait_until(lambda: requests.get(f"{found['mlflow']}/health", timeout=5).ok)
        yield found
    finally:
        for process in reversed(started):
            end(process)
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def environment(services, tmp_path_factory):
    """The environment of every command: the services above, a state directory of its own."""
    return bare_environment("MLFLOW_", "RAY_") | {
        "SHOPFLOOR_STATE_DIR": str(tmp_path_factory.mktemp("state")),
        "SHOPFLOOR_TRACKING_URI": services["mlflow"],
        "SHOPFLOOR_RAY_DASHBOARD_URL": services["dashboard"],
        "SHOPFLOOR_RAY_TOKEN_FILE": services["token"],
    }


@pytest.fixture(scope="module")
def shopfloor(environment):
    return functools.partial(project.shopfloor, environment=environment)


@pytest.fixture
def pipeline(tmp_path):
    file = tmp_path / "three.py"
    file.write_text(PIPELINE)
    return file


@pytest.fixture(scope="module")
def mlflow_run(services):
    """Read a run as MLflow has it now: its tags, and the state of each step."""
    import mlflow

    client = mlflow.MlflowClient(services["mlflow"])

    def read(run_id):
        run = client.get_run(run_id)
        children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
        run.steps = {child.data.tags["shopfloor.step"]: child.data.tags["shopfloor.state"] for child in children}
        return run

    return read


def state_of(run):
    return run.data.tags["shopfloor.state"]


def submitted(answer):
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found["state"] == "running"
    return found["run_id"]


def test_a_run_outlives_its_terminal_and_after_a_fix_goes_on_with_what_changed(
    shopfloor, environment, pipeline, mlflow_run
):
    pipeline.write_text(PIPELINE.replace("# defect", DEFECT))
    failed = shopfloor(
        *("submit", pipeline, "--engine", "ray", "-p", "text=fixed", "-p", "join=true", "--watch", "--json")
    )
    assert failed.returncode == 1, failed.stderr
    run_id = json.loads(failed.stdout)["run_id"]
    assert json.loads(failed.stdout)["outcome"] == "Step work failed: ValueError: the work is broken"
    settings = load_settings(project_root=ROOT, state_dir=environment["SHOPFLOOR_STATE_DIR"]).model_copy(
        update={
            "ray_dashboard_url": environment["SHOPFLOOR_RAY_DASHBOARD_URL"],
            "ray_token_file": environment["SHOPFLOOR_RAY_TOKEN_FILE"],
        }
    )
    why = RayEngine(settings).why(mlflow_run(run_id).data.tags["shopfloor.engine_run"])
    assert re.fullmatch(r"Job entrypoint command failed with exit code 1: .*\S", why)
    pipeline.write_text(PIPELINE)

    resumed = submitted(shopfloor("runs", "resume", run_id, "--json"))

    # Nobody watches: the command has returned.
    assert resumed != run_id
    wait_until(lambda: state_of(mlflow_run(resumed)) != "running")
    run = mlflow_run(resumed)
    assert state_of(run) == "succeeded", run.data.tags
    assert (run.info.status, run.data.tags["shopfloor.engine"]) == ("FINISHED", "ray")
    assert run.steps == {"begin": "cached", "work": "succeeded", "count": "succeeded"}
    assert run.data.params == {"text": "fixed", "join": "True"}
    log = shopfloor("runs", "logs", resumed, "count")
    assert "joined a cluster of 2 nodes" in log.stdout

    retried = shopfloor("runs", "retry", run_id, "--watch", "--json")

    assert retried.returncode == 0, retried.stderr
    found = json.loads(retried.stdout)
    assert (found["run_id"], found["state"], found["engine"]) == (run_id, "succeeded", "ray")
    assert [step["state"] for step in found["steps"]] == ["cached"] * 3
    assert all(step["error"] == "" for step in found["steps"])


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_loop_of_which_one_item_fails_is_a_run_that_failed(shopfloor, mlflow_run, tmp_path, engine):
    file = tmp_path / "loop.py"
    file.write_text(LOOP)

    failed = shopfloor("submit", file, "--engine", engine, "--watch", "--json")

    assert failed.returncode == 1, failed.stderr
    answer = json.loads(failed.stdout)
    assert (answer["state"], answer.get("message") or answer["outcome"]) == (
        "failed",
        "Step show.1 failed: RuntimeError: bad item",
    )
    # Another engine has them done already.
    states = {step["name"]: step["state"] for step in answer["steps"]}
    assert states.pop("show.1") == "failed"
    assert set(states) == {"show.0", "show.2"}
    assert set(states.values()) <= {"succeeded", "cached"}
    run = mlflow_run(answer["run_id"])
    assert (run.info.status, set(run.steps)) == ("FAILED", {"show.0", "show.1", "show.2"})
    assert "GOT b" in shopfloor("runs", "logs", answer["run_id"], "show.1").stdout


def test_ctrl_c_while_watching_leaves_the_run_and_stop_ends_it_with_its_steps(
    shopfloor, environment, pipeline, mlflow_run
):
    watcher = subprocess.Popen(
        [
            *(sys.executable, "-m", "shopfloor", "submit", str(pipeline), "--engine", "ray", "--watch"),
            *("-p", "text=watched", "-p", "seconds=600"),
        ],
        env=environment,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    lines = []
    for line in watcher.stderr:
        lines.append(line)
        if line.startswith("work: running"):
            break
    watcher.send_signal(signal.SIGINT)
    message = watcher.communicate(timeout=30)[1]

    run_id = next(line.split()[1] for line in lines if line.startswith("Run ") and "ray engine" in line)
    assert watcher.returncode == 130
    assert f"The run goes on. To stop it: shopfloor runs stop {run_id}" in message
    assert state_of(mlflow_run(run_id)) == "running"

    stopped = shopfloor("runs", "stop", run_id, "--json")

    assert stopped.returncode == 0, stopped.stderr
    assert json.loads(stopped.stdout) == {"run_id": run_id, "state": "killed"}
    run = mlflow_run(run_id)
    assert run.info.status == "KILLED"
    assert run.steps == {"begin": "succeeded", "work": "killed"}
    assert not [process for process in psutil.process_iter(["environ"]) if is_step_of(process, run_id)]
    again = shopfloor("runs", "stop", run_id)
    assert again.returncode == 2
    assert again.stderr == (f"error: Run {run_id} has ended already: killed. `shopfloor runs list` shows what runs.\n")


def test_a_ctrl_c_ends_the_reading_of_a_log_at_whichever_moment_it_comes(environment):
    settings = load_settings(
        project_root=ROOT,
        ray_dashboard_url=environment["SHOPFLOOR_RAY_DASHBOARD_URL"],
        ray_token_file=environment["SHOPFLOOR_RAY_TOKEN_FILE"],
    )
    engine = RayEngine(settings)
    talks = "import time\nwhile True: print('still here', flush=True); time.sleep(0.001)"
    job = engine._begin(entrypoint=shlex.join([sys.executable, "-c", talks]))
    wait_until(lambda: "still here" in "".join(engine.logs(job)))

    for moment in range(100):
        interrupt = threading.Timer(0.001 * moment, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            if moment % 25:  # while the connection is made
                interrupt.start()
            for _ in engine._follow(job):
                if interrupt.ident is None:  # while lines come
                    interrupt.start()

    engine.stop(job)


def is_step_of(process, run_id):
    environment = process.info["environ"] or {}
    return environment.get("SHOPFLOOR_RUN_ID") == run_id and "SHOPFLOOR_STEP_RUN_ID" in environment


def test_a_job_that_was_killed_is_seen_as_killed_by_whoever_looks_next(shopfloor, pipeline, mlflow_run):
    answer = shopfloor("submit", pipeline, "--engine", "ray", "-p", "text=killed", "-p", "seconds=600", "--json")
    run_id = submitted(answer)
    wait_until(lambda: mlflow_run(run_id).steps.get("work") == "running")
    process = psutil.Process(int(mlflow_run(run_id).data.tags["shopfloor.process"].split()[1]))
    steps = process.children(recursive=True)
    assert steps
    process.kill()
    for step in steps:
        step.kill()

    runs = json.loads(shopfloor("runs", "list", "--json").stdout)["runs"]

    assert next(run["state"] for run in runs if run["run_id"] == run_id) == "killed"
    assert mlflow_run(run_id).steps == {"begin": "succeeded", "work": "killed"}


def test_what_cannot_be_done_is_said_in_one_line(shopfloor, services, pipeline, tmp_path):
    nowhere, stranger = f"http://127.0.0.1:{free_port()}", services["mlflow"]
    local = ("submit", pipeline, "-p", "text=a")

    unknown = shopfloor("runs", "stop", "feedbeef")
    assert (unknown.returncode, unknown.stderr) == (
        2,
        "error: There is no run 'feedbeef'. `shopfloor runs list` shows the ids.\n",
    )
    down = shopfloor(*local, "--engine", "ray", "--ray-address", nowhere)
    assert (down.returncode, down.stdout) == (1, "")
    assert down.stderr.startswith(f"error: The Ray cluster at {nowhere} does not answer.")
    other = shopfloor(*local, "--engine", "ray", "--ray-address", stranger)
    assert other.returncode == 1
    assert other.stderr.startswith(f"error: {stranger} is not the dashboard of a Ray cluster.")


def test_a_job_without_the_clusters_token_is_refused_in_one_line(shopfloor, environment, services, pipeline, tmp_path):
    (tmp_path / "other").write_text("not-the-token-of-this-cluster")
    local = ("submit", pipeline, "-p", "text=a", "--engine", "ray")

    for token, words in ((tmp_path / "other", "does not accept ours"), (tmp_path / "none", "cannot be read")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(environment, "SHOPFLOOR_RAY_TOKEN_FILE", str(token))
            refused = shopfloor(*local)

        assert refused.returncode in {1, 2}
        assert words in refused.stderr
        assert refused.stderr.count("\n") == 1


def test_a_cluster_elsewhere_gets_a_copy_of_the_project(environment, mlflow_run, monkeypatch):
    # A file of the project, as nothing else is carried.
    file = ROOT / "pipelines" / f"_three_{os.getpid()}.py"
    tracked, data = (ROOT / "data" / f"_three_{os.getpid()}.{kind}" for kind in ("dvc", "parquet"))
    settings = load_settings(project_root=ROOT, state_dir=environment["SHOPFLOOR_STATE_DIR"]).model_copy(
        update={
            "tracking_uri": environment["SHOPFLOOR_TRACKING_URI"],
            "ray_dashboard_url": environment["SHOPFLOOR_RAY_DASHBOARD_URL"],
            "ray_token_file": environment["SHOPFLOOR_RAY_TOKEN_FILE"],
        }
    )
    submission = Submission(file=str(file), use_case=None, given=["text=copied"])
    with pytest.raises(UsageError, match="cannot reach the artifacts in"):
        RayEngine(settings.model_copy(update={"ray_dashboard_url": "http://ray.example:8265"})).submit(JOB)
    monkeypatch.setattr(RayEngine, "_is_here", lambda _: False)
    monkeypatch.setattr(RayEngine, "_require_reachable", lambda _: None)
    file.write_text(
        PIPELINE.replace(
            "# defect", "import os, shopfloor; print(*os.listdir('data'), os.getcwd(), shopfloor.__file__)"
        )
    )
    for one in (tracked, data):
        one.write_text("outs: []")
    client = connect(settings)
    try:
        taken = dispatch.start(settings, "ray", submission, view=None)
        wait_until(lambda: control.reconcile(settings, client, mlflow_run(taken.run_id)) not in {"pending", "running"})
    finally:
        for one in (file, tracked, data):
            one.unlink()

    run = mlflow_run(taken.run_id)
    log = list(control.logs(settings, client, run, "work"))
    assert state_of(run) == "succeeded", list(control.engine_of(settings, "ray").logs(taken.engine_run))
    *carried, directory, library = next(line for line in log if line.endswith("__init__.py")).split()
    assert "/_ray_pkg_" in directory
    assert tracked.name in carried
    assert all(name.endswith(".dvc") for name in carried)
    assert library == f"{directory}/platform/shopfloor/__init__.py"


class ElsewhereEngine:
    """Stands for an engine that no machine without a cluster can run: it takes a job and ends as it is told to."""

    name = "argo"
    state = "running"
    jobs: list[Job] = []

    def __init__(self, settings):
        pass

    def submit(self, job):
        self.jobs.append(job)
        return "three-x7"

    def status(self, engine_run):
        assert engine_run == "three-x7"
        if self.state == "unknown":
            raise NotFoundError("There is no such workflow.")
        return self.state

    def why(self, engine_run):
        return "the pod could not pull its image"

    def logs(self, engine_run, step=None, follow=False):
        yield "a line that says nothing of it"

    def stop(self, engine_run):
        pass

    def retry(self, engine_run):
        return engine_run


@pytest.mark.parametrize(
    ("ended", "state", "outcome"),
    [
        ("succeeded", "succeeded", "Every step succeeded."),
        ("failed", "failed", "The argo run failed: the pod could not pull its image"),
        ("killed", "killed", "The run was stopped; `shopfloor runs resume` goes on."),
        ("unknown", "killed", "The argo engine no longer knows the run."),
    ],
)
def test_whoever_looks_next_closes_the_record_of_a_run_that_its_engine_calls_ended(
    environment, pipeline, mlflow_run, monkeypatch, tmp_path, ended, state, outcome
):
    monkeypatch.setattr(dispatch, "engine_of", lambda settings, name: ElsewhereEngine(settings))
    monkeypatch.setattr(control, "engine_of", lambda settings, name: ElsewhereEngine(settings))
    settings = load_settings(project_root=ROOT, state_dir=environment["SHOPFLOOR_STATE_DIR"]).model_copy(
        update={"tracking_uri": environment["SHOPFLOOR_TRACKING_URI"]}
    )
    client = connect(settings)
    submission = Submission(file=str(pipeline), use_case=None, given=["text=far"])

    taken = dispatch.start(settings, "argo", submission, view=None)

    job = ElsewhereEngine.jobs[-1]
    assert (job.run_id, job.arguments) == (taken.run_id, {"text": "far"})
    assert job.environment["SHOPFLOOR_RUN_ID"] == taken.run_id
    control.refresh(settings, client)
    assert state_of(mlflow_run(taken.run_id)) == "running"
    monkeypatch.setattr(ElsewhereEngine, "state", ended)
    control.refresh(settings, client)
    run = mlflow_run(taken.run_id)
    assert (state_of(run), run.data.tags["shopfloor.outcome"]) == (state, outcome)
    report = Path(client.download_artifacts(taken.run_id, "report.html", str(tmp_path))).read_text()
    assert outcome in html.unescape(report)
    assert "count" in report, "a step that did not run"
    if state != "succeeded":
        control.retry(settings, client, run, view=None)
        again = mlflow_run(taken.run_id)
        assert (state_of(again), again.info.status, again.data.tags["shopfloor.engine_run"]) == (
            "running",
            "RUNNING",
            "three-x7",
        )
        control.reconcile(settings, client, again)
    other = settings.model_copy(update={"profile": "other", "cluster": ClusterSettings(namespace="other")})
    with pytest.raises(NotFoundError, match="is with argo at .* shopfloor, which profile 'other' does not name"):
        control.resume(other, mlflow_run(taken.run_id), view=None)


def test_a_run_whose_cluster_is_gone_keeps_nobody_from_an_upgrade(environment):
    settings = load_settings(project_root=ROOT, state_dir=environment["SHOPFLOOR_STATE_DIR"]).model_copy(
        update={
            "tracking_uri": environment["SHOPFLOOR_TRACKING_URI"],
            "ray_dashboard_url": environment["SHOPFLOOR_RAY_DASHBOARD_URL"],
            "ray_token_file": environment["SHOPFLOOR_RAY_TOKEN_FILE"],
        }
    )
    client = connect(settings)
    tags = {
        index.STATE: "running",
        index.PIPELINE: "training",
        index.ENGINE: "ray",
        index.ENGINE_URL: settings.ray_dashboard_url,
        index.ENGINE_RUN: "raysubmit_on_the_head_before",
        index.PROCESS: "ray-head 1/1/1/1",
    }
    run_id = client.create_run("0", tags=tags).info.run_id

    writers = upgrade._writers(settings, [Part(name=TITLES["mlflow"], present="3", wanted="4")])

    assert [word for word in writers if run_id[:8] in word] == []
    assert client.get_run(run_id).info.status == "KILLED"


def test_two_submits_at_once_are_both_right_and_a_local_run_can_be_stopped(
    shopfloor, environment, pipeline, mlflow_run
):
    command = [sys.executable, "-m", "shopfloor", "submit", str(pipeline), "-p", "text=twice", "--json"]
    both = [
        subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [(process.communicate(timeout=90), process.returncode) for process in both]

    outcomes = [json.loads(answer[0]) for answer, _ in answers]
    assert [code for _, code in answers] == [0, 0], answers
    assert len({outcome["run_id"] for outcome in outcomes}) == 2
    for outcome in outcomes:
        steps = mlflow_run(outcome["run_id"]).steps
        assert set(steps) == {"begin", "work", "count"}
        assert set(steps.values()) <= {"succeeded", "cached"}
    third = json.loads(shopfloor(*command[3:]).stdout)
    assert [step["state"] for step in third["steps"]] == ["cached"] * 3

    slow = [part.replace("twice", "slow") for part in command]
    process = subprocess.Popen(
        [*slow, "-p", "seconds=600"],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.startswith("work: running"):
            break
    stopped = shopfloor("runs", "stop", "latest", "--json")
    assert json.loads(stopped.stdout)["state"] == "killed", stopped.stderr
    assert process.wait(timeout=30) == 130
    assert mlflow_run(json.loads(stopped.stdout)["run_id"]).steps == {"begin": "succeeded", "work": "killed"}
