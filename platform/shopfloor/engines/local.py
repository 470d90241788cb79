"""The `local` engine: the compiled pipeline runs on this machine, each step a process.

What runs when is `walk.py`'s. Here one step runs: its content key, the result store, its tries, its process with a log
and an environment of its own, and what the listener is told. KFP's own library makes a step's input and reads its
output, so that a component finds what it finds on any engine.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from shopfloor import attempts
from shopfloor.engines.base import StepListener
from shopfloor.engines.failures import read, telling
from shopfloor.engines.guard import Guard
from shopfloor.engines.processes import StepProcesses
from shopfloor.engines.walk import Execution, TaskFailed, Walk, filled
from shopfloor.errors import FAILURE_FILE, Failure, ShopfloorError, UsageError
from shopfloor.pipeline import conditions, ir
from shopfloor.pipeline.keys import StepKey, component_key, plain
from shopfloor.pipeline.results import Lookup, Outputs, ResultStore
from shopfloor.settings import Settings
from shopfloor.training import cluster as ray_cluster

logger = logging.getLogger(__name__)

STOP_REACHES_ALL_S = 2.0
"""Within this time a run hears that it is stopped, after a step of it was told to end by the same hand."""
_ASKED_TO_END = (-signal.SIGTERM, -signal.SIGINT)
PARALLEL = max(2, min(8, os.cpu_count() or 1))
"""Steps that run at once."""
FAILURE = "failure.json"
"""File of a try in which its process leaves why it failed."""
_STOPPED = Failure("Stopped", "Stopped.")
KEPT_S = 30 * 86_400.0
"""Time after a run's last word at which its logs here, which MLflow has too, are removed."""


