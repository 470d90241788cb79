"""Docker Compose's own command, asked in the project: of the live stack, or of one that stands beside it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shopfloor.errors import ServiceError, exception_in
from shopfloor.settings import Settings
from shopfloor.storage import write_atomically

_NOTE = "compose.json"
"""File of a state directory that says which compose project is meant; without it the one of the person's shell is."""


def compose(settings: Settings, *arguments: str, stdin: Any = subprocess.DEVNULL, stdout: Any = subprocess.PIPE) -> str:
    """Run `docker compose` and return what it printed.

    Args:
        settings: Say where docker-compose.yml is, and may be those of a stack beside the live one.
        *arguments: Of the command.
        stdin: What it reads; nothing by default.
        stdout: Where its output goes instead.

    Raises:
        ServiceError: It cannot be run, or failed; says its last line.
    """
    note = _note(settings)
    own = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {"options": [], "variables": {}}
    return _run(settings, ["compose", *own["options"], *arguments], own["variables"], stdin, stdout)


def docker(settings: Settings, *arguments: str) -> str:
    """Run a command of docker's own, of no project, and return what it printed; see `compose` for the errors."""
    return _run(settings, list(arguments), {})


def stand_beside(settings: Settings, name: str, variables: Mapping[str, str]) -> None:
    """Let `compose` with these settings mean a project of its own from now on.

    Args:
        settings: Of that stack; their state directory keeps the note.
        name: Name of the project.
        variables: Ports and places that differ from the live stack's.
    """
    own = {"options": ["--project-name", name], "variables": dict(variables)}
    write_atomically(_note(settings), json.dumps(own))


def stands_beside(settings: Settings) -> bool:
    """Tell whether `compose` with these settings means another stack than the live one."""
    return _note(settings).is_file()


def env_file(settings: Settings) -> Path:
    """Return the file of compose's variables that a stack's secrets are named in."""
    return (settings.state_dir if stands_beside(settings) else settings.project_root) / ".env"


def _run(
    settings: Settings,
    arguments: list[str],
    variables: Mapping[str, str],
    stdin: Any = subprocess.DEVNULL,
    stdout: Any = subprocess.PIPE,
) -> str:
    try:
        done = subprocess.run(
            ["docker", *arguments],
            cwd=settings.project_root,
            env=os.environ | dict(variables),
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            check=False,
        )
    except OSError as error:
        raise ServiceError(f"docker cannot be run: {error.strerror}.", "Run this where the stack runs.") from error
    if done.returncode:
        words = exception_in(done.stderr.decode(errors="replace")).rstrip(".")
        raise ServiceError(
            f"`docker {' '.join(arguments[:6])}` failed: {words}.", "`docker compose ps` shows what runs."
        )
    return (done.stdout or b"").decode()


def _note(settings: Settings) -> Path:
    return settings.state_dir / _NOTE
