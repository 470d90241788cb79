"""A cluster's buckets and dumps, copied from one S3 server into another, and back into an empty one."""

import pytest
from shopfloor.backup.create import create
from shopfloor.backup.places import Place
from shopfloor.backup.store import Store
from shopfloor.errors import AccessError, UsageError
from shopfloor.flows import backup as flow
from shopfloor.settings import Settings

from tests.support.object_store import rclone

FILES = {
    "shopfloor/flights/artifacts/steps/tune/x": "a model",
    "shopfloor/flights/artifacts/features/f/online.json": "made again",
    "shopfloor/flights/feast/registry.db": "views",
    "shopfloor/vision/artifacts/steps/tune/x": "another's",
    "shopfloor-data/flights/dvc/files/md5/ab/cd": "rows",
    "shopfloor-mlflow/artifacts/1/r/artifacts/model/MLmodel": "flavors",
}
TABLES = {
    "model_versions": (
        "name\tversion\tsource\tstorage_location\tcurrent_stage",
        "m\t1\tmlflow-artifacts:/1/r/artifacts/model\t\\N\tNone",
    ),
    "registered_model_aliases": ("alias", "champion"),
    "runs": ("run_uuid", "r"),
}
STORE = "s3://backups/cluster"


def settings(root, address):
    return Settings(
        project_root=root,
        state_dir=root / "state",
        profile="cluster",
        s3_endpoint_url=address,
        artifact_root="s3://shopfloor/artifacts",
        data_remote="s3://shopfloor-data/dvc",
        backup_aws_profile="backup",
    )


def dumped(place):
    place.mkdir()
    for name in ("mlflow", "mlflow_auth", "argo"):
        (place / f"{name}.dump").write_text(f"the dump of {name}")
    for table, (columns, row) in TABLES.items():
        names = ", ".join(columns.split("\t"))
        (place / f"mlflow.{table}.sql").write_text(f"COPY public.{table} ({names}) FROM stdin;\n{row}\n\\.\n")
    return place


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Give the addresses of a cluster's object store, of one that lost all, and of the other one with other keys."""
    root = tmp_path_factory.mktemp("stores")
    for name, text in FILES.items():
        file = root / "own" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for bucket in ("shopfloor", "shopfloor-data", "shopfloor-mlflow"):
        (root / "lost" / bucket).mkdir(parents=True)
    (root / "other/backups").mkdir(parents=True)
    with (
        rclone(root / "own") as own,
        rclone(root / "lost") as lost,
        rclone(root / "other", "theirs,their-secret") as other,
    ):
        yield own, lost, other


@pytest.fixture
def profile(stores, tmp_path, monkeypatch):
    """Let AWS's own file say where the other store is, while the variables hold the keys of the cluster's."""
    file = tmp_path / "credentials"
    keys = "aws_access_key_id = theirs\naws_secret_access_key = their-secret\n"
    file.write_text(f"[backup]\nendpoint_url = {stores[2]}\nregion = us-east-1\n{keys}")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return file


def test_a_cluster_comes_back_from_another_store_as_it_was_and_only_into_an_empty_one(stores, profile, tmp_path):
    own, lost, _ = stores
    made = create(settings(tmp_path, own), STORE, None, dumps=dumped(tmp_path / "dumps"))

    assert made.counts == {"runs": 1, "model_versions": 1, "aliases": 1}
    assert made.left_out == ["the secrets, which are where `shopfloor secrets init` made them"]
    assert Store(settings(tmp_path, own), STORE).verify("latest").problems == []

    back, empty = settings(tmp_path, lost), tmp_path / "empty"
    empty.mkdir()
    assert flow.restore_files(back, STORE, "latest", empty, lambda _: None) == made.id
    assert {file.name: file.read_text() for file in empty.iterdir()} == {
        f"{name}.dump": f"the dump of {name}" for name in ("mlflow", "mlflow_auth", "argo")
    }
    names = {
        f"{bucket}/{name}": Place(back, f"s3://{bucket}").read(name).decode()
        for bucket in ("shopfloor", "shopfloor-data", "shopfloor-mlflow")
        for name in Place(back, f"s3://{bucket}").files()
    }
    assert names == {name: text for name, text in FILES.items() if not name.endswith("online.json")}
    for file in empty.iterdir():
        file.unlink()
    with pytest.raises(UsageError, match=r"not empty: it holds \d files in s3://shopfloor"):
        flow.restore_files(back, STORE, "latest", empty, lambda _: None)


def test_a_profile_that_is_not_there_or_has_other_keys_is_named_in_one_line(stores, profile, tmp_path):
    one = settings(tmp_path, stores[0])
    profile.write_text(profile.read_text().replace("their-secret", "another").replace("[backup]", "[stranger]"))
    with pytest.raises(AccessError, match="does not let the profile 'stranger'"):
        Store(one.model_copy(update={"backup_aws_profile": "stranger"}), STORE, new=True)
    with pytest.raises(UsageError, match="no profile 'other'"):
        Store(one.model_copy(update={"backup_aws_profile": "other"}), STORE, new=True)


def test_a_profile_without_buckets_is_refused_with_the_one_that_has(profile, tmp_path):
    bad = settings(tmp_path, None).model_copy(update={"artifact_root": str(tmp_path / "artifacts")})
    with pytest.raises(UsageError, match="no bucket for artifacts: .*--profile cluster"):
        create(bad, STORE, None, dumps=tmp_path)
