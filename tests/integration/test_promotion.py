"""Promote and roll back on a real registry and a real endpoint, also killed at every step and two at a time."""

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from shopfloor.errors import ConflictError, NotFoundError, ShopfloorError, UsageError
from shopfloor.flows import intents
from shopfloor.flows import promote as promotion
from shopfloor.flows.promote import STEPS, promote_version, restore, roll_back, standing
from shopfloor.serving.deploy.rollout import deploy, endpoint

from tests.endpoints import USE_CASE, post, register_models, rows_of

CASE = "toy_promotion"

KILLED = """
import os, signal, sys
from pathlib import Path
from shopfloor.flows import intents
from shopfloor.flows import promote as promotion
from shopfloor.serving.deploy import rollout
from shopfloor.settings import load_settings

after = int(sys.argv[1])
def die(*arguments, **named):
    os.kill(os.getpid(), signal.SIGKILL)
if after < 0:
    rollout._wait_until_loaded = die  # declared to Serve, and not waited for
else:
    steps = list(promotion.STEPS)
    steps.insert(after, die)
    promotion.STEPS = tuple(steps)
getattr(promotion, sys.argv[2])(load_settings(), *sys.argv[3:])
"""


CRASHING = """
import os, signal
import mlflow

class Model(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        os.kill(os.getpid(), signal.SIGSEGV)

    def predict(self, context, model_input, params=None):
        return model_input

mlflow.models.set_model(Model())
"""


@pytest.fixture(scope="module")
def settings(project):
    return project(**{CASE: USE_CASE.format(name=CASE)})


@pytest.fixture(scope="module")
def row(settings, tmp_path_factory):
    import mlflow

    frame, _ = register_models(settings, CASE, versions=2)
    with mlflow.start_run() as run:  # the third version is in the registry, and is no model
        mlflow.log_text("nothing here", "model/README")
    mlflow.MlflowClient(settings.tracking_uri).create_model_version(
        CASE, f"{run.info.artifact_uri}/model", run.info.run_id
    )
    code = tmp_path_factory.mktemp("crashing") / "model.py"
    code.write_text(CRASHING)
    with mlflow.start_run():  # the fourth is one that takes its process down
        mlflow.pyfunc.log_model(name="model", python_model=str(code), pip_requirements=[], registered_model_name=CASE)
    return rows_of(frame)[0]


@pytest.fixture
def first(settings, row):
    """Version 1 is champion, whatever the last test did, and there is no record of another one."""
    import mlflow

    client = mlflow.MlflowClient(settings.tracking_uri)
    if intents.read(client, CASE):
        intents.clear(client, CASE)
    client.set_registered_model_alias(CASE, "champion", "1")
    for version in "12":
        for tag in (promotion.PROMOTED, promotion.ROLLED_BACK):
            if tag in client.get_model_version(CASE, version).tags:
                client.delete_model_version_tag(CASE, version, tag)
    deploy(settings, CASE, champion="1", challenger=None)
    return client


class Load:
    """Asks the endpoint all the time; keeps each version that answered, and each answer that was none."""

    def __init__(self, url, row):
        self.versions, self.failures = [], []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(url, row))

    def _run(self, url, row):
        with requests.Session() as session:
            while not self._stop.is_set():
                answer = session.post(f"{url}/predict", json=row, timeout=30)
                if answer.ok:
                    self.versions.append(answer.json()["version"])
                else:
                    self.failures.append(answer.text)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()


def answering(settings, row):
    return post(f"{endpoint(settings, CASE)}/predict", row).json()["version"]


def test_a_promotion_changes_endpoint_alias_and_record_and_a_rollback_takes_it_back(settings, row, first):
    first.set_registered_model_alias(CASE, "challenger", "2")
    with Load(endpoint(settings, CASE), row) as load:
        change = promote_version(settings, CASE, "2", reason="it is better")
        back = roll_back(settings, CASE, reason="it is not")

    assert not load.failures
    assert list(dict.fromkeys(load.versions)) == ["1", "2"]
    assert (change.champion, change.before) == ("2", "1")
    assert (back.champion, back.before) == ("1", "2")
    record = promotion.history(first, CASE, "2")
    assert record["promoted"]["reason"] == "it is better"
    assert record["promoted"]["before"] == "1"
    assert record["promoted"]["run_id"] == first.get_model_version(CASE, "2").run_id
    assert "@" in record["promoted"]["by"]
    assert record["rolled_back"]["reason"] == "it is not"
    assert standing(settings, CASE).model_dump() == {
        "use_case": CASE,
        "champion": "1",
        "answers": "1",
        "challenger": None,
        "unfinished": "",
    }
    assert answering(settings, row) == "1"
    assert "challenger" not in first.get_registered_model(CASE).aliases


