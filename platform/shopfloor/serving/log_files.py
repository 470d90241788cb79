"""The files of a prediction log: what a row is, how the files are read, written and removed.

<artifact_root>/predictions/<use_case>/predictions/date=2026-11-21/<time>-<replica>-<number>.parquet
<artifact_root>/predictions/<use_case>/feedback/date=2026-11-21/...
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import random
from pathlib import Path
from typing import Any, Literal, NamedTuple

from shopfloor.storage import filesystem, join, sync

logger = logging.getLogger(__name__)

Kind = Literal["predictions", "feedback"]


class Prediction(NamedTuple):
    """One answer."""

    request_id: str
    time_s: float
    """Unix time of the answer."""
    version: str
    role: str
    route: str
    status: int
    failed: bool
    """The model or the endpoint failed, not the client."""
    latency_s: float
    inputs: bytes
    """The body as it came."""
    output: bytes
    """The answer as it went."""
    features: bytes = b""
    """The row that the model was given, where features were looked up for it."""


class Feedback(NamedTuple):
    """What became true of a prediction."""

    request_id: str
    time_s: float
    outcome: str
    """JSON: what was predicted, as it turned out."""


class Limits(NamedTuple):
    """How much of a log is kept."""

    days: int
    max_bytes: int
    """Bytes of all files of predictions; the oldest go first. Feedback goes by its age alone."""


def read_log(
    settings: Any,
    root: str,
    use_case: str,
    kind: Kind,
    since: dt.datetime | None = None,
    columns: list[str] | None = None,
    sample_rows: int | None = None,
) -> Any:
    """Return the log of a use case as a pyarrow table; an empty one where there is none, of feedback the last by id.

    Args:
        settings: Say where an S3 store is.
        root: URI of the log of all use cases.
        use_case: Its name.
        kind: `predictions` or `feedback`.
        since: Leave out what is older.
        columns: Those to read; `None` for all of them.
        sample_rows: Read files, chosen at random, until they hold so many rows; `None` reads all.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    since_day, since_file = (f"date={since:%Y-%m-%d}", f"{since:%Y%m%dT%H%M%S}") if since else ("", "")
    system, directory = filesystem(settings, join(root, use_case, kind))
    # A file's name begins with the time of its writing: no row in it is younger.
    days = [item.path for item in listed(system, directory) if not item.is_file and item.base_name >= since_day]
    files = [
        item.path
        for day in days
        for item in listed(system, day)
        if item.base_name.endswith(".parquet") and not item.base_name.startswith(".") and item.base_name >= since_file
    ]
    files.sort()
    if sample_rows is not None:
        random.Random(0).shuffle(files)  # noqa: S311  no secret, and the same files for the same log
    table = table_of([], kind).select(columns) if columns else table_of([], kind)
    parts = [table]
    for file in files:
        if sample_rows is not None and sum(part.num_rows for part in parts) >= sample_rows:
            break
        part = _read(system, file, columns)
        if part is not None:
            parts.append(part)
    table = pa.concat_tables(parts)
    if since is not None:
        table = table.filter(pc.greater_equal(table["time"], pa.scalar(since, pa.timestamp("us", "UTC"))))
    if kind == "feedback":  # a proxy may send it twice, and a client correct it
        last = {request_id: number for number, request_id in enumerate(table["request_id"].to_pylist())}
        table = table.take(pa.array(last.values(), pa.int64()))
    return table


