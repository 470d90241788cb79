"""Runs a RayJob from the step that asks for it: creates it, waits, hands on its log, keeps the logs of its pods.

Whatever becomes of the step, the job goes: deleted by the step when that ends or is cancelled, by Kubernetes with the
step's pod, by the next attempt at the step where neither happened. The Kubernetes API may be away for minutes.
"""

from __future__ import annotations

import contextlib
import logging
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shopfloor.errors import ServiceError, ShopfloorError, UsageError, first_line
from shopfloor.runs.mlflow import JOB_USAGE, connect
from shopfloor.settings import Settings
from shopfloor.storage import scratch
from shopfloor.training import admission
from shopfloor.training.admission import missing, refusal
from shopfloor.training.rayjob import GROUP, PLURAL, VERSION, Workers, attempt_number, body

logger = logging.getLogger(__name__)

POLL_S = 3.0
PATIENCE_S = 300.0
"""How long the Kubernetes API may fail, one question after another, before the step does: an API server restarts."""
END_S = 10.0
"""The same, for all logs together and then for the deletion, when the step ends: a pod that is to end has 30 s."""
LONGEST_PAUSE_S = 30.0
LOG_LINES = 20_000
"""Lines that are kept of each pod's log, the last ones."""
LOGS = "rayjob"
"""Folder of the step's run in MLflow that gets the logs."""
EARLIER = 5
"""Attempts before this one whose jobs are looked for."""
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})


def run(settings: Settings, names: Callable[[int], str], entrypoint: str, workers: Workers) -> None:
    """Run a command as a RayJob and wait for its end; its log is printed as it comes.

    What its pods have logged is kept with the step's run in MLflow, however the job ended; then it is deleted.

    Args:
        settings: See `body`; their attempt says which of the names is this one's.
        names: Gives the job's name for the number of an attempt, see `job_name`.
        entrypoint: The command.
        workers: What it takes.

    Raises:
        ServiceError: The Kubernetes API does not answer or refuses.
        ShopfloorError: The job failed.
        BudgetSpentError: The run has cost what it may; the job is deleted, its checkpoints stay.
        KeyboardInterrupt: The step was cancelled; the job is deleted.
    """
    number = attempt_number(settings)
    jobs = _Jobs(settings, names(number))
    with _cancellable():
        for earlier in range(max(1, number - EARLIER), number):
            _Jobs(settings, names(earlier)).make_way()
        try:
            jobs.create(body(settings, names(number), entrypoint, workers))
            jobs.wait()
        finally:
            jobs.end()


