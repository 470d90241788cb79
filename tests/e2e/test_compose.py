"""The stack with real services, from nothing: a run, its endpoint, more workers, and whatever dies in the middle.

`make test-compose` builds the image first. The images of the other services are those that the engine has or can pull.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.support.project import bare_environment, copy_project
from tests.support.waiting import free_port, wait_until

SERVICES = ["postgres", "redis", "object-store", "mlflow", "ray-head", "ray-worker"]
PORTS = ["MLFLOW_PORT", "S3_PORT", "RAY_DASHBOARD_PORT", "SERVE_PORT"]
SUBMIT = ("submit", "pipelines/training.py", "--use-case", "flight_delays", "--watch", "--json")
RUN_S, START_S = 900, 600
"""How long a run and the start of the stack may take at most, on two cores."""


def engine_answers() -> bool:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False).returncode == 0
    return False


pytestmark = [
    pytest.mark.skipif(not engine_answers(), reason="no Docker engine answers here"),
    pytest.mark.timeout(START_S + 2 * RUN_S),
]


class Stack:
    """A copy of the project with a compose project of its own, on ports of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        ports = {name: str(free_port()) for name in PORTS}
        profile = (root / "platform/profiles/compose.toml").read_text()
        for name, usual in zip(PORTS, ("5000", "8333", "8265", "8000"), strict=True):
            profile = profile.replace(f"127.0.0.1:{usual}", f"127.0.0.1:{ports[name]}")
        (root / "stack.toml").write_text(profile)
        own = {
            "PYTHONPATH": f"{root}{os.pathsep}{root / 'platform'}",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "COMPOSE_PROJECT_NAME": f"shopfloor-test-{os.getpid()}",
            "SHOPFLOOR_PROFILE": str(root / "stack.toml"),
        }
        self.environment = bare_environment("MLFLOW_", "RAY_", "AWS_") | own | ports
        self.endpoint = f"http://127.0.0.1:{ports['SERVE_PORT']}/flight_delays"

    def run(self, *command: str, code: int = 0, timeout_s: float = RUN_S) -> str:
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert done.returncode == code, f"{command}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def compose(self, *arguments: str) -> str:
        return self.run("docker", "compose", *arguments, timeout_s=START_S)

    def shopfloor(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "shopfloor", *arguments)

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "shopfloor", *arguments],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def crash(self, service: str) -> None:
        """Kill a service's first process as the kernel would: what the engine kills by command it does not restart."""
        container = self.compose("ps", "--quiet", service).split()[0]
        process = json.loads(self.run("docker", "inspect", container))[0]["State"]["Pid"]
        os.kill(process, signal.SIGKILL)

    def champion(self) -> str | None:
        """Return the version that answers the documented example, `None` where nothing answers."""
        with contextlib.suppress(requests.RequestException):
            document = requests.get(f"{self.endpoint}/openapi.json", timeout=10)
            if document.ok:
                path = next(item for name, item in document.json()["paths"].items() if name.endswith("/predict"))
                content = path["post"]["requestBody"]["content"]["application/json"]
                example = content.get("example") or next(iter(content["examples"].values()))["value"]
                answer = requests.post(f"{self.endpoint}/predict", json=example, timeout=10)
                return answer.json()["version"] if answer.ok else None
        return None


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    root = tmp_path_factory.mktemp("compose") / "project"
    copy_project(root)
    use_case = root / "pipelines/flight_delays/use_case.yaml"
    use_case.write_text(use_case.read_text().replace("trials: 16", "trials: 4"))
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    stack = Stack(root)
    stack.shopfloor("secrets", "init")
    try:
        stack.compose("up", "-d", "--wait")
        yield stack
    finally:
        stack.compose("down", "--volumes", "--remove-orphans", "--timeout", "5")


@pytest.fixture(scope="module")
def first(stack):
    """Give the first run as `submit` told it."""
    stack.shopfloor("data", "prepare", "flight_delays")
    return json.loads(stack.shopfloor(*SUBMIT))


