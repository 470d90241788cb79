"""What a profile keeps that nobody owns: shown, moved into a quarantine, brought back.

All owners are asked first, and one that does not answer ends the command: what is not known to be free is kept. Runs
look results up and then read what these point at, so that while one goes on it owns everything in the artifact store.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from shopfloor.backup import quarantine
from shopfloor.backup.places import Place
from shopfloor.backup.quarantine import Quarantine
from shopfloor.backup.sources import ARTIFACTS, DATA, sources
from shopfloor.backup.units import (
    FEATURES,
    RESULTS,
    Unit,
    mark,
    names_in,
    objects,
    units,
    with_content,
)
from shopfloor.data.objects import needed
from shopfloor.errors import ConflictError, NotFoundError, UsageError
from shopfloor.flows.runs import refresh
from shopfloor.records import Passport, Record
from shopfloor.registry.passport import find_passport
from shopfloor.runs.mlflow import PARENT, connect, lookup
from shopfloor.serving.assignment import SUFFIX
from shopfloor.settings import EMBEDDED, Settings
from shopfloor.storage import naming_full_disk

_AT_ONCE = 16
_LEFT_ALONE = (
    "predictions and feedback, which serving.log_days and serving.log_max_gb limit",
    "runs and versions that are deleted in MLflow, which `mlflow gc` removes",
    "the cache of DVC in this clone, which `dvc gc` removes",
)
_IMAGES = "images and what builds left, which `docker image prune` and `docker builder prune` remove"


class Share(Record):
    """What one owner keeps of one kind."""

    kind: str
    owner: str
    """Name of the owner in words; empty for what nobody owns."""
    files: int = 0
    size_bytes: int = 0


class Sweep(Record):
    """What was looked through."""

    shares: list[Share]
    left_alone: list[str]
    """What was not looked at, in words."""
    quarantine: str | None = None
    """Id of the quarantine that has now what nobody owned."""


def sweep(settings: Settings, older_than: dt.timedelta, apply: bool = False) -> Sweep:
    """Say who keeps what, and move what nobody owns into a quarantine.

    Args:
        settings: The profile.
        older_than: What changed within this time is kept.
        apply: Whether to move anything.

    Raises:
        UsageError: Schedules that nobody can ask for own things in this profile.
        ServiceError: An owner does not answer.
        ConflictError: Another process frees space, or a run began meanwhile; then everything is as it was.
    """
    places = _places(settings)
    with _alone(settings):
        began_s = time.time()
        client = connect(settings)
        refresh(settings, client)  # a run that died with its engine goes on in the record only
        going_on = _going_on(client)  # before anything is listed: a later run is noticed when all is moved
        left_alone = list(_LEFT_ALONE)
        own = sources(settings)
        known = units({name: own.files(name) for name in places})
        feature_text = _feature_definitions(own.places.get("features"))
        if feature_text is None:
            known = {name: unit for name, unit in known.items() if unit.kind != FEATURES}
            left_alone.append("sources of features, as Feast's registry is a database")
        if DATA not in places:
            left_alone.append("data versions, as DVC's remote is not this stack's own")
        if settings.profile != EMBEDDED:
            left_alone.append(_IMAGES)
        others = {
            "what is new": {
                name for name, unit in known.items() if unit.changed_s >= began_s - older_than.total_seconds()
            },
            "runs that go on": {name for name, unit in known.items() if going_on and unit.place == ARTIFACTS},
            "definitions of features": names_in(feature_text or ""),
        }
        owners = _owners(settings, client, places, known, others)
        owner_of = mark(known, owners)
        shares: dict[tuple[str, str], Share] = {}
        for name, unit in known.items():
            key = (unit.kind, owner_of[name])
            share = shares.get(key) or Share(kind=unit.kind, owner=owner_of[name])
            files, size_bytes = share.files + unit.files, share.size_bytes + unit.size_bytes
            shares[key] = share.model_copy(update={"files": files, "size_bytes": size_bytes})
        free = sorted(
            (unit for name, unit in known.items() if not owner_of[name]), key=lambda unit: unit.kind != RESULTS
        )
        result = Sweep(shares=[shares[key] for key in sorted(shares)], left_alone=left_alone)
        if not apply or not free:
            return result
        state_dir = settings.private_state_dir()
        with naming_full_disk(state_dir, "Delete a log in it: the note of what is moved needs some space itself."):
            moved = quarantine.move(places, free, state_dir)
        if _began(client, began_s):
            quarantine.undo(places, moved.id)
            raise ConflictError(
                "A run began meanwhile, so everything was brought back.", "Do it again when it is over."
            )
        return result.model_copy(update={"quarantine": moved.id})


def quarantines(settings: Settings) -> list[Quarantine]:
    """Return what can be brought back, the oldest first. See `sweep` for the errors."""
    return quarantine.quarantines(_places(settings))


def undo(settings: Settings, quarantine_id: str) -> list[str]:
    """Bring a quarantine back, and return the names of what stays in it, as something new has the name.

    Raises:
        NotFoundError: There is no such quarantine.
        ServiceError: The object store does not answer.
        ConflictError: Another process frees space.
    """
    with _alone(settings):
        return quarantine.undo(_places(settings), quarantine_id)


def empty(settings: Settings, chosen: list[Quarantine]) -> None:
    """Delete quarantines for good. See `undo` for the errors."""
    with _alone(settings):
        for one in chosen:
            quarantine.empty(_places(settings), one)


def _places(settings: Settings) -> dict[str, Place]:
    if settings.profile != EMBEDDED and not settings.in_containers:
        raise UsageError(
            f"Schedules of Argo or Kubeflow own things in profile {settings.profile!r}, and cannot be asked for them.",
            "This command frees space of the embedded stack, and of that of docker-compose.yml.",
        )
    places = {name: place for name, place in sources(settings).places.items() if name in {ARTIFACTS, DATA}}
    directory = places[DATA].directory if DATA in places else None
    if directory and not settings.data_remote:  # a directory elsewhere may be the remote of other projects too
        own = (settings.project_root.resolve(), settings.state_dir.resolve())
        if not any(directory.resolve().is_relative_to(place) for place in own):
            del places[DATA]
    return places


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    with (settings.private_state_dir() / "gc.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                "Another process frees space at this moment.", "Do it again when it is done."
            ) from error
        yield


def _owners(
    settings: Settings,
    client: Any,
    places: Mapping[str, Place],
    known: Mapping[str, Unit],
    others: Mapping[str, set[str]],
) -> dict[str, set[str]]:
    """Return what each owner keeps, the most important first; after those that are asked here come the others."""
    results = {name for name, unit in known.items() if unit.kind == RESULTS}
    versions, endpoints, passports, run_ids = _registered(client)
    owners: dict[str, set[str]] = {
        "live endpoints": names_in(endpoints),
        "model versions": names_in(versions) | with_content(known, _contents(passports)),
    }
    if DATA in places:
        owners["git"] = set(objects(needed(settings)))
        owners["model versions"] |= set(objects(_data_of(places[DATA], passports)))
    owners |= others
    # A result keeps what it points at for as long as anybody keeps it, or a step's next run would find it.
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        entries = dict(zip(results, pool.map(lambda name: _text(places[ARTIFACTS], name), results), strict=True))
    owners["model versions"] |= {name for name, text in entries.items() if _run_id(text) in run_ids}
    owners["newest results of steps"] = _newest(places[ARTIFACTS].within("results/latest"))
    kept = [entries[name] for name, owner in mark(results, owners).items() if owner]
    owners["stored results"] = names_in("\n".join(kept))
    return owners


def _registered(client: Any) -> tuple[str, str, list[Passport], set[str]]:
    """Return what MLflow says of all versions and of all endpoints, the passports, and the runs that made versions."""
    versions, endpoints, passports, run_ids = [], [], [], set()
    with lookup(client):
        for version in _pages(client.search_model_versions, max_results=1000):
            text = json.dumps([version.source, version.tags])
            if version.name.endswith(SUFFIX):
                endpoints.append(text)
                continue
            versions.append(text)
            if version.run_id:
                with contextlib.suppress(NotFoundError), lookup(client):  # `mlflow gc` may have removed the run
                    run = client.get_run(version.run_id)
                    run_ids |= {version.run_id, run.data.tags.get(PARENT, version.run_id)}
                    versions.append(json.dumps([run.data.tags, run.data.params]))
                if passport := find_passport(client, version.run_id):
                    passports.append(passport)
                    run_ids |= {passport.run_id, *passport.step_run_ids.values()}
    return "\n".join(versions), "\n".join(endpoints), passports, run_ids


def _pages(search: Any, **options: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(page_token=token, **options)
        yield from page
        token = page.token
        if not token:
            return


def _going_on(client: Any) -> bool:
    return _has_run(client, "attributes.status = 'RUNNING'") or _has_run(client, "attributes.status = 'SCHEDULED'")


def _began(client: Any, since_s: float) -> bool:
    return _has_run(client, f"attributes.start_time >= {int(since_s * 1000)}")


def _has_run(client: Any, condition: str) -> bool:
    with lookup(client):
        experiments = [one.experiment_id for one in _pages(client.search_experiments, max_results=1000)]
        return bool(experiments) and bool(client.search_runs(experiments, condition, max_results=1))


def _contents(passports: list[Passport]) -> set[str]:
    return {value for passport in passports for value in (*passport.content_hashes.values(), passport.model_hash)}


def _data_of(place: Place, passports: list[Passport]) -> set[str]:
    """Return the hashes of the objects of the data versions that passports name, whatever git still knows."""
    versions = [passport.data for passport in passports if passport.data]
    hashes = {version.md5 for version in versions}
    listed = set()
    for name in objects(hashes):
        if name.endswith(".dir") and (text := _text(place, name)):
            listed |= {entry["md5"] for entry in json.loads(text)}
    return hashes | listed | {table.md5 for version in versions for table in version.tables}


def _feature_definitions(place: Place | None) -> str | None:
    """Return Feast's registry as text, in which addresses stand as they are; `None` where it is a database."""
    if place is None:
        return None
    return "\n".join(_text(place, name) for name in place.files())


def _newest(latest: Place) -> set[str]:
    """Return the results that a step last had for a use case."""
    keys = [json.loads(_text(latest, name) or "{}").get("key", "") for name in latest.files()]
    return {f"results/{key[:2]}/{key}.json" for key in keys}


def _text(place: Place, name: str) -> str:
    """Return the content of a file, empty where it is gone."""
    try:
        return place.read(name).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _run_id(entry: str) -> str:
    """Return the run that made a stored result; empty where it does not say."""
    try:
        return str(json.loads(entry).get("run_id") or "")
    except (json.JSONDecodeError, AttributeError):
        return ""
