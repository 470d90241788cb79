"""Two deployers at a time, many times, on a real registry with an endpoint that follows it: one truth at the end."""

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

CASE, OTHER = "toy_storm", "toy_calm"
INTERLEAVINGS = int(os.environ.get("STORM_INTERLEAVINGS", "25"))
"""How often two deployers change the registry at once: a second each. `make storm` does it 200 times."""
WHOLE_INTERLEAVINGS = int(os.environ.get("STORM_INTERLEAVINGS", "4"))
"""How often they also wait for the endpoint: some seconds each."""
pytestmark = pytest.mark.timeout(900 + 15 * WHOLE_INTERLEAVINGS)  # they take a minute on a quiet machine


@pytest.fixture(scope="module")
def settings(project):
    return project(**{name: USE_CASE.format(name=name) for name in (CASE, OTHER)})


@pytest.fixture(scope="module")
def row(settings):
    """Give a row of two endpoints, each with a champion."""
    register_models(settings, OTHER, versions=1)
    deploy(settings, OTHER, champion="1")
    frame, _ = register_models(settings, CASE, versions=2)
    deploy(settings, CASE, champion="1")
    return rows_of(frame)[0]


def blow(settings, directory, count, *others):
    """Return what was told in each interleaving."""
    program = Path(__file__).with_name("storm.py")
    ended = subprocess.run(
        [sys.executable, str(program), CASE, str(count), str(directory), *others],
        env=os.environ | settings.environment() | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}"},
        cwd=settings.project_root,
        stdout=subprocess.PIPE,
        text=True,
        timeout=800 + 15 * count,
        check=True,
    )
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.fixture(scope="module")
def storm(settings, row, tmp_path_factory):
    """Give what was told in each interleaving, and a row."""
    return blow(settings, tmp_path_factory.mktemp("machines"), INTERLEAVINGS), row


@pytest.fixture(scope="module")
def whole_storm(settings, storm, tmp_path_factory):
    """Give the same of deployers who declare the endpoint to Serve and wait for it."""
    return blow(settings, tmp_path_factory.mktemp("whole"), WHOLE_INTERLEAVINGS, OTHER)


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


def test_entries_of_long_ago_are_gone_and_their_numbers_are_not_given_again(settings, storm, monkeypatch):
    monkeypatch.setattr(assignments, "KEPT", 20)
    mlflow = registry(settings)
    entry = assignments.read(mlflow, CASE)
    for _ in range(2 * assignments.SWEEP_EVERY):
        entry = assignments.change(mlflow, CASE, entry, champion="1", challenger=None)
    numbers = [int(version["version"]) for version in assignments._entries(mlflow, CASE, 1000)]
    assert assignments.KEPT <= len(numbers) < assignments.KEPT + 2 * assignments.SWEEP_EVERY < numbers[0]
    assert numbers == list(range(numbers[-1], entry.number + 1))[::-1]

    newest = {"name": CASE + assignments.SUFFIX, "version": str(entry.number)}
    mlflow.post("model-versions/delete", newest, "DELETE")  # as somebody might by hand
    changed = assignments.change(mlflow, CASE, assignments.read(mlflow, CASE), champion="1", challenger=None)
    assert changed.number > entry.number
    assert assignments.read(mlflow, CASE).assignment == changed.assignment


def test_deployers_who_wait_for_the_endpoint_agree_with_it_and_leave_other_endpoints_alone(whole_storm):
    assert len(whole_storm) == WHOLE_INTERLEAVINGS
    for line in whole_storm:
        outcomes = [answer["outcome"] for answer in line["told"]]
        assert not {"bug", "refused"} & set(outcomes), line
        assert outcomes.count("won") <= 1, line
        assert line["endpoint"]["champion"] == line["champion"] == line["alias"], line
        assert line["other"], line
