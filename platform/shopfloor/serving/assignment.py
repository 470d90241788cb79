"""Who answers, as it stands in the registry: a ledger of changes, of which the newest valid one is the truth.

MLflow's tags and aliases overwrite, and nothing in its API says "only if nobody else wrote". What it does decide, in
one transaction, is the number of a new model version. So each change is a new version of the registered model
`<use_case>.endpoint`, with the whole value in its tags and the number of the version before it as its base. It is
valid only where its own number is the next one: whoever wrote in between took that number. A writer that lost, or that
wakes up late, leaves an entry that nobody reads. The version's aliases and records are projections (`deploy/champion`).
Entries older than the last hundred are removed; MLflow gives a number once, also where its entry is gone.
"""

from __future__ import annotations

import datetime as dt
import getpass
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from shopfloor.errors import AccessError, ConflictError, NotFoundError, ServiceError, ShopfloorError
from shopfloor.runs.mlflow import Mlflow, RefusedError, aliases_of, registered_model, tags_of
from shopfloor.serving.contract import LEASE_KEPT, TAG, Assignment
from shopfloor.settings import Settings

logger = logging.getLogger(__name__)

AT_CHAMPION = "@champion"
"""Reference to the version that answers when it is looked up."""
SUFFIX = ".endpoint"
"""End of a ledger's name, behind the use case's; no use case's name has a full stop."""
BASE = "shopfloor.base"
"""Tag of an entry: number of the entry that its writer saw last."""
LEASE = "shopfloor.lease"
"""Tag of an entry: whether somebody still answers for the challenger's share, see `contract`."""
APPLICATION = "shopfloor.application"
"""Tag of an entry: what Ray Serve is asked to run, and where."""
LEDGER = "shopfloor.ledger"
"""Tag of a model: name of its ledger."""
KEPT = 100
"""Numbers below that of the newest valid entry that stay, for whoever asks who changed what."""
SWEEP_EVERY = 10
"""Changes after which older entries are removed."""
SWEPT_AT_ONCE = 50
_PAGE = 5
"""Newest entries that a reader asks for; there are more only where so many writers lost in a row."""
_TRIES, _TRIES_OF_FAILURES = 10, 2


@dataclass(frozen=True)
class Entry:
    """The newest valid change, with what stands beside it."""

    assignment: Assignment
    lease: str = LEASE_KEPT
    application: dict[str, Any] | None = None
    """Application of Serve, as `deploy/applications` declares it; `None` where nothing is to run."""
    place: str = ""
    """Ray cluster on which it runs."""
    tokens_file: str | None = None
    """File of the tokens that the endpoint requires, or required until it was removed; `None` where it has none."""
    number: int = 0
    """Number of the newest entry, valid or not."""
    has_record: bool = True
    """Whether the registry says anything at all: one that lost a model takes no champion off."""


def read(mlflow: Mlflow, use_case: str) -> Entry:
    """Return what the registry says; an assignment of nothing where it never heard of an endpoint.

    Args:
        mlflow: The registry.
        use_case: Name of the registered model.

    Raises:
        ServiceError: MLflow does not answer, or refuses, or the entry is broken.
    """
    versions = _entries(mlflow, use_case, _PAGE)
    if not versions:
        return _before_ledgers(mlflow, use_case)
    entry = _newest_valid(versions) or _newest_valid(_entries(mlflow, use_case, 1000))
    return entry or Entry(Assignment(), number=int(versions[0]["version"]), has_record=False)


def read_all(mlflow: Mlflow) -> dict[str, Entry]:
    """Return the newest valid change of every use case that has a ledger."""
    models = mlflow.search(
        "registered-models/search", "registered_models", filter=f"name LIKE '%{SUFFIX}'", max_results=1000
    )
    entries: dict[str, Entry] = {}
    for model in models:
        use_case = model["name"].removesuffix(SUFFIX)
        entries[use_case] = _newest_valid(model.get("latest_versions", [])) or read(mlflow, use_case)
    return entries


def resolve(settings: Settings, use_case: str, reference: str) -> str:
    """Return the version that a reference names at this moment, empty where it names none.

    Args:
        settings: Say where the registry is.
        use_case: Name of the registered model.
        reference: A version's number or nothing, which stand for themselves, or `@` and an alias. `@champion` is the
            version that answers, whatever the alias says.

    Raises:
        ServiceError: MLflow does not answer, or refuses.
    """
    if not reference.startswith("@"):
        return reference
    mlflow = Mlflow(settings.tracking_uri, settings.request_timeout_s)
    if reference == AT_CHAMPION:
        return read(mlflow, use_case).assignment.champion or ""
    try:
        model = registered_model(mlflow, use_case)
    except NotFoundError:
        return ""
    return aliases_of(model).get(reference.removeprefix("@"), "")


