"""Proves that a deployed version answers as it did offline: rows of the test set, through both ways in.

The offline answer comes from the model that the search left behind, not from the registry, so that whatever happened
to it on its way (signature, types, conversion, missing values) shows.
"""

from __future__ import annotations

import json
import logging
import math
import os
from typing import TYPE_CHECKING, Any, Protocol

from shopfloor.errors import ServiceError, ShopfloorError
from shopfloor.records import FeatureSet
from shopfloor.serving.documents import VERSION_HEADER
from shopfloor.serving.rollout import endpoint
from shopfloor.settings import Settings
from shopfloor.storage import local_copy
from shopfloor.use_case import load_use_case

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "SERVE_TOKEN"  # noqa: S105  the variable's name
TOLERANCE = 1e-6
"""How far an online prediction may be from the offline one."""


class Metrics(Protocol):
    """The part of a KFP metrics artifact that the step fills in."""

    def log_metric(self, metric: str, value: float) -> None:
        """Keep one number."""


def verify(
    settings: Settings, use_case: str, version: str, features_uri: str, model_uri: str, metrics: Metrics
) -> None:
    """Send golden requests to a deployed version and require the offline predictions.

    Args:
        settings: Say where the endpoint is.
        use_case: Its name.
        version: The version to ask, champion or challenger.
        features_uri: What `build_features` made; the rows come from `test.parquet`.
        model_uri: What `tune` made.
        metrics: Gets the number of rows and the largest difference.

    Raises:
        ServiceError: The endpoint does not answer.
        ShopfloorError: It refuses a golden row, or answers differently.
    """
    import numpy as np
    import pandas as pd

    case = load_use_case(settings, use_case)
    directory = local_copy(settings, features_uri)
    features = FeatureSet.model_validate_json((directory / "feature_set.json").read_text(encoding="utf-8"))
    columns = list(features.features)
    test = pd.read_parquet(directory / "test.parquet", columns=columns)
    golden = _golden_rows(test, case.evaluation.golden_rows)
    code = case.code("model")
    offline = np.asarray(code.predict(code.load(local_copy(settings, model_uri)), golden), dtype=np.float64)

    rows = [_plain(row, features) for row in golden.to_dict("records")]
    url = endpoint(settings, use_case)
    one_by_one = _predict(url, version, rows)
    batch = _invoke(url, version, columns, rows)
    worst = max(
        _worst(golden, offline, one_by_one, f"{url}/predict", version),
        _worst(golden, offline, batch, f"{url}/invocations", version),
    )
    metrics.log_metric("golden_rows", len(golden))
    metrics.log_metric("largest_difference", worst)
    logger.info("%d golden rows, largest difference %.3g", len(golden), worst)


def _golden_rows(test: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return `count` rows, the same for the same test set, a part of them with missing values where there are any."""
    import numpy as np
    import pandas as pd

    if not len(test):
        raise ShopfloorError("The test set is empty.", "Look at the split in use_case.yaml.")
    incomplete = test[test.isna().any(axis="columns")]
    parts = [(incomplete, min(len(incomplete), count // 5)), (test, count - min(len(incomplete), count // 5))]
    chosen = [
        part.iloc[np.linspace(0, len(part) - 1, min(size, len(part))).astype(int)] for part, size in parts if size
    ]
    return pd.concat(chosen).reset_index(drop=True)


def _plain(row: dict[Any, Any], features: FeatureSet) -> dict[str, Any]:
    """Return a row as JSON holds it."""
    convert = {"int": int, "float": float}
    return {
        name: None if row[name] is None or math.isnan(row[name]) else convert[kind](row[name])
        for name, kind in features.features.items()
    }


def _predict(url: str, version: str, rows: list[dict[str, Any]]) -> np.ndarray:
    import numpy as np
    import requests

    with requests.Session() as session:
        return np.array([_post(session, f"{url}/predict", version, row)["prediction"] for row in rows])


def _invoke(url: str, version: str, columns: list[str], rows: list[dict[str, Any]]) -> np.ndarray:
    import numpy as np
    import requests

    split = {"columns": columns, "data": [[row[name] for name in columns] for row in rows]}
    with requests.Session() as session:
        return np.array(_post(session, f"{url}/invocations", version, {"dataframe_split": split})["predictions"])


def _post(session: Any, url: str, version: str, content: dict[str, Any]) -> dict[str, Any]:
    import requests

    headers = {"Content-Type": "application/json", VERSION_HEADER: version}
    if token := os.environ.get(TOKEN_VARIABLE):
        headers["Authorization"] = f"Bearer {token}"
    try:
        answer = session.post(url, data=json.dumps(content, allow_nan=False), headers=headers, timeout=30)
    except requests.RequestException as error:
        raise ServiceError(f"{url} does not answer: {type(error).__name__}.", "See `shopfloor status`.") from error
    if answer.status_code == 401:
        raise ShopfloorError(f"{url} asks for a token.", f"Put one that counts into ${TOKEN_VARIABLE}.")
    if not answer.ok:
        raise ShopfloorError(
            f"{url} refuses a row of the test set with {answer.status_code}: {answer.text[:500]}",
            "The signature in the registry and the built features do not fit together.",
        )
    result: dict[str, Any] = answer.json()
    if result.get("version", version) != version:
        raise ShopfloorError(f"{url} answers with version {result['version']}, not {version}.", "Deploy again.")
    return result


def _worst(golden: pd.DataFrame, offline: np.ndarray, online: np.ndarray, url: str, version: str) -> float:
    """Return the largest difference.

    Raises:
        ShopfloorError: It is larger than `TOLERANCE`.
    """
    import numpy as np

    if online.shape != offline.shape:
        raise ShopfloorError(f"{url} answers {online.shape} numbers for {offline.shape} rows.", "Deploy again.")
    differences = np.where(np.isfinite(online), np.abs(online - offline), np.inf)
    row = int(np.argmax(differences))
    worst = float(differences[row])
    if worst > TOLERANCE:
        raise ShopfloorError(
            f"Version {version} answers differently online: {url} says {online[row]:.9g} where the model says "
            f"{offline[row]:.9g} offline (difference {worst:.3g}, at most {TOLERANCE:g}) for the row "
            f"{golden.iloc[row].to_dict()}.",
            "The champion is untouched; compare the signature of the version with the features of its run.",
        )
    return worst
