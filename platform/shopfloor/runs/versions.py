"""What MLflow knows of the versions of a model beside their files: aliases, and the tags that we give them."""

from __future__ import annotations

import json
from typing import Any

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
