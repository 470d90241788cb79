"""A backup brought back to champions that answer: in an empty stack or, to rehearse it, in one beside the live one.

A restore is done when each champion has answered the golden requests that it was registered with. A drill does the
same with a state directory of its own, on free ports, and leaves nothing behind but its numbers.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from shopfloor.backup import restore as restoring
from shopfloor.backup.compose import compose, env_file, stand_beside, stands_beside
from shopfloor.backup.create import Created
from shopfloor.backup.manifest import Manifest
from shopfloor.backup.sources import mlflow_bucket
from shopfloor.backup.store import Store, Verified
from shopfloor.errors import ConflictError, ShopfloorError, UsageError
from shopfloor.flows import promote
from shopfloor.records import Record
from shopfloor.serving import assignment as assignments
from shopfloor.serving.deploy import rollout
from shopfloor.serving.deploy.verify import largest_difference
from shopfloor.settings import Settings
from shopfloor.stack import lifecycle, secrets, services, versions
from shopfloor.stack import state as states
from shopfloor.storage import join, write_atomically
from shopfloor.use_case import list_use_cases, load_served_case

_PUBLISHED = {
    "tracking_uri": ("MLFLOW_PORT", 5000),
    "s3_endpoint_url": ("S3_PORT", 8333),
    "ray_dashboard_url": ("RAY_DASHBOARD_PORT", 8265),
    "serve_url": ("SERVE_PORT", 8000),
}
"""Settings to compose's variable of the port that is published there, and its usual one."""
OBJECT_STORE, _ACCOUNTS = "object-store", "object-store-users"
"""Services of a stack that keeps its objects itself: the store, and what makes accounts in one that takes no file."""
IMAGE = "PLATFORM_IMAGE"
"""Variable of compose's that names the platform image."""
Progress = Callable[[str], None]


class Answers(Record):
    """How a champion answered its golden requests."""

    use_case: str
    version: str
    rows: int = 0
    """Number of golden requests."""
    largest_difference: float | None = None
    """Distance of an answer from the one that the model gave offline, at most; none where it was not asked."""
    problem: str = ""
    """Reason why it does not answer, or answers differently."""


class Restoration(Record):
    """A backup that was brought back."""

    id: str
    created: dt.datetime
    """Moment of which the data are."""
    age_s: float
    """Age of the data when the restore began: what would be lost, the recovery point."""
    seconds: float
    """Time until the champions answered: the recovery time."""
    files: int
    size_bytes: int
    counts: dict[str, int]
    """Numbers of runs, versions and aliases, the same in the backup and in what was restored."""
    champions: list[Answers]
    succeeded: bool
    """Every champion answers as it did."""
    next: list[str]
    """Commands that make what a backup does not hold."""


def restore(settings: Settings, store_uri: str, backup_id: str, key: str | None, progress: Progress) -> Restoration:
    """Bring a backup back into an empty stack, start it, and ask the champions their golden requests.

    Args:
        settings: Of the stack, whose places are empty.
        store_uri: Directory or `s3://` prefix of the store.
        backup_id: Of the backup, its beginning, or `latest`.
        key: Opens the secrets; `None` leaves those out.
        progress: Hears one line for each thing that takes time.

    Raises:
        NotFoundError: There is no such store or backup.
        UsageError: The stack is not empty, not this machine's, or the key is wrong.
        ServiceError: A service does not answer.
        ShopfloorError: A file of the backup is missing or altered, or the disk is full.
    """
    began, started = time.monotonic(), dt.datetime.now(dt.UTC)
    store = Store(settings, store_uri)
    name, manifest = store.read(backup_id)
    if settings.in_containers:
        _start_empty(settings, store, manifest, key, progress)
    restoring.restore(settings, store, manifest, key, progress)
    if not settings.in_containers:  # compose has a service for it
        versions.migrate(settings)
    champions = ask_champions(*start(settings, progress), store, manifest)
    within = "docker compose exec ray-head " if settings.in_containers else ""
    online = [case for case in list_use_cases(settings) if load_served_case(settings, case).serving.online]
    return Restoration(
        id=name,
        created=manifest.created,
        age_s=(started - manifest.created).total_seconds(),
        seconds=time.monotonic() - began,
        files=len(manifest.contents()),
        size_bytes=manifest.size_bytes,
        counts=manifest.counts,
        champions=champions,
        succeeded=not any(champion.problem for champion in champions),
        next=[f"{within}shopfloor features materialize {case}" for case in online],
    )


def restore_files(settings: Settings, store_uri: str, backup_id: str, dumps: Path, progress: Progress) -> str:
    """Bring a cluster's files back, and its databases as dumps; return the backup's id. See `restore` for the errors.

    Args:
        settings: Of the cluster, whose buckets are empty.
        store_uri: Directory or `s3://` prefix of the store.
        backup_id: Of the backup, its beginning, or `latest`.
        dumps: Directory that gets the dumps.
        progress: Hears one line for each thing that takes time.
    """
    store = Store(settings, store_uri)
    name, manifest = store.read(backup_id)
    restoring.restore(settings, store, manifest, None, progress, dumps)
    return name


