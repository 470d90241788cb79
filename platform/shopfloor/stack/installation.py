"""Compares what is installed with the lock, and the installed packages with what each of them asks for.

Reads the packages' metadata only; nothing is imported or changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from shopfloor.records import Record

_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)\s*(?:;\s*([^\\]+))?")


class Drift(Record):
    """A package that is not what the lock says."""

    name: str
    locked: str
    installed: str | None


class Conflict(Record):
    """A package whose requirement the installed packages do not meet."""

    name: str
    requirement: str
    installed: str | None


def installed_versions() -> dict[str, str]:
    """Return the version of each installed package, by its normalised name."""
    return {canonicalize_name(item.name): item.version for item in metadata.distributions() if item.name}


def read_lock(lock: Path) -> dict[str, str]:
    """Return the versions that a lock pins for this interpreter and machine, by normalised name.

    Raises:
        OSError: There is no such file.
    """
    pins: dict[str, str] = {}
    for line in lock.read_text(encoding="utf-8").splitlines():
        match = _PIN.match(line)
        if match and (not match[3] or Marker(match[3].strip()).evaluate()):
            pins[canonicalize_name(match[1])] = match[2]
    return pins


def find_drift(pins: dict[str, str], installed: dict[str, str]) -> list[Drift]:
    """Return the packages that are missing or have another version than the lock says."""
    return [
        Drift(name=name, locked=version, installed=installed.get(name))
        for name, version in sorted(pins.items())
        if not _same(version, installed.get(name))
    ]


def find_conflicts(installed: dict[str, str]) -> list[Conflict]:
    """Return the requirements of installed packages that the installed packages do not meet."""
    return sorted(_conflicts(installed), key=lambda conflict: (conflict.name, conflict.requirement))


def _conflicts(installed: dict[str, str]) -> Iterator[Conflict]:
    environment = {"extra": ""}
    for item in metadata.distributions():
        for text in item.requires or []:
            if "extra ==" in text:
                continue
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue
            if requirement.marker and not requirement.marker.evaluate(environment):
                continue
            version = installed.get(canonicalize_name(requirement.name))
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                yield Conflict(name=item.name, requirement=str(requirement), installed=version)


def _same(locked: str, installed: str | None) -> bool:
    if installed is None:
        return False
    try:
        return Version(locked) == Version(installed)
    except InvalidVersion:
        return locked == installed
