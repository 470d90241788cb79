"""Lets Ray run a command of ours when nobody's terminal is to stay open for it: who judges a trial or a new champion.

On a cluster that is this machine the command runs in the project itself, elsewhere in what the head's image holds: the
platform image has the project in it.
"""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from urllib.parse import urlsplit

from shopfloor.environment import ENV_PREFIX, elsewhere
from shopfloor.serving.deploy.applications import ask_ray, is_loopback
from shopfloor.settings import Settings


def begin(settings: Settings, *arguments: str) -> str:
    """Begin `shopfloor <arguments>` as a Ray job, and return its id.

    Args:
        settings: Go with the job.
        *arguments: Of the command line.

    Raises:
        ServiceError: Ray does not answer, or refuses.
    """
    environment = settings.model_copy(update={"run_id": None, "step_run_id": None}).environment()
    # Only the job knows the address of the cluster that it is on.
    own = f'{ENV_PREFIX}RAY_ADDRESS="$RAY_ADDRESS"'
    if not settings.in_containers and is_loopback(urlsplit(settings.ray_dashboard_url).hostname):
        root = settings.project_root
        begin, python = f"cd {shlex.quote(str(root))} && exec env", sys.executable
        path = [str(root), str(root / "platform"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    else:
        begin, python = "exec env", "python"
        environment = elsewhere(environment, settings.in_containers)
    job = {
        "submission_id": f"shopfloor-{secrets.token_hex(6)}",  # chosen here: a lost answer hides no job
        "entrypoint": f"{begin} {own} {shlex.quote(python)} -m shopfloor {shlex.join(arguments)}",
        "runtime_env": {"env_vars": environment},
        "metadata": {"command": shlex.join(arguments)},
    }
    ask_ray(settings, "POST", "/api/jobs/", job)
    return str(job["submission_id"])
