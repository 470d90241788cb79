"""Directories for the files of loaded models, which go with the process that loaded them, however it ends.

A process that is killed removes nothing, so whoever makes a directory removes those that nobody holds any more. Each is
held by a lock on the directory itself, which the system releases when its process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

PREFIX = "shopfloor-model-"


def directory() -> tuple[Path, Callable[[], None]]:
    """Return a new directory in the system's temporary one, and what removes it; others that are not held go now."""
    _sweep()
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        held = _held(path)
        if held is not None:  # else somebody swept it away in between
            return path, functools.partial(_remove, path, held)


def _held(path: Path) -> int | None:
    """Return a descriptor that holds a directory of ours; `None` where another one does, or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(descriptor).st_ino and path.stat().st_uid == os.getuid():
            return descriptor
    os.close(descriptor)
    return None


def _sweep() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        held = _held(path)
        if held is not None:
            _remove(path, held)


def _remove(path: Path, descriptor: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(descriptor)