def change(mlflow: Mlflow, use_case: str, base: Entry, lease: str = LEASE_KEPT, **values: Any) -> Entry:
    """Write the next assignment, unless somebody else changed anything since `base` was read.

    Args:
        mlflow: The registry.
        use_case: Name of the registered model.
        base: What was read; what `values` leaves out stays as it is there.
        lease: Whether somebody answers for the challenger's share, see `contract`.
        **values: Fields of `Assignment` that change, and `application` and `place`.

    Returns:
        What stands in the registry now.

    Raises:
        ConflictError: Somebody else wrote in between; says who.
        NotFoundError: There is no such model.
        ServiceError: MLflow does not answer, or refuses.
    """
    application = values.pop("application", base.application)
    place = values.pop("place", base.place)
    fresh: dict[str, Any] = {"action": "deploy", "replaced": None, "reason": "", "run_id": ""}
    fresh |= {"by": myself(), "when": dt.datetime.now(dt.UTC), "id": uuid.uuid4().hex, "revision": 0}
    assignment = Assignment.model_validate(base.assignment.model_dump() | fresh | values)
    tags = {TAG: assignment.model_dump_json(exclude={"revision"}), LEASE: lease}
    tokens_file = base.tokens_file if application is None else tokens_file_of(application)
    if application is not None or tokens_file:
        declared = {"place": place, "application": application, "tokens_file": tokens_file}
        tags[APPLICATION] = json.dumps(declared, sort_keys=True)
    number = base.number
    for attempt in range(_TRIES):
        failure: ServiceError | None = None
        try:
            if _append(mlflow, use_case, number, tags, assignment) == number + 1:
                assignment = assignment.model_copy(update={"revision": number + 1})
                if (number + 1) % SWEEP_EVERY == 0:
                    _sweep(mlflow, use_case, number + 1)
                return Entry(assignment, lease, application, place, tokens_file, number + 1)
        except (AccessError, RefusedError):
            raise
        except ServiceError as error:  # a database that is busy, or an answer that was lost
            failure = error
        newest = read(mlflow, use_case)
        if newest.assignment.id == assignment.id:
            return newest
        require_same(use_case, base, newest)
        if failure is not None and attempt >= _TRIES_OF_FAILURES:
            raise failure
        number = newest.number  # only somebody who lost as well was in between
        time.sleep(0.02 * attempt)
    raise ConflictError(f"The endpoint of {use_case} is being changed by too many at once.", "Try again.")


def require_same(use_case: str, before: Entry, newest: Entry) -> None:
    """Let only who still has the last word go on.

    Raises:
        ConflictError: Somebody else changed who answers since `before` was read.
    """
    if newest.assignment.revision != before.assignment.revision:
        raise ConflictError(
            f"Somebody else changed the endpoint of {use_case} in between: {newest.assignment.words()}.",
            "`shopfloor status` shows who answers; try again if it is not what you want.",
        )


def renew(mlflow: Mlflow, use_case: str, entry: Entry, lease: str) -> None:
    """Say whether somebody answers for the challenger's share of this entry, and how long, see `contract`.

    Raises:
        ServiceError: MLflow does not answer, or refuses.
    """
    content = {"name": use_case + SUFFIX, "version": str(entry.assignment.revision), "key": LEASE}
    if entry.assignment.revision:
        mlflow.post("model-versions/set-tag", content | {"value": lease})


def fresh_lease(lease_s: float) -> str:
    """Return a lease that begins now and holds for that time."""
    return f"{time.time():.3f}+{lease_s:g}"


def tokens_file_of(application: Mapping[str, Any] | None) -> str | None:
    """Return where a declared application finds the tokens that it requires; `None` where it requires none."""
    deployments = (application or {}).get("deployments") or [{}]
    file: str | None = (deployments[0].get("user_config") or {}).get("tokens_file")
    return file


