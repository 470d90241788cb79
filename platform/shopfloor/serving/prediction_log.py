"""Every prediction of an endpoint and what became true afterwards, as parquet in the artifact store.

A request only appends to a buffer. A thread writes it out every few seconds, one file a time, each complete or absent;
what cannot be written waits, up to a bound, and is then dropped and counted. A clean shutdown writes what is left.

    <artifact_root>/predictions/<use_case>/predictions/date=2026-11-21/<time>-<replica>-<number>.parquet
    <artifact_root>/predictions/<use_case>/feedback/date=2026-11-21/...
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import threading
import time
from collections import deque
from typing import Any, NamedTuple

from shopfloor.storage import filesystem, join

logger = logging.getLogger(__name__)

FLUSH_S = 5.0
MAX_ROWS = 200_000
MAX_BYTES = 256 * 1024 * 1024
"""Of bodies and answers that wait to be written."""
ROWS_AT_ONCE = 250
MAX_BODY_BYTES = 64 * 1024
"""A longer body, of many rows, is not kept; that it came is."""


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


Entry = Prediction | Feedback


class PredictionLog:
    """The buffer of one replica, and the thread that writes it out."""

    def __init__(self, root: str, use_case: str, replica: str, settings: Any, flush_s: float = FLUSH_S) -> None:
        """Begin to write under `root`.

        Args:
            root: URI of the log of all use cases.
            use_case: Its name.
            replica: Makes the names of its files differ from other replicas'.
            settings: Say where an S3 store is.
            flush_s: Seconds between two files.
        """
        self.dropped = 0
        """Entries that found no room."""
        self.written = 0
        self._place = join(root, use_case)
        self._replica = replica
        self._settings = settings
        self._flush_s = flush_s
        self._number = 0
        self._buffer: deque[Entry] = deque()
        self._bytes_in = self._bytes_out = 0  # each counted by one thread
        self._writing = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Return how many entries are not written yet."""
        return len(self._buffer)

    def add(self, entry: Entry) -> None:
        """Keep an entry; by one thread only."""
        size = _size(entry)
        if size > MAX_BODY_BYTES and isinstance(entry, Prediction):
            inputs, output, features = map(_kept, (entry.inputs, entry.output, entry.features))
            entry = entry._replace(inputs=inputs, output=output, features=features)
            size = _size(entry)
        if len(self._buffer) >= MAX_ROWS or self._bytes_in - self._bytes_out + size > MAX_BYTES:
            self.dropped += 1
            return
        self._bytes_in += size
        self._buffer.append(entry)

    def flush(self) -> None:
        """Write what there is; what cannot be written stays, before what came since.

        Raises:
            OSError: The store does not take it.
        """
        with self._writing:
            taken = [self._buffer.popleft() for _ in range(len(self._buffer))]
            for kind, type_ in (("predictions", Prediction), ("feedback", Feedback)):
                entries = [entry for entry in taken if isinstance(entry, type_)]
                try:
                    self._write(kind, entries)
                except Exception:
                    self._buffer.extendleft(reversed(taken))
                    raise
                taken = [entry for entry in taken if not isinstance(entry, type_)]
                self.written += len(entries)
                self._bytes_out += sum(map(_size, entries))

    def close(self) -> None:
        """Write what is left, and end; nothing may be added any more."""
        if self._end.is_set():
            return
        self._end.set()
        for _ in range(3):
            with contextlib.suppress(Exception):
                self.flush()
                return
            time.sleep(0.5)
        logger.error("%d predictions are lost: %s takes nothing", self.waiting, self._place)

    def _run(self) -> None:
        while not self._end.wait(self._flush_s):
            try:
                self.flush()
            except Exception:
                logger.warning("the prediction log %s takes nothing, %d wait", self._place, self.waiting, exc_info=True)

    def _write(self, kind: str, entries: list[Any]) -> None:
        if not entries:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        now = dt.datetime.now(dt.UTC)
        self._number += 1
        name = f"{now:%Y%m%dT%H%M%S}-{self._replica}-{self._number:06}.parquet"
        system, directory = filesystem(self._settings, join(self._place, kind, f"date={now:%Y-%m-%d}"))
        system.create_dir(directory, recursive=True)
        # Readers skip names that begin with a dot; an object store has the whole file or none.
        parts = []
        for start in range(0, len(entries), ROWS_AT_ONCE):
            parts.append(_table(entries[start : start + ROWS_AT_ONCE]))
            time.sleep(0.001)  # the interpreter belongs to the requests
        table = pa.concat_tables(parts)
        pq.write_table(table, f"{directory}/.{name}", filesystem=system, compression="zstd")
        system.move(f"{directory}/.{name}", f"{directory}/{name}")


