"""The Ray Serve application of a use case: which versions it holds, and how a request finds one.

All of it comes from the deployment's `user_config`, so a new version needs no new replica: it is loaded and warmed
beside the live one and swapped in when it answers. A version that does not load changes nothing but `/status`.
Requests are answered straight from ASGI, because a web framework would cost more than the prediction.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from shopfloor.mlflow_import import import_mlflow
from shopfloor.serving import open_inference
from shopfloor.serving.documents import VERSION_HEADER, openapi, page
from shopfloor.serving.metrics import CONTENT_TYPE, ReplicaMetrics
from shopfloor.serving.predictors import ServedModel, load_model
from shopfloor.serving.schema import BadRequest
from shopfloor.serving.tokens import Tokens

logger = logging.getLogger(__name__)

DEPLOYMENT = "predictor"
"""Name of the one deployment of every application."""
CLIENT_GONE = 499
"""Status, in the metrics only, of a request whose client did not wait."""
RETRY_S = (5, 15, 60)
"""Pauses before a version that did not load is tried again; the last one repeats."""

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Config(BaseModel):
    """The `user_config` of the deployment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    use_case: str
    """Name of the registered model, and of the application."""
    tracking_uri: str
    champion: str | None = None
    """Version that answers."""
    challenger: str | None = None
    """Version on trial, which answers whoever asks for it."""
    max_rows: int = 10_000
    max_body_bytes: int = 8 * 1024 * 1024
    tokens_file: str | None = None
    """Whoever sends rows must show a token of this file; `None` asks nobody."""

    def digest(self) -> str:
        """Return a hash of the whole configuration, which tells whether a replica has it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def versions(self) -> list[str]:
        """Return the versions that are to be loaded."""
        return [version for version in (self.champion, self.challenger) if version]


class Predictor:
    """The deployment: holds the loaded versions and answers requests."""

    def __init__(self) -> None:
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
        self._loading: asyncio.Task[None] | None = None
        self._tokens: Tokens | None = None
        self._metrics = ReplicaMetrics()

    def __serve_build_asgi_app__(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """Tell Serve what answers HTTP."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:  # a method would pass for ASGI 2
            await self.answer(scope, receive, send)

        return app

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take a new configuration; return at once where a champion answers, else when one does or cannot.

        Serve sends no requests to a replica that is being reconfigured. Therefore a live replica loads in the
        background, and only one that has nothing to answer with waits.
        """
        config = Config.model_validate(user_config)
        if config == self._config:
            return
        if config.tokens_file != self._config.tokens_file:
            self._tokens = Tokens(Path(config.tokens_file)) if config.tokens_file else None
        self._config = config
        self._metrics.use_case, self._metrics.replica = config.use_case, _replica()
        for version in config.versions():
            self._errors.pop(version, None)
        if self._loading is not None:
            self._loading.cancel()
        first = asyncio.Event()
        self._loading = asyncio.create_task(self._load_wanted(config, first))
        if self._champion is None:
            await first.wait()

    async def _load_wanted(self, config: Config, tried: asyncio.Event) -> None:
        """Load what `config` names and is not loaded, swap it in, and try again what failed."""
        wanted = config.versions()
        try:
            for attempt in itertools.count():
                for version in wanted:
                    await self._load(config, version)
                self._swap(config)
                tried.set()
                if all(version in self._loaded for version in wanted):
                    return
                await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
        finally:  # a newer configuration took over: who waited for this one waits no longer
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

    def _swap(self, config: Config) -> None:
        """Let the loaded versions answer, and forget those that nobody names any more."""
        self._champion = self._loaded.get(config.champion, self._champion) if config.champion else None
        self._challenger = self._loaded.get(config.challenger, self._challenger) if config.challenger else None
        live = [model for model in (self._champion, self._challenger) if model]
        self._loaded = {model.version: model for model in live}
        self._errors = dict(list(self._errors.items())[-10:])

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection."""
        if scope["type"] != "http":
            await _decline(scope, receive, send)
            return
        began = time.perf_counter()
        self._metrics.begin()
        status, content_type, body = CLIENT_GONE, "", b""
        try:
            if self._tokens is not None and scope["method"] not in _READ:
                self._check_token(self._tokens, dict(scope["headers"]))
            status, content_type, body = await self._route(scope, receive)
        except BadRequest as error:
            status, content_type, body = _problem(error.status, error.message, error.fields)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            status, content_type, body = _problem(500, "The endpoint failed; its log says why.")
        finally:
            self._metrics.end(scope.get(_VERSION, ""), scope.get(_ROUTE, "other"), status, time.perf_counter() - began)
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _route(self, scope: Scope, receive: Receive) -> tuple[int, str, bytes]:
        prefix = scope.get("root_path", "")
        route = scope["path"].removeprefix(prefix)
        if route == "/predict" and scope["method"] == "POST":
            headers = dict(scope["headers"])
            model = self._asked(scope, headers, route)
            _check_json(headers)
            return 200, "application/json", model.predict(await self._body(headers, receive))
        if route == "/invocations" and scope["method"] == "POST":
            headers = dict(scope["headers"])
            model = self._asked(scope, headers, route)
            body = await self._body(headers, receive)
            content_type = headers.get(b"content-type", b"").decode("latin-1")
            return await asyncio.to_thread(model.invoke, body, content_type, self._config.max_rows)
        if route == "/v2" or route.startswith("/v2/"):
            return await self._open_inference(route, scope, receive)
        return self._describe(route, scope, prefix)

    async def _open_inference(self, route: str, scope: Scope, receive: Receive) -> tuple[int, str, bytes]:
        """Answer by the Open Inference Protocol, whose errors are `{"error": ...}`."""
        try:
            return _json(200, await self._v2(route, scope, receive))
        except BadRequest as error:
            return _json(error.status, {"error": error.message} | ({"fields": error.fields} if error.fields else {}))

    async def _v2(self, route: str, scope: Scope, receive: Receive) -> dict[str, Any]:
        headers, method = dict(scope["headers"]), scope["method"]
        match route.split("/")[2:]:
            case ["health", "live"] if method in _READ:
                return {"live": True}
            case ["health", "ready"] if method in _READ:
                return {"ready": self._model({}) is not None}
            case [] if method in _READ:
                return open_inference.server_metadata(self._config.champion or "")
            case ["models", name, *rest]:
                model = self._named(name, rest[1] if rest[:1] == ["versions"] and len(rest) > 1 else None, headers)
                match rest[2:] if rest[:1] == ["versions"] else rest, method:
                    case [], "GET" | "HEAD":
                        return open_inference.model_metadata(model, sorted(self._loaded))
                    case ["ready"], "GET" | "HEAD":
                        return {"name": model.name, "ready": True}
                    case ["infer"], "POST":
                        scope[_ROUTE], scope[_VERSION] = "/v2/infer", model.version
                        _check_json(headers)
                        body = await self._body(headers, receive)
                        return await asyncio.to_thread(open_inference.infer, model, body, self._config.max_rows)
                    case (([] | ["ready"] | ["infer"]), _):
                        raise BadRequest(405, f"{route} does not take {method}.")
            case ["health", "live" | "ready"] | []:
                raise BadRequest(405, f"{route} takes GET, not {method}.")
        raise BadRequest(404, f"There is no {route[:200]} here.")

    def _check_token(self, tokens: Tokens, headers: dict[bytes, bytes]) -> None:
        if not tokens.allow(headers.get(b"authorization"), self._config.use_case):
            raise BadRequest(401, "A valid bearer token is needed.")

    def _named(self, name: str, version: str | None, headers: dict[bytes, bytes]) -> ServedModel:
        """Return the model of that name, in the version that path or header ask for."""
        if name != self._config.use_case:
            raise BadRequest(404, f"There is no model {name[:100]!r} here; there is {self._config.use_case!r}.")
        return self._model(headers if version is None else {_VERSION_HEADER: version.encode("latin-1", "replace")})

    def _describe(self, route: str, scope: Scope, prefix: str) -> tuple[int, str, bytes]:
        """Answer what is not a prediction."""
        if route in {"/predict", "/invocations"}:
            raise BadRequest(405, f"{route} takes POST, not {scope['method']}.")
        if route not in {"/status", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"}:
            raise BadRequest(404, f"There is no {route or '/'} here; {prefix}/docs says what there is.")
        if scope["method"] not in {"GET", "HEAD"}:
            raise BadRequest(405, f"{route} takes GET, not {scope['method']}.")
        if route == "/status":
            return _json(200, self._status())
        if route == "/metrics":
            return 200, CONTENT_TYPE, self._metrics.text()
        if route == "/healthz":
            return _json(200, {"live": True})
        model = self._model({})
        if route == "/readyz":
            return _json(200, {"champion": model.version})
        if route == "/openapi.json":
            return _json(200, openapi(model, prefix))
        host = dict(scope["headers"]).get(b"host", b"127.0.0.1:8000").decode("latin-1")
        return 200, "text/html; charset=utf-8", page(model, prefix, f"{scope['scheme']}://{host}").encode()

    def _status(self) -> dict[str, Any]:
        config = self._config
        return {
            "use_case": config.use_case,
            "champion": self._champion.version if self._champion else None,
            "challenger": self._challenger.version if self._challenger else None,
            "loaded": {model.version: {"native": model.quick} for model in self._loaded.values()},
            "loading": [version for version in config.versions() if version not in {*self._loaded, *self._errors}],
            "errors": self._errors,
            "config": config.model_dump(exclude={"tracking_uri", "tokens_file"}),
            "digest": config.digest(),
            "replica": _replica(),
        }

    def _asked(self, scope: Scope, headers: dict[bytes, bytes], route: str) -> ServedModel:
        """Return the version that the request asks for, and note both for the metrics."""
        scope[_ROUTE] = route
        model = self._model(headers)
        scope[_VERSION] = model.version
        return model

    def _model(self, headers: dict[bytes, bytes]) -> ServedModel:
        """Return the version that the request asks for."""
        asked = headers.get(_VERSION_HEADER)
        if asked is None or asked == b"champion":
            if self._champion is None:
                raise BadRequest(503, self._why_no_champion())
            return self._champion
        name = asked.decode("latin-1")
        model = self._challenger if name == "challenger" else self._loaded.get(name)
        if model is None:
            loaded = ", ".join(sorted(self._loaded)) or "none"
            raise BadRequest(404, f"{VERSION_HEADER}: {name[:100]} is not loaded; loaded versions: {loaded}.")
        return model

    def _why_no_champion(self) -> str:
        wanted = self._config.champion
        if wanted is None:
            return "No version is champion yet; promote one with `shopfloor models promote`."
        return f"Version {wanted} is to be champion and does not load: {self._errors.get(wanted, 'it is loading')}."

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """Read the body, and no more of it than may be."""
        limit = self._config.max_body_bytes
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            raise BadRequest(413, f"The body holds {int(length)} bytes; at most {limit} are read.")
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > limit:
                raise BadRequest(413, f"The body holds more than {limit} bytes.")
            more = message.get("more_body", False)
        if not body:
            raise BadRequest(400, "The body is empty.")
        return body


def build(args: dict[str, Any]) -> Any:
    """Return the Serve application; all that differs between use cases arrives as `user_config`."""
    from ray import serve

    return serve.deployment(serve.ingress()(Predictor), name=DEPLOYMENT).bind()


_VERSION_HEADER = VERSION_HEADER.lower().encode()
_READ = ("GET", "HEAD")
_VERSION, _ROUTE = "shopfloor.version", "shopfloor.route"
"""Keys of a request's scope under which its version and route wait for the metrics."""


def _replica() -> str:
    from ray import serve

    return str(serve.get_replica_context().replica_id.unique_id)


def _check_json(headers: dict[bytes, bytes]) -> None:
    kind = headers.get(b"content-type", b"")
    if kind != b"application/json" and kind.partition(b";")[0].strip().lower() != b"application/json":
        named = kind.decode("latin-1")[:100] or "none"
        raise BadRequest(415, f"The content type must be application/json, not {named}.")


def _json(status: int, content: dict[str, Any]) -> tuple[int, str, bytes]:
    return status, "application/json", json.dumps(content).encode()


def _problem(status: int, message: str, fields: list[dict[str, str]] | None = None) -> tuple[int, str, bytes]:
    return _json(status, {"message": message} | ({"fields": fields} if fields else {}))


async def _decline(scope: Scope, receive: Receive, send: Send) -> None:
    """Go through the lifespan that ASGI servers announce; refuse web sockets."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1000})
        return
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
