"""How a request for predictions is answered: one row at once or with its neighbours, many rows in a thread.

Rows that name entities are completed first, where the use case has its features looked up.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from pydantic_core import to_json

from shopfloor.serving.contract import Config
from shopfloor.serving.errors import BadRequest
from shopfloor.serving.model.loading import ServedModel
from shopfloor.serving.model.row import Value
from shopfloor.serving.online.features import (
    OUTCOMES,
    AskedSchema,
    OnlineFeatures,
    Outcome,
    as_body,
    explained,
)
from shopfloor.serving.protocols import mlflow_scoring as scoring
from shopfloor.serving.protocols import open_inference
from shopfloor.serving.replica.http import Answer, Request
from shopfloor.serving.replica.metrics import ReplicaMetrics
from shopfloor.serving.replica.traffic import Batcher


class Answering:
    """The ways in of the versions that a replica holds."""

    def __init__(self, metrics: ReplicaMetrics) -> None:
        """Begin with nothing."""
        self._config = Config(use_case="", tracking_uri="")
        self._metrics = metrics
        self._batchers: dict[str, Batcher] = {}
        self._asked: dict[str, AskedSchema] = {}
        self._online: OnlineFeatures | None = None
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
        self._batchers = {
            version: Batcher(models[version], config.batch_rows, config.batch_wait_ms / 1000, self._metrics.batch)
            for version in rows
            if config.batch_rows > 1
        }
        entities = config.online.entities if config.online else {}
        self._asked = {version: AskedSchema(schema, entities) for version, schema in rows.items() if config.online}

    def asked(self, model: ServedModel) -> AskedSchema | None:
        """Return what a row may be instead of a complete one; `None` where no features are looked up."""
        return self._asked.get(model.version)

    async def predict(self, model: ServedModel, request: Request, body: bytes) -> bytes:
        """Answer the JSON object of one row.

        Raises:
            BadRequest: The body is not a row that the model can answer.
        """
        batcher = self._batchers.get(model.version)
        asked = self._asked.get(model.version)
        if batcher is None and asked is None:
            return model.predict(body)
        explanation = None
        if asked is None:
            row = model.parse(body)
        else:
            row, explanation = await self._completed(model, asked, request, body)
        try:
            prediction = model.predictor(row) if batcher is None else await batcher.predict(row)
            return model.answer(prediction, explanation)
        except Exception as error:
            raise model.unanswerable(error) from error

    async def invoke(self, model: ServedModel, body: bytes, content_type: str) -> Answer:
        """Answer as MLflow's scoring server does.

        Raises:
            BadRequest: The body is none of MLflow's formats, or no rows that the model can answer.
        """
        max_rows, online = self._config.max_rows, self._online
        asked = self._asked.get(model.version)
        if asked is not None and online is not None and scoring.kind_of(content_type) == scoring.JSON:
            answer = await asyncio.to_thread(scoring.quick, model, body, max_rows, strangers=False)
            if answer is not None:
                return answer
            records = await asyncio.to_thread(scoring.incomplete, model, body, max_rows, online.config.entities)
            if records is not None:
                predictions = await self._answered(model, asked, online, records)
                return 200, scoring.JSON, to_json({"predictions": predictions})
        return await asyncio.to_thread(scoring.invoke, model, body, content_type, max_rows)

    async def infer(self, model: ServedModel, body: bytes, header_bytes: int | None) -> tuple[bytes, int | None]:
        """Answer by the Open Inference Protocol; see `open_inference.respond`.

        Raises:
            BadRequest: The body is no inference request, or none that the model can answer.
        """
        max_rows, online = self._config.max_rows, self._online
        asked = self._asked.get(model.version)
        if asked is None or online is None:
            return await asyncio.to_thread(open_inference.infer, model, body, header_bytes, max_rows)
        entities = online.config.entities
        read = await asyncio.to_thread(open_inference.read, model, body, header_bytes, max_rows, entities)
        if read.missing(model) or not entities.keys().isdisjoint(read.tensors):
            predictions = await self._answered(model, asked, online, read.records())
        else:
            predictions = await asyncio.to_thread(open_inference.predictions, model, read, max_rows)
        return await asyncio.to_thread(open_inference.respond, model, read, predictions)

    async def _completed(
        self, model: ServedModel, asked: AskedSchema, request: Request, body: bytes
    ) -> tuple[list[Value], dict[str, Any] | None]:
        """Return the values of a row, and what is to be said of them."""
        try:
            return model.parse(body), None
        except BadRequest:
            row, explain = asked.row(body)
        if self._online is None or model.rows is None:
            raise AssertionError("only versions with rows, and with features to look up, have such a schema")
        inputs = await self._online.complete([row], model.rows.columns)
        request.features = as_body(model.rows.columns, inputs.rows[0])
        values = model.parse(request.features)  # what the store holds is checked like what is sent
        return values, explained(model.rows.columns, inputs.rows[0], inputs.sources[0]) if explain else None

    async def _answered(
        self, model: ServedModel, asked: AskedSchema, online: OnlineFeatures, records: list[dict[str, Any]]
    ) -> list[Any]:
        """Return a prediction for each of several rows that lack features."""
        if model.rows is None:
            raise AssertionError("only versions with rows have such a schema")
        rows = await asyncio.to_thread(asked.rows, records)
        inputs = await online.complete(rows, model.rows.columns)
        try:
            return await asyncio.to_thread(model.many, inputs.rows)
        except Exception as error:
            raise model.unanswerable(error) from error

    def _reads(self, outcome: Outcome) -> int:
        return self._online.reads[outcome] if self._online else 0
