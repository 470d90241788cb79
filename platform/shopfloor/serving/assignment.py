"""Which versions an endpoint is to hold and who answers: one tag of the registered model, which every replica follows.

Serve takes a replica out of the proxy while it hands it a new configuration; requests then wait or fail. A replica that
looks at the registry by itself changes its versions in peace, and the tag changes all that belongs together at once.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shopfloor.errors import NotFoundError, ServiceError

TAG = "shopfloor.endpoint"
"""Of the registered model."""
_API = "/api/2.0/mlflow/registered-models"


class Assignment(BaseModel):
    """The versions of an endpoint, and what each gets of the requests that name none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    champion: str | None = None
    """Version that answers."""
    challenger: str | None = None
    """Version on trial, which answers whoever asks for it."""
    canary_percent: float = Field(default=0, ge=0, le=100)
    """Share of the requests that the challenger answers."""
    shadow: bool = False
    """Whether the challenger answers a copy of each row that the champion answers."""

    def versions(self) -> list[str]:
        """Return the versions that are to be loaded."""
        return [version for version in (self.champion, self.challenger) if version]

    def digest(self) -> str:
        """Return a hash of it, which tells whether a replica has it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def read(session: Any, tracking_uri: str, use_case: str, timeout_s: float) -> Assignment:
    """Return what the registry says; an assignment of nothing where it has no such model, or the model no tag.

    Args:
        session: `requests`, or a session of it.
        tracking_uri: MLflow's server.
        use_case: Name of the registered model.
        timeout_s: How long the server may take.

    Raises:
        ServiceError: The server does not answer, or refuses.
    """
    answer = _ask(session, "GET", tracking_uri, f"{_API}/get", timeout_s, params={"name": use_case})
    if answer.status_code == 404:
        return Assignment()
    tags = {tag["key"]: tag.get("value", "") for tag in _content(answer)["registered_model"].get("tags", [])}
    try:
        return Assignment.model_validate_json(tags[TAG]) if tags.get(TAG) else Assignment()
    except ValidationError as error:
        raise ServiceError(
            f"The tag {TAG} of the model {use_case} is broken.", f"Remove it, then: shopfloor models promote {use_case}"
        ) from error


def write(session: Any, tracking_uri: str, use_case: str, assignment: Assignment, timeout_s: float) -> None:
    """Let the endpoint of `use_case` hold these versions; its replicas see it within a second.

    Raises:
        NotFoundError: There is no such model.
        ServiceError: The server does not answer, or refuses.
    """
    content = {"name": use_case, "key": TAG, "value": assignment.model_dump_json()}
    answer = _ask(session, "POST", tracking_uri, f"{_API}/set-tag", timeout_s, json=content)
    if answer.status_code == 404:
        raise NotFoundError(f"There is no model {use_case!r}.", "`shopfloor models list` shows what there is.")
    _content(answer)


def _ask(session: Any, method: str, tracking_uri: str, path: str, timeout_s: float, **options: Any) -> Any:
    import requests

    try:
        return session.request(
            method, f"{tracking_uri.rstrip('/')}{path}", timeout=timeout_s, **options, **_credentials()
        )
    except requests.RequestException as error:
        raise ServiceError(
            f"The MLflow server at {tracking_uri} does not answer: {type(error).__name__}.", "See `shopfloor status`."
        ) from error


def _credentials() -> dict[str, Any]:
    """Return what MLflow's own client sends, from the same variables."""
    user, token = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_TOKEN")
    if user:
        return {"auth": (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))}
    return {"headers": {"Authorization": f"Bearer {token}"}} if token else {}


def _content(answer: Any) -> Any:
    if not answer.ok:
        raise ServiceError(
            f"The MLflow server answers {answer.status_code}: {answer.text.strip()[:300]}", "See its log."
        )
    try:
        return answer.json()
    except ValueError as error:
        raise ServiceError("What answers at the tracking address is no MLflow server.", "Mend tracking_uri.") from error
