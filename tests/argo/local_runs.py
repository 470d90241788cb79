"""Runs a pipeline through `kfp.local` and tells what each step did.

kfp.local deviates from what KFP documents in the places listed in `CORRECTIONS`. They are put right for the time of a
run: what is compared is the meaning of a pipeline, not the faults of one engine.
"""

import contextlib
import copy
import inspect
import itertools
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.argo.pods import PROJECT
from tests.argo.steps import Artifact, Outcome, Step, content

CORRECTIONS = (
    "A task waits only for the tasks that it names, not for those whose outputs it takes.",
    "Tasks that share a component share a directory: a later one overwrites the artifacts of an earlier one.",
    "In a loop, whatever input comes from a task's output is replaced by the item.",
    "A condition finds only outputs that are called Output, and not what its task is given.",
    "A nested pipeline that is given artifacts and no parameters gets nothing.",
    "Whole numbers in lists and dicts become floats.",
    "The subprocess runner refuses container components, makes no directory for their outputs, loses their artifacts.",
    "An output that is one of several artifacts is refused.",
    "An optional input artifact of the pipeline that is not given is an error.",
    "The wait between attempts is waited for.",
)


def run(
    ir: dict[str, Any], arguments: dict[str, Any], place: Path, environment: dict[str, str] | None = None
) -> Outcome:
    """Run a pipeline.

    Args:
        ir: KFP's `PipelineSpec` as JSON.
        arguments: Values of its parameters.
        place: Empty directory for what it leaves.
        environment: Variables of every step.
    """
    from google.protobuf import json_format
    from kfp import local
    from kfp.local import pipeline_orchestrator
    from kfp.pipeline_spec import pipeline_spec_pb2

    spec = json_format.ParseDict(_waiting(ir), pipeline_spec_pb2.PipelineSpec())
    absent = dict.fromkeys(ir["root"].get("inputDefinitions", {}).get("artifacts", {}))
    (place / "tmp").mkdir(parents=True)
    (place / "work").mkdir()
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(place / "steps"),
        workspace_root=str(place / "workspace"),
        raise_on_error=True,
        enable_caching=False,
    )
    recorder = _Recorder(place, environment or {})
    outcome = Outcome(True, recorder.steps, {})
    with warnings.catch_warnings(), _installed(recorder, _sources(ir)):
        warnings.simplefilter("ignore")
        # kfp.local prints what its steps print.
        with (place / "kfp.log").open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            try:
                outputs = pipeline_orchestrator.run_local_pipeline(pipeline_spec=spec, arguments=absent | arguments)
                outcome.outputs = {name: _plain(value) for name, value in outputs.items()}
            except RuntimeError as error:
                if "finished with status" not in str(error):
                    raise
                outcome.succeeded = False
    outcome.logs = (place / "log").read_text(errors="replace") if (place / "log").exists() else ""
    return outcome


def _waiting(ir: dict[str, Any]) -> dict[str, Any]:
    """Return a pipeline in which every task names those whose outputs it takes."""
    pipeline = copy.deepcopy(ir)
    for component in [pipeline["root"], *pipeline["components"].values()]:
        for task in component.get("dag", {}).get("tasks", {}).values():
            inputs = [item for kind in task.get("inputs", {}).values() for item in kind.values()]
            sources = [item[key]["producerTask"] for item in inputs for key in item if key.startswith("taskOutput")]
            if sources:
                task["dependentTasks"] = sorted({*task.get("dependentTasks", []), *sources})
    return pipeline


