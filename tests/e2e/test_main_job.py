"""The README's way on a slice of the real data: up, data, submit, call, resume, miss a gate, down."""

import base64
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import psutil
import pytest
import requests

from tests.support.project import bare_environment, copy_project, git
from tests.support.schemas import make_older
from tests.support.waiting import wait_until

PROJECT = Path(__file__).resolve().parents[2]
STEPS = [
    "pull-data",
    "validate-data",
    "build-features",
    "tune",
    "evaluate",
    "materialize",
    "register",
    "deploy",
    "verify",
    "promote",
]


class Clone:
    """A copy of the project with a tenth of the flights and a search of seconds."""

    def __init__(self, root: Path) -> None:
        self.root = root
        paths = f"{root}{os.pathsep}{root / 'platform'}"
        self.environment = bare_environment("MLFLOW_") | {"PYTHONPATH": paths, "NO_COLOR": "1"}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "shopfloor", *arguments],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=280)
        assert process.returncode == code, f"{arguments}: {out}\n{err}"
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def submit(self, *arguments: str, code: int = 0) -> dict:
        result = self.run(
            "submit", "pipelines/training.py", "--use-case", "flight_delays", "--json", *arguments, code=code
        )
        return json.loads(result.stdout)

    def shell(self, *command: str) -> None:
        subprocess.run(command, cwd=self.root, check=True, capture_output=True, text=True)

    def edit(self, file: str, old: str, new: str) -> None:
        text = (self.root / file).read_text()
        assert old in text
        (self.root / file).write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    root = tmp_path_factory.mktemp("e2e") / "project"
    copy_project(root)
    clone = Clone(root)
    _slice_the_data(root)
    use_case = "pipelines/flight_delays/use_case.yaml"
    clone.edit(use_case, "trials: 16", "trials: 3")
    clone.edit(use_case, "max_rounds: 100", "max_rounds: 20")
    clone.edit(use_case, "grace_rounds: 20", "grace_rounds: 10")
    clone.edit(use_case, "checkpoint_every: 20", "checkpoint_every: 10")
    clone.edit(use_case, "roc_auc: {min: 0.70}", "roc_auc: {min: 0.55}")
    clone.edit(use_case, "log_loss: {max: 0.45}", "log_loss: {max: 0.6}")
    clone.edit(use_case, "calibration_error: {max: 0.05}", "calibration_error: {max: 0.2}")
    clone.edit(use_case, "roc_auc: {min: 0.60, min_rows: 500}", "roc_auc: {min: 0.50, min_rows: 500}")
    # Searches of three to seven trials differ by more than a champion may lose.
    clone.edit(use_case, "roc_auc: {max_loss: 0.005}", "roc_auc: {max_loss: 0.2}")
    clone.edit(use_case, "log_loss: {max_loss: 0.005}", "log_loss: {max_loss: 0.2}")
    for file in ("dvc.yaml", "dvc.lock"):
        (root / file).unlink()
    git(clone.root, "init", "-q")
    clone.shell(sys.executable, "-m", "dvc", "add", "-q", "data/flight_delays", "data/digits")
    git(clone.root, "add", "-A")
    git(clone.root, "commit", "-qm", "slice")
    git(clone.root, "tag", "slice")
    clone.run("up")
    try:
        yield clone
    finally:
        clone.run("down")


def _slice_the_data(root: Path) -> None:
    from pipelines.digits.source import make_pictures
    from pipelines.flight_delays.source import make_tables

    make_pictures(root / "data" / "digits", every=4)
    data = root / "data" / "flight_delays"
    make_tables(data)
    whole = data / "flights.parquet"
    duckdb.sql(f"COPY (SELECT * FROM '{whole}' WHERE flight_id % 10 = 0 ORDER BY flight_id) TO '{root}/slice.parquet'")
    (root / "slice.parquet").replace(whole)


@pytest.fixture(scope="module")
def first(clone):
    clone.run("data", "prepare", "flight_delays")
    return clone.submit()


def _call(outcome: dict) -> requests.Response:
    document = requests.get(outcome["endpoint"].replace("/predict", "/openapi.json"), timeout=10).json()
    path = next(item for name, item in document["paths"].items() if name.endswith("/predict"))
    content = path["post"]["requestBody"]["content"]["application/json"]
    example = content.get("example") or next(iter(content["examples"].values()))["value"]
    return requests.post(outcome["endpoint"], json=example, timeout=10)


