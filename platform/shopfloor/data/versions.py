"""Data versions: from a git revision to DVC's hashes, and from the hashes to a run's tables.

A run reads the objects that DVC keeps (its cache, or the remote) and never the workspace, so it takes no lock of DVC's
and changes nothing of the user's. `dvc` itself remains the tool for everything else.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from shopfloor.errors import DataError, NotFoundError, ShopfloorError
from shopfloor.records import DataVersion, Record, TableVersion
from shopfloor.settings import Settings
from shopfloor.storage import Artifact, Metrics, publish
from shopfloor.use_case import load_use_case

logger = logging.getLogger(__name__)


class PreparedData(Record):
    """What `prepare` found and did."""

    version: DataVersion
    made: bool
    """The tables were made or pulled into the workspace."""
    pushed: bool
    """The remote got the objects."""


def prepare(settings: Settings, use_case_name: str) -> PreparedData:
    """Bring the tables into the workspace and into the remote, where they are not there yet.

    Raises:
        DataError: The remote lacks the tables and no stage makes them.
        ShopfloorError: A stage or a push failed; DVC's own words are on stderr.
    """
    use_case = load_use_case(settings, use_case_name)
    folder = settings.project_root / use_case.data.path
    made = False
    if not all((folder / f"{table}.parquet").is_file() for table in use_case.data.tables):
        made = True
        if not _dvc(settings, "pull", "--quiet", use_case.data.path, check=False):
            stage = _stage(settings, use_case.data.path)
            if stage is None:
                raise DataError(
                    f"The DVC remote lacks {use_case.data.path}, and no stage in dvc.yaml makes it.",
                    "Run `dvc push` where the data are.",
                )
            _dvc(settings, "repro", stage)
    version = resolve(settings, use_case_name, "")
    store = _Objects(settings)
    pushed = not all(store.in_remote(md5) for md5 in [version.md5, *(table.md5 for table in version.tables)])
    if pushed:
        _dvc(settings, "push", use_case.data.path)
    return PreparedData(version=version, made=made, pushed=pushed)


def resolve(settings: Settings, use_case_name: str, rev: str) -> DataVersion:
    """Return the data version of a use case at a git revision.

    Args:
        settings: Say where the project is.
        use_case_name: Its `data.path` is what DVC tracks.
        rev: Tag, branch or commit; empty means the workspace, whose files must be what DVC recorded.

    Raises:
        NotFoundError: There is no such revision, or it tracks no such data.
        DataError: The workspace's files differ from what DVC recorded, or the objects are nowhere.
    """
    use_case = load_use_case(settings, use_case_name)
    commit = _commit(settings, rev) if rev else ""
    md5 = _tracked_md5(settings, use_case.data.path, commit)
    if md5 is None:
        where = f"revision {rev!r}" if rev else "the workspace"
        raise NotFoundError(
            f"DVC does not track {use_case.data.path} in {where}.", "Track it: dvc add, or a stage in dvc.yaml."
        )
    store = _Objects(settings)
    entries = store.directory(md5)
    tables: list[TableVersion] = []
    for table in use_case.data.tables:
        found = entries.get(f"{table}.parquet")
        if found is None:
            raise DataError(
                f"Data version {md5} of {use_case.data.path} has no {table}.parquet.",
                "Name the tables that it has under data.tables in use_case.yaml.",
            )
        tables.append(TableVersion(name=table, md5=found, size_bytes=store.size(found)))
    if not rev:
        _require_unchanged(store, settings.project_root / use_case.data.path, tables)
    return DataVersion(path=use_case.data.path, md5=md5, rev=rev, commit=commit, tables=tables)


def pull(
    settings: Settings, use_case_name: str, data_rev: str, data_version: str, tables: Artifact, metrics: Metrics
) -> None:
    """Hand on the tables of a data version; the user's workspace stays as it is.

    Args:
        settings: Say where the project and the artifacts are.
        use_case_name: Its `data` section says what to pull.
        data_rev: Git revision; empty means what DVC recorded in the workspace.
        data_version: DVC's hash that the revision must have; empty means any.
        tables: Gets `<table>.parquet` and `data_version.json`; its content hash is DVC's.
        metrics: Gets the number of tables and their size.

    Raises:
        NotFoundError: There is no such revision.
        DataError: The revision has other data than `data_version`, or its objects are nowhere.
    """
    version = resolve(settings, use_case_name, data_rev)
    if data_version and version.md5 != data_version:
        raise DataError(f"The data changed while the run began: {version.md5} is not {data_version}.", "Submit again.")
    store = _Objects(settings)
    with publish(settings, tables, "pull_data", content_hash=version.md5) as directory:
        for table in version.tables:
            store.copy(table.md5, directory / f"{table.name}.parquet")
        (directory / "data_version.json").write_text(version.model_dump_json(indent=1), encoding="utf-8")
    metrics.log_metric("tables", len(version.tables))
    metrics.log_metric("size_bytes", sum(table.size_bytes for table in version.tables))


class _Objects:
    """DVC's objects, from the cache or else from the default remote."""

    def __init__(self, settings: Settings) -> None:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        try:
            self._repo = Repo(str(settings.project_root))
        except DvcException as error:
            raise NotFoundError(f"{settings.project_root} is no DVC repository.", "Run: dvc init") from error
        self._cache = self._repo.cache.local
        self._remote: Any = None

    @property
    def state(self) -> Any:
        """DVC's own record of file hashes by size, time and inode."""
        return self._repo.state

    def directory(self, md5: str) -> dict[str, str]:
        """Return relative path to hash for a directory object."""
        return {item["relpath"]: item["md5"] for item in json.loads(self._read(md5))}

    def size(self, md5: str) -> int:
        """Return the size of an object in bytes."""
        place = Path(self._cache.oid_to_path(md5))
        if place.is_file():
            return place.stat().st_size
        remote = self._remote_odb(md5)
        return int(remote.fs.size(remote.oid_to_path(md5)))

    def in_remote(self, md5: str) -> bool:
        """Tell whether the default remote holds an object; without a remote there is nothing to fill."""
        from dvc.exceptions import DvcException

        try:
            remote = self._repo.cloud.get_remote_odb()
        except DvcException:
            return True
        return bool(remote.fs.exists(remote.oid_to_path(md5)))

    def copy(self, md5: str, target: Path) -> None:
        """Write an object to `target`: a copy, so that nobody can change DVC's cache through it."""
        place = Path(self._cache.oid_to_path(md5))
        if place.is_file():
            shutil.copyfile(place, target)
        else:
            remote = self._remote_odb(md5)
            remote.fs.get_file(remote.oid_to_path(md5), str(target))

    def _read(self, md5: str) -> str:
        place = Path(self._cache.oid_to_path(md5))
        if place.is_file():
            return place.read_text(encoding="utf-8")
        remote = self._remote_odb(md5)
        with remote.fs.open(remote.oid_to_path(md5), "r") as handle:
            return str(handle.read())

    def _remote_odb(self, md5: str) -> Any:
        """Return the remote that holds an object."""
        from dvc.exceptions import DvcException

        try:
            self._remote = self._remote or self._repo.cloud.get_remote_odb()
            if self._remote.fs.exists(self._remote.oid_to_path(md5)):
                return self._remote
        except (DvcException, OSError) as error:
            raise DataError(f"The DVC remote cannot be read: {error}", "Look at it: dvc remote list") from error
        raise DataError(
            f"DVC object {md5} is neither in the cache nor in the remote {self._remote.path}.",
            "Run `dvc push` where the data are, or `dvc repro` here.",
        )


