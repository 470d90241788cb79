"""Two deployers at a time, 200 times, on a real registry with an endpoint that follows it: one truth at the end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from shopfloor.serving import assignment as assignments
from shopfloor.serving.deploy.rollout import deploy, endpoint, live_versions, registry

from tests.support.endpoints import USE_CASE, post, register_models, rows_of
from tests.support.project import ROOT
from tests.support.waiting import wait_until

CASE = "toy_storm"
INTERLEAVINGS = 200
pytestmark = pytest.mark.timeout(900)  # they take a minute on a quiet machine


@pytest.fixture(scope="module")
def settings(project):
    return project(**{CASE: USE_CASE.format(name=CASE)})


@pytest.fixture(scope="module")
def storm(settings, tmp_path_factory):
    """Give what was told in each interleaving, and a row."""
    frame, _ = register_models(settings, CASE, versions=2)
    deploy(settings, CASE, champion="1")
    program, machines = Path(__file__).with_name("storm.py"), tmp_path_factory.mktemp("machines")
    done = subprocess.run(
        [sys.executable, str(program), CASE, str(INTERLEAVINGS), str(machines)],
        env=os.environ | settings.environment() | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}"},
        cwd=settings.project_root,
        stdout=subprocess.PIPE,
        text=True,
        timeout=800,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()], rows_of(frame)[0]


def test_of_two_changes_that_saw_the_same_one_wins_and_the_other_is_told_by_whom_it_lost(storm):
    lines, _ = storm
    assert len(lines) == INTERLEAVINGS
    outcomes = [sorted(answer["outcome"] for answer in line["told"]) for line in lines]
    assert not [line for line in lines if any(answer["outcome"] in {"bug", "refused"} for answer in line["told"])]
    assert all(pair.count("won") <= 1 for pair in outcomes)
    undisturbed = [pair for pair in outcomes if "killed" not in pair]
    assert set(map(tuple, undisturbed)) == {("lost", "won")}
    assert ["killed", "won"] in outcomes
    lost = [answer["message"] for line in lines for answer in line["told"] if answer["outcome"] == "lost"]
    assert all("in between: " in message and "@" in message for message in lost)


def test_what_a_deployer_was_told_is_what_the_registry_says(storm):
    lines, _ = storm
    for line in lines:
        outcomes = dict(zip(("one", "other"), [answer["outcome"] for answer in line["told"]], strict=True))
        winners = [name for name, outcome in outcomes.items() if outcome == "won"]
        if winners:
            assert line["by"] == winners[0]
            assert line["after"] > line["before"]
        elif line["after"] == line["before"]:  # the one was killed before it wrote, and so was the other
            assert set(outcomes.values()) == {"killed"}


def test_the_alias_the_assignment_and_the_endpoint_agree_when_the_dust_has_settled(settings, storm):
    lines, row = storm
    assert [line["alias"] for line in lines] == [line["champion"] for line in lines]
    decided = assignments.read(registry(settings), CASE).assignment
    agreed = {"champion": decided.champion, "challenger": decided.challenger}
    wait_until(lambda: live_versions(settings, CASE) == agreed)
    answers = post(f"{endpoint(settings, CASE)}/predict", row, **{"X-Shopfloor-Version": "champion"}).json()
    assert answers["version"] == decided.champion == lines[-1]["alias"]


def test_entries_of_long_ago_are_gone_and_their_numbers_are_not_given_again(settings, storm):
    mlflow = registry(settings)
    entry = assignments.read(mlflow, CASE)
    numbers = [int(version["version"]) for version in assignments._entries(mlflow, CASE, 1000)]
    assert assignments.KEPT <= len(numbers) < assignments.KEPT + 15 * assignments.SWEEP_EVERY < numbers[0]
    assert numbers == list(range(numbers[-1], entry.number + 1))[::-1]

    newest = {"name": CASE + assignments.SUFFIX, "version": str(entry.number)}
    mlflow.post("model-versions/delete", newest, "DELETE")  # as somebody might by hand
    changed = assignments.change(mlflow, CASE, assignments.read(mlflow, CASE), champion="1", challenger=None)
    assert changed.number > entry.number
    assert assignments.read(mlflow, CASE).assignment == changed.assignment
