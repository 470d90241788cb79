"""The steps `deploy` and `promote` of a pipeline: what they change, and the artifact that says so."""

from __future__ import annotations

import json
import uuid

from shopfloor.attempts import require_newest
from shopfloor.serving import assignment as assignments
from shopfloor.serving.deploy import champion as champions
from shopfloor.serving.deploy import rollout
from shopfloor.settings import Settings
from shopfloor.storage import EFFECT, Artifact, publish


def introduce(settings: Settings, use_case: str, version: str, deployment: Artifact) -> None:
    """Deploy `version` beside the live champion, as the challenger; the step `deploy`.

    Args:
        settings: Say where to.
        use_case: Its name.
        version: A version in the registry.
        deployment: Gets `deployment.json`, and an id of this deployment, so that what depends on it runs again.
    """
    live = rollout.live_versions(settings, use_case)
    if live.get("champion") != version:
        mlflow = rollout.registry(settings)
        entry = assignments.read(mlflow, use_case)
        require_newest(
            settings
        )  # a successor that begins from now on changes what was read, and this one's write fails
        champions.project(mlflow, use_case, entry)  # what a killed promotion left undone
        entry = rollout.deploy(settings, use_case, challenger=version, before=entry)
        champions.project(mlflow, use_case, entry)  # the alias of a version that was rolled back had gone above
        live = {"champion": entry.assignment.champion, "challenger": entry.assignment.challenger}
    record = {
        "use_case": use_case,
        "version": version,
        "deployment_id": uuid.uuid4().hex,
        "endpoint": rollout.endpoint(settings, use_case),
        "champion": live.get("champion") or "",
    }
    with publish(settings, deployment, "deploy") as directory:
        (directory / "deployment.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    deployment.metadata["version"] = version
    deployment.metadata["deployment_id"] = record["deployment_id"]
    deployment.metadata[EFFECT] = {"kind": "deployment", "use_case": use_case, "version": version}


def promote(settings: Settings, use_case: str, version: str, champion: Artifact) -> None:
    """Make `version` the champion; the step `promote`.

    Args:
        settings: Say where the registry and the endpoint are.
        use_case: Its name.
        version: A version in the registry.
        champion: Gets `promotion.json`.

    Raises:
        RefusalError: The same model was rolled back.
        ServiceError: MLflow or Ray does not answer.
        ConflictError: Somebody else changed who answers in between.
        SupersededError: A newer attempt at the step has begun.
    """
    mlflow = rollout.registry(settings)
    entry = assignments.read(mlflow, use_case)
    require_newest(settings)  # as above
    champions.refuse_what_was_taken_back(mlflow, use_case, version)
    change = champions.promote_version(settings, use_case, version, "its pipeline run met the gates", entry)
    with publish(settings, champion, "promote") as directory:
        record = {"use_case": use_case, "version": version, "before": change.before, "run_id": settings.run_id}
        (directory / "promotion.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    champion.metadata[EFFECT] = {"kind": "champion", "use_case": use_case, "version": version}