def _commit(settings: Settings, rev: str) -> str:
    answer = _git(settings, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}")
    if answer is None:
        raise NotFoundError(f"There is no git revision {rev!r}.", "`git tag` and `git log` show what there is.")
    return answer.strip()


def _tracked_md5(settings: Settings, path: str, commit: str) -> str | None:
    """Return the hash that dvc.lock or `<path>.dvc` records for `path`, at a commit or in the workspace."""
    import yaml

    def content(file: str) -> dict[str, Any]:
        if commit:
            text = _git(settings, "show", f"{commit}:{file}")
        else:
            place = settings.project_root / file
            text = place.read_text(encoding="utf-8") if place.is_file() else None
        return yaml.safe_load(text) or {} if text else {}

    lock = content("dvc.lock")
    outs = [out for stage in (lock.get("stages") or {}).values() for out in stage.get("outs", [])]
    name = Path(path).name
    outs += [{**out, "path": path} for out in content(f"{path}.dvc").get("outs", []) if out.get("path") == name]
    return next((str(out["md5"]) for out in outs if out.get("path") == path and "md5" in out), None)


def _stage(settings: Settings, path: str) -> str | None:
    """Return the stage whose output is `path`: `dvc repro` takes a stage's name and no path."""
    import yaml

    file = settings.project_root / "dvc.lock"
    lock = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.is_file() else {}
    stages: dict[str, Any] = lock.get("stages") or {}
    return next(
        (name for name, stage in stages.items() if any(out.get("path") == path for out in stage.get("outs", []))), None
    )


def _require_unchanged(store: _Objects, folder: Path, tables: list[TableVersion]) -> None:
    """Refuse a workspace whose files are not what DVC recorded; files that are not there are fine."""
    from dvc.fs import LocalFileSystem
    from dvc_data.hashfile.hash import hash_file

    for table in tables:
        file = folder / f"{table.name}.parquet"
        if not file.is_file():
            continue
        _, found = hash_file(str(file), LocalFileSystem(), "md5", state=store.state)
        if found.value != table.md5:
            raise DataError(
                f"{file} is not what DVC recorded.",
                "Record it (dvc commit), or bring back what was recorded (dvc checkout).",
            )


def _git(settings: Settings, *arguments: str) -> str | None:
    """Return what git prints, `None` where it fails."""
    answer = subprocess.run(
        ["git", "-C", str(settings.project_root), *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    return answer.stdout if answer.returncode == 0 else None


def _dvc(settings: Settings, *arguments: str, check: bool = True) -> bool:
    """Run a dvc command in the project, its progress on stderr.

    Raises:
        ShopfloorError: It failed and `check` is set.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    answer = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=settings.project_root,
        env={**os.environ, "PATH": path},
        stdout=sys.stderr if check else subprocess.DEVNULL,
        stderr=None if check else subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if answer.returncode != 0 and check:
        raise ShopfloorError(f"`dvc {' '.join(arguments)}` failed.", "Its own words stand above.")
    return answer.returncode == 0
