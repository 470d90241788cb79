"""A step that is forked is what a process of its own would be, and ends as one does."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from kfp import dsl
from kfp.local.subprocess_task_handler import replace_python_executable
from shopfloor.engines.failures import telling
from shopfloor.engines.forks import ForkServer
from shopfloor.engines.processes import _spawn, end_process_group

ROOT = Path(__file__).parents[2]
LIMIT_S = 120


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def step(code: str):
    exec(code, {})  # noqa: S102


def command(code):
    """Return the command of the component as the engine fills it in."""
    container = step.component_spec.implementation.container
    content = {
        "inputs": {"parameterValues": {"code": code}},
        "outputs": {"outputFile": "/dev/null"},
    }
    filled = [json.dumps(content) if part == "{{$}}" else part for part in [*container.command, *container.args]]
    return replace_python_executable(telling(filled), sys.executable)


@pytest.fixture(scope="module")
def environment():
    return {
        **{name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"},
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")]),
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture(scope="module")
def server(environment, tmp_path_factory):
    """A server that has imported all."""
    server = ForkServer()
    place = tmp_path_factory.mktemp("server")
    until = time.monotonic() + LIMIT_S
    while (fork := server.fork(command("pass"), environment, place, place / "log")) is None:
        assert time.monotonic() < until, "The server forks nothing."
        time.sleep(0.1)
    assert fork.wait() == 0, (place / "log").read_text()
    yield server
    server.close()


FACTS = """
import json, os, random, sys, threading
import numpy, threadpoolctl
print("FACTS " + json.dumps({
    "variable": os.environ["A_VARIABLE"],
    "quiet": "OPENBLAS_NUM_THREADS" in os.environ,
    "directory": os.getcwd(),
    "leader": os.getsid(0) == os.getpid(),
    "input": sys.stdin.read(),
    "blas": sorted({pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}),
    "random": [random.random(), numpy.random.random()],
    "descriptors": [n for n in range(3, 99) if os.path.exists(f"/proc/self/fd/{n}")],
    "status": [line for line in open("/proc/self/status") if line.startswith(("Umask", "SigBlk", "SigIgn", "SigCgt"))],
}))
"""


def facts(start, environment, directory):
    log = directory / "log"
    process = start(command(FACTS), {**environment, "A_VARIABLE": "a"}, directory, log)
    assert process.wait() == 0, log.read_text()
    lines = [line for line in log.read_text().splitlines() if line.startswith("FACTS")]
    return json.loads(lines[-1].removeprefix("FACTS"))


def test_a_fork_finds_what_a_process_of_its_own_finds(server, environment, tmp_path):
    forked, again = (facts(server.fork, environment, tmp_path) for _ in range(2))
    spawned = facts(_spawn, environment, tmp_path)

    draws = [found.pop("random") for found in (forked, again, spawned)]
    assert forked.pop("leader")
    spawned.pop("leader")  # the shell leads, which the component runs in
    assert forked == spawned
    assert draws[0][0] != draws[1][0]
    assert draws[0][1] != draws[1][1]


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("raise ValueError('no')", 1),
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit('no')", 1),
        ("import os; os._exit(4)", 4),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("import atexit; atexit.register(print, 'AT THE END')", 0),
    ],
)
def test_a_fork_ends_with_the_exit_code_of_what_it_ran(server, environment, tmp_path, code, exit_code):
    log = tmp_path / "log"

    assert server.fork(command(code), environment, tmp_path, log).wait() == exit_code

    assert ("AT THE END" in log.read_text().splitlines()) == ("atexit" in code)


def test_a_fork_is_ended_with_all_that_it_started(server, environment, tmp_path):
    code = "import subprocess; child = subprocess.Popen(['sleep', '600']); print('CHILD', child.pid); child.wait()"
    log = tmp_path / "log"
    process = server.fork(command(code), environment, tmp_path, log)
    child = psutil.Process(_number(log, "CHILD"))

    end_process_group(process)

    assert process.wait() == -signal.SIGTERM
    assert psutil.wait_procs([child], timeout=30)[1] == []


def test_a_command_that_is_no_component_is_not_forked(server, environment, tmp_path):
    assert server.fork(["sh", "-c", "true"], environment, tmp_path, tmp_path / "log") is None


def test_the_forks_of_a_server_that_is_killed_end_and_count_as_killed(environment, tmp_path):
    server = ForkServer()
    log = tmp_path / "log"
    code = "import os, time; print('PARENT', os.getppid()); time.sleep(600)"
    until = time.monotonic() + LIMIT_S
    while (process := server.fork(command(code), environment, tmp_path, log)) is None:
        assert time.monotonic() < until
        time.sleep(0.1)
    parent, fork = psutil.Process(_number(log, "PARENT")), psutil.Process(process.pid)

    parent.kill()

    assert process.wait() == -signal.SIGKILL
    assert psutil.wait_procs([fork], timeout=30)[1] == []
    assert server.fork(command("pass"), environment, tmp_path, log) is None
    server.close()


def _number(log, word):
    """Return the number that a step prints behind a word."""
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        lines = log.read_text().splitlines() if log.is_file() else []
        if numbers := [line.split()[1] for line in lines if line.startswith(word)]:
            return int(numbers[0])
        time.sleep(0.05)
    raise AssertionError(log.read_text())
