"""Old backups away, and with them the objects that no backup names any more.

Of each stack whose backups the store holds the newest whole ones stay. Manifests go before objects: cut short, this
leaves objects that nothing names, which the next time finds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from shopfloor.backup.manifest import File, Manifest
from shopfloor.backup.store import Store
from shopfloor.errors import ShopfloorError
from shopfloor.records import Record

GRACE_S = 24 * 3600.0
"""Age below which an object that no backup names stays: a backup that is being made may have just written it."""


class Pruning(Record):
    """What of a store goes, or went."""

    kept: list[str]
    """Ids of the backups that stay, the oldest first."""
    removed: list[str]
    """Ids of those that go, the oldest first."""
    objects: int
    """Number of contents that go."""
    size_bytes: int
    """Bytes of those."""


def prune(store: Store, keep: int, agrees: Callable[[Pruning], None], grace_s: float = GRACE_S) -> Pruning:
    """Remove all but the newest whole backups of each stack, and what only the removed ones hold.

    A whole backup has all its objects, each in its size. One that is not whole goes with those that are older than
    what stays; while a stack has no whole one, nothing of it goes.

    Args:
        store: Holds the backups.
        keep: Number of those that stay, of each stack; at least one does.
        agrees: Hears what will go, before it does; raises where it is not to.
        grace_s: Age below which an object stays that no backup names.

    Raises:
        ShopfloorError: A manifest was altered, so that nobody knows what it needs.
        UsageError: It is of a later version of Shopfloor.
        ConflictError: A backup is being made.
        ServiceError: The object store does not answer, or refuses.
    """
    with store.alone():
        read = {backup_id: _manifest(store, backup_id) for backup_id in store.ids}
        manifests = dict(sorted(read.items(), key=lambda item: item[1].created))  # ids tell seconds only
        old = _old(manifests, max(keep, 1), store.has)
        kept = [backup_id for backup_id in manifests if backup_id not in old]
        named = {file.sha256 for backup_id in kept for file in manifests[backup_id].contents()}
        last_s = time.time() - grace_s
        free = {
            sha256: listed.size_bytes
            for sha256, listed in store.objects().items()
            if sha256 not in named and listed.changed_s < last_s
        }
        pruning = Pruning(kept=kept, removed=old, objects=len(free), size_bytes=sum(free.values()))
        agrees(pruning)
        store.remove(old, free)
        return pruning


def _manifest(store: Store, backup_id: str) -> Manifest:
    try:
        return store.read(backup_id)[1]
    except ShopfloorError as error:
        raise type(error)(
            f"{error.message} Nothing was removed.",
            f"Bring backups/{backup_id}.json back from another copy, or remove that file yourself.",
        ) from error


def _old(manifests: dict[str, Manifest], keep: int, has: Callable[[File], bool]) -> list[str]:
    """Return the ids of the backups that go, the oldest first, as they stand in `manifests`."""
    newest_first: dict[str, list[str]] = {}
    for backup_id in reversed(manifests):
        newest_first.setdefault(repr(sorted(manifests[backup_id].places.items())), []).append(backup_id)
    old = set()
    for ids in newest_first.values():
        whole = [backup_id for backup_id in ids if all(map(has, manifests[backup_id].contents()))]
        if len(whole) >= keep:
            old.update(ids[ids.index(whole[keep - 1]) + 1 :])
    return [backup_id for backup_id in manifests if backup_id in old]
