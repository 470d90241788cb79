"""Every prediction of an endpoint and what became true afterwards, as parquet in the artifact store.

A request only appends to a buffer. A thread writes it out every few seconds, one file a time, each complete or absent;
what cannot be written waits, up to a bound, and is then dropped and counted. A clean shutdown writes what is left.
Feedback is written at once, what comes meanwhile together, and whoever sent it learns when it is on the disk.

    <artifact_root>/predictions/<use_case>/predictions/date=2026-11-21/<time>-<replica>-<number>.parquet
    <artifact_root>/predictions/<use_case>/feedback/date=2026-11-21/...
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import logging
import threading
import time
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, NamedTuple

from shopfloor.storage import filesystem, join, sync

logger = logging.getLogger(__name__)

FLUSH_S = 5.0
"""Pause between two files of predictions."""
FEEDBACK_S = 1.0
"""Pause between two files of feedback: what comes in between waits for the next."""
TIDY_S = 3600.0
"""Pause between two looks at what is too old or too much."""
MAX_ROWS = 200_000
"""Predictions that wait to be written; as much feedback."""
MAX_BYTES = 256 * 1024 * 1024
"""Bytes of bodies and answers that wait to be written."""
ROWS_AT_ONCE = 250
MAX_BODY_BYTES = 64 * 1024
"""A longer body, of many rows, is not kept; that it came is."""
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


class PredictionLog:
    """The buffer of one replica, and the threads that write it out."""

    def __init__(
        self,
        root: str,
        use_case: str,
        replica: str,
        settings: Any,
        flush_s: float = FLUSH_S,
        limits: Limits | None = None,
    ) -> None:
        """Begin to write under `root`.

        Args:
            root: URI of the log of all use cases.
            use_case: Its name.
            replica: Makes the names of its files differ from other replicas'.
            settings: Say where an S3 store is.
            flush_s: Seconds between two files.
            limits: What is to be removed from time to time; `None` removes nothing.
        """
        self.dropped = 0
        """Entries that found no room."""
        self._root, self._use_case = root, use_case
        self._replica = replica
        self._settings = settings
        self._flush_s = flush_s
        self._limits = limits
        self._numbers = itertools.count(1)
        self._buffer: deque[Prediction] = deque()
        self._feedback: deque[tuple[Feedback, Future[None]]] = deque()
        self._bytes_in = self._bytes_out = 0  # each counted by one thread
        self._writing, self._keeping = threading.Lock(), threading.Lock()
        self._end = threading.Event()
        self._has_feedback = threading.Event()
        self._threads = [
            threading.Thread(target=run, name=f"{name}-log", daemon=True)
            for name, run in (("prediction", self._run), ("feedback", self._run_feedback))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Return how many entries are not written yet."""
        return len(self._buffer) + len(self._feedback)

    def add(self, entry: Prediction) -> None:
        """Keep a prediction; by one thread only."""
        size = _size(entry)
        if size > MAX_BODY_BYTES:
            inputs, output, features = map(_kept, (entry.inputs, entry.output, entry.features))
            entry = entry._replace(inputs=inputs, output=output, features=features)
            size = _size(entry)
        full = len(self._buffer) >= MAX_ROWS or self._bytes_in - self._bytes_out + size > MAX_BYTES
        if full or self._end.is_set():
            self.dropped += 1
            return
        self._bytes_in += size
        self._buffer.append(entry)

    def keep(self, feedback: Feedback) -> Future[None]:
        """Write feedback, and return what is done when it is on the disk or in the store, or fails where it is not."""
        future: Future[None] = Future()
        if len(self._feedback) >= MAX_ROWS or self._end.is_set():
            self.dropped += 1
            future.set_exception(OSError("the log takes no more"))
            return future
        self._feedback.append((feedback, future))
        self._has_feedback.set()
        return future

    def flush(self) -> None:
        """Write the predictions that there are; what cannot be written stays, before what came since.

        Raises:
            OSError: The store does not take it.
        """
        with self._writing:
            rows = [self._buffer.popleft() for _ in range(len(self._buffer))]
            try:
                self._write("predictions", rows)
            except Exception:
                self._buffer.extendleft(reversed(rows))
                raise
            self._bytes_out += sum(map(_size, rows))

    def close(self) -> None:
        """Write what is left, and end; what is added from now on is dropped and counted."""
        if self._end.is_set():
            return
        self._end.set()
        self._has_feedback.set()
        for _ in range(3):
            with contextlib.suppress(Exception):
                self._flush_feedback()
                self.flush()
                return
            time.sleep(0.5)
        logger.error("%d predictions are lost: %s takes nothing", self.waiting, self._root)

    def _run(self) -> None:
        last_tidy_s = time.monotonic() - TIDY_S + self._flush_s
        while not self._end.wait(self._flush_s):
            try:
                self.flush()
                if self._limits and time.monotonic() - last_tidy_s > TIDY_S:
                    last_tidy_s = time.monotonic()
                    tidy(self._settings, self._root, self._use_case, self._limits)
            except Exception:
                logger.warning("the prediction log %s takes nothing, %d wait", self._root, self.waiting, exc_info=True)

    def _run_feedback(self) -> None:
        while not self._end.is_set():
            self._has_feedback.wait()
            self._has_feedback.clear()
            self._flush_feedback()
            self._end.wait(FEEDBACK_S)

    def _flush_feedback(self) -> None:
        """Write the feedback that there is, and tell who waits for it."""
        problem: Exception | None = None
        with self._keeping:
            rows = [self._feedback.popleft() for _ in range(len(self._feedback))]
            try:
                self._write("feedback", [entry for entry, _ in rows])
            except Exception as error:
                logger.warning("feedback cannot be kept in %s", self._root, exc_info=True)
                problem = error
        for _, future in rows:
            if future.set_running_or_notify_cancel():
                future.set_exception(problem) if problem else future.set_result(None)

    def _write(self, kind: Kind, entries: list[Any]) -> None:
        if not entries:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        now = dt.datetime.now(dt.UTC)
        name = f"{now:%Y%m%dT%H%M%S}-{self._replica}-{next(self._numbers):06}.parquet"
        parts = []
        for start in range(0, len(entries), ROWS_AT_ONCE):
            parts.append(_table(entries[start : start + ROWS_AT_ONCE], kind))
            time.sleep(0.001)  # the interpreter belongs to the requests
        content = pa.BufferOutputStream()
        pq.write_table(pa.concat_tables(parts), content, compression="zstd")
        place = join(self._root, self._use_case, kind, f"date={now:%Y-%m-%d}")
        _put(self._settings, place, name, content.getvalue())


