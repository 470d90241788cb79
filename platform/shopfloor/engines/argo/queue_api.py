"""A team's queue by the Kubernetes API, with the rights that a member of the team has; what may not be read is said.

Kueue's API server of what is pending is asked first for a place in the queue; where it is not to be had, the
Workloads of the namespace say it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from shopfloor.engines.argo import quota as quotas
from shopfloor.errors import ServiceError
from shopfloor.settings import Settings
from shopfloor.training.admission import GROUP, VERSION, apis, document, missing, refusal, unanswered

VISIBILITY = "visibility.kueue.x-k8s.io"
RUN_LABEL = "shopfloor/run-id"
SILENT_S = 5.0
"""How long a cluster that does not answer may hold up a command that can do without."""
Json = dict[str, Any]


@dataclass(frozen=True)
class QueueState:
    """What a member of a team can know of its queue."""

    local: str
    """Name of the LocalQueue, with its namespace."""
    quota: quotas.Quota
    workloads: list[Json]
    """Those of the namespace."""
    places: dict[str, int] | None
    """Workload to the number of jobs before it in the team's queue; `None` where Kueue does not say."""
    pending: list[tuple[int, str]] | None
    """Urgency and name of what waits in the team's queue, by Kueue's own list; `None` where Kueue does not say."""
    priority: int
    """Urgency of the profile's priority class."""
    notes: list[str] = field(default_factory=list)
    """Sentences on what could not be read."""


