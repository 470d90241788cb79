"""The nodes of a workflow's status: which are steps, of which task, how they stand and why."""

from __future__ import annotations

import datetime as dt
import logging
import queue
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

from shopfloor.engines.argo.client import ENDED, ArgoClient
from shopfloor.engines.argo.source import STEP_NAME
from shopfloor.errors import NotFoundError, ServiceError

logger = logging.getLogger(__name__)

EVENTS_WAIT_S = 1.0
"""The server sends the events that there are at once, and then waits for others."""
SAID_LIMIT = 300


class Steps:
    """The steps of a workflow by their pods, read anew where a pod is not known yet."""

    def __init__(self, client: ArgoClient, name: str) -> None:
        self._client = client
        self._name = name
        self._unknown: set[str] = set()
        self.read()

    def read(self) -> None:
        """Ask the server how the workflow stands."""
        workflow = self._client.get(self._name)
        status = workflow.get("status") or {}
        self.all: dict[str, dict[str, Any]] = status.get("nodes") or {}
        self.nodes = pods_of(workflow)
        self.ended = status.get("phase", "") in ENDED
        self.message = str(status.get("message") or "")

    def of(self, pod: str) -> str:
        """Return the step of a pod; of one that no step has, the pod's name."""
        number = _number(pod)
        if number not in self.nodes and number not in self._unknown:
            self.read()
            self._unknown |= {number} - self.nodes.keys()
        return step_of(self.nodes[number]) if number in self.nodes else pod

    def require(self, engine_run: str, step: str | None) -> None:
        """Refuse a step that has no pod.

        Raises:
            NotFoundError: It names those that have.
        """
        names = sorted({step_of(node) for node in self.nodes.values()})
        if step is not None and step not in names:
            raise NotFoundError(
                f"Workflow {engine_run} has no pod of a step {step!r}.", f"It has {', '.join(names) or 'none yet'}."
            )


def last_attempts(nodes: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the pods in the order in which they began; of one that was tried again the last."""
    before = {
        child for node in nodes.values() if node.get("type") == "Retry" for child in (node.get("children") or [])[:-1]
    }
    pods = [node for name, node in nodes.items() if node.get("type") == "Pod" and name not in before]
    return sorted(pods, key=lambda node: str(node.get("startedAt") or "9"))


def has_failed(nodes: dict[str, dict[str, Any]]) -> bool:
    """Tell whether a step failed for good, or an exit task of whatever kind."""
    hooks = [node for node in nodes.values() if (node.get("nodeFlag") or {}).get("hooked")]
    return any(node.get("phase") in {"Failed", "Error"} for node in (*hooks, *last_attempts(nodes)))


def pods_of(workflow: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the nodes of a workflow that are pods, by the number at the end of the pod's name."""
    nodes = (workflow.get("status") or {}).get("nodes") or {}
    return {_number(node_id): node for node_id, node in nodes.items() if node.get("type") == "Pod"}


def _number(name: str) -> str:
    """Return the hash at the end of a node's id and of its pod's name; what stands before it Argo may cut short."""
    return name.rpartition("-")[2]


def step_of(node: dict[str, Any]) -> str:
    """Return the task of a node, which every pod of ours has among its inputs."""
    parameters = (node.get("inputs") or {}).get("parameters") or []
    step_name = next((str(item.get("value", "")) for item in parameters if item.get("name") == STEP_NAME), "")
    # One of a loop is called `task(0:item)`, one of a retried task `task(0)`.
    return step_name or str(node.get("displayName", "")).partition("(")[0]


def seconds_of(node: dict[str, Any]) -> float:
    """Return how long a node has taken, or takes by now."""
    times = [node.get(key) for key in ("startedAt", "finishedAt")]
    start, ended = (dt.datetime.fromisoformat(str(time)) if time else dt.datetime.now(dt.UTC) for time in times)
    return max((ended - start).total_seconds(), 0.0)


def warning_of(client: ArgoClient, node: dict[str, Any]) -> str:
    """Return what Kubernetes last warned of a node's pod, empty where it warned of nothing or nobody may see it."""
    warning = ""
    try:
        for event in in_time(client.warnings(), EVENTS_WAIT_S):
            if event is None:
                break
            message = " ".join(str(event.get("message") or "").split())
            pod = str((event.get("involvedObject") or {}).get("name") or "")
            # `Error: ErrImagePull` says less than the event before it.
            if _number(pod) == _number(str(node.get("id", ""))) and message and not message.startswith("Error: "):
                warning = f"{event.get('reason', '')}: {message[:SAID_LIMIT]}"
    except ServiceError as error:
        logger.debug("No events of pods: %s", error)
    return warning


_Item = TypeVar("_Item")


def in_time(items: Iterator[_Item], wait_s: float) -> Iterator[_Item | None]:
    """Yield items as they come, and `None` each time that none has come for so long."""
    came: queue.Queue[tuple[str, Any]] = queue.Queue()

    def read() -> None:
        try:
            for item in items:
                came.put(("item", item))
            came.put(("end", None))
        except BaseException as error:  # whoever asks is to have it
            came.put(("error", error))

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            kind, value = came.get(timeout=wait_s)
        except queue.Empty:
            yield None
            continue
        if kind == "error":
            raise value
        if kind == "end":
            return
        yield value
