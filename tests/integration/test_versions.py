"""Data versions from a real DVC repository with a directory as its remote."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from shopfloor.data import resolution, versions
from shopfloor.errors import DataError, NotFoundError, ShopfloorError, UsageError
from shopfloor.settings import Settings

from tests.support.artifacts import Recorder
from tests.support.project import ROOT, dvc, git

TABLES = ("flights", "weather", "planes", "airports", "airlines")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Two tagged data versions, v1 and v2; the remote has both."""
    root = tmp_path_factory.mktemp("repository")
    use_case = root / "pipelines/flight_delays/use_case.yaml"
    use_case.parent.mkdir(parents=True)
    use_case.write_text((ROOT / "pipelines/flight_delays/use_case.yaml").read_text())
    (root / ".gitignore").write_text(".shopfloor/\n")
    git(root, "init", "-q")
    dvc(root, "init", "-q")
    dvc(root, "remote", "add", "-q", "-d", "store", str(root.parent / "store"))
    for tag in ("v1", "v2"):
        for table in TABLES:
            file = root / "data/flight_delays" / f"{table}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{table} {tag}")
        dvc(root, "add", "-q", "data/flight_delays")
        git(root, "add", "-A")
        git(root, "commit", "-qm", tag)
        git(root, "tag", tag)
        dvc(root, "push", "-q")
    return Settings(project_root=root, state_dir=root / ".shopfloor", artifact_root=str(root / ".shopfloor/artifacts"))


def pulled(settings, rev, version=""):
    tables = Recorder("tables")
    versions.pull(settings, "flight_delays", rev, version, tables, Recorder())
    return (Path(tables.uri) / "flights.parquet").read_text(), tables


def test_any_revision_gives_its_own_data_and_their_hash(repository):
    text, tables = pulled(repository, "v1")
    assert text == "flights v1"
    assert tables.metadata["content_hash"] == resolution.resolve(repository, "flight_delays", "v1").md5
    assert pulled(repository, "v2")[0] == pulled(repository, "")[0] == "flights v2"
    assert pulled(repository, "HEAD~1")[0] == "flights v1"


def test_a_pull_leaves_the_workspace_alone(repository):
    def workspace():
        root = repository.project_root
        files = [
            path for path in root.rglob("*") if path.is_file() and not {".shopfloor", ".git", "tmp"} & set(path.parts)
        ]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = workspace()
    pulled(repository, "v1")
    assert workspace() == before


def test_pulls_go_on_beside_one_another_and_beside_a_dvc_command_that_holds_the_lock(repository):
    from dvc.lock import make_lock

    lock = repository.project_root / ".dvc/tmp/lock"
    texts = []
    with make_lock(str(lock), tmp_dir=str(lock.parent)):
        threads = [
            threading.Thread(target=lambda rev=rev: texts.append(pulled(repository, rev)[0])) for rev in ("v1", "v2")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    assert sorted(texts) == ["flights v1", "flights v2"]


def test_an_unknown_revision_is_named(repository):
    with pytest.raises(NotFoundError, match="There is no git revision 'v9'"):
        resolution.resolve(repository, "flight_delays", "v9")


def test_data_that_changed_in_between_are_refused(repository):
    with pytest.raises(DataError, match="The run is for the data version .* and its project has"):
        pulled(repository, "v1", version=resolution.resolve(repository, "flight_delays", "v2").md5)


def test_a_workspace_that_dvc_did_not_record_is_refused(repository):
    file = repository.project_root / "data/flight_delays/flights.parquet"
    text = file.read_text()
    file.unlink()
    file.write_text("something else")
    try:
        with pytest.raises(DataError, match=r"is not what DVC recorded. Record it \(dvc commit\)"):
            resolution.resolve(repository, "flight_delays", "")
    finally:
        file.write_text(text)


def test_prepare_pulls_what_the_workspace_lacks_and_fills_an_empty_remote(repository, tmp_path):
    root = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(repository.project_root), str(root))
    settings = Settings(project_root=root, state_dir=root / ".shopfloor", artifact_root=str(root / "artifacts"))
    assert versions.prepare(settings, "flight_delays").made
    assert (root / "data/flight_delays/flights.parquet").read_text() == "flights v2"
    assert settings.state_dir.stat().st_mode & 0o777 == 0o700

    dvc(root, "remote", "modify", "store", "url", str(tmp_path / "empty"))
    assert versions.prepare(settings, "flight_delays").pushed
    assert not versions.prepare(settings, "flight_delays").pushed


