"""What one step of a pipeline did, in a form in which two engines can be compared."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Artifact(NamedTuple):
    """An output artifact without the place where it lies."""

    name: str
    kind: str
    metadata: Any
    content: Any
    """Bytes of a file, bytes of each file of a directory, or `None`."""


@dataclass(frozen=True)
class Step:
    """How a task ended, and what it gave."""

    succeeded: bool
    outputs: dict[str, Any] = field(default_factory=dict)
    """By name: a value, an `Artifact`, or a list of them."""


@dataclass
class Outcome:
    """What became of a pipeline."""

    succeeded: bool
    steps: dict[tuple[str, ...], Step]
    """By the names of the tasks from the pipeline down; an iteration is `<loop>-iteration-<number>`."""
    outputs: dict[str, Any]
    """Of the pipeline."""
    logs: str = ""


def plain(value: Any) -> Any:
    """Return a value in which numbers are floats, as JSON knows them, and flags are no numbers."""
    if isinstance(value, Artifact):
        return value._replace(metadata=plain(value.metadata))
    if isinstance(value, bool):
        return "true" if value else "false", bool
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def content(place: Path) -> Any:
    """Return what lies at a path: a bucket knows no empty directory."""
    if place.is_dir():
        return {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()} or None
    return place.read_bytes() if place.is_file() else None
