"""A real MLflow server's runs and models, and files beside them, copied while it runs; and brought back."""

import itertools
import json
import os
import shlex
import shutil
import subprocess
import threading

import pytest
import requests
from shopfloor.backup import places, sealing
from shopfloor.backup.create import create
from shopfloor.backup.prune import prune
from shopfloor.backup.restore import golden_requests, restore
from shopfloor.backup.store import Store
from shopfloor.errors import ConflictError, NotFoundError, ShopfloorError, UsageError
from shopfloor.flows import backup as flow
from shopfloor.flows import upgrade
from shopfloor.flows.changeover import Part
from shopfloor.judging import golden
from shopfloor.runs import owner
from shopfloor.runs.mlflow import Mlflow
from shopfloor.settings import Settings

from tests.support import endpoints
from tests.support.monitoring import drilled
from tests.support.project import BIN, bare_environment, shopfloor
from tests.support.waiting import free_port, wait_for_port

CASE = "toy_delays"
KEY = "a key of enough characters"
GOLDEN = golden.Golden(rows=[{"a": 1.0}], predictions=[0.5])


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """The settings of a stack whose MLflow server runs; it has one model, data in DVC's remote, and a token file."""
    root = tmp_path_factory.mktemp("live")
    state, port = root / ".shopfloor", free_port()
    settings = Settings(
        project_root=root,
        state_dir=state,
        artifact_root=str(state / "artifacts"),
        tracking_uri=f"http://127.0.0.1:{port}",
        feature_registry=str(state / "feast" / "registry.db"),
        online_store=str(state / "feast" / "online.db"),
        serve_tokens_file=str(root / "tokens.json"),
    )
    files = {
        ".dvc/config": "[core]\n    remote = local\n['remote \"local\"']\n    url = ../.shopfloor/dvc-remote\n",
        ".shopfloor/dvc-remote/files/md5/ab/cd": "rows",
        ".shopfloor/artifacts/steps/tune/1/model": "a model",
        ".shopfloor/artifacts/steps/tune/2/model": "a model",
        ".shopfloor/artifacts/features/toy/online.json": "{}",
        ".shopfloor/artifacts/.shopfloor-scratch-1/half": "half",
        ".shopfloor/feast/registry.db": "views",
        ".shopfloor/feast/online.db": "values",
        ".shopfloor/logs/ray.log": "words",
        "tokens.json": "hush-hush",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    with endpoints.mlflow_server(settings) as wait:
        wait()
        register(settings)
        yield settings


def register(settings, model=CASE):
    """Register a version of a new model, whose files MLflow's server keeps."""
    mlflow = Mlflow(settings.tracking_uri, 60)
    run_id = mlflow.post("runs/create", {"experiment_id": "0"})["run"]["info"]["run_id"]
    place = f"0/{run_id}/artifacts/model"
    contents = {"MLmodel": "flavors: {}", f"extra_files/{golden.FILE}": GOLDEN.model_dump_json()}
    for name, text in contents.items():
        url = f"{settings.tracking_uri}/api/2.0/mlflow-artifacts/artifacts/{place}/{name}"
        assert requests.put(url, data=text, timeout=60).ok
    mlflow.post("registered-models/create", {"name": model})
    version = {"name": model, "source": f"mlflow-artifacts:/{place}", "run_id": run_id}
    mlflow.post("model-versions/create", version)
    mlflow.post("registered-models/alias", {"name": model, "alias": "champion", "version": "1"})


@pytest.fixture(scope="module")
def first(live, tmp_path_factory):
    """A store with one backup of it."""
    store = tmp_path_factory.mktemp("store") / "backups"
    return str(store), create(live, str(store), KEY)


@pytest.fixture
def copy(first, tmp_path):
    """The same store, to be damaged."""
    shutil.copytree(first[0], tmp_path / "store")
    return str(tmp_path / "store")


def manifest_of(settings, store, backup_id="latest"):
    return Store(settings, store).read(backup_id)[1]


def object_of(settings, store, name):
    """Return the path in the store of the file of a backup."""
    file = next(file for file in manifest_of(settings, store).files if file.name == name)
    return places.local_path(store) / "objects" / file.sha256[:2] / file.sha256


def test_a_backup_of_a_running_stack_is_whole_and_holds_what_nothing_can_make_again(live, first):
    store, made = first

    assert made.counts == {"runs": 1, "model_versions": 1, "aliases": 1}
    assert Store(live, store).verify("latest").problems == []
    files = manifest_of(live, store).files
    names = {place: {file.name for file in files if file.place == place} for place in ("artifacts", "data", "features")}
    assert names == {
        "artifacts": {"steps/tune/1/model", "steps/tune/2/model"},
        "data": {"files/md5/ab/cd"},
        "features": {"registry.db"},
    }
    assert any(file.place == "mlflow" and file.name.endswith("/MLmodel") for file in files)
    assert not any(b"hush-hush" in path.read_bytes() for path in places.local_path(store).rglob("*") if path.is_file())


def test_a_second_backup_reads_and_writes_nothing_that_has_not_changed(live, copy, monkeypatch):
    read, real = [], shutil.copyfile
    monkeypatch.setattr(places.shutil, "copyfile", lambda source, target: read.append(source) or real(source, target))

    made = create(live, copy, KEY)

    assert (made.new_objects, made.new_bytes) == (0, 0)
    assert [path.parent.parent.name for path in read] == ["objects"]  # the sealed secrets, to compare them
    assert [row.problem for row in Store(live, copy).summaries()] == ["", ""]


def test_a_backup_without_a_key_has_no_secrets_and_says_so(live, copy):
    made = create(live, copy, None)

    assert not made.secrets
    assert made.left_out == ["the secrets serve_tokens, as no key was given to seal them"]


def test_an_altered_object_and_a_missing_one_are_named(live, copy):
    object_of(live, copy, "files/md5/ab/cd").write_text("other")
    object_of(live, copy, "registry.db").unlink()

    assert sorted(Store(live, copy).verify("latest").problems) == [
        "data/files/md5/ab/cd is altered",
        "features/registry.db is missing",
    ]
    made = create(live, copy, KEY)  # what is gone from the store, or has another size, comes again
    assert made.new_objects == 2
    assert Store(live, copy).verify("latest").problems == []


def test_a_disk_that_fills_leaves_the_backups_before_as_they_were(live, first, tmp_path):
    (live.state_dir / "artifacts" / "more").write_bytes(os.urandom(300_000))
    size = sum(path.stat().st_size for path in places.local_path(first[0]).rglob("*") if path.is_file())
    store, command = tmp_path / "store", [str(BIN / "shopfloor"), "backup"]
    store.mkdir()
    # A disk of its own, which only the processes of this shell see.
    script = f"""
    mount -t tmpfs -o size={size + 400_000} none {store} || exit 99
    cp -a {first[0]}/. {store}
    {shlex.join([*command, "create"])}; echo $?
    {shlex.join([*command, "verify"])}; echo $?
    ls {store}/backups; find {store} -name '*scratch*'
    """
    environment = bare_environment("MLFLOW_") | live.environment() | {"SHOPFLOOR_BACKUP_STORE": str(store)}
    shell = ["unshare", "--map-root-user", "--mount", "sh", "-c", script]
    try:
        done = subprocess.run(
            shell, cwd=live.project_root, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    finally:
        (live.state_dir / "artifacts" / "more").unlink()
    if done.returncode == 99 or "unshare failed" in done.stderr:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")

    error, *_ = (line for line in done.stderr.splitlines() if line.startswith("error:"))
    remedy = "Free some space, then do it again: the backups before are untouched."
    assert error == f"error: The disk that holds {store} is full. {remedy}"
    assert done.stdout.split() == ["1", "0", f"{first[1].id}.json"]


def test_a_backup_that_was_cut_short_is_none(live, copy, monkeypatch):
    def cut(self, manifest):
        raise KeyboardInterrupt

    (live.state_dir / "artifacts" / "more").write_text("cut")
    monkeypatch.setattr(Store, "write", cut)
    with pytest.raises(KeyboardInterrupt):
        create(live, copy, KEY)

    monkeypatch.undo()
    assert len(Store(live, copy).ids) == 1
    assert create(live, copy, KEY).new_objects == 0  # what had come already is used
    (live.state_dir / "artifacts" / "more").unlink()


def test_an_altered_manifest_an_unknown_id_and_a_wrong_store_are_one_line_each(live, copy, tmp_path):
    store = Store(live, copy)
    with pytest.raises(NotFoundError, match="'2020' names no backup"):
        store.read("2020")
    manifest = places.local_path(copy) / "backups" / f"{store.ids[0]}.json"
    manifest.write_text(manifest.read_text().replace("registry.db", "registry.dB"))
    with pytest.raises(ShopfloorError, match="was altered"):
        store.read()
    assert "was altered" in Store(live, copy).summaries()[0].problem
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="There are no backups"):
        Store(live, str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="is no store of backups: it holds"):
        Store(live, str(live.state_dir))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file is no directory"):
        Store(live, str(tmp_path / "file"), new=True)
    with pytest.raises(UsageError, match="lies in"):
        create(live, f"{live.artifact_root}/store", KEY)


def test_a_model_without_its_files_stops_the_backup_in_one_line(live, copy):
    [model] = (live.state_dir / "mlflow" / "artifacts").glob("*/*/artifacts/model")
    model.rename(live.state_dir / "away")
    try:
        with pytest.raises(ShopfloorError, match=f"Version {CASE}/1 names mlflow-artifacts:.* and no file is there"):
            create(live, copy, KEY)
    finally:
        (live.state_dir / "away").rename(model)
    assert len(Store(live, copy).ids) == 1


def test_a_stack_without_a_database_has_nothing_to_copy(tmp_path):
    with pytest.raises(NotFoundError, match=r"There is no .*mlflow.db"):
        create(Settings(project_root=tmp_path, state_dir=tmp_path / "s"), str(tmp_path / "store"), None)
    others = Settings(project_root=tmp_path, state_dir=tmp_path / "s", profile="cluster")
    with pytest.raises(UsageError, match="'cluster' are backed up by who runs them"):
        create(others, str(tmp_path / "store"), None)


def test_secrets_open_with_their_key_alone():
    content = sealing.seal({"password": "hush"}, KEY)

    assert b"hush" not in content
    assert sealing.unseal(content, KEY) == {"password": "hush"}
    with pytest.raises(UsageError, match="The key does not open"):
        sealing.unseal(content, "another key, long enough")
    with pytest.raises(UsageError, match="are sealed, and there is no key"):
        sealing.unseal(content, None)


def test_the_command_makes_lists_and_examines_a_backup(live, copy):
    environment = bare_environment("MLFLOW_") | live.environment() | {"SHOPFLOOR_BACKUP_STORE": copy}

    made = shopfloor("backup", "create", environment=environment, root=live.project_root)
    rows = shopfloor("backup", "list", "--json", environment=environment, root=live.project_root)
    assert "Not in the backup: the secrets" in made.stderr
    assert [row["secrets"] for row in json.loads(rows.stdout)] == [False, True]
    assert json.loads(rows.stdout)[0]["id"] == made.stdout.strip()
    object_of(live, copy, "registry.db").write_text("viewS")
    examined = shopfloor("backup", "verify", environment=environment, root=live.project_root)
    assert (examined.returncode, examined.stdout) == (1, "features/registry.db is altered\n")


def elsewhere(live, root, **places):
    """Return the settings of a stack that is empty."""
    state = root / "state"
    own = {
        "state_dir": state,
        "artifact_root": str(state / "artifacts"),
        "data_remote": str(state / "dvc-remote"),
        "feature_registry": str(state / "feast" / "registry.db"),
        "serve_tokens_file": str(root / "tokens.json"),
    }
    return live.model_copy(update=own | places)


def brought_back(settings, store, key=None):
    opened = Store(settings, store)
    restore(settings, opened, opened.read()[1], key, lambda _: None)


def test_what_was_brought_back_is_what_there_was(live, first, tmp_path):
    settings = elsewhere(live, tmp_path)

    brought_back(settings, first[0], KEY)

    for name in ("artifacts/steps/tune/1/model", "dvc-remote/files/md5/ab/cd", "feast/registry.db"):
        assert (settings.state_dir / name).read_bytes() == (live.state_dir / name).read_bytes()
    assert (tmp_path / "tokens.json").read_text() == "hush-hush"
    assert not (settings.state_dir / "feast" / "online.db").exists()
    again = create(settings, str(tmp_path / "store"), KEY)
    assert again.counts == first[1].counts
    hashes = [
        {(file.place, file.name): file.sha256 for file in manifest_of(settings, store).files}
        for store in (first[0], str(tmp_path / "store"))
    ]
    assert hashes[0] == hashes[1]


def test_the_golden_requests_of_a_version_are_in_the_backup(live, first):
    store = Store(live, first[0])
    assert golden_requests(live, store, store.read()[1], CASE, "1") == GOLDEN
    assert golden_requests(live, store, store.read()[1], CASE, "2") is None


def test_a_stack_that_is_not_empty_keeps_what_it_has(live, first, tmp_path):
    with pytest.raises(UsageError, match=r"not empty: it holds .*mlflow.db, 2 files in .*artifacts"):
        brought_back(live, first[0], KEY)
    settings = elsewhere(live, tmp_path)
    (settings.state_dir / "dvc-remote").mkdir(parents=True)
    (settings.state_dir / "dvc-remote" / "own").write_text("own")
    with pytest.raises(UsageError, match=r"not empty: it holds 1 files in .*dvc-remote"):
        brought_back(settings, first[0], KEY)
    assert [path.name for path in settings.state_dir.rglob("*") if path.is_file()] == ["own"]


def test_a_wrong_key_brings_nothing_back(live, first, tmp_path):
    settings = elsewhere(live, tmp_path)
    with pytest.raises(UsageError, match="The key does not open"):
        brought_back(settings, first[0], "another key, long enough")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_altered_file_ends_a_restore_before_a_database_names_it(live, copy, tmp_path):
    object_of(live, copy, "steps/tune/1/model").write_text("another model")
    settings = elsewhere(live, tmp_path)
    with pytest.raises(ShopfloorError, match=r"artifacts/steps/tune/\d/model of the backup is altered"):
        brought_back(settings, copy)
    assert not (settings.state_dir / "mlflow" / "mlflow.db").exists()


def test_a_backup_goes_into_a_bucket_and_comes_back_out_of_it(live, tmp_path, monkeypatch):
    """By rclone's S3 server, with which the artifacts lie in a bucket too."""
    for name, value in {"AWS_ACCESS_KEY_ID": "ours", "AWS_SECRET_ACCESS_KEY": "ours-secret"}.items():
        monkeypatch.setenv(name, value)
    port, root = free_port(), tmp_path / "s3"
    (root / "backups").mkdir(parents=True)
    (root / "lake" / "artifacts" / "steps").mkdir(parents=True)
    (root / "lake" / "artifacts" / "steps" / "model").write_text("a model")
    command = [str(BIN / "rclone"), "serve", "s3", "--auth-key", "ours,ours-secret"]
    server = subprocess.Popen([*command, "--addr", f"127.0.0.1:{port}", str(root)], stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        address = {"s3_endpoint_url": f"http://127.0.0.1:{port}"}
        source = live.model_copy(update={"artifact_root": "s3://lake/artifacts", **address})
        made = create(source, "s3://backups/ours", KEY)
        assert create(source, "s3://backups/ours", KEY).new_objects == 0
        assert Store(source, "s3://backups/ours").verify(made.id).problems == []
        brought_back(elsewhere(live, tmp_path, artifact_root="s3://lake/restored", **address), "s3://backups/ours")
        assert (root / "lake" / "restored" / "steps" / "model").read_text() == "a model"
        with pytest.raises(UsageError, match="lies in"):
            create(source, "s3://lake/artifacts/backups", KEY)
        with pytest.raises(NotFoundError, match="s3://none"):
            create(source, "s3://none/backups", KEY)
    finally:
        server.kill()
        server.wait()


def test_old_backups_go_with_what_only_they_hold_and_the_newest_whole_one_stays(live, first, copy):
    (live.state_dir / "artifacts" / "more").write_text("of the second alone")
    second = create(live, copy, KEY).id
    (live.state_dir / "artifacts" / "more").unlink()
    third = create(live, copy, KEY).id
    contents = [{file.sha256 for file in manifest_of(live, copy, id_).contents()} for id_ in (second, third)]
    (only,) = contents[0] - contents[1]

    object_of(live, copy, "registry.db").write_text("in another size")
    assert pruned(live, copy, keep=1).removed == []  # none of them is whole
    fourth = create(live, copy, KEY).id  # which brings the content back to all of them
    assert pruned(live, copy, keep=4).removed == []
    young = prune(Store(live, copy), 2, lambda _: None)
    assert (young.kept, young.removed, young.objects) == ([third, fourth], [first[1].id, second], 0)
    free = pruned(live, copy, keep=2)
    assert (free.removed, free.objects, free.size_bytes) == ([], 1, len("of the second alone"))

    assert only not in Store(live, copy).objects()
    assert [Store(live, copy).verify(id_).problems for id_ in (third, fourth)] == [[], []]
    command = ("backup", "prune", "--keep", "1", "--store", copy)
    environment = bare_environment("MLFLOW_") | live.environment()
    last = shopfloor(*command, environment=environment, root=live.project_root)
    assert (last.returncode, last.stdout) == (0, f"{third}\n"), last.stderr
    manifest = places.local_path(copy) / "backups" / f"{fourth}.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(ShopfloorError, match=r"was altered. Nothing was removed. Bring backups/.* back"):
        pruned(live, copy, keep=1)
    with Store(live, copy).alone(), pytest.raises(ConflictError, match="Another backup of this stack"):
        pruned(live, copy, keep=1)


def pruned(settings, store, keep):
    """Prune without regard for what is young."""
    return prune(Store(settings, store), keep, lambda _: None, grace_s=0)


def test_secrets_that_are_others_than_those_of_the_backup_stay(live, first, tmp_path):
    settings = elsewhere(live, tmp_path)
    (tmp_path / "tokens.json").write_text("of today")
    with pytest.raises(UsageError, match=r"tokens.json is another one than that of the backup"):
        brought_back(settings, first[0], KEY)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["tokens.json"]


def test_a_drill_leaves_its_numbers_for_prometheus(tmp_path):
    flow.write_metrics(tmp_path / "drill.prom", drilled(3600, 99.5))
    lines = (tmp_path / "drill.prom").read_text().splitlines()
    assert "shopfloor_backup_drill_data_age_seconds 3600.000" in lines
    assert "shopfloor_backup_drill_restore_seconds 99.500" in lines
    assert "shopfloor_backup_drill_success 1.000" in lines


def test_a_drill_that_an_error_ends_leaves_for_prometheus_that_it_failed(live, first, tmp_path):
    command = ("backup", "drill", "2020", "--store", first[0], "--textfile", str(tmp_path / "drill.prom"))
    environment = bare_environment("MLFLOW_") | live.environment()
    ended = shopfloor(*command, environment=environment, root=live.project_root)

    assert (ended.returncode, "'2020' names no backup" in ended.stderr) == (2, True)
    lines = (tmp_path / "drill.prom").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["shopfloor_backup_drill_success 0.000"]


def test_what_is_registered_meanwhile_is_whole_in_a_backup_or_absent(live, copy):
    end = threading.Event()

    def write():
        for number in itertools.count():
            if end.is_set():
                return
            register(live, f"meanwhile_{number}")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        counts = [create(live, copy, None).counts["model_versions"]]
        while counts[-1] < counts[0] + 3:  # each refuses a version without its files
            counts.append(create(live, copy, None).counts["model_versions"])
    finally:
        end.set()
        writer.join()

    assert Store(live, copy).verify("latest").problems == []


def test_an_upgrade_waits_for_a_run_that_goes_on_and_names_it(live):
    mlflow = Mlflow(live.tracking_uri, 60)
    tags = {"shopfloor.state": "running", "shopfloor.pipeline": "training", "shopfloor.process": owner.this_process()}
    listed = [{"key": name, "value": value} for name, value in tags.items()]
    run_id = mlflow.post("runs/create", {"experiment_id": "0", "tags": listed})["run"]["info"]["run_id"]
    parts = [Part(name="MLflow", present="3", wanted="4")]

    with pytest.raises(ConflictError, match=rf"run {run_id[:8]} \(training\) go on"):
        upgrade._drain(live, parts, 0, lambda _: None)

    ended = {"run_id": run_id, "key": "shopfloor.state", "value": "succeeded"}
    upgrade._drain(live, parts, 60, lambda _: mlflow.post("runs/set-tag", ended))
    assert upgrade._writers(live, parts) == []
