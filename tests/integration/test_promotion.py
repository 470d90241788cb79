"""Who answers, on a real registry and a real endpoint: promoted, rolled back, killed at every step, two at a time."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import requests
from shopfloor.cli import main
from shopfloor.errors import ConflictError, NotFoundError, RefusalError, ServiceError, ShopfloorError, UsageError
from shopfloor.flows.promote import restore, standing, standings
from shopfloor.flows.rollout import remove
from shopfloor.runs.versions import MODEL_HASH, PROMOTED, ROLLED_BACK
from shopfloor.serving import assignment as assignments
from shopfloor.serving.contract import LEASE_ENDED
from shopfloor.serving.deploy import champion as champions
from shopfloor.serving.deploy import steps
from shopfloor.serving.deploy.champion import history, promote_version, roll_back
from shopfloor.serving.deploy.rollout import Traffic, deploy, endpoint, registry
from shopfloor.serving.replica import tokens

from tests.support.artifacts import Recorder
from tests.support.endpoints import USE_CASE, post, register_models, rows_of, shopfloor
from tests.support.waiting import wait_until

CASE, OTHER = "toy_promotion", "toy_abandoned"
LEASE_S = 20.0

KILLED = """
import os, signal, sys
from shopfloor.runs.mlflow import Mlflow
from shopfloor.serving.deploy import champion
from shopfloor.settings import load_settings

left = int(sys.argv[1])
post = Mlflow.post
def die_behind(self, *arguments, **named):
    global left
    answer = post(self, *arguments, **named)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer
Mlflow.post = die_behind  # each write of ours to the registry is a step
getattr(champion, sys.argv[2])(load_settings(), *sys.argv[3:])
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
    return project(**{name: USE_CASE.format(name=name) for name in (CASE, OTHER)})


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


@pytest.fixture(scope="module", autouse=True)
def abandoned(settings, row):
    """Another endpoint, whose challenger has all requests, and whose judge is gone before the first test begins."""
    import mlflow

    client = mlflow.MlflowClient(settings.tracking_uri)
    for version in "12":
        client.copy_model_version(f"models:/{CASE}/{version}", OTHER)
    deploy(settings, OTHER, champion="1")
    deploy(settings, OTHER, challenger="2", traffic=Traffic(canary_percent=100), lease_s=LEASE_S)
    wait_until(lambda: post(f"{endpoint(settings, OTHER)}/predict", row).json()["version"] == "2")


@pytest.fixture
def first(settings, row):
    """Version 1 is champion, whatever the last test did, and there is no record of another one."""
    import mlflow

    client = mlflow.MlflowClient(settings.tracking_uri)
    for version in "12":
        for tag in (PROMOTED, ROLLED_BACK):
            if tag in client.get_model_version(CASE, version).tags:
                client.delete_model_version_tag(CASE, version, tag)
    deploy(settings, CASE, champion="1", challenger=None)
    client.set_registered_model_alias(CASE, "champion", "1")
    return client


class Load:
    """Asks the endpoint all the time, with short pauses; keeps what answered: a version, or none."""

    def __init__(self, url, row):
        self.versions, self.failures = [], []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(url, row))

    def _run(self, url, row):
        with requests.Session() as session:
            while not self._stop.wait(0.02):
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


def aliases(client):
    return {alias: str(version) for alias, version in client.get_registered_model(CASE).aliases.items()}


def elsewhere(settings, tmp_path):
    """Return the settings of another machine's clone: its own state directory, the same registry and endpoint."""
    return settings.model_copy(update={"state_dir": tmp_path / "elsewhere"})


