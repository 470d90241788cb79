"""Attempts at the same step, each a process of its own: one that sleeps past its successor changes nothing any more."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from shopfloor import attempts
from shopfloor.errors import ServiceError
from shopfloor.pipeline.results import ResultStore
from shopfloor.settings import Settings
from shopfloor.stack import object_store

from tests.support.object_store import rclone, seaweedfs
from tests.support.project import ROOT
from tests.support.waiting import wait_until

KEY = "a" * 64
PROGRAM = """
import json, pathlib, sys, time
made = json.loads(sys.argv[1])["outputs"]
pathlib.Path("ready").touch()
while not pathlib.Path("go").exists():
    time.sleep(0.02)
pathlib.Path(made["parameters"]["who"]["outputFile"]).parent.mkdir(parents=True, exist_ok=True)
pathlib.Path(made["parameters"]["who"]["outputFile"]).write_text(pathlib.Path.cwd().name)
"""
LATE = """
import os, signal, sys
from shopfloor import attempts, storage
from shopfloor.pipeline.results import ResultStore
from shopfloor.settings import Settings
settings = Settings.model_validate_json(sys.argv[1])
store = ResultStore(settings, lambda effect: True)
before = store.begun(sys.argv[2])
settings = settings.model_copy(update={"attempt": str(attempts.claim(settings, "run/train", "pod older"))})
attempts.require_newest(settings)
def stop():
    os.kill(os.getpid(), signal.SIGSTOP)
if sys.argv[3] == "before the request":
    client = storage._s3_client()
    put_if = client.put_if
    client.put_if = lambda *arguments, **more: (stop(), put_if(*arguments, **more))[1]
else:
    stop()
