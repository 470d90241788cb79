"""Rows into train, validate, test and monitor: by time, at random, by group, or as a column says.

scikit-learn draws. Where the task is a classification, each split gets its part of every class. The same rows and the
same seed give the same splits.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from shopfloor.data.contract import TIME
from shopfloor.errors import DataError, UsageError, first_line
from shopfloor.use_case import ColumnSplit, GroupSplit, RandomSplit, TimeSplit, UseCase

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

NAMES = ("train", "validate", "test", "monitor")
LEAST_OF_A_CLASS = 3
"""Rows of a class that give each of train, validate and test one."""
_MEND = "Mend features.split in use_case.yaml, or pull other data."


def split(frame: pd.DataFrame, use_case: UseCase) -> dict[str, pd.DataFrame]:
    """Return the splits of rows; `monitor` only where use_case.yaml or the column has it.

    Args:
        frame: Rows with the target, and the time or the column that they are split by.
        use_case: Its `features.split` says how.

    Raises:
        DataError: A split would have no rows, or in a classification one class.
        UsageError: The rows lack the column that they are to be split by.
    """
    how = use_case.features.split
    match how:
        case TimeSplit():
            parts = _by_time(frame, how)
        case GroupSplit():
            parts = _drawn(frame, use_case, how, _column(frame, how.column))
        case RandomSplit():
            parts = _drawn(frame, use_case, how, None)
        case ColumnSplit():
            parts = _by_column(frame, _column(frame, how.column))
    if use_case.task in {"binary", "multiclass"}:
        _require_two_classes(parts, use_case.features.target)
    return parts


def _by_time(frame: pd.DataFrame, how: TimeSplit) -> dict[str, pd.DataFrame]:
    parts: dict[str, pd.DataFrame] = {}
    for name, (begin, end) in how.intervals().items():
        low, high = (dt.datetime.combine(day, dt.time(), dt.UTC) for day in (begin, end))
        part = frame[(frame[TIME] >= low) & (frame[TIME] < high)]
        if part.empty and name != "monitor":
            raise DataError(
                f"Split {name!r} from {begin} to {end} has no rows; the data go from {frame[TIME].min()} to "
                f"{frame[TIME].max()}.",
                _MEND,
            )
        parts[name] = part
    return parts


def _column(frame: pd.DataFrame, name: str) -> pd.Series[Any]:
    if name not in frame.columns:
        columns = ", ".join(map(str, frame.columns[:20]))
        raise UsageError(f"features.split.column names {name!r}; the rows have {columns}.", "Mend one of them.")
    column = frame[name]
    if missing := int(column.isna().sum()):
        raise DataError(
            f"The column {name!r}, by which rows are split, is missing in {missing} of {len(frame)} rows.",
            "Fill it, or leave such rows out.",
        )
    return column


def _by_column(frame: pd.DataFrame, column: pd.Series[Any]) -> dict[str, pd.DataFrame]:
    texts = column.astype(str)
    if strangers := sorted(set(texts.unique()) - set(NAMES)):
        raise DataError(
            f"The column {column.name!r} says {strangers[0]!r} in a row: it is one of {', '.join(NAMES)}.", "Mend it."
        )
    parts = {name: frame[texts == name] for name in NAMES}
    for name, part in parts.items():
        if part.empty and name != "monitor":
            raise DataError(f"The column {column.name!r} says {name!r} in no row.", _MEND)
    return parts if len(parts["monitor"]) else {name: part for name, part in parts.items() if name != "monitor"}


def _drawn(
    frame: pd.DataFrame, use_case: UseCase, how: RandomSplit, groups: pd.Series[Any] | None
) -> dict[str, pd.DataFrame]:
    """Return splits drawn by a seed, each in the order of the rows."""
    import numpy as np

    classified = use_case.task in {"binary", "multiclass"}
    labels = frame[use_case.features.target].to_numpy() if classified else None
    if labels is not None and groups is None:
        _require_enough(labels, use_case.features.target)
    keys = None if groups is None else groups.astype("category").cat.codes.to_numpy()
    everything = np.arange(len(frame))
    try:
        rest, test = _two(everything, labels, keys, how.test, how.seed)
        train, validate = _two(rest, labels, keys, how.validate_ / (1 - how.test), how.seed)
    except ValueError as error:  # scikit-learn's own words for too few rows or groups
        what = "rows" if groups is None else f"groups of {groups.name!r}"
        raise DataError(
            f"{len(frame)} rows cannot be split at random by {what}: {first_line(error)}.", _MEND
        ) from error
    parts = {"train": train, "validate": validate, "test": test}
    if empty := [name for name, numbers in parts.items() if not len(numbers)]:
        raise DataError(f"Split {empty[0]!r} has no rows: there are {len(frame)} in all.", _MEND)
    return {name: frame.iloc[np.sort(numbers)] for name, numbers in parts.items()}


def _two(
    rows: np.ndarray, labels: np.ndarray | None, groups: np.ndarray | None, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the rows in two parts, the second with `share` of them, or about that in whole groups."""
    import numpy as np
    from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold, train_test_split

    own = None if labels is None else labels[rows]
    if groups is None:
        first, second = train_test_split(rows, test_size=share, random_state=seed, stratify=own)
        return first, second
    if own is None:
        draws = GroupShuffleSplit(1, test_size=share, random_state=seed).split(rows, groups=groups[rows])
    else:
        folds = StratifiedGroupKFold(max(2, round(1 / share)), shuffle=True, random_state=seed)
        draws = folds.split(rows, np.unique(own, return_inverse=True)[1], groups[rows])
    first, second = next(iter(draws))
    return rows[first], rows[second]


def _require_enough(labels: np.ndarray, target: str) -> None:
    import numpy as np

    classes, counts = np.unique(labels, return_counts=True)
    rare = int(counts.argmin())
    if counts[rare] < LEAST_OF_A_CLASS:
        raise DataError(
            f"The class {classes.tolist()[rare]!r} of {target!r} has {counts[rare]} row(s): of each class at least "
            f"{LEAST_OF_A_CLASS} are needed for train, validate and test.",
            "Leave such rows out, or make one class of it and others.",
        )


def _require_two_classes(parts: dict[str, pd.DataFrame], target: str) -> None:
    for name, part in parts.items():
        if name != "monitor" and part[target].nunique() < 2:
            raise DataError(
                f"All {len(part)} rows of the split {name!r} have the same {target!r}: they teach and tell nothing.",
                "Mend features.split in use_case.yaml, or look at the labels.",
            )