def test_a_promotion_changes_endpoint_alias_and_record_and_a_rollback_takes_it_back(settings, row, first):
    first.set_registered_model_alias(CASE, "challenger", "2")
    with Load(endpoint(settings, CASE), row) as load:
        change = promote_version(settings, CASE, "2", reason="it is better")
        back = roll_back(settings, CASE, reason="it is not")

    assert not load.failures
    assert list(dict.fromkeys(load.versions)) == ["1", "2"]
    assert (change.champion, change.before) == ("2", "1")
    assert (back.champion, back.before) == ("1", "2")
    record = history(registry(settings), CASE, "2")
    assert record["promoted"]["reason"] == "it is better"
    assert record["promoted"]["before"] == "1"
    assert record["promoted"]["run_id"] == first.get_model_version(CASE, "2").run_id
    assert "@" in record["promoted"]["by"]
    assert record["rolled_back"]["reason"] == "it is not"
    state = standing(settings, CASE)
    assert (state.champion, state.answers, state.challenger) == ("1", "1", None)
    assert state.changed.startswith("rollback to version 1 by ")
    assert answering(settings, row) == "1"
    assert aliases(first) == {"champion": "1"}


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
    state = standing(settings, CASE)
    assert (state.champion, state.answers, state.challenger) == ("1", "1", None)
    assert aliases(first)["champion"] == "1"


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_a_promotion_that_is_killed_leaves_the_old_champion_or_the_new_one(settings, row, first, writes):
    assert kill(settings, writes, "promote_version", CASE, "2") == -signal.SIGKILL
    decided = assignments.read(registry(settings), CASE).assignment.champion
    assert decided in {"1", "2"}

    assert not restore(settings, progress=lambda text: None).problems

    state = standing(settings, CASE)
    assert (state.champion, state.answers) == (decided, decided)
    assert answering(settings, row) == decided
    assert aliases(first)["champion"] == decided
    if decided == "2":
        assert history(registry(settings), CASE, "2")["promoted"]["before"] == "1"


def test_of_two_promotions_from_two_machines_one_wins_and_the_other_is_told_by_whom(settings, row, first, tmp_path):
    machines = [settings, elsewhere(settings, tmp_path)]
    read = assignments.read(registry(settings), CASE)  # both have seen the same
    with ThreadPoolExecutor() as pool:
        asked = [
            pool.submit(promote_version, machine, CASE, version, f"by {version}", read)
            for machine, version in zip(machines, "21", strict=True)
            if version == "2"
        ] + [pool.submit(promote_version, machines[1], CASE, "2", "by the other", read)]
        errors = [item.exception() for item in asked]
    [lost] = [error for error in errors if error]
    assert isinstance(lost, ConflictError)
    assert "Somebody else changed the endpoint of toy_promotion in between: " in str(lost)
    assert "@" in str(lost)
    state = standing(settings, CASE)
    assert (state.champion, state.answers, aliases(first)["champion"]) == ("2", "2", "2")


def test_a_writer_that_wakes_up_late_changes_nothing(settings, row, first):
    late = assignments.read(registry(settings), CASE)
    promote_version(settings, CASE, "2", reason="in the meantime")
    before = assignments.read(registry(settings), CASE)

    with pytest.raises(ConflictError, match=r"promotion of version 2 by .*\(in the meantime\)"):
        assignments.change(registry(settings), CASE, late, champion=None, challenger=None)
    with pytest.raises(ConflictError):
        roll_back(settings, CASE, before=late)

    assert assignments.read(registry(settings), CASE).assignment == before.assignment
    assert answering(settings, row) == "2"


def test_what_is_written_behind_a_writer_that_lost_counts(settings, row, first):
    mlflow = registry(settings)
    late = assignments.read(mlflow, CASE)
    deploy(settings, CASE, challenger=None, reason="somebody")
    for _ in range(7):  # more losers in a row than a reader asks for at first
        with pytest.raises(ConflictError):
            assignments.change(mlflow, CASE, late, champion=None)
    entry = assignments.read(mlflow, CASE)
    assert entry.number > entry.assignment.revision + 5
    promote_version(settings, CASE, "2")
    assert assignments.read(mlflow, CASE).assignment.champion == answering(settings, row) == "2"


