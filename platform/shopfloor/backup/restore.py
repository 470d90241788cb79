"""A backup brought back, into a stack that is empty: every file hashed on its way, the databases last.

A database names files, so it comes after them: cut short, a restore leaves files that nothing names. It is then done
again from the beginning, as nothing is ever written over.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shopfloor.backup import sealing
from shopfloor.backup.manifest import DATABASES, File, Manifest
from shopfloor.backup.sources import FEATURES, TOKENS, Sources, counts, location, model_versions, sources
from shopfloor.backup.store import Store
from shopfloor.errors import ShopfloorError, UsageError
from shopfloor.judging import golden
from shopfloor.judging.golden import Golden
from shopfloor.runs.mlflow import EXTRA_FILES
from shopfloor.settings import Settings
from shopfloor.storage import naming_full_disk, scratch, write_atomically

_AT_ONCE = 8


def restore(
    settings: Settings,
    store: Store,
    manifest: Manifest,
    key: str | None,
    progress: Callable[[str], None],
    dumps: Path | None = None,
) -> None:
    """Bring a backup back, all of it, and look whether its numbers are what they were.

    Into a cluster the databases come back as dumps, which PostgreSQL's own tool loads whole or not at all.

    Args:
        settings: The profile, whose places are empty.
        store: Holds the backup.
        manifest: The backup.
        key: Opens the secrets; `None` leaves those out.
        progress: Hears one line for each thing that takes time.
        dumps: Directory that gets the dumps of a cluster's databases.

    Raises:
        UsageError: The stack is not empty, of another profile, or the key is wrong.
        ShopfloorError: An object is missing or altered, or the disk is full.
        ServiceError: A database or a store does not answer.
    """
    own = sources(settings, dumps)
    _refuse_other(settings, manifest, own)
    secrets = missing_secrets(settings, store, manifest, key)
    if present := holds(own):
        raise UsageError(
            f"The stack is not empty: it holds {', '.join(present)}.",
            "Stop it and move that away, or set SHOPFLOOR_STATE_DIR to a new directory; nothing was changed.",
        )
    for place, text in secrets.items():
        write_atomically(place, text)
    remedy = "Free some space, empty what was restored, and do it again."
    drafts_place = settings.private_state_dir()
    with naming_full_disk(drafts_place, remedy), scratch(drafts_place) as drafts:
        numbers = itertools.count()

        def bring(file: File) -> None:
            draft = drafts / str(next(numbers))
            store.fetch(file, draft)
            own.places[file.place].put(draft, file.name)

        files = [file for file in manifest.files if file.place != DATABASES]
        progress(f"Bringing back {len(files)} files")
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(bring, files))
        progress("Bringing back the databases")
        _put_back(own, store, manifest, drafts)
        if dumps is not None:  # each was hashed on its way, and what it holds is not asked here
            return
        registry = own.databases[0]
        check = drafts / "check"
        registry.copy(check)
        if (present_counts := counts(registry, check)) != manifest.counts:
            raise ShopfloorError(
                f"MLflow's database has {present_counts} after the restore, and had {manifest.counts}.",
                "Look at the disk, and restore another backup.",
            )


def put_back(settings: Settings, store: Store, manifest: Manifest) -> None:
    """Make the databases and Feast's registry again what they were; files that have come since stay.

    Args:
        settings: The profile; nobody writes to its databases.
        store: Holds the backup.
        manifest: The backup.

    Raises:
        ShopfloorError: An object is missing or altered, or the disk is full: no database was changed.
        ServiceError: A database does not answer.
    """
    own, place = sources(settings), settings.private_state_dir()
    _refuse_other(settings, manifest, own)
    with naming_full_disk(place, "Free some space, and do it again."), scratch(place) as drafts:
        _put_back(own, store, manifest, drafts, (FEATURES,))


def holds(own: Sources) -> list[str]:
    """Return in words what a profile keeps already, of each place and database that is not empty."""
    databases = [present for database in own.databases if (present := database.holds())]
    places = [(place, own.files(name)) for name, place in own.places.items()]
    return databases + [f"{len(files)} files in {place.uri}" for place, files in places if files]


def missing_secrets(settings: Settings, store: Store, manifest: Manifest, key: str | None) -> dict[Path, str]:
    """Return the secrets of a backup that are not where the profile has them, by their file.

    Args:
        settings: The profile.
        store: Holds the backup.
        manifest: The backup.
        key: Opens the secrets; `None` leaves them out.

    Raises:
        UsageError: The key is wrong, or there is another secret already.
        ShopfloorError: The sealed file is missing or altered.
    """
    if manifest.sealed is None or key is None:
        return {}
    with scratch(settings.private_state_dir()) as drafts:
        store.fetch(manifest.sealed, drafts / "sealed")
        values = sealing.unseal((drafts / "sealed").read_bytes(), key)
    if settings.secrets_dir:
        files = {Path(settings.secrets_dir) / name: text for name, text in values.items()}
    else:
        tokens = settings.serve_tokens_file
        files = {Path(tokens): values[TOKENS]} if tokens and TOKENS in values else {}
    for file, text in files.items():
        if file.is_file() and file.read_text(encoding="utf-8") != text:
            raise UsageError(
                f"The secret {file} is another one than that of the backup.",
                "Move it away, or leave the key out to keep it; nothing was changed.",
            )
    return {file: text for file, text in files.items() if not file.is_file()}


def golden_requests(settings: Settings, store: Store, manifest: Manifest, model: str, version: str) -> Golden | None:
    """Return the golden requests of a version as the backup has them; `None` where it has none.

    Args:
        settings: Say where drafts go.
        store: Holds the backup.
        manifest: The backup.
        model: Name of the registered model.
        version: Its version.

    Raises:
        ShopfloorError: They are missing or altered.
    """
    registry = sources(settings).databases[0]
    with scratch(settings.private_state_dir()) as drafts:
        copy = drafts / "registry"
        store.fetch(_file(manifest, DATABASES, registry.name), copy)
        where = location(model_versions(registry, copy).get(f"{model}/{version}", ""), manifest.places)
        if where is None:
            return None
        names = {(file.place, file.name): file for file in manifest.files}
        file = names.get((where[0], f"{where[1]}{EXTRA_FILES}/{golden.FILE}"))
        if file is None:
            return None
        (drafts / EXTRA_FILES).mkdir()
        store.fetch(file, drafts / EXTRA_FILES / golden.FILE)
        return golden.read(drafts)


def _put_back(own: Sources, store: Store, manifest: Manifest, drafts: Path, places: tuple[str, ...] = ()) -> None:
    """Replace the databases, and the files of these places, once all of them have come out of the store."""
    files = [file for file in manifest.files if file.place in (DATABASES, *places)]
    copies = {(file.place, file.name): drafts / f"database-{number}" for number, file in enumerate(files)}
    for file in files:
        store.fetch(file, copies[file.place, file.name])
    for database in own.databases:
        database.restore(copies[DATABASES, database.name])
    for file in files:
        if file.place != DATABASES:
            own.places[file.place].put(copies[file.place, file.name], file.name)


def _file(manifest: Manifest, place: str, name: str) -> File:
    return next(file for file in manifest.files if (file.place, file.name) == (place, name))


def _refuse_other(settings: Settings, manifest: Manifest, own: Sources) -> None:
    """Refuse a backup whose parts this profile has no place for."""
    names = {file.name for file in manifest.files if file.place == DATABASES}
    unknown = {file.place for file in manifest.files} - {DATABASES, *own.places}
    if unknown or names != {database.name for database in own.databases}:
        raise UsageError(
            f"The backup is of profile {manifest.profile!r}, and {settings.profile!r} keeps other things.",
            f"Restore it with --profile {manifest.profile}.",
        )
