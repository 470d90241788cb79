"""A file of rows that somebody has (CSV, JSON lines, parquet), read by DuckDB, which finds out what it is.

All of it is looked at, not its beginning. What DuckDB would pass over in silence is refused with the column: names that
are there twice or empty, columns of which most values are numbers or dates.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shopfloor.errors import NotFoundError, UsageError, first_line

Kind = Literal["number", "whole", "boolean", "text", "time", "lists", "other"]
"""What a column holds; `lists` are of numbers, each of which is there and finite."""
_MEMORY = "2GB"
_ENCODINGS = ("utf-8", "latin-1")
_WHOLE = {"BIGINT", "INTEGER", "SMALLINT", "TINYINT", "UBIGINT", "UINTEGER", "USMALLINT", "UTINYINT"}
_SAMPLE = 100_000
"""Rows of a file that its types are told by; where others do not fit them, by all of its rows."""
_DATE = r"^\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}"
_MOSTLY = 0.9
"""Part of a text column's values that are numbers or dates, from which on the others are held to be mistakes."""


@dataclass(frozen=True)
class Rows:
    """The rows of a file, as a table of DuckDB's."""

    connection: Any
    name: str
    """Name of the table."""
    file: str
    """Name of the file."""
    kinds: dict[str, Kind]
    """Columns, in order."""
    count: int
    note: str
    """How the file was read."""

    def query(self, select: str, rest: str = "") -> Any:
        """Return DuckDB's answer to a query of the rows.

        Args:
            select: What is asked; names of columns go through `quoted`.
            rest: What follows the table: a condition, an order. `rowid` counts rows from 0 on.
        """
        return self.connection.execute(f"SELECT {select} FROM {self.name} {rest}")  # noqa: S608  names are quoted

    def ask(self, select: str, rest: str = "") -> list[tuple[Any, ...]]:
        """Return the rows of the answer to a query, see `query`."""
        answer: list[tuple[Any, ...]] = self.query(select, rest).fetchall()
        return answer

    def write(self, target: Path) -> None:
        """Write all rows as parquet, in their order."""
        self.connection.execute(f"COPY {self.name} TO {_text(str(target))} (FORMAT parquet, COMPRESSION zstd)")


