"""What fails under the stack while it works: a disk, a network, the engine, a service in the middle of a rollout.

Clients ask the endpoint all the while and say what became true; at the end every acknowledged word is looked for.
"""

import contextlib
import itertools
import json
import os
import re
import shlex
import subprocess
import time

import pytest
import requests
from shopfloor.serving.contract import log_root
from shopfloor.serving.log_files import read_log
from shopfloor.serving.prediction_log import FLUSH_S
from shopfloor.settings import load_settings
from shopfloor.stack import secrets

from tests.support.clients import Clients
from tests.support.compose import RUN_S, START_S, SUBMIT, engine_answers
from tests.support.waiting import wait_until

CUTS = {"mlflow": ["back"], "object-store": ["front", "back"], "redis": ["back"]}
"""Services, and the networks that each is taken off: MLflow loses PostgreSQL, the runs lose the store or Redis."""
CUT_S = 20
"""Seconds that a network stays cut where the run does not end before."""
ROOM_BYTES = 256 * 1024**2
RESTART = os.environ.get("SHOPFLOOR_TEST_ENGINE_RESTART")
"""Command that ends the host's engine, and starts it again."""
SEEDS = itertools.count(1)

pytestmark = [
    pytest.mark.skipif(not engine_answers(), reason="no Docker engine answers here"),
    pytest.mark.timeout(START_S + 2 * RUN_S),
]


@pytest.fixture(scope="module")
def clients(stack, first):
    clients = Clients(stack)
    wait_until(lambda: clients.acknowledged, 60)
    yield clients
    clients.stop()


@pytest.fixture
def submit(stack):
    """Give the arguments of a run whose search nobody has made yet: short, with gates that any model meets."""
    file = stack.root / "pipelines/flight_delays/use_case.yaml"
    before = file.read_text()
    easy = before.replace("max_loss: 0.005", "max_loss: 0.5").replace("{min: 0.70}", "{min: 0.5}")
    file.write_text(easy.replace("seed: 2013", f"seed: {next(SEEDS)}").replace("{max: 0.05}", "{max: 0.5}"))
    yield (*SUBMIT, "-p", "trials=2", "-p", "register_only=true")
    file.write_text(before)


@pytest.fixture
def small_disk(stack, tmp_path):
    """Put the object store on a disk of its own with little room, and give its directory."""
    volume = json.loads(stack.run("docker", "volume", "inspect", f"{stack.project}_object-store"))[0]["Mountpoint"]
    disk = tmp_path / "disk"
    disk.mkdir()
    used_kb = int(subprocess.run(["du", "-sk", volume], capture_output=True, text=True, check=True).stdout.split()[0])
    size = f"size={used_kb * 1024 + ROOM_BYTES}"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk], check=False).returncode:
        pytest.skip("no disk can be mounted here")
    (stack.root / "small-disk.yml").write_text(f'services: {{object-store: {{volumes: ["{disk}:/data"]}}}}\n')

    def move(source, target, file):
        stack.compose("stop", "object-store")
        subprocess.run(["cp", "-a", f"{source}/.", target], check=True)
        stack.environment["COMPOSE_FILE"] = file
        stack.compose("up", "-d", "--wait", "object-store")

    try:
        move(volume, disk, "docker-compose.yml:small-disk.yml")
        yield disk
        move(disk, volume, "docker-compose.yml")
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def searching(stack, submit):
    """Start a run, and return its process when the search has begun, with the lines that it wrote until then."""
    process = stack.start(*submit)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("tune: running"):
            break
    return process, lines


def ended(process, lines):
    """Return all that a run wrote, when it has ended: well, or with a line that says why."""
    text = "".join([*lines, process.communicate(timeout=RUN_S)[0]])
    assert "Traceback" not in text, text
    assert "bug:" not in text, text
    assert process.returncode == 0 or "error: " in text or re.search(r"^Step \S+ failed: .*\S", text, re.M), text
    return text


def ends_well(stack, submit):
    """Require that the same submit succeeds now, and that the champion answers."""
    assert json.loads(stack.shopfloor(*submit))["state"] == "succeeded"
    wait_until(lambda: stack.champion() == "1", 180)


def test_a_full_disk_of_the_store_ends_a_run_with_one_line_and_then_the_same_submit_ends_well(
    stack, clients, submit, small_disk
):
    process, lines = searching(stack, submit)
    balloon = small_disk / "balloon"
    with contextlib.suppress(OSError), balloon.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024**2))
    text = ended(process, lines)
    balloon.unlink()
    # Its index takes nothing any more once a write of it has failed.
    stack.compose("restart", "object-store")
    stack.compose("up", "-d", "--wait")
    acknowledged = len(clients.acknowledged)
    wait_until(lambda: len(clients.acknowledged) > acknowledged, 180)

    assert process.returncode == 1, text
    ends_well(stack, submit)


