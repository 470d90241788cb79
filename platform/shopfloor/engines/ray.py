"""The `ray` engine: a run becomes a Ray job, which goes on when the terminal has gone.

The job is `shopfloor submit --engine local` on the cluster's head, with every parameter resolved and the settings in
its environment; it records into the MLflow run that the submitter made. Where the cluster is on this machine the job
runs in the project itself, elsewhere in a copy that Ray takes there. Secrets are not sent: the cluster has its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import queue
import secrets
import shlex
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NoReturn, TypeVar
from urllib.parse import urlsplit

from shopfloor.engines.base import Job, RunState
from shopfloor.environment import ENV_PREFIX, elsewhere
from shopfloor.errors import AccessError, NotFoundError, ServiceError, UsageError
from shopfloor.settings import Settings
from shopfloor.storage import is_remote

STOP_GRACE_S = 30
"""How long a stopped job may take to end its steps and to write so; Ray's own 3 s are too short for both."""
NOT_CARRIED = [
    ".git/",
    ".venv/",
    ".shopfloor/",
    "/data/*",
    "!/data/*.dvc",
    "__pycache__/",
    ".pytest_cache/",
    ".mypy_cache/",
]
"""What of the project a cluster elsewhere does not get, in the form of a .gitignore.

What DVC has recorded of the data it gets, and no data: those come from the remote."""
_ADDRESS_OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_STATES: dict[str, RunState] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "STOPPED": "killed",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
}
_LOG_FOLLOWS = ", last available logs"
"""What stands in Ray's word on a job that failed between the reason and the end of the log, which begins a line."""
_Answer = TypeVar("_Answer")


