"""Who answers, seen from outside: how every endpoint stands, what still holds, and all of it built again."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel, ConfigDict

from shopfloor.data import materialization
from shopfloor.errors import ShopfloorError
from shopfloor.runs.mlflow import version_exists
from shopfloor.serving import assignment as assignments
from shopfloor.serving.assignment import Entry
from shopfloor.serving.deploy import applications, champion, rollout
from shopfloor.settings import EMBEDDED, Settings
from shopfloor.use_case import list_use_cases, load_served_case

_AT_ONCE = 8
"""Endpoints that are waited for at a time."""


class Standing(BaseModel):
    """Who is champion of a use case, by the registry and by the endpoint."""

    model_config = ConfigDict(frozen=True)

    use_case: str
    champion: str | None
    """Version that the registry calls champion."""
    answers: str | None
    """Version that answers at the endpoint."""
    challenger: str | None
    """Version on trial at the endpoint."""
    canary_percent: float
    """Share of the challenger, by the endpoint."""
    changed: str
    """Last change, in words; empty where nobody changed anything."""


class Restored(BaseModel):
    """What was built again."""

    model_config = ConfigDict(frozen=True)

    champions: dict[str, str]
    """Use case to the version that answers again."""
    problems: dict[str, str]
    """Use case to why it does not."""


def standing(settings: Settings, use_case: str) -> Standing | None:
    """Return who is champion; `None` where the registry has no such model.

    Raises:
        ServiceError: The registry does not answer, or refuses.
    """
    entry = assignments.read(rollout.registry(settings), use_case)
    live = rollout.live_versions(settings, use_case)
    if not entry.has_record and not live:
        return None
    assignment = entry.assignment
    return Standing(
        use_case=use_case,
        champion=assignment.champion,
        answers=live.get("champion"),
        challenger=live.get("challenger"),
        canary_percent=rollout.live_share(settings, use_case) if live.get("challenger") else 0.0,
        changed=assignment.words() if assignment.when else "",
    )


def standings(settings: Settings) -> list[Standing]:
    """Return how every endpoint stands: of the use cases here, and of those that the registry alone knows.

    Raises:
        ServiceError: The registry does not answer, or refuses.
    """
    names = set(list_use_cases(settings))
    names |= {name for name, entry in assignments.read_all(rollout.registry(settings)).items() if entry.application}
    return [present for name in sorted(names) if (present := standing(settings, name)) is not None]


def effect_holds(settings: Settings) -> Callable[[dict[str, str]], bool]:
    """Return the judge that the result store asks whether what a step once did is still so."""

    def holds(effect: dict[str, str]) -> bool:
        use_case, version = effect["use_case"], effect["version"]
        if effect["kind"] == materialization.EFFECT_KIND:
            return materialization.holds(settings, effect)
        if effect["kind"] == "model_version":
            return version_exists(rollout.registry(settings), use_case, version)
        live = rollout.live_versions(settings, use_case)
        if effect["kind"] == "deployment":
            return version in live.values()
        entry = assignments.read(rollout.registry(settings), use_case)
        return live.get("champion") == version == entry.assignment.champion

    return holds


def restore(settings: Settings, progress: Callable[[str], None]) -> Restored:
    """Bring every endpoint of the registry back, whatever becomes of the others, and write the projections again.

    On a cluster that others use too, those that were declared for it, as they were declared: this clone and its
    settings need not be those of who deployed them.

    Args:
        settings: Say where the registry, Ray and Serve are.
        progress: Is told what happens.
    """
    mlflow = rollout.registry(settings)
    problems: dict[str, str] = {}
    waiting: dict[str, Entry] = {}
    here = applications.place(settings)
    own = set(list_use_cases(settings)) if settings.profile == EMBEDDED else set()
    elsewhere = {
        name for name, entry in assignments.read_all(mlflow).items() if entry.application and entry.place == here
    }
    for use_case in sorted(own | elsewhere):
        try:
            entry = assignments.read(mlflow, use_case)
            champion.project(mlflow, use_case, entry)
            if not entry.assignment.versions():
                continue
            if settings.profile == EMBEDDED:
                entry = _declared_anew(settings, use_case, entry, use_case in own)
            live = rollout.live_versions(settings, use_case)
            if live.get("champion") != entry.assignment.champion:
                progress(f"Deploying version {entry.assignment.champion} of {use_case}, its champion")
            waiting[use_case] = entry
        except ShopfloorError as error:
            problems[use_case] = str(error)
    if not waiting:
        return Restored(champions={}, problems=problems)
    applications.declare(settings, *waiting)
    deadline = time.monotonic() + rollout.DEPLOY_TIMEOUT_S

    def wait(use_case: str) -> str:
        try:
            rollout.hold(settings, use_case, waiting[use_case], deadline)
        except ShopfloorError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        ends = dict(zip(waiting, pool.map(wait, waiting), strict=True))
    problems |= {use_case: problem for use_case, problem in ends.items() if problem}
    champions = {name: entry.assignment.champion for name, entry in waiting.items()}
    return Restored(
        champions={name: version for name, version in champions.items() if version and name not in problems},
        problems=problems,
    )


def _declared_anew(settings: Settings, use_case: str, entry: Entry, is_own: bool) -> Entry:
    """Return the entry with what Serve is to run as this project and these settings have it now."""
    if is_own:
        application = applications.build(settings, load_served_case(settings, use_case), entry)
    else:
        application = applications.readdressed(settings, entry.application or {})
    if application == entry.application and entry.place == applications.place(settings):
        return entry
    assignment = entry.assignment
    return assignments.change(
        rollout.registry(settings),
        use_case,
        entry,
        lease=entry.lease,
        application=application,
        place=applications.place(settings),
        replaced=assignment.replaced,
        action=assignment.action,
        by=assignment.by,
        when=assignment.when,
        reason=assignment.reason,
        run_id=assignment.run_id,
    )
