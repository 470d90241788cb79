"""What a table holds, column by column, and which of its columns say the target by themselves. DuckDB counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shopfloor.data.sniffing import Kind, Rows, quoted

if TYPE_CHECKING:
    import pandas as pd

FEW = 50
"""Values of a column that are listed, at most."""
SAMPLE = 20_000
"""Rows that a column alone is tried on."""
NEARLY_ALL = 0.995
"""Balanced accuracy, or part of the variance, from which on a column alone says the target."""
_NUMBERS = {"number", "whole"}


@dataclass(frozen=True)
class Column:
    """What one column holds."""

    name: str
    kind: Kind
    missing: int
    distinct: int
    """Number of its values: exact up to some thousands, an estimate beyond."""
    low: Any = None
    """Of numbers and times; of lists their least length."""
    high: Any = None
    quarters: tuple[float, float] | None = None
    """Values between which half of the rows are, of a number."""
    values: tuple[Any, ...] = ()
    """All of them, sorted, where they are few."""
    counts: tuple[int, ...] = ()
    """Rows of each of `values`."""
    each_once: bool = False
    """Whether no value is in two rows."""
    rising: bool = False
    """Whether each row has a greater value than the one before it."""


def profile(rows: Rows) -> dict[str, Column]:
    """Return what each column of a table holds."""
    parts = []
    for name, kind in rows.kinds.items():
        column = quoted(name)
        if kind == "other":
            parts += [f"count({column})", "0", "NULL", "NULL", "NULL"]
            continue
        if kind == "lists":
            parts += [f"count({column})", f"approx_count_distinct({column})"]
            parts += [f"min(len({column}))", f"max(len({column}))", "NULL"]
            continue
        quarters = f"approx_quantile({column}::DOUBLE, [0.25, 0.75])" if kind in _NUMBERS else "NULL"
        bounds = [f"min({column})", f"max({column})"] if kind in {*_NUMBERS, "time"} else ["NULL", "NULL"]
        parts += [f"count({column})", f"approx_count_distinct({column})", *bounds, quarters]
    [answer] = rows.ask(", ".join(parts))
    columns = {}
    for number, (name, kind) in enumerate(rows.kinds.items()):
        present, distinct, low, high, quarters = answer[5 * number : 5 * number + 5]
        columns[name] = _column(rows, name, kind, present, distinct, low, high, quarters)
    return columns


def _column(
    rows: Rows, name: str, kind: Kind, present: int, distinct: int, low: Any, high: Any, quarters: Any
) -> Column:
    column, values, counts, each_once, rising = quoted(name), (), (), False, False
    if kind not in {"lists", "other"} and distinct <= 2 * FEW:  # the estimate is off by some percent
        each = f"WHERE {column} IS NOT NULL GROUP BY 1 ORDER BY 1 LIMIT {FEW + 1}"
        groups = rows.ask(f"{column}, count(*)", each)
        if len(groups) <= FEW:
            values, counts = tuple(one for one, _ in groups), tuple(count for _, count in groups)
            distinct = len(groups)
    if kind in {"whole", "text"} and present == rows.count and distinct > 0.8 * present and present > 1:
        [(distinct,)] = rows.ask(f"count(DISTINCT {column})")
        each_once = distinct == present
    if each_once and kind == "whole":
        rising = not rows.ask("1", f"QUALIFY {column} <= lag({column}) OVER (ORDER BY rowid) LIMIT 1")
    return Column(
        name,
        kind,
        rows.count - present,
        distinct,
        low,
        high,
        None if quarters is None else (quarters[0], quarters[1]),
        values,
        counts,
        each_once,
        rising,
    )


def leaks(rows: Rows, inputs: Sequence[str], target: str, classified: bool) -> list[tuple[str, float]]:
    """Return the columns that alone say the target almost perfectly, in rows that they were not looked at for.

    Args:
        rows: The table.
        inputs: Columns to try.
        target: The label.
        classified: Whether the label is a class; a number otherwise.

    Returns:
        Each with its balanced accuracy, or with the part of the variance that it explains.
    """
    names = ", ".join(quoted(name) for name in (*inputs, target))
    there = f"WHERE {quoted(target)} IS NOT NULL"
    frame: pd.DataFrame = rows.query(names, f"{there} USING SAMPLE reservoir({SAMPLE} ROWS) REPEATABLE (7)").df()
    scores = [(name, _alone(frame[name], frame[target], classified)) for name in inputs]
    return [(name, score) for name, score in scores if score >= NEARLY_ALL]


def _alone(column: pd.Series[Any], target: pd.Series[Any], classified: bool) -> float:
    """Return how well a small tree on one column does on every second row, after it has seen the others."""
    import numpy as np
    import pandas as pd
    from sklearn.metrics import balanced_accuracy_score, r2_score
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    labels = target.astype(str).to_numpy() if classified else target.to_numpy(dtype=np.float64)
    seen, unseen = slice(0, None, 2), slice(1, None, 2)
    if column.dtype.kind in "biuf":
        values = column.to_numpy(dtype=np.float64)
    elif column.dtype.kind == "M":
        values = column.astype("int64").to_numpy(dtype=np.float64)
    else:
        # A text counts as the rows that it was seen in: one that is in few of them says nothing of others.
        texts = column.astype(str)
        codes = pd.Series(pd.factorize(labels)[0] if classified else labels)
        means = codes[seen].groupby(texts[seen].to_numpy()).mean()
        values = texts.map(means).to_numpy(dtype=np.float64)
    leaves = min(64, max(2, 2 * len(set(labels.tolist())) if classified else 64))
    least = max(2, len(values) // 1000)
    tree = (DecisionTreeClassifier if classified else DecisionTreeRegressor)(
        max_leaf_nodes=leaves, min_samples_leaf=least, random_state=7
    )
    tree.fit(values[seen].reshape(-1, 1), labels[seen])
    answers = tree.predict(values[unseen].reshape(-1, 1))
    if classified:
        return float(balanced_accuracy_score(labels[unseen], answers))
    both = np.isfinite(values)
    line = float(np.corrcoef(values[both], labels[both])[0, 1] ** 2) if both.sum() > 2 and values[both].std() else 0.0
    return max(float(r2_score(labels[unseen], answers)), line * float(both.mean()))
