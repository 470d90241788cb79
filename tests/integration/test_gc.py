"""What nobody owns in a stack with a real MLflow server, git and DVC: shown, moved away, brought back, deleted."""

import datetime as dt
import json
import re
import subprocess
import sys

import pytest
import requests
from shopfloor.backup.sources import sources
from shopfloor.errors import ConflictError, NotFoundError, ServiceError, UsageError
from shopfloor.flows import gc
from shopfloor.pipeline.results import ResultStore
from shopfloor.records import DataVersion, Passport
from shopfloor.runs import index
from shopfloor.runs.mlflow import Mlflow
from shopfloor.settings import Settings

from tests.support import endpoints
from tests.support.project import bare_environment, dvc, git, shopfloor
from tests.support.waiting import free_port

NOW = dt.timedelta(0)
"""Age that everything has."""
NEWEST, OLD, TAGGED, PASSED, DEFINED, FREE = (letter * 16 for letter in "123456")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """The settings of a stack whose MLflow server runs, with a registered version and four data versions."""
    root = tmp_path_factory.mktemp("stack")
    state, port = root / ".shopfloor", free_port()
    settings = Settings(
        project_root=root,
        state_dir=state,
        artifact_root=str(state / "artifacts"),
        tracking_uri=f"http://127.0.0.1:{port}",
        feature_registry=str(state / "feast" / "registry.db"),
    )
    with endpoints.mlflow_server(settings) as wait:
        data = version_data(root)
        keep_artifacts(settings)
        wait()
        register(settings, data)
        yield settings


def version_data(root):
    """Let git name a data version on a branch and one in the stash; return the hash of one that it does not name.

    A fourth one is named by nobody.
    """
    hashes = {}
    git(root, "init", "-q")
    (root / ".gitignore").write_text(".shopfloor\n")
    dvc(root, "init", "-q")
    dvc(root, "remote", "add", "-q", "--default", "local", str(root / ".shopfloor" / "dvc-remote"))
    for text in ("branch", "stash", "passport", "nobody"):
        (root / "rows").mkdir(exist_ok=True)
        (root / "rows" / "rows.csv").write_text(text)
        dvc(root, "add", "-q", "rows")
        dvc(root, "push", "-q")
        hashes[text] = re.search(r"\w+\.dir", (root / "rows.dvc").read_text())[0]
        git(root, "add", "-A")
        if text == "branch":
            git(root, "commit", "-qm", text)
        elif text == "stash":
            git(root, "stash")
    git(root, "reset", "-q", "--hard")
    return hashes["passport"]


def keep_artifacts(settings):
    """Keep artifacts of steps: one each for every owner, and one for nobody."""
    for name, content in contents().items():
        file = settings.state_dir / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    store = ResultStore(settings, lambda _: True)
    for key, name in (("e" * 64, step(NEWEST)), ("f" * 64, step(OLD))):
        uri = f"{settings.artifact_root}/{name}"
        store.put(key, {}, {"model": {"uri": uri, "name": "model", "metadata": {}, "type": "Model"}})
    store.used("train", "e" * 64, {})


def step(content):
    return f"steps/train/{content}-{'0' * 8}"


def contents():
    names = [f"{step(content)}/model" for content in (NEWEST, OLD, TAGGED, PASSED)]
    names += [f"features/toy/{content}/rows.parquet" for content in (DEFINED, FREE)]
    names += ["tune/search/trial/checkpoint", "predictions/toy/predictions/date=2026-01-01/1.parquet", "mine/file"]
    files = {f"artifacts/{name}": f"what is in {name}" for name in names}
    return files | {"feast/registry.db": f"\0file:///artifacts/features/toy/{DEFINED}\0"}