def test_a_promotion_of_the_champion_that_times_out_takes_nothing_from_it(settings, row, first, monkeypatch):
    from shopfloor.serving.deploy import rollout

    deaf = settings.model_copy(update={"serve_url": "http://127.0.0.1:1"})
    monkeypatch.setattr(rollout, "DEPLOY_TIMEOUT_S", 1)
    with pytest.raises(ServiceError, match="did not load 1 in time"):
        promote_version(deaf, CASE, "1")
    assert aliases(first)["champion"] == "1"
    assert assignments.read(registry(settings), CASE).assignment.champion == answering(settings, row) == "1"


def test_a_deployment_that_times_out_leaves_no_share_behind(settings, row, first):
    deaf = settings.model_copy(update={"serve_url": "http://127.0.0.1:1"})
    with pytest.raises(ServiceError, match="did not load"):
        deploy(deaf, CASE, challenger="2", traffic=Traffic(canary_percent=100), timeout_s=1)
    assert assignments.read(registry(settings), CASE).assignment.versions() == ["1"]


def test_a_share_that_is_given_up_goes_back_to_the_champion_at_once(settings, row, first):
    entry = deploy(settings, CASE, challenger="2", traffic=Traffic(canary_percent=100), lease_s=60)
    wait_until(lambda: answering(settings, row) == "2")
    assignments.renew(registry(settings), CASE, entry, LEASE_ENDED)
    wait_until(lambda: answering(settings, row) == "1")


def test_a_run_does_not_promote_again_what_was_rolled_back(settings, row, first):
    promote_version(settings, CASE, "2")
    roll_back(settings, CASE, reason="it was wrong about Mondays")
    for version in "12":
        first.set_model_version_tag(CASE, version, MODEL_HASH, "abc")

    with pytest.raises(RefusalError, match=r"Version 2 of toy_promotion, .* rolled back on .*: it was wrong about Mon"):
        steps.promote(settings, CASE, "2", Recorder())
    with pytest.raises(RefusalError, match="Version 1 of .* is the same model as version 2, which .* rolled back"):
        steps.promote(settings, CASE, "1", Recorder())
    assert answering(settings, row) == "1"

    promote_version(settings, CASE, "2", reason="a person may")
    champions.refuse_what_was_taken_back(registry(settings), CASE, "1")


def test_a_run_makes_a_challenger_again_of_what_was_rolled_back(settings, row, first):
    promote_version(settings, CASE, "2")
    roll_back(settings, CASE, reason="on second thoughts")
    first.set_registered_model_alias(CASE, "challenger", "2")  # as the step `register` does

    steps.introduce(settings, CASE, "2", Recorder())

    assert aliases(first) == {"champion": "1", "challenger": "2"}


def test_what_stood_in_the_tag_before_there_was_a_ledger_still_counts(settings, row, first):
    import mlflow

    client = mlflow.MlflowClient(settings.tracking_uri)
    client.create_registered_model("toy_old")
    try:
        client.set_registered_model_tag("toy_old", "shopfloor.endpoint", '{"champion": "7", "canary_percent": 0}')
        entry = assignments.read(registry(settings), "toy_old")
        assert (entry.assignment.champion, entry.assignment.revision, entry.has_record) == ("7", 0, True)
        assert assignments.change(registry(settings), "toy_old", entry, champion="8").assignment.revision == 1
        assert assignments.read(registry(settings), "toy_old").assignment.champion == "8"
    finally:
        for name in ("toy_old", "toy_old.endpoint"):
            with contextlib.suppress(mlflow.MlflowException):
                client.delete_registered_model(name)


def test_a_share_that_nobody_judges_any_more_has_gone_back_to_the_champion(settings, row, abandoned):
    wait_until(lambda: post(f"{endpoint(settings, OTHER)}/predict", row).json()["version"] == "1")
    assert assignments.read(registry(settings), OTHER).assignment.canary_percent == 100  # as it was left