def myself() -> str:
    """Return user and host of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _entries(mlflow: Mlflow, use_case: str, count: int, order: Literal["ASC", "DESC"] = "DESC") -> list[Any]:
    try:
        return mlflow.search(
            "model-versions/search",
            "model_versions",
            filter=f"name = '{use_case}{SUFFIX}'",
            order_by=f"version_number {order}",
            max_results=count,
        )
    except NotFoundError:
        return []


def _sweep(mlflow: Mlflow, use_case: str, revision: int) -> None:
    """Remove entries that are far below a valid one; what fails is left to the next sweep.

    MLflow only marks a version as deleted, with all of its tags, so the longest one is taken off first.
    """
    try:
        for version in _entries(mlflow, use_case, SWEPT_AT_ONCE, "ASC"):
            if int(version["version"]) > revision - KEPT:
                return
            name = {"name": version["name"], "version": version["version"]}
            if APPLICATION in tags_of(version):
                mlflow.post("model-versions/delete-tag", name | {"key": APPLICATION}, "DELETE")
            mlflow.post("model-versions/delete", name, "DELETE")
    except ShopfloorError as error:  # another writer sweeps too, or the registry is busy
        logger.info("old entries of the endpoint of %s stay: %s", use_case, error)


def _newest_valid(versions: list[Any]) -> Entry | None:
    """Return the newest entry that was written on top of the one before it."""
    for version in versions:
        tags = tags_of(version)
        number = int(version["version"])
        if tags.get(BASE) != str(number - 1):
            continue
        try:
            assignment = Assignment.model_validate_json(tags[TAG]).model_copy(update={"revision": number})
            declared = json.loads(tags.get(APPLICATION) or "{}")
        except (ValidationError, ValueError, KeyError) as error:
            raise ServiceError(
                f"Version {number} of {version['name']} in MLflow is broken.", "Delete that version in MLflow."
            ) from error
        return Entry(
            assignment,
            tags.get(LEASE, LEASE_KEPT),
            declared.get("application"),
            declared.get("place", ""),
            declared.get("tokens_file") or tokens_file_of(declared.get("application")),
            int(versions[0]["version"]),
        )
    return None


def _append(mlflow: Mlflow, use_case: str, base: int, tags: dict[str, str], assignment: Assignment) -> int:
    """Add an entry and return the number that MLflow gave it."""
    entry = {
        "name": use_case + SUFFIX,
        "source": f"shopfloor:/{use_case}",  # MLflow wants one; there are no files behind an entry
        "description": f"Champion {assignment.champion or '-'}, challenger {assignment.challenger or '-'}: "
        f"{assignment.words()}",
        "tags": [{"key": key, "value": value} for key, value in (tags | {BASE: str(base)}).items()],
    }
    try:
        return int(mlflow.post("model-versions/create", entry)["model_version"]["version"])
    except (NotFoundError, AccessError):  # of a model that is not registered, a server with users says 403
        if base:
            raise
        _begin_ledger(mlflow, use_case)
        return int(mlflow.post("model-versions/create", entry)["model_version"]["version"])


def _begin_ledger(mlflow: Mlflow, use_case: str) -> None:
    try:
        registered_model(mlflow, use_case)
    except NotFoundError as error:
        raise NotFoundError(
            f"There is no model {use_case!r}.", "`shopfloor models list` shows what there is."
        ) from error
    # Any user of a server may register a model. Only who may change this one says who answers for it.
    mlflow.post("registered-models/set-tag", {"name": use_case, "key": LEDGER, "value": use_case + SUFFIX})
    description = f"Who answers for {use_case}, and who changed it: the newest version counts. Kept by Shopfloor."
    try:
        mlflow.post("registered-models/create", {"name": use_case + SUFFIX, "description": description})
    except RefusedError as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _before_ledgers(mlflow: Mlflow, use_case: str) -> Entry:
    """Return what the tag and the alias say that stood in the place of a ledger until version 0.1."""
    try:
        model = registered_model(mlflow, use_case)
    except NotFoundError:  # said by MLflow itself; any other 404 says nothing about the model
        return Entry(Assignment(), has_record=False)
    aliases = aliases_of(model)
    text = tags_of(model).get(TAG)
    try:
        old = Assignment.model_validate_json(text) if text else Assignment(champion=aliases.get("champion"))
    except ValidationError as error:
        raise ServiceError(
            f"The tag {TAG} of the model {use_case} is broken.", f"Remove it, then: shopfloor models promote {use_case}"
        ) from error
    return Entry(old, has_record=bool(text or old.champion))
