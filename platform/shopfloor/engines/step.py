"""One step of a run on a cluster, in the platform image: the content key, the result store and MLflow around it.

The launcher calls `run` in place of the component. A result that any engine has kept under the step's key is taken
without running; what runs is kept and recorded as a child of the run's MLflow run. A store or a server that fails ends
the step with one line: a result is never lost in silence.

A step that did something to the world (it registered a version, moved an alias) always runs: whether that still holds
can be asked only where the registry and the serving are known.

Each pod is an attempt: one that Argo has given up, and that goes on nevertheless, ends without keeping or recording
anything once its successor has begun. Kubeflow Pipelines does not say which pods are attempts at the same thing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shopfloor import attempts
from shopfloor.engines.base import KFP_RUN, engine_url
from shopfloor.engines.failures import read
from shopfloor.errors import FAILURE_FILE, Failure, ServiceError, ShopfloorError
from shopfloor.pipeline.keys import component_key
from shopfloor.pipeline.results import Outputs, ResultStore, artifacts_of
from shopfloor.settings import Settings, load_settings
from shopfloor.storage import is_remote
from shopfloor.training import admission
from shopfloor.training import cluster as ray_cluster

LOG = "step.log"
"""Beside the executor's output: what the component prints."""
NODE = "SHOPFLOOR_NODE"
"""Variable with the name of the pod's node in its workflow; of one that is tried again `(1)` and so on at its end."""
_RETRY = re.compile(r"\(\d+\)$")


def run(task: dict[str, Any], executor_input: dict[str, Any], execute: Callable[[], int]) -> int:
    """Run one step, or take its result from the store.

    Args:
        task: The launcher's static task.
        executor_input: KFP's `ExecutorInput`; its output file stands after this call when the step succeeded.
        execute: Runs the component.

    Returns:
        The exit code: the component's own, 0 for a result from the store, 1 where a service failed.
    """
    step: _Step | None = None
    try:
        step = _Step(load_settings(), task, executor_input)
        return step.run(execute)
    except ShopfloorError as error:
        sys.stderr.write(f"{error}\n")
        if step is not None:
            step.fail(error)
        return 1


@dataclass
class _Account:
    """What became of a step's account."""

    spent: admission.BudgetSpentError | None = None
    """Says that the run has cost what it may."""


