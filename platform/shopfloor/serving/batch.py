"""Scores a parquet data set with a registered version: Ray Data over the same prediction code as the endpoint.

The data set is cut into parts of whole row groups. Each part becomes one file, complete or absent, so a run that was
killed goes on with the parts that it lacks. No process holds more than a few batches of rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import pickle
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shopfloor.errors import NotFoundError, ShopfloorError
from shopfloor.judging.golden import plain
from shopfloor.runs.mlflow import Mlflow, version_of
from shopfloor.serving import assignment as assignments
from shopfloor.serving.data_set import PREDICTION, VERSION, Part, frame_of, parts_of, require_values, with_partition
from shopfloor.serving.model.loading import ServedModel, load_model
from shopfloor.serving.model.native import Matrix, answers_of
from shopfloor.serving.model.row import Column
from shopfloor.settings import Settings
from shopfloor.storage import Artifact, exists, filesystem, is_remote, join, publish, scratch, stored, sync
from shopfloor.training import cluster as ray_cluster

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

logger = logging.getLogger(__name__)

ROWS_PER_PART = 500_000
BATCH_ROWS = 50_000
"""Rows that are in memory at once, in each process."""


class _Needless(Exception):
    """Others have scored the part meanwhile."""


@dataclass(frozen=True)
class Scoring:
    """What it takes to score rows with a version."""

    version: str
    columns: tuple[str, ...]
    """The model's; none: it takes all that the file has."""
    matrix: Matrix | None
    """The native way into the model, which may have been loaded in another process."""
    single_precision: bool
    frame: Callable[[pd.DataFrame], Any] | None
    """The way of a model that has no native one."""
    checks: tuple[Column, ...] = ()
    """Checks that the endpoint makes of the columns' values, in their order."""


