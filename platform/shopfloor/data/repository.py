"""What DVC tracks at a path of the project, in the workspace or at a commit, asked of DVC itself.

Objects are read where DVC keeps them and never in the workspace, so no lock of DVC's is taken and nothing of the user's
is changed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from shopfloor.data.revisions import commit_of
from shopfloor.errors import DataError, NotFoundError, ShopfloorError, UsageError, first_line, without_secrets
from shopfloor.records import DataVersion, TableVersion
from shopfloor.settings import Settings
from shopfloor.use_case import UseCase


class Nowhere(DataError):
    """An object is neither in DVC's cache nor in its remote."""


def options(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return what DVC is told beside its own configuration: where its pickles go, and the remote of the profile."""
    # In the state directory, and not in one that all accounts may write to.
    own: dict[str, dict[str, Any]] = {"core": {"site_cache_dir": str(settings.private_dir("dvc"))}}
    if settings.data_remote:
        own["core"]["remote"] = "profile"
        own["remote"] = {"profile": {"url": settings.data_remote}}
        if settings.s3_endpoint_url and settings.data_remote.startswith("s3:"):
            own["remote"]["profile"]["endpointurl"] = settings.s3_endpoint_url
    return own


def default_remote(settings: Settings) -> str | None:
    """Return where DVC keeps the data of this clone by its own configuration: a directory or a URI; `None` if nowhere.

    Raises:
        DataError: The configuration cannot be read.
    """
    from dvc.config import Config, ConfigError

    try:
        config = Config(dvc_dir=str(settings.project_root / ".dvc"))  # which makes a relative path absolute
    except ConfigError as error:
        raise DataError(f"DVC's configuration cannot be read: {first_line(error)}.", "Mend .dvc/config.") from error
    remote = config["remote"].get(config["core"].get("remote") or "", {})
    address: str | None = remote.get("url")
    return address and str(address)


@contextlib.contextmanager
def tracked(settings: Settings, use_case: UseCase, rev: str = "") -> Iterator[TrackedPath]:
    """Give what DVC tracks at the use case's `data.path`, in the workspace or at a git revision.

    Args:
        settings: Say where the project is.
        use_case: Its `data` section names the path.
        rev: Git revision; empty means the workspace.

    Raises:
        NotFoundError: There is no such revision, or the project is no repository of DVC.
        UsageError: The path is outside of it.
        DataError: DVC cannot say what it tracks.
    """
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.fs import GitFileSystem
    from dvc.repo import Repo

    root, path = Path(os.path.realpath(settings.project_root)), os.path.normpath(use_case.data.path)
    commit = commit_of(root, rev) if rev else ""
    with contextlib.ExitStack() as stack:
        try:
            repo = stack.enter_context(Repo(str(root), config=options(settings), scm=_scm(root)))
            top = Path(os.path.realpath(repo.root_dir))
            key = Path(os.path.relpath(root / path, top)).parts
            if os.pardir in key:
                raise UsageError(f"data.path {path!r} is outside of the DVC repository {top}.", "Mend it.")
            if commit:
                # The remotes are today's: a path in .dvc/config means nothing in a tree of git's.
                here = {section: {**repo.config[section]} for section in ("core", "cache", "remote")}
                system = GitFileSystem(scm=repo.scm, rev=commit)
                at = os.path.normpath("/" + os.path.relpath(top, os.path.realpath(repo.scm.root_dir)))
                repo = stack.enter_context(Repo(at, fs=system, scm=repo.scm, config=here))
            yield TrackedPath(repo, root, path, rev, commit, key)
        except NotDvcRepoError as error:
            where = f"at revision {rev!r}" if commit else "here"
            raise NotFoundError(f"{root} is no DVC repository {where}.", "Run: dvc init") from error
        except DvcException as error:
            raise DataError(
                f"DVC cannot say what it tracks: {first_line(error)}.", "Mend that; `dvc status`."
            ) from error


def track(settings: Settings, path: Path) -> None:
    """Let DVC track a directory of the project, as `dvc add` does; one that it tracks as it is, it leaves.

    Raises:
        NotFoundError: The project is no repository of DVC.
        DataError: DVC refuses.
    """
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo

    root = Path(os.path.realpath(settings.project_root))
    try:
        with Repo(str(root), config=options(settings), scm=_scm(root)) as repo:
            repo.scm_context.quiet = True  # whoever asks says what is to be committed
            repo.add(str(root / path.relative_to(settings.project_root)))
    except NotDvcRepoError as error:
        raise NotFoundError(f"{root} is no DVC repository.", "Run: dvc init") from error
    except DvcException as error:
        raise DataError(f"DVC cannot track {path.name}: {first_line(error)}.", "Mend that; `dvc status`.") from error


class TrackedPath:
    """What DVC tracks at a path: its files by name, and where their bytes are."""

    def __init__(self, repo: Any, root: Path, path: str, rev: str, commit: str, key: tuple[str, ...]) -> None:
        """Take what says where to look.

        Args:
            repo: DVC's repository, in the workspace or at a commit.
            root: The project.
            path: Relative to the project.
            rev: The revision as the user named it; empty for the workspace.
            commit: The commit that it names.
            key: The path's parts, from the root of DVC's repository on.
        """
        self._repo, self._root, self._path, self._rev, self._commit, self._key = repo, root, path, rev, commit, key

    @cached_property
    def _outs(self) -> list[Any]:
        """Outputs of DVC's stages that the path is, is part of, or holds."""
        outs = [out for out in self._repo.index.outs if out.index_key[0] == "repo"]
        ours = [out for out in outs if all(a == b for a, b in zip(out.index_key[1], self._key, strict=False))]
        if not ours:
            where = f"revision {self._rev!r}" if self._rev else "the workspace"
            raise NotFoundError(
                f"DVC does not track {self._path} in {where}.", "Track it: dvc add, or a stage in dvc.yaml."
            )
        return ours

    @property
    def targets(self) -> list[str]:
        """Stages that make or track the files, as a dvc command in the project takes them."""
        stages = [(os.path.relpath(out.stage.path, self._root), getattr(out.stage, "name", None)) for out in self._outs]
        return list(dict.fromkeys(f"{file}:{name}" if name else file for file, name in stages))

    def do(self, command: Literal["pull", "push"]) -> None:
        """Let DVC pull the files into the workspace, or push them into the remote, its progress on stderr.

        Raises:
            ShopfloorError: It failed.
        """
        from dvc.exceptions import DvcException

        try:
            getattr(self._repo, command)(targets=[out.stage.addressing for out in self._outs])
        except DvcException as error:
            words = without_secrets(" ".join(str(error).split()))
            raise ShopfloorError(
                f"`dvc {command} {' '.join(self.targets)}` failed: {words}.", "Mend that; the command says more."
            ) from error

    def keep_site_cache(self) -> None:
        """Let the user's own `dvc` in this clone keep its pickles where ours does."""
        place = self._repo.config["core"]["site_cache_dir"]
        if self._repo.config.read("local")["core"].get("site_cache_dir") != place:
            with self._repo.config.edit("local") as config:
                config["core"]["site_cache_dir"] = place

    @property
    def can_be_made(self) -> bool:
        """Whether a stage makes each of the files."""
        return all(out.stage.cmd for out in self._outs)

    @cached_property
    def _index(self) -> Any:
        return self._repo.index.data["repo"]

    @cached_property
    def files(self) -> dict[str, Any]:
        """DVC's entries of the files, by their name relative to the path."""
        from dvc_data.index.index import DataIndexDirError

        if any(not out.hash_info for out in self._outs):
            raise Nowhere(f"DVC has recorded no hash of {self._path} yet.", "Run `dvc repro` or `dvc commit`.")
        try:
            items = list(self._index.iteritems(prefix=self._key))
        except DataIndexDirError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise self._unreadable(error.__cause__ or error) from error
            raise self._nowhere(f"The list of the files of {self._path}") from error
        files = [(key[len(self._key) :], entry) for key, entry in items if not (entry.meta and entry.meta.isdir)]
        for _, entry in files:
            if not entry.hash_info:  # of an import that is read from its own repository, which knows the hash
                with self._reading():
                    system, place = self._index.storage_map[entry.key].remote.get(entry)
                    entry.hash_info = _hash_info(place, system)
        return {"/".join(parts): entry for parts, entry in sorted(files, key=lambda item: item[0])}

    @cached_property
    def md5(self) -> str:
        """DVC's hash of the directory, computed from those of its files."""
        from dvc_data.hashfile.tree import Tree

        tree = Tree()  # type: ignore[no-untyped-call]
        for name, entry in self.files.items():
            tree.add(tuple(name.split("/")), entry.meta, entry.hash_info)
        tree.digest()
        computed = str(tree.hash_info.value)
        hashes = [str(out.hash_info.value) for out in self._outs if out.index_key[1] == self._key]
        if hashes and hashes[0] != computed:
            raise DataError(
                f"The list of the files of {self._path} in DVC's cache is not what DVC recorded: {computed} is not "
                f"{hashes[0]}.",
                "Remove it from the cache and fetch it anew: dvc fetch",
            )
        return computed

    def version(self, use_case: UseCase) -> DataVersion:
        """Return the data version; in the workspace, files that lie there must be what DVC recorded.

        Raises:
            DataError: It lacks a table, the bytes of one are nowhere, or the workspace has other files.
        """
        tables: list[TableVersion] = []
        for table in use_case.data.tables:
            entry = self.files.get(f"{table}.parquet")
            if entry is None:
                raise DataError(
                    f"Data version {self.md5} of {self._path} has no {table}.parquet.",
                    "Name the tables that it has under data.tables in use_case.yaml.",
                )
            tables.append(TableVersion(name=table, md5=entry.hash_info.value, size_bytes=self._size(entry)))
        if not self._commit:
            self._require_unchanged()
        return DataVersion(path=self._path, md5=self.md5, rev=self._rev, commit=self._commit, tables=tables)

    def copy(self, name: str, target: Path) -> None:
        """Write a file to `target`: a copy, so that nobody can change DVC's cache through it.

        Raises:
            DataError: The bytes are nowhere, or are not those that DVC recorded.
        """
        entry = self.files[name]
        system, place = self._place(entry)
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._reading():
            system.get_file(place, str(target))
        if _hash_info(str(target), kind=entry.hash_info.name) != entry.hash_info:
            raise DataError(
                f"{name} is not what DVC recorded: {place} was changed.",
                "Remove that file and fetch it anew: dvc fetch",
            )

    def local_place(self, name: str) -> str | None:
        """Return where the bytes of a file are, `None` where that is not on this machine."""
        system, place = self._place(self.files[name])
        return place if system.protocol == "local" else None

    def require_all(self) -> None:
        """Raise `DataError` where the bytes of a file are nowhere."""
        for entry in self.files.values():
            self._place(entry)

    def lacks_in_remote(self) -> bool:
        """Tell whether the remote lacks an object; where there is none, or only one to read, it lacks nothing.

        Raises:
            DataError: The remote cannot be read.
        """
        entries = [*self.files.values(), *(self._index[out.index_key[1]] for out in self._outs)]
        with self._reading():
            for entry in entries:
                remote = self._index.storage_map[entry.key].remote
                if remote is not None and not remote.read_only and not remote.exists(entry, refresh=True):
                    return True
        return False

    def _size(self, entry: Any) -> int:
        system, place = self._place(entry)
        with self._reading():
            if (size := system.size(place)) is not None:
                return int(size)
            with system.open(place, "rb") as handle:  # of an import: a directory's listing holds no sizes
                return int(handle.seek(0, os.SEEK_END))

    def _place(self, entry: Any) -> tuple[Any, str]:
        """Return the file system and the path of a file's bytes: in the cache, or else in the remote."""
        storage = self._index.storage_map[entry.key]
        with self._reading():
            for source in filter(None, (storage.cache, storage.remote)):
                if (place := source.get(entry)) and place[0].exists(place[1]):
                    return place[0], place[1]
        raise self._nowhere(f"{'/'.join(entry.key)} (md5 {entry.hash_info.value})")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each file system has its own
            if isinstance(error, OSError) and error.filename and not isinstance(error, ConnectionError):
                raise  # of this machine, such as a full disk
            raise self._unreadable(error) from error

    @property
    def _remote(self) -> str:
        """The remote in words."""
        names = {out.remote or self._repo.config["core"].get("remote") for out in self._outs} - {None}
        if not names:
            return "a remote (none is the default)"
        urls = self._repo.config["remote"]
        addresses = {name: without_secrets(urls.get(name, {}).get("url", "?")) for name in names}
        return ", ".join(f"the remote {name!r} ({addresses[name]})" for name in sorted(names))

    def _unreadable(self, error: BaseException) -> DataError:
        return DataError(f"{self._remote} of DVC cannot be read: {first_line(error)}.", "Look at it: dvc remote list")

    def _nowhere(self, what: str) -> Nowhere:
        return Nowhere(
            f"{what} is neither in DVC's cache nor in {self._remote}.",
            "Run `dvc push` where the data are, or `dvc repro` here.",
        )

    def _require_unchanged(self) -> None:
        """Refuse a workspace whose files are not what DVC recorded; files that are not there are fine."""
        for name, entry in self.files.items():
            file = self._root / self._path / name
            kind = entry.hash_info.name
            if file.is_file() and _hash_info(str(file), kind=kind, state=self._repo.state) != entry.hash_info:
                raise DataError(
                    f"{file} is not what DVC recorded.",
                    "Record it (dvc commit), or bring back what was recorded (dvc checkout).",
                )


def _scm(root: Path) -> Any:
    """Return git as DVC asks it; where a job has a copy of the project without its history, DVC's word for none."""
    from dvc.scm import SCM, SCMError

    try:
        return SCM(str(root))
    except SCMError:
        return SCM(str(root), no_scm=True)


def _hash_info(place: str, system: Any = None, kind: str = "md5", state: Any = None) -> Any:
    """Return DVC's hash of a file, on this machine where no file system is given."""
    from dvc.fs import LocalFileSystem
    from dvc_data.hashfile.hash import hash_file

    return hash_file(place, system or LocalFileSystem(), kind, state=state)[1]
