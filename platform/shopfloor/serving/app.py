"""The Ray Serve application of a use case: which versions it holds, and how a request finds one.

Each replica follows the assignment in the registry, so a new version needs no new replica: it is loaded and warmed
beside the live one and swapped in when it answers. A version that does not load changes nothing but `/status`.
Requests are answered straight from ASGI, because a web framework would cost more than the prediction.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from shopfloor.errors import ServiceError
from shopfloor.mlflow_import import import_mlflow
from shopfloor.serving import assignment as assignments
from shopfloor.serving import feedback, open_inference
from shopfloor.serving.asgi import (
    READ,
    REQUEST_ID,
    Answer,
    MethodNotAllowed,
    Receive,
    Request,
    Scope,
    Send,
    as_json,
    decline,
    problem,
)
from shopfloor.serving.assignment import Assignment
from shopfloor.serving.config import Config
from shopfloor.serving.documents import VERSION_HEADER, openapi, page
from shopfloor.serving.metrics import CONTENT_TYPE, ReplicaMetrics
from shopfloor.serving.prediction_log import Prediction, PredictionLog
from shopfloor.serving.predictors import ServedModel, Unanswerable, load_model
from shopfloor.serving.schema import BadRequest
from shopfloor.serving.tokens import Tokens
from shopfloor.serving.traffic import KEY_HEADER, Batcher, Shadow, ShadowAnswer, takes
from shopfloor.settings import Settings

logger = logging.getLogger(__name__)

DEPLOYMENT = "predictor"
"""Name of the one deployment of every application."""
CLIENT_GONE = 499
"""Status, in the metrics only, of a request whose client did not wait."""
RETRY_S = (5, 15, 60)
"""Pauses before a version that did not load is tried again; the last one repeats."""
RETRY_AFTER_S = 1
LOOK_EVERY_S = 1.0
"""How often a replica looks at its assignment."""
LOOK_TIMEOUT_S = 10.0
SWITCH_INTERVAL_S = 0.0005


class Predictor:
    """The deployment: holds the loaded versions and answers requests."""

    def __init__(self) -> None:
        # What runs in threads (a model being loaded, the log, a shadow) leaves the interpreter to a request at once.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        # Replicas freeze the garbage collector once they are up: what is imported by then never slows a request.
        import_mlflow()
        import mlflow.environment_variables
        import mlflow.pyfunc
        import mlflow.pyfunc.scoring_server
        import mlflow.xgboost

        mlflow.environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(2)
        mlflow.environment_variables.MLFLOW_HTTP_REQUEST_TIMEOUT.set(30)
        self._config = Config(use_case="", tracking_uri="")
        self._loaded: dict[str, ServedModel] = {}
        self._champion: ServedModel | None = None
        self._challenger: ServedModel | None = None
        self._errors: dict[str, str] = {}
        self._assignment = Assignment()
        self._following: asyncio.Task[None] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._tokens: Tokens | None = None
        self._shadow = Shadow(self._shadow_answered)
        self._batchers: dict[str, Batcher] = {}
        self._log: PredictionLog | None = None
        self._metrics = ReplicaMetrics()
        self._watch()

    def __serve_build_asgi_app__(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """Tell Serve what answers HTTP."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:  # a method would pass for ASGI 2
            await self.answer(scope, receive, send)

        return app

    def __del__(self) -> None:
        """Write what is left of the log; Serve calls this when the replica has drained."""
        log = getattr(self, "_log", None)
        if log is not None:
            log.close()

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
        self._config = config
        self._metrics.use_case, self._metrics.replica = config.use_case, _replica()
        if self._following is not None:
            self._following.cancel()
        first = asyncio.Event()
        self._following = asyncio.create_task(self._follow(config, first))
        if self._champion is None:
            await first.wait()

    async def _follow(self, config: Config, tried: asyncio.Event) -> None:
        """Look at the assignment again and again, and take up what it says; `tried` is set after the first time."""
        import requests

        reachable = True
        with requests.Session() as session:
            while True:
                try:
                    wanted = await asyncio.to_thread(
                        assignments.read, session, config.tracking_uri, config.use_case, LOOK_TIMEOUT_S
                    )
                    reachable = True
                    if wanted != self._assignment:
                        self._take_up(config, wanted, tried)
                    elif self._loading is None:
                        tried.set()  # nothing is assigned
                except ServiceError as error:  # what answers goes on answering
                    if reachable:
                        logger.warning("%s", error)
                    reachable = False
                await asyncio.sleep(LOOK_EVERY_S)

    def _take_up(self, config: Config, wanted: Assignment, tried: asyncio.Event) -> None:
        self._assignment = wanted
        for version in wanted.versions():
            self._errors.pop(version, None)
        if self._loading is not None:
            self._loading.cancel()
        self._loading = asyncio.create_task(self._load_wanted(config, wanted, tried))

    async def _log_to(self, config: Config) -> None:
        if self._log is not None:
            await asyncio.to_thread(self._log.close)
        self._log = None
        if config.log_root is not None:
            place = Settings(project_root=Path("/"), s3_endpoint_url=config.s3_endpoint_url)
            self._log = PredictionLog(config.log_root, config.use_case, _replica(), place)

    async def _load_wanted(self, config: Config, wanted: Assignment, tried: asyncio.Event) -> None:
        """Load what is assigned and not loaded, swap it in, and try again what failed."""
        try:
            for attempt in itertools.count():
                for version in wanted.versions():
                    await self._load(config, version)
                self._swap(config, wanted)
                tried.set()
                if all(version in self._loaded for version in wanted.versions()):
                    return
                await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
        finally:  # a newer assignment took over: who waited for this one waits no longer
            tried.set()

    async def _load(self, config: Config, version: str) -> None:
        if version in self._loaded:
            return
        try:
            self._loaded[version] = await asyncio.to_thread(load_model, config.tracking_uri, config.use_case, version)
            self._errors.pop(version, None)
        except Exception as error:
            logger.exception("version %s of %s does not load", version, config.use_case)
            self._errors[version] = f"{type(error).__name__}: {error}"[:2000]

    def _swap(self, config: Config, wanted: Assignment) -> None:
        """Let the loaded versions answer, and forget those that nobody names any more."""
        self._champion = self._loaded.get(wanted.champion, self._champion) if wanted.champion else None
        self._challenger = self._loaded.get(wanted.challenger, self._challenger) if wanted.challenger else None
        live = [model for model in (self._champion, self._challenger) if model]
        self._loaded = {model.version: model for model in live}
        self._shadow.model = self._challenger if wanted.shadow else None
        self._batchers = {
            model.version: Batcher(model, config.batch_rows, config.batch_wait_ms / 1000, self._metrics.batch)
            for model in live
            if config.batch_rows > 1 and model.rows is not None
        }
        self._errors = dict(list(self._errors.items())[-10:])

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection."""
        if scope["type"] != "http":
            await decline(scope, receive, send)
            return
        began = time.perf_counter()
        self._metrics.begin()
        request = Request(scope, receive)
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
        headers = [
            (b"content-type", content_type.encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        if not request.named:  # Serve names each request and says so in the answer
            headers.append((REQUEST_ID, request.request_id.encode()))
        if request.version:
            headers.append((_VERSION_HEADER, request.version.encode()))
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        elif status == 405:
            headers.append((b"allow", request.allowed.encode()))
        elif status == 503:
            headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        if request.version and request.method == "POST":
            self._note(request, status, body, seconds)

    async def _answer(self, request: Request) -> Answer:
        """Answer within the limits on who may ask, how much at once and for how long."""
        if request.method in READ:
            return await self._route(request)
        if self._tokens is not None:
            self._check_token(self._tokens, request)
        if self._metrics.in_flight > self._config.max_in_flight:
            raise BadRequest(503, f"{self._config.max_in_flight} requests are being answered; come back.")
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
            body = await request.read(self._config.max_body_bytes)
            return 200, "application/json", await self._predict(model, body)
        if route == "/invocations" and method == "POST":
            model = self._asked(request)
            body = await request.read(self._config.max_body_bytes)
            content_type = request.headers.get(b"content-type", b"").decode("latin-1")
            return await asyncio.to_thread(model.invoke, body, content_type, self._config.max_rows)
        if route == "/v2" or route.startswith("/v2/"):
            return await self._open_inference(request)
        if route == "/feedback" and method == "POST":
            return await self._take_feedback(request)
        return self._describe(request)

    async def _predict(self, model: ServedModel, body: bytes) -> bytes:
        batcher = self._batchers.get(model.version)
        if batcher is None:
            return model.predict(body)
        row = model.parse(body)
        try:
            return model.answer(await batcher.predict(row))
        except Exception as error:
            raise model.unanswerable(error) from error

    async def _take_feedback(self, request: Request) -> Answer:
        request.route = "/feedback"
        if self._log is None:
            raise BadRequest(404, "This endpoint keeps no log.")
        request.require_json()
        self._log.add(feedback.parse(await request.read(self._config.max_body_bytes)))
        return as_json(202, {"accepted": True})

    async def _open_inference(self, request: Request) -> Answer:
        """Answer by the Open Inference Protocol, whose errors are `{"error": ...}`."""
        try:
            return as_json(200, await self._v2(request))
        except BadRequest as error:
            _note_refusal(request, error)
            return as_json(error.status, {"error": error.message} | ({"fields": error.fields} if error.fields else {}))

    async def _v2(self, request: Request) -> dict[str, Any]:
        route, method = request.path, request.method
        match route.split("/")[2:]:
            case ["health", "live"] if method in READ:
                return {"live": True}
            case ["health", "ready"] if method in READ:
                return {"ready": self._the_champion() is not None}
            case [] if method in READ:
                return open_inference.server_metadata(self._assignment.champion or "")
            case ["models", name, *rest]:
                version = rest[1] if rest[:1] == ["versions"] and len(rest) > 1 else None
                asked = rest[2:] if rest[:1] == ["versions"] else rest
                allowed = {(): "GET", ("ready",): "GET", ("infer",): "POST"}.get(tuple(asked))
                if allowed is not None and method != allowed and (allowed, method) != ("GET", "HEAD"):
                    raise MethodNotAllowed(route, method, allowed)
                model = self._named(request, name, version)
                match asked:
                    case []:
                        return open_inference.model_metadata(model, sorted(self._loaded))
                    case ["ready"]:
                        return {"name": model.name, "ready": True}
                    case ["infer"]:
                        request.route, request.version = "/v2/infer", model.version
                        request.require_json()
                        body = await request.read(self._config.max_body_bytes)
                        return await asyncio.to_thread(open_inference.infer, model, body, self._config.max_rows)
            case ["health", "live" | "ready"] | []:
                raise MethodNotAllowed(route, method, "GET")
        raise BadRequest(404, f"There is no {route[:200]} here.")

    def _check_token(self, tokens: Tokens, request: Request) -> None:
        if not tokens.allow(request.headers.get(b"authorization"), self._config.use_case):
            raise BadRequest(401, "A valid bearer token is needed.")

    def _named(self, request: Request, name: str, version: str | None) -> ServedModel:
        """Return the model of that name, in the version that path or header ask for."""
        if name != self._config.use_case:
            raise BadRequest(404, f"There is no model {name[:100]!r} here; there is {self._config.use_case!r}.")
        if version is not None:
            request.role = "asked"
            return self._version(version)
        if request.method == "POST":
            return self._asked(request)
        asked = request.headers.get(_VERSION_HEADER)
        return self._the_champion() if asked is None else self._version(asked.decode("latin-1"))

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
        model = self._the_champion()
        if route == "/readyz":
            return as_json(200, {"champion": model.version})
        if route == "/openapi.json":
            return as_json(200, openapi(model, prefix))
        host = request.headers.get(b"host", b"127.0.0.1:8000").decode("latin-1")
        return 200, "text/html; charset=utf-8", page(model, prefix, f"{request.scheme}://{host}").encode()

    def _status(self) -> dict[str, Any]:
        config, wanted = self._config, self._assignment
        return {
            "use_case": config.use_case,
            "champion": self._champion.version if self._champion else None,
            "challenger": self._challenger.version if self._challenger else None,
            "loaded": {model.version: {"native": model.quick} for model in self._loaded.values()},
            "loading": [version for version in wanted.versions() if version not in {*self._loaded, *self._errors}],
            "errors": self._errors,
            "assigned": wanted.model_dump(),
            "config": config.model_dump(exclude={"tracking_uri", "tokens_file", "log_root", "s3_endpoint_url"}),
            "digest": config.digest(wanted),
            "replica": _replica(),
        }

    def _asked(self, request: Request) -> ServedModel:
        """Return the version that is to answer a request for a prediction, and note it."""
        request.route = request.path if request.path in _ROUTES else "/v2/infer"
        asked = request.headers.get(_VERSION_HEADER)
        if asked is not None:
            request.role = "asked"
            model = self._version(asked.decode("latin-1"))
        elif self._challenger is not None and takes(
            self._assignment.canary_percent, self._config.use_case, request.headers.get(_KEY_HEADER)
        ):
            request.role = "canary"
            model = self._challenger
        else:
            model = self._the_champion()
        request.version = model.version
        return model

    def _the_champion(self) -> ServedModel:
        if self._champion is None:
            raise BadRequest(503, self._why_no_champion())
        return self._champion

    def _version(self, name: str) -> ServedModel:
        """Return the version of a number or an alias."""
        if name == "champion":
            return self._the_champion()
        model = self._challenger if name == "challenger" else self._loaded.get(name)
        if model is None:
            loaded = ", ".join(sorted(self._loaded)) or "none"
            raise BadRequest(404, f"{VERSION_HEADER}: {name[:100]} is not loaded; loaded versions: {loaded}.")
        return model

    def _why_no_champion(self) -> str:
        wanted = self._assignment.champion
        if wanted is None:
            return "No version is champion yet; promote one with `shopfloor models promote`."
        return f"Version {wanted} is to be champion and does not load: {self._errors.get(wanted, 'it is loading')}."

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
                )
            )
        if self._shadow.model is not None and status == 200 and request.role == "live" and request.route == "/predict":
            self._shadow.offer(request.request_id, body)

    def _shadow_answered(self, shadow: ShadowAnswer) -> None:
        self._metrics.shadow(shadow.version, shadow.status)
        if self._log is not None:
            failed = shadow.status >= 500
            entry = (shadow.request_id, time.time(), shadow.version, "shadow", "/predict", shadow.status, failed)
            self._log.add(Prediction(*entry, shadow.latency_s, shadow.body, shadow.answer))

    def _watch(self) -> None:
        """Let the metrics read what others count."""
        watch = self._metrics.watch
        watch("shopfloor_shadow_queue", "Copies that wait for the shadow.", "gauge", lambda: self._shadow.waiting)
        watch("shopfloor_shadow_dropped", "Copies that found no room.", "counter", lambda: self._shadow.dropped)
        watch(
            "shopfloor_log_queue", "Log entries to be written.", "gauge", lambda: self._log.waiting if self._log else 0
        )
        watch(
            "shopfloor_log_dropped",
            "Log entries that found no room.",
            "counter",
            lambda: self._log.dropped if self._log else 0,
        )


def build(args: dict[str, Any]) -> Any:
    """Return the Serve application; all that differs between use cases arrives as `user_config`."""
    from ray import serve

    return serve.deployment(serve.ingress()(Predictor), name=DEPLOYMENT).bind()


_VERSION_HEADER = VERSION_HEADER.lower().encode()
_KEY_HEADER = KEY_HEADER.lower().encode()
_ROUTES = {"/predict", "/invocations"}


def _note_refusal(request: Request, error: BadRequest) -> None:
    request.failed = isinstance(error, Unanswerable)
    if isinstance(error, MethodNotAllowed):
        request.allowed = error.allowed


def _replica() -> str:
    from ray import serve

    return str(serve.get_replica_context().replica_id.unique_id)