def score(settings: Settings, use_case: str, version: str, data: str, predictions: str, scored: Artifact) -> int:
    """Score a data set and return how many rows it has; the step `score`.

    Args:
        settings: Say where everything is.
        use_case: Name of the registered model.
        version: A version, or empty for the champion.
        data: A parquet file or a directory of them, as a path or a URI, with the model's columns.
        predictions: URI of a directory for the predictions; empty: among the run's artifacts.
        scored: Gets `scored.json`: version, rows, and where the predictions are.

    Raises:
        NotFoundError: There is no such data set, version or champion.
        UsageError: A file lacks a column of the model, has it with a wrong type, holds a value that the endpoint would
            refuse, or was scored before.
        ServiceError: MLflow or the Ray cluster does not answer.
    """
    version = assignments.resolve(settings, use_case, version or assignments.AT_CHAMPION)
    if not version:
        raise NotFoundError(f"{use_case} has no champion.", "Give -p version=<number>.")
    version_of(Mlflow(settings.tracking_uri, settings.request_timeout_s), use_case, version)
    if not exists(settings, data):
        raise NotFoundError(f"There is no data set {data}.", "Give a parquet file, or a directory of them.")
    with ThreadPoolExecutor(1) as pool:  # both take seconds
        hashed = pool.submit(stored, settings, data)
        model = load_model(settings.tracking_uri, use_case, version)
        content = str(hashed.result())
    root = predictions or join(settings.artifact_root, "batch", use_case)
    # The same data and version again find their parts; any other set has a place of its own.
    target = join(root, f"version={version}", f"data={hashlib.sha256(content.encode()).hexdigest()[:12]}")
    columns = model.rows.columns if model.rows else ()
    parts = parts_of(settings, data, target, model.version, columns, ROWS_PER_PART)
    missing = [part for part in parts if not _is_there(settings, part.target)]
    rows = sum(part.rows for part in parts)
    logger.info("%s rows in %d parts, %d of them scored before", f"{rows:,}", len(parts), len(parts) - len(missing))
    if len(missing) > 1:
        _score_on_ray(settings, use_case, model, missing)
    elif missing:  # done before a cluster's worker has started
        score_part(settings, scoring(model), missing[0])
    with publish(settings, scored, "score", content_hash=f"{content}-{version}") as directory:
        record = {"use_case": use_case, "version": version, "rows": rows, "data": data, "predictions": target}
        (directory / "scored.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    scored.metadata.update({"version": version, "rows": rows, "predictions": target})
    logger.info("%s rows are scored with version %s: %s", f"{rows:,}", version, target)
    return rows


def scoring(model: ServedModel) -> Scoring:
    """Return how rows are scored with a loaded version."""
    checks = model.rows.columns if model.rows else ()
    columns = tuple(column.name for column in checks)
    if model.native is None:
        return Scoring(model.version, columns, None, False, model.pyfunc.predict, checks)
    return Scoring(model.version, columns, model.native.matrix, model.native.single_precision, None, checks)


class Scorer:
    """One worker: holds the model, and scores parts."""

    def __init__(self, settings: Settings, use_case: str, version: str, portable: bytes | None) -> None:
        """Take the version as it was loaded and pickled by who starts the worker, or load it."""
        self._settings = settings
        if portable is None:
            self._scoring = scoring(load_model(settings.tracking_uri, use_case, version))
        else:
            with _without_sklearn():
                self._scoring = pickle.loads(portable)  # noqa: S301  of our own

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Score one part, batch by batch, where nobody has; return how many rows it has."""
        part = Part(**json.loads(row["part"]))
        if not _is_there(self._settings, part.target):
            score_part(self._settings, self._scoring, part)
        return {"rows": part.rows}


@contextlib.contextmanager
def _without_sklearn() -> Iterator[None]:
    """Let XGBoost be imported for its boosters only: its estimators import scikit-learn, three quarters of the time."""
    if "sklearn" in sys.modules:
        yield
        return
    sys.modules["sklearn"] = None  # type: ignore[assignment]  # what is not there cannot be imported
    try:
        yield
    finally:
        del sys.modules["sklearn"]


def score_part(settings: Settings, model: Scoring, part: Part, needless: threading.Event | None = None) -> None:
    """Write the predictions of a part; its file is there when it is complete, not before.

    Args:
        settings: Say where an S3 store is.
        model: Scores the rows.
        part: What to score.
        needless: Says that others have scored it meanwhile; nothing is written then.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    source, file = filesystem(settings, part.file)
    target, path = filesystem(settings, part.target)
    directory, _, name = path.rpartition("/")
    target.create_dir(directory, recursive=True)
    with _draft(target, directory, name, is_remote(part.target)) as draft:
        with pq.ParquetFile(file, filesystem=source) as parquet:
            groups = list(range(part.first, part.last))
            writer = None
            # Every CPU has a worker of its own: more threads would only get in each other's way.
            for rows in parquet.iter_batches(BATCH_ROWS, row_groups=groups, use_threads=False):
                if needless is not None and needless.is_set():
                    raise _Needless("Others have done it.")
                rows = with_partition(rows, part.partition)
                scored = rows.append_column(PREDICTION, _predictions(model, rows, part.file))
                everywhere = pa.DictionaryArray.from_arrays(np.zeros(len(rows), np.int32), [model.version])
                scored = scored.append_column(VERSION, everywhere)
                if writer is None:
                    writer = pq.ParquetWriter(
                        draft,
                        scored.schema,
                        filesystem=target,
                        compression="snappy",
                        use_dictionary=[*_texts(parquet), VERSION],
                    )
                writer.write_table(pa.Table.from_batches([scored]))
            if writer is not None:
                writer.close()
                if not is_remote(part.target):
                    sync(Path(draft))
        target.move(draft, path)
        if not is_remote(part.target):
            sync(Path(directory))


@contextlib.contextmanager
def _draft(target: Any, directory: str, name: str, in_a_store: bool) -> Iterator[str]:
    """Give a path beside a part's own; what is left there goes, on a disk also what a killed process left."""
    if not in_a_store:
        with scratch(Path(directory)) as own:
            yield str(own / name)
        return
    draft = f"{directory}/.{name}-{uuid.uuid4().hex[:8]}"
    try:
        yield draft
    except BaseException:
        if target.get_file_info(draft).is_file:
            target.delete_file(draft)
        raise


def _texts(parquet: pq.ParquetFile) -> list[str]:
    """Return the columns that are worth a dictionary: to make one of numbers takes longer than to write them."""
    columns = [parquet.schema.column(index) for index in range(len(parquet.schema))]
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _predictions(model: Scoring, rows: pa.RecordBatch, file: str) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    inputs = rows.select(list(model.columns)) if model.columns else rows
    matrix = _matrix(inputs, np.float32 if model.single_precision else np.float64) if model.matrix is not None else None
    require_values(file, model.checks, inputs, matrix)
    if model.matrix is not None and matrix is not None:
        answers = model.matrix(matrix)
    elif model.frame is not None:
        answers = answers_of(model.frame(frame_of(model.checks, inputs)), len(rows))
    if len(answers) != len(rows):
        raise ShopfloorError(f"Version {model.version} answers {len(answers)} of {len(rows)} rows.", "Mend the model.")
    if isinstance(answers, np.ndarray) and answers.ndim == 1 and answers.dtype != object:
        return pa.array(answers)
    return pa.array([plain(answer) for answer in answers])


def _matrix(rows: pa.RecordBatch, precision: type[np.floating[Any]]) -> np.ndarray:
    """Return columns of numbers as a matrix, NaN where a value is missing."""
    import numpy as np
    import pyarrow as pa

    matrix = np.empty(rows.shape, precision, order="F")  # each column is written in one go
    for index, column in enumerate(rows.columns):
        if pa.types.is_null(column.type):
            matrix[:, index] = np.nan
        else:  # booleans with nulls would become objects, others become NaN beside floats
            numbers = column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column
            if pa.types.is_decimal(column.type):
                numbers = column.cast(pa.float64())
            matrix[:, index] = numbers.to_numpy(zero_copy_only=False)
    return matrix


def _score_on_ray(settings: Settings, use_case: str, model: ServedModel, parts: list[Part]) -> None:
    # A worker that gets the model starts in half the time: it need not import MLflow, nor load anything.
    portable = pickle.dumps(scoring(model)) if model.native and model.native.portable else None
    with _scored_meanwhile(settings, scoring(model), parts) as workers_run, ray_cluster.joined(settings):
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        parts = [part for part in parts if not _is_there(settings, part.target)]
        if not parts:
            return
        context = DataContext.get_current()
        context.enable_progress_bars = False
        # Others hold a part of the CPUs, as a replica does; the rest is shared by as many workers as there are CPUs.
        cpus = int(ray.cluster_resources().get("CPU", 1))
        workers = max(1, min(cpus, len(parts)))
        share = max(0.01, math.floor(ray.available_resources().get("CPU", 0.1) / workers * 80) / 100)
        results = ray.data.from_items(
            [{"part": json.dumps(vars(part))} for part in parts], override_num_blocks=len(parts)
        ).map(
            Scorer,
            fn_constructor_args=(settings, use_case, model.version, portable),
            compute=ActorPoolStrategy(size=workers),
            num_cpus=min(1.0, share),
        )
        total, rows = sum(part.rows for part in parts), 0
        try:
            for result in results.iter_rows():
                workers_run.set()
                rows += result["rows"]
                logger.info("%s of %s rows", f"{rows:,}", f"{total:,}")
        except Exception as error:
            own = _own(error)
            if own is None:
                raise
            raise own from error


def _own(error: BaseException | None) -> ShopfloorError | None:
    """Return the error of ours that a worker raised, from below those that Ray wraps it in."""
    while error is not None and type(error).__module__ != ShopfloorError.__module__:
        error = getattr(error, "cause", None) or error.__cause__
    return error if isinstance(error, ShopfloorError) else None


@contextlib.contextmanager
def _scored_meanwhile(settings: Settings, model: Scoring, parts: list[Part]) -> Iterator[threading.Event]:
    """Score parts here, the last one first, until the event that is yielded says that workers do.

    Ray needs seconds for that. A part that is begun here is ended here, unless a worker has come to it and was faster:
    both would write the same.
    """
    workers_run, over = threading.Event(), threading.Event()

    def work() -> None:
        for part in reversed(parts):
            if workers_run.is_set():
                return
            try:
                score_part(settings, model, part, over)
            except Exception:  # a worker will say it where it is heard
                logger.debug("%s is left to a worker", part.target, exc_info=True)
                return

    thread = threading.Thread(target=work, name="score")
    thread.start()
    try:
        yield workers_run
    finally:
        workers_run.set()
        over.set()
        thread.join()


def _is_there(settings: Settings, uri: str) -> bool:
    system, path = filesystem(settings, uri)
    return bool(system.get_file_info(path).is_file)
