"""The embedded stack with its real services: up beside others, seen, broken, repaired, and gone without a trace.

One stack serves all tests, in the order in which they stand: what the first ones look at, the last ones break and end.
"""

import contextlib
import functools
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import psutil
import pytest
from shopfloor.settings import Settings, load_settings
from shopfloor.stack import families, lifecycle, ray_head, services
from shopfloor.stack import state as states

from tests.support import project
from tests.support.project import ROOT, bare_environment
from tests.support.waiting import wait_until

DRIVER = """
import os, ray

ray.init(address=os.environ["SHOPFLOOR_RAY_ADDRESS"], log_to_driver=False)

@ray.remote
def where():
    import components, pipelines, shopfloor.settings
    return shopfloor.settings.load_settings().tracking_uri, os.environ["CUDA_VISIBLE_DEVICES"]

print(*ray.get(where.remote()), sep="; GPUs: ")
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The environment of every command here: a state directory of its own, too deep for Ray's sockets."""
    return bare_environment() | {"SHOPFLOOR_STATE_DIR": str(tmp_path_factory.mktemp("a-rather-long-name") / "state")}


@pytest.fixture(scope="module")
def shopfloor(environment):
    return functools.partial(project.shopfloor, environment=environment)


@pytest.fixture(scope="module")
def settings(environment):
    """Read the settings as a command that starts now would."""

    def read() -> Settings:
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("SHOPFLOOR_")]:
                patch.delenv(name)
            patch.setenv("SHOPFLOOR_STATE_DIR", environment["SHOPFLOOR_STATE_DIR"])
            return load_settings(project_root=ROOT)

    return read


