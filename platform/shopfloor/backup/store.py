"""A store of backups: objects named after their content, and one manifest a backup, written last.

    objects/ab/<sha256>
    backups/<id>.json

An object that is there is never written again. A backup that is cut short leaves objects that no manifest names, and
the next one uses them; only `prune` removes anything.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from shopfloor.backup.manifest import ID, File, Manifest, created_of, identify, parse
from shopfloor.backup.places import Listed, Place
from shopfloor.errors import ConflictError, NotFoundError, ShopfloorError, UsageError
from shopfloor.records import Record
from shopfloor.settings import Settings
from shopfloor.storage import is_remote, scratch

LATEST = "latest"
_OBJECTS, _BACKUPS = "objects/", "backups/"


class Summary(Record):
    """A backup in a list."""

    id: str
    created: dt.datetime
    age_s: float
    files: int = 0
    size_bytes: int = 0
    """Bytes of all its files; what other backups hold too lies in the store once."""
    counts: dict[str, int] = {}
    """Numbers of runs, versions and aliases."""
    secrets: bool = False
    """Whether it holds the secrets, sealed."""
    problem: str = ""
    """Reason why it cannot be used."""


class Verified(Record):
    """A backup that was read again."""

    id: str
    files: int
    """Number of files that were read."""
    problems: list[str]
    """Each file that is missing or altered, in words."""


class Store:
    """A directory, or a prefix of an object store, that holds backups."""

    def __init__(self, settings: Settings, uri: str, new: bool = False) -> None:
        """Look at what is there.

        Args:
            settings: Say where the object store is.
            uri: Directory or `s3://` prefix.
            new: Whether an empty one will do.

        Raises:
            NotFoundError: Nothing is there.
            UsageError: Something else than backups is there, or it is in what is copied.
            ServiceError: The object store does not answer, or refuses.
        """
        if settings.in_containers and is_remote(uri) and settings.backup_aws_profile is None:
            raise UsageError(
                f"{uri} would be in the object store that is copied, and lost with it.",
                "Name a directory; or another object store, with SHOPFLOOR_BACKUP_AWS_PROFILE.",
            )
        self.place = Place(settings, uri, aws_profile=settings.backup_aws_profile)
        self._drafts = settings.private_state_dir()
        self._lock_file = settings.private_dir("locks") / "backup.lock"
        names = self.place.files()
        foreign = [name for name in names if not name.startswith((_OBJECTS, _BACKUPS))]
        if foreign:
            raise UsageError(f"{uri} is no store of backups: it holds {foreign[0]}.", "Name a directory of its own.")
        if not names and not new:
            raise NotFoundError(f"There are no backups in {uri}.", "Make one: shopfloor backup create")
        self._sizes = {
            name.rpartition("/")[2]: listed.size_bytes for name, listed in names.items() if name.startswith(_OBJECTS)
        }
        stems = [name.removeprefix(_BACKUPS).removesuffix(".json") for name in names if name.startswith(_BACKUPS)]
        self._lock = threading.Lock()
        self.ids = sorted(stem for stem in stems if ID.fullmatch(stem))
        """Ids of the backups, the oldest first."""

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other process of this stack write to a store or prune one meanwhile.

        Raises:
            ConflictError: One does.
        """
        from filelock import FileLock, Timeout

        try:
            with FileLock(self._lock_file, timeout=0, mode=0o600):
                yield
        except Timeout:
            raise ConflictError(
                "Another backup of this stack is being made, or old ones removed.", "Wait until that has ended."
            ) from None

    def has(self, file: File) -> bool:
        """Tell whether the object of a file is there, in its whole size."""
        return self._sizes.get(file.sha256) == file.size_bytes

    def put(self, draft: Path, sha256: str) -> bool:
        """Move a file into the store; tells whether it was new there."""
        size_bytes = draft.stat().st_size
        with self._lock:
            known = self._sizes.get(sha256) == size_bytes
            self._sizes[sha256] = size_bytes
        if known:
            draft.unlink()
        else:
            self.place.put(draft, _object(sha256))
        return not known

    def fetch(self, file: File, target: Path) -> None:
        """Copy the content of a file to a local one.

        Raises:
            ShopfloorError: The object is missing or altered.
        """
        try:
            content = self.place.fetch(_object(file.sha256), target)
        except FileNotFoundError:
            content = ""
        if content != file.sha256:
            target.unlink(missing_ok=True)
            raise ShopfloorError(
                f"{file.place}/{file.name} of the backup is {'altered' if content else 'missing'}.",
                "`shopfloor backup verify` names every such file; another backup may hold it.",
            )

    def verify(self, backup_id: str) -> Verified:
        """Read every object of a backup, and return which files of it are missing or altered; see `read`."""
        from concurrent.futures import ThreadPoolExecutor

        name, manifest = self.read(backup_id)
        files = manifest.contents()
        with scratch(self._drafts) as drafts, ThreadPoolExecutor(8) as pool:

            def content(sha256: str) -> str:
                try:
                    return self.place.sha256(_object(sha256), drafts)
                except FileNotFoundError:
                    return ""

            hashes = sorted({file.sha256 for file in files})
            contents = dict(zip(hashes, pool.map(content, hashes), strict=True))
        problems = [
            f"{file.place}/{file.name} is {'altered' if contents[file.sha256] else 'missing'}"
            for file in files
            if contents[file.sha256] != file.sha256
        ]
        return Verified(id=name, files=len(files), problems=problems)

    def write(self, manifest: Manifest) -> str:
        """Write the manifest, which makes a backup of the objects, and return its id."""
        content = manifest.model_dump_json(indent=1).encode()
        backup_id = identify(manifest.created, content)
        with scratch(self.place.drafts) as drafts:
            draft = drafts / "manifest"
            draft.write_bytes(content)
            self.place.put(draft, f"{_BACKUPS}{backup_id}.json")
        self.ids.append(backup_id)
        return backup_id

    def read(self, backup_id: str = LATEST) -> tuple[str, Manifest]:
        """Return a backup and its id.

        Args:
            backup_id: Or its beginning, or `latest`.

        Raises:
            NotFoundError: There is no such backup.
            ShopfloorError: Its manifest was altered.
        """
        ids = self.ids[-1:] if backup_id == LATEST else [name for name in self.ids if name.startswith(backup_id)]
        if len(ids) != 1:
            which = "names several backups" if ids else "names no backup"
            raise NotFoundError(
                f"{backup_id!r} {which} in {self.place.uri}.", "`shopfloor backup list` shows what there is."
            )
        return ids[0], parse(ids[0], self.place.read(f"{_BACKUPS}{ids[0]}.json"))

    def newest(self, places: dict[str, str]) -> Manifest | None:
        """Return the newest backup of the same places that can be read."""
        for backup_id in reversed(self.ids):
            try:
                _, manifest = self.read(backup_id)
            except ShopfloorError:
                continue
            if manifest.places == places:
                return manifest
        return None

    def objects(self) -> dict[str, Listed]:
        """Return what the store holds now, by the hash of its content."""
        names = self.place.files()
        return {name.rpartition("/")[2]: listed for name, listed in names.items() if name.startswith(_OBJECTS)}

    def remove(self, backup_ids: Iterable[str], objects: Iterable[str]) -> None:
        """Remove backups for good, and then objects, which none of the others may name.

        Args:
            backup_ids: Whole ids.
            objects: Hashes of their contents.
        """
        from concurrent.futures import ThreadPoolExecutor

        for backup_id in backup_ids:
            self.place.remove(f"{_BACKUPS}{backup_id}.json")
            self.ids.remove(backup_id)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda sha256: self.place.remove(_object(sha256)), objects))

    def summaries(self) -> list[Summary]:
        """Return all backups, the newest first; of one that was altered, that it was."""
        now, rows = dt.datetime.now(dt.UTC), []
        for backup_id in reversed(self.ids):
            created = created_of(backup_id)
            row = Summary(id=backup_id, created=created, age_s=(now - created).total_seconds())
            try:
                _, manifest = self.read(backup_id)
            except ShopfloorError as error:
                rows.append(row.model_copy(update={"problem": error.message}))
                continue
            numbers = {
                "files": len(manifest.contents()),
                "size_bytes": manifest.size_bytes,
                "counts": manifest.counts,
                "secrets": manifest.sealed is not None,
            }
            rows.append(row.model_copy(update=numbers))
        return rows


def _object(sha256: str) -> str:
    return f"{_OBJECTS}{sha256[:2]}/{sha256}"