def test_every_service_is_healthy_and_lets_us_in(stack):
    shown = [json.loads(line) for line in stack.compose("ps", "--all", "--format", "json").splitlines()]
    assert {one["Service"]: one["Health"] for one in shown if one["Service"] in SERVICES} == dict.fromkeys(
        SERVICES, "healthy"
    )
    assert {one["Service"]: one["ExitCode"] for one in shown if one["Service"] not in SERVICES} == {
        "migrate": 0,
        "bootstrap": 0,
    }
    services = json.loads(stack.shopfloor("status", "--json"))["services"]
    assert [(one["name"], one["health"]) for one in services[:2]] == [("mlflow", "healthy"), ("ray", "healthy")]


def test_without_its_secret_no_service_answers(stack):
    for port, path in (("MLFLOW_PORT", "/api/2.0/mlflow/experiments/search"), ("RAY_DASHBOARD_PORT", "/api/jobs/")):
        assert requests.get(f"http://127.0.0.1:{stack.environment[port]}{path}", timeout=10).status_code == 401
    assert requests.get(f"http://127.0.0.1:{stack.environment['S3_PORT']}/shopfloor", timeout=10).status_code == 403


def test_the_store_does_all_that_we_and_our_components_ask_of_it(stack):
    verdicts = {row["name"]: row["verdict"] for row in json.loads(stack.shopfloor("storage", "check", "--json"))}
    assert len(verdicts) >= 9
    assert set(verdicts.values()) == {"ok"}


def test_a_run_ends_in_a_champion_that_answers(stack, first):
    assert first["state"] == "succeeded"
    assert stack.champion() == "1"
    again = json.loads(stack.shopfloor(*SUBMIT))
    assert {step["state"] for step in again["steps"]} == {"cached"}
    assert "trial 4/4" in stack.shopfloor("runs", "logs", first["run_id"], "tune")


def test_more_workers_join(stack, first):
    stack.compose("up", "-d", "--wait", "--no-recreate", "--scale", "ray-worker=2")
    token = (stack.root / ".secrets/ray_token").read_text().strip()
    url = f"http://127.0.0.1:{stack.environment['RAY_DASHBOARD_PORT']}/nodes?view=summary"

    def alive() -> bool:
        nodes = requests.get(url, timeout=10, headers={"Authorization": f"Bearer {token}"}).json()["data"]["summary"]
        return sum(node["raylet"].get("state") == "ALIVE" for node in nodes) == 3

    wait_until(alive, 60)
    stack.compose("up", "-d", "--wait", "--no-recreate", "--scale", "ray-worker=1")


@pytest.mark.parametrize("service", SERVICES)
def test_whatever_dies_in_the_middle_of_a_run_comes_back_and_the_same_submit_ends_well(stack, first, service):
    trials = 5 + SERVICES.index(service)
    process = stack.start(*SUBMIT, "-p", f"trials={trials}", "-p", "register_only=true")
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("tune: running"):
            break
    stack.crash(service)
    lines.append(process.communicate(timeout=RUN_S)[0])

    # It may have outlived the death; if not, one line says why.
    if process.returncode:
        assert "Traceback" not in "".join(lines), "".join(lines)
    stack.compose("up", "-d", "--wait")
    ended = json.loads(stack.shopfloor(*SUBMIT, "-p", f"trials={trials}", "-p", "register_only=true"))
    assert ended["state"] == "succeeded"
    assert {step["name"]: step["state"] for step in ended["steps"]}["pull-data"] == "cached"
    wait_until(lambda: stack.champion() == "1", 180)


def test_everything_comes_back_after_a_restart_of_all(stack, first):
    stack.compose("restart", "--timeout", "10")
    stack.compose("up", "-d", "--wait")
    wait_until(lambda: stack.champion() == "1", 180)


def test_no_secret_stands_in_what_can_be_inspected(stack):
    values = {
        file.read_text().strip() for file in (stack.root / ".secrets").iterdir() if file.name != "object_store.json"
    }
    containers = stack.compose("ps", "--all", "--quiet").split()
    text = stack.run("docker", "inspect", *containers) + stack.compose("logs", "--no-color")
    assert [value for value in values if value in text] == []