def read_log(
    settings: Any,
    root: str,
    use_case: str,
    kind: str,
    since: dt.datetime | None = None,
    columns: list[str] | None = None,
) -> Any:
    """Return the log of a use case as a pyarrow table, in no order; an empty one where there is none.

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
    import pyarrow.parquet as pq
    from pyarrow import fs

    system, directory = filesystem(settings, join(root, use_case, kind))
    found = system.get_file_info(fs.FileSelector(directory, allow_not_found=True, recursive=True))
    # A file's name begins with the time of its writing: no row in it is younger.
    written = f"{since:%Y%m%dT%H%M%S}" if since else ""
    files = [
        item.path
        for item in found
        if item.is_file
        and item.base_name.endswith(".parquet")
        and not item.base_name.startswith(".")
        and item.base_name >= written
    ]
    empty = _table([], kind).select(columns) if columns else _table([], kind)
    tables = [pq.read_table(file, columns=columns, filesystem=system, partitioning=None) for file in sorted(files)]
    table = pa.concat_tables([empty, *tables])
    if since is not None:
        table = table.filter(pc.greater_equal(table["time"], pa.scalar(since, pa.timestamp("us", "UTC"))))
    return table


def _table(entries: list[Any], kind: str = "") -> Any:
    import pyarrow as pa

    def column(name: str, kind_: Any, values: list[Any]) -> tuple[str, Any]:
        return name, pa.array(values, kind_)

    text, moment = pa.string(), pa.timestamp("us", "UTC")
    if kind == "feedback" or (entries and isinstance(entries[0], Feedback)):
        return pa.table(
            dict(
                [
                    column("request_id", text, [entry.request_id for entry in entries]),
                    column("time", moment, [int(entry.time_s * 1e6) for entry in entries]),
                    column("outcome", text, [entry.outcome for entry in entries]),
                ]
            )
        )
    return pa.table(
        dict(
            [
                column("request_id", text, [entry.request_id for entry in entries]),
                column("time", moment, [int(entry.time_s * 1e6) for entry in entries]),
                column("version", text, [entry.version for entry in entries]),
                column("role", text, [entry.role for entry in entries]),
                column("route", text, [entry.route for entry in entries]),
                column("status", pa.int16(), [entry.status for entry in entries]),
                column("failed", pa.bool_(), [entry.failed for entry in entries]),
                column("latency_ms", pa.float32(), [entry.latency_s * 1000 for entry in entries]),
                column("inputs", text, [_text(entry.inputs) for entry in entries]),
                column("features", text, [_text(entry.features) or None for entry in entries]),
                column("output", text, [_text(entry.output) for entry in entries]),
            ]
        )
    )


def _size(entry: Entry) -> int:
    if isinstance(entry, Feedback):
        return len(entry.outcome)
    return len(entry.inputs) + len(entry.output) + len(entry.features)


def _kept(body: bytes) -> bytes:
    return body if len(body) <= MAX_BODY_BYTES else b""


def _text(body: bytes) -> str | None:
    return body.decode("utf-8", "replace") if body else None