def test_a_list_that_was_read_before_another_deployer_wrote_takes_nothing_away(settings, row, first, monkeypatch):
    from shopfloor.serving.deploy import applications

    real = {"running": applications.running, "read_all": assignments.read_all}
    stale = {name: lambda *given, ask=ask: without(OTHER, ask(*given)) for name, ask in real.items()}
    monkeypatch.setattr(applications, "running", stale["running"])
    monkeypatch.setattr(assignments, "read_all", stale["read_all"])
    put, lists = applications._put, []

    def put_late(*given):
        lists.append(sorted(item["name"] for item in given[1]))
        put(*given)
        monkeypatch.setattr(applications, "running", real["running"])
        monkeypatch.setattr(assignments, "read_all", real["read_all"])

    monkeypatch.setattr(applications, "_put", put_late)
    write_use_case(settings, max_rows=40)
    try:
        deploy(settings, CASE, champion="1")
    finally:
        write_use_case(settings, max_rows=50)
    assert [OTHER in names for names in lists] == [False, True]
    wait_until(lambda: standing(settings, OTHER).answers == "1", timeout_s=60)
    assert standing(settings, CASE).answers == "1"


def test_who_was_paused_between_reading_and_writing_the_list_reads_again(settings, row, first, monkeypatch):
    from shopfloor.serving.deploy import applications

    clock, writes = iter([0.0, applications.FRESH_S + 1]), []
    paused = SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda seconds: None)
    monkeypatch.setattr(applications, "time", paused)
    monkeypatch.setattr(applications, "_put", lambda *given: writes.append(given))
    monkeypatch.setattr(applications, "running", lambda settings: {})
    monkeypatch.setattr(applications, "_TRIES", 1)
    with pytest.raises(ConflictError, match="too many at once"):
        applications.declare(settings, CASE)
    assert not writes


def without(name, items):
    return {key: value for key, value in items.items() if key != name}


def write_use_case(settings, max_rows):
    file = settings.project_root / "pipelines" / CASE / "use_case.yaml"
    file.write_text(USE_CASE.format(name=CASE).replace("max_rows: 50", f"max_rows: {max_rows}"))


def test_a_model_without_a_use_case_is_refused_before_anything_is_written(settings, row, first):
    client = registry(settings)
    client.post("registered-models/create", {"name": "toy_stray"})
    with pytest.raises(NotFoundError, match="There is no use case 'toy_stray'"):
        promote_version(settings, "toy_stray", "1")
    assert assignments.read(client, "toy_stray").number == 0
    promote_version(settings, CASE, "2")  # and nothing stands in anybody's way


def test_replicas_follow_the_registry_to_its_new_address(settings, row, first):
    from shopfloor.serving.deploy import applications

    moved = settings.model_copy(update={"tracking_uri": settings.tracking_uri.replace("127.0.0.1", "localhost")})
    assert CASE not in restore(moved, progress=lambda text: None).problems
    declared = applications.running(settings)[CASE]["deployed_app_config"]["deployments"][0]["user_config"]
    assert declared["tracking_uri"] == moved.tracking_uri
    promote_version(moved, CASE, "2")
    assert answering(settings, row) == "2"


def test_every_endpoint_comes_back_on_an_empty_cluster_but_one_that_does_not_load(settings, row, first):
    from shopfloor.serving.deploy import applications

    deploy(settings, CASE, champion="1", challenger=None)
    broken = assignments.read(registry(settings), OTHER)
    assignments.change(registry(settings), OTHER, broken, champion="9", challenger=None, canary_percent=0)
    applications.ask_ray(settings, "DELETE", applications.SERVE)
    wait_until(lambda: not applications.running(settings), timeout_s=60)

    progress = []
    restored = restore(settings, progress.append)

    assert restored.champions == {CASE: "1"}
    assert list(restored.problems) == [OTHER]
    assert f"Version 9 of {OTHER} does not load" in restored.problems[OTHER]
    assert answering(settings, row) == "1"
    assert progress == [f"Deploying version 9 of {OTHER}, its champion", f"Deploying version 1 of {CASE}, its champion"]
    assert restore(settings, progress.append).champions == {CASE: "1"}  # nothing to do, and nothing broken by doing it

    applications.ask_ray(settings, "DELETE", applications.SERVE)
    wait_until(lambda: not applications.running(settings), timeout_s=60)
    before = assignments.read(registry(settings), CASE)
    shared = restore(settings.model_copy(update={"profile": "team", "serve_hosts": "other"}), progress.append)
    assert shared.champions == {CASE: "1"}
    assert assignments.read(registry(settings), CASE) == before  # as who deployed it declared it


