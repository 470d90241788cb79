"""What MLflow knows of the versions of a model beside their files: aliases, and the tags that we give them."""

from __future__ import annotations

import json
from typing import Any

from shopfloor.errors import NotFoundError
from shopfloor.runs.mlflow import Mlflow

CHAMPION = "champion"
"""Alias of the version that answers."""
CHALLENGER = "challenger"
"""Alias of the version on trial."""
INPUTS = "shopfloor.inputs"
"""Tag of a version: the hash of what it was made of."""
MODEL_HASH = "shopfloor.model_hash"
"""Tag of a version: the hash of the model's files as the search left them, the same for the same bytes."""
PROMOTED = "shopfloor.promoted"
"""Tag of a version: who made it champion, when, why, from which run, and the champion before."""
ROLLED_BACK = "shopfloor.rolled_back"
"""Tag of a version: who took it back, when, why, and the champion since."""


def no_version(model: str, version: str) -> NotFoundError:
    """Return what is raised of a version that the registry does not hold."""
    return NotFoundError(
        f"There is no version {version} of a model {model!r}.", "`shopfloor models list` shows what there is."
    )


def version_of(mlflow: Mlflow, model: str, version: str) -> dict[str, Any]:
    """Return what MLflow says of a version.

    Raises:
        NotFoundError: There is no such version.
        ServiceError: MLflow does not answer, or refuses.
    """
    try:
        model_version: dict[str, Any] = mlflow.get("model-versions/get", "model_version", name=model, version=version)
    except NotFoundError as error:
        raise no_version(model, version) from error
    return model_version


def version_exists(mlflow: Mlflow, model: str, version: str) -> bool:
    """Tell whether the registry holds a version.

    Raises:
        ServiceError: MLflow does not answer, or refuses.
    """
    try:
        version_of(mlflow, model, version)
    except NotFoundError:
        return False
    return True


def tagged(client: Any, model: str, tag: str, value: str) -> list[str]:
    """Return the versions of a model whose tag has that value, the newest first."""
    versions = client.search_model_versions(f"name = '{model}' and tag.`{tag}` = '{value}'")
    return [str(number) for number in sorted((int(version.version) for version in versions), reverse=True)]


def champions(client: Any, model: str, count: int) -> list[str]:
    """Return the versions that were champion last and were not rolled back, the latest promotion first.

    Args:
        client: An `MlflowClient`.
        model: Name of the registered model.
        count: How many at most.
    """
    promotions: list[tuple[str, str]] = []
    for version in client.search_model_versions(f"name = '{model}'"):
        if PROMOTED in version.tags and ROLLED_BACK not in version.tags:
            promotions.append((str(json.loads(version.tags[PROMOTED]).get("when", "")), str(version.version)))
    return [version for _, version in sorted(promotions, reverse=True)[:count]]
