"""Which versions are installed, and which schema MLflow's databases have and are to have.

Read from packages' metadata and from the files of MLflow's migrations: importing MLflow takes seconds.
`python -m shopfloor.stack.versions` prints it as JSON, so that it can be asked of an image.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

from shopfloor.errors import ServiceError, ShopfloorError, first_line
from shopfloor.records import Record
from shopfloor.runs.mlflow import migrate as migrate_database
from shopfloor.settings import Settings

COMPONENTS = ("shopfloor", "mlflow", "ray", "feast")
SCHEMAS = {
    "mlflow": ("store/db_migrations/versions", "alembic_version"),
    "mlflow_auth": ("server/auth/db/migrations/versions", "alembic_version_auth"),
}
"""MLflow's databases: where in its package their migrations are, and the table that names the last one."""
UPGRADE = "`shopfloor upgrade --store DIRECTORY` backs everything up and changes over."
_REVISION = re.compile(r"^(revision|down_revision)(?:\s*:[^=\n]+)?\s*=\s*[\"'](\w+)[\"']", re.MULTILINE)


class Release(Record):
    """What one environment or image brings."""

    versions: dict[str, str]
    """Versions of the components by their package's name."""
    schemas: dict[str, list[str]]
    """Revisions that it knows of each of MLflow's databases, the one that it wants first."""


def release() -> Release:
    """Return what is installed here."""
    package = metadata.distribution("mlflow").locate_file("mlflow")
    schemas = {name: _revisions(Path(str(package), place)) for name, (place, _) in SCHEMAS.items()}
    return Release(versions={name: installed(name) for name in COMPONENTS}, schemas=schemas)


def installed(component: str) -> str:
    """Return the version of a component's package; empty where it is not installed."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(component)
    return ""


def database(settings: Settings) -> Path:
    """Return MLflow's database in the embedded stack."""
    return settings.state_dir / "mlflow" / "mlflow.db"


def schema_of(file: Path) -> str:
    """Return the schema of an SQLite database of MLflow's; empty where there is none yet."""
    if not file.is_file():
        return ""
    with contextlib.closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as connection:
        try:
            row = connection.execute(f"SELECT version_num FROM {SCHEMAS['mlflow'][1]}").fetchone()  # noqa: S608  ours
        except sqlite3.Error:
            return ""
    return str(row[0]) if row else ""


def skew(database_name: str, present: str, wanted: Release) -> str:
    """Return in words what keeps a release from working on a database; empty where the schema is what it wants."""
    known = wanted.schemas[database_name]
    if present in ("", known[0]):
        return ""
    words = f"The database {database_name} has schema {present}, and MLflow {wanted.versions['mlflow']} "
    return words + (f"wants {known[0]}." if present in known else f"knows none after {known[0]}.")


def require_schema(settings: Settings) -> None:
    """Refuse to start an MLflow on a database of another one: it would refuse itself, or migrate without a backup.

    Raises:
        ServiceError: The embedded stack's database has another schema than the one that is installed wants.
    """
    present, wanted = schema_of(database(settings)), release()
    if words := skew("mlflow", present, wanted):
        newer = "A newer MLflow wrote it: install that one, or restore a backup."
        raise ServiceError(words, UPGRADE if present in wanted.schemas["mlflow"] else newer)


def require_same(running: Mapping[str, str]) -> None:
    """Refuse to go on beside a service that was started before its package was replaced.

    Args:
        running: Version that each service was started with; empty where nobody recorded it.

    Raises:
        ServiceError: Another one is installed.
    """
    for name, version in running.items():
        if version not in ("", installed(name)):
            raise ServiceError(f"{name} {version} runs, and {installed(name)} is installed.", UPGRADE)


def migrate(settings: Settings) -> None:
    """Bring the embedded stack's database to the schema that the installed MLflow wants.

    Raises:
        ShopfloorError: MLflow cannot do it.
    """
    file = database(settings)
    if schema_of(file) in ("", release().schemas["mlflow"][0]):
        return
    try:
        migrate_database(f"sqlite:///{file}")
    except Exception as error:  # MLflow, Alembic and SQLAlchemy have their own
        raise ShopfloorError(f"MLflow cannot migrate {file}: {first_line(error, 300)}.", "") from error


def _revisions(directory: Path) -> list[str]:
    """Return the revisions of a directory of migrations, the newest first; they are one line without branches."""
    below: dict[str, str] = {}
    for file in directory.glob("*.py"):
        names = dict(_REVISION.findall(file.read_text(encoding="utf-8")))
        if "revision" in names:
            below[names["revision"]] = names.get("down_revision", "")
    revision = next(iter(below.keys() - set(below.values())), "")
    chain = []
    while revision:
        chain.append(revision)
        revision = below.get(revision, "")
    return chain


if __name__ == "__main__":
    sys.stdout.write(release().model_dump_json() + "\n")