def test_removing_an_endpoint_is_a_command_and_a_promotion_makes_it_again_with_its_tokens(
    settings, row, first, tmp_path
):
    guarded = settings.model_copy(update={"serve_tokens_file": str(tmp_path / "tokens")})
    tokens.create(tmp_path / "tokens", "one", [], None)
    promote_version(guarded, CASE, "2")
    removed = shopfloor(settings, "undeploy", CASE, "--yes", "--reason", "no longer needed", "--json")
    assert json.loads(removed.stdout) == {"use_case": CASE, "removed": True}
    state = standing(settings, CASE)
    assert (state.champion, state.answers) == (None, None)
    assert "champion" not in aliases(first)
    assert shopfloor(settings, "undeploy", CASE, "--yes").stdout == f"{CASE} has no endpoint: nothing to do.\n"
    promote_version(settings, CASE, "1")  # from a shell that knows nothing of tokens
    assert post(f"{endpoint(settings, CASE)}/predict", row).status_code == 401
    promote_version(settings.model_copy(update={"serve_tokens_file": "none"}), CASE, "1")
    assert answering(settings, row) == aliases(first)["champion"] == "1"


def test_the_command_line_promotes_rolls_back_and_says_who_answers(settings, row, first):
    promoted = shopfloor(settings, "models", "promote", f"{CASE}/2", "--reason", "by hand", "--json")
    assert json.loads(promoted.stdout)["before"] == "1"
    result = shopfloor(settings, "models", "rollback", CASE)
    assert result.stdout == f"Version 1 is the champion of {CASE}, before it version 2.\n"
    refused = shopfloor(settings, "models", "promote", CASE)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "has no challenger" in refused.stderr


def test_a_version_without_files_is_refused_in_one_line_before_anything_is_deployed(
    settings, row, first, monkeypatch, capsys
):
    model = first.get_model_version(CASE, "4").source.removeprefix("models:/")
    shutil.rmtree(next((settings.state_dir / "mlflow").rglob(model)))
    before = assignments.read(registry(settings), CASE)
    monkeypatch.chdir(settings.project_root)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    for version in "34":  # which never had a model, and whose files are gone
        monkeypatch.setattr(sys, "argv", ["shopfloor", "models", "promote", f"{CASE}/{version}", "--yes"])
        with pytest.raises(SystemExit) as ended:
            main.run()
        text = capsys.readouterr().err
        assert (ended.value.code, text.count("\n")) == (1, 1), text
        assert text.startswith(f"error: The files of version {version} of {CASE} cannot be read: ")
        assert "Register it again, or bring its artifacts back." in text
    assert assignments.read(registry(settings), CASE) == before
    assert answering(settings, row) == aliases(first)["champion"] == "1"


def test_an_endpoint_whose_use_case_was_deleted_is_shown_and_can_be_removed(settings, row, first, tmp_path):
    (tmp_path / "pipelines").mkdir()
    without_it = settings.model_copy(update={"project_root": tmp_path})
    assert {item.use_case: item.answers for item in standings(without_it)}[CASE] == "1"
    assert remove(without_it, CASE)
    assert CASE not in {item.use_case for item in standings(without_it)}
    assert not remove(without_it, CASE)


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
