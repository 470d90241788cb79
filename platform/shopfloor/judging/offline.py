"""What a version keeps of its test set: golden rows with the answers of its model, and how its columns are spread."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from shopfloor.errors import ShopfloorError
from shopfloor.judging import golden
from shopfloor.judging.golden import Golden, classified
from shopfloor.records import PREDICTION, FeatureSet, Reference, Spread, is_missing
from shopfloor.runs.mlflow import by_row
from shopfloor.settings import Settings
from shopfloor.storage import local_copy
from shopfloor.use_case import UseCase

if TYPE_CHECKING:
    import pandas as pd

REFERENCE_ROWS = 20_000
"""Rows that a spread rests on at most."""
NUMBERS, CATEGORIES = {"int", "float"}, {"bool", "str"}
"""Kinds of columns that have a spread; a time is never where it was."""
BINS = 10
"""Bins of equal count for numbers that take many values."""
MAX_VALUES = 20
"""Values that have a bin each; those of fewer rows share one."""


def ask_offline(settings: Settings, use_case: UseCase, features_uri: str, model: Any) -> Golden:
    """Return golden rows and the answers of the model that the search left behind.

    Args:
        settings: Say where artifacts live.
        use_case: Says how many rows, and how its model predicts.
        features_uri: What `build_features` made; the rows come from `test.parquet`.
        model: The model as the use case's own code loads it.

    Raises:
        ShopfloorError: The test set is empty, or an answer is no finite number.
    """
    import numpy as np

    features, test = _test_set(settings, features_uri)
    sample = _choose(test, use_case.evaluation.golden_rows)
    told = use_case.code("model").predict(model, sample)
    if use_case.task == "custom":
        return golden.of(_rows(sample, features), by_row(told, len(sample)))
    answers = np.asarray(told)
    if features.classes and len(answers) == len(sample):
        return Golden(rows=_rows(sample, features), predictions=list(classified(answers, features.classes)))
    answers = answers.astype(np.float64)
    if len(answers) != len(sample) or not np.isfinite(answers).all():
        raise ShopfloorError(
            f"The model answers {len(answers)} of {len(sample)} golden rows, or one of them with no finite number.",
            "Mend `predict` in model.py: a prediction a row.",
        )
    table = answers.reshape(len(sample), -1)  # a column of single numbers is the same as single numbers
    predictions = table[:, 0] if table.shape[1] == 1 else table
    return Golden(rows=_rows(sample, features), predictions=list(predictions.tolist()))


def reference(settings: Settings, use_case: UseCase, features_uri: str, model: Any) -> Reference:
    """Return how the inputs of the test set, and a model's predictions of them, are spread.

    Args:
        settings: Say where artifacts live.
        use_case: Says how its model predicts.
        features_uri: What `build_features` made.
        model: The model as the use case's own code loads it.
    """
    import numpy as np

    features, test = _test_set(settings, features_uri)
    sample = test.iloc[np.linspace(0, len(test) - 1, min(len(test), REFERENCE_ROWS)).astype(int)]
    columns = {
        name: (kind in NUMBERS, _values(sample[name]))
        for name, kind in features.features.items()
        if kind in NUMBERS or kind in CATEGORIES
    }
    if use_case.task != "custom":
        answers = use_case.code("model").predict(model, sample)
        if features.classes:
            answers = [one["class"] if isinstance(one, dict) else one for one in classified(answers, features.classes)]
        if np.size(answers) == len(sample):  # not a list a row
            columns[PREDICTION] = not features.classes, np.asarray(answers).ravel().tolist()
    spreads = {name: spread_of(values, numeric) for name, (numeric, values) in columns.items()}
    return Reference(rows=len(sample), columns={name: one for name, one in spreads.items() if one is not None})


def spread_of(values: Sequence[Any], numeric: bool) -> Spread | None:
    """Return how values are spread; `None` where there are none, or texts of which hardly two are equal.

    Args:
        values: Numbers, texts, true and false; `None` and NaN are missing.
        numeric: Whether they are numbers.
    """
    import numpy as np

    known = [value for value in values if not is_missing(value)]
    if not known:
        return None
    edges: list[float] = []
    names: list[str] = []
    if numeric:
        numbers = np.asarray(known, dtype=np.float64)
        distinct = np.unique(numbers)
        few = len(distinct) <= 2 * BINS
        cuts = _around(distinct) if few else np.unique(np.quantile(numbers, np.linspace(0, 1, BINS + 1)))
        edges = cuts.tolist()
    else:
        counts = Counter(map(str, known))
        if len(counts) > max(MAX_VALUES, len(known) / 2):
            return None
        names = [value for value, _ in counts.most_common(MAX_VALUES)]
    empty = Spread(edges=edges, values=names, shares=[0.0] * (len(edges or names) + 2))
    return empty.model_copy(update={"shares": empty.shares_of(values)})


def _test_set(settings: Settings, features_uri: str) -> tuple[FeatureSet, pd.DataFrame]:
    """Return what `build_features` says of its splits, and the inputs of the test set."""
    import pandas as pd

    directory = local_copy(settings, features_uri)
    features = FeatureSet.model_validate_json((directory / "feature_set.json").read_text(encoding="utf-8"))
    return features, pd.read_parquet(directory / "test.parquet", columns=list(features.features))


def _values(column: pd.Series) -> list[Any]:
    """Return the values of a column as JSON has them, `None` where one is missing."""
    return [None if missing else value for value, missing in zip(column.tolist(), column.isna(), strict=True)]


def _around(distinct: Any) -> Any:
    """Return edges that leave each of a few numbers a bin of its own, and what is beyond them others."""
    import numpy as np

    gap = float(np.diff(distinct).min()) if len(distinct) > 1 else max(1.0, abs(float(distinct[0]))) * 1e-3
    middles = (distinct[:-1] + distinct[1:]) / 2
    return np.concatenate([[distinct[0] - gap / 2], middles, [distinct[-1] + gap / 2]])


def _rows(sample: pd.DataFrame, features: FeatureSet) -> list[dict[str, Any]]:
    return [_plain(row, features) for row in sample.to_dict("records")]


def _choose(test: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return `count` rows, the same for the same test set, a part of them with missing values where there are any."""
    import numpy as np
    import pandas as pd

    if not len(test):
        raise ShopfloorError("The test set is empty.", "Look at the split in use_case.yaml.")
    incomplete = test[test.isna().any(axis="columns")]
    parts = [(incomplete, min(len(incomplete), count // 5)), (test, count - min(len(incomplete), count // 5))]
    samples = [
        part.iloc[np.linspace(0, len(part) - 1, min(size, len(part))).astype(int)] for part, size in parts if size
    ]
    return pd.concat(samples).reset_index(drop=True)


def _plain(row: dict[Any, Any], features: FeatureSet) -> dict[str, Any]:
    """Return a row as JSON holds it; its times are in UTC."""
    import pandas as pd

    convert: dict[str, Callable[[Any], Any]] = {
        "int": int,
        "float": float,
        "bool": bool,
        "str": str,
        "datetime": lambda time: f"{time.isoformat()}Z",
        "numbers": lambda numbers: [float(number) for number in numbers],
        "bytes": lambda content: base64.b64encode(content).decode(),
    }

    def missing(value: Any) -> bool:
        return bool(pd.api.types.is_scalar(value) and pd.isna(value))

    return {name: None if missing(row[name]) else convert[kind](row[name]) for name, kind in features.features.items()}