def _states(outcome: dict) -> dict[str, str]:
    return {step["name"]: step["state"] for step in outcome["steps"]}


def test_submit_ends_in_a_champion_that_answers_the_documented_example(clone, first):
    assert first["state"] == "succeeded"
    assert first["version"] == "1"
    assert [step["name"] for step in first["steps"]] == STEPS

    answer = _call(first)

    assert answer.status_code == 200
    assert 0 < answer.json()["prediction"] < 1
    assert answer.json()["version"] == "1"


def _demo(clone):
    """Start `make demo`, without the installation that would come before it."""
    command = ["make", "--no-print-directory", "demo", f"VENV={sys.prefix}", "INSTALLED=README.md"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        command, cwd=clone.root, env=clone.environment, text=True, start_new_session=True, **streams
    )


@pytest.fixture(scope="module")
def demo(clone, first):
    """Give the answers of `make demo`, which was killed in its middle and run again, and what it said."""
    for name in ("aircraft_seats", "digits"):
        clone.edit(f"pipelines/{name}/use_case.yaml", "trials: 8", "trials: 2")
    process = _demo(clone)
    assert any(line.startswith("aircraft_seats") for line in process.stderr)
    assert any(line.startswith("build-features: succeeded") for line in process.stderr)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    process = _demo(clone)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    return {line.split("\t")[0]: line.split("\t")[1:] for line in out.splitlines()}, err


@pytest.mark.timeout(600)
def test_a_demo_that_is_killed_goes_on_to_an_answering_endpoint_of_each_use_case(clone, demo):
    answers, err = demo

    assert sorted(answers) == ["aircraft_seats", "digits", "flight_delays", "iris"]
    assert "tune: cached" in err.partition("aircraft_seats")[0]
    assert "build-features: cached" in err.partition("aircraft_seats")[2].partition("digits")[0]
    for name, (predicts, answer, version, address) in answers.items():
        assert "?" in predicts
        assert answer
        assert version == "1"
        assert requests.get(address.replace("/predict", "/openapi.json"), timeout=10).json()["info"]["title"] == name


def test_a_table_with_texts_and_an_estimator_in_one_line_predict_a_number(clone, demo):
    answer = demo[0]["aircraft_seats"][1]
    assert 0 < float(answer) < 400
    assert json.loads(clone.run("models", "show", "aircraft_seats@champion", "--json").stdout)["metrics"]["r2"] > 0.9


def test_a_folder_of_pictures_ends_in_an_endpoint_that_is_sent_pictures(clone, demo):
    endpoint = demo[0]["digits"][3]
    rows = duckdb.sql(f"SELECT * FROM '{clone.root}/data/digits/digits.parquet' LIMIT 20").fetchall()
    hits = 0
    for name, digit in rows:
        picture = base64.b64encode((clone.root / "data/digits" / name).read_bytes()).decode()
        answer = requests.post(endpoint, json={"picture": picture}, timeout=10)
        assert answer.status_code == 200
        hits += answer.json()["prediction"]["class"] == digit
    assert hits >= 18
    refused = requests.post(endpoint, json={"picture": "aGVsbG8="}, timeout=10)
    assert refused.status_code == 422
    assert refused.json()["message"].endswith("picture is no file of a picture in base64.")


def test_a_model_from_elsewhere_is_asked_like_any_other_and_deployed_again_without_harm(clone, demo):
    row = {"sepal_length": 6.3, "sepal_width": 3.3, "petal_length": 6.0, "petal_width": 2.5}
    [answer] = json.loads(clone.run("ask", "iris", "--row", json.dumps(row), "--json").stdout)
    assert answer["prediction"]["class"] == "virginica"
    assert sum(answer["prediction"]["probabilities"].values()) == pytest.approx(1)
    passport = json.loads(clone.run("models", "show", "iris@champion", "--json").stdout)
    assert passport["imported"]["golden_rows"] == 15
    assert "answers all requests" in clone.run("deploy", "iris@1").stdout
    refused = clone.run("ask", "iris", "--row", '{"sepal_length": "long"}', code=2).stderr
    assert "iris/predict refuses the row: sepal_length" in refused