def tidy(settings: Any, root: str, use_case: str, limits: Limits) -> None:
    """Remove what is too old of a log, and the oldest predictions where there are too many.

    Args:
        settings: Say where an S3 store is.
        root: URI of the log of all use cases.
        use_case: Its name.
        limits: What is kept.

    Raises:
        OSError: The store does not answer.
    """
    now = dt.datetime.now(dt.UTC)
    oldest = f"{now - dt.timedelta(days=limits.days):%Y%m%dT%H%M%S}"
    abandoned = f"{now - dt.timedelta(days=1):%Y%m%dT%H%M%S}"
    for kind in ("feedback", "predictions"):
        system, directory = filesystem(settings, join(root, use_case, kind))
        files = [item for day in listed(system, directory) if not day.is_file for item in listed(system, day.path)]
        files.sort(key=lambda item: item.base_name)
        total_bytes = sum(item.size or 0 for item in files) if kind == "predictions" else 0
        for item in files:
            draft = item.base_name.startswith(".")
            old = item.base_name[1:] < abandoned if draft else item.base_name < oldest
            if old or (total_bytes > limits.max_bytes and not draft):
                total_bytes -= item.size or 0
                with contextlib.suppress(FileNotFoundError):  # another replica was quicker
                    system.delete_file(item.path)
        for day in listed(system, directory):
            if not day.is_file and day.base_name < f"date={now:%Y-%m-%d}" and not listed(system, day.path):
                with contextlib.suppress(FileNotFoundError):
                    system.delete_dir(day.path)


def listed(system: Any, directory: str) -> list[Any]:
    """Return what pyarrow says of each thing in a directory, or under a prefix; nothing where there is none."""
    from pyarrow import fs

    return list(system.get_file_info(fs.FileSelector(directory, allow_not_found=True)))


def _read(system: Any, file: str, columns: list[str] | None) -> Any:
    """Return the table of a file; `None` where it was removed meanwhile, or holds none, which the log then says.

    Raises:
        OSError: The store does not answer.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with system.open_input_stream(file) as stream:
            content = stream.read()
    except FileNotFoundError:
        return None
    try:
        return pq.read_table(pa.BufferReader(content), columns=columns)
    except (OSError, ValueError, KeyError) as error:  # pyarrow has one for each kind of damage
        logger.warning("%s is left out, it is damaged: %s", file, error)
        return None


def put(settings: Any, place: str, name: str, content: Any) -> None:
    """Write a file that is there whole or not at all, and stays: on a disk it is synced before it has its name.

    Raises:
        OSError: The store does not take it.
    """
    from pyarrow import fs

    system, directory = filesystem(settings, place)
    system.create_dir(directory, recursive=True)
    # Readers skip names that begin with a dot; an object store has the whole file or none.
    draft = f"{directory}/.{name}"
    if not isinstance(system, fs.LocalFileSystem):
        with system.open_output_stream(draft) as stream:
            stream.write(content)
        system.move(draft, f"{directory}/{name}")
        return
    Path(draft).write_bytes(content)
    sync(Path(draft))
    Path(draft).rename(f"{directory}/{name}")
    sync(Path(directory))


def table_of(entries: list[Any], kind: Kind) -> Any:
    """Return entries of one kind as the table that a file of the log holds."""
    import pyarrow as pa

    text, moment = pa.string(), pa.timestamp("us", "UTC")
    columns: dict[str, tuple[Any, Any]] = {
        "request_id": (text, lambda entry: entry.request_id),
        "time": (moment, lambda entry: int(entry.time_s * 1e6)),
    }
    if kind == "feedback":
        columns["outcome"] = text, lambda entry: entry.outcome
    else:
        columns |= {
            "version": (text, lambda entry: entry.version),
            "role": (text, lambda entry: entry.role),
            "route": (text, lambda entry: entry.route),
            "status": (pa.int16(), lambda entry: entry.status),
            "failed": (pa.bool_(), lambda entry: entry.failed),
            "latency_ms": (pa.float32(), lambda entry: entry.latency_s * 1000),
            "inputs": (text, lambda entry: _text(entry.inputs)),
            "features": (text, lambda entry: _text(entry.features) or None),
            "output": (text, lambda entry: _text(entry.output)),
        }
    return pa.table({name: pa.array(map(read, entries), type_) for name, (type_, read) in columns.items()})


def _text(body: bytes) -> str | None:
    return body.decode("utf-8", "replace") if body else None