class Terminated(TaskFailed):
    """A step's process was told to end, which this run did not do."""


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
        self._processes = StepProcesses()
        self._guard = Guard()
        self.failures: list[str] = []
        """Reasons of tasks that failed, each with the task's name; the run's listener has heard of those that began."""

    def execute(self, pipeline: ir.Pipeline, arguments: dict[str, Any]) -> bool:
        """Run the pipeline to its end.

        Args:
            pipeline: The compiled pipeline.
            arguments: Values of the pipeline's parameters.

        Returns:
            Whether every step that had to run succeeded.

        Raises:
            UsageError: It has a component that only a container engine can run, or a condition that nobody can read;
                nothing ran.
            ShopfloorError: The listener gave the run up (a service died).
            SupersededError: The same run was begun again elsewhere; nothing more is published or recorded.
            KeyboardInterrupt: Somebody stopped the run; its processes are gone.
        """
        check(pipeline)
        self._pipeline = pipeline
        workspace = self._run_dir / "workspace"
        constants = {
            "{{$.pipeline_job_name}}": f"{pipeline.name}-{self._run_dir.name}",
            "{{$.pipeline_job_resource_name}}": f"{pipeline.name}-{self._run_dir.name}",
            "{{$.pipeline_job_uuid}}": self._run_dir.name,
            "{{$.pipeline_root}}": str(self._run_dir / "steps"),
            "{{$.workspace_path}}": str(workspace),
        }
        workspace.mkdir(parents=True, exist_ok=True)
        try:
            walk = Walk(pipeline, self._run_step, self.stop, constants, PARALLEL)
            self.failures = walk.failures
            with self._guard:
                return walk.run(arguments)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)

    def stop(self) -> None:
        """End every process of the run: first asked, after some seconds made to."""
        self._processes.stop()

    def _run_step(self, step: Execution) -> Outputs:
        """Run one execution, or take its result from the store; the listener hears of both."""
        started = time.monotonic()
        log = self._run_dir / "logs" / f"{step.name}.log"
        component = self._pipeline.component(step.spec)
        executor = self._pipeline.executor(component)
        try:
            attempts.require_newest(self._settings)
            if executor.WhichOneof("spec") == "importer":
                outputs: Outputs = {"artifact": _imported(executor.importer, step.arguments)}
            else:
                key = self._key(step, component, executor)
                result = self._lookup(step, key)
                if result.outputs is not None:
                    seconds = time.monotonic() - started
                    self._listener.step_finished(
                        step.name, "cached", seconds, result.outputs, None, None, result.run_id
                    )
                    return result.outputs
                outputs = self._try(step, component, executor, log)
                attempts.require_newest(self._settings)
                if step.spec.caching_options.enable_cache:
                    self._results.put(key.key, key.parts, outputs, result)
                    self._results.used(step.task, key.key, key.parts)
        except TaskFailed as error:
            self._give_up_if_superseded()
            stopped = self._is_stopped(error)
            seconds, why = time.monotonic() - started, _STOPPED if stopped else error.failure
            self._listener.step_finished(step.name, "killed" if stopped else "failed", seconds, {}, log, why)
            raise
        self._listener.step_finished(step.name, "succeeded", time.monotonic() - started, outputs, log, None)
        return outputs

    def _give_up_if_superseded(self) -> None:
        """Record no failure of a run that another process has begun again: the record is that one's."""
        try:
            attempts.require_newest(self._settings)
        except attempts.SupersededError:
            raise
        except ShopfloorError as error:  # the step failed, which is more than that nobody can be asked
            logger.info("Nobody can say whether the run was begun again: %s", error)

    def _key(self, step: Execution, component: ir.Message, executor: ir.Message) -> StepKey:
        artifacts = {
            name: value if isinstance(value, list) else [value]
            for name, value in step.arguments.items()
            if name in component.input_definitions.artifacts
        }
        parameters = {name: value for name, value in step.arguments.items() if name not in artifacts}
        environment = ir.environment_of(executor)
        return component_key(self._settings, ir.command_of(executor), parameters, artifacts, environment)

    def _lookup(self, step: Execution, key: StepKey) -> Lookup:
        """Return what the store holds for a step that takes it."""
        if not step.spec.caching_options.enable_cache:
            return Lookup(None, "")
        if not self._use_cache or step.task in self._forced:
            return self._results.begun(key.key)
        result = self._results.get(key.key)
        if result.outputs is not None:
            self._results.used(step.task, key.key, key.parts)
        return result

    def _try(self, step: Execution, component: ir.Message, executor: ir.Message, log: Path) -> Outputs:
        """Run a step's process, again as often as the pipeline says."""
        policy = step.spec.retry_policy
        delay_s = policy.backoff_duration.seconds
        for attempt in range(policy.max_retry_count + 1):
            place = self._run_dir / "steps" / step.name / str(attempt)
            message = _executor_input(component, step.arguments, place)
            variables = {**_accelerators(executor), **ir.environment_of(executor), FAILURE_FILE: str(place / FAILURE)}
            code = self._run_process(step.name, _command(executor, message, component), variables, log)
            if code == 0:
                return _outputs(component, message)
            if self._processes.stopped.is_set() or attempt == policy.max_retry_count:
                break
            time.sleep(min(delay_s, policy.backoff_max_duration.seconds or 3600))
            delay_s *= policy.backoff_factor or 2
        raise (Terminated if code in _ASKED_TO_END else TaskFailed)(
            ray_cluster.explained(self._settings, read(place / FAILURE, code, log))
        )

    def _is_stopped(self, error: TaskFailed) -> bool:
        """Tell whether a step ended because its run is stopped: who stops a run may reach the step before the run."""
        return self._processes.stopped.wait(STOP_REACHES_ALL_S if isinstance(error, Terminated) else 0)

    def _run_process(self, step: str, command: list[str], variables: Mapping[str, str], log: Path) -> int:
        """Run one attempt of a step; its output goes to the end of its log."""
        log.parent.mkdir(parents=True, exist_ok=True)
        root = self._settings.project_root
        environment = {
            **os.environ,
            **self._settings.environment(),
            **variables,
            **self._listener.step_started(step),
            **self._guard.variables,
            "PYTHONPATH": os.pathsep.join([str(root), str(root / "platform")]),
            "PYTHONUNBUFFERED": "1",
        }
        # What a component wants installed goes to a place of the step's own, never into the project's environment.
        packages = self._run_dir / "packages" / step
        if any("pip install" in part for part in command):
            environment |= {
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
                "PIP_TARGET": str(packages),
                "PYTHONPATH": os.pathsep.join([str(packages), environment["PYTHONPATH"]]),
            }
        try:
            return self._processes.run(command, environment, root, log)
        finally:
            shutil.rmtree(packages, ignore_errors=True)


def remove_old(runs: Path) -> None:
    """Remove logs and small files of runs that said their last word long ago; artifacts, which have other uses, stay.

    Args:
        runs: Directory with one of each run.
    """
    for folder in runs.glob("*"):
        try:
            last = max(path.stat().st_mtime for path in (folder, *folder.glob("logs/*")))
        except OSError:  # another run removes the same
            continue
        if last > time.time() - KEPT_S:
            continue
        for place in folder.glob("steps/*/*"):
            if {path.name for path in place.glob("*")} <= {FAILURE, "executor_output.json"}:
                shutil.rmtree(place, ignore_errors=True)
        for part in ("logs", "published"):
            shutil.rmtree(folder / part, ignore_errors=True)
        for empty in (*folder.glob("steps/*"), folder / "steps", folder):
            with contextlib.suppress(OSError):
                empty.rmdir()


