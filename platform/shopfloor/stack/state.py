"""What `shopfloor up` started and where it listens, kept in one file that every other command reads.

The file is replaced as a whole, under a lock, so that a reader or a crash never sees half of it. It lies in the state
directory, which no other account can enter: whoever reads Ray's token there may run code as its owner.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import ConfigDict, ValidationError

from shopfloor.errors import ConflictError
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
    version: str = ""
    """Version of the package that it was started from; empty where nobody recorded it."""


class StackState(Record):
    """The embedded stack as it was recorded last, perhaps by another version of Shopfloor."""

    model_config = ConfigDict(extra="ignore")

    boot_id: str
    addresses: dict[str, str]
    """Addresses by the setting that holds them; `settings.load_settings` reads these."""
    services: dict[str, Service]
    ray_dir: Path
    """Ray's temporary directory."""
    ray_token_file: Path
    """File with the token that Ray asks for."""

    def of(self, settings: Settings) -> Settings:
        """Return the settings with the addresses of this stack, and with its token for Ray."""
        return settings.model_copy(update={**self.addresses, "ray_token_file": str(self.ray_token_file)})


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


def upgrade_file(settings: Settings) -> Path:
    """Return where an upgrade records how far it is; there is none once it has ended."""
    return settings.state_dir / "upgrade.json"


def databases_may_be_halfway(settings: Settings) -> bool:
    """Tell whether an upgrade was cut short while it changed the databases."""
    with contextlib.suppress(FileNotFoundError):
        return bool(json.loads(upgrade_file(settings).read_text(encoding="utf-8"))["stage"] != "start")
    return False


def ray_token_file(settings: Settings) -> Path:
    """Return the file with the token of the stack's Ray, made where it is missing; only this account can read it."""
    file = settings.private_state_dir() / "ray-token"
    if not file.is_file() or not file.read_text(encoding="utf-8").strip():
        write_atomically(file, secrets.token_hex(32))
    file.chmod(0o600)
    return file


@contextlib.contextmanager
def locked(
    settings: Settings, on_wait: Callable[[], object] = lambda: None, timeout_s: float = LOCK_TIMEOUT_S
) -> Iterator[None]:
    """Let one `up` or `down` at a time work on this state directory; `on_wait` is called where another one is at it.

    Raises:
        ConflictError: Another one was at work for all of `timeout_s` seconds.
        UsageError: The state directory cannot be written.
    """
    from filelock import FileLock, Timeout

    with naming_full_disk(settings.state_dir):
        lock = FileLock(settings.private_state_dir() / "stack.lock", mode=0o600)
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        on_wait()
        try:
            held = lock.acquire(timeout=timeout_s)
        except Timeout:
            raise ConflictError(
                f"Another `shopfloor up` or `shopfloor down` has worked on {settings.state_dir} for {timeout_s:.0f} s.",
                "Wait until it has ended, or stop it.",
            ) from None
    with held:
        yield