def _sources(ir: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the task and the output from which each input of a group of tasks comes, by the input's name."""
    return {
        name: (origin["taskOutputParameter"]["producerTask"], origin["taskOutputParameter"]["outputParameterKey"])
        for component in [ir["root"], *ir["components"].values()]
        for task in component.get("dag", {}).get("tasks", {}).values()
        for name, origin in task.get("inputs", {}).get("parameters", {}).items()
        if name.startswith("pipelinechannel--") and "taskOutputParameter" in origin
    }


class _Recorder:
    def __init__(self, place: Path, environment: dict[str, str]) -> None:
        self.place = place
        self.environment = environment
        self.steps: dict[tuple[str, ...], Step] = {}
        self.here = threading.local()
        self.numbers = itertools.count()

    def task(self, execute: Any, **kwargs: Any) -> Any:
        """Stand in for `execute_task`: remember where in the pipeline this thread is."""
        before = getattr(self.here, "path", ())
        self.here.path = (*kwargs["io_store"].path, kwargs["task_name"])
        try:
            return execute(**kwargs)
        finally:
            self.here.path = before

    def single(self, execute: Any, **kwargs: Any) -> Any:
        """Stand in for `execute_single_task`: keep what a step gave, before anything can overwrite it."""
        from kfp.local import status

        outputs, outcome = execute(**kwargs)
        path = (*kwargs["io_store"].path, kwargs["task_name"])
        succeeded = outcome == status.Status.SUCCESS
        self.steps[path] = Step(succeeded, {name: _plain(value) for name, value in outputs.items()})
        return outputs, outcome

    def process(self, full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        """Stand in for `run_local_subprocess`: the same process, with nothing of this one's environment."""
        environment = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "platform")]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(self.place / "work"),
            "TMPDIR": str(self.place / "tmp"),
            "LANG": "C.UTF-8",
            **self.environment,
            **(env_vars or {}),
        }
        with (self.place / "log").open("ab") as log:
            return subprocess.run(
                full_command,
                env=environment,
                cwd=self.place / "work",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode


@contextlib.contextmanager
def _installed(recorder: _Recorder, sources: dict[str, tuple[str, str]]) -> Iterator[None]:
    from kfp.local import executor_input_utils, executor_output_utils, io, logging_utils, subprocess_task_handler
    from kfp.local.orchestrator import enhanced_dag_orchestrator, orchestrator_utils, task_executor, task_spec_utils

    class Store(io.IOStore):  # type: ignore[misc]
        def __init__(self, parent: Any = None) -> None:
            super().__init__(parent)
            self.path = getattr(recorder.here, "path", ())

    execute, single = enhanced_dag_orchestrator.execute_task, task_executor.execute_single_task
    iteration = task_spec_utils.create_parameter_loop_iteration_task_spec
    root, executor_input = executor_input_utils.construct_local_task_root, executor_input_utils.construct_executor_input
    as_dict, outputs = executor_input_utils.executor_input_to_dict, executor_output_utils.get_outputs_for_task

    nested = task_spec_utils.build_nested_dag_arguments
    resolve = enhanced_dag_orchestrator.ConditionEvaluator._resolve_pipeline_channel

    def own_root(**kwargs: Any) -> str:
        return f"{root(**kwargs)}-{next(recorder.numbers)}"

    def with_directories(**kwargs: Any) -> Any:
        message = executor_input(**kwargs)
        Path(message.outputs.output_file).parent.mkdir(parents=True, exist_ok=True)
        return message

    def with_its_inputs(original_task_spec: Any, loop_item: Any, loop_task_name: str) -> Any:
        iteration_spec = iteration(original_task_spec, loop_item, loop_task_name)
        for name, origin in original_task_spec.inputs.parameters.items():
            if origin.HasField("task_output_parameter"):
                iteration_spec.inputs.parameters[name].CopyFrom(origin)
        return iteration_spec

    def with_whole_numbers(executor_input: Any, component_spec: Any) -> dict[str, Any]:
        document: dict[str, Any] = as_dict(executor_input, component_spec)
        values = document.get("inputs", {}).get("parameterValues", {})
        for name, value in values.items():
            values[name] = _whole(value) if isinstance(value, list | dict) else value
        return document

    def with_artifacts(executor_input: Any, component_spec: Any) -> dict[str, Any]:
        results: dict[str, Any] = outputs(executor_input, component_spec)
        for name, artifacts in executor_input.outputs.artifacts.items():
            if name not in results:
                results[name] = executor_output_utils.artifact_list_to_dsl_artifact(artifacts, False)
        return results

    def one_of(dag_outputs_spec: Any, io_store: Any) -> dict[str, Any]:
        artifacts: dict[str, Any] = {}
        for name, output in dag_outputs_spec.artifacts.items():
            for selector in output.artifact_selectors:
                with contextlib.suppress(ValueError):
                    artifacts[name] = io_store.get_task_output(selector.producer_subtask, selector.output_artifact_key)
                    break
            else:
                raise ValueError(f"None of the tasks that may give {name!r} did.")
        return artifacts

    def channel(channel_ref: str, io_store: Any) -> Any:
        if channel_ref in sources:
            with contextlib.suppress(ValueError):
                return io_store.get_task_output(*sources[channel_ref])
        with contextlib.suppress(ValueError):
            return io_store.get_parent_input(channel_ref)
        return resolve(channel_ref, io_store)

    def with_its_artifacts(task_name: str, task_spec: Any, component_spec: Any, io_store: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = nested(task_name, task_spec, component_spec, io_store)
        if task_spec.inputs.artifacts and not task_spec.inputs.parameters:
            arguments |= orchestrator_utils.OrchestratorUtils.make_task_arguments(task_spec.inputs, io_store)
        return arguments

    class NoWait:
        @staticmethod
        def sleep(_seconds: float) -> None:
            return

    handler = subprocess_task_handler.SubprocessTaskHandler
    replacements: list[tuple[Any, str, Any]] = [
        (io, "IOStore", Store),
        (enhanced_dag_orchestrator.ConditionEvaluator, "_resolve_pipeline_channel", staticmethod(channel)),
        (enhanced_dag_orchestrator, "execute_task", lambda **kwargs: recorder.task(execute, **kwargs)),
        (task_executor, "execute_single_task", lambda **kwargs: recorder.single(single, **kwargs)),
        (task_executor, "time", NoWait),
        # It replaces `print` for all threads, and two loops leave it replaced.
        (logging_utils, "indented_print", contextlib.nullcontext),
        (subprocess_task_handler, "run_local_subprocess", recorder.process),
        (handler, "validate_not_container_component", lambda self, full_command: None),
        (executor_input_utils, "construct_local_task_root", own_root),
        (executor_input_utils, "construct_executor_input", with_directories),
        (executor_input_utils, "executor_input_to_dict", with_whole_numbers),
        (executor_output_utils, "get_outputs_for_task", with_artifacts),
        (orchestrator_utils.OrchestratorUtils, "get_dag_output_artifacts", one_of),
        (task_spec_utils, "build_nested_dag_arguments", with_its_artifacts),
        (task_spec_utils, "create_parameter_loop_iteration_task_spec", with_its_inputs),
    ]
    originals = [(holder, name, inspect.getattr_static(holder, name)) for holder, name, _ in replacements]
    for holder, name, replacement in replacements:
        setattr(holder, name, replacement)
    try:
        yield
    finally:
        for holder, name, original in originals:
            setattr(holder, name, original)


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain(value: Any) -> Any:
    from kfp import dsl

    if isinstance(value, dsl.Artifact):
        return Artifact(value.name, value.schema_title, dict(value.metadata), content(Path(value.path)))
    return [_plain(item) for item in value] if isinstance(value, list) else value