class _Step:
    def __init__(self, settings: Settings, task: dict[str, Any], executor_input: dict[str, Any]) -> None:
        self._settings = settings
        self._task = task
        self._input = executor_input
        self._name = os.environ.get("SHOPFLOOR_STEP", "step")
        self._output_file = Path(executor_input["outputs"]["outputFile"])
        self._client: Any = None
        self._run_id = ""
        self._started = time.monotonic()

    def run(self, execute: Callable[[], int]) -> int:
        """Look the result up, else execute; record either."""
        key = component_key(
            self._settings,
            self._task["command"],
            self._input["inputs"]["parameterValues"],
            {name: value["artifacts"] for name, value in self._input["inputs"]["artifacts"].items()},
            self._task["environment"],
        )
        self._begin()
        store = ResultStore(self._settings, effect_holds=lambda effect: False)
        look = store.get if self._task["cache"] else store.begun
        result = self._stored(lambda: look(key.key))
        if result.outputs is not None:
            self._output_file.write_text(json.dumps(_as_executor_output(self._task, result.outputs)), encoding="utf-8")
            self._end("cached", time.monotonic() - self._started, result.outputs, result_of=result.run_id)
            return 0
        failure_file = self._output_file.parent / "failure.json"
        failure_file.unlink(missing_ok=True)
        os.environ[FAILURE_FILE] = str(failure_file)
        with self._accounted() as account:
            code = execute()
        if account.spent is not None:
            self._end("failed", time.monotonic() - self._started, {}, Failure.of(account.spent))
            sys.stderr.write(f"{account.spent}\n")
            return 1  # and not what a program ends with that is asked to: Argo would try that again
        if code != 0:
            why = ray_cluster.explained(self._settings, read(failure_file, code, self._output_file.parent / LOG))
            self._end("failed", time.monotonic() - self._started, {}, why)
            return code
        outputs = self._outputs()
        self._stored(lambda: attempts.require_newest(self._settings))
        # What lies only in this pod is of no use to another run; Argo keeps it for this one.
        if all(is_remote(item["uri"]) or not Path(item["uri"]).exists() for item in artifacts_of(outputs)):
            self._stored(lambda: store.put(key.key, key.parts, outputs, result))
            self._stored(lambda: store.used(self._name, key.key, key.parts))
        self._end("succeeded", time.monotonic() - self._started, outputs)
        return 0

    @contextlib.contextmanager
    def _accounted(self) -> Iterator[_Account]:
        """Write down within the block what the step's pod has of the quota; end a step that costs too much."""
        account = _Account()
        pod, queue = os.environ.get("SHOPFLOOR_POD_UID", ""), self._settings.cluster.queue
        if not (pod and queue and self._run_id and "KUBERNETES_SERVICE_HOST" in os.environ):
            yield account
            return
        settings = self._settings.model_copy(update={"step_run_id": self._run_id})
        ledger = admission.of_pod(settings, pod)
        over = threading.Event()

        def watch() -> None:
            while not over.wait(admission.LOOK_EVERY_S):
                try:
                    ledger.write()
                except admission.BudgetSpentError as error:
                    account.spent = error
                    os.kill(os.getpid(), signal.SIGTERM)  # the launcher hands it on to the component
                    return

        thread = threading.Thread(target=watch, name="account", daemon=True)
        thread.start()
        try:
            yield account
        finally:
            over.set()
            thread.join()
            with contextlib.suppress(admission.BudgetSpentError):
                ledger.write()

    def fail(self, error: ShopfloorError) -> None:
        """Record, where that can be done, that a service failed the step."""
        with contextlib.suppress(ShopfloorError):
            self._end("failed", time.monotonic() - self._started, {}, Failure.of(error))

    def _outputs(self) -> Outputs:
        """Return what the component made, in the form of the result store."""
        output: dict[str, Any] = {}
        if self._output_file.is_file():
            output = json.loads(self._output_file.read_text(encoding="utf-8"))
        outputs: Outputs = dict(output.get("parameterValues", {}))
        for name, kind in self._task["outputs"]["parameters"].items():
            file = Path(self._input["outputs"]["parameters"][name]["outputFile"])
            if file.is_file():
                text = file.read_text(encoding="utf-8")
                outputs[name] = text if kind == "STRING" else json.loads(text)
        for name, kind in self._task["outputs"]["artifacts"].items():
            declared = self._input["outputs"]["artifacts"][name]["artifacts"][0]
            own: dict[str, Any] = next(iter(output.get("artifacts", {}).get(name, {}).get("artifacts", [])), {})
            artifact = {**declared, **own}
            outputs[name] = {key: artifact[key] for key in ("name", "uri", "metadata")} | {"type": kind}
        return outputs

    def _stored(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except ShopfloorError:
            raise
        except Exception as error:  # whatever the client of the store raises
            raise ServiceError(
                f"The result store in {self._settings.artifact_root} failed: {type(error).__name__}: {error}",
                "Check its address and its credentials, then resume the run.",
            ) from error

    def _begin(self) -> None:
        if self._settings.run_id is None:
            self._claim(os.environ.get("SHOPFLOOR_WORKFLOW", ""))
            return
        from shopfloor.runs import index
        from shopfloor.runs import recorder as tracking

        self._client = tracking.connect(self._settings)
        with tracking.answering(self._settings):
            run_id = self._settings.run_id
            if index.is_scheduled(run_id):
                run_id = self._scheduled_run(run_id)
                self._settings = self._settings.model_copy(update={"run_id": run_id})
                os.environ["SHOPFLOOR_RUN_ID"] = run_id
            experiment = self._client.get_run(run_id).info.experiment_id
            attempt = self._claim(run_id)
            self._run_id = tracking.create_step(self._client, experiment, run_id, self._name, attempt=attempt)
        os.environ["SHOPFLOOR_STEP_RUN_ID"] = self._run_id

    def _claim(self, run: str) -> str:
        """Supersede the earlier pods of a workflow's node, and return the attempt; empty where nobody knows it."""
        node = _RETRY.sub("", os.environ.get(NODE, ""))
        if not node or not run:
            return ""
        # Tasks of a loop have one name.
        place = f"{run}/{self._name}-{hashlib.sha256(node.encode()).hexdigest()[:10]}"
        pod = f"pod {os.environ.get('SHOPFLOOR_POD', '') or socket.gethostname()}"
        attempt = str(self._stored(lambda: attempts.claim(self._settings, place, pod)))
        self._settings = self._settings.model_copy(update={"attempt": attempt})
        os.environ["SHOPFLOOR_ATTEMPT"] = attempt
        return attempt

    def _scheduled_run(self, marker: str) -> str:
        """Return the MLflow run of this run of a schedule, for which nobody made one before it began."""
        from shopfloor.runs import index

        use_case = self._input["inputs"]["parameterValues"].get("use_case")
        engine, engine_run = "kfp", os.environ.get(KFP_RUN, "")
        if not engine_run:
            engine, engine_run = "argo", f"{self._settings.cluster.namespace}/{os.environ['SHOPFLOOR_WORKFLOW']}"
        tags = {index.ENGINE: engine, index.ENGINE_URL: engine_url(self._settings, engine)}
        return index.scheduled_run(self._client, self._settings, marker, use_case, tags, engine_run)

    def _end(
        self, state: str, seconds: float, outputs: Outputs, why: Failure | None = None, result_of: str = ""
    ) -> None:
        if not self._run_id or self._settings.run_id is None:
            return
        from shopfloor.runs import conclude
        from shopfloor.runs import index as run_records
        from shopfloor.runs import recorder as tracking

        tags = run_records.failure_tags(why) if why else {run_records.RESULT_OF: result_of}
        log = self._output_file.parent / LOG
        with tracking.answering(self._settings):
            tracking.finish_step(
                self._client, self._settings.run_id, self._run_id, self._name, state, seconds, outputs, log, tags
            )
            conclude.attach_records(self._settings, self._client, self._run_id, outputs, self._settings.run_id)


def _as_executor_output(task: dict[str, Any], outputs: Outputs) -> dict[str, Any]:
    names = task["outputs"]["artifacts"]
    return {
        "parameterValues": {name: value for name, value in outputs.items() if name not in names},
        "artifacts": {
            name: {"artifacts": [{key: outputs[name][key] for key in ("name", "uri", "metadata")}]}
            for name in names
            if name in outputs
        },
    }
