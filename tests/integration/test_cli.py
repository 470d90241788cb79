"""The frame of the command line: quick help, one line for each error, exit codes, JSON and nothing else."""

import dataclasses
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import types
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
import typer
from shopfloor.cli import main, render, submit
from shopfloor.settings import Settings

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


def test_help_lists_every_command_and_group_with_what_it_does(shopfloor):
    listed = dict(re.findall(r"^  ([a-z-]+) {2,}(\S.*)$", shopfloor("--help").stdout.partition("Commands:")[2], re.M))

    assert {"up", "down", "status", "doctor", "settings", "env", "submit", "plan", "runs", "models"} <= listed.keys()
    assert listed.keys() == typer.main.get_command(main.app).commands.keys()


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


STRANGE = ("../../x", "penguins/../x", "penguins'", "/etc", "x/1/2", "", "a\nb")


def commands_with(parameter, command=None, path=()):
    """Yield each command that takes this parameter, as words for the shell before it."""
    command = command or typer.main.get_command(main.app)
    for name, child in getattr(command, "commands", {}).items():
        yield from commands_with(parameter, child, (*path, name))
    own = [one for one in command.params if one.name == parameter and not one.multiple]
    others = ["pipelines/training.py" for one in command.params if one.param_type_name == "argument" and one not in own]
    yield from ((*path, *others, *one.opts[-1:]) if one.opts[0].startswith("-") else path for one in own)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        pytest.param(command, words, id=" ".join(command))
        for parameter, words in (("use_case", "is no name of a use case"), ("model", "names no version of a model"))
        for command in commands_with(parameter)
    ],
)
def test_a_name_that_is_a_path_is_one_line_wherever_a_name_is_taken(shopfloor, command, words):
    for name in STRANGE:
        answer = shopfloor(*command, name)
        assert (answer.returncode, answer.stderr.count("\n")) == (2, 1), answer
        assert answer.stderr.startswith(f"error: {name!r} {words}")


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
    findings = json.loads(shopfloor("doctor", "--json").stdout)

    lines = shopfloor("doctor").stdout.splitlines()
    assert {finding["subject"] for finding in findings} >= {"python", "packages", "git", "dvc", "privacy", "patches"}
    assert {finding["verdict"] for finding in findings} <= {"ok", "warn", "fail"}
    heads = [line.split(":")[0] for line in lines if not line.startswith("     ")]
    assert heads == [f"{finding['verdict']:<5}{finding['subject']}" for finding in findings]


def test_doctor_with_a_failing_line_is_exit_code_1(shopfloor, monkeypatch):
    monkeypatch.setenv("SHOPFLOOR_S3_ENDPOINT_URL", "http://127.0.0.1:9")

    answer = shopfloor("doctor")

    assert answer.returncode == 1
    assert "fail object store: http://127.0.0.1:9" in answer.stdout


def test_down_without_a_stack_is_fine(shopfloor):
    answer = shopfloor("down")

    assert answer.returncode == 0
    assert answer.stderr == "Nothing ran.\n"


def test_up_for_services_that_are_elsewhere_says_so_and_that_their_registry_does_not_answer(
    shopfloor, tmp_path, monkeypatch
):
    monkeypatch.setenv("SHOPFLOOR_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("SHOPFLOOR_PROJECT_ROOT", str(tmp_path))
    profiles = tmp_path / "platform" / "profiles"
    profiles.mkdir(parents=True)
    (profiles / "office.toml").write_text("")

    answer = shopfloor("up", "--profile", "office")

    assert answer.returncode == 1
    first, second = answer.stderr.splitlines()
    assert "'office'" in first
    assert second.startswith("error: The MLflow server at http://127.0.0.1:9 does not answer")


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)

    with os.fdopen(writer, "w") as nobody:
        answer = subprocess.run(
            [sys.executable, "-m", "shopfloor", "settings", "--json"],
            cwd=ROOT,
            stdout=nobody,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )

    assert (answer.returncode, answer.stderr) == (0, "")


def test_settings_show_each_value_with_its_source(shopfloor, tmp_path, monkeypatch):
    monkeypatch.setenv("SHOPFLOOR_SERVE_URL", "http://127.0.0.1:8111")
    team = tmp_path / "team.toml"
    team.write_text('tracking_uri = "http://mlflow.example:5000"\n[cluster]\nqueue = "team"\n')

    values = json.loads(shopfloor("settings", "--json", "--profile", str(team)).stdout)

    assert values["profile"] == {"value": str(team), "source": "argument"}
    assert values["serve_url"] == {"value": "http://127.0.0.1:8111", "source": "environment"}
    assert values["tracking_uri"] == {"value": "http://mlflow.example:5000", "source": "profile"}
    assert values["cluster.queue"] == {"value": "team", "source": "profile"}
    assert values["cluster.namespace"] == {"value": "shopfloor", "source": "default"}
    rows = [line.split("\t") for line in shopfloor("settings", "--profile", str(team)).stdout.splitlines()]
    assert ["serve_url", "http://127.0.0.1:8111", "SHOPFLOOR_SERVE_URL"] in rows
    assert ["cluster.queue", "team", str(team)] in rows


