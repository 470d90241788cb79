"""A canary on a real endpoint under load: it becomes champion, is taken back, waits for data, goes on after a kill."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest
import requests
from shopfloor.errors import ConflictError, UsageError
from shopfloor.flows import rollout as canary
from shopfloor.flows.promote import standing
from shopfloor.serving import assignment as assignments
from shopfloor.serving.deploy.champion import promote_version
from shopfloor.serving.deploy.rollout import deploy, endpoint, registry

from tests.support.endpoints import USE_CASE, declared_traffic, register_models, rows_of, shopfloor
from tests.support.waiting import wait_until

CASE = "toy_rollout"

JUDGE = """
import sys
from shopfloor.flows import rollout
from shopfloor.settings import load_settings

def tell(text):
    print(text, flush=True)

rollout.run(load_settings(), sys.argv[1], "2", tell, (30, 100), 60, lease_s=float(sys.argv[2]))
"""

LIVE = """
gates:
  live:
    min_requests: 20
    tolerance: TOLERANCE
    metrics: {error_rate: {max: 0.1}, agreement: {min: 0.5}, p99_ms: {max: 5000}}
"""


@pytest.fixture(scope="module")
def settings(project):
    return project(**{CASE: with_gates(tolerance=1)})


@pytest.fixture(scope="module")
def rows(settings):
    frame, _ = register_models(settings, CASE, versions=2)
    return rows_of(frame)


@pytest.fixture
def champion(settings, rows):
    write_use_case(settings.project_root, tolerance=1)
    promote_version(settings, CASE, "1")
    deploy(settings, CASE, champion="1", challenger=None)


def with_gates(tolerance):
    return USE_CASE.format(name=CASE) + LIVE.replace("TOLERANCE", str(tolerance))


def write_use_case(directory, tolerance):
    (directory / "pipelines" / CASE / "use_case.yaml").write_text(with_gates(tolerance))


@contextlib.contextmanager
def requests_all_the_time(settings, rows):
    """Ask as a handful of users would; give the answers that were none."""
    failures, end = [], threading.Event()

    def ask():
        with requests.Session() as session:
            for row in iter(lambda: rows[0], None):
                if end.wait(0.01):
                    return
                answer = session.post(f"{endpoint(settings, CASE)}/predict", json=row, timeout=30)
                if not answer.ok:
                    failures.append(answer.text)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        end.set()
        for thread in threads:
            thread.join()


def test_a_good_version_goes_through_its_stages_to_champion(settings, rows, champion):
    progress = []
    with requests_all_the_time(settings, rows) as failures:
        result = canary.run(settings, CASE, "2", progress.append, stages=(50, 100), stage_timeout_s=60)
    assert not failures
    assert result.outcome == "promoted"
    assert progress == ["Version 2 answers 50 % of the requests", "Version 2 answers 100 % of the requests"]
    state = standing(settings, CASE)
    assert (state.champion, state.answers, state.challenger) == ("2", "2", None)


def test_a_broken_bound_takes_the_version_back_and_the_registry_says_why(settings, rows, champion):
    import mlflow

    write_use_case(settings.project_root, tolerance=0)
    with requests_all_the_time(settings, rows) as failures:
        result = canary.run(settings, CASE, "2", lambda text: None, stages=(20, 100), stage_timeout_s=60)
    assert not failures
    assert (result.outcome, result.percent) == ("rolled_back", 20)
    assert result.reason == "agreement is 0, the bound is >= 0.5"
    state = standing(settings, CASE)
    assert (state.champion, state.answers, state.challenger) == ("1", "1", None)
    client = mlflow.MlflowClient(settings.tracking_uri)
    record = json.loads(client.get_model_version(CASE, "2").tags[canary.TAG])
    assert record["reason"] == result.reason
    assert "challenger" not in client.get_registered_model(CASE).aliases


def test_without_requests_there_is_no_verdict_and_no_traffic(settings, rows, champion):
    result = canary.run(settings, CASE, "2", lambda text: None, stages=(20, 100), stage_timeout_s=1)
    assert (result.outcome, result.percent) == ("not_enough_data", 20)
    assert "of 20 answers" in result.reason
    assert declared_traffic(settings, CASE).canary_percent == 0
    assert standing(settings, CASE).answers == "1"


def test_a_killed_rollout_goes_on_from_its_stage(settings, rows, champion):
    progress = []
    with requests_all_the_time(settings, rows):
        process = subprocess.Popen(
            [sys.executable, "-m", "shopfloor", "rollout", "run", f"{CASE}/2", "--stages", "30,60,100"],
            env=os.environ | settings.environment(),
            cwd=settings.project_root,
            stderr=subprocess.PIPE,
            text=True,
        )
        told = []
        for line in process.stderr:
            told.append(line)
            if "60 %" in line:
                break
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        result = canary.run(settings, CASE, "2", progress.append, stages=(30, 60, 100), stage_timeout_s=60)
    assert result.outcome == "promoted", told
    assert progress[0] == "Version 2 answers 60 % of the requests", told


def test_the_command_line_shows_both_versions_and_ends_with_one_line(settings, rows, champion):
    def judged():
        status = json.loads(shopfloor(settings, "rollout", "status", CASE, "--since", "20s", "--json").stdout)
        gates = status["versions"][-1]["gates"]
        return status if gates and all(gate["passed"] for gate in gates) else None

    assert shopfloor(settings, "deploy", f"{CASE}/2", "--canary", "50", "--shadow").returncode == 0
    with requests_all_the_time(settings, rows):
        state = wait_until(judged)
    assert [(item["version"], item["role"], item["percent"]) for item in state["versions"]] == [
        ("1", "champion", 50),
        ("2", "challenger", 50),
    ]
    table = shopfloor(settings, "rollout", "status", CASE)
    assert "2 (challenger)" in table.stdout
    again = shopfloor(settings, "deploy", f"{CASE}/1")
    assert (again.returncode, again.stderr.strip().count("\n")) == (2, 0)
    assert "is the champion" in again.stderr


def test_a_judge_whose_trial_somebody_else_ended_is_told_who_it_was(settings, rows, champion):
    def end(told):
        result = shopfloor(settings, "rollout", "end", CASE, "--reason", "it looks wrong", "--json")
        ended.append(json.loads(result.stdout))

    ended = []
    with pytest.raises(ConflictError, match=r"end of a trial by .*@.* \(it looks wrong\)"):
        canary.run(settings, CASE, "2", end, stages=(20, 100), stage_timeout_s=60)
    assert ended == [{"use_case": CASE, "version": "2"}]
    assert standing(settings, CASE).challenger is None
    again = shopfloor(settings, "rollout", "end", CASE)
    assert (again.returncode, again.stderr.strip()) == (
        2,
        f"error: {CASE} has no version on trial. `shopfloor deploy` puts one beside the champion.",
    )


def test_a_judge_that_was_stopped_past_its_lease_finds_that_somebody_else_decided(settings, rows, champion):
    judge = subprocess.Popen(
        [sys.executable, "-c", JUDGE, CASE, "4"],
        env=os.environ | settings.environment(),
        cwd=settings.project_root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert judge.stdout.readline() == "Version 2 answers 30 % of the requests\n"
    judge.send_signal(signal.SIGSTOP)
    try:
        assert declared_traffic(settings, CASE).canary_percent == 30
        wait_until(lambda: standing(settings, CASE).canary_percent == 0)
        canary.end(settings, CASE, "its judge was gone")
        decided = assignments.read(registry(settings), CASE).assignment
    finally:
        judge.send_signal(signal.SIGCONT)
    _, errors = judge.communicate(timeout=60)
    assert judge.returncode == 1
    assert re.search(r"ConflictError: .*end of a trial by .*@.* \(its judge was gone\)", errors)
    assert assignments.read(registry(settings), CASE).assignment == decided
    assert standing(settings, CASE).answers == "1"


def test_a_detached_rollout_is_judged_by_a_ray_job(settings, rows, champion):
    with requests_all_the_time(settings, rows):
        begun = shopfloor(settings, "rollout", "run", f"{CASE}/2", "--stages", "50,100", "--detach", "--json")
        assert json.loads(begun.stdout)["job"].startswith("shopfloor-")
        wait_until(lambda: standing(settings, CASE).champion == "2")


def test_a_champion_that_breaks_a_bound_after_its_promotion_is_rolled_back_by_itself(settings, rows, champion):
    text = with_gates(tolerance=1).replace("p99_ms: {max: 5000}", "p99_ms: {max: 0.0001}")
    file = settings.project_root / "pipelines" / CASE / "use_case.yaml"
    file.write_text(text.replace("min_requests: 20", "min_requests: 20\n    watch_s: 60"))
    with requests_all_the_time(settings, rows):
        promote_version(settings, CASE, "2")
        wait_until(lambda: standing(settings, CASE).changed.startswith("rollback to version 1"))
    assert "after its promotion p99_ms is" in standing(settings, CASE).changed
    wait_until(lambda: standing(settings, CASE).answers == "1")


@pytest.mark.parametrize("stages", [(), (50, 20), (0, 100), (50, 120)])
def test_stages_that_do_not_rise_are_refused(settings, rows, stages):
    with pytest.raises(UsageError, match="do not rise"):
        canary.run(settings, CASE, "2", lambda text: None, stages=stages)