class RayEngine:
    """Runs pipelines as Ray jobs; a run is named by the job's submission id."""

    name: ClassVar[str] = "ray"

    def __init__(self, settings: Settings) -> None:
        """Use the cluster whose dashboard is at `settings.ray_dashboard_url`."""
        self._settings = settings
        self._url = settings.ray_dashboard_url.rstrip("/")

    def submit(self, job: Job) -> str:
        """Begin the job and return its submission id.

        Raises:
            UsageError: It has a schedule, or the cluster cannot reach what the settings name.
            ServiceError: The cluster does not answer, or refuses.
        """
        if job.cron is not None:
            raise UsageError("A Ray cluster keeps no schedule.", "Use cron, or --engine argo or kfp.")
        environment = {**job.environment, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S)}
        arguments = ["-m", "shopfloor", "submit", *self._arguments(job)]
        if self._is_here():
            root = self._settings.project_root
            runtime_env: dict[str, Any] = {}
            begin = f"cd {shlex.quote(str(root))} && exec env"
            places, python = shlex.quote(os.pathsep.join([str(root), str(root / "platform")])), sys.executable
        else:
            self._require_reachable()
            # What lies beside the project there is Ray's copy of it.
            environment = elsewhere(environment, self._settings.in_containers)
            runtime_env = self._carried()
            begin, places, python = "exec env", f'"$PWD{os.pathsep}$PWD/platform"', "python"
        # The steps join the cluster that the job is on; only the job knows its address.
        own = f'{ENV_PREFIX}RAY_ADDRESS="$RAY_ADDRESS" PYTHONPATH={places}'
        return self._begin(
            entrypoint=f"{begin} {own} {shlex.quote(python)} {shlex.join(arguments)}",
            runtime_env={**runtime_env, "env_vars": environment},
            metadata={"pipeline": job.name, "run_id": job.run_id or ""},
        )

    def status(self, engine_run: str) -> RunState:
        """Return how the job stands.

        Raises:
            NotFoundError: The cluster does not know it: it is another one, or was started anew.
            ServiceError: The cluster does not answer.
        """
        return _STATES[str(self._info(engine_run).status.value)]

    def why(self, engine_run: str) -> str:
        """Return what Ray says of the job, with the last line of its log that Ray adds to it.

        Raises:
            NotFoundError: The cluster does not know the job.
            ServiceError: The cluster does not answer.
        """
        message, _, log = str(self._info(engine_run).message or "").partition(_LOG_FOLLOWS)
        last = next((line for line in reversed(log.splitlines()[1:]) if line.strip()), "")
        return " ".join(f"{message}: {last}".split()) if last else " ".join(message.split())

    def logs(self, engine_run: str, step: str | None = None, follow: bool = False) -> Iterator[str]:
        """Yield the lines of the job's log; with a step, those that tell of it.

        Raises:
            NotFoundError: The cluster does not know the job.
            ServiceError: The cluster does not answer, or stopped to.
        """
        self._info(engine_run)
        lines = self._follow(engine_run) if follow else iter(self._ask("get_job_logs", engine_run).splitlines())
        for line in lines:
            if step is None or line.startswith(f"{step}:"):
                yield line

    def stop(self, engine_run: str) -> None:
        """Ask the job to end; it ends its steps and says so in its record.

        Raises:
            NotFoundError: The cluster does not know the job.
            ServiceError: The cluster does not answer.
        """
        self._ask("stop_job", engine_run)

    def retry(self, engine_run: str) -> str:
        """Begin the same job again; what was finished is found in the result store.

        Raises:
            NotFoundError: The cluster does not know the job.
            ServiceError: The cluster does not answer, or refuses.
        """
        before = self._info(engine_run)
        runtime_env = dict(before.runtime_env or {})
        if "working_dir" in runtime_env:  # Ray may have deleted the copy
            runtime_env |= self._carried()
        return self._begin(entrypoint=before.entrypoint, runtime_env=runtime_env, metadata=before.metadata or {})

    def _begin(self, **job: Any) -> str:
        # The id is chosen here: an answer that was lost must not hide a job that began.
        engine_run = f"shopfloor-{secrets.token_hex(6)}"
        try:
            return str(self._ask("submit_job", submission_id=engine_run, **job))
        except ServiceError as error:
            with contextlib.suppress(NotFoundError, ServiceError):
                self._info(engine_run)
                return engine_run
            raise ServiceError(
                error.message, f"{error.remedy} If the job began, it is {engine_run}: see the cluster's dashboard."
            ) from error

    def _arguments(self, job: Job) -> list[str]:
        """Return what stands behind `shopfloor submit`."""
        file, root = job.file, self._settings.project_root
        if file is None:
            raise UsageError("A Ray job needs the pipeline's file.", "Submit a file.")
        if file.is_relative_to(root):
            file = file.relative_to(root)
        elif not self._is_here():
            raise UsageError(f"{file} is outside the project, which is all that the cluster gets.", "Move it there.")
        parameters = [
            part
            for name, value in job.arguments.items()
            for part in ("-p", f"{name}={value if isinstance(value, str) else json.dumps(value)}")
        ]
        options = [*([] if job.use_cache else ["--no-cache"]), *(["--from", job.from_step] if job.from_step else [])]
        options += ["--function", job.function] if job.function else []
        return [str(file), "--engine", "local", *parameters, *options]

    def _carried(self) -> dict[str, Any]:
        """Return what of the project Ray copies to the cluster; its workers import the library from a copy too."""
        root = self._settings.project_root
        return {
            "working_dir": str(root),
            "py_modules": [str(root / "platform" / "shopfloor")],
            "excludes": NOT_CARRIED,
        }

    def _is_here(self) -> bool:
        """Tell whether the cluster's head is on this machine, and sees its files."""
        if self._settings.in_containers:
            return False
        host = urlsplit(self._url).hostname or ""
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(host).is_loopback
        return host in {"localhost", socket.gethostname()}

    def _require_reachable(self) -> None:
        """Refuse settings that name places on this machine only."""
        settings = self._settings
        if not is_remote(settings.artifact_root):
            raise UsageError(
                f"The Ray cluster at {self._url} cannot reach the artifacts in {settings.artifact_root}.",
                "Use a profile whose artifacts are in an object store.",
            )
        if not settings.in_containers and urlsplit(settings.tracking_uri).hostname in {"localhost", "127.0.0.1", "::1"}:
            raise UsageError(
                f"The Ray cluster at {self._url} cannot reach the MLflow server {settings.tracking_uri}.",
                "Use a profile whose MLflow server has an address in the network.",
            )

    def _info(self, engine_run: str) -> Any:
        return self._ask("get_job_info", engine_run)

    def _ask(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Call a method of Ray's client, and say in one line what went wrong."""
        return self._answered(lambda client: getattr(client, method)(*arguments, **keywords))

    def _answered(self, ask: Callable[[Any], _Answer]) -> _Answer:
        import requests

        try:
            return ask(self._client())
        except (requests.RequestException, ConnectionError) as error:
            self._silent(error)
        except (RuntimeError, ValueError) as error:
            text = " ".join(str(error).split())
            if "does not exist" in text:
                raise NotFoundError(
                    f"The Ray cluster at {self._url} does not know the job.",
                    "It is another cluster, or it was started anew; `shopfloor runs resume` goes on.",
                ) from error
            raise ServiceError(f"The Ray cluster at {self._url} refused: {text[:300]}", "See its dashboard.") from error

    def _client(self) -> Any:
        import requests

        try:
            # Ray's client asks without a limit in time, and takes any server for a dashboard.
            headers, timeout_s = self._settings.ray_headers(), self._settings.request_timeout_s
            answer = requests.get(f"{self._url}/api/version", headers=headers, timeout=timeout_s)
            if answer.status_code in {401, 403}:
                raise AccessError(
                    f"The Ray cluster at {self._url} asks for a token, "
                    + ("and does not accept ours." if headers else "and there is none."),
                    "Name the file that holds it with ray_token_file.",
                )
            if "ray_version" not in answer.json():
                raise ValueError
        except ValueError as error:
            raise ServiceError(
                f"{self._url} is not the dashboard of a Ray cluster.", "Name it with --ray-address http://host:port."
            ) from error
        except requests.RequestException as error:
            self._silent(error)
        # What is left out of the copy is said here, not by Ray, which would warn of it each time.
        os.environ.setdefault("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", "")
        from ray.job_submission import JobSubmissionClient

        for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # Ray's variables would go before the address.
        hidden = {name: os.environ.pop(name) for name in _ADDRESS_OVERRIDES if name in os.environ}
        try:
            return JobSubmissionClient(self._url, headers=headers)
        finally:
            os.environ.update(hidden)

    def _silent(self, error: Exception) -> NoReturn:
        remedy = "Start the stack: shopfloor up." if self._settings.profile == "embedded" else "Look at the cluster."
        raise ServiceError(f"The Ray cluster at {self._url} does not answer.", remedy) from error

    def _follow(self, engine_run: str) -> Iterator[str]:
        """Yield the lines of a job's log as they come, until it ends."""
        from aiohttp import ClientError

        chunks: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        loop = asyncio.new_event_loop()

        async def read() -> None:
            try:
                async for chunk in self._client().tail_job_logs(engine_run):
                    chunks.put(str(chunk))
            finally:
                chunks.put(None)

        reading = loop.create_task(read())

        def turn() -> None:
            with contextlib.suppress(Exception, asyncio.CancelledError):  # whoever reads the lines asks the task
                loop.run_until_complete(reading)
            loop.close()

        # In a thread of its own: a Ctrl-C that interrupts an event loop is lost at times, or lets its end hang.
        thread = threading.Thread(target=turn, name="job-log", daemon=True)
        thread.start()
        rest = ""
        try:
            while (chunk := chunks.get()) is not None:
                *lines, rest = (rest + chunk).split("\n")
                yield from lines
            thread.join()
            reading.result()
        except (RuntimeError, OSError, ClientError) as error:
            raise ServiceError(
                f"The Ray cluster at {self._url} stopped answering.",
                "The job goes on if the cluster does: `shopfloor runs show`.",
            ) from error
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(reading.cancel)
        if rest:
            yield rest