def test_objects_that_are_nowhere_say_what_to_run(repository, tmp_path):
    root = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(repository.project_root), str(root))
    dvc(root, "remote", "modify", "store", "url", str(tmp_path / "empty"))
    settings = Settings(project_root=root, state_dir=root / ".shopfloor", artifact_root=str(root / "artifacts"))
    with pytest.raises(DataError, match=r"neither in DVC's cache nor in the remote 'store' .*`dvc push`"):
        resolution.resolve(settings, "flight_delays", "v1")


def test_on_a_fresh_clone_with_an_empty_remote_the_stage_makes_the_data(tmp_path):
    root = tmp_path / "project"
    use_case = root / "pipelines/flight_delays/use_case.yaml"
    use_case.parent.mkdir(parents=True)
    use_case.write_text((ROOT / "pipelines/flight_delays/use_case.yaml").read_text())
    makes = (
        "umask > mask; mkdir -p data/flight_delays; "
        f"for t in {' '.join(TABLES)}; do echo $t > data/flight_delays/$t.parquet; done"
    )
    (root / "dvc.yaml").write_text(f"stages:\n  made:\n    cmd: {makes}\n    outs: [data/flight_delays]\n")
    git(root, "init", "-q")
    dvc(root, "init", "-q")
    dvc(root, "remote", "add", "-q", "-d", "store", str(tmp_path / "first"))
    dvc(root, "repro", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "made")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(root), str(clone))
    settings = Settings(project_root=clone, state_dir=clone / ".shopfloor", artifact_root=str(clone / "artifacts"))

    prepared = versions.prepare(settings, "flight_delays")

    assert prepared.made
    assert prepared.pushed
    assert (clone / "data/flight_delays/flights.parquet").read_text() == "flights\n"
    assert (clone / "mask").read_text() == "0077\n"


@pytest.fixture
def clone(repository, tmp_path):
    """A clone of the two data versions, which reaches their remote; nothing is in its cache."""
    root = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(repository.project_root), str(root))
    return Settings(project_root=root, state_dir=root / ".shopfloor", artifact_root=str(root / ".shopfloor/artifacts"))


def elsewhere(settings):
    """Take what tracks the data out of a clone, and return DVC's repository and a copy of the tables."""
    from dvc.repo import Repo

    root = settings.project_root
    tables = root.parent / "tables"
    tables.mkdir()
    for table in TABLES:
        (tables / f"{table}.parquet").write_text(f"{table} here")
    (root / "data/flight_delays.dvc").unlink()
    (root / "data/.gitignore").unlink()
    return Repo(str(root), config={"core": {"site_cache_dir": str(root.parent / "site")}}), tables


def test_a_project_in_a_folder_of_a_larger_repository_has_its_revisions(repository, tmp_path):
    root = tmp_path / "all/shop"
    shutil.copytree(repository.project_root, root, ignore=shutil.ignore_patterns(".git", ".shopfloor"))
    git(root.parent, "init", "-q")
    git(root.parent, "add", "-A")
    git(root.parent, "commit", "-qm", "all")
    settings = Settings(project_root=root, state_dir=root / ".shopfloor", artifact_root=str(root / "artifacts"))
    assert pulled(settings, "HEAD")[0] == pulled(settings, "")[0] == "flights v2"


def test_a_copy_of_the_project_without_its_history_has_the_data_of_its_workspace(repository, tmp_path):
    root = tmp_path / "copy"
    kept_out = shutil.ignore_patterns(".git", ".shopfloor", "cache", "*.parquet")
    shutil.copytree(repository.project_root, root, ignore=kept_out)
    settings = Settings(project_root=root, state_dir=root / ".shopfloor", artifact_root=str(root / "artifacts"))

    assert pulled(settings, "")[0] == pulled(repository, "v2")[0] == "flights v2"
    with pytest.raises(NotFoundError, match="is no git repository, so there is no revision 'v1'"):
        pulled(settings, "v1")


def test_imported_data_are_found_in_a_fresh_clone_and_after_a_pull(repository, clone):
    repo, _ = elsewhere(clone)
    repo.imp(str(repository.project_root), "data/flight_delays", out=str(clone.project_root / "data/flight_delays"))
    shutil.rmtree(clone.project_root / ".dvc/cache")
    shutil.rmtree(clone.project_root / "data/flight_delays")

    fresh, tables = pulled(clone, "")
    repo.pull()

    assert fresh == pulled(clone, "")[0] == "flights v2"
    assert tables.metadata["content_hash"] == resolution.resolve(repository, "flight_delays", "").md5


