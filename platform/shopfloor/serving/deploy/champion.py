"""Makes a version the champion, and takes it back: loaded first, then one write, then what shows it elsewhere.

The write is the decision. Killed before it, the champion is the one before; killed after it, the new one answers all
the same, for replicas follow the registry. The alias and the versions' records are projections of what was written:
every command writes them again, and whoever wrote an old one looks whether there is a newer one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from shopfloor.errors import AccessError, ConflictError, NotFoundError, RefusalError, ServiceError, UsageError
from shopfloor.runs.mlflow import (
    Mlflow,
    RefusedError,
    aliases_of,
    registered_model,
    tags_of,
    version_exists,
    version_of,
)
from shopfloor.runs.versions import CHALLENGER, CHAMPION, MODEL_HASH, PROMOTED, ROLLED_BACK
from shopfloor.serving import assignment as assignments
from shopfloor.serving.assignment import Entry
from shopfloor.serving.deploy import applications, jobs, rollout
from shopfloor.settings import Settings
from shopfloor.use_case import load_served_case

logger = logging.getLogger(__name__)

_TRIES = 10
History = dict[Literal["promoted", "rolled_back"], dict[str, str]]


class Change(BaseModel):
    """What a change of champion came to."""

    model_config = ConfigDict(frozen=True)

    use_case: str
    champion: str
    before: str | None
    """Champion until then, or the one to go back to where nothing had to change."""


def promote_version(
    settings: Settings, use_case: str, version: str, reason: str = "", before: Entry | None = None
) -> Change:
    """Make a version the champion, in the registry and on the endpoint.

    Args:
        settings: Say where both are.
        use_case: Its name.
        version: A version in the registry.
        reason: Why, for the record.
        before: What the caller read of the registry before it decided; `None` reads it now.

    Raises:
        NotFoundError: There is no such use case or version.
        ConflictError: Somebody else changed who answers in between.
        ServiceError: MLflow or Ray does not answer.
        ShopfloorError: The version does not load; the champion before is champion still.
    """
    case = load_served_case(settings, use_case)
    mlflow = rollout.registry(settings)
    run_id = version_of(mlflow, use_case, version).get("run_id", "")
    entry = current(mlflow, use_case, before)
    project(mlflow, use_case, entry)
    champion = entry.assignment.champion
    if champion == version:
        application = applications.build(settings, case, entry)
        if applications.declaration(application) == applications.declaration(entry.application):
            rollout.hold(settings, use_case, entry)
        else:  # it has other settings now, or never stood in the registry
            rollout.deploy(settings, use_case, traffic=rollout.KEEP, before=entry, reason=reason)
        return Change(use_case=use_case, champion=version, before=entry.assignment.before)
    _switch(settings, mlflow, use_case, entry, version, champion, "promote", reason, settings.run_id or run_id)
    if case.gates.live.watch_s and champion is not None:
        _guard(settings, use_case)
    return Change(use_case=use_case, champion=version, before=champion)


def roll_back(settings: Settings, use_case: str, reason: str = "", before: Entry | None = None) -> Change:
    """Make the champion before the present one champion again.

    Args:
        settings: Say where the registry and the endpoint are.
        use_case: Its name.
        reason: Why, for the record.
        before: What the caller read of the registry before it decided; `None` reads it now.

    Raises:
        UsageError: There was no champion before.
        ConflictError: Somebody else changed who answers in between.
        ServiceError: MLflow or Ray does not answer.
        ShopfloorError: The version before does not load; the champion stays.
    """
    load_served_case(settings, use_case)
    mlflow = rollout.registry(settings)
    entry = current(mlflow, use_case, before)
    project(mlflow, use_case, entry)
    champion = entry.assignment.champion
    if champion is None:
        raise UsageError(f"{use_case} has no champion.", "`shopfloor models promote` makes one.")
    target = entry.assignment.before or _before(history(mlflow, use_case, champion), champion)
    if target is None or not version_exists(mlflow, use_case, target):
        gone = f"Version {target}, the champion before, is gone" if target else "There was no champion before"
        raise UsageError(f"{gone}: version {champion} of {use_case} stays.", "`shopfloor models list` shows others.")
    earlier = _before(history(mlflow, use_case, target), target)
    run_id = settings.run_id or version_of(mlflow, use_case, target).get("run_id", "")
    _switch(settings, mlflow, use_case, entry, target, earlier, "rollback", reason, run_id)
    return Change(use_case=use_case, champion=target, before=champion)


def current(mlflow: Mlflow, use_case: str, before: Entry | None) -> Entry:
    """Return what stands in the registry now, where that is what the caller decided on.

    Raises:
        ConflictError: It is not: somebody else changed who answers since `before` was read.
    """
    entry = assignments.read(mlflow, use_case)
    if before is not None:
        assignments.require_same(use_case, before, entry)
    return entry


def project(mlflow: Mlflow, use_case: str, entry: Entry) -> None:
    """Write the alias and the versions' records as the registry's assignment has them, until it holds still.

    Raises:
        ServiceError: MLflow refuses, or did not answer twice.
    """
    failed = False
    for _ in range(_TRIES):
        if not entry.assignment.revision:
            return
        try:
            _project(mlflow, use_case, entry)
            newest = assignments.read(mlflow, use_case)
        except (AccessError, RefusedError):
            raise
        except ServiceError:  # all of it may be written twice
            if failed:
                raise
            failed = True
            continue
        if newest.assignment.revision == entry.assignment.revision:
            return
        entry = newest


def refuse_what_was_taken_back(mlflow: Mlflow, use_case: str, version: str) -> None:
    """Let no run promote a model again that somebody took back since.

    Raises:
        RefusalError: This version, or another one of the same model, was rolled back after it was last promoted.
    """
    tags = tags_of(version_of(mlflow, use_case, version))
    same = [(version, tags)]
    if digest := tags.get(MODEL_HASH):
        others = mlflow.search(
            "model-versions/search",
            "model_versions",
            filter=f"name = '{use_case}' and tag.`{MODEL_HASH}` = '{digest}'",
            max_results=1000,
        )
        same += [(str(other["version"]), tags_of(other)) for other in others]
    decisions = [
        (record.get("when", ""), what, number, record)
        for number, tags in same
        for what, record in _history(tags).items()
    ]
    if not decisions:
        return
    _, what, number, record = max(decisions, key=lambda decision: decision[:2])
    if what == "rolled_back":
        who = f"{record.get('by', 'somebody')} rolled back on {record.get('when', '')[:10]}"
        why = f": {record['reason']}" if record.get("reason") else ""
        which = "" if number == version else f" is the same model as version {number}, which"
        raise RefusalError(
            f"Version {version} of {use_case}{which or ','} {who}{why}. A run does not promote it again.",
            f"If it is to answer after all: shopfloor models promote {use_case}/{version}",
        )


def history(mlflow: Mlflow, use_case: str, version: str) -> History:
    """Return who made a version champion and who took it back, as far as that happened."""
    return _history(tags_of(version_of(mlflow, use_case, version)))


def _switch(
    settings: Settings,
    mlflow: Mlflow,
    use_case: str,
    entry: Entry,
    version: str,
    before: str | None,
    action: Literal["promote", "rollback"],
    reason: str,
    run_id: str,
) -> None:
    """Load a version beside what answers, then let it be champion by one write."""
    replaced = entry.assignment.champion
    if not rollout.holds_already(settings, use_case, version, entry):
        entry = rollout.deploy(settings, use_case, challenger=version, before=entry, reason=reason)
    entry = assignments.change(
        mlflow,
        use_case,
        entry,
        champion=version,
        challenger=None,
        canary_percent=0,
        shadow=False,
        before=before,
        replaced=replaced,
        application=applications.build(settings, load_served_case(settings, use_case), entry),
        place=applications.place(settings),
        action=action,
        reason=reason,
        run_id=run_id,
    )
    try:
        rollout.hold(settings, use_case, entry)
    except ConflictError:  # somebody changed it again since: it was so, for a moment
        raise
    except ServiceError as error:
        raise ServiceError(
            f"Version {version} is the champion of {use_case}, and the endpoint does not hold it yet: {error.message}",
            "It follows by itself; `shopfloor up` waits for it.",
        ) from error
    finally:
        try:
            project(mlflow, use_case, entry)
        except ServiceError as error:  # the decision stands; every command writes what shows it elsewhere
            logger.warning("The alias and the records of %s are late: %s", use_case, error)


def _guard(settings: Settings, use_case: str) -> None:
    """Let a Ray job judge the new champion; that none can be had takes nothing back."""
    try:
        jobs.begin(settings, "rollout", "guard", use_case)
    except ServiceError as error:
        logger.warning("Nobody watches the new champion of %s: %s", use_case, error)


def _project(mlflow: Mlflow, use_case: str, entry: Entry) -> None:
    now = entry.assignment
    model = registered_model(mlflow, use_case)
    aliases = aliases_of(model)
    targets = {CHAMPION: now.champion, CHALLENGER: now.challenger or aliases.get(CHALLENGER)}
    if targets[CHALLENGER] in (now.champion, now.replaced) or now.action == "end":
        targets[CHALLENGER] = now.challenger  # a registered version waits for its trial under this alias too
    for alias, version in targets.items():
        if version is not None and aliases.get(alias) != version:
            _write(mlflow, "registered-models/alias", {"name": use_case, "alias": alias, "version": version})
        elif version is None and alias in aliases:
            _write(mlflow, "registered-models/alias", {"name": use_case, "alias": alias}, "DELETE")
    record = now.model_dump(mode="json", include={"by", "when", "reason", "run_id"})
    if now.action == "promote" and now.champion:
        _record(mlflow, use_case, now.champion, PROMOTED, record | {"before": now.replaced})
    elif now.action == "rollback" and now.replaced:
        _record(mlflow, use_case, now.replaced, ROLLED_BACK, record | {"champion": now.champion})


def _record(mlflow: Mlflow, use_case: str, version: str, tag: str, record: Mapping[str, Any]) -> None:
    content = {"name": use_case, "version": version, "key": tag, "value": json.dumps(record)}
    _write(mlflow, "model-versions/set-tag", content)


def _write(mlflow: Mlflow, path: str, content: dict[str, Any], method: str = "POST") -> None:
    """Write what another command may be writing too: MLflow then refuses one of both, and has it all the same."""
    try:
        mlflow.post(path, content, method)
    except NotFoundError:  # somebody deleted the version
        return
    except RefusedError:
        mlflow.post(path, content, method)


def _before(records: History, version: str) -> str | None:
    """Return the champion before `version`, by its record."""
    before = records.get("promoted", {}).get("before")
    return None if before is None or before == version else str(before)


def _history(tags: Mapping[str, str]) -> History:
    records: History = {}
    if PROMOTED in tags:
        records["promoted"] = json.loads(tags[PROMOTED])
    if ROLLED_BACK in tags:
        records["rolled_back"] = json.loads(tags[ROLLED_BACK])
    return records
