"""Directories and prefixes of an object store, listed, read and written alike."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from shopfloor.errors import AccessError, ServiceError, ShopfloorError, UsageError, first_line
from shopfloor.settings import Settings
from shopfloor.storage import SCRATCH, file_stamp, filesystem, is_remote, local_path, move_synced


class Listed(NamedTuple):
    """A file as its place lists it."""

    size_bytes: int
    stamp: str
    """Text that another content would not have: an object's ETag; a file's inode and times."""
    changed_s: float = float("inf")
    """Unix time of its last change; where the store does not say, it never was long ago."""


class Place:
    """Files behind a URI, by their names relative to it."""

    def __init__(self, settings: Settings, uri: str, only: str = "", aws_profile: str | None = None) -> None:
        """Remember where it is; nothing is read yet.

        Args:
            settings: Say where the object store is.
            uri: Directory, or `s3://` prefix.
            only: The one name that counts; empty for all.
            aws_profile: Of AWS's configuration files, where the prefix is in another object store than the stack's.
        """
        self.uri = uri.rstrip("/")
        self._settings, self._only, self._aws_profile = settings, only, aws_profile

    def within(self, folder: str) -> Place:
        """Return a directory of the place as a place of its own."""
        return Place(self._settings, f"{self.uri}/{folder}", aws_profile=self._aws_profile)

    @property
    def directory(self) -> Path | None:
        """Directory on this machine; `None` for an object store's prefix."""
        return None if is_remote(self.uri) else local_path(self.uri)

    @property
    def drafts(self) -> Path:
        """Directory whose files get into the place by a rename, or are sent there.

        Raises:
            UsageError: It cannot be made or written.
        """
        place = self.directory or self._settings.private_state_dir()
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{place} cannot be made: {error.strerror}.", "Name another directory.") from error
        if not os.access(place, os.W_OK):
            raise UsageError(f"{place} cannot be written.", "Name another directory, or mend its permissions.")
        return place

    def files(self) -> dict[str, Listed]:
        """Return what is there, by name; drafts of writers are left out.

        Raises:
            ServiceError: The object store does not answer, or refuses.
        """
        listed = _files_in(self.directory) if self.directory else self._objects()
        return {
            name: file
            for name, file in listed
            if (not self._only or name == self._only) and not name.startswith(SCRATCH)
        }

    def fetch(self, name: str, target: Path) -> str:
        """Copy a file to a local one, and return the SHA-256 of what came.

        Raises:
            FileNotFoundError: It is not there.
            ServiceError: The object store does not answer, or refuses.
            AccessError: This account may not read the file.
        """
        if self.directory:
            try:
                shutil.copyfile(self.directory / name, target)
            except PermissionError as error:
                raise _unreadable(error) from error
        else:
            with self._answering():
                self._system.get_file(f"{self._prefix}/{name}", str(target))
        return sha256(target)

    def read(self, name: str) -> bytes:
        """Return the content of a small file. See `fetch` for the errors."""
        if self.directory:
            return (self.directory / name).read_bytes()
        with self._answering():
            return bytes(self._system.cat_file(f"{self._prefix}/{name}"))

    def sha256(self, name: str, drafts: Path) -> str:
        """Return the SHA-256 of a file; an object comes into the directory `drafts` first. See `fetch`."""
        if self.directory:
            return sha256(self.directory / name)
        draft = drafts / hashlib.sha256(name.encode()).hexdigest()
        try:
            return self.fetch(name, draft)
        finally:
            draft.unlink(missing_ok=True)

    def put(self, file: Path, name: str) -> None:
        """Move a local file into the place, complete or not at all, and return when it would outlast a power cut.

        Raises:
            ServiceError: The object store does not answer, or refuses.
        """
        if self.directory:
            target = self.directory / name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if target.parent.stat().st_dev == file.stat().st_dev:
                move_synced(file, target)
            else:
                shutil.move(file, target)
            return
        with self._answering():
            self._system.put_file(str(file), f"{self._prefix}/{name}")
        file.unlink()

    def move(self, name: str, target: str) -> None:
        """Give a file, or a directory with all that is in it, another name in the place; see `fetch` for the errors.

        Args:
            name: Its name.
            target: The new one, which nothing has yet.
        """
        if not self.directory:
            with self._answering():
                source = f"{self._prefix}/{name}"
                paths = self._system.find(source)
                self._system.copy(paths, [f"{self._prefix}/{target}{path.removeprefix(source)}" for path in paths])
                self._system.rm(paths)
            return
        (self.directory / target).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.directory / name).rename(self.directory / target)

    def exists(self, name: str) -> bool:
        """Tell whether there is a file or a directory of this name. See `fetch` for the errors."""
        if self.directory:
            return (self.directory / name).exists()
        with self._answering():
            return bool(self._system.exists(f"{self._prefix}/{name}"))

    def remove(self, name: str) -> None:
        """Remove a file, or a directory with all that is in it. See `fetch` for the errors."""
        if not self.directory:
            with self._answering():
                self._system.rm(f"{self._prefix}/{name}", recursive=True)
        elif (self.directory / name).is_dir():
            shutil.rmtree(self.directory / name)
        else:
            (self.directory / name).unlink()

    def _objects(self) -> Iterator[tuple[str, Listed]]:
        with self._answering():
            try:
                items = self._system.find(self._prefix, detail=True)
            except FileNotFoundError:
                items = {}
        for path, item in items.items():
            name = path.removeprefix(self._prefix).lstrip("/")
            if name and item.get("type") == "file" and not path.endswith("/"):
                etag, changed = item.get("ETag") or item.get("etag") or "", item.get("LastModified")
                time_s = changed.timestamp() if changed else float("inf")
                yield name, Listed(int(item["size"]), str(etag).strip('"'), time_s)

    @cached_property
    def _client(self) -> tuple[Any, str]:
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow import fs

        system, path = filesystem(self._settings, self.uri, self._aws_profile)
        handler = getattr(system, "handler", None)
        return handler.fs if isinstance(handler, fs.FSSpecHandler) else ArrowFSWrapper(system), path.rstrip("/")

    @property
    def _system(self) -> Any:
        return self._client[0]

    @property
    def _prefix(self) -> str:
        return self._client[1]

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, ShopfloorError):
            raise
        except Exception as error:  # each client has its own
            if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | PermissionError):
                raise  # of this machine, such as a full disk
            raise ServiceError(
                f"The object store of {self.uri} does not do it: {first_line(error, 300)}.",
                "See that it answers, and that the AWS variables hold credentials that may use it.",
            ) from error


def _unreadable(error: OSError) -> AccessError:
    return AccessError(
        f"{error.filename} cannot be read: {error.strerror}.", "Do it as the account that the stack runs as."
    )


def _refuse_unreadable(error: OSError) -> None:
    """Let nobody take what a directory hides for what is not there."""
    if isinstance(error, NotADirectoryError):
        raise UsageError(f"{error.filename} is no directory.", "Name one.") from error
    if not isinstance(error, FileNotFoundError):
        raise _unreadable(error) from error


def _files_in(directory: Path) -> Iterator[tuple[str, Listed]]:
    for folder, folders, names in os.walk(directory, onerror=_refuse_unreadable):
        folders[:] = [name for name in folders if not name.startswith(SCRATCH)]
        for file in (Path(folder, name) for name in names):
            with contextlib.suppress(FileNotFoundError):  # gone since
                if file.is_file() and not file.is_symlink():
                    _, size, *rest = file_stamp(file)
                    time_s = max(map(int, rest[-2:])) / 1e9
                    yield file.relative_to(directory).as_posix(), Listed(int(size), "-".join(map(str, rest)), time_s)


def sha256(file: Path) -> str:
    """Return the SHA-256 of a local file."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
