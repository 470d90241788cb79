"""The Ray Serve application of a use case: which versions it holds, and how a request finds one.

A new version needs no new replica: `Holding` loads it beside the live one and swaps it in when it answers. Requests
are answered straight from ASGI, because a web framework would cost more than the prediction.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from shopfloor.runs.mlflow import import_mlflow
from shopfloor.serving.beside.shadow import Orders, Shadow
from shopfloor.serving.contract import DEPLOYMENT, Config
from shopfloor.serving.errors import BadRequest, MethodNotAllowed
from shopfloor.serving.model.loading import ServedModel, Unanswerable
from shopfloor.serving.prediction_log import Prediction, PredictionLog
from shopfloor.serving.protocols import open_inference
from shopfloor.serving.replica import exchange, feedback
from shopfloor.serving.replica.documents import openapi, page
from shopfloor.serving.replica.http import (
    ASKED_VERSION,
    JSON_BYTES,
    READ,
    Answer,
    Reading,
    Receive,
    Request,
    Scope,
    Send,
    answer_headers,
    as_json,
    decline,
    problem,
)
from shopfloor.serving.replica.metrics import CONTENT_TYPE, ReplicaMetrics
from shopfloor.serving.replica.routes import Answering
from shopfloor.serving.replica.tokens import Tokens
from shopfloor.serving.replica.traffic import KEY_HEADER, takes
from shopfloor.serving.replica.versions import Holding
from shopfloor.settings import Settings

logger = logging.getLogger(__name__)

CLIENT_GONE = 499
"""Status, in the metrics only, of a request whose client did not wait."""
SWITCH_INTERVAL_S = 0.0005


class Predictor:
    """The deployment: holds the loaded versions and answers requests."""

    def __init__(self) -> None:
        # What runs in threads (a model being loaded, the log, a shadow) leaves the interpreter to a request at once.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        exchange.install()
        # Replicas freeze the garbage collector once they are up: what is imported by then never slows a request.
        import_mlflow()
        import mlflow.environment_variables
        import mlflow.pyfunc
        import mlflow.pyfunc.scoring_server
        import mlflow.xgboost

        mlflow.environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(2)
        mlflow.environment_variables.MLFLOW_HTTP_REQUEST_TIMEOUT.set(30)
        self._config = Config(use_case="", tracking_uri="")
        self._tokens: Tokens | None = None
        self._log: PredictionLog | None = None
        self._metrics = ReplicaMetrics()
        self._shadow = Shadow(self._metrics.shadow)
        self._answering = Answering(self._metrics)
        self._holding = Holding(self._answering.expect, self._swapped)
        self._reading = Reading()
        self._admitted = 0
        self._watch()

    def __serve_build_asgi_app__(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """Tell Serve what answers HTTP."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:  # a method would pass for ASGI 2
            await self.answer(scope, receive, send)

        return app

    def __del__(self) -> None:
        """Write what is left of the logs; Serve calls this when the replica has drained."""
        for one in (getattr(self, "_shadow", None), getattr(self, "_log", None)):
            if one is not None:
                one.close()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take a new configuration; return at once where a champion answers, else when one does or cannot.

        Serve sends no requests to a replica that is being reconfigured. Therefore only one that has nothing to answer
        with waits here.
        """
        config = Config.model_validate(user_config)
        if config == self._config:
            return
        if config.tokens_file != self._config.tokens_file:
            self._tokens = Tokens(Path(config.tokens_file)) if config.tokens_file else None
        if (config.log_root, config.s3_endpoint_url) != (self._config.log_root, self._config.s3_endpoint_url):
            await self._log_to(config)
        await self._answering.configure(config)
        self._config = config
        self._metrics.use_case, self._metrics.replica = config.use_case, _replica()
        self._shadow.follow(self._shadow_orders())
        await self._holding.follow(config)

    async def _log_to(self, config: Config) -> None:
        if self._log is not None:
            await asyncio.to_thread(self._log.close)
        self._log = None
        if config.log_root is not None:
            place = Settings(project_root=Path("/"), s3_endpoint_url=config.s3_endpoint_url)
            self._log = PredictionLog(config.log_root, config.use_case, _replica(), place)

    def _swapped(self) -> None:
        """Let the shadow and the batches follow the versions that answer now."""
        self._answering.follow(self._holding.loaded)
        self._shadow.follow(self._shadow_orders())

    def _shadow_orders(self) -> Orders | None:
        config, holding = self._config, self._holding
        if holding.challenger is None or not holding.assignment.shadow:
            return None
        return Orders(
            use_case=config.use_case,
            version=holding.challenger.version,
            tracking_uri=config.tracking_uri,
            replica=_replica(),
            log_root=config.log_root,
            s3_endpoint_url=config.s3_endpoint_url,
        )

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection."""
        if scope["type"] != "http":
            await decline(scope, receive, send)
            return
        began = time.perf_counter()
        self._metrics.begin()
        request = Request(scope, receive, self._reading)
        status, content_type, body = CLIENT_GONE, "", b""
        try:
            status, content_type, body = await self._answer(request)
        except BadRequest as error:
            _note_refusal(request, error)
            status, content_type, body = problem(error.status, error.message, error.fields)
        except Exception:
            logger.exception("%s %s failed", request.method, request.path)
            request.failed = True
            status, content_type, body = problem(500, "The endpoint failed; its log says why.")
        finally:
            seconds = time.perf_counter() - began
            self._metrics.end(request.version, request.route, status, seconds)
            self._reading.let_go(request)
            if request.admitted:
                self._admitted -= 1
        headers = answer_headers(request, status, content_type, len(body))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        if request.version and request.method == "POST":
            self._note(request, status, body, seconds)

    async def _answer(self, request: Request) -> Answer:
        """Answer within the limits on who may ask, how much at once and for how long."""
        if request.method in READ:
            return await self._route(request)
        token = request.headers.get(b"authorization")
        if self._tokens is not None and not self._tokens.allow(token, self._config.use_case):
            raise BadRequest(401, "A valid bearer token is needed.")
        self._require_room()
        try:
            async with asyncio.timeout(self._config.timeout_s):
                return await self._route(request)
        except TimeoutError:
            limit = f"within {self._config.timeout_s:g} s"
            if request.body is None:
                return problem(408, f"The body did not arrive {limit}.")
            request.failed = True
            return problem(504, f"The model did not answer {limit}.")

    async def _route(self, request: Request) -> Answer:
        route, method = request.path, request.method
        if route == "/predict" and method == "POST":
            model = self._asked(request)
            request.require_json()
            body = await self._body(request)
            return 200, "application/json", await self._answering.predict(model, request, body)
        if route == "/invocations" and method == "POST":
            model = self._asked(request)
            body = await self._body(request)
            content_type = request.headers.get(b"content-type", b"").decode("latin-1")
            return await self._answering.invoke(model, body, content_type)
        if route == "/v2" or route.startswith("/v2/"):
            return await self._open_inference(request)
        if route == "/feedback" and method == "POST":
            return await self._take_feedback(request)
        return self._describe(request)

    async def _body(self, request: Request) -> bytes:
        """Return the body; only from here on the request takes a place among those that are answered."""
        body = await request.read(self._config.max_body_bytes)
        self._require_room()
        self._admitted += 1
        request.admitted = True
        return body

    def _require_room(self) -> None:
        if self._admitted >= self._config.max_in_flight:
            raise BadRequest(503, f"{self._config.max_in_flight} requests are being answered; come back.")

    async def _take_feedback(self, request: Request) -> Answer:
        request.route = "/feedback"
        if self._log is None:
            raise BadRequest(404, "This endpoint keeps no log.")
        request.require_json()
        self._log.add(feedback.parse(await self._body(request)))
        return as_json(202, {"accepted": True})

    async def _open_inference(self, request: Request) -> Answer:
        """Answer by the Open Inference Protocol, whose errors are `{"error": ...}`."""
        try:
            answer = await self._v2(request)
            return (200, "application/json", answer) if isinstance(answer, bytes) else as_json(200, answer)
        except BadRequest as error:
            _note_refusal(request, error)
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
                asked = rest[2:] if rest[:1] == ["versions"] else rest
                allowed = {(): "GET", ("ready",): "GET", ("infer",): "POST"}.get(tuple(asked))
                if allowed is not None and method != allowed and (allowed, method) != ("GET", "HEAD"):
                    raise MethodNotAllowed(route, method, allowed)
                model = self._named(request, name, version)
                match asked:
                    case []:
                        return open_inference.model_metadata(model, sorted(self._holding.loaded))
                    case ["ready"]:
                        return {"name": model.name, "ready": True}
                    case ["infer"]:
                        request.route, request.version = "/v2/infer", model.version
                        length = request.headers.get(JSON_BYTES)
                        if length is None:
                            request.require_json()
                        elif not length.isdigit() or len(length) > 12:
                            raise BadRequest(400, "Inference-Header-Content-Length must be a number.")
                        body = await self._body(request)
                        header_bytes = None if length is None else int(length)
                        answer, request.json_bytes = await self._answering.infer(model, body, header_bytes)
                        return answer
            case ["health", "live" | "ready"] | []:
                raise MethodNotAllowed(route, method, "GET")
        raise BadRequest(404, f"There is no {route[:200]} here.")

    def _named(self, request: Request, name: str, version: str | None) -> ServedModel:
        """Return the model of that name, in the version that path or header ask for."""
        if name != self._config.use_case:
            raise BadRequest(404, f"There is no model {name[:100]!r} here; there is {self._config.use_case!r}.")
        if version is not None:
            request.role = "asked"
            return self._holding.version(version)
        if request.method == "POST":
            return self._asked(request)
        asked = request.headers.get(ASKED_VERSION)
        return self._holding.the_champion() if asked is None else self._holding.version(asked.decode("latin-1"))

    def _describe(self, request: Request) -> Answer:
        """Answer what is not a prediction."""
        route, prefix = request.path, request.root
        if route in {"/predict", "/invocations", "/feedback"}:
            raise MethodNotAllowed(route, request.method, "POST")
        if route not in {"/status", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"}:
            raise BadRequest(404, f"There is no {route[:200] or '/'} here; {prefix}/docs says what there is.")
        if request.method not in READ:
            raise MethodNotAllowed(route, request.method, "GET")
        if route == "/status":
            return as_json(200, self._status())
        if route == "/metrics":
            return 200, CONTENT_TYPE, self._metrics.text()
        if route == "/healthz":
            return as_json(200, {"live": True})
        model = self._holding.the_champion()
        if route == "/readyz":
            return as_json(200, {"champion": model.version})
        if route == "/openapi.json":
            return as_json(200, openapi(model, prefix, self._answering.asked(model)))
        host = request.headers.get(b"host", b"127.0.0.1:8000").decode("latin-1")
        return 200, "text/html; charset=utf-8", page(model, prefix, f"{request.scheme}://{host}").encode()

    def _status(self) -> dict[str, Any]:
        config, holding = self._config, self._holding
        return {
            "use_case": config.use_case,
            "champion": holding.champion.version if holding.champion else None,
            "challenger": holding.challenger.version if holding.challenger else None,
            "loaded": {model.version: {"native": model.native is not None} for model in holding.loaded.values()},
            "loading": holding.loading(),
            "kept": holding.before.version if holding.before else None,
            "errors": holding.errors,
            "online_features": self._answering.online_problem,
            "assigned": holding.assignment.model_dump(),
            "config": config.model_dump(exclude=_KEPT_BACK),
            "digest": config.digest(holding.assignment),
            "replica": _replica(),
        }

    def _asked(self, request: Request) -> ServedModel:
        """Return the version that is to answer a request for a prediction, and note it."""
        request.route = request.path if request.path in _ROUTES else "/v2/infer"
        holding = self._holding
        asked = request.headers.get(ASKED_VERSION)
        if asked is not None:
            request.role = "asked"
            model = self._holding.version(asked.decode("latin-1"))
        elif holding.challenger is not None and takes(
            holding.assignment.canary_percent, self._config.use_case, request.headers.get(_KEY_HEADER)
        ):
            request.role = "canary"
            model = holding.challenger
        else:
            model = self._holding.the_champion()
        request.version = model.version
        return model

    def _note(self, request: Request, status: int, answer: bytes, seconds: float) -> None:
        """Keep an answer in the log, and let the shadow see the row."""
        body = request.body or b""
        if self._log is not None:
            self._log.add(
                Prediction(
                    request.request_id,
                    time.time(),
                    request.version,
                    request.role,
                    request.route,
                    status,
                    request.failed,
                    seconds,
                    body,
                    answer,
                    request.features,
                )
            )
        if status == 200 and request.role == "live" and request.route == "/predict":
            self._shadow.offer(request.request_id, request.features or body)

    def _watch(self) -> None:
        """Let the metrics read what others count."""
        watch = self._metrics.watch
        watch("shopfloor_shadow_queue", "Copies that wait for the shadow.", "gauge", lambda: self._shadow.waiting)
        watch("shopfloor_shadow_dropped", "Copies that nobody answered.", "counter", lambda: self._shadow.dropped)
        watch("shopfloor_log_queue", "Entries to be written.", "gauge", lambda: self._log.waiting if self._log else 0)
        watch("shopfloor_log_dropped", "Entries lost.", "counter", lambda: self._log.dropped if self._log else 0)


def build(args: dict[str, Any]) -> Any:
    """Return the Serve application; all that differs between use cases arrives as `user_config`."""
    from ray import serve

    return serve.deployment(serve.ingress()(Predictor), name=DEPLOYMENT).bind()


_KEY_HEADER = KEY_HEADER.lower().encode()
_KEPT_BACK = {"tracking_uri", "tokens_file", "log_root", "s3_endpoint_url", "online"}
"""Addresses and paths, which a client needs not know."""
_ROUTES = {"/predict", "/invocations"}


def _note_refusal(request: Request, error: BadRequest) -> None:
    request.failed = isinstance(error, Unanswerable)
    if isinstance(error, MethodNotAllowed):
        request.allowed = error.allowed


def _replica() -> str:
    from ray import serve

    return str(serve.get_replica_context().replica_id.unique_id)
