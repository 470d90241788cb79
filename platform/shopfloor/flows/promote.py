"""Who answers: the champion alias in the registry, the version on Ray Serve and the version's record, changed as one.

The intent is written first, then come the endpoint, the alias and the record; each can be done again without harm.
Killed at any point, the next command (a promotion, a rollback, `up`) finds the intent and finishes it, or undoes it
where the version cannot answer. The endpoint goes first: a version that does not load never becomes champion.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from shopfloor.data import materialization
from shopfloor.errors import NotFoundError, ServiceError, ShopfloorError, UsageError
from shopfloor.flows import intents
from shopfloor.flows.intents import Intent
from shopfloor.registry import passport as registry
from shopfloor.runs import recorder as tracking
from shopfloor.runs.versions import PROMOTED, ROLLED_BACK
from shopfloor.serving.deploy import rollout
from shopfloor.settings import Settings
from shopfloor.storage import EFFECT, Artifact, publish
from shopfloor.use_case import list_use_cases

Step = Callable[[Settings, Any, str, Intent], None]


class Change(BaseModel):
    """What a change of champion came to."""

    model_config = ConfigDict(frozen=True)

    use_case: str
    champion: str
    before: str | None
    finished: str = ""
    """What somebody else had begun, and this command finished or undid first."""


class Standing(BaseModel):
    """Who is champion of a use case, by the registry and by the endpoint."""

    model_config = ConfigDict(frozen=True)

    use_case: str
    champion: str | None
    """By the registry."""
    answers: str | None
    """By the endpoint."""
    challenger: str | None
    """By the endpoint."""
    unfinished: str = ""
    """A change that has begun and not ended."""


def promote(settings: Settings, use_case: str, version: str, champion: Artifact) -> None:
    """Make `version` the champion; the step `promote`.

    Args:
        settings: Say where the registry and the endpoint are.
        use_case: Its name.
        version: A version in the registry.
        champion: Gets `promotion.json`.

    Raises:
        ServiceError: MLflow or Ray does not answer.
        ConflictError: Somebody else is changing the champion.
    """
    change = promote_version(settings, use_case, version, reason="its pipeline run met the gates")
    with publish(settings, champion, "promote") as directory:
        record = {"use_case": use_case, "version": version, "before": change.before, "run_id": settings.run_id}
        (directory / "promotion.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    champion.metadata[EFFECT] = {"kind": "champion", "use_case": use_case, "version": version}


def promote_version(settings: Settings, use_case: str, version: str, reason: str = "") -> Change:
    """Make a version the champion, in the registry and on the endpoint.

    Args:
        settings: Say where both are.
        use_case: Its name.
        version: A version in the registry.
        reason: Why, for the record.

    Raises:
        NotFoundError: There is no such version.
        ConflictError: Somebody else is changing the champion.
        ServiceError: MLflow or Ray does not answer.
        ShopfloorError: The version does not load; the champion before is champion still.
    """
    client = tracking.connect(settings)
    if not registry.version_exists(client, use_case, version):
        raise NotFoundError(
            f"There is no version {version} of a model {use_case!r}.", "`shopfloor models list` shows what there is."
        )
    with intents.alone(settings, use_case):
        finished = _recover(settings, client, use_case)
        before = registry.alias_version(client, use_case, registry.CHAMPION)
        if before == version and rollout.live_versions(settings, use_case).get("champion") == version:
            return Change(
                use_case=use_case, champion=version, before=_before(client, use_case, version), finished=finished
            )
        run_id = settings.run_id or client.get_model_version(use_case, version).run_id or ""
        kept = _before(client, use_case, version) if before == version else before
        _carry_out(settings, client, use_case, intents.new("promote", version, kept, reason, run_id))
    return Change(use_case=use_case, champion=version, before=kept, finished=finished)


def roll_back(settings: Settings, use_case: str, reason: str = "") -> Change:
    """Make the champion before the present one champion again.

    Args:
        settings: Say where the registry and the endpoint are.
        use_case: Its name.
        reason: Why, for the record.

    Raises:
        UsageError: There was no champion before.
        ConflictError: Somebody else is changing the champion.
        ServiceError: MLflow or Ray does not answer.
        ShopfloorError: The version before does not load; the champion stays.
    """
    client = tracking.connect(settings)
    with intents.alone(settings, use_case):
        finished = _recover(settings, client, use_case)
        champion = registry.alias_version(client, use_case, registry.CHAMPION)
        if champion is None:
            raise UsageError(f"{use_case} has no champion.", "`shopfloor models promote` makes one.")
        target = _before(client, use_case, champion)
        if target is None or not registry.version_exists(client, use_case, target):
            gone = f"Version {target}, the champion before, is gone" if target else "There was no champion before"
            raise UsageError(
                f"{gone}: version {champion} of {use_case} stays.", "`shopfloor models list` shows others."
            )
        run_id = settings.run_id or client.get_model_version(use_case, target).run_id or ""
        _carry_out(settings, client, use_case, intents.new("rollback", target, champion, reason, run_id))
    return Change(use_case=use_case, champion=target, before=champion, finished=finished)


def standing(settings: Settings, use_case: str) -> Standing | None:
    """Return who is champion; `None` where the registry does not answer or has no such model.

    By MLflow's REST API: `status` and `up` must not wait seconds for the import of its client.
    """
    import requests

    try:
        answer = requests.get(
            f"{settings.tracking_uri}/api/2.0/mlflow/registered-models/get",
            params={"name": use_case},
            timeout=settings.request_timeout_s,
        )
        model = answer.json()["registered_model"] if answer.ok else None
    except (requests.RequestException, ValueError, KeyError):
        return None
    if model is None:
        return None
    aliases = {item["alias"]: str(item["version"]) for item in model.get("aliases", [])}
    intent = intents.parse({item["key"]: item.get("value", "") for item in model.get("tags", [])})
    live = rollout.live_versions(settings, use_case)
    return Standing(
        use_case=use_case,
        champion=aliases.get(registry.CHAMPION),
        answers=live.get("champion"),
        challenger=live.get("challenger"),
        unfinished=intent.words() if intent else "",
    )


def effect_holds(settings: Settings, client: Any) -> Callable[[dict[str, str]], bool]:
    """Return the judge that the result store asks whether what a step once did is still so."""

    def holds(effect: dict[str, str]) -> bool:
        use_case, version = effect["use_case"], effect["version"]
        if effect["kind"] == materialization.EFFECT_KIND:
            return materialization.holds(settings, effect)
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
    """Finish what was begun, and bring every champion of the registry back to the endpoint that should hold it.

    Returns:
        Use case to the version that was deployed anew.
    """
    restored: dict[str, str] = {}
    for use_case in list_use_cases(settings):
        found = standing(settings, use_case)
        if found is not None and found.unfinished:
            progress(f"Finishing the {found.unfinished}")
            with intents.alone(settings, use_case):
                _recover(settings, tracking.connect(settings), use_case)
            found = standing(settings, use_case)
        if found is not None and found.champion is not None and found.answers != found.champion:
            progress(f"Deploying version {found.champion} of {use_case}, its champion")
            rollout.deploy(settings, use_case, champion=found.champion)
            restored[use_case] = found.champion
    return restored


def _carry_out(settings: Settings, client: Any, use_case: str, intent: Intent) -> None:
    intents.write(client, use_case, intent)
    _finish(settings, client, use_case, intent)


def _recover(settings: Settings, client: Any, use_case: str) -> str:
    """Finish or undo what a killed command left; return what it was.

    Raises:
        ConflictError: Somebody on another machine may still be at it.
    """
    intent = intents.read(client, use_case)
    if intent is None:
        return ""
    intents.require_abandoned(use_case, intent)
    try:
        _finish(settings, client, use_case, intent)
    except ServiceError:
        raise
    except ShopfloorError:
        return f"{intent.words()} was undone"
    return f"{intent.words()} was finished"


def _finish(settings: Settings, client: Any, use_case: str, intent: Intent) -> None:
    """Do every step, those that are done already again; undo them all where the version cannot answer."""
    try:
        for step in STEPS:
            step(settings, client, use_case, intent)
    except ShopfloorError as error:
        try:
            _undo(settings, client, use_case, intent)
        except ShopfloorError as second:
            raise ServiceError(
                f"The {intent.words()} is unfinished: {error.message}",
                "Mend that; the next `shopfloor up`, promotion or rollback finishes it.",
            ) from second
        raise


def _undo(settings: Settings, client: Any, use_case: str, intent: Intent) -> None:
    """Put everything back to the champion before."""
    rollout.deploy(settings, use_case, champion=intent.before)
    if intent.before is None:
        if registry.alias_version(client, use_case, registry.CHAMPION) == intent.version:
            client.delete_registered_model_alias(use_case, registry.CHAMPION)
    elif registry.alias_version(client, use_case, registry.CHAMPION) != intent.before:
        client.set_registered_model_alias(use_case, registry.CHAMPION, intent.before)
    intents.clear(client, use_case)


def _change_endpoint(settings: Settings, client: Any, use_case: str, intent: Intent) -> None:
    live = rollout.live_versions(settings, use_case)
    if live != {"champion": intent.version, "challenger": None}:
        rollout.deploy(settings, use_case, champion=intent.version, challenger=None)


def _change_alias(settings: Settings, client: Any, use_case: str, intent: Intent) -> None:
    client.set_registered_model_alias(use_case, registry.CHAMPION, intent.version)
    if registry.alias_version(client, use_case, registry.CHALLENGER) == intent.version:
        client.delete_registered_model_alias(use_case, registry.CHALLENGER)


def _record(settings: Settings, client: Any, use_case: str, intent: Intent) -> None:
    said = intent.model_dump(mode="json", include={"by", "when", "reason", "run_id"})
    if intent.action == "promote":
        record = said | {"before": intent.before}
        client.set_model_version_tag(use_case, intent.version, PROMOTED, json.dumps(record))
    elif intent.before is not None:
        record = said | {"champion": intent.version}
        client.set_model_version_tag(use_case, intent.before, ROLLED_BACK, json.dumps(record))


def _forget(settings: Settings, client: Any, use_case: str, intent: Intent) -> None:
    intents.clear(client, use_case)


STEPS: tuple[Step, ...] = (_change_endpoint, _change_alias, _record, _forget)
"""Of a change of champion, in their order; each may be done again."""


def history(client: Any, use_case: str, version: str) -> dict[Literal["promoted", "rolled_back"], dict[str, str]]:
    """Return who made a version champion and who took it back, as far as that happened."""
    tags = client.get_model_version(use_case, version).tags
    found: dict[Literal["promoted", "rolled_back"], dict[str, str]] = {}
    if PROMOTED in tags:
        found["promoted"] = json.loads(tags[PROMOTED])
    if ROLLED_BACK in tags:
        found["rolled_back"] = json.loads(tags[ROLLED_BACK])
    return found


def _before(client: Any, use_case: str, version: str) -> str | None:
    """Return the champion before `version`, by its record."""
    before = history(client, use_case, version).get("promoted", {}).get("before")
    return None if before is None or before == version else str(before)