def register(settings, data):
    """Register a version with a passport, and a tag that names what a step published."""
    mlflow = Mlflow(settings.tracking_uri, 60)
    run_id = mlflow.post("runs/create", {"experiment_id": "0"})["run"]["info"]["run_id"]
    mlflow.post("runs/update", {"run_id": run_id, "status": "FINISHED"})
    mlflow.post("registered-models/create", {"name": "toy"})
    source = f"{settings.artifact_root}/{step(TAGGED)}"
    passport = Passport(
        model="toy",
        version="1",
        created=dt.datetime.now(dt.UTC),
        run_id=run_id,
        step_run_ids={},
        git_commit="",
        git_dirty=True,
        data=DataVersion(path="rows", md5=data, rev="", commit="", tables=[]),
        checks_passed=True,
        checks=1,
        feature_service="toy",
        features={},
        lock_hash="",
        params={},
        trial_id="",
        metrics={},
        champion=None,
        gates=[],
        model_hash="",
        content_hashes={"train": PASSED * 4},
        run_key="",
    )
    url = f"{settings.tracking_uri}/api/2.0/mlflow-artifacts/artifacts/0/{run_id}/artifacts/passport.json"
    assert requests.put(url, data=passport.model_dump_json(), timeout=60).ok
    files = f"mlflow-artifacts:/0/{run_id}/artifacts/model"
    mlflow.post("model-versions/create", {"name": "toy", "source": files, "run_id": run_id})
    mlflow.post("model-versions/set-tag", {"name": "toy", "version": "1", "key": "made_of", "value": source})


def everything(settings):
    """Return the content of all files of the places that are looked through."""
    files = {}
    for place in ("artifacts", "dvc-remote"):
        for file in (settings.state_dir / place).rglob("*"):
            if file.is_file():
                files[file.relative_to(settings.state_dir).as_posix()] = file.read_bytes()
    return files


def owners(sweep):
    return {(share.kind, share.owner): share.files for share in sweep.shares}


def test_a_look_names_all_owners_and_moves_nothing(settings):
    before = everything(settings)
    result = gc.sweep(settings, NOW)
    assert owners(result) == {
        ("artifacts of steps", "model versions"): 2,
        ("artifacts of steps", "stored results"): 1,
        ("artifacts of steps", ""): 1,
        ("stored results", "newest results of steps"): 1,
        ("stored results", ""): 1,
        ("sources of features", "definitions of features"): 1,
        ("sources of features", ""): 1,
        ("checkpoints of searches", ""): 1,
        ("data versions", "git"): 4,
        ("data versions", "model versions"): 2,
        ("data versions", ""): 2,
    }
    assert everything(settings) == before


def test_what_is_younger_than_asked_stays(settings):
    assert all(owner for _, owner in owners(gc.sweep(settings, dt.timedelta(days=1), apply=True)))


def test_what_nobody_owns_goes_and_comes_back_byte_for_byte(settings):
    before = everything(settings)
    result = gc.sweep(settings, NOW, apply=True)
    left = {name for name in everything(settings) if "/quarantine/" not in name}
    gone = set(before) - left
    assert {name for name in gone if "dvc-remote" not in name} == {
        f"artifacts/{step(OLD)}/model",
        f"artifacts/results/ff/{'f' * 64}.json",
        f"artifacts/features/toy/{FREE}/rows.parquet",
        "artifacts/tune/search/trial/checkpoint",
    }
    assert {before[name] for name in gone if "dvc-remote" in name and not name.endswith(".dir")} == {b"nobody"}
    assert not any(name.startswith("quarantine") for name in sources(settings).files("artifacts"))
    assert gc.sweep(settings, NOW, apply=True).quarantine is None
    assert [one.id for one in gc.quarantines(settings)] == [result.quarantine]
    assert gc.undo(settings, result.quarantine) == []
    assert everything(settings) == before
    assert gc.quarantines(settings) == []


def test_what_was_made_anew_meanwhile_is_not_replaced(settings):
    result = gc.sweep(settings, NOW, apply=True)
    anew = settings.state_dir / "artifacts" / "tune" / "search"
    (anew / "trial").mkdir(parents=True)
    assert gc.undo(settings, result.quarantine) == ["tune/search"]
    (anew / "trial").rmdir()
    anew.rmdir()
    assert gc.undo(settings, result.quarantine) == []