def test_env_gives_a_shell_what_mlflow_and_ray_need(shopfloor, tmp_path, monkeypatch):
    token = tmp_path / "it's a token"
    token.write_text("0123")
    monkeypatch.setenv("SHOPFLOOR_RAY_TOKEN_FILE", str(token))
    monkeypatch.setenv("SHOPFLOOR_TRACKING_URI", "http://127.0.0.1:5111")
    script = 'eval "$1" && env'

    answer = subprocess.run(
        ["bash", "-c", script, "bash", shopfloor("env").stdout], capture_output=True, text=True, check=True
    )

    variables = dict(line.split("=", 1) for line in answer.stdout.splitlines() if "=" in line)
    assert variables["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5111"
    assert (variables["RAY_AUTH_MODE"], variables["RAY_AUTH_TOKEN_PATH"]) == ("token", str(token))
    assert variables["RAY_AUTH_TOKEN"] == ""
    assert "127.0.0.1" in variables["no_proxy"].split(",")


def test_control_characters_of_others_do_not_steer_the_terminal(shopfloor, capsys):
    render.emit_table(("step", "error"), [("tune", "\x1b]0;owned\x07 and \x9b31m")])
    render.progress("\x1b[2J")
    printed = "".join(capsys.readouterr())

    refused = shopfloor("status", "--profile", "\x1b[31mmoon")

    assert not set("\x1b\x07\x9b") & set(printed + refused.stderr)
    assert "\\x1b]0;owned\\x07" in printed
    assert "moon" in refused.stderr


def test_loopback_is_never_asked_through_a_proxy(shopfloor, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "intranet.example")
    monkeypatch.delenv("NO_PROXY", raising=False)

    shopfloor("status")

    assert requests.utils.should_bypass_proxies("http://127.0.0.1:5000/health", no_proxy=None)
    assert requests.utils.should_bypass_proxies("http://intranet.example/", no_proxy=None)
    assert not requests.utils.should_bypass_proxies("http://mlflow.example:5000/", no_proxy=None)


def test_the_command_that_asks_a_new_endpoint_is_one_of_the_shell_whatever_its_example_holds(tmp_path, capsys):
    row = {"carrier": "it's; touch x; $(touch x) `touch x`", "delay": 1.5}
    content = {"application/json": {"example": row}}
    (tmp_path / "flights").mkdir()
    (tmp_path / "flights/openapi.json").write_text(
        json.dumps({"paths": {"/flights/predict": {"post": {"requestBody": {"content": content}}}}})
    )
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/flights/predict"
        outcome = {"message": "", "state": "succeeded", "metrics": {}, "headlines": [], "links": {}, "endpoint": url}
        submit._show(Settings(project_root=tmp_path), types.SimpleNamespace(**outcome))
        server.shutdown()
    command = capsys.readouterr().out.strip().splitlines()[-1]
    words = subprocess.run(
        ["sh", "-c", f'curl() {{ printf "%s\\n" "$@"; }}; {command}'],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    ).stdout.splitlines()
    assert words[:-1] == ["-s", url, "-H", "Content-Type: application/json", "-d"]
    assert json.loads(words[-1]) == row
    assert not (tmp_path / "x").exists()


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
        message = waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        rest = waiting.communicate(timeout=20)[1]
        first.kill()

    assert "waiting" in message
    assert rest == "Stopped.\n"
    assert waiting.returncode == 130


def test_a_compiled_file_is_replaced_as_a_whole_and_keeps_its_permissions(shopfloor, tmp_path):
    folder = tmp_path / "compiled"
    folder.mkdir()
    file = folder / "run.yaml"
    file.write_text("what was there\n")
    file.chmod(0o640)
    pipeline = tmp_path / "saying.py"
    pipeline.write_text(
        "from kfp import dsl\n\n@dsl.component\ndef say(text: str) -> str:\n    return text\n\n"
        "@dsl.pipeline\ndef saying():\n    say(text='a')\n"
    )
    with file.open() as reader:
        answer = shopfloor("compile", str(pipeline), "--engine", "argo", "-o", str(file))
        assert answer.returncode == 0, answer.stderr
        assert reader.read() == "what was there\n", "who reads the old file reads it to its end"

    assert "kind: Workflow" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o640
    assert list(folder.iterdir()) == [file]