def test_the_tutorial_of_a_csv_works_line_by_line(clone, demo):
    page = (PROJECT / "docs/tutorial/your-table.md").read_text(encoding="utf-8")
    lines = "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL)).splitlines()
    (clone.root / ".venv").symlink_to(sys.prefix)
    script = "\n".join(line for line in lines if line not in {"make install", "shopfloor down"})
    command = ["bash", "-e", "-o", "pipefail", "-c", script]
    result = subprocess.run(command, cwd=clone.root, env=clone.environment, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Version 1 is the champion.") == 2, result.stdout
    answers = re.findall(r"^aircraft\tPredicts seats\.\t([\d.]+)\t1\thttp", result.stdout, re.MULTILINE)
    assert len(answers) == 2
    assert all(0 < float(answer) < 400 for answer in answers)


HOLD = """
import ray, sys
ray.init(address="auto", log_to_driver=False)
from ray.util.placement_group import placement_group
ray.get(placement_group([{"CPU": ray.available_resources()["CPU"] - 0.5}]).ready())
print("held", flush=True)
sys.stdin.read()
"""


def test_a_search_says_that_it_waits_for_cpus_and_who_has_them(clone, demo):
    ray = json.loads(clone.run("env", "--json").stdout)
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD], env=clone.environment | ray, **streams) as holder:
        assert holder.stdout.readline() == "held\n"
        arguments = (
            "submit",
            "pipelines/training.py",
            "--use-case",
            "digits",
            "-p",
            "trials=1",
            "-p",
            "register_only=true",
        )
        process = clone.start(*arguments)
        told = next(line for line in process.stderr if line.startswith("tune: waiting for 1 CPU: 0.5 of "))
        assert "endpoint digits 0.1, endpoint flight_delays 0.5, endpoint iris 0.1, other runs " in told
        holder.stdin.close()
        assert any(line.startswith("tune: succeeded") for line in process.stderr)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def test_a_trial_that_would_wait_for_ever_is_refused(clone, demo):
    clone.edit("pipelines/digits/use_case.yaml", "trials: 2", "trials: 2\n  workers: {cpus: 640}")
    try:
        refused = clone.run("submit", "pipelines/training.py", "--use-case", "digits", code=1)
    finally:
        clone.edit("pipelines/digits/use_case.yaml", "\n  workers: {cpus: 640}", "")
    assert re.search(r"A trial asks for 640 CPUs, and Ray has \d+ here: it would wait for ever", refused.stdout)


def test_a_flight_may_be_named_instead_of_its_features_as_the_docs_say(clone, first):
    page = (PROJECT / "docs/how-to/features-at-request-time.md").read_text(encoding="utf-8")
    command = next(line for line in page.splitlines() if line.startswith("curl"))
    row = json.loads(shlex.split(command)[-1])

    answer = requests.post(first["endpoint"], json=row, timeout=10)

    assert answer.status_code == 200, answer.text
    sources = {name: item["source"] for name, item in answer.json()["inputs"].items()}
    assert sources["carrier_late_rate_168h"] == "online"
    assert sources["departure_hour"] == "computed"
    assert sources["visib"] == "request"


def test_the_run_its_steps_and_its_report_are_in_mlflow(clone, first):
    run = json.loads(clone.run("runs", "show", first["run_id"], "--json").stdout)
    assert [step["state"] for step in run["steps"]] == ["succeeded"] * len(STEPS)
    assert run["metrics"]["roc_auc"] == pytest.approx(first["metrics"]["roc_auc"])

    server = first["links"]["run"].partition("/#/")[0]
    artifacts = requests.get(
        f"{server}/api/2.0/mlflow/artifacts/list", params={"run_id": first["run_id"]}, timeout=10
    ).json()
    assert "report.html" in [item["path"] for item in artifacts["files"]]
    assert "trial 3/3" in clone.run("runs", "logs", first["run_id"], "tune").stdout


def test_the_passport_names_data_code_checks_and_gates(clone, first):
    passport = json.loads(clone.run("models", "show", "flight_delays@champion", "--json").stdout)

    assert passport["version"] == "1"
    assert passport["data"]["md5"].endswith(".dir")
    assert re.fullmatch(r"[0-9a-f]{40}", passport["git_commit"])
    assert passport["checks_passed"]
    assert all(gate["passed"] for gate in passport["gates"])
    assert passport["run_id"] == first["run_id"]


