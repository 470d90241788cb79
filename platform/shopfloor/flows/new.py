"""A table that somebody has becomes a use case: its data under DVC, its folder in `pipelines/`, and why it is as it is.

The folder comes last, in one step, so that a use case is whole or not there. Nothing that is there is written over.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from shopfloor.data import profile as profiles
from shopfloor.data import sniffing
from shopfloor.data.repository import track
from shopfloor.data.sniffing import Rows, quoted
from shopfloor.errors import UsageError
from shopfloor.flows import drafting, first_files
from shopfloor.flows.drafting import Draft
from shopfloor.records import Record
from shopfloor.settings import Settings
from shopfloor.storage import hash_directory, move_synced, scratch
from shopfloor.use_case import Task, load_use_case, require_name


class NewUseCase(Record):
    """A use case that begins with a table."""

    use_case: str
    files: list[str]
    """Paths of what was written, relative to the project."""
    rows: int
    read_as: str
    """How the file was read."""
    task: str
    why_task: str
    split: str
    """How rows are split, and why."""
    inputs: dict[str, str]
    """Column to its kind."""
    left_out: dict[str, str]
    """Column to the reason why the model does not get it."""
    gates: dict[str, str]
    """Metric to its bound, and what that is the worth of."""
    unlabelled: int = 0
    """Rows without a target, which are left out."""


def new(
    settings: Settings,
    name: str,
    file: Path,
    target: str,
    task: Task | None,
    time: str | None,
    leave_out: Sequence[str],
    keep: Sequence[str],
    leave_out_unlabelled: bool,
    progress: Callable[[str], None],
) -> NewUseCase:
    """Write a use case that begins with a file of rows.

    Args:
        settings: Say where the project is.
        name: Of the use case.
        file: CSV, JSON lines or parquet.
        target: Column that is to be predicted.
        task: What that is; `None` to tell it by the column.
        time: Column with the time of a row; `None` splits at random.
        leave_out: Columns that the model does not get.
        keep: Columns that may say the target by themselves.
        leave_out_unlabelled: Whether rows without a target are left out, and not refused.
        progress: Is told what happens.

    Raises:
        NotFoundError: There is no such file.
        UsageError: The name is taken, or the table makes no model; says why.
        DataError: DVC cannot track the data.
    """
    folder, data = settings.project_root / "pipelines" / name, settings.project_root / "data" / name
    require_name(name)
    if folder.exists() or folder.with_suffix(".py").exists():
        raise UsageError(f"pipelines/{name} is there already.", "Take another name.")
    table = re.sub(r"[^a-z0-9]+", "_", file.stem.lower()).strip("_") or "rows"
    with scratch(settings.private_state_dir()) as directory:
        progress(f"Reading {file}")
        rows = sniffing.read(file, directory)
        progress(f"Looking at {rows.count:,} rows of {len(rows.kinds)} columns")
        columns = profiles.profile(rows)
        days = _days(rows, time, target)
        last_value = _last_value(rows, time, target, days) if time else None
        draft = drafting.draft(
            columns, rows.count, target, task, time, list(leave_out), days, leave_out_unlabelled, last_value
        )
        _refuse_leaks(rows, draft, keep)
        staged = directory / "data" / f"{table}.parquet"
        staged.parent.mkdir()
        rows.write(staged)
        if data.exists() and hash_directory(data) != hash_directory(staged.parent):
            raise UsageError(f"data/{name} is there already, with other data.", "Take another name.")
        if not data.exists():
            data.parent.mkdir(exist_ok=True)
            move_synced(staged.parent, data)
        progress(f"Tracking data/{name}")
        track(settings, data)
        whole = directory / "use_case"
        whole.mkdir()
        for part, text in first_files.files(name, table, draft, file.name, rows.count, rows.note).items():
            (whole / part).write_text(text, encoding="utf-8")
        whole.chmod(0o755)
        move_synced(whole, folder)
    load_use_case(settings, name)
    return NewUseCase(
        use_case=name,
        files=[f"data/{name}/{table}.parquet", *sorted(f"pipelines/{name}/{one.name}" for one in folder.iterdir())],
        rows=rows.count,
        read_as=rows.note,
        task=draft.task,
        why_task=draft.why_task,
        split=draft.why_split,
        inputs={key: column.kind for key, column in draft.inputs.items()},
        left_out=draft.left_out,
        gates={metric: f"{side} {bound:g}: {origin}" for metric, (side, bound, origin) in draft.gates.items()},
        unlabelled=draft.unlabelled,
    )


def _last_value(rows: Rows, time: str, target: str, days: Sequence[dt.date]) -> float | None:
    """Return the mean distance of targets of the newest rows from the last one of the day before.

    Args:
        rows: The table.
        time: Column with the time of a row.
        target: Column that is to be predicted.
        days: Of the split; the newest rows are those from the third on.

    Returns:
        The distance; `None` where the target is no number, or there is no day before.
    """
    if not days or rows.kinds.get(target) not in {"whole", "number"}:
        return None
    at, label = quoted(time), quoted(target)
    last = f"SELECT {at}::DATE AS day, arg_max({label}, {at}) AS last FROM {rows.name}"  # noqa: S608  names are quoted
    last += f" WHERE {label} IS NOT NULL GROUP BY 1"
    days_before = f"SELECT day, lag(last) OVER (ORDER BY day) AS before FROM ({last})"  # noqa: S608
    [(apart,)] = rows.ask(
        f"avg(abs({label}::DOUBLE - before))", f"JOIN ({days_before}) ON {at}::DATE = day WHERE day >= '{days[2]}'"
    )
    return None if apart is None else float(apart)


def _days(rows: Rows, time: str | None, target: str) -> list[dt.date]:
    """Return the days between which the parts of a split by time lie, see `drafting.draft`.

    Raises:
        UsageError: The column holds no times, or lacks some.
    """
    if time is None or time not in rows.kinds:
        return []
    if rows.kinds[time] != "time":
        raise UsageError(f"The column {time!r} holds no times.", "Write them as 2026-03-31 or 2026-03-31 12:00:00.")
    column = quoted(time)
    [(missing, *days)] = rows.ask(
        f"count(*) - count({column}), min({column})::DATE, quantile_disc({column}, 0.6)::DATE, "
        f"quantile_disc({column}, 0.8)::DATE, max({column})::DATE",
        f"WHERE {quoted(target)} IS NOT NULL" if target in rows.kinds else "",
    )
    if missing:
        raise UsageError(f"The column {time!r} has no value in {missing:,} rows.", "Leave such rows out of the file.")
    return days


def _refuse_leaks(rows: Rows, draft: Draft, keep: Sequence[str]) -> None:
    """Refuse a table of which one column alone says the target.

    Raises:
        UsageError: One does.
    """
    tried = [name for name, one in draft.inputs.items() if name not in keep and one.kind != "lists"]
    found = profiles.leaks(rows, tried, draft.target.name, draft.task != "regression")
    if found:
        name, score = found[0]
        measure = "of the variance" if draft.task == "regression" else "balanced accuracy"
        raise UsageError(
            f"The column {name!r} alone says {draft.target.name!r} almost perfectly ({score:.1%} {measure}): "
            "is it known before?",
            f"If not, --leave-out {name}; if it is, --keep {name}.",
        )
