"""What `shopfloor up` started and where it listens, kept in one file that every other command reads.

The file is replaced as a whole, under a lock, so that a reader or a crash never sees half of it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import ValidationError

from shopfloor.errors import ConflictError, UsageError
from shopfloor.processes import ProcessId, boot_id
from shopfloor.records import Record
from shopfloor.settings import Settings, stack_state_file
from shopfloor.storage import naming_full_disk, write_atomically

LOCK_TIMEOUT_S = 150.0
"""How long a second `up` waits for the first one: a little longer than a start may take."""


class Service(Record):
    """A service as its start left it."""

    name: str
    process: ProcessId
    log: Path


class StackState(Record):
    """The embedded stack as it was recorded last."""

    boot_id: str
    addresses: dict[str, str]
    """Addresses by the setting that holds them; `settings.load_settings` reads these."""
    services: dict[str, Service]
    ray_dir: Path
    """Ray's temporary directory."""
    serving_restored: bool = True
    """Whether the endpoints hold the champions again since Ray was started."""


def read(settings: Settings) -> StackState | None:
    """Return the recorded stack, if any; without its services where the machine was started anew since."""
    try:
        content = json.loads(stack_state_file(settings).read_text(encoding="utf-8"))
        state = StackState.model_validate(content)
    except (FileNotFoundError, ValidationError, json.JSONDecodeError):
        return None
    if state.boot_id != boot_id():
        return state.model_copy(update={"services": {}, "boot_id": boot_id()})
    return state


def write(settings: Settings, state: StackState) -> None:
    """Record the stack."""
    write_atomically(stack_state_file(settings), state.model_dump_json(indent=1))


def forget(settings: Settings) -> None:
    """Remove the record."""
    stack_state_file(settings).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(
    settings: Settings, on_wait: Callable[[], object] = lambda: None, timeout_s: float = LOCK_TIMEOUT_S
) -> Iterator[None]:
    """Let one `up` or `down` at a time work on this state directory; `on_wait` is called where another one is at it.

    Raises:
        ConflictError: Another one was at work for all of `timeout_s` seconds.
        UsageError: The state directory cannot be written.
    """
    import fcntl

    try:
        with naming_full_disk(settings.state_dir):
            settings.state_dir.mkdir(parents=True, exist_ok=True)
            handle = (settings.state_dir / "stack.lock").open("w")
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise UsageError(
            f"The state directory {settings.state_dir} cannot be written: {error.strerror}.",
            "Mend its permissions, or set SHOPFLOOR_STATE_DIR to another directory.",
        ) from error
    began = time.monotonic()
    waited = False
    with handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waited:
                    on_wait()
                    waited = True
                if time.monotonic() - began > timeout_s:
                    raise ConflictError(
                        f"Another `shopfloor up` or `shopfloor down` has worked on {settings.state_dir} for"
                        f" {timeout_s:.0f} s.",
                        "Wait until it has ended, or stop it.",
                    ) from None
                time.sleep(0.1)
        yield