def test_there_is_no_rollback_from_the_first_champion(settings, first):
    with pytest.raises(UsageError, match="There was no champion before: version 1 of toy_promotion stays"):
        roll_back(settings, CASE)


def test_an_unknown_version_or_model_is_one_line(settings, first):
    with pytest.raises(NotFoundError, match="There is no version 9 of a model 'toy_promotion'"):
        promote_version(settings, CASE, "9")
    with pytest.raises(NotFoundError, match="'toy_nothing'"):
        promote_version(settings, "toy_nothing", "1")


@pytest.mark.parametrize(("version", "why"), [("3", "MlflowException"), ("4", "killed by signal 11")])
def test_a_version_that_does_not_load_never_becomes_champion(settings, row, first, version, why):
    refused = pytest.raises(ShopfloorError, match=f"Version {version} .* does not load: .*{why}")
    with Load(endpoint(settings, CASE), row) as load, refused:
        promote_version(settings, CASE, version)
    assert set(load.versions) == {"1"}
    assert not load.failures
    found = standing(settings, CASE)
    assert (found.champion, found.answers, found.unfinished) == ("1", "1", "")


@pytest.mark.parametrize("after", range(-1, len(STEPS)))
def test_a_promotion_that_is_killed_is_finished_by_the_next_command(settings, row, first, after):
    killed = kill(settings, after, "promote_version", CASE, "2")
    assert killed == -signal.SIGKILL

    between = standing(settings, CASE)
    assert between.unfinished.startswith("promotion of version 2 by ")
    assert between.answers == answering(settings, row)

    restore(settings, progress=lambda text: None)

    after_all = standing(settings, CASE)
    assert (after_all.champion, after_all.answers, after_all.unfinished) == ("2", "2", "")
    assert promotion.history(first, CASE, "2")["promoted"]["before"] == "1"


def test_a_killed_promotion_is_finished_before_a_rollback_begins(settings, row, first):
    kill(settings, 1, "promote_version", CASE, "2")

    change = roll_back(settings, CASE)

    assert "promotion of version 2" in change.finished
    assert (change.champion, change.before) == ("1", "2")
    assert answering(settings, row) == "1"


def test_a_killed_promotion_of_what_does_not_load_is_undone(settings, row, first):
    kill(settings, 0, "promote_version", CASE, "3")

    change = promote_version(settings, CASE, "2")

    assert change.finished.endswith("was undone")
    assert (change.before, answering(settings, row)) == ("1", "2")


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(settings, row, first):
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(promote_version, settings, CASE, "2") for _ in range(2)]
        errors = [item.exception() for item in asked]
    assert [type(error) for error in errors if error] == [ConflictError]
    assert "being changed by another command" in str(next(error for error in errors if error))
    assert standing(settings, CASE).answers == "2"


def test_what_another_machine_has_begun_is_left_to_it_until_its_time_is_over(settings, row, first):
    theirs = intents.new("promote", "2", "1", "", "").model_copy(update={"by": "somebody@elsewhere"})
    intents.write(first, CASE, theirs)
    with pytest.raises(ConflictError, match="promotion of version 2 by somebody@elsewhere"):
        promote_version(settings, CASE, "2")

    old = theirs.model_copy(update={"when": theirs.when.replace(year=2020)})
    intents.write(first, CASE, old)
    assert "promotion of version 2 by somebody@elsewhere" in roll_back(settings, CASE).finished


def test_the_command_line_promotes_rolls_back_and_says_who_answers(settings, row, first):
    promoted = shopfloor(settings, "models", "promote", f"{CASE}/2", "--reason", "by hand", "--json")
    assert json.loads(promoted.stdout)["before"] == "1"
    shown = shopfloor(settings, "models", "rollback", CASE)
    assert shown.stdout == f"Version 1 is the champion of {CASE}, before it version 2.\n"
    refused = shopfloor(settings, "models", "promote", CASE)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "has no challenger" in refused.stderr


def environment(settings):
    return os.environ | settings.environment()


def kill(settings, after, *arguments):
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(after), *arguments],
        env=environment(settings),
        cwd=settings.project_root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return process.returncode


def shopfloor(settings, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "shopfloor", *arguments],
        env=environment(settings),
        cwd=settings.project_root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
