"""What a run began ends with it, however its process ends; and no two searches share a directory."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from shopfloor.engines.guard import MARKER
from shopfloor.engines.processes import StepProcesses, end_process_group
from shopfloor.errors import ConflictError
from shopfloor.settings import Settings
from shopfloor.training import tuning

ROOT = Path(__file__).parents[2]
RUN = """
import subprocess, sys
from shopfloor.engines.guard import Guard
with Guard() as guard:
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    # The shell is the step, what it starts works.
    step = subprocess.Popen(
        ["sh", "-c", '"$0" -c "$1"; true', sys.executable, program],
        env=__import__("os").environ | guard.variables,
        start_new_session=True,
    )
    print(step.pid, guard.variables["SHOPFLOOR_GUARD"], guard._process.pid, flush=True)
    if sys.argv[1] == "wait":
        step.wait()
    sys.stdin.readline()
"""


@pytest.fixture
def run():
    processes = []

    def start(what):
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, what], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        lines = [process.stdout.readline().split() for _ in range(2)]
        shell, value, guard = next(line for line in lines if len(line) == 3)
        worker = next(line for line in lines if len(line) == 1)[0]
        return process, [psutil.Process(int(pid)) for pid in (shell, worker)], psutil.Process(int(guard)), value

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_a_step_and_what_its_shell_started_end_with_the_run(run, number):
    process, steps, guard, _ = run("wait")
    assert "Umask:\t0077" in Path(f"/proc/{guard.pid}/status").read_text()

    process.send_signal(number)

    gone, alive = psutil.wait_procs([*steps, guard], timeout=30)
    assert (len(gone), alive) == (3, [])


def test_a_run_that_ends_by_itself_leaves_its_guard_nothing_to_do(run):
    process, steps, guard, value = run("end")
    process.stdin.write("\n")
    process.stdin.flush()

    assert psutil.wait_procs([guard], timeout=30)[1] == []
    # Ending its steps was the run's own affair.
    assert all(step.is_running() and step.environ()[MARKER] == value for step in steps)
    for step in steps:
        step.kill()


def test_what_a_step_writes_is_for_this_account_alone(tmp_path):
    assert StepProcesses().run(["sh", "-c", "umask"], {}, tmp_path, tmp_path / "log") == 0
    assert (tmp_path / "log").read_text() == "0077\n"


def test_a_second_search_in_a_directory_says_who_has_it(tmp_path, monkeypatch):
    settings = Settings(project_root=ROOT, state_dir=tmp_path)
    monkeypatch.setattr(tuning, "LOCK_TIMEOUT_S", 0.1)

    with tuning._alone(settings, "tune/a"):
        with (
            pytest.raises(ConflictError, match=f"Process {os.getpid()} does the same search already"),
            tuning._alone(settings, "tune/a"),
        ):
            pass
        with tuning._alone(settings, "tune/b"):
            pass
    with tuning._alone(settings, "tune/a"):
        pass


def test_a_step_that_is_stopped_by_another_thread_does_not_count_as_done():
    process = subprocess.Popen(["sh", "-c", "sleep 600; true"], start_new_session=True)
    with ThreadPoolExecutor(1) as pool:
        code = pool.submit(process.wait)
        end_process_group(process)

    assert code.result() == -signal.SIGTERM
