"""The `local` engine: `kfp.local` runs the compiled pipeline on this machine, each step a process.

kfp.local schedules, resolves conditions, loops, retries and exit handlers. We put our own part in three places of it:
the cache (the content key and the result store instead of the artifacts' names), the process (its log, its
environment, its end when the run is stopped) and the task (telling the listener); `kfp_local.py` puts right where its
flow is not KFP's. It has no public hook for them, so `_installed` replaces module attributes for the time of a run; the
tests fail when an update of kfp moves them.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from shopfloor.engines import kfp_local
from shopfloor.engines.base import StepListener
from shopfloor.pipeline.keys import StepKey, component_key
from shopfloor.pipeline.results import Outputs, ResultStore
from shopfloor.settings import Settings
from shopfloor.training import cluster as ray_cluster

TERMINATION_GRACE_S = 5.0
_ERROR_LINE = re.compile(r"^(?P<kind>[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)): ?(?P<message>.*)$")
SILENT = "The step's process ended without a word."
RAY_ENDED = "Ray ended the step:"
_RAY_LINE = re.compile(r"\[[\d:, -]+ [CEFW] \d+ \d+\] (?:\([^)]*\) )?\S+: (?P<message>.+?)(?: \w+_id=\w+)?$")


class _Task(threading.local):
    """What this thread is about: kfp.local runs the tasks of a parallel loop in threads."""

    name: str = ""
    key: StepKey | None = None
    cached: bool = False
    log: Path | None = None
    environment: dict[str, str]


class LocalRun:
    """One run of a compiled pipeline on this machine."""

    def __init__(
        self,
        settings: Settings,
        run_dir: Path,
        results: ResultStore,
        listener: StepListener,
        use_cache: bool = True,
        forced: Collection[str] = (),
    ) -> None:
        """Prepare a run.

        Args:
            settings: Handed to every step through its environment.
            run_dir: Takes the steps' logs and their small outputs.
            results: Where finished steps are found and kept.
            listener: Hears of every step.
            use_cache: Whether to reuse results; they are kept in either case.
            forced: Steps that run even where their results are known.
        """
        self._settings = settings
        self._run_dir = run_dir
        self._results = results
        self._listener = listener
        self._use_cache = use_cache
        self._forced = frozenset(forced)
        self._task = _Task()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._defaults: dict[str, dict[str, Any]] = {}
        self._stopped = False

    def execute(self, pipeline_spec: Any, arguments: dict[str, Any]) -> bool:
        """Run the pipeline to its end.

        Args:
            pipeline_spec: KFP's `PipelineSpec` message.
            arguments: Values of the pipeline's parameters.

        Returns:
            Whether every step that had to run succeeded.

        Raises:
            UsageError: The pipeline has a condition that nobody can read; nothing ran.
            ShopfloorError: The listener gave the run up (a service died).
            KeyboardInterrupt: Somebody stopped the run; its processes are gone.
        """
        from kfp import local
        from kfp.local import pipeline_orchestrator

        kfp_local.check(pipeline_spec)
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._defaults = _defaults(pipeline_spec)
        local.init(
            runner=local.SubprocessRunner(use_venv=False),
            pipeline_root=str(self._run_dir / "steps"),
            workspace_root=str(self._run_dir / "workspace"),
            raise_on_error=True,
            enable_caching=True,
            cache_root=str(self._run_dir / "kfp-cache"),
        )
        try:
            # kfp.local talks on stdout, which belongs to the command's result.
            with (
                (self._run_dir / "kfp.log").open("a") as log,
                contextlib.redirect_stdout(log),
                warnings.catch_warnings(),
                self._installed(),
            ):
                # It warns of every setting that means nothing on one machine: the image, the resources.
                warnings.simplefilter("ignore", RuntimeWarning)
                warnings.simplefilter("ignore", UserWarning)
                pipeline_orchestrator.run_local_pipeline(pipeline_spec=pipeline_spec, arguments=arguments)
        except RuntimeError as error:
            if "finished with status" not in str(error):
                raise
            return False
        except BaseException:
            self.stop()
            raise
        return True

    def stop(self) -> None:
        """End every process of the run: first asked, after some seconds made to."""
        self._stopped = True
        for process in list(self._processes.values()):
            end_process_group(process.pid)

    @contextlib.contextmanager
    def _installed(self) -> Iterator[None]:
        """Put our parts into kfp.local, and take them out again."""
        from kfp.local import cache, subprocess_task_handler
        from kfp.local.orchestrator import task_executor

        run_task = task_executor.execute_single_task
        owner = self

        class Cache(cache.LocalCache):  # type: ignore[misc]
            """KFP's cache with our key and our store."""

            def compute_key(
                self,
                component_name: str,
                image: str,
                full_command: list[str],
                arguments: dict[str, Any],
                env_vars: dict[str, str] | None = None,
                custom_cache_key: str | None = None,
            ) -> str:
                owner._task.key = owner._key(component_name, full_command, arguments, env_vars or {})
                return owner._task.key.key

            def get(self, key: str) -> dict[str, Any] | None:
                reuse = owner._use_cache and owner._task.name not in owner._forced
                outputs = owner._results.get(key) if reuse else None
                owner._task.cached = outputs is not None
                if outputs is not None and owner._task.key:
                    owner._results.used(owner._task.name, key, owner._task.key.parts)
                return None if outputs is None else _to_kfp(outputs)

            def put(self, key: str, outputs: dict[str, Any]) -> None:
                parts = owner._task.key.parts if owner._task.key else {}
                owner._results.put(key, parts, _from_kfp(outputs))
                owner._results.used(owner._task.name, key, parts)

        the_cache = Cache(cache_root=str(self._run_dir / "kfp-cache"))
        replacements: list[tuple[Any, str, Any]] = [
            (cache, "get_local_cache", lambda: the_cache),
            (subprocess_task_handler, "run_local_subprocess", self._run_process),
            (task_executor, "execute_single_task", lambda **kwargs: self._run_task(run_task, **kwargs)),
            *kfp_local.replacements(),
        ]
        originals = [(module, name, inspect.getattr_static(module, name)) for module, name, _ in replacements]
        for module, name, replacement in replacements:
            setattr(module, name, replacement)
        try:
            yield
        finally:
            for module, name, original in originals:
                setattr(module, name, original)

    def _run_task(self, run_task: Any, **kwargs: Any) -> Any:
        from kfp.local import status

        if self._stopped:
            return {}, status.Status.FAILURE
        task = self._task
        task.name, task.key, task.cached, task.log, task.environment = kwargs["task_name"], None, False, None, {}
        started = time.monotonic()
        try:
            outputs, outcome = run_task(**kwargs)
        except KeyboardInterrupt:
            self._listener.step_finished(task.name, "killed", time.monotonic() - started, {}, task.log, "Stopped.")
            raise
        seconds = time.monotonic() - started
        if outcome == status.Status.SUCCESS:
            state = "cached" if task.cached else "succeeded"
            self._listener.step_finished(task.name, state, seconds, _from_kfp(outputs), task.log, "")  # type: ignore[arg-type]
        else:
            self._listener.step_finished(task.name, "failed", seconds, {}, task.log, self._error(task.log))
        return outputs, outcome

    def _error(self, log: Path | None) -> str:
        """Return why a step failed, also where its process was ended without a word."""
        said = last_error(log)
        # Ray's own code ends a driver whose cluster dies while it joins: no exception, often no line either.
        ended = said == SILENT or said.startswith(RAY_ENDED)
        if ended and ":" in self._settings.ray_address and not ray_cluster.answers(self._settings):
            return str(ray_cluster.lost(self._settings))
        return said

    def _run_process(self, full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        """Run one attempt of the current task; its output goes to the task's log."""
        task = self._task
        task.log = self._run_dir / "logs" / f"{task.name}.log"
        task.log.parent.mkdir(parents=True, exist_ok=True)
        root = self._settings.project_root
        environment = {
            **os.environ,
            **self._settings.environment(),
            **(env_vars or {}),
            **self._listener.step_started(task.name),
            "PYTHONPATH": os.pathsep.join([str(root), str(root / "platform")]),
            "PYTHONUNBUFFERED": "1",
        }
        with task.log.open("ab") as log:
            process = subprocess.Popen(
                full_command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd=root,
                start_new_session=True,
            )
            self._processes[process.pid] = process
            try:
                return process.wait()
            except BaseException:
                end_process_group(process.pid)
                raise
            finally:
                del self._processes[process.pid]

    def _key(
        self, component: str, full_command: list[str], arguments: dict[str, Any], environment: dict[str, str]
    ) -> StepKey:
        given = {**self._defaults.get(component, {}), **_from_kfp(arguments)}
        artifacts = {
            name: given[name] if isinstance(value, list) else [given[name]]
            for name, value in arguments.items()
            if _is_artifact(value[0] if isinstance(value, list) and value else value)
        }
        parameters = {name: value for name, value in given.items() if name not in artifacts}
        return component_key(self._settings, full_command, parameters, artifacts, environment)


def _defaults(pipeline_spec: Any) -> dict[str, dict[str, Any]]:
    """Return the default values of each component's parameters."""
    from google.protobuf import json_format

    return {
        name: {
            parameter: json_format.MessageToDict(definition.default_value)
            for parameter, definition in component.input_definitions.parameters.items()
            if definition.HasField("default_value")
        }
        for name, component in pipeline_spec.components.items()
    }


def end_process_group(group: int) -> None:
    """End all processes of a group: SIGTERM, and SIGKILL for what is left after some seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + TERMINATION_GRACE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-group, os.WNOHANG)
            try:
                os.killpg(group, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)


def last_error(log: Path | None) -> str:
    """Return the message of the last exception in a step's log, without the names of our own error classes."""
    lines = log.read_text(errors="replace").rstrip().splitlines() if log and log.is_file() else []
    for index in range(len(lines) - 1, -1, -1):
        match = _ERROR_LINE.match(lines[index])
        if match:
            ours = match["kind"].startswith("shopfloor.")
            first = match["message"] if ours else f"{match['kind'].rpartition('.')[2]}: {match['message']}"
            return "\n".join([first, *lines[index + 1 :]]).strip()
    for line in reversed(lines):
        match = _RAY_LINE.match(line)
        if match:
            return f"{RAY_ENDED} {match['message'].rstrip('.:{ ')}. See `shopfloor status`, then submit again."
    # KFP prints what a step is given, as JSON: its last line says nothing.
    return lines[-1] if lines and any(letter.isalnum() for letter in lines[-1]) else SILENT


def _is_artifact(value: Any) -> bool:
    from kfp import dsl

    return isinstance(value, dsl.Artifact)


def _from_kfp(outputs: dict[str, Any]) -> Outputs:
    """Return the JSON form of outputs."""
    from kfp import dsl

    def convert(value: Any) -> Any:
        if isinstance(value, dsl.Artifact):
            return {
                "name": value.name,
                "uri": value.uri,
                "metadata": dict(value.metadata),
                "type": {"schemaTitle": type(value).schema_title, "schemaVersion": type(value).schema_version},
            }
        return [convert(item) for item in value] if isinstance(value, list) else value

    return {name: convert(value) for name, value in outputs.items()}


def _to_kfp(outputs: Outputs) -> dict[str, Any]:
    """Return outputs with KFP's own artifact objects."""
    from kfp.dsl import executor

    def convert(value: Any) -> Any:
        if isinstance(value, dict) and "uri" in value and "type" in value:
            return executor.create_artifact_instance(value)
        return [convert(item) for item in value] if isinstance(value, list) else value

    return {name: convert(value) for name, value in outputs.items()}