@pytest.fixture(scope="module")
def stack(shopfloor, settings):
    """Start the stack while somebody else holds a usual port; end whatever is left of it."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # held already, which serves as well
            held.enter_context(socket.create_server(("127.0.0.1", services.USUAL_PORTS["tracking_uri"])))
        answer = shopfloor("up", "--json")
    yield answer
    lifecycle.down(settings())
    shutil.rmtree(ray_head.short_directory(settings().state_dir), ignore_errors=True)


def family(settings: Settings) -> list[psutil.Process]:
    """Return every process of the stack."""
    state = states.read(settings)
    recorded = state.services if state else {}
    return [
        process
        for name in services.SERVICES
        for process in families.members(services.family(settings, name, recorded.get(name)))
    ]


def pid_of(settings: Settings, name: str) -> int:
    state = states.read(settings)
    assert state is not None
    return state.services[name].process.pid


def wait_until_serving(shopfloor) -> dict:
    """Return the status once Serve has started, which `up` does not wait for."""

    def serving():
        status = json.loads(shopfloor("status", "--json").stdout)
        return status if status["services"][2]["health"] == "healthy" else None

    return wait_until(serving)


def test_up_beside_another_server_finds_other_ports_that_every_command_uses(stack, settings):
    assert stack.returncode == 0, stack.stderr
    addresses = {service["name"]: service["address"] for service in json.loads(stack.stdout)["services"]}

    assert addresses["mlflow"] != "http://127.0.0.1:5000"
    assert settings().tracking_uri == addresses["mlflow"]
    assert settings().ray_dashboard_url == addresses["ray"]
    assert settings().serve_url == addresses["serve"]


def test_a_second_up_starts_nothing(stack, shopfloor, settings):
    before = (pid_of(settings(), "mlflow"), pid_of(settings(), "ray"))

    answer = shopfloor("up")

    assert answer.returncode == 0
    assert "Everything runs already." in answer.stderr
    assert (pid_of(settings(), "mlflow"), pid_of(settings(), "ray")) == before


def test_status_shows_each_service_with_address_health_version_and_memory(stack, shopfloor):
    state = wait_until_serving(shopfloor)

    mlflow, ray, _ = state["services"]
    assert state["healthy"]
    assert mlflow["version"].startswith("3.")
    assert ray["version"].startswith("2.")
    assert mlflow["memory_bytes"] > 50 * 1024**2
    # A run may take 8 GiB at its peak, over all processes.
    assert mlflow["memory_bytes"] + ray["memory_bytes"] < 2 * 1024**3
    assert ray["uptime_s"] > 0


def test_nothing_listens_on_another_interface(stack, settings):
    listeners = []
    for process in family(settings()):
        with contextlib.suppress(psutil.NoSuchProcess):  # one that ended meanwhile
            listeners += [
                (process.name(), connection.laddr.ip)
                for connection in process.net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            ]

    assert len(listeners) > 5
    assert {address.removeprefix("::ffff:") for _, address in listeners} == {"127.0.0.1"}, listeners


def test_mlflow_keeps_files_in_the_state_directory_and_refuses_foreign_hosts(stack, settings):
    place = settings().tracking_uri.removeprefix("http://")
    path = "/api/2.0/mlflow-artifacts/artifacts/some/file.txt"
    connection = http.client.HTTPConnection(place, timeout=30)

    connection.request("PUT", path, b"hello")
    assert connection.getresponse().read() is not None
    connection.request("GET", path)
    assert connection.getresponse().read() == b"hello"
    assert (settings().state_dir / "mlflow" / "artifacts" / "some" / "file.txt").read_text() == "hello"
    connection.request("GET", "/api/2.0/mlflow/experiments/search", headers={"Host": "evil.example"})
    assert connection.getresponse().status == 403


def test_a_driver_joins_ray_and_its_workers_know_project_and_settings(stack, settings, environment):
    child = {**environment, **settings().environment()}

    answer = subprocess.run(
        [sys.executable, "-c", DRIVER], env=child, capture_output=True, text=True, timeout=60, check=False
    )

    assert answer.stdout.strip() == f"{settings().tracking_uri}; GPUs:", answer.stderr


def test_a_port_that_the_running_service_is_not_on_is_one_clear_line(stack, shopfloor):
    answer = shopfloor("up", "--mlflow-port", "5999")

    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert "`shopfloor down`" in answer.stderr


def test_a_killed_mlflow_shows_in_the_status(stack, shopfloor, settings):
    os.kill(pid_of(settings(), "mlflow"), signal.SIGKILL)

    broken = shopfloor("status")

    assert broken.returncode == 1
    assert "it died" in broken.stdout


def test_up_brings_back_what_died_to_the_same_place_also_after_an_up_that_was_killed(
    stack, shopfloor, settings, environment
):
    address, ray = settings().tracking_uri, pid_of(settings(), "ray")
    command = [sys.executable, "-m", "shopfloor", "up"]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True) as halfway:
        assert "Starting MLflow" in halfway.stderr.readline()
        halfway.kill()
    mlflow = pid_of(settings(), "mlflow")

    repaired = shopfloor("up")

    assert repaired.returncode == 0, repaired.stderr
    assert "Waiting for MLflow" in repaired.stderr
    assert settings().tracking_uri == address
    assert (pid_of(settings(), "mlflow"), pid_of(settings(), "ray")) == (mlflow, ray)
    assert shopfloor("status").returncode == 0


def test_down_leaves_no_process_even_where_a_killed_head_left_orphans(stack, shopfloor, settings):
    left = family(settings())
    assert len(left) > 10
    os.kill(pid_of(settings(), "ray"), signal.SIGKILL)

    answer = shopfloor("down", "--json")

    assert answer.returncode == 0
    assert [process for process in left if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    assert family(settings()) == []
    assert shopfloor("status").returncode == 1
    assert (settings().state_dir / "mlflow" / "mlflow.db").is_file()


def test_a_named_port_that_is_taken_is_one_line_with_the_holder_and_nothing_is_started(stack, shopfloor, settings):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        answer = shopfloor("up", "--mlflow-port", str(port))

    assert answer.returncode == 2
    assert f"Port {port} is taken by process {os.getpid()}" in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert family(settings()) == []


def test_a_service_that_ends_while_it_starts_is_an_error_with_its_last_words(environment, tmp_path):
    state = tmp_path / "state"
    (state / "mlflow").mkdir(parents=True)
    (state / "mlflow" / "artifacts").write_text("a file where a directory should be")
    settings = load_settings(project_root=ROOT, state_dir=state)
    child = {**environment, "SHOPFLOOR_STATE_DIR": str(state)}

    answer = subprocess.run(
        [sys.executable, "-m", "shopfloor", "up"], env=child, cwd=ROOT, capture_output=True, text=True, check=False
    )
    lifecycle.down(settings)
    shutil.rmtree(ray_head.short_directory(state), ignore_errors=True)

    assert answer.returncode == 1
    assert "MLflow ended while it started" in answer.stderr
    assert "File exists" in answer.stderr
    assert str(state / "logs" / "mlflow.log") in answer.stderr
    assert "Traceback" not in answer.stderr
