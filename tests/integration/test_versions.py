"""Data versions from a real DVC repository with a directory as its remote."""

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from shopfloor.data import versions
from shopfloor.errors import DataError, NotFoundError
from shopfloor.settings import Settings

PROJECT = Path(__file__).resolve().parents[2]
TABLES = ("flights", "weather", "planes", "airports", "airlines")


class Metrics(dict):
    def log_metric(self, metric, value):
        self[metric] = value


def artifact():
    return SimpleNamespace(name="tables", uri="", metadata={})


def sh(root, *command):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"] if command[0] == "git" else []
    subprocess.run([command[0], *identity, *command[1:]], cwd=root, check=True, capture_output=True)


def dvc(root, *arguments):
    sh(root, sys.executable, "-m", "dvc", *arguments)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Two tagged data versions, v1 and v2; the remote has both."""
    root = tmp_path_factory.mktemp("repository")
    use_case = root / "pipelines/flight_delays/use_case.yaml"
    use_case.parent.mkdir(parents=True)
    use_case.write_text((PROJECT / "pipelines/flight_delays/use_case.yaml").read_text())
    (root / ".gitignore").write_text(".shopfloor/\n")
    sh(root, "git", "init", "-q")
    dvc(root, "init", "-q")
    dvc(root, "remote", "add", "-q", "-d", "store", str(root.parent / "store"))
    for tag in ("v1", "v2"):
        for table in TABLES:
            file = root / "data/flight_delays" / f"{table}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{table} {tag}")
        dvc(root, "add", "-q", "data/flight_delays")
        sh(root, "git", "add", "-A")
        sh(root, "git", "commit", "-qm", tag)
        sh(root, "git", "tag", tag)
        dvc(root, "push", "-q")
    return Settings(project_root=root, state_dir=root / ".shopfloor", artifact_root=str(root / ".shopfloor/artifacts"))


def pulled(settings, rev, version=""):
    tables = artifact()
    versions.pull(settings, "flight_delays", rev, version, tables, Metrics())
    return (Path(tables.uri) / "flights.parquet").read_text(), tables


def test_any_revision_gives_its_own_data_and_their_hash(repository):
    text, tables = pulled(repository, "v1")
    assert text == "flights v1"
    assert tables.metadata["content_hash"] == versions.resolve(repository, "flight_delays", "v1").md5
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
        versions.resolve(repository, "flight_delays", "v9")


def test_data_that_changed_in_between_are_refused(repository):
    with pytest.raises(DataError, match="The data changed while the run began"):
        pulled(repository, "v1", version=versions.resolve(repository, "flight_delays", "v2").md5)


def test_a_workspace_that_dvc_did_not_record_is_refused(repository):
    file = repository.project_root / "data/flight_delays/flights.parquet"
    text = file.read_text()
    file.unlink()
    file.write_text("something else")
    try:
        with pytest.raises(DataError, match=r"is not what DVC recorded. Record it \(dvc commit\)"):
            versions.resolve(repository, "flight_delays", "")
    finally:
        file.write_text(text)


def test_prepare_pulls_what_the_workspace_lacks_and_fills_an_empty_remote(repository, tmp_path):
    root = tmp_path / "clone"
    sh(tmp_path, "git", "clone", "-q", str(repository.project_root), str(root))
    settings = Settings(project_root=root, state_dir=root / ".shopfloor", artifact_root=str(root / "artifacts"))
    assert versions.prepare(settings, "flight_delays").made
    assert (root / "data/flight_delays/flights.parquet").read_text() == "flights v2"

    dvc(root, "remote", "modify", "store", "url", str(tmp_path / "empty"))
    assert versions.prepare(settings, "flight_delays").pushed
    assert not versions.prepare(settings, "flight_delays").pushed


def test_objects_that_are_nowhere_say_what_to_run(repository, tmp_path):
    root = tmp_path / "clone"
    sh(tmp_path, "git", "clone", "-q", str(repository.project_root), str(root))
    dvc(root, "remote", "modify", "store", "url", str(tmp_path / "empty"))
    settings = Settings(project_root=root, state_dir=root / ".shopfloor", artifact_root=str(root / "artifacts"))
    with pytest.raises(DataError, match=r"neither in the cache nor in the remote.*`dvc push`"):
        versions.resolve(settings, "flight_delays", "v1")


def test_on_a_fresh_clone_with_an_empty_remote_the_stage_makes_the_data(tmp_path):
    root = tmp_path / "project"
    use_case = root / "pipelines/flight_delays/use_case.yaml"
    use_case.parent.mkdir(parents=True)
    use_case.write_text((PROJECT / "pipelines/flight_delays/use_case.yaml").read_text())
    makes = (
        f"mkdir -p data/flight_delays; for t in {' '.join(TABLES)}; do echo $t > data/flight_delays/$t.parquet; done"
    )
    (root / "dvc.yaml").write_text(f"stages:\n  made:\n    cmd: {makes}\n    outs: [data/flight_delays]\n")
    sh(root, "git", "init", "-q")
    dvc(root, "init", "-q")
    dvc(root, "remote", "add", "-q", "-d", "store", str(tmp_path / "first"))
    dvc(root, "repro", "-q")
    sh(root, "git", "add", "-A")
    sh(root, "git", "commit", "-qm", "made")
    clone = tmp_path / "clone"
    sh(tmp_path, "git", "clone", "-q", str(root), str(clone))
    settings = Settings(project_root=clone, state_dir=clone / ".shopfloor", artifact_root=str(clone / "artifacts"))

    prepared = versions.prepare(settings, "flight_delays")

    assert prepared.made
    assert prepared.pushed
    assert (clone / "data/flight_delays/flights.parquet").read_text() == "flights\n"
