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


def differences(argo, local, without=""):
    """Return what two outcomes differ in; of the step `without` only whether it succeeded is compared."""
    lines = []
    if argo.succeeded != local.succeeded:
        lines.append(f"succeeded: {argo.succeeded}, locally {local.succeeded}")
    if plain(argo.outputs) != plain(local.outputs):
        lines.append(f"the pipeline gives {argo.outputs}, locally {local.outputs}")
    for path in sorted(argo.steps.keys() | local.steps.keys()):
        one, other = argo.steps.get(path), local.steps.get(path)
        if one is None or other is None:
            lines.append(f"{'/'.join(path)} ran only {'locally' if one is None else 'on Argo'}")
        elif one.succeeded != other.succeeded:
            lines.append(f"{'/'.join(path)} succeeded: {one.succeeded}, locally {other.succeeded}")
        elif path[-1] != without and plain(one.outputs) != plain(other.outputs):
            lines.append(f"{'/'.join(path)} gives {one.outputs}, locally {other.outputs}")
    return lines


def outputs_of(outcome):
    """Return what each step gave, as the cases of our own pipelines have it."""
    return {
        f"{'/'.join(path)}.{name}": value.content if isinstance(value, Artifact) else value
        for path, step in outcome.steps.items()
        for name, value in step.outputs.items()
    }
