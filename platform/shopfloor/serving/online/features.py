"""Features at request time: a row that names entities is completed from Feast's online store.

What the request sent counts first, then what the use case's `at_request` computes from that, then what the store holds.
All rows of a request are read at once and within a deadline. A store that is down or late costs the values, or the
request, as use_case.yaml says; it is opened again by itself.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import SchemaValidator, ValidationError, core_schema, to_json

from shopfloor.data.materialization import without_password
from shopfloor.errors import first_line
from shopfloor.serving.contract import OnlineConfig
from shopfloor.serving.errors import BadRequest
from shopfloor.serving.model.row import (
    Column,
    RowSchema,
    Value,
    bad_fields,
    checked,
    columns_named,
    in_words,
    json_schema,
)
from shopfloor.serving.online.store import OnlineStore, OnlineValues, Row, open_store
from shopfloor.use_case import import_code

logger = logging.getLogger(__name__)

Source = Literal["request", "computed", "online", "fallback", "missing"]
"""Source: sent; computed from what was sent; read; not read in time; not known to the store, or too old there."""
Outcome = Literal["unneeded", "read", "late", "down"]
"""Outcome of the store, for a request."""

OUTCOMES: tuple[Outcome, ...] = ("unneeded", "read", "late", "down")

EXPLAIN = "explain_inputs"
"""Field of a request that asks for what the model was given, and where it came from."""
REOPEN_S = 5.0
"""Pause before a store that failed is opened again."""
READERS = 4
"""Threads of a replica that read."""


@dataclass(frozen=True)
class Inputs:
    """The complete rows of a request."""

    rows: list[list[Value]]
    """Rows, each with the values of the model's columns, in order."""
    sources: list[dict[str, Source]]
    """Sources of the values, for each row and column."""
    store: Outcome


class PartialRowSchema:
    """Checks rows that may name entities, and lack any of the model's inputs."""

    def __init__(self, rows: RowSchema, entities: Mapping[str, str]) -> None:
        """Derive the check; an entity that is an input of the model too has that input's type."""
        keys = RowSchema(columns_named(entities))
        fields = keys.optional_fields() | rows.optional_fields()
        described = keys.optional_fields(described=True) | rows.optional_fields(described=True)
        described[EXPLAIN] = core_schema.typed_dict_field(core_schema.bool_schema(), required=False)
        self._described = core_schema.typed_dict_schema(described, extra_behavior="forbid")
        several = core_schema.typed_dict_schema(fields, extra_behavior="ignore")
        self._rows = SchemaValidator(core_schema.list_schema(several))
        fields[EXPLAIN] = core_schema.typed_dict_field(core_schema.bool_schema(strict=True), required=False)
        self._row = SchemaValidator(core_schema.typed_dict_schema(fields, extra_behavior="forbid"))
        self._max_bytes = rows.max_bytes + keys.max_bytes

    def json_schema(self) -> dict[str, Any]:
        """Return such a row as JSON Schema."""
        return json_schema(self._described)

    def row(self, body: bytes) -> tuple[Row, bool]:
        """Return what the body of one row says, and whether it asks to have its inputs explained.

        Raises:
            BadRequest: The body is not such a row.
        """
        row = checked(self._row, body, self._max_bytes)
        return row, bool(row.pop(EXPLAIN, False))

    def rows(self, records: list[dict[str, Any]]) -> list[Row]:
        """Return what records say, each as JSON has it; fields that nobody knows are ignored, as MLflow does.

        Raises:
            BadRequest: A field is wrong.
        """
        try:
            rows: list[Row] = self._rows.validate_json(to_json(records))
        except ValidationError as error:
            errors = error.errors(include_url=False, include_context=False, include_input=False)
            problems = [{"field": str(item["loc"][1])[:200], "problem": in_words(item)} for item in errors[:20]]
            raise bad_fields(problems) from None
        return rows


