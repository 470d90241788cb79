"""The stack of docker-compose.yml as a test drives it: a project, ports and volumes of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import requests

from tests.support.project import bare_environment
from tests.support.waiting import free_port

SERVICES = ["postgres", "redis", "object-store", "mlflow", "ray-head", "ray-worker"]
PORTS = {"MLFLOW_PORT": "5000", "S3_PORT": "8333", "RAY_DASHBOARD_PORT": "8265", "SERVE_PORT": "8000"}
MONITORING_PORTS = ("PROMETHEUS_PORT", "ALERTMANAGER_PORT", "GRAFANA_PORT")
SUBMIT = ("submit", "pipelines/training.py", "--use-case", "flight_delays", "--watch", "--json")
RUN_S, START_S = 900, 600
"""How long a run and the start of the stack may take at most, on two cores."""


def engine_answers() -> bool:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False).returncode == 0
    return False


class Stack:
    """A copy of the project with a compose project of its own, on ports of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        ports = {name: str(free_port()) for name in (*PORTS, *MONITORING_PORTS)}
        profile = (root / "platform/profiles/compose.toml").read_text()
        for name, usual in PORTS.items():
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

    def url(self, port: str) -> str:
        """Return the address of a service by the variable of its port."""
        return f"http://127.0.0.1:{self.environment[port]}"

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

    @property
    def project(self) -> str:
        """Return the name of the compose project."""
        return self.environment["COMPOSE_PROJECT_NAME"]

    def status(self) -> dict | None:
        """Return what a replica says of itself, `None` where none answers."""
        with contextlib.suppress(requests.RequestException, ValueError):
            answer = requests.get(f"{self.endpoint}/status", timeout=5)
            return answer.json() if answer.ok else None
        return None

    def bearer(self) -> dict[str, str]:
        """Return the header that holds the platform's own token."""
        return {"Authorization": f"Bearer {(self.root / '.secrets/serve_token').read_text()}"}

    def example(self) -> dict | None:
        """Return the row that the endpoint's page shows to whoever has a token, `None` where nothing answers."""
        with contextlib.suppress(requests.RequestException):
            document = requests.get(f"{self.endpoint}/openapi.json", timeout=10, headers=self.bearer())
            if document.ok:
                path = next(item for name, item in document.json()["paths"].items() if name.endswith("/predict"))
                content = path["post"]["requestBody"]["content"]["application/json"]
                return content.get("example") or next(iter(content["examples"].values()))["value"]
        return None

    def champion(self) -> str | None:
        """Return the version that answers the documented example, `None` where nothing answers."""
        with contextlib.suppress(requests.RequestException):
            if example := self.example():
                answer = requests.post(f"{self.endpoint}/predict", json=example, timeout=10, headers=self.bearer())
                return answer.json()["version"] if answer.ok else None
        return None