def check(pipeline: ir.Pipeline) -> None:
    """Refuse, before anything runs, a condition that nobody can read, and a container, which this machine does not run.

    Args:
        pipeline: The compiled pipeline.

    Raises:
        UsageError: It says which of both.
    """
    from kfp.local import config, subprocess_task_handler

    for name, task in pipeline.tasks():
        if task.trigger_policy.condition:
            try:
                conditions.parse(task.trigger_policy.condition)
            except conditions.ConditionError as error:
                raise UsageError(
                    f"Nobody can read the {error} of task {name!r}.",
                    "KFP's compiler escapes nothing in a condition: compare with a text without ' and \\.",
                ) from error
    for name, executor in pipeline.executors.items():
        try:
            if executor.HasField("container"):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of images that mean nothing on this machine
                    subprocess_task_handler.SubprocessTaskHandler(
                        executor.container.image, ir.command_of(executor), "", config.SubprocessRunner(use_venv=False)
                    )
        except RuntimeError as error:
            raise UsageError(
                f"Component {name.removeprefix('exec-')!r} is a container, which the local engine does not run.",
                "Submit it with --engine argo or kfp, or make it a Python component.",
            ) from error


def _executor_input(component: Any, arguments: Mapping[str, Any], place: Path) -> Any:
    """Return KFP's `ExecutorInput` of one try, whose outputs lie in `place`.

    Raises:
        TaskFailed: An input has neither a value nor a default.
    """
    from kfp.local import executor_input_utils

    declared = component.input_definitions
    present = {name: value for name, value in arguments.items() if value is not None}
    for kind in (declared.parameters, declared.artifacts):
        missing = [name for name, input_ in kind.items() if name not in present and not input_.is_optional]
        if missing:
            raise TaskFailed(f"No step before it gave {', '.join(missing)}.")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    objects = _to_kfp({name: value for name, value in present.items() if name in declared.artifacts})
    message = executor_input_utils.construct_executor_input(
        component_spec=component, arguments={**present, **objects}, task_root=str(place), block_input_artifact=False
    )
    for name in set(message.inputs.parameter_values) - set(present):
        del message.inputs.parameter_values[name]
    return message


def _accelerators(executor: ir.Message) -> dict[str, str]:
    """Return the variable that hides this machine's GPUs from a step that asks for none, as on a cluster.

    What is built for CUDA takes half a GiB of the memory of each GPU that it sees, in each process.
    """
    return {} if executor.container.resources.HasField("accelerator") else {"CUDA_VISIBLE_DEVICES": ""}


def _command(executor: ir.Message, message: Any, component: ir.Message) -> list[str]:
    """Return the command of a Python component with its input filled in."""
    from kfp.local import executor_input_utils, subprocess_task_handler

    content = executor_input_utils.executor_input_to_dict(message, component)
    values = content.get("inputs", {}).get("parameterValues", {})
    for name, value in values.items():
        values[name] = plain(value) if isinstance(value, list | dict) else value
    command = subprocess_task_handler.replace_python_executable(telling(ir.command_of(executor)), sys.executable)
    return [json.dumps(content) if part == "{{$}}" else part for part in command]


def _outputs(component: Any, message: Any) -> Outputs:
    """Return what a step's process left.

    Raises:
        TaskFailed: It is not what the component declares.
    """
    from google.protobuf import json_format
    from kfp.local import executor_output_utils

    try:
        outputs = executor_output_utils.get_outputs_for_task(executor_input=message, component_spec=component)
    except (ValueError, json_format.ParseError) as error:
        raise TaskFailed(f"Its outputs are not what it declares: {error}") from error
    return _from_kfp(outputs)


def _imported(importer: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the artifact that an importer stands for."""
    from google.protobuf import json_format

    uri = importer.artifact_uri
    constant = uri.WhichOneof("value") == "constant"
    return {
        "name": "artifact",
        "uri": uri.constant.string_value if constant else arguments[uri.runtime_parameter],
        "metadata": filled(json_format.MessageToDict(importer.metadata), arguments, {}),
        "type": {
            "schemaTitle": importer.type_schema.schema_title,
            "schemaVersion": importer.type_schema.schema_version,
        },
    }


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