class OnlineFeatures:
    """A replica's way to the features of entities; made once, and opened again by itself after the store failed."""

    def __init__(self, config: OnlineConfig) -> None:
        """Make it, without opening anything; `open` does, and so does the first request."""
        self.config = config
        self._computed: Callable[[Row], Row] = lambda row: {}
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="online")
        self._opened: OnlineStore | None = None
        self._problem = "The online store is being opened."
        self._opening: asyncio.Task[None] | None = None
        self._tried = -math.inf
        self.reads = dict.fromkeys(OUTCOMES, 0)
        """Requests by what came of the store."""

    @property
    def problem(self) -> str:
        """Why the store cannot be read, in one line; empty where it can."""
        return "" if self._opened else self._problem

    async def open(self) -> None:
        """Open the store; where that fails, `problem` says why, and a later request tries again.

        Raises:
            Exception: The use case's `features.py` cannot be imported.
        """
        loop = asyncio.get_running_loop()
        self._computed = await loop.run_in_executor(self._threads, _at_request, self.config)
        await self.refresh()

    def close(self) -> None:
        """Let the threads end; nothing is read any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def complete(self, rows: Sequence[Mapping[str, Value]], columns: Sequence[Column]) -> Inputs:
        """Return the complete rows of a request.

        Args:
            rows: What the request sent: entities and any of the model's inputs; `None` is not sent.
            columns: The model's inputs.

        Raises:
            BadRequest: 422 where a row lacks a value that the model needs and the client can mend it; 503 where the
                store cannot be read, or is too old.
        """
        sent = [_sent(row) for row in rows]
        present = [self._compute(row) | row for row in sent]
        missing = [column.name for column in columns if any(column.name not in row for row in present)]
        online: OnlineValues | None = None
        outcome: Outcome = "unneeded"
        if missing:
            online, outcome = await self._look_up(missing, present)
        self.reads[outcome] += 1
        why = self._why(outcome)
        if why and self.config.fallback == "refuse":
            raise BadRequest(503, why)
        pairs = [_complete(row, sent[number], columns, online, number) for number, row in enumerate(present)]
        _require([row for row, _ in pairs], columns, online, why)
        return Inputs([list(row.values()) for row, _ in pairs], [source for _, source in pairs], outcome)

    def _compute(self, row: Row) -> Row:
        try:
            return _sent(self._computed(dict(row)))
        except (ValueError, OverflowError) as error:
            raise BadRequest(422, f"The features of this row cannot be computed: {error}.") from error

    async def refresh(self) -> None:
        """Open the store again, because its definitions may be others; what was open stays where that fails."""
        self._tried = time.monotonic()
        try:
            self._opened = await asyncio.get_running_loop().run_in_executor(self._threads, open_store, self.config)
        except Exception as error:
            problem = f"The online features cannot be read: {first_line(error)}."
            if self._problem != problem:
                logger.warning("%s", problem, exc_info=error)
            self._problem = problem

    async def _look_up(self, names: list[str], rows: list[Row]) -> tuple[OnlineValues | None, Outcome]:
        opened = self._opened
        if opened is not None and opened.gone():
            self._failed("The online store was replaced, and is being opened.")
            opened = None
        if opened is None:
            if time.monotonic() - self._tried > REOPEN_S and (self._opening is None or self._opening.done()):
                self._opening = asyncio.create_task(self.refresh())
            return None, "down"
        try:
            reading = asyncio.get_running_loop().run_in_executor(self._threads, opened.read, names, rows)
            return await asyncio.wait_for(reading, self.config.deadline_ms / 1000), "read"
        except TimeoutError:
            return None, "late"
        except Exception as error:
            logger.warning("the online store cannot be read", exc_info=error)
            self._failed(
                f"The online store {without_password(self.config.online_store)} cannot be read: {first_line(error)}."
            )
            return None, "down"

    def _failed(self, problem: str) -> None:
        self._problem, self._opened = problem, None

    def _why(self, outcome: Outcome) -> str:
        if outcome == "late":
            return f"The online store did not answer within {self.config.deadline_ms:g} ms."
        return self._problem if outcome == "down" else ""


def explained(columns: Sequence[Column], values: Sequence[Value], sources: Mapping[str, Source]) -> dict[str, Any]:
    """Return what an answer says of its inputs: each with its value and where it came from."""
    return {
        column.name: {"value": _plain(value), "source": sources[column.name]}
        for column, value in zip(columns, values, strict=True)
    }


def as_body(columns: Sequence[Column], values: Sequence[Value]) -> bytes:
    """Return a completed row as the request that would have sent it whole."""
    pairs = zip(columns, values, strict=True)
    return json.dumps({column.name: _plain(value) for column, value in pairs if value is not None}).encode()


def _at_request(config: OnlineConfig) -> Callable[[Row], Row]:
    """Return the use case's own function, where it has one."""
    if config.code_root not in sys.path:
        sys.path.insert(0, config.code_root)
    code = import_code(config.use_case, "features")
    computed: Callable[[Row], Row] = getattr(code, "at_request", lambda row: {})
    return computed


def _sent(row: Mapping[str, Value]) -> Row:
    """Return what a row says; a time without a zone is in UTC."""
    return {
        name: value.replace(tzinfo=dt.UTC) if isinstance(value, dt.datetime) and value.tzinfo is None else value
        for name, value in row.items()
        if value is not None
    }


def _complete(
    present: Row, sent: Row, columns: Sequence[Column], online: OnlineValues | None, number: int
) -> tuple[Row, dict[str, Source]]:
    """Return a row with all columns, and where each value came from."""
    row: Row = {}
    sources: dict[str, Source] = {}
    for column in columns:
        name = column.name
        if name in present:
            row[name], sources[name] = present[name], "request" if name in sent else "computed"
            continue
        value = online.values[name][number] if online and name in online.values else None
        row[name] = _fitting(value, column.type)
        sources[name] = "online" if value is not None else "missing" if online else "fallback"
    return row, sources


def _require(rows: Sequence[Row], columns: Sequence[Column], online: OnlineValues | None, why: str) -> None:
    """Refuse rows that lack what the model needs.

    Raises:
        BadRequest: 503 where the store is at fault, else 422.
    """
    lacking = {
        column.name: number
        for number, row in reversed(list(enumerate(rows)))
        for column in columns
        if column.required and row[column.name] is None
    }
    if not lacking:
        return
    if online is None and why:
        problems = [{"field": name, "problem": "was not read"} for name in lacking]
        raise BadRequest(503, f"{why} This request needs it for {', '.join(lacking)}.", problems)
    stale = {name for name, number in lacking.items() if online and (number, name) in online.expired}
    problems = [{"field": name, "problem": _lacks(name, stale, online)} for name in lacking]
    text = ", ".join(f"{item['field']}: {item['problem']}" for item in problems[:3])
    raise BadRequest(503 if stale == set(lacking) else 422, f"{text}.", problems)


def _lacks(name: str, stale: set[str], online: OnlineValues | None) -> str:
    if name in stale:
        return "is too old in the online store"
    is_feature = online is not None and name in online.values
    return "is missing, and the online store has none for these entities" if is_feature else "is missing"


def _fitting(value: Value, kind: str) -> Value:
    """Return a value of the store as the model's column takes it."""
    if kind in {"integer", "long"} and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind in {"float", "double"} and isinstance(value, int):
        return float(value)
    return value


def _plain(value: Value) -> Any:
    return value.isoformat() if isinstance(value, dt.datetime) else value
