"""The databases of a stack, each copied and brought back by its own tool: SQLite's online backup, pg_dump, pg_restore.

On a cluster PostgreSQL's tools run in a container of their own, before this one or after it: what passes between them
is a directory of dumps.

A copy is one consistent moment of a database that is written on. What it holds is read from the copy, not from the
database that has gone on since.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from shopfloor.backup.compose import compose
from shopfloor.errors import NotFoundError, ServiceError, ShopfloorError
from shopfloor.settings import Settings

Row = dict[str, Any]
DELETED = "Deleted_Internal"
"""Stage of a version that MLflow only marks as deleted."""


class Database(Protocol):
    """A database, and how it is copied."""

    name: str
    """Name of the copy's file."""

    def copy(self, target: Path) -> None:
        """Write a copy of this moment to a file that is not there yet."""

    def rows(self, copy: Path, table: str, columns: tuple[str, ...]) -> list[Row]:
        """Return columns of a table as a copy has them."""

    def holds(self) -> str:
        """Return in words what is in the database, empty where nothing is that a restore would replace."""

    def restore(self, copy: Path) -> None:
        """Make the database what the copy is."""


class Sqlite:
    """A database in a file."""

    def __init__(self, name: str, file: Path) -> None:
        """Remember the file.

        Args:
            name: Of the copy.
            file: The database.
        """
        self.name, self._file = name, file

    def copy(self, target: Path) -> None:
        """Copy the pages that SQLite says are one moment; who writes meanwhile goes on.

        Raises:
            NotFoundError: There is no such file.
            ServiceError: SQLite cannot read it.
        """
        if not self._file.is_file():
            raise NotFoundError(f"There is no {self._file}.", "Start the stack once: shopfloor up")
        try:
            with _sqlite(self._file) as source, contextlib.closing(sqlite3.connect(target)) as copy:
                source.backup(copy)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
            raise ServiceError(f"{self._file} cannot be copied: {error}.", "Mend the database first.") from error

    def rows(self, copy: Path, table: str, columns: tuple[str, ...]) -> list[Row]:
        """Return columns of a table as a copy has them."""
        with _sqlite(copy) as database:
            found = database.execute(f"SELECT {', '.join(columns)} FROM {table}")  # noqa: S608  our own names
            return [dict(zip(columns, row, strict=True)) for row in found]

    def holds(self) -> str:
        """Return the file where there is one."""
        return str(self._file) if self._file.exists() else ""

    def restore(self, copy: Path) -> None:
        """Put the copy in the database's place."""
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for ending in ("-journal", "-wal", "-shm"):  # of the database before: SQLite would play it into this one
            self._file.with_name(self._file.name + ending).unlink(missing_ok=True)
        copy.rename(self._file)


class Postgres:
    """A database of the compose stack, reached with PostgreSQL's own commands in its container."""

    def __init__(self, settings: Settings, database: str) -> None:
        """Remember which one.

        Args:
            settings: Say which stack it is in.
            database: Its name in PostgreSQL.
        """
        self.name, self._settings, self._database = f"{database}.dump", settings, database

    def copy(self, target: Path) -> None:
        """Dump the database as one snapshot.

        Raises:
            ServiceError: The container does not run, or PostgreSQL refuses.
        """
        with target.open("wb") as out:
            self._run("pg_dump", "--username=postgres", "--format=custom", self._database, stdout=out)

    def rows(self, copy: Path, table: str, columns: tuple[str, ...]) -> list[Row]:
        """Return columns of a table as a dump has them."""
        with copy.open("rb") as dump:
            text = self._run("pg_restore", "--data-only", f"--table={table}", "--file=-", stdin=dump)
        return copied_rows(text, columns)

    def holds(self) -> str:
        """Return how many versions or users are in the database; the schema alone is nothing."""
        tables = {"mlflow": "runs", "feast": "projects"}
        table = tables.get(self._database)
        if table is None:
            return ""
        exists = self._ask(f"SELECT to_regclass('public.{table}') IS NOT NULL")
        count = self._ask(f"SELECT count(*) FROM {table}") if exists == "t" else "0"  # noqa: S608  our own names
        return "" if count == "0" else f"{count} {table} in the database {self._database}"

    def restore(self, copy: Path) -> None:
        """Replace all that is in the database by what is in the dump: a table that the dump lacks goes, too.

        Cut short, it leaves an empty database, and is done again.

        Raises:
            ServiceError: The container does not run, or PostgreSQL refuses.
        """
        # As PostgreSQL makes it in a new database.
        anew = "DROP SCHEMA public CASCADE; CREATE SCHEMA public AUTHORIZATION pg_database_owner; "
        self._ask(anew + "GRANT USAGE ON SCHEMA public TO PUBLIC")
        options = ("--single-transaction", "--exit-on-error")
        with copy.open("rb") as dump:
            self._run("pg_restore", "--username=postgres", f"--dbname={self._database}", *options, stdin=dump)

    def schema(self, table: str) -> str:
        """Return the revision that a table of Alembic's names; empty where there is none."""
        exists = self._ask(f"SELECT to_regclass('public.{table}') IS NOT NULL")
        return self._ask(f"SELECT version_num FROM {table}") if exists == "t" else ""  # noqa: S608  our own names

    def _ask(self, question: str) -> str:
        answer = self._run("psql", "--username=postgres", "--no-align", "--tuples-only", "-c", question, self._database)
        return answer.strip()

    def _run(self, *command: str, stdin: Any = subprocess.DEVNULL, stdout: Any = subprocess.PIPE) -> str:
        return compose(self._settings, "exec", "-T", "postgres", *command, stdin=stdin, stdout=stdout)