class _Jobs:
    """One RayJob, by the Kubernetes API."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._namespace = settings.cluster.namespace
        self._printed = 0
        self._uid = ""
        self._ledger = admission.Ledger(settings, JOB_USAGE, self._workloads)
        self._looked_s = time.monotonic()
        self._is_there = False
        self._until: float | None = None
        self._custom, self._core = admission.apis()

    def create(self, job: dict[str, Any]) -> None:
        """Create the job, or go on with one of the name that has not failed: the answer of its creation was lost."""
        while not self._created(job):
            status = self._status()
            if status is not None and not _has_failed(status):
                self._say("is there already: going on with it.")
                return
            if status is not None:
                self._say(f"failed before, and makes way: {self._in_words(status)}")
                self.delete()
            while self._status() is not None:  # its pods go before it
                time.sleep(POLL_S)
        self._say("is created.")

    def make_way(self) -> None:
        """Delete the job of an earlier attempt that nobody has ended; its GPUs are for this one."""
        if self._status() is not None:
            self._say("is an earlier attempt's, and makes way.")
            self.delete()

    def _created(self, job: dict[str, Any]) -> bool:
        """Create the job; `False` where one of the name is there."""

        def create() -> bool:
            self._custom.create_namespaced_custom_object(GROUP, VERSION, self._namespace, PLURAL, job, **self._limit())
            return True

        self._is_there = True  # also where it is interrupted
        try:
            # A creation whose answer was lost is found by its name when it is tried again.
            return bool(self._patiently("create rayjobs", create, {409: False}))
        except ShopfloorError:
            self._is_there = False
            raise

    def wait(self) -> None:
        """Return when the job has succeeded.

        Raises:
            ShopfloorError: It failed, or somebody deleted it.
        """
        before = ""
        while True:
            status = self._status()
            if status is None:
                raise ShopfloorError(
                    f"RayJob {self._namespace}/{self._name} was deleted.", "Submit again to begin a new one."
                )
            words = self._in_words(status)
            if not status.get("jobStatus") and not status["suspended"]:
                words += self._held_up(status)
            if words != before:
                self._say(words, ": ")
                before = words
            self._hand_on_log()
            succeeded = status.get("jobStatus") == "SUCCEEDED" or status.get("jobDeploymentStatus") == "Complete"
            if succeeded or _has_failed(status):
                with contextlib.suppress(admission.BudgetSpentError):
                    self._account(last=True)
            if succeeded:
                return
            self._account()
            if _has_failed(status):
                raise ShopfloorError(
                    f"RayJob {self._namespace}/{self._name} failed: {words}",
                    f"Its log stands above, those of its pods are with the step's run in MLflow, in {LOGS}/.",
                )
            time.sleep(POLL_S)

    def delete(self) -> None:
        """Delete the job and all that it made; says so where it cannot."""
        if self._is_there:  # what an earlier attempt's had is that one's
            with contextlib.suppress(admission.BudgetSpentError):
                self._account(last=True)

        def delete() -> bool:
            self._custom.delete_namespaced_custom_object(
                GROUP, VERSION, self._namespace, PLURAL, self._name, **self._limit()
            )
            return True

        try:
            if self._patiently("delete rayjobs", delete, {404: False}):
                self._say("is deleted.")
        except ShopfloorError as error:
            self._say(f"was not deleted: {error.message}")

    def end(self) -> None:
        """Keep the job's logs and delete it, where there is one; a warning says what is not kept.

        The logs are read first and sent last: who is asked to end has 30 s, and the job must not stay.
        """
        if not self._is_there:
            return
        self._until = time.monotonic() + END_S
        with scratch() as directory:
            try:
                self._write_logs(directory)
            except Exception as error:  # of the Kubernetes API, of the disk; the job's own end counts
                self._warn(error)
            self._until = time.monotonic() + END_S
            self.delete()
            try:
                if self._settings.step_run_id and any(directory.iterdir()):
                    connect(self._settings).log_artifacts(self._settings.step_run_id, str(directory), LOGS)
                    self._say(f"has left its logs with the step's run in MLflow: {LOGS}/.")
            except Exception as error:  # whatever MLflow's client raises
                self._warn(error)

    def _warn(self, error: Exception) -> None:
        logger.warning("The logs of RayJob %s are not kept: %s", self._name, first_line(error, 200))

    def _write_logs(self, directory: Path) -> None:
        """Write the log of each pod: of the submitter, which has the driver's, and of the cluster's."""
        for selector in self._selectors(self._status() or {}):
            for pod in self._pods(selector):
                name = pod.metadata.name
                kind = (pod.metadata.labels or {}).get("ray.io/node-type", "driver")
                text = self._log(name, tail_lines=LOG_LINES)
                if text:
                    (directory / f"{kind}-{name}.log").write_text(text, encoding="utf-8")

    def _selectors(self, status: dict[str, Any]) -> list[str]:
        """Return how the job's pods are found: the submitter, and those of its cluster."""
        cluster = status.get("rayClusterName")
        return [f"job-name={self._name}", *([f"ray.io/cluster={cluster}"] if cluster else [])]

    def _held_up(self, status: dict[str, Any]) -> str:
        """Say which pod keeps an admitted job from its work: no node takes it, or its image cannot be pulled."""
        with contextlib.suppress(Exception):  # who cannot be asked now is asked for the logs later
            for selector in self._selectors(status):
                found = self._core.list_namespaced_pod(self._namespace, label_selector=selector, **self._limit())
                for pod in found.items:
                    for condition in pod.status.conditions or []:
                        if (condition.type, condition.reason) == ("PodScheduled", "Unschedulable"):
                            return f"; no node takes pod {pod.metadata.name}: {condition.message}"
                    for container in pod.status.container_statuses or []:
                        waits = container.state and container.state.waiting
                        if waits and waits.reason not in (None, "ContainerCreating", "PodInitializing"):
                            return f"; pod {pod.metadata.name} waits: {waits.reason}: {waits.message or ''}"
        return ""

    def _pods(self, selector: str) -> list[Any]:
        def ask() -> Any:
            return self._core.list_namespaced_pod(self._namespace, label_selector=selector, **self._limit()).items

        pods: list[Any] = self._patiently("list pods", ask, {})
        return pods

    def _log(self, pod: str, **more: Any) -> str:
        """Return what a pod has logged; nothing of one that has not begun or is gone."""

        def ask() -> Any:
            return self._core.read_namespaced_pod_log(pod, self._namespace, **self._limit(), **more)

        return str(self._patiently("get pods/log", ask, {400: "", 404: ""}) or "")

    def _account(self, last: bool = False) -> None:
        """Write down what the job has had: at times, and at its end.

        Raises:
            BudgetSpentError: The run has cost what it may.
        """
        if self._settings.cluster.queue and (last or time.monotonic() - self._looked_s > admission.LOOK_EVERY_S):
            self._looked_s = time.monotonic()
            self._ledger.write()

    def _workloads(self) -> list[dict[str, Any]]:
        return admission.workloads_of(self._custom, self._namespace, self._uid, self._settings.request_timeout_s)

    def _say(self, text: str, between: str = " ") -> None:
        print(f"RayJob {self._namespace}/{self._name}{between}{text}", flush=True)  # noqa: T201  the step's log

    def _status(self) -> dict[str, Any] | None:
        """Return the job's status, `None` where there is no such job."""

        def get() -> Any:
            return self._custom.get_namespaced_custom_object(
                GROUP, VERSION, self._namespace, PLURAL, self._name, **self._limit()
            )

        job = self._patiently("get rayjobs", get, {404: None})
        if job is None:
            return None
        status: dict[str, Any] = job.get("status") or {}
        self._uid = str((job.get("metadata") or {}).get("uid", ""))
        return status | {"suspended": bool((job.get("spec") or {}).get("suspend"))}

    def _patiently(self, verb: str, ask: Callable[[], Any], answers: dict[int, Any]) -> Any:
        """Return what the API answers, asked again while it is silent or fails; `answers` are those to a status."""
        from kubernetes.client import ApiException

        deadline, pause_s = self._until or time.monotonic() + PATIENCE_S, POLL_S
        while True:
            try:
                return ask()
            except ApiException as error:
                if error.status in answers:
                    return answers[error.status]
                failure = self._refused(error, verb)
                if error.status not in _AGAIN or time.monotonic() > deadline:
                    raise failure from error
            except Exception as error:
                failure = self._silent(error)
                if time.monotonic() > deadline:
                    raise failure from error
            self._say(f"waits: {failure.message}", ": ")
            time.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311  not all steps at once
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _in_words(self, status: dict[str, Any]) -> str:
        if status["suspended"]:
            return f"waits for the queue {self._settings.cluster.queue} (kubectl get workloads -n {self._namespace})"
        parts = [
            status.get("jobDeploymentStatus"),
            status.get("jobStatus"),
            status.get("reason"),
            status.get("message"),
        ]
        return " ".join(dict.fromkeys(str(part) for part in parts if part)) or "created"

    def _hand_on_log(self) -> None:
        """Print what the submitter has logged since the last look; a log that cannot be read is no failure."""
        with contextlib.suppress(Exception):
            pods = self._core.list_namespaced_pod(
                self._namespace, label_selector=f"job-name={self._name}", **self._limit()
            )
            for pod in pods.items[:1]:
                text = self._core.read_namespaced_pod_log(pod.metadata.name, self._namespace, **self._limit())
                lines = (text or "").splitlines()
                for line in lines[self._printed :]:
                    print(line, flush=True)  # noqa: T201
                self._printed = max(self._printed, len(lines))

    def _limit(self) -> dict[str, float]:
        longest_s = self._settings.request_timeout_s
        return {"_request_timeout": longest_s if self._until is None else min(longest_s, END_S / 2)}

    def _refused(self, error: Any, verb: str) -> ShopfloorError:
        message = refusal(error.body)
        if error.status == 404:
            return missing("ray.io")
        if error.status == 401:
            return ServiceError("The Kubernetes API refuses the token.", "Renew the service account's token.")
        if error.status == 403:
            return ServiceError(
                f"No right to {verb} in the namespace {self._namespace}: {message}",
                f"Give the service account {self._settings.cluster.service_account} the rights of a step: "
                "docs/reference/engines.md.",
            )
        if error.status in {400, 422}:
            return UsageError(f"The cluster refuses the RayJob: {message}", "Mend the profile or search.workers.")
        return ServiceError(f"The Kubernetes API failed with status {error.status}: {message}", "Try again.")

    def _silent(self, error: Exception) -> ServiceError:
        message = first_line(error, 200)
        return ServiceError(f"The Kubernetes API does not answer: {message}.", "Try again: the job goes on.")


def _has_failed(status: dict[str, Any]) -> bool:
    return status.get("jobStatus") in {"FAILED", "STOPPED"} or status.get("jobDeploymentStatus") == "Failed"


@contextlib.contextmanager
def _cancellable() -> Iterator[None]:
    """Let SIGTERM, with which a pod is ended, do within the block what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
