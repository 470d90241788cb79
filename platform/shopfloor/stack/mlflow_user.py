"""A user of an MLflow server that asks for passwords: `python -m shopfloor.stack.mlflow_user NAME PASSWORD_FILE`.

Made where there is none, and given the file's password where it has another; run by an administrator. It may do
everything with experiments and registered models, whoever made them, and nothing with users, roles and the rest. With
`--own` behind them it gets no role: what it makes is its own, of what others made it has what everybody gets.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from shopfloor.runs.mlflow import API_3, Mlflow, RefusedError
from shopfloor.settings import Settings, load_settings

WORKSPACE = "default"
"""MLflow's own name of the one workspace where none were made."""
RIGHTS = {"experiment": "MANAGE", "registered_model": "MANAGE"}
"""What the role of the user may do, by kind of thing. A grant by name alone would come after a thing was made, so that
a server killed in between would lock the platform out of what it made itself."""


def main(settings: Settings, name: str, password_file: Path, role: bool = True) -> None:
    """Make the user, or change the password, and give it a role of its name and no other rights.

    Args:
        settings: Say where the server is.
        name: Of the user.
        password_file: Holds the password.
        role: Whether it gets one, with which it may do everything with what others made too.

    Raises:
        AccessError: The server does not let us.
        ServiceError: It does not answer, or refuses.
    """
    mlflow = Mlflow(settings.tracking_uri, settings.request_timeout_s)
    user = {"username": name, "password": password_file.read_text(encoding="utf-8").strip()}
    if not _made(mlflow, "users/create", user):
        mlflow.post("users/update-password", user, "PATCH")
    mlflow.post("users/update-admin", {"username": name, "is_admin": False}, "PATCH")
    if not role:
        return
    roles = Mlflow(settings.tracking_uri, settings.request_timeout_s, api=API_3)
    _made(roles, "roles/create", {"name": name, "workspace": WORKSPACE})
    own = next(role for role in roles.search("roles/list", "roles", workspace=WORKSPACE) if role["name"] == name)
    for kind, right in RIGHTS.items():
        grant = {"role_id": own["id"], "resource_type": kind, "resource_pattern": "*", "permission": right}
        _made(roles, "roles/permissions/add", grant)
    _made(roles, "roles/assign", {"role_id": own["id"], "username": name})


def _made(mlflow: Mlflow, path: str, content: dict[str, Any]) -> bool:
    """Ask MLflow to make something, and tell whether it was not there already."""
    try:
        mlflow.post(path, content)
    except RefusedError as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return False
    return True


if __name__ == "__main__":
    main(load_settings(), sys.argv[1], Path(sys.argv[2]), role="--own" not in sys.argv[3:])
