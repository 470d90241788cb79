"""Who answers: the champion alias in the registry and the version on Ray Serve, brought to the same state.

The alias is what counts. It is moved first; the endpoint follows, and `restore` or the next promotion brings an
endpoint that stayed behind (a kill in between, a stack that was down) to where the alias points.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from shopfloor import registry, tracking
from shopfloor.results import EFFECT
from shopfloor.serving import rollout
from shopfloor.settings import Settings
from shopfloor.storage import Artifact, publish
from shopfloor.use_case import list_use_cases


def promote(settings: Settings, use_case: str, version: str, champion: Artifact) -> None:
    """Make `version` the champion, in the registry and on the endpoint.

    Raises:
        ServiceError: MLflow or Ray does not answer.
    """
    client = tracking.connect(settings)
    before = registry.alias_version(client, use_case, registry.CHAMPION)
    client.set_registered_model_alias(use_case, registry.CHAMPION, version)
    if registry.alias_version(client, use_case, registry.CHALLENGER) == version:
        client.delete_registered_model_alias(use_case, registry.CHALLENGER)
    rollout.deploy(settings, use_case, champion=version, challenger=None)
    with publish(settings, champion, "promote") as directory:
        record = {"use_case": use_case, "version": version, "before": before, "run_id": settings.run_id}
        (directory / "promotion.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    champion.metadata[EFFECT] = {"kind": "champion", "use_case": use_case, "version": version}


def effect_holds(settings: Settings, client: Any) -> Callable[[dict[str, str]], bool]:
    """Return the judge that the result store asks whether what a step once did is still so."""

    def holds(effect: dict[str, str]) -> bool:
        use_case, version = effect["use_case"], effect["version"]
        if effect["kind"] == "model_version":
            return registry.version_exists(client, use_case, version)
        live = rollout.live_versions(settings, use_case)
        if effect["kind"] == "deployment":
            return version in live.values()
        return (
            live.get("champion") == version and registry.alias_version(client, use_case, registry.CHAMPION) == version
        )

    return holds


def restore(settings: Settings, progress: Callable[[str], None]) -> dict[str, str]:
    """Bring every champion of the registry back to the endpoint that should hold it.

    Returns:
        Use case to the version that was deployed anew.
    """
    restored: dict[str, str] = {}
    for use_case in list_use_cases(settings):
        version = _champion(settings, use_case)
        if version is not None and rollout.live_versions(settings, use_case).get("champion") != version:
            progress(f"Deploying version {version} of {use_case}, its champion")
            rollout.deploy(settings, use_case, champion=version)
            restored[use_case] = version
    return restored


def _champion(settings: Settings, use_case: str) -> str | None:
    """Return the champion's version by MLflow's REST API: `up` must not wait seconds for the import of its client."""
    import requests

    try:
        answer = requests.get(
            f"{settings.tracking_uri}/api/2.0/mlflow/registered-models/alias",
            params={"name": use_case, "alias": registry.CHAMPION},
            timeout=settings.request_timeout_s,
        )
        return str(answer.json()["model_version"]["version"]) if answer.ok else None
    except (requests.RequestException, ValueError, KeyError):
        return None
