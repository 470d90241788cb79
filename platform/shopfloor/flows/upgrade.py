"""A stack brought to other versions: examined, rehearsed, backed up, migrated, asked; or put back as it was.

Nothing is changed before the same change has gone well in a stack beside the live one. How far it is stands in one
file, so that the same command goes on where it was cut short.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from shopfloor.backup import restore as restoring
from shopfloor.backup.create import create
from shopfloor.backup.store import Store
from shopfloor.errors import ConflictError, ShopfloorError, UsageError, whole
from shopfloor.flows.backup import Answers, Progress, Restoration, ask_champions, drill
from shopfloor.flows.changeover import Changeover, Containers, Packages, Part
from shopfloor.flows.runs import refresh
from shopfloor.records import Record
from shopfloor.runs.index import PIPELINE, open_runs
from shopfloor.runs.mlflow import client_of
from shopfloor.serving import assignment as assignments
from shopfloor.serving.deploy import rollout
from shopfloor.settings import Settings
from shopfloor.stack import state as states
from shopfloor.stack.services import TITLES
from shopfloor.storage import write_atomically

_POLL_S = 2.0


class Examination(Record):
    """What an upgrade would change, and what speaks against it."""

    parts: list[Part]
    needed: bool
    """Whether any part is to be another one."""
    problems: list[str]
    """Reasons why it is refused, each with both versions."""
    writers: list[str]
    """Runs and rollouts that go on, which it waits for."""
    unfinished: str
    """Stage in which an upgrade was cut short; empty where none was."""


class Upgraded(Record):
    """What an upgrade came to."""

    outcome: Literal["nothing to do", "upgraded", "put back"]
    parts: list[Part]
    """What there was, and what was wanted, before."""
    backup: str = ""
    """Id of the backup that was made while nobody wrote."""
    rehearsal: Restoration | None = None
    """What it came to in a stack beside the live one; none where that was left out or done before."""
    champions: list[Answers] = []
    """How the live champions answered their golden requests."""
    problem: str = ""
    """Reason why everything was put back."""
    without_mlflow_s: float = 0.0
    """Time in which MLflow did not answer."""


class _Journal(Record):
    """How far an upgrade is."""

    stage: Literal["migrate", "start", "put back"]
    """Stage that is under way: databases change in the first and the last."""
    store: str
    backup: str
    image: str
    """Image that is wanted, and the one to go back to; empty without containers."""
    image_before: str
    problem: str = ""


def examine(settings: Settings, image: str) -> Examination:
    """Look what an upgrade would change; nothing is changed.

    Args:
        settings: The profile.
        image: Platform image that is wanted, for a stack of containers; empty for the one that its files name.

    Raises:
        UsageError: Somebody else runs the profile's services, or they do not run.
        ServiceError: A service does not answer.
    """
    journal = _read(settings)
    change = _changeover(settings, journal.image if journal else image)
    parts = change.parts()
    return Examination(
        parts=parts,
        needed=any(part.differs() for part in parts),
        problems=change.problems(),
        writers=_writers(settings, parts),
        unfinished=journal.stage if journal else "",
    )


def upgrade(
    settings: Settings,
    store_uri: str,
    key: str | None,
    progress: Progress,
    image: str = "",
    wait_s: float = 0.0,
    rehearse: bool = True,
) -> Upgraded:
    """Bring a stack to the versions that are installed, or to those of an image; or leave it as it was.

    Args:
        settings: The profile.
        store_uri: Directory or `s3://` prefix of the backups.
        key: Seals the secrets in the backups; `None` leaves them out.
        progress: Hears one line for each thing that takes time.
        image: Platform image that is wanted, for a stack of containers; empty for the one that its files name.
        wait_s: How long runs and rollouts that go on may take to end.
        rehearse: Try it first on a copy beside the live stack.

    Returns:
        What it came to; `put back` where something failed after the databases began to change.

    Raises:
        UsageError: Versions do not go together, or the profile's services are somebody else's.
        ConflictError: Runs go on, or another upgrade does.
        ShopfloorError: The rehearsal failed, or a backup: nothing was changed.
        ServiceError: A service does not answer.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(settings.private_dir("locks") / "upgrade.lock", timeout=0, mode=0o600):
            journal = _read(settings)
            change = _changeover(settings, journal.image if journal else image)
            parts = change.parts()
            if journal is not None:
                progress(f"An upgrade was cut short in its stage {journal.stage!r}; going on with it")
                return _finish(settings, change, journal, parts, progress, resumed=True)
            if problems := change.problems():
                raise UsageError(" ".join(problems), "Let both be the same; nothing was changed.")
            if not any(part.differs() for part in parts):
                return Upgraded(outcome="nothing to do", parts=parts)
            _drain(settings, parts, wait_s, progress)
            rehearsal = _rehearse(settings, change, store_uri, key, progress) if rehearse else None
            _drain(settings, parts, wait_s, progress)
            began = time.monotonic()
            progress("Stopping MLflow")
            change.stop()
            try:
                backup, before = create(settings, store_uri, key, progress).id, change.keep()
                journal = _Journal(stage="migrate", store=store_uri, backup=backup, image=image, image_before=before)
                _write(settings, journal)
            except Exception:
                change.undo_stop()
                raise
            result = _finish(settings, change, journal, parts, progress, began=began)
            return result.model_copy(update={"rehearsal": rehearsal})
    except Timeout:
        raise ConflictError("Another upgrade is at work.", "Wait until it has ended.") from None


