"""What somebody is about to do to a use case's champion, written down in the registry before it is done.

A promotion changes the endpoint, the alias and the version's record. Killed in between, it leaves its intent: the
next command finds it and finishes or undoes it. It is one tag of the registered model, so that every machine sees it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import getpass
import os
import socket
import uuid
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from shopfloor.errors import ConflictError, NotFoundError
from shopfloor.settings import Settings

TAG = "shopfloor.intent"
"""Of the registered model, while its champion changes."""
LEASE_S = 900.0
"""After so long, nobody on another machine is still at it: longer than an endpoint may take to load a version."""


class Intent(BaseModel):
    """A change of champion that has begun."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    action: Literal["promote", "rollback"]
    version: str
    """The champion to be."""
    before: str | None
    """The champion until then."""
    by: str
    """User and host."""
    when: dt.datetime
    reason: str = ""
    run_id: str = ""
    """MLflow run that asked for it, or that made the version."""

    @property
    def host(self) -> str:
        """Return where it was begun."""
        return self.by.rpartition("@")[2]

    def words(self) -> str:
        """Return it for a person."""
        what = "promotion of" if self.action == "promote" else "rollback to"
        return f"{what} version {self.version} by {self.by} at {self.when:%Y-%m-%d %H:%M:%S} UTC"


def new(action: Literal["promote", "rollback"], version: str, before: str | None, reason: str, run_id: str) -> Intent:
    """Return an intent of this user, on this machine, now."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = str(os.getuid())
    return Intent(
        id=uuid.uuid4().hex,
        action=action,
        version=version,
        before=before,
        by=f"{user}@{socket.gethostname()}",
        when=dt.datetime.now(dt.UTC),
        reason=reason,
        run_id=run_id,
    )


def read(client: Any, use_case: str) -> Intent | None:
    """Return the intent that stands in the registry, if there is one.

    Raises:
        NotFoundError: There is no such model.
    """
    from mlflow.exceptions import MlflowException

    try:
        tags = client.get_registered_model(use_case).tags
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise NotFoundError(
            f"There is no model {use_case!r}.", "`shopfloor models list` shows what there is."
        ) from error
    return parse(tags)


def parse(tags: dict[str, str]) -> Intent | None:
    """Return the intent among the tags of a registered model."""
    try:
        return Intent.model_validate_json(tags[TAG]) if tags.get(TAG) else None
    except ValidationError:  # somebody's own hand; there is nothing to finish
        return None


def write(client: Any, use_case: str, intent: Intent) -> None:
    """Write the intent down, before anything is done.

    Raises:
        ConflictError: Somebody else wrote at the same moment and was later: theirs stands.
    """
    client.set_registered_model_tag(use_case, TAG, intent.model_dump_json())
    standing = read(client, use_case)
    if standing is None or standing.id != intent.id:
        raise _under_way(use_case, standing)


def clear(client: Any, use_case: str) -> None:
    """Take the intent away, when everything is done."""
    client.delete_registered_model_tag(use_case, TAG)


def require_abandoned(use_case: str, intent: Intent) -> None:
    """Refuse to touch what somebody on another machine may still be at.

    Raises:
        ConflictError: They may.
    """
    age_s = (dt.datetime.now(dt.UTC) - intent.when).total_seconds()
    if intent.host != socket.gethostname() and age_s < LEASE_S:
        raise _under_way(use_case, intent)


@contextlib.contextmanager
def alone(settings: Settings, use_case: str) -> Iterator[None]:
    """Keep everybody else on this machine from changing the champion; a killed process keeps nobody out.

    Raises:
        ConflictError: Somebody is at it.
    """
    import fcntl

    settings.state_dir.mkdir(parents=True, exist_ok=True)
    with (settings.state_dir / f"champion-{use_case}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise _under_way(use_case, None) from error
        yield


def _under_way(use_case: str, intent: Intent | None) -> ConflictError:
    what = f": {intent.words()}" if intent else ""
    return ConflictError(
        f"The champion of {use_case} is being changed by another command{what}.",
        "Wait for it to end; `shopfloor status` shows who answers then.",
    )
