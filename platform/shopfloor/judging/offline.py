"""Golden rows of a test set, and what the model that the search left behind answers to them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shopfloor.errors import ShopfloorError
from shopfloor.judging import golden
from shopfloor.judging.golden import Golden, classified
from shopfloor.records import FeatureSet
from shopfloor.runs.mlflow import by_row
from shopfloor.settings import Settings
from shopfloor.storage import local_copy
from shopfloor.use_case import UseCase

if TYPE_CHECKING:
    import pandas as pd


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
    import pandas as pd

    directory = local_copy(settings, features_uri)
    features = FeatureSet.model_validate_json((directory / "feature_set.json").read_text(encoding="utf-8"))
    test = pd.read_parquet(directory / "test.parquet", columns=list(features.features))
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