def drill(
    settings: Settings, store_uri: str, backup_id: str, key: str | None, progress: Progress, image: str = ""
) -> Restoration:
    """Bring a backup back beside the live stack, ask its champions, and remove it again; see `restore`.

    Args:
        settings: Of the live stack.
        store_uri: Directory or `s3://` prefix of the store.
        backup_id: Of the backup, its beginning, or `latest`.
        key: Opens the secrets; `None` leaves those out.
        progress: Hears one line for each thing that takes time.
        image: Platform image of a stack of containers; empty for the live stack's.

    Raises:
        ConflictError: Another drill is at work.
        UsageError: The stack's object store is elsewhere.
    """
    from filelock import FileLock, Timeout

    if settings.in_containers and OBJECT_STORE not in _services(settings):
        raise UsageError(
            "The object store of this stack is elsewhere, and a drill beside it would have to write to it.",
            "Rehearse on another machine, with buckets of its own: shopfloor backup restore",
        )
    beside = _containers_beside(settings) if settings.in_containers else _beside(settings)
    try:
        with FileLock(settings.private_dir("locks") / "drill.lock", timeout=0, mode=0o600):
            _remove(beside)  # what a drill left that was killed
            try:
                if settings.in_containers:
                    _prepare_containers(settings, beside, key, image)
                drilled = restore(beside, store_uri, backup_id, key, progress)
                return drilled.model_copy(update={"next": []})
            finally:
                progress("Removing the stack of the drill")
                _remove(beside)
    except Timeout:
        raise ConflictError("Another drill is at work.", "Wait until it has ended.") from None


def write_metrics(file: Path, drilled: Restoration | None) -> None:
    """Write what a drill measured as Prometheus's node exporter reads it from a file (`*.prom`).

    Args:
        file: Is replaced.
        drilled: What the drill came to; `None` where an error ended it, which measured nothing.
    """
    values = {"shopfloor_backup_drill_success": ("Whether the champions answered as they did.", 0.0)}
    if drilled:
        values = {
            "shopfloor_backup_drill_data_age_seconds": ("Age of the data that the drill restored.", drilled.age_s),
            "shopfloor_backup_drill_restore_seconds": ("Time until the champions answered.", drilled.seconds),
            "shopfloor_backup_drill_success": ("Whether they answered as they did.", float(drilled.succeeded)),
            "shopfloor_backup_drill_timestamp_seconds": ("Time of the drill.", time.time()),
        }
    _write(file, values)


def write_created(file: Path, created: Created) -> None:
    """Write what a backup came to, for the node exporter or a Pushgateway.

    Args:
        file: Is replaced.
        created: The backup.
    """
    values = {
        "shopfloor_backup_timestamp_seconds": ("Moment of which its data are.", created.created.timestamp()),
        "shopfloor_backup_files": ("Number of its files.", float(created.files)),
        "shopfloor_backup_size_bytes": ("Bytes of all its files.", float(created.size_bytes)),
        "shopfloor_backup_new_bytes": ("Bytes that the store did not have.", float(created.new_bytes)),
        "shopfloor_backup_seconds": ("Time that it took.", created.seconds),
    }
    _write(file, values)


def write_verified(file: Path, verified: Verified) -> None:
    """Write what a look at a backup came to, for the node exporter or a Pushgateway.

    Args:
        file: Is replaced.
        verified: What was read.
    """
    values = {
        "shopfloor_backup_verify_problems": ("Files that are missing or altered.", float(len(verified.problems))),
        "shopfloor_backup_verify_timestamp_seconds": ("Time when it was read.", time.time()),
    }
    _write(file, values)


def _write(file: Path, values: Mapping[str, tuple[str, float]]) -> None:
    """Write gauges, each with what it means, in Prometheus' text format."""
    lines = [
        f"# HELP {name} {text}\n# TYPE {name} gauge\n{name} {value:.3f}\n" for name, (text, value) in values.items()
    ]
    write_atomically(file, "".join(lines), 0o644)


def _start_empty(settings: Settings, store: Store, manifest: Manifest, key: str | None, progress: Progress) -> None:
    """Start what a stack of containers keeps its things in, with the secrets of the backup and empty buckets."""
    directory = Path(settings.secrets_dir or "")
    for file, text in restoring.missing_secrets(settings, store, manifest, key).items():
        write_atomically(file, text, 0o444)
    if not any(directory.glob("*")):
        raise UsageError(
            f"There are no secrets in {directory}, and other ones would not open the databases of the backup.",
            "Give the key that the backup was made with, or put the secrets there.",
        )
    secrets.init(directory, env_file(settings))
    secrets.export(settings)
    own = _services(settings)
    if OBJECT_STORE not in own:  # it is elsewhere, and its buckets are made by who may
        progress("Starting PostgreSQL")
        compose(settings, "up", "-d", "--wait", "postgres")
        return
    progress("Starting PostgreSQL and the object store")
    compose(settings, "up", "-d", "--wait", "postgres", OBJECT_STORE)
    if _ACCOUNTS in own:
        compose(settings, "run", "--rm", "--no-deps", "-T", _ACCOUNTS)
    command = ("shopfloor", "storage", "bootstrap", "--bucket", mlflow_bucket(settings))
    compose(settings, "run", "--rm", "--no-deps", "-T", "bootstrap", *command)