def _rehearse(
    settings: Settings, change: Changeover, store_uri: str, key: str | None, progress: Progress
) -> Restoration:
    """Change over a copy beside the live stack, and require that its champions answer."""
    copy = create(settings, store_uri, key, progress)
    progress("Rehearsing beside the live stack")
    rehearsal = drill(settings, store_uri, copy.id, key, progress, change.image)
    if problems := [f"{one.use_case}: {one.problem}" for one in rehearsal.champions if one.problem]:
        raise ShopfloorError(f"The rehearsal failed: {' '.join(problems)}", "Nothing was changed.")
    return rehearsal


def _drain(settings: Settings, parts: list[Part], wait_s: float, progress: Progress) -> None:
    """Wait until nobody writes to the registry.

    Raises:
        ConflictError: Somebody still does.
    """
    deadline = time.monotonic() + wait_s
    while writers := _writers(settings, parts):
        if time.monotonic() >= deadline:
            raise ConflictError(
                f"{', '.join(writers)} go on.",
                "`--wait 30m` waits for their end, `shopfloor runs stop` ends a run; nothing was changed.",
            )
        progress(f"Waiting for {', '.join(writers)}")
        time.sleep(_POLL_S)


def _finish(
    settings: Settings,
    change: Changeover,
    journal: _Journal,
    parts: list[Part],
    progress: Progress,
    resumed: bool = False,
    began: float | None = None,
) -> Upgraded:
    """Go on from the stage that a journal names to the end, or put everything back."""
    began = began or time.monotonic()
    store = Store(settings, journal.store)
    _, manifest = store.read(journal.backup)
    champions: list[Answers] = []
    try:
        if journal.stage == "migrate":
            if resumed:  # a migration that was cut short leaves half of itself
                change.stop()
                restoring.put_back(settings, store, manifest)
            if journal.image:
                change.use(journal.image)
            progress("Migrating the databases")
            change.migrate()
            journal = journal.model_copy(update={"stage": "start"})
            _write(settings, journal)
        if journal.stage == "start":
            running, problems = change.start(progress)
            without_mlflow_s = time.monotonic() - began
            progress("Asking the champions")
            champions = ask_champions(running, problems, store, manifest)
            wrong = [f"{one.use_case}: {one.problem}" for one in champions if one.problem]
            wrong += [f"{part.name} is {part.present}, not {part.wanted}." for part in change.parts() if part.differs()]
            if wrong:
                raise ShopfloorError(" ".join(wrong))
            states.upgrade_file(settings).unlink()
            return Upgraded(
                outcome="upgraded",
                parts=parts,
                backup=journal.backup,
                champions=champions,
                without_mlflow_s=without_mlflow_s,
            )
    except Exception as error:  # whatever it is, the stack does not stay halfway
        journal = journal.model_copy(update={"stage": "put back", "problem": whole(error)})
        _write(settings, journal)
    progress(f"Putting everything back: {journal.problem}")
    change.stop()
    restoring.put_back(settings, store, manifest)
    if journal.image_before:
        change.use(journal.image_before)
    states.upgrade_file(settings).unlink()
    problem = journal.problem
    try:
        change.start(progress)
    except Exception as error:
        problem += f" The databases are as they were, and MLflow stays stopped: {whole(error)} Install what was"
        problem += " installed before (git checkout, make install), then: shopfloor up"
    return Upgraded(
        outcome="put back",
        parts=parts,
        backup=journal.backup,
        champions=champions,
        problem=problem,
        without_mlflow_s=time.monotonic() - began,
    )


def _changeover(settings: Settings, image: str) -> Changeover:
    if settings.in_containers:
        return Containers(settings, image)
    if image:
        raise UsageError(f"Profile {settings.profile!r} runs on no image.", "Leave --image out.")
    return Packages(settings)


def _writers(settings: Settings, parts: list[Part]) -> list[str]:
    """Return in words who would write to the registry meanwhile."""
    if not next(part.present for part in parts if part.name == TITLES["mlflow"]):
        return []
    client = client_of(settings)
    refresh(settings, client)  # one that died with its engine goes on in the record only
    runs = open_runs(client)
    words = [f"run {run.info.run_id[:8]} ({run.data.tags[PIPELINE]})" for run in runs]
    entries = assignments.read_all(rollout.registry(settings))
    return words + [f"the rollout of {name}" for name, entry in entries.items() if _is_judged(entry.lease)]


def _is_judged(lease: str) -> bool:
    """Tell whether somebody renews a lease."""
    renewed, _, span = lease.partition("+")
    return bool(span) and float(renewed) + float(span) > time.time()


def _read(settings: Settings) -> _Journal | None:
    file: Path = states.upgrade_file(settings)
    try:
        return _Journal.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValidationError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read.", "Read it with the version of Shopfloor that wrote it.") from error


def _write(settings: Settings, journal: _Journal) -> None:
    write_atomically(states.upgrade_file(settings), journal.model_dump_json(indent=1))
