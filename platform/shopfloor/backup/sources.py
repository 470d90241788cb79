"""What a profile keeps that nothing can make again: its databases, the places of its files, its secrets.

What can be made again stays out: caches, logs, Ray's sessions, and the online store with the note of what it holds,
which `shopfloor features materialize` makes from the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import urlsplit

from shopfloor.backup.databases import DELETED, Database, Dump, Postgres, Sqlite
from shopfloor.backup.manifest import Manifest
from shopfloor.backup.places import Listed, Place
from shopfloor.data.repository import default_remote
from shopfloor.errors import ShopfloorError, UsageError
from shopfloor.settings import EMBEDDED, NO_TOKENS, Settings
from shopfloor.storage import is_remote, join, local_path

ARTIFACTS, DATA, MLFLOW, FEATURES = "artifacts", "data", "mlflow", "features"
"""Places of the artifact store, of DVC's remote, of MLflow's artifacts, and of Feast's registry in a file."""
TOKENS = "serve_tokens"
"""Name of the secret that is the file of an endpoint's tokens."""
_PROXIED = "mlflow-artifacts:"
_NO_FILES = "shopfloor:"
"""Scheme of the entries of an endpoint's ledger, behind which are no files."""
QUARANTINE = "quarantine"
"""Folder of a place that holds what `shopfloor gc` moved away."""
_DERIVED = ("features/*/online.json", "*/features/*/online.json")
"""Names in the artifact store of what says something of the online store; on a cluster, below a team's prefix."""
_DUMPS = ("mlflow.dump", "mlflow_auth.dump", "argo.dump")
"""Dumps of a cluster's databases; Feast's registries are files in its teams' prefixes."""


@dataclass(frozen=True)
class Sources:
    """What one profile keeps."""

    databases: list[Database]
    """MLflow's first."""
    places: dict[str, Place]
    secrets: dict[str, Path]
    """Files that are sealed, by their name."""
    left_out: list[str]
    """What is kept elsewhere, in words."""

    def files(self, place: str) -> dict[str, Listed]:
        """Return what of a place a backup is to hold, by name."""
        listing = self.places[place].files()
        return {
            name: listed
            for name, listed in listing.items()
            if not _is_derived(place, name) and not name.startswith(f"{QUARANTINE}/")
        }


def sources(settings: Settings, dumps: Path | None = None) -> Sources:
    """Return what the profile of these settings keeps.

    Args:
        settings: The profile.
        dumps: Directory of the dumps of a cluster's databases; with it, everything of all teams counts.

    Raises:
        UsageError: Somebody else runs its services, and backs them up; or the objects are in no object store.
    """
    if dumps is not None:
        return _of_a_cluster(settings, dumps)
    if settings.profile != EMBEDDED and not settings.in_containers:
        raise UsageError(
            f"The services of profile {settings.profile!r} are backed up by who runs them.",
            "This command copies the embedded stack, and that of docker-compose.yml.",
        )
    left_out: list[str] = []
    places = {ARTIFACTS: Place(settings, settings.artifact_root)}
    data = settings.data_remote or default_remote(settings)
    if data and (settings.data_remote or not is_remote(data)):
        places[DATA] = Place(settings, data)
    elif data:
        left_out.append(f"the data versions in {data}, a remote of DVC that this stack does not keep")
    if settings.profile == EMBEDDED:
        root = settings.state_dir / "mlflow"
        places[MLFLOW] = Place(settings, str(root / "artifacts"))
        databases: list[Database] = [Sqlite("mlflow.db", root / "mlflow.db")]
    else:
        places[MLFLOW] = Place(settings, f"s3://{mlflow_bucket(settings)}/artifacts")
        databases = [Postgres(settings, name) for name in ("mlflow", "mlflow_auth")]
    _add_registry(settings, places, databases, left_out)
    return Sources(databases, places, _secrets(settings), left_out)


def _of_a_cluster(settings: Settings, dumps: Path) -> Sources:
    """Return what a cluster keeps: the whole buckets, in which each team has a prefix, and the databases."""
    roots = {ARTIFACTS: settings.artifact_root, DATA: settings.data_remote or ""}
    for setting, uri in roots.items():
        if not uri.startswith("s3://"):
            raise UsageError(
                f"The profile {settings.profile!r} has no bucket for {setting}: {uri or 'nothing'}.",
                "Name that of the cluster: --profile cluster",
            )
    places = {name: Place(settings, f"s3://{urlsplit(uri).netloc}") for name, uri in roots.items()}
    places[MLFLOW] = Place(settings, f"s3://{mlflow_bucket(settings)}/artifacts")
    databases: list[Database] = [Dump(name, dumps) for name in _DUMPS]
    return Sources(databases, places, {}, ["the secrets, which are where `shopfloor secrets init` made them"])


