"""Every prediction of an endpoint and what became true afterwards, as parquet in the artifact store.

A request only appends to a buffer, and to a journal on the machine's disk. A thread writes the buffer out every few
seconds, one file a time, each complete or absent; what cannot be written waits, up to a bound, and is then dropped and
counted. A clean shutdown writes what is left; what a killed replica left in its journal another on the machine writes.
Feedback is written at once, what comes meanwhile together, and whoever sent it learns when it is on the disk.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import logging
import os
import secrets
import threading
import time
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from shopfloor.serving.journal import Entry, Journal, left_behind
from shopfloor.serving.log_files import Feedback, Kind, Limits, Prediction, listed, put, table_of, tidy
from shopfloor.storage import filesystem, join

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
JOURNAL_DAYS = 3
"""Newest days of the log that are searched for what a journal holds."""


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
        journal: Path | None = None,
    ) -> None:
        """Begin to write under `root`.

        Args:
            root: URI of the log of all use cases.
            use_case: Its name.
            replica: Makes the names of its files differ from other replicas'.
            settings: Say where an S3 store is.
            flush_s: Seconds between two files.
            limits: What is to be removed from time to time; `None` removes nothing.
            journal: Directory of the journals of this machine; `None` keeps none.
        """
        self.dropped = 0
        """Entries that found no room."""
        self._root, self._use_case = root, use_case
        self._writer = f"{replica}-{secrets.token_hex(4)}"
        self._journals = journal / use_case if journal else None
        self._journal = _journal(self._journals, f"{self._writer}-journal")
        self._numbers = itertools.count(1)
        self._settings = settings
        self._flush_s = flush_s
        self._limits = limits
        self._buffer: list[Prediction] = []
        self._part: tuple[str, list[Prediction]] | None = None
        """What is being written, with the name of its journal; what comes meanwhile waits in the buffer."""
        self._feedback: deque[tuple[Feedback, Future[None]]] = deque()
        self._rows_in = self._rows_out = self._bytes_in = self._bytes_out = 0  # each counted by one thread
        self._adding, self._writing, self._keeping = threading.Lock(), threading.Lock(), threading.Lock()
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
        return self._rows_in - self._rows_out + len(self._feedback)

    def add(self, entry: Prediction) -> None:
        """Keep a prediction; by one thread only."""
        size = _size(entry)
        if size > MAX_BODY_BYTES:
            inputs, output, features = map(_kept, (entry.inputs, entry.output, entry.features))
            entry = entry._replace(inputs=inputs, output=output, features=features)
            size = _size(entry)
        full = self._rows_in - self._rows_out >= MAX_ROWS or self._bytes_in - self._bytes_out + size > MAX_BYTES
        if full or self._end.is_set():
            self.dropped += 1
            return
        self._bytes_in += size
        self._rows_in += 1
        with self._adding:
            if self._journal:
                self._journal.append(Entry(entry[:-3], entry[-3:]))
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
            self._write_part()
            with self._adding:
                if self._buffer:
                    self._part, self._buffer = (self._turn(), self._buffer), []
            self._write_part()

    def _write_part(self) -> None:
        if self._part is None:
            return
        name, rows = self._part
        self._write("predictions", rows, name)
        self._part = None
        self._rows_out += len(rows)
        self._bytes_out += sum(map(_size, rows))
        if self._journal:
            self._journal.remove(name)

    def _turn(self) -> str:
        """Return the name of what the buffer holds, and let the journal begin anew; without it where it cannot."""
        if self._journal:
            try:
                return self._journal.turn()
            except OSError as error:
                logger.warning("there is no journal in %s any more: %s", self._journals, error)
                self._journal.abandon()
                self._journal = None
        return f"{self._writer}-{next(self._numbers):06}"

    def adopt(self) -> None:
        """Write what replicas of this machine that were killed had in their journals; what nobody can read is dropped.

        Raises:
            OSError: The store does not take it.
        """
        if self._journals is None or self._journal is None:
            return
        for name, entries in left_behind(self._journals):
            if not entries or self._has(name):
                continue
            logger.warning("%d predictions of a replica that is gone are written now: %s", len(entries), name)
            try:
                self._write("predictions", [Prediction(*entry.values, *entry.blobs) for entry in entries], name)  # type: ignore[arg-type]
            except (TypeError, ValueError) as error:  # of another version, or damaged: it would be so the next time too
                logger.error("the journal %s cannot be read: %s", name, error)
                self.dropped += len(entries)

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
                break
            time.sleep(0.5)
        else:
            logger.error("%d entries are not written: %s takes nothing", self.waiting, self._root)
        if self._journal:
            with self._writing:
                self._journal.close()

    def _run(self) -> None:
        last_tidy_s = time.monotonic() - TIDY_S + self._flush_s
        while not self._end.wait(self._flush_s):
            try:
                self.flush()
                self.adopt()
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
                self._write("feedback", [entry for entry, _ in rows], f"{self._writer}-{next(self._numbers):06}")
            except Exception as error:
                logger.warning("feedback cannot be kept in %s", self._root, exc_info=True)
                problem = error
        for _, future in rows:
            if future.set_running_or_notify_cancel():
                future.set_exception(problem) if problem else future.set_result(None)

    def _has(self, name: str) -> bool:
        """Tell whether the predictions of a journal are written: its writer died before it was removed."""
        system, directory = filesystem(self._settings, join(self._root, self._use_case, "predictions"))
        days = sorted(listed(system, directory), key=lambda item: item.base_name)[-JOURNAL_DAYS:]
        return any(item.base_name.endswith(f"-{name}.parquet") for day in days for item in listed(system, day.path))

    def _write(self, kind: Kind, entries: list[Any], stem: str) -> None:
        """Write a file, whose name ends with a stem that no other file has."""
        if not entries:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        now = dt.datetime.now(dt.UTC)
        name = f"{now:%Y%m%dT%H%M%S}-{stem}.parquet"
        parts = []
        for start in range(0, len(entries), ROWS_AT_ONCE):
            parts.append(table_of(entries[start : start + ROWS_AT_ONCE], kind))
            time.sleep(0.001)  # the interpreter belongs to the requests
        content = pa.BufferOutputStream()
        pq.write_table(pa.concat_tables(parts), content, compression="zstd")
        place = join(self._root, self._use_case, kind, f"date={now:%Y-%m-%d}")
        put(self._settings, place, name, content.getvalue())


def journal_directory() -> Path | None:
    """Return where this machine's replicas keep what is not written yet; `None` on a cluster without such a place."""
    state = os.environ.get("SHOPFLOOR_STATE_DIR")
    return Path(state) / "journal" if state else None


def _journal(directory: Path | None, writer: str) -> Journal | None:
    """Return a writer's journal; `None` where it has none, or the disk takes none, which the log then says."""
    try:
        return Journal(directory, writer) if directory else None
    except OSError as error:
        logger.warning("there is no journal of predictions in %s: %s", directory, error)
        return None


def _size(entry: Prediction) -> int:
    return len(entry.inputs) + len(entry.output) + len(entry.features)


def _kept(body: bytes) -> bytes:
    return body if len(body) <= MAX_BODY_BYTES else b""