class QueueApi:
    """Reads the queue of `settings.cluster`."""

    def __init__(self, settings: Settings) -> None:
        """Connect to the cluster; nothing is asked yet.

        Raises:
            UsageError: There is neither a service account nor a kubeconfig.
        """
        self._settings = settings
        self._namespace = settings.cluster.namespace
        self._custom, self._core = apis()
        self._timeout_s = min(settings.request_timeout_s, SILENT_S)

    def state(self) -> QueueState:
        """Return how the team's queue stands.

        Raises:
            ServiceError: The cluster does not answer, has no such queue, or lets nobody see it.
        """
        name = str(self._settings.cluster.queue)
        notes: list[str] = []
        local = self._get("localqueues", name, self._namespace)
        queue = self._get("clusterqueues", local["spec"]["clusterQueue"])
        spec = queue["spec"]
        cohort = self._maybe("cohorts", spec.get("cohortName") or "", notes) if spec.get("cohortName") else None
        names = {one["name"] for group in spec.get("resourceGroups") or [] for one in group["flavors"]}
        flavors = {one: found for one in sorted(names) if (found := self._maybe("resourceflavors", one, notes))}
        quota = quotas.quota_of(queue, cohort, flavors)
        if not quota.lent_known:
            notes.append(
                f"What other teams could lend to the queue {quota.name} is not known: only its borrowing limit counts."
            )
        if quota.stopped:
            notes.append(f"The queue {quota.name} admits nothing at present: {quota.stopped}")
        priority_class = self._settings.cluster.priority_class
        found = self._maybe("workloadpriorityclasses", priority_class, notes) if priority_class else None
        items = self._pending(name, notes)
        places = None if items is None else {one["metadata"]["name"]: one["positionInLocalQueue"] for one in items}
        pending = None if items is None else [(int(one["priority"]), one["metadata"]["name"]) for one in items]
        return QueueState(
            local=f"{self._namespace}/{name}",
            quota=quota,
            workloads=self.workloads(),
            places=places,
            pending=pending,
            priority=int((found or {}).get("value", 0)),
            notes=notes,
        )

    def workloads(self) -> list[Json]:
        """Return the Workloads of the namespace.

        Raises:
            ServiceError: The cluster does not answer, or lets nobody see them.
        """
        return self._objects(GROUP, VERSION, "workloads")

    def jobs(self) -> list[Json]:
        """Return the RayJobs of the namespace that belong to runs.

        Raises:
            ServiceError: The cluster does not answer, or lets nobody see them.
        """
        return self._objects("ray.io", "v1", "rayjobs", label_selector=RUN_LABEL)

    def delete_job(self, name: str) -> None:
        """Delete a RayJob of the namespace.

        Raises:
            ServiceError: The cluster does not answer, has none of this name, or lets nobody delete it.
        """

        def delete() -> Any:
            return self._custom.delete_namespaced_custom_object(
                "ray.io", "v1", self._namespace, "rayjobs", name, _request_timeout=self._timeout_s
            )

        self._ask(f"delete rayjobs {name}", delete, "ray.io")

    def pods(self) -> list[Json]:
        """Return the pods of the namespace that belong to runs.

        Raises:
            ServiceError: The cluster does not answer, or lets nobody see them.
        """
        return self._core_objects("pods", self._core.list_namespaced_pod, label_selector=RUN_LABEL)

    def limit_ranges(self) -> list[Json]:
        """Return the namespace's LimitRanges.

        Raises:
            ServiceError: The cluster does not answer, or lets nobody see them.
        """
        return self._core_objects("limitranges", self._core.list_namespaced_limit_range)

    def _objects(self, group: str, version: str, plural: str, **options: str) -> list[Json]:
        """Return custom objects of the namespace."""

        def list_() -> Any:
            return self._custom.list_namespaced_custom_object(
                group, version, self._namespace, plural, _request_timeout=self._timeout_s, **options
            )

        return list(self._ask(f"list {plural}", list_, group).get("items", []))

    def _core_objects(self, plural: str, list_: Callable[..., Any], **options: str) -> list[Json]:
        """Return objects of the namespace as the API writes them: the client's own are of classes."""

        def read() -> Any:
            answer = list_(self._namespace, _preload_content=False, _request_timeout=self._timeout_s, **options)
            return json.loads(answer.data)

        return list(self._ask(f"list {plural}", read).get("items", []))

    def _pending(self, queue: str, notes: list[str]) -> list[Json] | None:
        """Return what waits in a LocalQueue as Kueue itself lists it; `None`, and a note, where it does not."""
        try:
            answer = self._ask(
                "get localqueues/pendingworkloads",
                lambda: document(
                    self._custom,
                    f"/apis/{VISIBILITY}/{VERSION}/namespaces/{self._namespace}/localqueues/{queue}/pendingworkloads",
                    self._timeout_s,
                ),
            )
        except ServiceError as error:
            notes.append(
                f"The place in the queue is counted from the namespace's own Workloads, as Kueue lists none:"
                f" {error.message}"
            )
            return None
        return list(answer.get("items", []))

    def _maybe(self, plural: str, name: str, notes: list[str]) -> Json | None:
        try:
            return self._get(plural, name)
        except ServiceError as error:
            notes.append(error.message)
            return None

    def _get(self, plural: str, name: str, namespace: str | None = None) -> Json:
        def get() -> Any:
            if namespace:
                return self._custom.get_namespaced_custom_object(
                    GROUP, VERSION, namespace, plural, name, _request_timeout=self._timeout_s
                )
            return self._custom.get_cluster_custom_object(
                GROUP, VERSION, plural, name, _request_timeout=self._timeout_s
            )

        return dict(self._ask(f"get {plural} {name}", get))

    def _ask(self, right: str, ask: Callable[[], Any], group: str = GROUP) -> Any:
        """Return what the API answers.

        Raises:
            ServiceError: It does not, or refuses; says which right is missing.
        """
        from kubernetes.client import ApiException

        try:
            return ask()
        except ApiException as error:
            raise _refused(error, right, self._namespace, group) from error
        except Exception as error:
            raise unanswered(error) from error


def runs_of(items: Iterable[Json]) -> dict[str, str]:
    """Return the run that each pod or job belongs to, by its name."""
    return {one["metadata"]["name"]: one["metadata"]["labels"][RUN_LABEL] for one in items}


def _refused(error: Any, right: str, namespace: str, group: str) -> ServiceError:
    """Return what a refusal means, in one line."""
    if error.status == 403:
        return ServiceError(
            f"No right to {right} in the namespace {namespace}: {refusal(error.body)}.",
            "`shopfloor teams render` writes what members may.",
        )
    if error.status == 404:
        _, what, *name = right.split()
        if "page not found" in str(error.body) or not name:
            return missing(group)
        return ServiceError(f"There is no {what} {name[0]!r} (namespace {namespace}).", "Mend cluster.queue.")
    return unanswered(error)
