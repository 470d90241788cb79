"""What a table is good for: its task, its inputs, its split, and the bounds that a model must keep to be worth having.

Every decision comes with its reason, for the person who reads it and for the files that are written.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shopfloor.data.profile import FEW, Column
from shopfloor.errors import UsageError
from shopfloor.use_case import Task

LEAST_ROWS = 50
LEAST_OF_A_CLASS = 3
MOST_CLASSES_OF_NUMBERS = 20
RESERVED = {"prediction", "model_version", "event_timestamp"}
_KEY = re.compile(r"(^|.*[_\s-])(id|key|uuid|guid|index|nr|no)$", re.IGNORECASE)
_DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Draft:
    """What is to become a use case."""

    target: Column
    task: Task
    why_task: str
    time: str | None
    inputs: dict[str, Column]
    left_out: dict[str, str]
    """Column to the reason why it is no input."""
    split: dict[str, Any]
    why_split: str
    gates: dict[str, tuple[str, float, str]]
    """Metric to `min` or `max`, the bound, and where it comes from."""
    columns: Mapping[str, Column] = field(default_factory=dict)
    unlabelled: int = 0
    """Rows without a target, which are left out."""


def draft(
    columns: Mapping[str, Column],
    rows: int,
    target: str,
    task: Task | None,
    time: str | None,
    leave_out: list[str],
    days: list[dt.date],
    leave_out_unlabelled: bool = False,
    last_value: float | None = None,
) -> Draft:
    """Decide what is made of a table.

    Args:
        columns: What it holds.
        rows: How many.
        target: The label.
        task: What is to be predicted; `None` to tell it by the label.
        time: Column with the time of a row; `None` where rows are split at random.
        leave_out: Columns that are no inputs.
        days: Of `time`: the first one, those after which 60 and 80 percent of the rows lie behind, and the last one.
        leave_out_unlabelled: Whether rows without a target are left out, and not refused.
        last_value: Mean absolute error in the newest rows of the last target of the day before, where rows have a time.

    Raises:
        UsageError: The table makes no model; says why.
    """
    for key, name in (("--target", target), ("--time", time), *(("--leave-out", name) for name in leave_out)):
        if name is not None and name not in columns:
            raise UsageError(f"{key} names {name!r}, which is no column: there are {_some(list(columns))}.", "Mend it.")
    if rows < LEAST_ROWS:
        raise UsageError(
            f"The table has {rows} rows: too few to split and to judge by.", f"Bring {LEAST_ROWS} or more."
        )
    label = columns[target]
    if label.missing and not leave_out_unlabelled:
        raise UsageError(
            f"The target {target!r} has no value in {label.missing:,} of {rows:,} rows.",
            "Add --leave-out-unlabelled, or leave such rows out of the file.",
        )
    rows -= label.missing
    if rows < LEAST_ROWS:
        raise UsageError(f"The target {target!r} has a value in {rows} rows alone.", f"Bring {LEAST_ROWS} or more.")
    task, why = _task(label, rows, task)
    left_out = {name: "you said so" for name in leave_out}
    for name, column in columns.items():
        if name not in {target, time, *leave_out} and (reason := _useless(column)):
            left_out[name] = reason
    group = _group(columns, rows, {target, time, *left_out})
    if group:
        left_out[group] = "its values stand for things that have several rows; the split keeps those together"
    inputs = {name: one for name, one in columns.items() if name not in {target, time, *left_out}}
    if not inputs:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in left_out.items())
        raise UsageError(f"No column is left to predict {target!r} by: {reasons}.", "Bring a table with others.")
    if reserved := sorted(RESERVED & inputs.keys()):
        raise UsageError(
            f"The name of the column {reserved[0]!r} is reserved.", f"--leave-out {reserved[0]}, or rename it."
        )
    split, why_split = _split(time, group, days)
    gates = _gates(label, task, rows, last_value)
    return Draft(label, task, why, time, inputs, left_out, split, why_split, gates, columns, label.missing)


def _task(label: Column, rows: int, said: Task | None) -> tuple[Task, str]:
    """Return what a label is predicted as, and why.

    Raises:
        UsageError: It makes no label, or not for the task that somebody said.
    """
    name, values = label.name, label.values
    if label.kind in {"lists", "other", "time"}:
        raise UsageError(f"The target {name!r} is neither a number nor a text.", "Make a column of one of them.")
    if len(values) == 1:
        raise UsageError(f"The target {name!r} is {values[0]!r} in every row: there is nothing to tell apart.", "")
    if label.each_once and (label.kind == "text" or label.rising):
        raise UsageError(f"The target {name!r} is a key: each row has another value.", "Name what is to be predicted.")
    zero_or_one = label.kind == "boolean" or (label.kind != "text" and values == (0, 1))
    if said is None:
        if zero_or_one:
            task, why = "binary", "it is true or false" if label.kind == "boolean" else "it is 0 or 1"
        elif label.kind == "text":
            task, why = "multiclass", f"it has {len(values)} values"
        elif label.kind == "whole" and 0 < len(values) <= MOST_CLASSES_OF_NUMBERS:
            task, why = "multiclass", f"it has {len(values)} whole values (--task regression makes numbers of them)"
        else:
            task, why = "regression", f"it is a number with {label.distinct:,} values"
    else:
        task, why = said, "you said so"
    if task == "binary" and not zero_or_one:
        raise UsageError(f"The target {name!r} is {_some(values) or 'a number'}, and not 0 or 1.", "Leave --task out.")
    if task == "regression" and label.kind in {"text", "boolean"}:
        raise UsageError(f"The target {name!r} is a {label.kind}, and no number.", "Leave --task out.")
    if task == "multiclass" and (not values or label.kind not in {"text", "whole"}):
        what = f"has {label.distinct:,} values" if not values else f"is a {label.kind}"
        raise UsageError(
            f"The target {name!r} {what}; classes are at most {FEW} texts or whole numbers.",
            "Group them." if label.kind == "text" else "Group them, or predict a number: --task regression.",
        )
    if task != "regression":
        for value, count in zip(values, label.counts, strict=True):
            if count < LEAST_OF_A_CLASS:
                raise UsageError(
                    f"The class {value!r} of the target {name!r} has {count} of {rows:,} rows: each split needs one.",
                    "Bring more of it, or leave it out of the file.",
                )
    return task, why  # type: ignore[return-value]


def _useless(column: Column) -> str:
    """Return why a column is no input; empty where it is one."""
    if column.kind == "other":
        return "it holds objects, bytes, or lists of more than finite numbers"
    if column.kind == "lists" and column.low != column.high:
        return f"its lists are of {column.low} to {column.high} numbers: an estimator takes one length"
    if column.distinct == 0:
        return "it has no value"
    if column.distinct == 1 and not column.missing:
        return f"it is {column.values[0]!r} in every row" if column.values else "it is the same in every row"
    if column.each_once and (column.kind == "text" or column.rising or _KEY.match(column.name)):
        return "it is a key: each row has another value"
    return ""


def _group(columns: Mapping[str, Column], rows: int, others: set[str | None]) -> str | None:
    """Return the column that says which rows are of the same thing, a customer for example."""
    for name, column in columns.items():
        if name in others or not _KEY.match(name) or column.kind not in {"whole", "text"} or column.missing:
            continue
        if not column.values and rows / max(column.distinct, 1) >= 1.5:
            return name
    return None


def _split(time: str | None, group: str | None, days: list[dt.date]) -> tuple[dict[str, Any], str]:
    if time is not None:
        begin, train, validate, end = days
        bounds = [begin, train, validate, end + _DAY]
        if not bounds[0] < bounds[1] < bounds[2] < bounds[3]:
            raise UsageError(
                f"The column {time!r} goes from {begin} to {end}, most rows on one day: it splits nothing.",
                "Leave --time out.",
            )
        names = zip(("train", "validate", "test"), bounds, bounds[1:], strict=False)
        split = {name: [str(low), str(high)] for name, low, high in names}
        return split, f"by {time!r}: the last 20 % of the rows test what the first 60 % taught"
    if group is not None:
        return {"by": "group", "column": group, "test": 0.2, "validate": 0.2, "seed": 1}, f"whole groups of {group!r}"
    return {"by": "random", "test": 0.2, "validate": 0.2, "seed": 1}, "at random, as nothing says when a row was"


def _gates(label: Column, task: Task, rows: int, last_value: float | None) -> dict[str, tuple[str, float, str]]:
    """Return the bounds that a model beats which has learned anything at all."""
    if task == "regression":
        gates = {"r2": ("min", 0.0, "the mean of the target, for every row")}
        if last_value is not None:
            gates["mae"] = ("max", float(f"{last_value:.6g}"), "the last value of the day before, for every row")
        return gates
    shares = [count / rows for count in label.counts]
    entropy = math.floor(-1e4 * sum(share * math.log(share) for share in shares)) / 1e4
    prior = "the share of each class, for every row"
    if task == "binary":
        return {"log_loss": ("max", entropy, prior), "roc_auc": ("min", 0.5, "a coin")}
    most = max(range(len(shares)), key=shares.__getitem__)
    return {
        "log_loss": ("max", entropy, prior),
        "accuracy": ("min", math.ceil(1e4 * shares[most]) / 1e4, f"always {label.values[most]!r}"),
    }


def _some(values: Any, most: int = 10) -> str:
    more = ", ..." if len(values) > most else ""
    return ", ".join(repr(value) for value in values[:most]) + more
