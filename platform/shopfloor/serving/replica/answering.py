"""How a request for predictions is answered: one row at once or with its neighbours, many rows in a thread.

Models that may take long have threads of their own, so that one that hangs holds up nothing but its requests. Large
bodies are read in a process beside. Rows that name entities are completed first, where features are looked up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from pydantic_core import to_json

from shopfloor.serving.beside.reader import LARGE_BYTES, Protocol, Reader
from shopfloor.serving.contract import Config
from shopfloor.serving.errors import BadRequest
from shopfloor.serving.model.loading import ServedModel
from shopfloor.serving.model.row import Value
from shopfloor.serving.online.features import (
    OUTCOMES,
    OnlineFeatures,
    Outcome,
    PartialRowSchema,
    as_body,
    explained,
)
from shopfloor.serving.protocols import mlflow_scoring, open_inference
from shopfloor.serving.protocols.parsed import Form, Rows
from shopfloor.serving.replica.http import Request
from shopfloor.serving.replica.metrics import ReplicaMetrics
from shopfloor.serving.replica.traffic import MAX_ROWS, Batcher, Threads

MODEL_THREADS = 8
"""Threads that ask models, for requests that do not do so themselves."""

USUAL_BYTES = 512 * 1024
"""A body of this size whose rows are typed and in a usual form takes 2 ms to parse: less than to hand its frame on."""


class Answering:
    """The ways in of the versions that a replica holds."""

    def __init__(self, metrics: ReplicaMetrics) -> None:
        """Begin with nothing."""
        self._config = Config(use_case="", tracking_uri="")
        self._metrics = metrics
        self._batchers: dict[str, Batcher] = {}
        self._partial_schemas: dict[str, PartialRowSchema] = {}
        self._online: OnlineFeatures | None = None
        self._forms: dict[str, Form] = {}
        self._reader = Reader()
        self._threads = Threads(MODEL_THREADS, "model")
        self._reading = Threads(1, "reader")
        for outcome in OUTCOMES[1:]:
            text = f"Requests that needed features of the online store: {outcome}."
            metrics.watch(f"shopfloor_online_{outcome}", text, "counter", functools.partial(self._reads, outcome))

    @property
    def online_problem(self) -> str | None:
        """Why features cannot be looked up, empty where they can; `None` where nobody asks for that."""
        return self._online.problem if self._online else None

    async def configure(self, config: Config) -> None:
        """Take a configuration, and open the online store where it is another one.

        Raises:
            Exception: The use case's `features.py` cannot be imported.
        """
        if config.online != self._config.online:
            if self._online is not None:
                self._online.close()
            self._online = OnlineFeatures(config.online) if config.online else None
            if self._online is not None:
                await self._online.open()
        self._config = config

    async def expect(self) -> None:
        """Be ready for a version that is about to be loaded: its features may be new ones."""
        if self._online is not None:
            await self._online.refresh()

    def follow(self, models: dict[str, ServedModel]) -> None:
        """Have these versions answer from now on."""
        config = self._config
        rows = {version: model.rows for version, model in models.items() if model.rows is not None}
        asked = config.batch_rows > 1
        size = (config.batch_rows, config.batch_wait_ms / 1000) if asked else (MAX_ROWS, 0.0)
        self._batchers = {
            version: Batcher(models[version], self._threads, self._metrics.batch, *size)
            for version in rows
            if asked or models[version].gathers
        }
        entities = config.online.entities if config.online else {}
        self._partial_schemas = {
            version: PartialRowSchema(schema, entities) for version, schema in rows.items() if config.online
        }
        self._forms = {version: Form.of(model, config.max_rows, entities) for version, model in models.items()}

    def partial_schema(self, model: ServedModel) -> PartialRowSchema | None:
        """Return what a row may be instead of a complete one; `None` where no features are looked up."""
        return self._partial_schemas.get(model.version)

    async def predict(self, model: ServedModel, request: Request, body: bytes) -> bytes:
        """Answer the JSON object of one row.

        Raises:
            BadRequest: The body is not a row that the model can answer.
        """
        batcher = self._batchers.get(model.version)
        schema = self._partial_schemas.get(model.version)
        if batcher is None and schema is None:
            return model.predict(body) if model.quick else await self._threads.run(request, model.predict, body)
        explanation = None
        if schema is None:
            row = model.parse(body)
        else:
            row, explanation = await self._completed(model, schema, request, body)
        try:
            if batcher is not None:
                prediction = await batcher.predict(request, row)
            elif model.quick:
                prediction = model.predictor(row)
            else:
                prediction = await self._threads.run(request, model.predictor, row)
            return model.answer(prediction, explanation)
        except Exception as error:
            raise model.unanswerable(error) from error

    async def invoke(self, model: ServedModel, request: Request, body: bytes) -> bytes:
        """Answer as MLflow's scoring server does.

        Raises:
            BadRequest: The body is none of MLflow's formats, or no rows that the model can answer.
        """
        content_type = request.headers.get(b"content-type", b"").decode("latin-1")
        mlflow_scoring.kind_of(content_type)
        form, online = self._form(model), self._online
        if len(body) <= LARGE_BYTES and online is None:
            return await self._threads.run(request, _invoked, model, form, body, content_type)
        if len(body) <= USUAL_BYTES and form.direct and online is None:
            answer = await self._threads.run(request, _invoked_as_usual, model, form, body)
            if answer is not None:
                return answer
        rows = await self._rows(request, form, "mlflow", body, content_type)
        if rows.records is not None:
            return to_json({"predictions": await self._answered(model, request, rows.records)})
        return await self._threads.run(request, mlflow_scoring.respond, model, rows)

    async def infer(self, model: ServedModel, request: Request, body: bytes) -> tuple[bytes, int | None]:
        """Answer by the Open Inference Protocol; see `open_inference.respond`.

        Raises:
            BadRequest: The body is no inference request, or none that the model can answer.
        """
        length = request.json_length()  # the route has held it to be one
        form, online = self._form(model), self._online
        if (length or len(body)) <= LARGE_BYTES and online is None:
            return await self._threads.run(request, _inferred, model, form, body, length)
        rows = await self._rows(request, form, "open", body, length)
        if rows.records is not None:
            predictions = await self._answered(model, request, rows.records)
        else:
            predictions = await self._threads.run(request, open_inference.predictions, model, rows)
        return await self._threads.run(request, open_inference.respond, model, rows.request, predictions)

    async def metadata(self, model: ServedModel, request: Request, versions: list[str]) -> dict[str, Any]:
        """Return what the Open Inference Protocol says of a version, which may have to be asked for it."""
        return await self._threads.run(request, open_inference.model_metadata, model, versions)

    def close(self) -> None:
        """End what runs beside."""
        self._reader.close()

    def _form(self, model: ServedModel) -> Form:
        """Return what a version takes; one that was swapped out while its request was on its way has its own."""
        return self._forms.get(model.version) or Form.of(model, self._config.max_rows)

    async def _rows(self, request: Request, form: Form, protocol: Protocol, body: bytes, kind: Any) -> Rows:
        """Return the rows of a body, a large one's from the process beside."""
        read: Callable[..., Rows] = mlflow_scoring.read if protocol == "mlflow" else open_inference.read
        size = kind if isinstance(kind, int) else len(body)
        if size <= LARGE_BYTES:
            return await self._threads.run(request, read, form, body, kind)
        return await self._reading.run(request, self._reader.read, form, protocol, body, kind)

    async def _completed(
        self, model: ServedModel, schema: PartialRowSchema, request: Request, body: bytes
    ) -> tuple[list[Value], dict[str, Any] | None]:
        """Return the values of a row, and what is to be said of them."""
        try:
            return model.parse(body), None
        except BadRequest:
            row, explain = schema.row(body)
        if self._online is None or model.rows is None:
            raise AssertionError("only versions with rows, and with features to look up, have such a schema")
        inputs = await self._online.complete([row], model.rows.columns)
        request.features = as_body(model.rows.columns, inputs.rows[0])
        values = model.parse(request.features)  # what the store holds is checked like what is sent
        return values, explained(model.rows.columns, inputs.rows[0], inputs.sources[0]) if explain else None

    async def _answered(self, model: ServedModel, request: Request, records: list[dict[str, Any]]) -> list[Any]:
        """Return a prediction for each of several rows that lack features."""
        schema, online = self._partial_schemas.get(model.version), self._online
        if model.rows is None or schema is None or online is None:
            raise AssertionError("only versions with rows, and with features to look up, have such rows")
        rows = await self._threads.run(request, schema.rows, records)
        inputs = await online.complete(rows, model.rows.columns)
        try:
            return await self._threads.run(request, model.many, inputs.rows)
        except Exception as error:
            raise model.unanswerable(error) from error

    def _reads(self, outcome: Outcome) -> int:
        return self._online.reads[outcome] if self._online else 0


def _invoked(model: ServedModel, form: Form, body: bytes, content_type: str) -> bytes:
    return mlflow_scoring.respond(model, mlflow_scoring.read(form, body, content_type))


def _invoked_as_usual(model: ServedModel, form: Form, body: bytes) -> bytes | None:
    """Answer rows of typed columns in a usual form; `None` where the body is in another."""
    rows = mlflow_scoring.read_as_usual(form, body)
    return None if rows is None else mlflow_scoring.respond(model, rows)


def _inferred(model: ServedModel, form: Form, body: bytes, length: int | None) -> tuple[bytes, int | None]:
    rows = open_inference.read(form, body, length)
    return open_inference.respond(model, rows.request, open_inference.predictions(model, rows))