def quoted(name: str) -> str:
    """Return a column's name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def read(file: Path, scratch: Path) -> Rows:
    """Return the rows of a file.

    Args:
        file: CSV of any separator, JSON lines or a JSON list, or parquet.
        scratch: Directory for what does not fit into memory.

    Raises:
        NotFoundError: There is no such file.
        UsageError: It holds no rows, or a column that cannot be used; the column or the line is named.
    """
    import duckdb

    if not file.is_file():
        raise NotFoundError(f"There is no file {str(file)!r}.", "--from names a CSV, JSON or parquet file.")
    if not file.stat().st_size:
        raise UsageError(f"{file} is empty.", "Name a file of rows.")
    connection = duckdb.connect(config={"memory_limit": _MEMORY, "temp_directory": str(scratch)})
    connection.execute("SET TimeZone = 'UTC'")
    try:
        source, note = _source(connection, file, _SAMPLE)
        try:
            connection.execute(f"CREATE TABLE raw AS {source}")
        except duckdb.Error:  # a value further down is of another type than those before it
            source, note = _source(connection, file, -1)
            connection.execute(f"CREATE TABLE raw AS {source}")
        columns = connection.execute("SELECT column_name, column_type FROM (DESCRIBE raw)").fetchall()
    except duckdb.Error as error:
        raise UsageError(f"{file} cannot be read: {first_line(error, 300)}.", "Mend the file.") from error
    kinds = {name: _kind(kind) for name, kind in columns}
    count = connection.execute("SELECT count(*) FROM raw").fetchone()[0]
    if not count:
        raise UsageError(f"{file} has a header and no rows.", "Name a file of rows.")
    if len(kinds) < 2:
        raise UsageError(f"{file} has one column: nothing to learn the target from.", "Is its separator , ; or a tab?")
    rows = Rows(connection, "raw", file.name, kinds, count, note)
    for name, kind in list(kinds.items()):
        if kind == "text" and _are_times(rows, name):
            # Of JSON it knows fewer forms than it reads.
            connection.execute(f"ALTER TABLE raw ALTER {quoted(name)} TYPE TIMESTAMP")
            kinds[name] = "time"
        elif kind == "text":
            _refuse_mixed(rows, name)
        elif kind == "number":
            _refuse_infinite(rows, name)
        elif kind == "lists" and _have_gaps(rows, name):
            kinds[name] = "other"
    return rows


def _source(connection: Any, file: Path, sample: int) -> tuple[str, str]:
    """Return how DuckDB reads a file whose types show in as many rows, -1 for all of them; and that in words."""
    with file.open("rb") as handle:
        start = handle.read(64)
    if start.startswith(b"PAR1"):
        import pyarrow.parquet as pq

        _require_names(file, pq.read_schema(file).names)
        return f"FROM read_parquet({_text(str(file))})", "parquet"
    if start.lstrip()[:1] in (b"{", b"[") and file.suffix.lower() in {".json", ".jsonl", ".ndjson"}:
        return f"FROM read_json({_text(str(file))}, sample_size={sample})", "JSON"
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else _encoding(file)
    options = f"{_text(str(file))}, sample_size={sample}, encoding={_text(encoding)}"
    sniffed = connection.execute(
        f"SELECT Delimiter, Quote, HasHeader, SkipRows, Prompt FROM sniff_csv({options})"  # noqa: S608  quoted by _text
    ).fetchone()
    delimiter, quote, has_header, skip, reading = sniffed
    if not has_header:
        raise UsageError(f"{file}: its first line is no header.", "Let it name the columns.")
    with file.open(encoding=encoding, newline="") as text:
        lines = csv.reader(text, delimiter=delimiter, quotechar=quote if len(quote) == 1 else '"')
        header = next(line for number, line in enumerate(lines) if number >= skip)
    _require_names(file, header)
    return reading.rstrip(";"), f"CSV, {encoding}, separated by {delimiter!r}"


def _encoding(file: Path) -> str:
    for encoding in _ENCODINGS:
        try:
            with file.open(encoding=encoding) as text:
                while text.read(1 << 22):
                    pass
        except UnicodeDecodeError:
            continue
        return encoding
    raise UsageError(f"{file} is no text in {' or '.join(_ENCODINGS)}.", "Save it as UTF-8.")


def _require_names(file: Path, header: list[str]) -> None:
    names = [name.strip().removeprefix("\ufeff").casefold() for name in header]
    if "" in names:
        raise UsageError(f"{file}: column {names.index('') + 1} has no name.", "Give it one in the first line.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{file}: two columns have the name {twice[0]!r}.", "Give each a name of its own.")


def _kind(kind: str) -> Kind:
    if kind in _WHOLE:
        return "whole"
    if kind in {"DOUBLE", "FLOAT", "HUGEINT", "UHUGEINT"} or kind.startswith("DECIMAL"):
        return "number"
    if kind.startswith(("TIMESTAMP", "DATE")):
        return "time"
    if kind == "BOOLEAN":
        return "boolean"
    if of := re.fullmatch(r"(.+)\[\d*\]", kind):
        return "lists" if _kind(of[1]) in {"number", "whole"} else "other"
    return "text" if kind == "VARCHAR" or kind.startswith("ENUM") else "other"


def _are_times(rows: Rows, name: str) -> bool:
    column = quoted(name)
    dates = f"count(*) FILTER (regexp_matches({column}, '{_DATE}'))"
    [(times, dates, present)] = rows.ask(f"count(try_cast({column} AS TIMESTAMP)), {dates}, count({column})")
    return bool(present and times == dates == present)


def _have_gaps(rows: Rows, name: str) -> bool:
    """Tell whether some list lacks a number, or holds one that is not finite."""
    column = quoted(name)
    gaps = f"len({column}) <> list_count({column}) OR NOT isfinite(list_sum({column}::DOUBLE[]))"
    return bool(rows.ask("1", f"WHERE {gaps} LIMIT 1"))


def _refuse_mixed(rows: Rows, name: str) -> None:
    """Refuse a column of texts of which most are numbers, or dates: the others made it one of texts."""
    column = quoted(name)
    [(numbers, dates, present)] = rows.ask(
        f"count(try_cast({column} AS DOUBLE)), count(*) FILTER (regexp_matches({column}, '{_DATE}')), count({column})"
    )
    if _MOSTLY * present <= numbers < present:
        strange = f"WHERE {column} IS NOT NULL AND try_cast({column} AS DOUBLE) IS NULL ORDER BY rowid LIMIT 1"
        [(number, value)] = rows.ask(f"rowid + 1, {column}", strange)
        raise UsageError(
            f"{rows.file}: {name!r} holds numbers, and {value[:50]!r} in row {number}.", "Mend it, or leave it empty."
        )
    if present and numbers == present:  # DuckDB takes a number that is written `inf` for a text
        _refuse_infinite(rows, name)
    if present and dates >= _MOSTLY * present:
        raise UsageError(
            f"{rows.file}: {name!r} holds dates that are not all written alike.", "Write them as 2026-03-31."
        )


def _refuse_infinite(rows: Rows, name: str) -> None:
    found = rows.ask("rowid + 1", f"WHERE isinf({quoted(name)}::DOUBLE) ORDER BY rowid LIMIT 1")
    if found:
        raise UsageError(f"{rows.file}: {name!r} is infinite in row {found[0][0]}.", "Mend it, or leave it empty.")


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
