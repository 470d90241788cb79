"""The frame of the command line: quick help, one line for each error, exit codes, JSON and nothing else."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shopfloor.cli import main

ROOT = Path(__file__).parents[2]
HEAVY = (
    "mlflow",
    "ray",
    "pandas",
    "numpy",
    "feast",
    "great_expectations",
    "xgboost",
    "sklearn",
    "dvc",
    "duckdb",
    "kfp",
)


@dataclasses.dataclass
class Answer:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def shopfloor(tmp_path, monkeypatch, capsys):
    """Run the command in the project, in this process, with a state directory of its own."""
    for name in [name for name in os.environ if name.startswith("SHOPFLOOR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SHOPFLOOR_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(ROOT)

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["shopfloor", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.run()
        printed = capsys.readouterr()
        return Answer(int(ended.value.code or 0), printed.out, printed.err)

    return run


def test_help_lists_the_commands():
    answer = subprocess.run([sys.executable, "-m", "shopfloor", "--help"], capture_output=True, text=True, check=False)

    assert answer.returncode == 0
    assert all(command in answer.stdout for command in ("up", "down", "status", "doctor", "submit", "runs", "models"))


def test_no_heavy_package_is_imported_before_a_command_needs_it():
    code = "import shopfloor.cli.main, sys; print(*sys.modules)"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert not {module.partition(".")[0] for module in loaded} & set(HEAVY)


def test_the_version_is_that_of_the_package(shopfloor):
    from importlib.metadata import version

    assert shopfloor("--version").stdout.strip() == version("shopfloor")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-command"], "No such command 'no-such-command'"),
        (["up", "--no-such-option"], "--no-such-option"),
        (["up", "--mlflow-port", "many"], "--mlflow-port"),
        (["up", "--mlflow-port", "80"], "--mlflow-port"),
        (["status", "surplus"], "surplus"),
        (["status", "--profile", "moon"], "no profile 'moon'"),
        (["--profile=moon", "status"], "no profile 'moon'"),
        (["submit"], "Missing argument"),
    ],
)
def test_a_command_asked_wrongly_is_one_line_and_exit_code_2(shopfloor, arguments, words):
    answer = shopfloor(*arguments)

    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.startswith("error: ")
    assert answer.stderr.count("\n") == 1
    assert words in answer.stderr


def test_outside_of_a_project_every_command_says_where_to_go(shopfloor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    answer = shopfloor("status")

    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1
    assert "Change into your clone" in answer.stderr


def test_a_wrong_port_in_the_environment_names_the_variable(shopfloor, monkeypatch):
    monkeypatch.setenv("SHOPFLOOR_MLFLOW_PORT", "many")

    answer = shopfloor("up")

    assert answer.returncode == 2
    assert "SHOPFLOOR_MLFLOW_PORT" in answer.stderr


def test_debug_shows_the_traceback_wherever_it_stands(shopfloor):
    assert "Traceback" in shopfloor("status", "--profile", "moon", "--debug").stderr
    assert "Traceback" in shopfloor("--debug", "status", "--profile", "moon").stderr
    assert "Traceback" not in shopfloor("status", "--profile", "moon").stderr


def test_status_without_a_stack_is_exit_code_1_and_says_how_to_start_it(shopfloor):
    answer = shopfloor("status")

    assert answer.returncode == 1
    assert "down" in answer.stdout
    assert "shopfloor up" in answer.stderr


def test_json_is_one_document_on_stdout_and_nothing_else(shopfloor):
    answer = shopfloor("status", "--json")

    assert [service["name"] for service in json.loads(answer.stdout)["services"]] == ["mlflow", "ray", "serve"]


def test_doctor_gives_its_findings_as_json(shopfloor):
    answer = shopfloor("doctor", "--json")

    assert {finding["verdict"] for finding in json.loads(answer.stdout)} <= {"ok", "warn", "fail"}


def test_doctor_with_a_failing_line_is_exit_code_1(shopfloor, monkeypatch):
    monkeypatch.setenv("SHOPFLOOR_S3_ENDPOINT_URL", "http://127.0.0.1:9")

    answer = shopfloor("doctor")

    assert answer.returncode == 1
    assert "fail object store: http://127.0.0.1:9" in answer.stdout


def test_down_without_a_stack_is_fine(shopfloor):
    answer = shopfloor("down")

    assert answer.returncode == 0
    assert answer.stderr == "Nothing ran.\n"


def test_up_for_services_that_are_elsewhere_is_one_line(shopfloor, tmp_path, monkeypatch):
    monkeypatch.setenv("SHOPFLOOR_PROJECT_ROOT", str(tmp_path))
    profiles = tmp_path / "platform" / "profiles"
    profiles.mkdir(parents=True)
    (profiles / "office.toml").write_text("")

    answer = shopfloor("up", "--profile", "office")

    assert answer.returncode == 2
    assert "'office'" in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    command = f"{sys.executable} -m shopfloor doctor --json | true; exit ${{PIPESTATUS[0]}}"

    answer = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    assert "Traceback" not in answer.stderr
    assert "BrokenPipe" not in answer.stderr


def test_ctrl_c_is_exit_code_130(tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    holder = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holder, str(state / "stack.lock")], stdout=subprocess.PIPE) as first:
        first.stdout.readline()
        waiting = subprocess.Popen(
            [sys.executable, "-m", "shopfloor", "up"],
            cwd=ROOT,
            env={**os.environ, "SHOPFLOOR_STATE_DIR": str(state)},
            stderr=subprocess.PIPE,
            text=True,
        )
        said = waiting.stderr.readline()
        time.sleep(0.2)
        waiting.send_signal(signal.SIGINT)
        rest = waiting.communicate(timeout=20)[1]
        first.kill()

    assert "waiting" in said
    assert rest == "Stopped.\n"
    assert waiting.returncode == 130
