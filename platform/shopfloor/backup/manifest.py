"""What a backup is: one JSON document that names every file of it, by its place and the hash of its content.

Its id ends in the hash of the document's own bytes, so that an altered one is no longer the backup that it is named.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Literal

from pydantic import ValidationError, field_validator

from shopfloor.backup.places import Listed
from shopfloor.errors import ShopfloorError, UsageError
from shopfloor.records import Record

ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{12}")
DATABASES = "databases"
"""Place of the copies of databases, each a file."""


class File(Record):
    """A file of a backup."""

    place: str
    """Name of the place that it is in, or `databases`."""
    name: str
    """Path relative to the place."""
    sha256: str
    size_bytes: int
    stamp: str = ""
    """Text that told whether it had changed when it was copied."""

    @field_validator("name")
    @classmethod
    def _inside(cls, value: str) -> str:
        """Refuse what would be written elsewhere when it is restored."""
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in value:
            raise ValueError(f"{value!r} is no name within a place")
        return value

    @field_validator("sha256")
    @classmethod
    def _hash(cls, value: str) -> str:
        if not re.fullmatch("[0-9a-f]{64}", value):
            raise ValueError(f"{value!r} is no SHA-256")
        return value


class Manifest(Record):
    """A backup."""

    format: Literal[1] = 1
    created: dt.datetime
    """Moment of which the data are: just before the first database was copied."""
    profile: str
    places: dict[str, str]
    """URI of each place when it was copied, by its name."""
    files: list[File]
    counts: dict[str, int]
    """Numbers of runs, versions and aliases, as the copy of MLflow's database has them."""
    sealed: File | None = None
    """The secrets, under the operator's key; `None` where no key was given or there are none."""
    left_out: list[str] = []
    """What the backup does not hold, and where it is, in words."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, also of those that other backups hold."""
        return sum(file.size_bytes for file in self.contents())

    def contents(self) -> list[File]:
        """Return all files, the sealed one too."""
        return [*self.files, *([self.sealed] if self.sealed else [])]


class Changes(Record):
    """What of a listing an earlier backup has already."""

    known: list[File]
    """Files that are as they were."""
    new: list[str]
    """Names of those that are to be read."""


def changes(place: str, listing: Mapping[str, Listed], before: Iterable[File]) -> Changes:
    """Compare what a place lists with what a backup has of it.

    Args:
        place: Its name.
        listing: Size and stamp of each file, by its name.
        before: Files of the earlier backup whose objects are in the store still.
    """
    earlier = {file.name: file for file in before if file.place == place and file.stamp}
    known, new = [], []
    for name, listed in sorted(listing.items()):
        file = earlier.get(name)
        if file is not None and (file.size_bytes, file.stamp) == (listed.size_bytes, listed.stamp):
            known.append(file)
        else:
            new.append(name)
    return Changes(known=known, new=new)


def identify(created: dt.datetime, content: bytes) -> str:
    """Return the id of the backup whose document this is."""
    return f"{created.astimezone(dt.UTC):%Y%m%dT%H%M%SZ}-{hashlib.sha256(content).hexdigest()[:12]}"


def created_of(backup_id: str) -> dt.datetime:
    """Return the moment that an id names, to the second."""
    return dt.datetime.strptime(backup_id.partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)


def parse(backup_id: str, content: bytes) -> Manifest:
    """Return the backup that a document describes.

    Raises:
        ShopfloorError: It is not the document that got this id.
        UsageError: It is, and of a later version of Shopfloor.
    """
    if hashlib.sha256(content).hexdigest()[:12] != backup_id.rpartition("-")[2]:
        raise ShopfloorError(
            f"The manifest of backup {backup_id} was altered.", "Use another backup: shopfloor backup list"
        )
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"The manifest of backup {backup_id} cannot be read: {where}: {first['msg']}.",
            "Read it with the version of Shopfloor that made it.",
        ) from error
