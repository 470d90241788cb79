"""A real Ray cluster with a real MLflow registry, switched as `shopfloor up` does it, and models to serve there."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import requests
from shopfloor.serving import assignment as assignments
from shopfloor.serving.contract import DEPLOYMENT
from shopfloor.serving.deploy.rollout import Traffic, registry
from shopfloor.settings import Settings
from shopfloor.stack import ray_head
from shopfloor.stack import state as states

from tests.support import project
from tests.support.project import BIN, ROOT, bare_environment
from tests.support.waiting import free_port, wait_for, wait_until

CASE = "toy_delays"
USE_CASE = """
name: {name}
data: {{path: data/toy, tables: [rows]}}
features:
  service: toy
  target: late
  split:
    train: ["2013-01-01", "2013-02-01"]
    validate: ["2013-02-01", "2013-03-01"]
    test: ["2013-03-01", "2013-04-01"]
search: {{metric: logloss, mode: min, trials: 1, space: {{max_depth: {{type: int, low: 2, high: 3}}}}}}
model: {{flavor: xgboost}}
evaluation: {{golden_rows: 20}}
serving: {{cpus: 0.2, max_rows: 50, max_body_bytes: 100000}}
"""
MODEL = """
def load(directory):
    import xgboost
    return xgboost.Booster(model_file=str(directory / "model.ubj"))


def predict(model, frame):
    import xgboost
    return model.predict(xgboost.DMatrix(frame))
"""


def file_registry(directory: Path) -> tuple[str, str]:
    """Let MLflow keep what it gets from now on in a directory; give its tracking URI, and the id of an experiment."""
    import mlflow

    uri = f"sqlite:///{directory}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    return uri, mlflow.create_experiment("models", artifact_location=str(directory / "artifacts"))


@contextlib.contextmanager
def mlflow_server(settings: Settings):
    """Start the stack's MLflow server where the settings say, and wait for it when the block's `wait` is called."""
    command = ["-m", "shopfloor.stack.mlflow_server", str(urlsplit(settings.tracking_uri).port)]
    environment = bare_environment("MLFLOW_") | {
        "PYTHONPATH": str(ROOT / "platform"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    server = subprocess.Popen(
        [sys.executable, *command, str(settings.private_dir("mlflow"))],
        env=environment,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield lambda: wait_for(f"{settings.tracking_uri}/health", server)
    finally:
        stop(server)


@contextlib.contextmanager
def serving_cluster(directory: Path):
    """Start an MLflow server and a Ray head of our own, switched as `shopfloor up` switches it; give its settings."""
    mlflow_port, gcs, dashboard, serve = (free_port() for _ in range(4))
    state_dir = directory / "state"
    ray_dir = ray_head.temporary_directory(state_dir)
    settings = Settings(
        project_root=directory,
        state_dir=state_dir,
        artifact_root=str(directory / "artifacts"),
        tracking_uri=f"http://127.0.0.1:{mlflow_port}",
        ray_address=f"127.0.0.1:{gcs}",
        ray_dashboard_url=f"http://127.0.0.1:{dashboard}",
        serve_url=f"http://127.0.0.1:{serve}",
    )
    settings = settings.model_copy(update={"ray_token_file": str(states.ray_token_file(settings))})
    own = {name: value for name, value in settings.environment().items() if name.startswith("RAY_")}
    environment = os.environ | own | ray_head.environment(ray_dir, state_dir, lambda *_: free_port())
    environment |= {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}",
        "SHOPFLOOR_STATE_DIR": str(state_dir),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }
    with contextlib.ExitStack() as stack, (directory / "servers.log").open("w") as log:
        stack.callback(shutil.rmtree, ray_head.short_directory(state_dir), ignore_errors=True)

        registry_answers = stack.enter_context(mlflow_server(settings))
        command = [
            *(str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2"),
            *(f"--port={gcs}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"),
            *("--node-ip-address=127.0.0.1", f"--temp-dir={ray_dir}"),
            *(*ray_head.agent_ports(lambda *_: free_port()), "--object-store-memory=100000000"),
        ]
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=directory, start_new_session=True)
        stack.callback(stop, head)

        def started() -> bool:
            """Tell whether Ray's node has joined; the dashboard of one that gives up answers too."""
            assert head.poll() is None, f"{head.args} ended with {head.returncode}"
            return "Ray runtime started" in (directory / "servers.log").read_text()

        wait_until(started)
        registry_answers()
        wait_for(f"{settings.ray_dashboard_url}/api/version", head, **settings.ray_headers())
        yield settings


