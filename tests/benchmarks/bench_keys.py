"""The content key and the result store: the plan, a thousand keys, and steps that do nothing against raw kfp.local."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.benchmarks.table import Row
from tests.support.project import ROOT
from tests.support.waiting import free_port, wait_for_port

STEPS = 11
KEYS = 1000
PIPELINE = """
from kfp import dsl

@dsl.component(base_image="python:3.11", install_kfp_package=False)
def nothing(number: int) -> int:
    return number + 1

@dsl.pipeline(name="nothing")
def chain(start: int = 0):
    last = nothing(number=start)
    for _ in range({steps} - 1):
        last = nothing(number=last.output)
"""
OURS = """
import json, sys, time
from shopfloor.runs import recorder as tracking
from shopfloor.flows import submit as submission
from shopfloor.settings import Settings
import mlflow, kfp.local
settings = Settings.model_validate_json(sys.argv[1])

class Quiet:
    def begin(self, *_): pass
    def step(self, *_): pass

def submit(*given, **more):
    began = time.perf_counter()
    outcome = submission.submit(settings, sys.argv[2], None, list(given), Quiet(), **more)
    assert outcome.state == "succeeded", outcome
    return time.perf_counter() - began

submit("start=100")
first = submit("start=200")
cached = submit("start=200")
from shopfloor.pipeline.compilation import compile_pipeline
from shopfloor.pipeline.keys import component_key
container = compile_pipeline(settings, sys.argv[2]).ir["deploymentSpec"]["executors"]["exec-nothing"]["container"]
command = [*container["command"], *container["args"]]
began = time.perf_counter()
keys = {component_key(settings, command, {"number": number}, {}, {}).key for number in range(KEYS)}
assert len(keys) == KEYS
seconds = time.perf_counter() - began
from shopfloor.pipeline.results import ResultStore
store = ResultStore(settings, lambda effect: True)
began = time.perf_counter()
for _ in range(100):
    assert store.get(component_key(settings, command, {"number": 200}, {}, {}).key).outputs is not None
one = (time.perf_counter() - began) / 100
print(json.dumps({"first": first, "cached": cached, "keys": seconds, "one": one}))
"""
PEER = """
import json, sys, tempfile, time, contextlib, io, importlib.util
from kfp import local
specification = importlib.util.spec_from_file_location("chain", sys.argv[1])
module = importlib.util.module_from_spec(specification)
specification.loader.exec_module(module)

def run(root, start):
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=root, enable_caching=True,
               cache_root=root + "/cache")
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        module.chain(start=start)
    return time.perf_counter() - began

root = tempfile.mkdtemp()
run(root, 100)
print(json.dumps({"first": run(root, 200), "cached": run(root, 200)}))
"""


def measure() -> list[Row]:
    """Return the rows."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "pipelines").mkdir()
        (root / "pipelines/nothing.py").write_text(PIPELINE.format(steps=STEPS))
        port = free_port()
        server = subprocess.Popen(
            [sys.executable, "-m", "shopfloor.stack.mlflow_server", str(port), str(root / "mlflow")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for_port(port)
            settings = {
                "project_root": str(root),
                "state_dir": str(root / "state"),
                "artifact_root": str(root / "artifacts"),
                "tracking_uri": f"http://127.0.0.1:{port}",
            }
            file = str(root / "pipelines/nothing.py")
            ours = _run(OURS.replace("KEYS", str(KEYS)), json.dumps(settings), file)
            peer = _run(PEER, file)
        finally:
            family = [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]
            for process in family:
                process.terminate()
            psutil.wait_procs(family, timeout=10)
    plan, version = _command("plan", "pipelines/training.py", "--use-case", "flight_delays"), _command("--version")
    key_ms = 1000 * ours["one"]
    return [
        Row(
            name="shopfloor plan on the training DAG",
            ours=f"{plan:.2f} s",
            peer=f"shopfloor --version {version:.2f} s",
            ratio=plan / version,
            target="<= 1 s",
            ok=plan <= 1,
        ),
        Row(
            name=f"{KEYS} keys",
            ours=f"{ours['keys']:.2f} s",
            peer="",
            ratio=None,
            target="<= 2 s",
            ok=ours["keys"] <= 2,
        ),
        Row(
            name=f"{STEPS} steps that do nothing, with their records in MLflow",
            ours=f"{ours['first']:.2f} s",
            peer=f"kfp.local, no records {peer['first']:.2f} s",
            ratio=ours["first"] / peer["first"],
            target="<= 1.5 s",
            ok=ours["first"] <= 1.5,
        ),
        Row(
            name="key and look-up of a cached step",
            ours=f"{key_ms:.2f} ms",
            peer=f"kfp.local, all of it {1000 * peer['cached'] / STEPS:.2f} ms",
            ratio=None,
            target="<= 50 ms",
            ok=key_ms <= 50,
        ),
    ]


def _run(script: str, *arguments: str) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")])}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *arguments], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    seconds: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return seconds


def _command(*arguments: str) -> float:
    """Return the seconds of a command in the project, the best of three."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "shopfloor", *arguments], cwd=ROOT, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    return min(seconds)
