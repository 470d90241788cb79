"""A user of an MLflow server that asks for passwords: `python -m shopfloor.stack.mlflow_user NAME PASSWORD_FILE`.

Made where there is none, and given the file's password where it has another; run by an administrator. It becomes an
administrator too: MLflow lets nobody else ask for an alias of a model that is not registered yet.
"""

from __future__ import annotations

import sys
from pathlib import Path

from shopfloor.runs.mlflow import Mlflow, RefusedError
from shopfloor.settings import Settings, load_settings


def main(settings: Settings, name: str, password_file: Path) -> None:
    """Make the user, or change the password.

    Raises:
        AccessError: The server does not let us.
        ServiceError: It does not answer, or refuses.
    """
    mlflow = Mlflow(settings.tracking_uri, settings.request_timeout_s)
    user = {"username": name, "password": password_file.read_text(encoding="utf-8").strip()}
    try:
        mlflow.post("users/create", user)
    except RefusedError as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        mlflow.post("users/update-password", user, "PATCH")
    mlflow.post("users/update-admin", {"username": name, "is_admin": True}, "PATCH")


if __name__ == "__main__":
    main(load_settings(), sys.argv[1], Path(sys.argv[2]))