def mlflow_bucket(settings: Settings) -> str:
    """Return the bucket that MLflow's artifacts are in: docker-compose.yml names it after that of the others."""
    return f"{urlsplit(settings.artifact_root).netloc}-mlflow"


def model_versions(database: Database, copy: Path) -> dict[str, str]:
    """Return where the files of each version are, by `model/version`, as a copy of MLflow's database says."""
    columns = ("name", "version", "source", "storage_location", "current_stage")
    rows = database.rows(copy, "model_versions", columns)
    places = {
        f"{row['name']}/{row['version']}": row["storage_location"] or row["source"] for row in rows if _lives(row)
    }
    return {version: place for version, place in places.items() if not place.startswith(_NO_FILES)}


def counts(database: Database, copy: Path) -> dict[str, int]:
    """Return how many runs, versions and aliases a copy of MLflow's database has."""
    versions = database.rows(copy, "model_versions", ("current_stage",))
    return {
        "runs": len(database.rows(copy, "runs", ("run_uuid",))),
        "model_versions": len([row for row in versions if _lives(row)]),
        "aliases": len(database.rows(copy, "registered_model_aliases", ("alias",))),
    }


def location(place: str, places: dict[str, str]) -> tuple[str, str] | None:
    """Return in which place, and below which name, the files are that MLflow says are at an address.

    Args:
        place: MLflow's address, such as `mlflow-artifacts:/1/models/m-1/artifacts`.
        places: URI of each place, by its name.

    Returns:
        The place's name and the beginning of the files' names; `None` for an address that is in no place.
    """
    if place.startswith(_PROXIED):
        path = place.removeprefix(_PROXIED)
        if path.startswith("//"):  # mlflow-artifacts://host/1/...
            path = path[2:].partition("/")[2]
        return MLFLOW, path.strip("/") + "/"
    address = str(local_path(place)) if not is_remote(place) else place
    for name, uri in places.items():
        if address.startswith(join(uri, "")):
            return name, address.removeprefix(join(uri, "")).strip("/") + "/"
    return None


def require_complete(versions: dict[str, str], manifest: Manifest) -> list[str]:
    """Let a backup pass whose every version has its files in it.

    Args:
        versions: Address of the files of each version, by `model/version`.
        manifest: The backup.

    Returns:
        The versions whose files are kept elsewhere, in words.

    Raises:
        ShopfloorError: A version's files are not in the backup.
    """
    names: dict[str, list[str]] = {}
    for file in manifest.files:
        names.setdefault(file.place, []).append(file.name)
    present = {place: _beginnings(all_names) for place, all_names in names.items()}
    elsewhere = []
    for version, address in versions.items():
        where = location(address, manifest.places)
        if where is None:
            elsewhere.append(f"the files of {version}, which are at {address}")
        elif where[1] not in present.get(where[0], set()):
            raise ShopfloorError(
                f"Version {version} names {address}, and no file is there: the backup would not hold the model.",
                "Bring its files back, or delete the version in MLflow; the backups before are untouched.",
            )
    return elsewhere


def _lives(row: dict[str, object]) -> bool:
    return row["current_stage"] != DELETED


def _beginnings(names: list[str]) -> set[str]:
    """Return all directories of these names, each with a slash at its end."""
    return {name[: index + 1] for name in names for index, letter in enumerate(name) if letter == "/"}


def _is_derived(place: str, name: str) -> bool:
    return place == ARTIFACTS and any(fnmatch(name, pattern) for pattern in _DERIVED)


def _add_registry(settings: Settings, places: dict[str, Place], databases: list[Database], left_out: list[str]) -> None:
    registry = settings.feature_registry
    if registry.startswith("postgresql") and settings.in_containers:
        databases.append(Postgres(settings, "feast"))
    elif "://" in registry and not registry.startswith("s3://"):
        left_out.append(f"Feast's registry in {registry.partition('?')[0]}")
    else:
        folder, _, name = registry.rpartition("/")
        places[FEATURES] = Place(settings, folder, only=name)


def _secrets(settings: Settings) -> dict[str, Path]:
    """Return the files that nobody but the operator may read."""
    if settings.secrets_dir:
        folder = Path(settings.secrets_dir)
        files = (file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith("."))
        return {file.relative_to(folder).as_posix(): file for file in files}
    tokens = settings.serve_tokens_file
    if tokens and tokens != NO_TOKENS and Path(tokens).is_file():
        return {TOKENS: Path(tokens)}
    return {}