def test_submit_again_with_nothing_changed_runs_no_step(clone, first):
    again = clone.submit()

    assert set(_states(again).values()) == {"cached"}
    assert again["version"] == "1"


def test_the_plan_says_before_what_a_submit_does(clone, first):
    def planned(*arguments):
        out = clone.run("plan", "pipelines/training.py", "--use-case", "flight_delays", "--json", *arguments).stdout
        return {step["step"]: step for step in json.loads(out)["steps"]}

    assert {name: step["action"] for name, step in planned().items()} == dict.fromkeys(STEPS, "reuse")
    changed = planned("-p", "trials=9")
    assert changed["build-features"]["action"] == "reuse"
    assert changed["tune"]["changes"] == [{"part": "parameter trials", "old": "0", "new": "9"}]
    assert changed["register"]["action"] == "unknown"
    assert planned("--from", "verify")["verify"]["why"] == "Asked for."


def test_submit_from_a_step_runs_it_and_what_follows(clone, first):
    again = _states(clone.submit("--from", "verify"))

    assert [again[step] for step in STEPS[:8]] == ["cached"] * 8
    assert [again[step] for step in STEPS[8:]] == ["succeeded"] * 2
    unknown = clone.run("submit", "pipelines/training.py", "--use-case", "flight_delays", "--from", "train", code=2)
    assert "has no step 'train'. It has pull-data" in unknown.stderr


def test_a_comment_in_the_code_runs_no_step(clone, first):
    with (clone.root / "platform/shopfloor/judging/evaluate.py").open("a") as file:
        file.write("\n# Nothing that counts.\n")

    assert set(_states(clone.submit()).values()) == {"cached"}


def test_a_missed_gate_is_an_outcome_and_leaves_the_champion_alone(clone, first):
    before = json.loads(clone.run("models", "show", "flight_delays", "--json").stdout)["version"]
    clone.edit("pipelines/flight_delays/use_case.yaml", "roc_auc: {min: 0.55}", "roc_auc: {min: 0.99}")
    try:
        missed = clone.submit(code=3)
    finally:
        clone.edit("pipelines/flight_delays/use_case.yaml", "roc_auc: {min: 0.99}", "roc_auc: {min: 0.55}")

    assert missed["state"] == "gate_missed"
    assert "roc_auc must be >= 0.99" in missed["message"]
    assert _states(missed)["tune"] == "cached"
    assert _states(missed)["register"] == "skipped"
    assert json.loads(clone.run("models", "show", "flight_delays", "--json").stdout)["version"] == before


def test_bad_data_stop_the_run_before_anything_is_trained(clone, first):
    flights = clone.root / "data/flight_delays/flights.parquet"
    duckdb.sql(f"COPY (SELECT * EXCLUDE (distance) FROM '{flights}') TO '{clone.root}/bad.parquet'")
    flights.unlink()
    (clone.root / "bad.parquet").replace(flights)
    changed = clone.run("submit", "pipelines/training.py", "--use-case", "flight_delays", code=1)
    assert "is not what DVC recorded" in changed.stderr
    clone.shell(sys.executable, "-m", "dvc", "add", "-q", "data/flight_delays")

    refused = clone.submit(code=1)

    assert refused["state"] == "failed"
    assert "flights.distance: expected to exist" in refused["message"]
    assert _states(refused)["build-features"] == "skipped"
    by_tag = clone.submit("-p", "data_rev=slice")
    assert by_tag["state"] == "succeeded"
    clone.shell("git", "checkout", "-q", "slice", "--", "data/flight_delays.dvc")
    clone.shell(sys.executable, "-m", "dvc", "checkout", "-q", "--force", "data/flight_delays.dvc")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit", "pipelines/training.py", "--use-case", "nothing"], "There is no use case 'nothing'"),
        (["submit", "pipelines/nothing.py"], "There is no pipeline file"),
        (["submit", "pipelines/training.py"], "needs use_case"),
        (["submit", "pipelines/training.py", "--use-case", "flight_delays", "-p", "x=1"], "has no parameter 'x'"),
        (
            ["submit", "pipelines/training.py", "--use-case", "flight_delays", "-p", "trials=many"],
            "'trials' must be a whole number, not 'many'",
        ),
        (
            ["submit", "pipelines/training.py", "--use-case", "flight_delays", "-p", "data_rev=v99"],
            "There is no git revision 'v99'",
        ),
        (["runs", "show", "ffff"], "There is no run 'ffff'"),
        (["models", "show", "nothing"], "Model 'nothing' has no champion"),
        (["--profile", "nothing", "status"], "There is no profile 'nothing'"),
    ],
)
def test_what_is_asked_wrongly_gets_one_line_and_exit_code_2(clone, first, arguments, message):
    result = clone.run(*arguments, code=2)

    assert result.stdout == ""
    assert [message in line for line in result.stderr.splitlines() if line.startswith("error: ")] == [True]
    assert "Traceback" not in result.stderr


