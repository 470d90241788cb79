"""Proves that a deployed version answers as it did offline: rows of the test set, through both ways in.

The offline answer comes from the model that the search left behind, not from the registry, so that whatever happened
to it on its way (signature, types, conversion, missing values) shows.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

from shopfloor.errors import ServiceError, ShopfloorError
from shopfloor.judging.golden import TOLERANCE, Golden, difference
from shopfloor.judging.offline import ask_offline
from shopfloor.runs.mlflow import by_row
from shopfloor.serving.contract import VERSION_HEADER
from shopfloor.serving.deploy.rollout import endpoint
from shopfloor.settings import Settings
from shopfloor.storage import Metrics, local_copy
from shopfloor.use_case import load_use_case

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "SERVE_TOKEN"  # noqa: S105  the variable's name


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
    case = load_use_case(settings, use_case)
    golden = ask_offline(settings, case, features_uri, case.code("model").load(local_copy(settings, model_uri)))
    worst = largest_difference(settings, use_case, version, golden)
    metrics.log_metric("golden_rows", len(golden.rows))
    metrics.log_metric("largest_difference", worst)
    logger.info("%d golden rows, largest difference %.3g", len(golden.rows), worst)


def largest_difference(settings: Settings, use_case: str, version: str, golden: Golden) -> float:
    """Ask a deployed version golden requests, through both ways in, and return how far an answer is off at most.

    Args:
        settings: Say where the endpoint is.
        use_case: Its name.
        version: The version to ask, champion or challenger.
        golden: Rows and the offline predictions.

    Raises:
        ServiceError: The endpoint does not answer.
        ShopfloorError: It refuses a row, or answers differently.
    """
    url = endpoint(settings, use_case)
    one_by_one = _predict(url, version, golden.rows)
    batch = _invoke(url, version, golden.rows)
    return max(
        _worst(golden, one_by_one, f"{url}/predict", version), _worst(golden, batch, f"{url}/invocations", version)
    )


def _predict(url: str, version: str, rows: list[dict[str, Any]]) -> list[Any]:
    import requests

    with requests.Session() as session:
        return [_post(session, f"{url}/predict", version, row)["prediction"] for row in rows]


def _invoke(url: str, version: str, rows: list[dict[str, Any]]) -> list[Any]:
    import requests

    split = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
    with requests.Session() as session:
        answer = _post(session, f"{url}/invocations", version, {"dataframe_split": split})
    return list(by_row(answer["predictions"], len(rows)))


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


def _worst(golden: Golden, online: list[Any], url: str, version: str) -> float:
    """Return the largest difference.

    Raises:
        ShopfloorError: It is larger than `TOLERANCE`.
    """
    if len(online) != len(golden.rows):
        raise ShopfloorError(f"{url} answers {len(online)} of {len(golden.rows)} rows.", "Deploy again.")
    differences = [difference(answer, offline) for answer, offline in zip(online, golden.predictions, strict=True)]
    worst = max(differences)
    if worst > TOLERANCE:
        row = differences.index(worst)
        raise ShopfloorError(
            f"Version {version} answers differently online: {url} says {online[row]} where the model says "
            f"{golden.predictions[row]} offline (difference {worst:.3g}, at most {TOLERANCE:g}) for the row "
            f"{golden.rows[row]}.",
            "The champion is untouched; compare the signature of the version with the features of its run.",
        )
    return worst