def read_log(
    settings: Any,
    root: str,
    use_case: str,
    kind: Kind,
    since: dt.datetime | None = None,
    columns: list[str] | None = None,
) -> Any:
    """Return the log of a use case as a pyarrow table; an empty one where there is none, of feedback the last by id.

    Args:
        settings: Say where an S3 store is.
        root: URI of the log of all use cases.
        use_case: Its name.
        kind: `predictions` or `feedback`.
        since: Leave out what is older.
        columns: Those to read; `None` for all of them.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    since_day, since_file = (f"date={since:%Y-%m-%d}", f"{since:%Y%m%dT%H%M%S}") if since else ("", "")
    system, directory = filesystem(settings, join(root, use_case, kind))
    # A file's name begins with the time of its writing: no row in it is younger.
    days = [item.path for item in _listed(system, directory) if not item.is_file and item.base_name >= since_day]
    files = [
        item.path
        for day in days
        for item in _listed(system, day)
        if item.base_name.endswith(".parquet") and not item.base_name.startswith(".") and item.base_name >= since_file
    ]
    empty = _table([], kind).select(columns) if columns else _table([], kind)
    parts = [table for file in sorted(files) if (table := _read(system, file, columns)) is not None]
    table = pa.concat_tables([empty, *parts])
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
        files = [item for day in _listed(system, directory) if not day.is_file for item in _listed(system, day.path)]
        files.sort(key=lambda item: item.base_name)
        total_bytes = sum(item.size or 0 for item in files) if kind == "predictions" else 0
        for item in files:
            draft = item.base_name.startswith(".")
            old = item.base_name[1:] < abandoned if draft else item.base_name < oldest
            if old or (total_bytes > limits.max_bytes and not draft):
                total_bytes -= item.size or 0
                with contextlib.suppress(FileNotFoundError):  # another replica was quicker
                    system.delete_file(item.path)
        for day in _listed(system, directory):
            if not day.is_file and day.base_name < f"date={now:%Y-%m-%d}" and not _listed(system, day.path):
                with contextlib.suppress(FileNotFoundError):
                    system.delete_dir(day.path)


def _listed(system: Any, directory: str) -> list[Any]:
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


def _put(settings: Any, place: str, name: str, content: Any) -> None:
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


def _table(entries: list[Any], kind: Kind) -> Any:
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


def _size(entry: Prediction) -> int:
    return len(entry.inputs) + len(entry.output) + len(entry.features)


def _kept(body: bytes) -> bytes:
    return body if len(body) <= MAX_BODY_BYTES else b""


def _text(body: bytes) -> str | None:
    return body.decode("utf-8", "replace") if body else None
