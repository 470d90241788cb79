"""Where a request goes: to a version that answers it, to the log of feedback, or to the endpoint's own documents."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

from shopfloor.serving.contract import Config
from shopfloor.serving.errors import BadRequest, MethodNotAllowed
from shopfloor.serving.model.loading import ServedModel, Unanswerable
from shopfloor.serving.prediction_log import PredictionLog
from shopfloor.serving.protocols import open_inference
from shopfloor.serving.replica import feedback
from shopfloor.serving.replica.answering import Answering
from shopfloor.serving.replica.documents import openapi, page
from shopfloor.serving.replica.http import ASKED_VERSION, READ, Answer, Reading, Request, as_json
from shopfloor.serving.replica.metrics import CONTENT_TYPE, ReplicaMetrics
from shopfloor.serving.replica.traffic import KEY_HEADER, takes
from shopfloor.serving.replica.versions import Holding

JSON = "application/json"
_KEY_HEADER = KEY_HEADER.lower().encode()
_ASSIGNED = {"champion", "challenger", "canary_percent", "shadow", "revision"}
"""Fields of the assignment that a client may see: not who made it, and why."""
_KEPT_BACK = {"tracking_uri", "tokens_file", "log_root", "s3_endpoint_url", "online", "hosts"}
"""Addresses and paths, which a client needs not know."""
_ROUTES = {"/predict", "/invocations"}
_DESCRIBED = {"/status", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"}
_ADDRESS = re.compile(r"\w[\w+.-]*://\S+|(?<![\w/])/[\w.-]+/\S*|\b[\w.-]+:\d{2,5}\b")


class Routes:
    """The routes of a replica."""

    def __init__(
        self,
        holding: Holding,
        answering: Answering,
        metrics: ReplicaMetrics,
        replica: str,
        knows: Callable[[Request], bool],
    ) -> None:
        """Begin with an empty configuration.

        Args:
            holding: The versions.
            answering: Their ways in.
            metrics: What is counted.
            replica: Name of this one.
            knows: Tells whether a request may see what only those with a token see.
        """
        self.config = Config(use_case="", tracking_uri="")
        self.log: PredictionLog | None = None
        self.reading = Reading()
        self._holding, self._answering, self._metrics = holding, answering, metrics
        self._replica, self._knows = replica, knows

    async def answer(self, request: Request) -> Answer:
        """Answer a request.

        Raises:
            BadRequest: It is none that can be answered.
        """
        route, method = request.path, request.method
        if route == "/predict" and method == "POST":
            model = self._answering_version(request)
            request.require_json()
            return 200, JSON, await self._answering.predict(model, request, await self._body(request))
        if route == "/invocations" and method == "POST":
            model = self._answering_version(request)
            return 200, JSON, await self._answering.invoke(model, request, await self._body(request))
        if route == "/v2" or route.startswith("/v2/"):
            return await self._open_inference(request)
        if route == "/feedback" and method == "POST":
            return await self._take_feedback(request)
        return self._describe(request)

    async def _body(self, request: Request, limit: int | None = None) -> bytes:
        """Return the body; only from here on the request takes a place among those that are answered."""
        body = await request.read(min(limit or self.config.max_body_bytes, self.config.max_body_bytes))
        self.reading.admit(request, self.config.max_in_flight)
        return body

    async def _take_feedback(self, request: Request) -> Answer:
        request.route = "/feedback"
        if self.log is None:
            raise BadRequest(404, "This endpoint keeps no log.")
        request.require_json()
        entry = feedback.parse(await self._body(request, feedback.MAX_BYTES))
        try:
            await asyncio.wrap_future(self.log.keep(entry))
        except OSError as error:
            raise BadRequest(503, "The feedback cannot be kept now; send it again.") from error
        return as_json(202, {"accepted": True})

    async def _open_inference(self, request: Request) -> Answer:
        """Answer by the Open Inference Protocol, whose errors are `{"error": ...}`."""
        try:
            answer = await self._v2(request)
            return (200, JSON, answer) if isinstance(answer, bytes) else as_json(200, answer)
        except BadRequest as error:
            note_refusal(request, error)
            return as_json(error.status, {"error": error.message} | ({"fields": error.fields} if error.fields else {}))

    async def _v2(self, request: Request) -> dict[str, Any] | bytes:
        route, method = request.path, request.method
        match route.split("/")[2:]:
            case ["health", "live"] if method in READ:
                return {"live": True}
            case ["health", "ready"] if method in READ:
                return {"ready": self._holding.the_champion() is not None}
            case [] if method in READ:
                return open_inference.server_metadata(self._holding.assignment.champion or "")
            case ["models", name, *rest]:
                version = rest[1] if rest[:1] == ["versions"] and len(rest) > 1 else None
                operation = rest[2:] if rest[:1] == ["versions"] else rest
                allowed = {(): "GET", ("ready",): "GET", ("infer",): "POST"}.get(tuple(operation))
                if allowed is not None and method != allowed and (allowed, method) != ("GET", "HEAD"):
                    raise MethodNotAllowed(route, method, allowed)
                model = self._named(request, name, version)
                match operation:
                    case []:
                        return await self._answering.metadata(model, request, sorted(self._holding.loaded))
                    case ["ready"]:
                        return {"name": model.name, "ready": True}
                    case ["infer"]:
                        request.route, request.version = "/v2/infer", model.version
                        request.json_length()
                        body = await self._body(request)
                        answer, request.json_bytes = await self._answering.infer(model, request, body)
                        return answer
            case ["health", "live" | "ready"] | []:
                raise MethodNotAllowed(route, method, "GET")
        raise BadRequest(404, f"There is no {route[:200]} here.")

    def _named(self, request: Request, name: str, version: str | None) -> ServedModel:
        """Return the model of that name, in the version that path or header ask for."""
        if name != self.config.use_case:
            raise BadRequest(404, f"There is no model {name[:100]!r} here; there is {self.config.use_case!r}.")
        if version is not None:
            request.role = "asked"
            return self._holding.version(version)
        if request.method == "POST":
            return self._answering_version(request)
        header = request.headers.get(ASKED_VERSION)
        return self._holding.the_champion() if header is None else self._holding.version(header.decode("latin-1"))

    def _answering_version(self, request: Request) -> ServedModel:
        """Return the version that is to answer a request for a prediction, and note it."""
        request.route = request.path if request.path in _ROUTES else "/v2/infer"
        holding = self._holding
        header = request.headers.get(ASKED_VERSION)
        if header is not None:
            request.role = "asked"
            model = holding.version(header.decode("latin-1"))
        elif holding.challenger is not None and takes(
            holding.canary_percent, self.config.use_case, request.headers.get(_KEY_HEADER)
        ):
            request.role = "canary"
            model = holding.challenger
        else:
            model = holding.the_champion()
        request.version = model.version
        return model

    def _describe(self, request: Request) -> Answer:
        """Answer what is not a prediction."""
        route, prefix = request.path, request.root
        if route in {"/predict", "/invocations", "/feedback"}:
            raise MethodNotAllowed(route, request.method, "POST")
        if route not in _DESCRIBED:
            raise BadRequest(404, f"There is no {route[:200] or '/'} here; {prefix}/docs says what there is.")
        if request.method not in READ:
            raise MethodNotAllowed(route, request.method, "GET")
        if route == "/status":
            return as_json(200, self._status(self._knows(request)))
        if route == "/metrics":
            return 200, CONTENT_TYPE, self._metrics.text()
        if route == "/healthz":
            return as_json(200, {"live": True})
        model = self._holding.the_champion()
        if route == "/readyz":
            return as_json(200, {"champion": model.version})
        # A version's example is a row of the training set.
        example = model.example if self._knows(request) or model.rows is None else model.rows.example(None)
        if route == "/openapi.json":
            return as_json(200, openapi(model, prefix, example, self._answering.partial_schema(model), self.config))
        host = request.headers.get(b"host", b"127.0.0.1:8000").decode("latin-1")
        base_url = f"{request.scheme}://{host}"
        return 200, "text/html; charset=utf-8", page(model, prefix, base_url, example, self.config).encode()

    def _status(self, knows: bool) -> dict[str, Any]:
        """Return what the replica holds; to those who show no token where one is asked for, without addresses."""
        config, holding = self.config, self._holding
        errors, problem, registry = holding.errors, self._answering.online_problem, holding.registry_problem
        if not knows:
            errors = {version: without_addresses(text) for version, text in errors.items()}
            problem = problem and without_addresses(problem)
            registry = without_addresses(registry)
        return {
            "use_case": config.use_case,
            "champion": holding.champion.version if holding.champion else None,
            "challenger": holding.challenger.version if holding.challenger else None,
            "loaded": {model.version: {"native": model.native is not None} for model in holding.loaded.values()},
            "loading": holding.loading(),
            "kept": holding.before.version if holding.before else None,
            "errors": errors,
            "online_features": problem,
            "registry": registry or None,
            "assigned": holding.assignment.model_dump(include=_ASSIGNED),
            "canary_percent": holding.canary_percent,
            "config": config.model_dump(exclude=_KEPT_BACK),
            "digest": config.digest(holding.assignment),
            "replica": self._replica,
        }


def without_addresses(text: str) -> str:
    """Return a text in which addresses and paths of files are left out."""
    return _ADDRESS.sub("(…)", text)


def note_refusal(request: Request, error: BadRequest) -> None:
    """Note of a request what its refusal says of it."""
    request.failed = isinstance(error, Unanswerable)
    if isinstance(error, MethodNotAllowed):
        request.allowed = error.allowed