def test_an_output_with_a_remote_of_its_own_is_read_from_there(clone, tmp_path):
    repo, tables = elsewhere(clone)
    with (clone.project_root / ".dvc/config").open("a") as file:
        file.write(f"['remote \"own\"']\nurl = {tmp_path}/own\n")
    shutil.copytree(tables, clone.project_root / "data/flight_delays")
    repo.add(str(clone.project_root / "data/flight_delays"))
    file = clone.project_root / "data/flight_delays.dvc"
    file.write_text(file.read_text().replace("  hash: md5", "  hash: md5\n  remote: own"))

    assert versions.prepare(clone, "flight_delays").pushed
    shutil.rmtree(clone.project_root / ".dvc/cache")

    assert pulled(clone, "")[0] == "flights here"
    assert not versions.prepare(clone, "flight_delays").pushed
    shutil.rmtree(tmp_path / "own")
    with pytest.raises(DataError, match="nor in the remote 'own'"):
        pulled(clone, "")


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        (
            "pipelines/flight_delays/dvc.yaml",
            {"wdir": "../..", "cmd": "cp -r {} data/", "outs": ["data/flight_delays"]},
        ),
        ("dvc.yaml", {"wdir": "data", "cmd": "cp -r {} flight_delays", "outs": ["flight_delays"]}),
    ],
)
def test_a_stage_may_stand_in_a_folder_and_work_in_another(clone, file, stage):
    import yaml

    _, tables = elsewhere(clone)
    tables = tables.rename(tables.with_name("flight_delays"))
    stage["cmd"] = stage["cmd"].format(tables)
    (clone.project_root / file).write_text(yaml.safe_dump({"stages": {"source": stage}}))

    prepared = versions.prepare(clone, "flight_delays")

    assert prepared.made
    assert pulled(clone, "")[0] == "flights here"


def test_files_that_are_tracked_one_by_one_have_the_hash_of_their_directory(clone):
    repo, tables = elsewhere(clone)
    shutil.copytree(tables, clone.project_root / "data/flight_delays")
    repo.add(str(clone.project_root / "data/flight_delays"))
    whole = resolution.resolve(clone, "flight_delays", "")
    (clone.project_root / "data/flight_delays.dvc").unlink()
    (clone.project_root / "data/.gitignore").unlink()
    repo.add([str(clone.project_root / f"data/flight_delays/{table}.parquet") for table in TABLES])
    assert resolution.resolve(clone, "flight_delays", "") == whole


def test_what_was_resolved_before_needs_no_dvc_until_something_changes(clone):
    versions.prepare(clone, "flight_delays")
    ask = (
        "import sys; from shopfloor.data.resolution import resolve; from shopfloor.settings import Settings;"
        "settings = Settings.model_validate_json(sys.argv[1]);"
        "print(resolve(settings, 'flight_delays', '').md5, resolve(settings, 'flight_delays', 'v1').md5,"
        "'dvc' in sys.modules)"
    )
    md5s = [resolution.resolve(clone, "flight_delays", rev).md5 for rev in ("", "v1")]
    command = [sys.executable, "-c", ask, clone.model_dump_json()]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert answer == [*md5s, "False"]

    shutil.rmtree(clone.project_root / ".dvc/cache")
    dvc(clone.project_root, "remote", "modify", "store", "url", str(clone.project_root.parent / "empty"))
    for rev in ("", "v1"):
        with pytest.raises(DataError, match=r"neither in DVC's cache nor in the remote"):
            resolution.resolve(clone, "flight_delays", rev)


def test_what_dvc_2_left_is_read(clone):
    repo, tables = elsewhere(clone)
    shutil.copytree(tables, clone.project_root / "data/flight_delays")
    repo.add(str(clone.project_root / "data/flight_delays"))
    file, cache = clone.project_root / "data/flight_delays.dvc", clone.project_root / ".dvc/cache"
    file.write_text(file.read_text().replace("  hash: md5\n", ""))
    (cache / "files/md5").rename(cache.with_name("old"))
    shutil.rmtree(cache)
    cache.with_name("old").rename(cache)
    assert pulled(clone, "")[0] == "flights here"


@pytest.mark.parametrize("path", ["./data/flight_delays", "data/flight_delays/", "data//flight_delays"])
def test_the_path_of_the_data_may_be_written_as_one_likes(clone, path):
    file = clone.project_root / "pipelines/flight_delays/use_case.yaml"
    file.write_text(file.read_text().replace("path: data/flight_delays", f"path: {path}"))
    assert resolution.resolve(clone, "flight_delays", "v1").path == "data/flight_delays"


def test_a_lock_file_with_a_merge_conflict_is_named(clone):
    (clone.project_root / "dvc.yaml").write_text("stages: {a: {cmd: echo}}\n")
    (clone.project_root / "dvc.lock").write_text("<<<<<<< HEAD\nschema: '2.0'\n=======\n>>>>>>> other\n")
    with pytest.raises(DataError, match=r"DVC cannot say what it tracks: .*dvc.lock'"):
        resolution.resolve(clone, "flight_delays", "")


