"""Docker Compose's own command, asked in the directory of docker-compose.yml."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from shopfloor.errors import ServiceError


def compose(root: Path, *arguments: str, stdin: Any = subprocess.DEVNULL, stdout: Any = subprocess.PIPE) -> str:
    """Run `docker compose` and return what it printed.

    Args:
        root: Directory of docker-compose.yml.
        *arguments: Of the command.
        stdin: What it reads; nothing by default.
        stdout: Where its output goes instead.

    Raises:
        ServiceError: It cannot be run, or failed; says its last line.
    """
    try:
        done = subprocess.run(
            ["docker", "compose", *arguments], cwd=root, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, check=False
        )
    except OSError as error:
        raise ServiceError(f"docker cannot be run: {error.strerror}.", "Run this where the stack runs.") from error
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise ServiceError(
            f"`docker compose {' '.join(arguments[:5])}` failed: {words[-1].strip().rstrip('.')}.",
            "`docker compose ps` shows what runs.",
        )
    return (done.stdout or b"").decode()
