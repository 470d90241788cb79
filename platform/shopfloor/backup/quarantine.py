"""Where what nobody owns waits before it is deleted, in the place that it comes from.

quarantine/<id>/<name>           in each place
quarantine/<id>.json             in the artifact store: what was moved, written before anything is
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from shopfloor.backup.manifest import ID, identify
from shopfloor.backup.places import Place
from shopfloor.backup.sources import ARTIFACTS, QUARANTINE
from shopfloor.backup.units import Unit, names_in
from shopfloor.errors import NotFoundError
from shopfloor.records import Record
from shopfloor.storage import scratch


class Quarantine(Record):
    """Things that were moved together."""

    id: str
    created: dt.datetime
    files: int
    size_bytes: int
    names: dict[str, list[str]]
    """Names of what was moved, by place."""


def quarantines(places: Mapping[str, Place]) -> list[Quarantine]:
    """Return all, the oldest first; a note that cannot be read is none.

    Raises:
        ServiceError: The object store does not answer, or refuses.
    """
    result = []
    folder = places[ARTIFACTS].within(QUARANTINE)
    for name in sorted(folder.files()):
        if ID.fullmatch(name.removesuffix(".json")):
            with contextlib.suppress(ValidationError, FileNotFoundError):
                one = Quarantine.model_validate_json(folder.read(name))
                # Who may write to the store must not choose what is moved elsewhere.
                if all(names_in(kept) == {kept} for names in one.names.values() for kept in names):
                    result.append(one.model_copy(update={"id": name.removesuffix(".json")}))
    return result


def move(places: Mapping[str, Place], moved: Sequence[Unit], drafts: Path) -> Quarantine:
    """Move units into a new quarantine; one that is gone meanwhile is left out.

    Args:
        places: By name.
        moved: What is to be moved, in this order.
        drafts: Directory for the note.

    Raises:
        ServiceError: The object store does not answer, or refuses.
        OSError: The disk refuses; what was moved until then can be brought back.
    """
    created = dt.datetime.now(dt.UTC)
    names: dict[str, list[str]] = {}
    for unit in moved:
        names.setdefault(unit.place, []).append(unit.name)
    files, size_bytes = sum(unit.files for unit in moved), sum(unit.size_bytes for unit in moved)
    draft = Quarantine(id="", created=created, files=files, size_bytes=size_bytes, names=names)
    quarantine = draft.model_copy(update={"id": identify(created, draft.model_dump_json().encode())})
    with scratch(drafts) as folder:
        note = folder / "note"
        note.write_text(quarantine.model_dump_json(indent=1), encoding="utf-8")
        places[ARTIFACTS].put(note, f"{QUARANTINE}/{quarantine.id}.json")
    for unit in moved:
        if places[unit.place].exists(unit.name):
            places[unit.place].move(unit.name, f"{QUARANTINE}/{quarantine.id}/{unit.name}")
    return quarantine


def undo(places: Mapping[str, Place], quarantine_id: str) -> list[str]:
    """Move everything of a quarantine back.

    Args:
        places: By name.
        quarantine_id: Which one.

    Returns:
        Names of what stays in it, as something new has the name or its place is no longer the stack's; empty where the
        quarantine is gone.

    Raises:
        NotFoundError: There is no such quarantine.
        ServiceError: The object store does not answer, or refuses.
    """
    quarantine = next((one for one in quarantines(places) if one.id == quarantine_id), None)
    if quarantine is None:
        raise NotFoundError(f"There is no quarantine {quarantine_id!r}.", "`shopfloor gc list` shows those there are.")
    stays = []
    for place, names in quarantine.names.items():
        if place not in places:  # a remote of DVC that the profile no longer names
            stays += names
            continue
        for name in reversed(names):
            kept = f"{QUARANTINE}/{quarantine.id}/{name}"
            if not places[place].exists(kept):
                continue
            if places[place].exists(name):
                stays.append(name)
            else:
                places[place].move(kept, name)
    if not stays:
        empty(places, quarantine)
    return stays


def empty(places: Mapping[str, Place], quarantine: Quarantine) -> None:
    """Delete a quarantine for good.

    Raises:
        ServiceError: The object store does not answer, or refuses.
    """
    for place in quarantine.names:
        if place in places and places[place].exists(f"{QUARANTINE}/{quarantine.id}"):
            places[place].remove(f"{QUARANTINE}/{quarantine.id}")
    places[ARTIFACTS].remove(f"{QUARANTINE}/{quarantine.id}.json")
