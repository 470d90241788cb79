"""The steps from the data to the registry, everything that they hand on in a real S3 server, on a real Ray cluster."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import psutil
import pytest
from pyarrow import fs
from ray import tune
from shopfloor import storage
from shopfloor.data import building, quality, versions
from shopfloor.data.features import feature_store
from shopfloor.errors import ServiceError, UsageError
from shopfloor.judging import evaluate as evaluation
from shopfloor.pipeline.results import ResultStore
from shopfloor.records import FeatureSet, Search
from shopfloor.registry import passport as registry
from shopfloor.registry.register import register
from shopfloor.runs import recorder as tracking
from shopfloor.settings import Settings
from shopfloor.stack.ray_head import agent_ports
from shopfloor.training import tuning

from pipelines.flight_delays.source import make_tables
from tests.support.artifacts import Recorder
from tests.support.project import ROOT, git
from tests.support.waiting import free_port, wait_for, wait_for_port, wait_until

FEATURES = [f"f{number}" for number in range(6)]


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    root = tmp_path_factory.mktemp("s3")
    (root / "lake").mkdir()
    port = free_port()
    rclone = Path(sys.executable).parent / "rclone"
    server = subprocess.Popen(
        [rclone, "serve", "s3", "--auth-key", "key,secret", "--addr", f"127.0.0.1:{port}", str(root)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_port(port)
    variables = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "WHEN_REQUIRED",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    yield f"http://127.0.0.1:{port}"
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    server.terminate()
    server.wait()


def test_a_fetched_copy_that_was_changed_or_cut_is_fetched_again(s3, tmp_path):
    settings = Settings(
        project_root=tmp_path, state_dir=tmp_path, artifact_root=f"s3://lake/{tmp_path.name}", s3_endpoint_url=s3
    )
    item = Recorder("rows")
    with storage.publish(settings, item, "step") as directory:
        (directory / "part").mkdir()
        (directory / "part/rows").write_text("the rows")

    copy = storage.local_copy(settings, item.uri) / "part/rows"
    first = copy.stat().st_ino
    assert (storage.local_copy(settings, item.uri) / "part/rows").stat().st_ino == first
    for change in (lambda: copy.write_text("the cows"), lambda: copy.write_text("the"), copy.unlink):
        change()
        assert (storage.local_copy(settings, item.uri) / "part/rows").read_text() == "the rows"
    assert len(list((tmp_path / "fetched").iterdir())) == 1


@pytest.fixture(scope="module")
def ray_address(ray_head):
    return ray_head.address


@pytest.fixture(scope="module")
def ray_head(s3):
    """A Ray head of its own, whose workers see the project and the S3 keys."""
    port = free_port()
    # Ray's sockets need a short path.
    temporary = tempfile.mkdtemp(prefix="sf-")
    head = subprocess.Popen(
        [
            *(Path(sys.executable).parent / "ray", "start", "--head", "--block", "--include-dashboard=false"),
            *("--disable-usage-stats", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=4"),
            *(f"--temp-dir={temporary}", *agent_ports(lambda *_: free_port()), "--object-store-memory=200000000"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'platform'}",
            "RAY_START_HOOK": "shopfloor.stack.ray_head.start_hook",
            "RAY_AUTH_MODE": "disabled",  # a head asks for a token where ~/.ray has one
        },
        start_new_session=True,
    )
    wait_for_port(port)
    process = psutil.Process(head.pid)
    process.address = f"127.0.0.1:{port}"
    yield process
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    head.wait()
    shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture
def project(tmp_path, ray_address, s3):
    """A project whose use case searches for seconds; its code is the real one."""
    folder = tmp_path / "pipelines/flight_delays"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "pipelines/flight_delays/model.py", folder)
    text = (ROOT / "pipelines/flight_delays/use_case.yaml").read_text()
    for old, new in {
        "max_rounds: 100": "max_rounds: 20",
        "grace_rounds: 20": "grace_rounds: 10",
        "checkpoint_every: 20": "checkpoint_every: 10",
        "slices: [origin, carrier]": "slices: [origin]",
        "roc_auc: {min: 0.70}": "roc_auc: {min: 0.65}",
    }.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "use_case.yaml").write_text(text)
    return Settings(
        project_root=tmp_path,
        state_dir=tmp_path / "state",
        artifact_root=f"s3://lake/{tmp_path.name}",
        online_store=str(tmp_path / "online.db"),
        s3_endpoint_url=s3,
        ray_address=ray_address,
    )


def edit(settings, old, new):
    file = settings.project_root / "pipelines/flight_delays/use_case.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.fixture
def features(project):
    """Rows of which the first two features tell something, behind an S3 URI."""
    random = np.random.default_rng(1)
    made = Recorder("features")
    with storage.publish(project, made, "build_features") as directory:
        for split, rows in (("train", 2000), ("validate", 600), ("test", 600)):
            frame = pd.DataFrame(random.normal(size=(rows, len(FEATURES))), columns=FEATURES)
            chance = 1 / (1 + np.exp(-2 * frame.f0 - frame.f1))
            frame["late"] = (random.random(rows) < chance).astype("int8")
            frame["origin"] = random.choice(["JFK", "EWR"], rows)
            frame.to_parquet(directory / f"{split}.parquet")
        record = FeatureSet(
            feature_service="flight_delays",
            features=dict.fromkeys(FEATURES, "float"),
            optional=[],
            target="late",
            entities=["origin"],
            rows={"train": 2000, "validate": 600, "test": 600},
        )
        (directory / "feature_set.json").write_text(record.model_dump_json())
    return made


def search(settings, features, trials=3):
    model, found = Recorder("model"), Recorder("search")
    tuning.tune(settings, "flight_delays", features.uri, trials, model, found, Recorder())
    text = (storage.local_copy(settings, found.uri) / "search.json").read_text()
    return model, Search.model_validate_json(text)


def test_a_search_finds_a_model_that_the_evaluation_lets_pass(project, features):
    model, found = search(project, features)
    judged, numbers = Recorder("evaluation"), Recorder()

    passed = evaluation.evaluate(project, "flight_delays", features.uri, model.uri, "", judged, numbers)

    assert model.uri.startswith("s3://lake/")
    assert len(found.trials) == 3
    assert found.best_trial_id == min(found.trials, key=lambda trial: trial.metrics["validate-logloss"]).trial_id
    assert numbers.metrics["roc_auc"] > 0.75
    assert passed is False  # the bounds on log loss and calibration are those of the flights
    result = json.loads((storage.local_copy(project, judged.uri) / "evaluation.json").read_text())
    missed = {gate["gate"] for gate in result["gates"] if not gate["passed"]}
    assert missed <= {"log_loss", "calibration_error"}
    assert {item["value"] for item in result["slices"]} == {"JFK", "EWR"}


def test_the_search_as_a_job_on_its_cluster_leaves_at_a_uri_what_it_published(project, features, ray_address):
    result_uri = storage.join(project.artifact_root, "rayjobs", "job.json")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
    own = {"SHOPFLOOR_RAY_ADDRESS": "auto", "RAY_ADDRESS": ray_address, "PYTHONPATH": paths}
    result = subprocess.run(
        [sys.executable, "-m", "shopfloor.training.tuning", "flight_delays", features.uri, "2", result_uri],
        env={**os.environ, **project.environment(), **own},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr

    bucket, path = storage.filesystem(project, result_uri)
    made = json.loads(bucket.open_input_stream(path).read())
    found = json.loads((storage.local_copy(project, made["search"]["uri"]) / "search.json").read_text())
    assert len(found["trials"]) == made["metrics"]["trials"] == 2
    assert (storage.local_copy(project, made["model"]["uri"]) / "model.ubj").is_file()
    assert made["model"]["metadata"][storage.CONTENT_HASH]


def test_a_trial_of_two_workers_trains_through_ray_train(project, features):
    edit(project, "workers: {per_trial: 1", "workers: {per_trial: 2")
    edit(project, "max_concurrent: 2", "max_concurrent: 1")

    _, found = search(project, features, trials=1)

    assert found.trials[0].rounds == 20
    assert found.trials[0].metrics["validate-auc"] > 0.75


def test_a_search_that_was_killed_goes_on_with_the_trials_it_lacks(project, features, capsys, tmp_path):
    edit(project, "max_concurrent: 2", "max_concurrent: 1")
    script = textwrap.dedent(
        """
        import sys
        from types import SimpleNamespace as N
        from shopfloor.training import tuning
        from shopfloor.settings import Settings
        settings = Settings.model_validate_json(sys.argv[1])
        made = [N(name=name, uri="", metadata={}) for name in ("model", "search")]
        tuning.tune(settings, "flight_delays", sys.argv[2], 12, *made, N(log_metric=lambda *_: None))
        """
    )
    log = tmp_path / "search.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", script, project.model_dump_json(), features.uri], stdout=file, stderr=file
        )

    def three_trials_are_done() -> bool:
        text = log.read_text()
        assert process.poll() is None, text
        return len(re.findall(r"^trial ", text, re.MULTILINE)) >= 3

    try:
        wait_until(three_trials_are_done, 150, every_s=0.05)
    except AssertionError as error:
        raise AssertionError(log.read_text()) from error
    finally:
        process.kill()
        process.wait()

    _, found = search(project, features, trials=12)

    output = capsys.readouterr().out
    done = int(re.search(r"Going on with the search that was stopped: (\d+) trials are done", output)[1])
    assert 3 <= done < 12  # some may have finished while the third was read here
    assert output.count("trial ") == 12 - done
    assert len(found.trials) == len({trial.trial_id for trial in found.trials}) == 12
    assert len({json.dumps(trial.params, sort_keys=True) for trial in found.trials}) == 12
    assert all("validate-logloss" in trial.metrics for trial in found.trials)


def test_trials_that_fail_are_tried_once_and_counted_with_their_reason_and_the_others_go_on(
    project, features, capsys, monkeypatch
):
    again = []
    monkeypatch.setattr(tune.Callback, "on_trial_recover", lambda callback, **info: again.append(info["trial"]))
    booster = "booster: {type: choice, values: [gbtree, nonsense]}"
    edit(project, "    max_depth: {type: int", f"    {booster}\n    max_depth: {{type: int")

    model, found = search(project, features, trials=4)

    states = [trial.status for trial in found.trials]
    assert len(states) == 4
    assert 0 < states.count("failed") < 4
    assert again == []
    assert "nonsense" in found.failures()
    assert found.failures().startswith(f"{states.count('failed')} of 4 trials failed: ")
    assert capsys.readouterr().out.count(" failed: ") == states.count("failed")
    assert model.uri


def test_a_mistake_that_every_trial_would_make_is_told_before_the_first_one(project, features, capsys):
    edit(project, "metric: validate-logloss", "metric: validate-loss")
    with pytest.raises(UsageError, match="The model reports validate-auc, validate-logloss, not 'validate-loss'"):
        search(project, features)
    assert "trial " not in capsys.readouterr().out


def test_a_trial_whose_worker_dies_goes_on_from_its_last_checkpoint(project, features, ray_head):
    edit(project, "max_concurrent: 2", "max_concurrent: 1")
    edit(project, "max_rounds: 20", "max_rounds: 1800")
    edit(project, "grace_rounds: 10", "grace_rounds: 1800")
    edit(project, "checkpoint_every: 10", "checkpoint_every: 300")
    bucket, root = storage.filesystem(project, f"{project.artifact_root}/tune")

    def files(name):
        found = bucket.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
        return [one.path for one in found if name in one.path]

    def kill_after_the_first_checkpoint():
        deadline = time.monotonic() + 120
        wait_until(lambda: files("/checkpoint_"), 120)
        while not killed and time.monotonic() < deadline:
            for process in ray_head.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if any(part.startswith("ray::ImplicitFunc") for part in process.cmdline()[:1]):
                        process.kill()
                        killed.append(process.pid)

    killed = []
    killer = threading.Thread(target=kill_after_the_first_checkpoint)
    killer.start()
    _, found = search(project, features, trials=1)
    killer.join()

    assert len(killed) == 1
    assert found.trials[0].status == "finished"
    assert found.trials[0].rounds == 1800
    # Six checkpoints in all: begun again from nothing, the first 300 rounds would have left one more.
    names = {re.search(r"checkpoint_\d+", path)[0] for path in files("/checkpoint_")}
    assert max(names) == "checkpoint_000005"


def test_without_a_cluster_one_line_says_what_to_start(project, features):
    down = project.model_copy(update={"ray_address": f"127.0.0.1:{free_port()}"})
    with pytest.raises(ServiceError, match=r"The Ray cluster 127.0.0.1:\d+ does not answer. Start the stack"):
        search(down, features)


def test_a_stored_result_counts_only_while_its_artifacts_exist(project, features):
    store = ResultStore(project, effect_holds=lambda _: True)
    outputs = {"features": {"name": "features", "uri": features.uri, "metadata": features.metadata, "type": {}}}
    store.put("k" * 64, {}, outputs)
    assert store.get("k" * 64).outputs == outputs

    place, path = storage.filesystem(project, features.uri)
    place.delete_dir(path)
    assert store.get("k" * 64).outputs is None
    assert store.get("x" * 64).outputs is None


@pytest.fixture
def repository(project, s3):
    """The project as a DVC repository with a tenth of the flights; the remote, the artifacts and Feast are in S3."""
    root = project.project_root
    for file in ("features.py", "expectations.py", "source.py"):
        shutil.copy(ROOT / "pipelines/flight_delays" / file, root / "pipelines/flight_delays")
    edit(project, "roc_auc: {min: 0.65}", "roc_auc: {min: 0.55}")
    edit(project, "log_loss: {max: 0.45}", "log_loss: {max: 0.6}")
    edit(project, "calibration_error: {max: 0.05}", "calibration_error: {max: 0.2}")
    edit(project, "roc_auc: {min: 0.60, min_rows: 500}", "roc_auc: {min: 0.50, min_rows: 500}")
    data = root / "data/flight_delays"
    make_tables(data)
    whole, tenth = data / "flights.parquet", root / "tenth.parquet"
    duckdb.sql(f"COPY (FROM '{whole}' WHERE flight_id % 10 = 0 ORDER BY flight_id) TO '{tenth}'")
    tenth.replace(whole)

    (root / ".gitignore").write_text("state/\n")
    git(root, "init", "-q")
    for arguments in (
        ("init", "-q"),
        ("remote", "add", "-q", "-d", "store", f"s3://lake/{root.name}/dvc"),
        ("remote", "modify", "-q", "store", "endpointurl", s3),
        ("add", "-q", "data/flight_delays"),
        ("push", "-q"),
    ):
        subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, check=True, capture_output=True)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "a tenth")
    shutil.rmtree(root / ".dvc/cache")
    shutil.rmtree(data)
    return project.model_copy(update={"feature_registry": f"{project.artifact_root}/feast/registry.db"})


@pytest.fixture
def tracking_uri(tmp_path, s3):
    """An MLflow server that keeps its artifacts in S3."""
    port = free_port()
    server = subprocess.Popen(
        [
            *(Path(sys.executable).parent / "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
            *("--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"),
            *("--artifacts-destination", f"s3://lake/{tmp_path.name}/mlflow"),
        ],
        env={**os.environ, "MLFLOW_S3_ENDPOINT_URL": s3, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(f"http://127.0.0.1:{port}/health", server)
    yield f"http://127.0.0.1:{port}"
    family = [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]
    for process in family:
        process.terminate()
    psutil.wait_procs(family, timeout=10)


def assert_the_search_shows_in_mlflow(client, experiment, run, step, found):
    best = next(trial for trial in found.trials if trial.trial_id == found.best_trial_id)
    for run_id in (run, step):
        assert client.get_run(run_id).data.params["max_depth"] == str(best.params["max_depth"])
    trial_runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{step}'")
    assert {one.data.tags["shopfloor.trial"] for one in trial_runs} == {trial.trial_id for trial in found.trials}
    one = next(one for one in trial_runs if one.data.tags["shopfloor.trial"] == best.trial_id)
    assert float(one.data.params["learning_rate"]) == best.params["learning_rate"]
    curve = client.get_metric_history(one.info.run_id, "validate-logloss")
    assert [(point.step, point.value) for point in curve] == [tuple(point) for point in best.curve]
    assert [point.step for point in curve] == [10, 20]


def test_every_step_from_the_data_to_the_registry_finds_its_inputs_in_s3(repository, tracking_uri):
    client = tracking.connect(repository.model_copy(update={"tracking_uri": tracking_uri}))
    experiment = client.create_experiment("flight_delays")
    run, step = (client.create_run(experiment).info.run_id for _ in range(2))
    update = {"tracking_uri": tracking_uri, "run_id": run, "step_run_id": step}
    settings = repository.model_copy(update=update)
    tables, checks, joined, judged, version = map(Recorder, ("tables", "checks", "features", "evaluation", "version"))
    case, numbers = "flight_delays", Recorder()

    versions.pull(settings, case, "HEAD", "", tables, numbers)
    quality.validate(settings, case, tables.uri, checks, numbers)
    building.build(settings, case, tables.uri, joined, numbers)
    model, found = search(settings, joined, trials=2)
    passed = evaluation.evaluate(settings, case, joined.uri, model.uri, "", judged, numbers)
    made_of = {"model": model, "evaluation": judged, "features": joined, "checks": checks, "tables": tables}
    number = register(settings, case, made_of, version)

    assert passed
    first = json.loads((storage.local_copy(settings, judged.uri) / "evaluation.json").read_text())
    assert first["champion"] is None
    assert len(found.trials) == 2
    assert all(one.uri.startswith(f"{settings.artifact_root}/steps/") for one in (*made_of.values(), version))
    bucket, root = storage.filesystem(settings, f"s3://lake/{settings.project_root.name}")
    names = [one.path.removeprefix(root) for one in bucket.get_file_info(fs.FileSelector(root, recursive=True))]
    for expected in ("/dvc/files/md5/", "/feast/registry.db", "/features/flight_delays/", "/tune/", "/mlflow/"):
        assert any(expected in name for name in names), expected
    assert_the_search_shows_in_mlflow(client, experiment, run, step, found)
    assert str(client.get_model_version_by_alias(case, "challenger").version) == number == "1"
    passport = registry.read_passport(client, case, number)
    assert passport.data.md5 == tables.metadata[storage.CONTENT_HASH]
    assert passport.content_hashes["model"] == model.metadata[storage.CONTENT_HASH]
    evaluation.evaluate(settings, case, joined.uri, model.uri, number, judged, numbers)
    again = json.loads((storage.local_copy(settings, judged.uri) / "evaluation.json").read_text())
    assert again["champion"] == number
    assert again["champion_metrics"]["roc_auc"] == pytest.approx(again["metrics"]["roc_auc"], abs=1e-6)
    store = feature_store(settings, case)
    assert store.get_feature_service("flight_delays").name == "flight_delays"
    assert not (settings.state_dir / "feast").exists()
