"""Whether a version still does for real requests what it was judged to do; the step `monitor`.

All of it comes from the log of the endpoint: how it answered, how well, where the outcomes are known, and how far its
inputs and predictions have gone from the test set. The bounds are those of a trial with real requests, and of drift.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from shopfloor.errors import NotFoundError, ServiceError, UsageError, first_line
from shopfloor.judging import gates
from shopfloor.judging.live import COLUMNS, drift, live_numbers
from shopfloor.judging.metrics import of_use_case
from shopfloor.records import PREDICTION, REFERENCE_FILE, ColumnDrift, LiveNumbers, Monitored, Reference
from shopfloor.runs.mlflow import Mlflow, beside_model, version_of
from shopfloor.serving import assignment as assignments
from shopfloor.serving.contract import log_root
from shopfloor.serving.log_files import read_log
from shopfloor.settings import Settings
from shopfloor.storage import Artifact, Metrics, publish, scratch
from shopfloor.use_case import ServedCase, load_served_case

logger = logging.getLogger(__name__)

SAMPLE_ROWS = 100_000
"""Requests that are read for their inputs, and rows of them that are looked at."""
INPUTS = ["version", "role", "route", "status", "time", "inputs", "features", "output"]
"""Columns of the log of predictions that drift rests on."""


def monitor(settings: Settings, use_case: str, version: str, hours: float, monitored: Artifact, log: Metrics) -> bool:
    """Judge a version by the requests of the last hours, and return whether no gate is missed.

    Args:
        settings: Say where everything is.
        use_case: Its name.
        version: A version, or empty for the champion.
        hours: How far to look back.
        monitored: Gets `monitored.json`.
        log: Gets the metrics, and `drift`, the distance of the furthest column.

    Raises:
        NotFoundError: There is no such version, or no champion.
        UsageError: The use case keeps no log, a gate bounds an unknown metric, or the hours are none.
        ServiceError: MLflow or the store of the log does not answer.
    """
    case = load_served_case(settings, use_case)
    known = gates.require_known(settings, case)
    if not hours > 0:
        raise UsageError(f"{hours:g} hours are no time to look back.", "-p hours=24")
    if not case.serving.log:
        raise UsageError(f"{use_case} keeps no log of predictions.", "Set serving.log in its use_case.yaml.")
    mlflow = Mlflow(settings.tracking_uri, settings.request_timeout_s)
    version = version or assignments.resolve(settings, use_case, assignments.AT_CHAMPION)
    if not version:
        raise NotFoundError(f"{use_case} has no champion to look at.", f"shopfloor models list {use_case}")
    version_of(mlflow, use_case, version)
    until = dt.datetime.now(dt.UTC)
    since = until - dt.timedelta(hours=hours)
    numbers = numbers_of(case, read_requests(settings, use_case, since), version, version)
    reference = _reference(settings, use_case, version)
    columns, note = _drift(settings, use_case, version, since, reference)
    verdicts = gates.judge_live(case.gates.live, known, numbers, None)
    if case.gates.drift is not None:
        verdicts.append(gates.judge_drift(case.gates.drift, columns, reference.rows if reference else 0, note))
    record = Monitored(
        use_case=use_case,
        version=version,
        since=since,
        until=until,
        numbers=numbers,
        drift=columns,
        note=note,
        gates=verdicts,
        passed=all(verdict.passed or verdict.undecided for verdict in verdicts),
    )
    with publish(settings, monitored, "monitor") as directory:
        (directory / "monitored.json").write_text(record.model_dump_json(indent=1), encoding="utf-8")
    for name, value in record.as_metrics().items():
        log.log_metric(name, value)
    for verdict in verdicts:
        words = "undecided" if verdict.undecided else "met" if verdict.passed else "missed"
        logger.info("%s %s: %s%s", verdict.gate, verdict.bound, words, f", {verdict.note}" if verdict.note else "")
    return record.passed


def read_requests(settings: Settings, use_case: str, since: dt.datetime) -> tuple[Any, Any]:
    """Return predictions and feedback of a use case since then, each a DataFrame.

    Raises:
        ServiceError: The store of the log does not answer.
    """
    return (
        _read(settings, use_case, "predictions", since, COLUMNS),
        _read(settings, use_case, "feedback", since),
    )


def numbers_of(case: ServedCase, log: tuple[Any, Any], version: str, present: str | None) -> LiveNumbers:
    """Return what a version did.

    Args:
        case: Its use case.
        log: From `read_requests`.
        version: Whose answers to look at.
        present: The champion, whose answers its own are to agree with.
    """
    predictions, feedback = log
    tolerance, cost_per_hour = case.gates.live.tolerance, case.serving.cost_per_hour
    return live_numbers(predictions, feedback, version, present, tolerance, cost_per_hour, case.task, of_use_case(case))


def rows_of(
    route: str, inputs: str | None, features: str | None, output: str | None
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return the rows of a request as it was logged, and the predictions; of what is not kept, or no JSON, none.

    Args:
        route: Which protocol it is in.
        inputs: Body of the request.
        features: The row that the model was given, where it was completed.
        output: Body of the answer.
    """
    try:
        content, answer = json.loads(features or inputs or "null"), json.loads(output or "null")
        rows = list(_rows(route, content))
        predictions = _predictions(answer)
    except (ValueError, TypeError, KeyError, AttributeError):
        return [], []
    return rows, [one.get("class") if isinstance(one, dict) else one for one in predictions]