ResultStore(settings, lambda effect: True).put(sys.argv[2], {}, {"who": "older"}, before)
"""


WITH_CONDITIONS = "a bucket of SeaweedFS"


@pytest.fixture(scope="module", params=["a directory", "a bucket", WITH_CONDITIONS])
def store(request, tmp_path_factory):
    """Give settings with an artifact store of this kind."""
    place = tmp_path_factory.mktemp("store")
    if request.param == "a directory":
        yield Settings(project_root=ROOT, state_dir=place / "state", artifact_root=str(place / "artifacts"))
        return
    if request.param == WITH_CONDITIONS and shutil.which("weed") is None:
        pytest.skip("there is no `weed` on this machine")
    server = seaweedfs if request.param == WITH_CONDITIONS else rclone
    with server(place / "s3") as url, pytest.MonkeyPatch.context() as patch:
        for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        settings = Settings(
            project_root=ROOT, state_dir=place / "state", artifact_root="s3://lake/artifacts", s3_endpoint_url=url
        )
        wait_until(lambda: answers(settings))
        yield settings


def answers(settings):
    """Make the bucket; `False` where the server does not take it yet."""
    try:
        return bool(object_store.bootstrap(settings, []))
    except ServiceError:
        return False


@pytest.fixture
def settings(store, tmp_path):
    return store.model_copy(update={"artifact_root": f"{store.artifact_root}/{tmp_path.name}"})


def pod(settings, place, node, **variables):
    """Start the pod of a step under the launcher, as Argo would."""
    place.mkdir()
    task = {
        "command": [sys.executable, "-c", PROGRAM, "{{$}}"],
        "environment": {},
        "inputs": {"parameters": {}, "artifacts": {}},
        "outputs": {"parameters": {"who": "STRING"}, "artifacts": {}},
        "cache": True,
        "platform": True,
        "key": "k",
    }
    own = {
        "SHOPFLOOR_TASK": base64.b64encode(json.dumps(task).encode()).decode(),
        "SHOPFLOOR_ROOT": str(place),
        "SHOPFLOOR_STATE_DIR": str(place / "state"),
        "SHOPFLOOR_STEP": "train",
        "SHOPFLOOR_WORKFLOW": "run-x7",
        "SHOPFLOOR_POD": place.name,
        "SHOPFLOOR_NODE": node,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "shopfloor.engines.argo.launcher"],
        env=os.environ | settings.environment() | own | variables,
        cwd=place,
        stderr=subprocess.PIPE,
        text=True,
    )


def all_of(process):
    """Return a process and those that it started."""
    own = psutil.Process(process.pid)
    return [own, *own.children(recursive=True)]


def contents(settings):
    """Return every file of the artifact store with its bytes."""
    from pyarrow import fs
    from shopfloor.storage import filesystem

    system, path = filesystem(settings, settings.artifact_root)
    found = system.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    return {item.path: system.open_input_stream(item.path).read() for item in found if item.is_file}


def test_an_attempt_that_wakes_after_its_successor_has_published_changes_nothing(settings, tmp_path):
    older = pod(settings, tmp_path / "older", "run-x7.train(0)")
    wait_until((tmp_path / "older/ready").exists)
    stopped = all_of(older)
    for process in stopped:
        process.suspend()
    newer = pod(settings, tmp_path / "newer", "run-x7.train(1)")
    wait_until((tmp_path / "newer/ready").exists)
    (tmp_path / "newer/go").touch()
    assert newer.wait(60) == 0, newer.communicate()[1]
    published = contents(settings)

    (tmp_path / "older/go").touch()
    for process in stopped:
        process.resume()
    _, said = older.communicate(timeout=60)

    assert older.returncode == 1
    assert "was superseded by attempt 2, which pod newer began at 2" in said
    assert "it publishes nothing" in said
    assert contents(settings) == published
    assert len(published) == 3, published
    [result] = [json.loads(text) for name, text in published.items() if "/results/" in name and "/latest/" not in name]
    assert result["outputs"] == {"who": "newer"}


def test_tasks_of_a_loop_are_no_attempts_at_one_another(settings, tmp_path):
    pods = [pod(settings, tmp_path / f"pod-{n}", f"run-x7.loop({n}:a).train") for n in range(2)]
    for n in range(2):
        wait_until((tmp_path / f"pod-{n}/ready").exists)
    for n in range(2):
        (tmp_path / f"pod-{n}/go").touch()

    assert [one.wait(60) for one in pods] == [0, 0], [one.communicate()[1] for one in pods]


@pytest.mark.parametrize("where", ["before the write", "before the request"])
def test_one_that_stops_between_its_last_look_and_its_write_finds_the_newer_result(request, settings, where):
    if where == "before the request" and WITH_CONDITIONS not in request.node.name:
        pytest.skip("only a server that checks conditions can refuse what is already on its way")
    late = subprocess.Popen(
        [sys.executable, "-c", LATE, settings.model_dump_json(), KEY, where],
        env={**os.environ, "PYTHONPATH": str(ROOT / "platform")},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: psutil.Process(late.pid).status() == psutil.STATUS_STOPPED)
    newer = settings.model_copy(update={"attempt": str(attempts.claim(settings, "run/train", "pod newer"))})
    results = ResultStore(newer, lambda effect: True)
    assert results.put(KEY, {}, {"who": "newer"}, results.begun(KEY))
    published = contents(settings)

    late.send_signal(signal.SIGCONT)
    _, said = late.communicate(timeout=60)

    assert late.returncode == 1
    assert "SupersededError: Attempt 1 at run/train was superseded by attempt 2, whose result is kept" in said
    assert contents(settings) == published


def test_a_newer_attempt_takes_the_place_of_an_older_ones_late_result(settings):
    older = settings.model_copy(update={"attempt": str(attempts.claim(settings, "run/train", "older"))})
    newer = settings.model_copy(update={"attempt": str(attempts.claim(settings, "run/train", "newer"))})
    begun = ResultStore(newer, lambda effect: True).begun(KEY)
    # It was past its last look when the newer one began.
    assert ResultStore(older, lambda effect: True).put(KEY, {}, {"who": "older"}, begun)

    assert ResultStore(newer, lambda effect: True).put(KEY, {}, {"who": "newer"}, begun)

    assert ResultStore(newer, lambda effect: True).get(KEY).outputs == {"who": "newer"}


def test_of_two_runs_of_the_same_step_the_first_result_stays(settings):
    stores = [
        ResultStore(
            settings.model_copy(update={"attempt": str(attempts.claim(settings, f"{run}/train", run))}),
            lambda effect: True,
        )
        for run in ("first", "second")
    ]
    begun = [one.begun(KEY) for one in stores]

    kept = [one.put(KEY, {}, {"who": n}, begun[n]) for n, one in enumerate(stores)]

    assert kept == [True, False]
    assert stores[1].get(KEY).outputs == {"who": 0}


def test_a_directory_that_a_stopped_process_holds_is_no_endless_wait(tmp_path, monkeypatch):
    settings = Settings(project_root=ROOT, artifact_root=str(tmp_path))
    monkeypatch.setattr(attempts, "LOCK_TIMEOUT_S", 0.05)
    attempts.claim(settings, "run/train", "me")

    with (
        attempts._held(Path(settings.artifact_root) / "attempts/run"),
        pytest.raises(attempts.ConflictError, match="Another process holds .*attempts/run"),
    ):
        attempts.claim(settings, "run/train", "me")