def _services(settings: Settings) -> list[str]:
    """Return the services of a stack of containers, by the files that compose puts over one another there."""
    return compose(settings, "config", "--services").split()


def start(settings: Settings, progress: Progress, *options: str) -> tuple[Settings, dict[str, str]]:
    """Start a stack whose data are there, and let its endpoints answer as the registry has it.

    Args:
        settings: Of the stack.
        progress: Hears one line for each thing that takes time.
        *options: Of `docker compose up`, where it is a stack of containers.

    Returns:
        Its settings, with the addresses where it answers; and why an endpoint does not answer, by its use case.

    Raises:
        ServiceError: A service does not start.
    """
    if settings.in_containers:
        progress("Starting the other services")
        compose(settings, "up", "-d", "--wait", *options)
        progress("Bringing the endpoints back")
        text = compose(settings, "exec", "-T", "ray-head", "shopfloor", "up", "--json")
        return settings, promote.Restored.model_validate_json(text).problems
    lifecycle.up(settings, progress)
    state = states.read(settings)
    running = state.of(settings) if state else settings
    return running, promote.restore(running, progress).problems


def ask_champions(settings: Settings, problems: dict[str, str], store: Store, manifest: Manifest) -> list[Answers]:
    """Ask each champion of this project the golden requests that it was registered with.

    Args:
        settings: Of the stack that answers.
        problems: Use cases whose endpoint does not answer, and why; they are not asked.
        store: Holds the backup.
        manifest: The backup, which has the golden requests.

    Raises:
        ServiceError: The registry does not answer.
    """
    own = list_use_cases(settings)
    champions = [
        _asked(settings, store, manifest, use_case, champion)
        for use_case, entry in sorted(assignments.read_all(rollout.registry(settings)).items())
        if use_case in own
        and use_case not in problems
        and entry.application
        and (champion := entry.assignment.champion)
    ]
    return champions + [Answers(use_case=case, version="", problem=why) for case, why in problems.items()]


def _asked(settings: Settings, store: Store, manifest: Manifest, use_case: str, version: str) -> Answers:
    """Ask a champion its golden requests, as the backup has them."""
    try:
        golden = restoring.golden_requests(settings, store, manifest, use_case, version)
        if golden is None:
            return Answers(use_case=use_case, version=version)
        worst = largest_difference(settings, use_case, version, golden)
    except ShopfloorError as error:
        return Answers(use_case=use_case, version=version, problem=str(error))
    return Answers(use_case=use_case, version=version, rows=len(golden.rows), largest_difference=worst)


def _beside(settings: Settings) -> Settings:
    """Return the settings of a stack that shares nothing with the live one."""
    root = settings.state_dir / "drill"
    return settings.model_copy(
        update={
            "state_dir": root,
            "artifact_root": str(root / "artifacts"),
            "data_remote": str(root / "dvc-remote"),
            "feature_registry": join(str(root), "feast", "registry.db"),
            "online_store": join(str(root), "feast", "online.db"),
        }
    )


def _containers_beside(settings: Settings) -> Settings:
    """Return the settings of a compose project of its own, on free ports."""
    root = settings.state_dir / "drill"
    choose = services.port_chooser(root)
    urls = {field: f"http://127.0.0.1:{choose(port, services.NEIGHBOURS)}" for field, (_, port) in _PUBLISHED.items()}
    own = {"state_dir": root, "secrets_dir": str(root / "secrets"), "ray_token_file": str(root / "secrets/ray_token")}
    return settings.model_copy(update=own | urls)


def _prepare_containers(settings: Settings, beside: Settings, key: str | None, image: str) -> None:
    """Name the compose project of a drill, and without a key let it have the live stack's secrets."""
    ports = {variable: str(services.port_of(getattr(beside, field))) for field, (variable, _) in _PUBLISHED.items()}
    directory = beside.secrets_dir or ""
    variables = ports | {secrets.VARIABLE: directory, "COMPOSE_PROFILES": ""} | ({IMAGE: image} if image else {})
    beside.private_state_dir()
    name = f"shopfloor-drill-{hashlib.sha256(str(beside.state_dir).encode()).hexdigest()[:8]}"
    stand_beside(beside, name, variables)
    if key is None:
        shutil.copytree(settings.secrets_dir or "", directory)


def _remove(beside: Settings) -> None:
    """Stop the stack of a drill, and delete it."""
    if not beside.state_dir.exists():
        return
    if stands_beside(beside):
        compose(beside, "down", "--volumes", "--remove-orphans", "--timeout", "5")
    elif not beside.in_containers:
        lifecycle.down(beside)
    shutil.rmtree(beside.state_dir)