def test_all_files_that_dvc_tracks_are_handed_on(clone):
    repo, tables = elsewhere(clone)
    (tables / "codes").mkdir()
    (tables / "codes/reasons.csv").write_text("1,weather")
    shutil.copytree(tables, clone.project_root / "data/flight_delays")
    repo.add(str(clone.project_root / "data/flight_delays"))
    _, handed_on = pulled(clone, "")
    assert (Path(handed_on.uri) / "codes/reasons.csv").read_text() == "1,weather"


@pytest.mark.parametrize("listing", [False, True])
def test_a_changed_object_in_the_cache_is_refused_under_its_recorded_hash(clone, listing):
    repo, tables = elsewhere(clone)
    shutil.copytree(tables, clone.project_root / "data/flight_delays")
    repo.add(str(clone.project_root / "data/flight_delays"))
    version = resolution.resolve(clone, "flight_delays", "")
    md5 = version.md5 if listing else version.tables[0].md5
    changed = clone.project_root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    text = changed.read_text()
    changed.unlink()  # the workspace may share it
    changed.write_text(text.replace("weather", "wether") if listing else text.replace("here", "there"))
    changed.chmod(0o444)  # as DVC marks what it has checked
    shutil.rmtree(clone.project_root / ".shopfloor/dvc")
    with pytest.raises(DataError, match=r"is not what DVC recorded.*dvc fetch"):
        pulled(clone, "")
    assert not list((clone.project_root / ".shopfloor/artifacts").rglob("*.parquet"))


def test_a_remote_that_does_not_answer_is_neither_pulled_from_nor_passed_over(clone):
    root = clone.project_root
    (root / ".dvc/config").write_text(
        "[core]\nremote = store\n['remote \"store\"']\nurl = s3://nowhere/at-all\nendpointurl = http://127.0.0.1:9\n"
    )
    (root / "dvc.yaml").write_text("stages: {never: {cmd: touch made, outs: [made]}}\n")
    with pytest.raises(DataError, match="the remote 'store' .* cannot be read"):
        versions.prepare(clone, "flight_delays")
    repo, tables = elsewhere(clone)
    shutil.copytree(tables, root / "data/flight_delays")
    repo.add(str(root / "data/flight_delays"))
    with pytest.raises(DataError, match="the remote 'store' .* cannot be read"):
        versions.prepare(clone, "flight_delays")


def test_a_password_in_the_address_of_a_remote_is_not_repeated(clone):
    (clone.project_root / ".dvc/config").write_text(
        "[core]\nremote = store\n['remote \"store\"']\nurl = http://me:s3cret@127.0.0.1:9/dvc\n"
    )
    with pytest.raises(DataError, match=r"the remote 'store' \(http://127.0.0.1:9/dvc\)") as unread:
        versions.prepare(clone, "flight_delays")
    assert "s3cret" not in str(unread.value)


def test_a_pull_that_fails_keeps_the_changed_file_and_makes_nothing_instead(clone):
    root = clone.project_root
    versions.prepare(clone, "flight_delays")
    (root / "data/flight_delays/weather.parquet").unlink()
    (root / "data/flight_delays/flights.parquet").unlink()
    (root / "data/flight_delays/flights.parquet").write_text("mine")
    with pytest.raises(ShopfloorError, match=r"`dvc pull data/flight_delays.dvc` failed"):
        versions.prepare(clone, "flight_delays")
    assert (root / "data/flight_delays/flights.parquet").read_text() == "mine"


def test_dvc_keeps_its_pickles_where_no_other_account_writes(clone, monkeypatch, tmp_path):
    monkeypatch.delenv("DVC_SITE_CACHE_DIR", raising=False)
    versions.prepare(clone, "flight_delays")
    site = clone.state_dir / "dvc"
    assert clone.state_dir.stat().st_mode & 0o077 == 0
    script = "import sys; from dvc.repo import Repo; print(Repo(sys.argv[1]).site_cache_dir)"
    answer = subprocess.run(
        [sys.executable, "-c", script, clone.project_root], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert Path(answer.stdout.strip()).is_relative_to(site)


def test_a_shallow_clone_says_that_it_is_one(repository, tmp_path):
    root = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repository.project_root}", str(root))
    settings = Settings(project_root=root, state_dir=root / ".shopfloor")
    assert resolution.resolve(settings, "flight_delays", "HEAD").commit
    with pytest.raises(
        NotFoundError, match=r"shallow clone has no git revision 'HEAD~1'.*git fetch --unshallow --tags"
    ):
        resolution.resolve(settings, "flight_delays", "HEAD~1")


def test_a_clone_of_another_user_says_how_git_is_told_to_trust_it(repository, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "true")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    with pytest.raises(UsageError, match=r"belongs to another user.*safe\.directory"):
        resolution.resolve(repository, "flight_delays", "HEAD")
