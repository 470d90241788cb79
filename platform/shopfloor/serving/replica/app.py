"""The Ray Serve application of a use case: which versions it holds, its limits, and what it logs of each request.

A new version needs no new replica: `Holding` loads it beside the live one and swaps it in when it answers. Requests
are answered straight from ASGI, because a web framework would cost more than the prediction.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shopfloor.runs.mlflow import import_mlflow
from shopfloor.serving.beside.shadow import Orders, Shadow
from shopfloor.serving.contract import DEPLOYMENT, Config
from shopfloor.serving.errors import BadRequest
from shopfloor.serving.log_files import Limits, Prediction
from shopfloor.serving.prediction_log import PredictionLog, journal_directory
from shopfloor.serving.replica import exchange
from shopfloor.serving.replica.answering import Answering
from shopfloor.serving.replica.http import (
    READ,
    Answer,
    Receive,
    Request,
    Scope,
    Send,
    answer_headers,
    decline,
    problem,
)
from shopfloor.serving.replica.metrics import ReplicaMetrics
from shopfloor.serving.replica.routes import Routes, note_refusal
from shopfloor.serving.replica.tokens import Tokens
from shopfloor.serving.replica.versions import Holding
from shopfloor.settings import Settings

logger = logging.getLogger(__name__)

CLIENT_GONE = 499
"""Status, in the metrics only, of a request whose client did not wait."""
SWITCH_INTERVAL_S = 0.0005
MAX_NAMES = 100
"""Values of `Host` that are looked up and not read again."""


class Predictor:
    """The deployment: holds the loaded versions and answers requests."""

    def __init__(self) -> None:
        # What runs in threads (a model being loaded, the log, a shadow) leaves the interpreter to a request at once.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        _log_beside_serve()
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
        self._hosts: set[bytes | None] = {None}
        self._tokens: Tokens | None = None
        self._log: PredictionLog | None = None
        self._metrics = ReplicaMetrics()
        self._shadow = Shadow(self._metrics.shadow)
        self._answering = Answering(self._metrics)
        self._holding = Holding(self._answering.expect, self._swapped)
        self._routes = Routes(self._holding, self._answering, self._metrics, _replica(), self._allows)
        self._watch()
        threading.Thread(target=self._metrics.export, name="metrics", daemon=True).start()

    def __serve_build_asgi_app__(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """Tell Serve what answers HTTP."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:  # a method would pass for ASGI 2
            await self.answer(scope, receive, send)

        return app

    def __del__(self) -> None:
        """Write what is left of the logs; Serve calls this when the replica has drained."""
        for one in (getattr(self, "_shadow", None), getattr(self, "_log", None), getattr(self, "_answering", None)):
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
        if _log_of(config) != _log_of(self._config):
            self._log_to(config)
        await self._answering.configure(config)
        self._config = self._routes.config = config
        self._hosts = {None}
        self._metrics.use_case, self._metrics.replica = config.use_case, _replica()
        self._shadow.follow(self._shadow_orders())
        await self._holding.follow(config)

    def _log_to(self, config: Config) -> None:
        """Log elsewhere from now on; what the log before holds is written meanwhile."""
        before, self._log = self._log, None
        if config.log_root is not None:
            place = Settings(project_root=Path("/"), s3_endpoint_url=config.s3_endpoint_url)
            limits = Limits(config.log_days, config.log_max_bytes)
            self._log = PredictionLog(
                config.log_root, config.use_case, _replica(), place, limits=limits, journal=journal_directory()
            )
        self._routes.log = self._log
        if before is not None:
            self._closing = asyncio.create_task(asyncio.to_thread(before.close))

    def _swapped(self) -> None:
        """Let the shadow and the batches follow the versions that answer now."""
        self._answering.follow(self._holding.loaded)
        self._shadow.follow(self._shadow_orders())

    def _shadow_orders(self) -> Orders | None:
        config, holding = self._config, self._holding
        if holding.challenger is None or not holding.shadow:
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
        request = Request(scope, receive, self._routes.reading)
        status, content_type, body = CLIENT_GONE, "", b""
        try:
            status, content_type, body = await self._answer(request)
        except BadRequest as error:
            note_refusal(request, error)
            status, content_type, body = problem(error.status, error.message, error.fields)
        except Exception:
            logger.exception("%s %s failed", request.method, request.path)
            request.failed = True
            status, content_type, body = problem(500, "The endpoint failed; its log says why.")
        finally:
            seconds = time.perf_counter() - began
            self._metrics.end(request.version, request.route, status, seconds)
            self._routes.reading.let_go(request)
        if request.version and request.method == "POST":
            self._note(request, status, body, seconds)  # before it is answered: an answer that came is never lost
        headers = answer_headers(request, status, content_type, len(body))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, request: Request) -> Answer:
        """Answer within the limits on who may ask, how much at once and for how long."""
        if request.doubled:
            raise BadRequest(400, f"The header {request.doubled.decode()} is there more than once.")
        self._require_name(request.headers.get(b"host"))
        if request.method in READ:
            return await self._within(request)
        if not self._allows(request):
            raise BadRequest(401, "A valid bearer token is needed.")
        self._routes.reading.require_room(self._config.max_in_flight)
        return await self._within(request)

    async def _within(self, request: Request) -> Answer:
        try:
            async with asyncio.timeout(self._config.timeout_s):
                return await self._routes.answer(request)
        except TimeoutError:
            limit = f"within {self._config.timeout_s:g} s"
            if request.body is None and request.method not in READ:
                return problem(408, f"The body did not arrive {limit}.")
            request.failed = True
            late = "The log did not take it" if request.route == "/feedback" else "The model did not answer"
            return problem(504, f"{late} {limit}.")

    def _allows(self, request: Request) -> bool:
        """Tell whether a request shows a token that counts, where the endpoint asks for one."""
        token = request.headers.get(b"authorization")
        return self._tokens is None or self._tokens.allow(token, self._config.use_case)

    def _require_name(self, host: bytes | None) -> None:
        """Refuse a request that came under a foreign name: a page in a browser can give any name this address.

        Raises:
            BadRequest: The name is none of the endpoint's.
        """
        if host in self._hosts or self._config.hosts is None:
            return
        try:
            name = urlsplit(f"//{(host or b'').decode('ascii')}").hostname
        except ValueError:
            name = None
        if name not in self._config.hosts:
            raise BadRequest(421, "The endpoint does not answer under this name.")
        if len(self._hosts) < MAX_NAMES:
            self._hosts.add(host)

    def _note(self, request: Request, status: int, answer: bytes, seconds: float) -> None:
        """Keep an answer in the log, and let the shadow see the row."""
        # What a client got wrong is not kept: it may be anything, and as long as it likes.
        body = (request.body or b"") if status == 200 or request.failed else b""
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
        share, failed = "Percent of the requests that the challenger answers.", "Assigned versions that do not load."
        watch("shopfloor_canary_percent", share, "gauge", lambda: self._holding.canary_percent)
        watch("shopfloor_versions_failed", failed, "gauge", lambda: len(self._holding.errors))
        watch("shopfloor_shadow_queue", "Copies that wait for the shadow.", "gauge", lambda: self._shadow.waiting)
        watch("shopfloor_shadow_dropped", "Copies that nobody answered.", "counter", lambda: self._shadow.dropped)
        watch("shopfloor_log_queue", "Entries to be written.", "gauge", lambda: self._log.waiting if self._log else 0)
        watch("shopfloor_log_dropped", "Entries lost.", "counter", lambda: self._log.dropped if self._log else 0)


def build(args: dict[str, Any]) -> Any:
    """Return the Serve application; all that differs between use cases arrives as `user_config`."""
    from ray import serve

    return serve.deployment(serve.ingress()(Predictor), name=DEPLOYMENT).bind()


def _log_of(config: Config) -> tuple[Any, ...]:
    return config.log_root, config.s3_endpoint_url, config.log_days, config.log_max_bytes


def _log_beside_serve() -> None:
    """Let what the library logs land in the file of this replica, where Ray's dashboard shows it.

    Serve takes what is written to stderr for information, which its level leaves out.
    """
    library = logging.getLogger("shopfloor")
    library.handlers[:] = logging.getLogger("ray.serve").handlers
    library.propagate = not library.handlers


def _replica() -> str:
    from ray import serve

    return str(serve.get_replica_context().replica_id.unique_id)