class Dump:
    """A database of PostgreSQL's whose dump is a file: another container made it, or loads it when it is there."""

    def __init__(self, name: str, directory: Path) -> None:
        """Remember the file.

        Args:
            name: Of the dump, such as `mlflow.dump`.
            directory: Where dumps pass from container to container.
        """
        self.name, self._directory = name, directory

    def copy(self, target: Path) -> None:
        """Copy the dump.

        Raises:
            NotFoundError: There is none.
        """
        try:
            shutil.copyfile(self._directory / self.name, target)
        except FileNotFoundError as error:
            raise NotFoundError(
                f"There is no {error.filename}.", "Write it with pg_dump --format=custom before this."
            ) from error

    def rows(self, copy: Path, table: str, columns: tuple[str, ...]) -> list[Row]:
        """Return columns of a table as the script beside the dump has them, e.g. `mlflow.runs.sql`.

        Raises:
            NotFoundError: There is no such script.
            ShopfloorError: The table lacks a column.
        """
        script = self._directory / f"{Path(self.name).stem}.{table}.sql"
        try:
            return copied_rows(script.read_text(encoding="utf-8"), columns)
        except FileNotFoundError as error:
            raise NotFoundError(
                f"There is no {script}.", f"Write it with pg_restore --data-only --table={table} from the same dump."
            ) from error

    def holds(self) -> str:
        """Return the file where there is one: what is in the database, only its own tools can say."""
        file = self._directory / self.name
        return str(file) if file.exists() else ""

    def restore(self, copy: Path) -> None:
        """Put the dump where it is loaded from."""
        shutil.copyfile(copy, self._directory / self.name)


def copied_rows(text: str, columns: tuple[str, ...]) -> list[Row]:
    """Return rows of the first `COPY` block of a script that pg_restore writes, with these columns.

    Args:
        text: The script.
        columns: Names of columns of the table.

    Raises:
        ShopfloorError: The table lacks a column.
    """
    lines = iter(text.splitlines())
    header = next((line for line in lines if line.startswith("COPY ")), None)
    if header is None:
        return []
    names = [name.strip().strip('"') for name in header.partition("(")[2].partition(")")[0].split(",")]
    if missing := set(columns) - set(names):
        raise ShopfloorError(f"The dump lacks the columns {', '.join(sorted(missing))}.", "Look at MLflow's version.")
    rows = []
    for line in lines:
        if line == "\\.":
            break
        values = dict(zip(names, line.split("\t"), strict=True))
        rows.append({name: None if values[name] == "\\N" else _unescaped(values[name]) for name in columns})
    return rows


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: {"t": "\t", "n": "\n", "r": "\r"}.get(match[1], match[1]), text)


@contextlib.contextmanager
def _sqlite(file: Path) -> Any:
    with contextlib.closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as connection:
        yield connection
