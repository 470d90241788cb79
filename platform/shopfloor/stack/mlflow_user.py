"""A user of an MLflow server that asks for passwords: `python -m shopfloor.stack.mlflow_user NAME PASSWORD_FILE`.

Made where there is none, and given the file's password where it has another; run by an administrator. It becomes an
administrator too: MLflow lets nobody else ask for an alias of a model that is not registered yet.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from shopfloor.errors import ServiceError
from shopfloor.settings import Settings, load_settings


def main(settings: Settings, name: str, password_file: Path) -> None:
    """Make the user, or change the password.

    Raises:
        ServiceError: The server does not answer, or does not let us.
    """
    user = {"username": name, "password": password_file.read_text(encoding="utf-8").strip()}
    if _ask(settings, "POST", "create", user, allowed={400}) == 400:  # it exists
        _ask(settings, "PATCH", "update-password", user)
    _ask(settings, "PATCH", "update-admin", {"username": name, "is_admin": True})


def _ask(
    settings: Settings, method: str, call: str, content: Mapping[str, object], allowed: Collection[int] = ()
) -> int:
    import requests

    url = f"{settings.tracking_uri}/api/2.0/mlflow/users/{call}"
    login = (os.environ.get("MLFLOW_TRACKING_USERNAME", ""), os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
    try:
        answer = requests.request(method, url, json=content, auth=login, timeout=settings.request_timeout_s)
    except requests.RequestException as error:
        raise ServiceError(f"MLflow at {settings.tracking_uri} does not answer.", "See its log.") from error
    if not answer.ok and answer.status_code not in allowed:
        raise ServiceError(
            f"MLflow at {settings.tracking_uri} refused to {call} a user: {answer.status_code}.",
            "Look at MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
        )
    return answer.status_code


if __name__ == "__main__":
    main(load_settings(), sys.argv[1], Path(sys.argv[2]))