@contextlib.contextmanager
def cut_off(stack, service):
    """Take a service off its networks for the time of the block."""
    container = stack.compose("ps", "--quiet", service).strip()
    for network in CUTS[service]:
        stack.run("docker", "network", "disconnect", f"{stack.project}_{network}", container)
    yield
    for network in CUTS[service]:
        stack.run("docker", "network", "connect", "--alias", service, f"{stack.project}_{network}", container)


@pytest.mark.parametrize("service", CUTS)
def test_a_network_that_is_cut_in_the_middle_of_a_run_and_connected_again_costs_at_most_the_run(
    stack, clients, submit, service
):
    process, lines = searching(stack, submit)
    with cut_off(stack, service), contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=CUT_S)
    ended(process, lines)
    ends_well(stack, submit)


@pytest.mark.skipif(RESTART is None, reason="$SHOPFLOOR_TEST_ENGINE_RESTART names no command that restarts the engine")
def test_an_engine_that_is_restarted_in_the_middle_of_a_run_brings_all_back(stack, clients, submit):
    process, lines = searching(stack, submit)
    subprocess.run(shlex.split(RESTART), check=True, timeout=START_S)
    wait_until(engine_answers, 120)
    stack.compose("up", "-d", "--wait")
    wait_until(lambda: stack.champion() == "1", 180)
    ended(process, lines)
    ends_well(stack, submit)


@pytest.fixture
def rollout(stack, clients):
    """Give a version that answers a fifth of the requests, with a Ray job that judges it."""
    versions = json.loads(stack.shopfloor("models", "list", "--json"))["versions"]
    version = max((one["version"] for one in versions), key=int)
    assert version != "1", "no run has registered another version"
    if not (stack.status() or {}).get("canary_percent"):  # the judge gave up where the registry was away for too long
        began = time.time()
        stack.shopfloor("rollout", "run", f"flight_delays/{version}", "--stages", "20,100", "--detach", "--yes")
        wait_until(lambda: version in {answer.version for answer in clients.since(began)}, 180)
    return version


def truth(stack):
    """Return who answers by the endpoint, by the registry's alias and by the command."""
    status = stack.status() or {}
    model = requests.get(
        f"{stack.url('MLFLOW_PORT')}/api/2.0/mlflow/registered-models/get?name=flight_delays",
        timeout=10,
        auth=("shopfloor", (stack.root / ".secrets/mlflow_password").read_text()),
    ).json()["registered_model"]
    report = json.loads(stack.shopfloor("rollout", "status", "flight_delays", "--json"))["versions"]
    roles = {one["role"]: one["version"] for one in report}
    aliases = {one["alias"]: one["version"] for one in model["aliases"]}
    return (
        (status.get("champion"), status.get("challenger")),
        (aliases.get("champion"), aliases.get("challenger")),
        (roles.get("champion"), roles.get("challenger")),
    )


@pytest.mark.parametrize("service", ["mlflow", "postgres", "ray-worker", "ray-head"])
def test_whatever_dies_in_the_middle_of_a_rollout_the_registry_and_the_endpoint_agree_and_no_other_version_answers(
    stack, clients, rollout, service
):
    began = time.time()
    stack.crash(service)
    stack.compose("up", "-d", "--wait")
    back = time.time()
    wait_until(lambda: len(clients.since(back)) >= 5, 180)

    wait_until(lambda: set(truth(stack)) == {("1", rollout)}, 120, every_s=2)
    assert {answer.version for answer in clients.since(began)} <= {"1", rollout}


def test_the_share_that_nobody_judges_any_more_has_ended_by_itself(stack, clients):
    """The head that died took the judge with it."""
    wait_until(lambda: (stack.status() or {}).get("canary_percent") == 0, 180)
    ended = time.time()
    wait_until(lambda: len(clients.since(ended)) >= 20, 120)
    assert {answer.version for answer in clients.since(ended)} == {"1"}


def test_every_prediction_that_was_answered_and_every_acknowledged_feedback_is_in_the_log(stack, clients, monkeypatch):
    clients.stop()
    for name, value in stack.environment.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(project_root=stack.root)
    secrets.export(settings)

    def log(kind):
        table = read_log(settings, log_root(settings), "flight_delays", kind, columns=["request_id"])
        return set(table["request_id"].to_pylist())

    answered = {one.request_id for one in clients.answers}
    wait_until(lambda: not answered - log("predictions"), 6 * FLUSH_S)
    assert not set(clients.acknowledged) - log("feedback")
    assert len(answered) > 100
