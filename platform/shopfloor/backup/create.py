"""A new backup: databases first, then files, then the look whether every model has its files, then the manifest.

A version's files are in the artifact store before the registry names it. So a copy of the files that is made after the
copy of the registry lacks nothing that it names, while everybody works on.
"""

from __future__ import annotations

import datetime as dt
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shopfloor.backup import sealing
from shopfloor.backup.manifest import DATABASES, File, Manifest, changes
from shopfloor.backup.places import sha256
from shopfloor.backup.sources import Sources, counts, model_versions, require_complete, sources
from shopfloor.backup.store import Store
from shopfloor.errors import UsageError
from shopfloor.records import Record
from shopfloor.settings import Settings
from shopfloor.storage import is_remote, join, local_path, naming_full_disk, scratch

SECRETS = "secrets"
"""Place of the sealed secrets."""
_AT_ONCE = 8


class Created(Record):
    """A backup that was made."""

    id: str
    created: dt.datetime
    """Moment of which the data are."""
    files: int
    size_bytes: int
    """Bytes of all its files."""
    new_objects: int
    """Number of contents that the store did not have."""
    new_bytes: int
    """Bytes of those."""
    counts: dict[str, int]
    """Numbers of runs, versions and aliases."""
    secrets: bool
    """Whether it holds the secrets, sealed."""
    left_out: list[str]
    """What it does not hold, in words."""
    seconds: float


def create(
    settings: Settings,
    store_uri: str,
    key: str | None,
    progress: Callable[[str], None] = lambda _: None,
    dumps: Path | None = None,
) -> Created:
    """Copy what a profile keeps into a store; what the store has already is neither read nor written again.

    Args:
        settings: The profile.
        store_uri: Directory or `s3://` prefix of the store; made where it is not there.
        key: Seals the secrets; `None` leaves them out.
        progress: Hears one line for each thing that takes time.
        dumps: Directory of the dumps of a cluster's databases.

    Raises:
        UsageError: The store is something else, or lies in what is copied; or somebody else backs this profile up.
        ConflictError: Another backup is being made.
        ServiceError: A database or a store does not answer.
        ShopfloorError: The disk is full, or a model version has no files.
    """
    began = time.monotonic()
    own = sources(settings, dumps)
    _refuse_inside(store_uri, own)
    store = Store(settings, store_uri, new=True)
    places = {name: place.uri for name, place in own.places.items()}
    before = store.newest(places)
    remedy = "Free some space, then do it again: the backups before are untouched."
    with store.alone(), naming_full_disk(store.place.drafts, remedy), scratch(store.place.drafts) as drafts:
        copier = _Copier(store, own, drafts)
        created = dt.datetime.now(dt.UTC)
        progress("Copying the databases")
        copies = copier.databases()
        registry = own.databases[0]
        versions = model_versions(registry, copies[registry.name])
        numbers = counts(registry, copies[registry.name])
        files = [copier.keep(DATABASES, name, copy, sha256(copy)) for name, copy in copies.items()]
        for name in own.places:
            files += copier.files(name, before, progress)
        manifest = Manifest(
            created=created, profile=settings.profile, places=places, files=files, counts=numbers, left_out=own.left_out
        )
        elsewhere = require_complete(versions, manifest)
        manifest = manifest.model_copy(
            update={
                "sealed": copier.sealed(key, before) if key else None,
                "left_out": [*own.left_out, *elsewhere, *_unsealed(own, key)],
            }
        )
        backup_id = store.write(manifest)
    return Created(
        id=backup_id,
        created=created,
        files=len(manifest.contents()),
        size_bytes=manifest.size_bytes,
        new_objects=len(copier.new),
        new_bytes=sum(copier.new),
        counts=numbers,
        secrets=manifest.sealed is not None,
        left_out=manifest.left_out,
        seconds=time.monotonic() - began,
    )


class _Copier:
    """Brings files into a store, and remembers what was new there."""

    def __init__(self, store: Store, own: Sources, drafts: Path) -> None:
        self.new: list[int] = []
        """Sizes of the objects that the store did not have."""
        self._store, self._own, self._drafts = store, own, drafts
        self._numbers = itertools.count()

    def databases(self) -> dict[str, Path]:
        """Copy the databases into drafts, one after the other, and return these by name."""
        copies = {database: self._draft() for database in self._own.databases}
        for database, copy in copies.items():
            database.copy(copy)
        return {database.name: copy for database, copy in copies.items()}

    def files(self, place: str, before: Manifest | None, progress: Callable[[str], None]) -> list[File]:
        """Return the files of a place, after those that are new have come into the store."""
        listing = self._own.files(place)
        known = [file for file in before.files if self._store.has(file)] if before else []
        difference = changes(place, listing, known)
        if difference.new:
            progress(f"Copying {len(difference.new)} files of {place}, {len(difference.known)} are known")

        def copy(name: str) -> File | None:
            draft = self._draft()
            try:
                content = self._own.places[place].fetch(name, draft)
            except FileNotFoundError:  # gone since it was listed
                return None
            return self.keep(place, name, draft, content, listing[name].stamp)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            copied = list(pool.map(copy, difference.new))
        return [*difference.known, *(file for file in copied if file)]

    def keep(self, place: str, name: str, draft: Path, content: str, stamp: str = "") -> File:
        """Move a draft into the store."""
        size_bytes = draft.stat().st_size
        if self._store.put(draft, content):
            self.new.append(size_bytes)
        return File(place=place, name=name, sha256=content, size_bytes=size_bytes, stamp=stamp)

    def sealed(self, key: str, before: Manifest | None) -> File | None:
        """Return the sealed secrets: those of the last backup where they are the same under the same key."""
        values = {name: file.read_text(encoding="utf-8") for name, file in self._own.secrets.items()}
        if not values:
            return None
        draft = self._draft()
        if before and before.sealed and self._store.has(before.sealed):
            self._store.fetch(before.sealed, draft)
            try:
                if sealing.unseal(draft.read_bytes(), key) == values:
                    return before.sealed
            except UsageError:  # sealed under another key
                pass
        draft.write_bytes(sealing.seal(values, key))
        return self.keep(SECRETS, "sealed", draft, sha256(draft))

    def _draft(self) -> Path:
        return self._drafts / str(next(self._numbers))


def _unsealed(own: Sources, key: str | None) -> list[str]:
    return (
        [f"the secrets {', '.join(own.secrets)}, as no key was given to seal them"] if own.secrets and not key else []
    )


def _refuse_inside(store_uri: str, own: Sources) -> None:
    """Refuse a store that would be part of what is copied into it."""
    for name, place in own.places.items():
        inner, outer = store_uri, place.uri
        if not is_remote(store_uri) and not is_remote(place.uri):
            inner, outer = str(local_path(store_uri).resolve()), str(local_path(place.uri).resolve())
        if join(inner, "").startswith(join(outer, "")):
            raise UsageError(f"The store {store_uri} lies in {place.uri}, which is copied ({name}).", "Name another.")