def stop(process: subprocess.Popen) -> None:
    """End a server with all that it started: they share its session, also those whose parent is gone (HAProxy)."""

    def members() -> list[psutil.Process]:
        processes = []
        for candidate in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(candidate.pid) == process.pid:
                    processes.append(candidate)
        return processes

    for member in members():
        with contextlib.suppress(psutil.NoSuchProcess):
            member.terminate()
    psutil.wait_procs(members(), timeout=2)
    for member in members():
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait(5)


def declared_traffic(settings: Settings, name: str) -> Traffic:
    """Return what the challenger is to get of the requests, by the registry."""
    assigned = assignments.read(registry(settings), name).assignment
    return Traffic(assigned.canary_percent, assigned.shadow)


def running_replicas(settings: Settings, name: str = CASE) -> set[int]:
    """Return the processes of the replicas that run; by name they could be those of another cluster on this machine."""
    url = f"{settings.ray_dashboard_url}/api/serve/applications/"
    serve = requests.get(url, timeout=10, headers=settings.ray_headers()).json()
    replicas = serve["applications"][name]["deployments"][DEPLOYMENT]["replicas"]
    return {replica["pid"] for replica in replicas if replica["state"] == "RUNNING"}


def register_models(settings: Settings, name: str, versions: int, columns: int = 9, rounds: int = 10, rows: int = 500):
    """Train and register small models of integer, float and optional columns; return the rows and the boosters."""
    import numpy as np
    import pandas as pd
    import xgboost

    random = np.random.default_rng(7)
    third = columns // 3
    frame = pd.DataFrame(
        {f"count_{i}": random.integers(0, 500, rows) for i in range(third)}
        | {f"rate_{i}": random.normal(size=rows) for i in range(columns - 2 * third)}
        | {f"age_{i}": np.where(random.random(rows) < 0.3, np.nan, random.normal(size=rows)) for i in range(third)}
    )
    label = (frame["rate_0"] + frame["count_0"] / 250 + random.normal(size=rows)) > 1
    required = [name for name in frame if not name.startswith("age")]
    boosters = []
    for seed in range(versions):
        parameters = {"objective": "binary:logistic", "max_depth": 4 + seed, "seed": seed}
        boosters.append(xgboost.train(parameters, xgboost.DMatrix(frame, label=label), rounds))
        log_booster(settings, name, boosters[-1], frame, required)
    return frame, boosters


def log_booster(settings: Settings, name: str, booster, frame, required: list[str]) -> None:
    """Register a booster as the next version of a model; the other columns may be missing."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    mlflow.set_tracking_uri(settings.tracking_uri)
    inputs = Schema(
        [ColSpec("long" if frame[n].dtype.kind == "i" else "double", n, required=n in required) for n in frame]
    )
    with mlflow.start_run():
        mlflow.xgboost.log_model(
            booster,
            name="model",
            signature=ModelSignature(inputs, Schema([ColSpec("float")])),
            input_example=frame.head(2),
            pip_requirements=["xgboost"],
            registered_model_name=name,
        )


def rows_of(frame) -> list[dict]:
    return [{k: None if v != v else v for k, v in row.items()} for row in frame.to_dict("records")]


def post(url: str, content, content_type: str | None = "application/json", **headers: str) -> requests.Response:
    body = content if isinstance(content, (bytes, str)) else json.dumps(content)
    if content_type:
        headers["Content-Type"] = content_type
    return requests.post(url, data=body, headers=headers, timeout=30)


def offline(booster, frame):
    import xgboost

    return booster.predict(xgboost.DMatrix(frame))


def shopfloor(settings: Settings, *arguments: object):
    """Run the command with these settings, in their project."""
    return project.shopfloor(
        *arguments, environment=os.environ | settings.environment(), root=settings.project_root, timeout_s=120
    )