def test_while_a_run_goes_on_it_owns_all_artifacts(settings):
    mlflow = Mlflow(settings.tracking_uri, 60)
    run_id = mlflow.post("runs/create", {"experiment_id": "0"})["run"]["info"]["run_id"]
    free = {kind for kind, owner in owners(gc.sweep(settings, NOW)) if not owner}
    mlflow.post("runs/update", {"run_id": run_id, "status": "FINISHED"})
    assert free == {"data versions"}


def test_a_run_whose_process_is_gone_owns_nothing(settings):
    program = "from shopfloor.runs import owner; print(owner.this_process())"
    gone = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    texts = {index.STATE: "running", index.PIPELINE: "training", index.PROCESS: gone}
    tags = [{"key": name, "value": value} for name, value in texts.items()]
    mlflow = Mlflow(settings.tracking_uri, 60)
    run_id = mlflow.post("runs/create", {"experiment_id": "0", "tags": tags})["run"]["info"]["run_id"]

    free = {kind for kind, owner in owners(gc.sweep(settings, NOW)) if not owner}

    assert mlflow.get("runs/get", "run", run_id=run_id)["info"]["status"] == "KILLED"
    assert "artifacts of steps" in free


def test_the_command_shows_what_it_would_move_and_what_it_leaves_alone(settings):
    environment = bare_environment("MLFLOW_") | settings.environment()
    shown = shopfloor("gc", "--older-than", "0s", "--json", environment=environment, root=settings.project_root)
    assert owners(gc.Sweep.model_validate(json.loads(shown.stdout))) == owners(gc.sweep(settings, NOW))


def test_a_quarantine_that_was_emptied_is_gone_for_good(settings):
    result = gc.sweep(settings, NOW, apply=True)
    gc.empty(settings, gc.quarantines(settings))
    assert not any("quarantine" in name for name in everything(settings))
    with pytest.raises(NotFoundError, match="no quarantine"):
        gc.undo(settings, result.quarantine)


def test_two_at_a_time_are_refused(settings):
    with gc._alone(settings), pytest.raises(ConflictError, match="Another process"):
        gc.sweep(settings, NOW)


def test_nothing_is_free_where_mlflow_does_not_answer(settings):
    with pytest.raises(ServiceError, match="does not answer"):
        gc.sweep(settings.model_copy(update={"tracking_uri": f"http://127.0.0.1:{free_port()}"}), NOW, apply=True)


def test_nothing_is_free_where_git_cannot_be_asked(settings):
    hidden = settings.project_root / ".git"
    hidden.rename(settings.project_root / "hidden")
    try:
        with pytest.raises(NotFoundError, match="git cannot say"):
            gc.sweep(settings, NOW, apply=True)
    finally:
        (settings.project_root / "hidden").rename(hidden)


def test_nothing_is_free_where_a_remote_of_git_has_commits_that_this_clone_lacks(settings, tmp_path):
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "elsewhere")
    git(settings.project_root, "remote", "add", "origin", str(tmp_path))
    try:
        with pytest.raises(ServiceError, match="this clone lacks"):
            gc.sweep(settings, NOW, apply=True)
    finally:
        git(settings.project_root, "remote", "remove", "origin")


def test_a_remote_of_dvc_outside_of_the_project_is_left_alone(settings, tmp_path):
    dvc(settings.project_root, "remote", "modify", "--local", "local", "url", str(tmp_path))
    try:
        assert "data versions, as DVC's remote is not this stack's own" in gc.sweep(settings, NOW).left_alone
    finally:
        (settings.project_root / ".dvc" / "config.local").unlink()


def test_a_profile_with_schedules_is_refused(settings):
    with pytest.raises(UsageError, match="Schedules"):
        gc.sweep(settings.model_copy(update={"profile": "kubernetes"}), NOW)