def _predictions(answer: dict[str, Any]) -> list[Any]:
    if "outputs" in answer:
        tensors = {tensor["name"]: tensor["data"] for tensor in answer["outputs"]}
        return list(tensors.get("class") or tensors.get("prediction") or ())
    return [answer["prediction"]] if "prediction" in answer else list(answer["predictions"])


def _rows(route: str, content: Any) -> Iterator[dict[str, Any]]:
    if route == "/predict":
        yield dict(content)
    elif "dataframe_records" in content or "instances" in content:
        yield from map(dict, content.get("dataframe_records") or content["instances"])
    else:
        if "dataframe_split" in content:
            names, rows = content["dataframe_split"]["columns"], content["dataframe_split"]["data"]
        else:
            inputs = content["inputs"]
            columns = inputs if route == "/invocations" else {tensor["name"]: tensor["data"] for tensor in inputs}
            names, rows = list(columns), zip(*columns.values(), strict=True)
        yield from (dict(zip(names, row, strict=True)) for row in rows)


def _reference(settings: Settings, use_case: str, version: str) -> Reference | None:
    """Return what a version keeps of its test set, where that is what `register` leaves."""
    with scratch() as directory:
        file = beside_model(settings, use_case, version, REFERENCE_FILE, directory)
        try:
            return Reference.model_validate_json(file.read_bytes()) if file else None
        except ValidationError:  # who may write to the registry wrote it
            return None


def _drift(
    settings: Settings, use_case: str, version: str, since: dt.datetime, reference: Reference | None
) -> tuple[list[ColumnDrift], str]:
    """Return how far a version's columns have gone, the furthest first, or why nobody knows."""
    if reference is None:
        return [], f"version {version} keeps nothing of a test set to compare with, as one that was imported"
    log = _read(settings, use_case, "predictions", since, INPUTS, SAMPLE_ROWS)
    log = log[(log["version"] == version) & ~log["role"].isin(["asked", "shadow"]) & (log["status"] < 400)]
    columns: dict[str, list[Any]] = {name: [] for name in reference.columns}
    count = 0
    for entry in log[["route", "inputs", "features", "output"]].itertuples(index=False):
        if count >= SAMPLE_ROWS:  # each may bring a thousand
            break
        rows, predictions = rows_of(*entry)
        count += len(rows)
        for row in rows:
            for name, values in columns.items():
                if name != PREDICTION:
                    values.append(row.get(name))
        columns.get(PREDICTION, []).extend(predictions)
    found = [drift(name, reference.columns[name], values) for name, values in columns.items() if values]
    found.sort(key=lambda column: -column.distance)
    return found, "" if found else "no request brought rows that are kept in the log"


def _read(
    settings: Settings,
    use_case: str,
    kind: Any,
    since: dt.datetime,
    columns: Sequence[str] = (),
    sample_rows: int | None = None,
) -> Any:
    root = log_root(settings)
    try:
        return read_log(settings, root, use_case, kind, since, list(columns) or None, sample_rows).to_pandas()
    except Exception as error:  # each kind of store has its own
        raise ServiceError(
            f"The log of predictions under {root} cannot be read: {first_line(error)}.", "Mend the store."
        ) from error