def test_a_stopped_run_is_marked_and_its_processes_are_gone(clone, first):
    process = clone.start(
        "submit", "pipelines/training.py", "--use-case", "flight_delays", "-p", "trials=5", "--no-cache"
    )
    family = psutil.Process(process.pid)
    children = wait_until(lambda: [c for c in family.children(recursive=True) if _runs_a_step(c)])
    process.send_signal(2)
    process.communicate(timeout=60)

    assert process.returncode == 130
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert json.loads(clone.run("runs", "show", "latest", "--json").stdout)["state"] == "killed"


def _runs_a_step(process):
    try:
        return "executor_main" in str(process.cmdline())
    except psutil.Error:  # it ended between the list and the question
        return False


def _wait_for_tune(process):
    messages = []
    for line in process.stderr:
        messages.append(line)
        if line.startswith("tune: running"):
            return
    raise AssertionError(f"tune never ran: {''.join(messages)}")


def _kill_step(process):
    def killed():
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it ended between the list and the question
                # The step's own interpreter, not the shell that started it.
                if child.name().startswith("python") and child.cmdline()[-1:] == ["tune"]:
                    child.kill()
                    return True
        return False

    wait_until(killed)


def _kill_service(clone, name):
    services = json.loads(clone.run("status", "--json").stdout)["services"]
    head = psutil.Process(next(service["pid"] for service in services if service["name"] == name))
    for victim in [head, *head.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()


@pytest.mark.storm
def test_an_upgrade_that_is_killed_goes_on_and_the_champion_answers_exactly(clone, first, tmp_path):
    make_older(clone.root / ".shopfloor" / "mlflow" / "mlflow.db")
    command = ("upgrade", "--store", str(tmp_path / "store"), "--no-rehearse")
    process = clone.start(*command)
    assert any(line.startswith("Migrating") for line in process.stderr)
    process.kill()
    process.communicate()

    assert "An upgrade was cut short" in clone.run("up", code=1).stderr
    upgraded = json.loads(clone.run(*command, "--json").stdout)

    assert upgraded["outcome"] == "upgraded"
    assert [(one["largest_difference"], one["problem"]) for one in upgraded["champions"]] == [(0, "")]
    assert _call(first).json()["version"] == "1"


@pytest.mark.storm
def test_whatever_dies_in_the_middle_is_said_and_the_same_submit_goes_on(clone, first):
    def interrupted(kill) -> tuple[str, str]:
        process = clone.start("submit", "pipelines/training.py", "--use-case", "flight_delays", "-p", "trials=4")
        _wait_for_tune(process)
        kill(process)
        out, err = process.communicate(timeout=240)
        assert process.returncode == 1, out + err
        return out, err

    out, err = interrupted(_kill_step)
    assert "Step tune failed" in out, out + err

    out, err = interrupted(lambda _: _kill_service(clone, "ray"))
    assert re.search(
        r"Step tune failed: The Ray cluster 127.0.0.1:\d+ (stopped answering|does not answer)\. Start", out
    ), out + err
    clone.run("up")

    _, err = interrupted(lambda _: _kill_service(clone, "mlflow"))
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert "stopped answering" in errors[0]
    clone.run("up")

    resumed = clone.submit("-p", "trials=4")
    assert resumed["state"] == "succeeded"
    # The search ended without MLflow.
    assert [_states(resumed)[step] for step in STEPS[:4]] == ["cached"] * 4
    assert _states(resumed)["register"] == "succeeded"
