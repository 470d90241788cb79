"""What Kueue has admitted of a job: on which flavors, how much of what, since when, how long it stood in the queue.

Kueue keeps that in a Workload, which goes with its job or pod: a step writes it to its own MLflow run while it is
there, and stops where its run has cost what it may. How the cluster's API is opened, and what its refusals mean,
stands here too.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shopfloor.errors import ServiceError, ShopfloorError, UsageError, first_line
from shopfloor.records import Cost, Usage
from shopfloor.runs.mlflow import JOB_USAGE, PARENT, POD_USAGE, Mlflow, tags_of
from shopfloor.settings import Settings

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 30.0
"""How often a step looks at what it has had."""
GROUP, VERSION, PLURAL = "kueue.x-k8s.io", "v1beta2", "workloads"
JOB_UID = "kueue.x-k8s.io/job-uid"
"""Label of a Workload: the uid of the job or pod that it stands for."""
Json = dict[str, Any]


@dataclass(frozen=True)
class Operator:
    """One that the platform team installs from `manifests/operators`."""

    title: str
    folder: str
    """Below `manifests/operators`."""
    group: str
    version: str
    """The version of its API that the platform speaks."""
    namespace: str
    deployment: str

    @property
    def install(self) -> str:
        """Return what the platform team types to install it, or to bring it to the project's version."""
        build = f"kubectl kustomize manifests/operators/{self.folder}"
        return f"{build} | kubectl apply --server-side --force-conflicts -f -"


OPERATORS = (
    Operator("Argo Workflows", "argo-workflows", "argoproj.io", "v1alpha1", "argo", "workflow-controller"),
    Operator("KubeRay", "kuberay", "ray.io", "v1", "kuberay-system", "kuberay-operator"),
    Operator("Kueue", "kueue", "kueue.x-k8s.io", "v1beta2", "kueue-system", "kueue-controller-manager"),
)


def missing(group: str) -> ServiceError:
    """Return the error for a cluster that does not know the API of this group, which an operator brings."""
    operator = next(one for one in OPERATORS if one.group == group)
    return ServiceError(
        f"The cluster has no {operator.title} (API {operator.group}/{operator.version}).",
        f"The platform team installs it: {operator.install}",
    )


def refusal(body: Any) -> str:
    """Return what the Kubernetes API says of a refusal in one line: who may not do what, with which, where."""
    try:
        message = str(json.loads(body or "{}").get("message", ""))
    except (ValueError, TypeError, AttributeError):
        message = ""
    return " ".join(message.split())[:300]


def unanswered(error: Exception) -> ServiceError:
    """Return what an error of Kubernetes' client means where no right was refused and nothing was not found."""
    status = getattr(error, "status", None)
    if status is None:
        return ServiceError(
            f"The Kubernetes API does not answer: {first_line(error, 200)}.", "Look at KUBECONFIG, then try again."
        )
    if status == 401:
        return ServiceError(
            "The Kubernetes API does not take the login of the kubeconfig, or no longer.",
            "Renew it: log in to the cluster again.",
        )
    return ServiceError(f"The Kubernetes API failed with status {status}.", "Try again.")


def document(custom: Any, path: str, timeout_s: float) -> Any:
    """Return the document that Kubernetes' API has at a path; raises what the client raises.

    Args:
        custom: From `apis`.
        path: `/apis/...`.
        timeout_s: How long the API may take.
    """
    return custom.api_client.call_api(
        path,
        "GET",
        auth_settings=["BearerToken"],
        response_type="object",
        _return_http_data_only=True,
        _request_timeout=timeout_s,
    )


def apis(retries: int | None = None) -> tuple[Any, Any]:
    """Return Kubernetes' APIs of custom objects and of its own, as this pod or the kubeconfig here opens them.

    Args:
        retries: How often a connection that fails is tried again; none means as often as the client does by itself.

    Raises:
        UsageError: There is neither a service account nor a kubeconfig.
    """
    from kubernetes import client, config

    try:
        config.load_incluster_config()
    except config.ConfigException:
        try:
            config.load_kube_config()
        except (config.ConfigException, OSError) as error:
            raise UsageError(
                "There is no Kubernetes cluster to talk to: neither a service account nor a kubeconfig.",
                "Run it in the cluster, or set KUBECONFIG.",
            ) from error
    configuration = client.Configuration.get_default_copy()
    configuration.retries = retries
    opened = client.ApiClient(configuration)
    return client.CustomObjectsApi(opened), client.CoreV1Api(opened)


def workloads_of(custom: Any, namespace: str, uid: str, timeout_s: float) -> list[Json]:
    """Return the Workloads of a job or pod; raises what the client raises."""
    answer = custom.list_namespaced_custom_object(
        GROUP, VERSION, namespace, PLURAL, label_selector=f"{JOB_UID}={uid}", _request_timeout=timeout_s
    )
    return list(answer.get("items", []))


def conditions(workload: Mapping[str, Any]) -> dict[str, Json]:
    """Return the conditions of a Workload by their type."""
    return {one["type"]: one for one in (workload.get("status") or {}).get("conditions") or []}


def holds(workload: Mapping[str, Any], condition: str) -> bool:
    """Tell whether a condition of a Workload is true."""
    return bool(conditions(workload).get(condition, {}).get("status") == "True")


def at(time: str) -> dt.datetime:
    """Return a time as Kubernetes writes it."""
    return dt.datetime.fromisoformat(time)


def waited_s(workload: Mapping[str, Any]) -> float | None:
    """Return how long a Workload that is admitted, or was, stood in the queue; `None` for one that never was."""
    condition = conditions(workload).get("Admitted")
    if condition is None or condition.get("status") != "True":
        return None
    created = at(workload["metadata"]["creationTimestamp"])
    return max(0.0, (at(condition["lastTransitionTime"]) - created).total_seconds())


def usages_of(workload: Mapping[str, Any], now: dt.datetime) -> list[Usage]:
    """Return what a Workload has had since it was admitted, until its end or now; nothing where it is not admitted."""
    from kubernetes.utils.quantity import parse_quantity

    admission = (workload.get("status") or {}).get("admission") or {}
    if not holds(workload, "Admitted"):
        return []
    all_conditions = conditions(workload)
    begun = at(all_conditions["Admitted"]["lastTransitionTime"])
    ended = at(all_conditions["Finished"]["lastTransitionTime"]) if holds(workload, "Finished") else now
    seconds, waited = max(0.0, (ended - begun).total_seconds()), waited_s(workload)
    usages: list[Usage] = []
    for part in admission.get("podSetAssignments") or []:
        flavors: dict[str, dict[str, float]] = {}
        for resource, amount in (part.get("resourceUsage") or {}).items():
            flavor = (part.get("flavors") or {}).get(resource, "")
            flavors.setdefault(flavor, {})[resource] = float(parse_quantity(amount))
        usages += [
            Usage(flavor=flavor, seconds=seconds, resources=resources, waited_s=waited)
            for flavor, resources in flavors.items()
        ]
    return usages


class Meter:
    """Adds up what a job has had, also where it was evicted and admitted anew between two looks."""

    def __init__(self, read: Callable[[], Sequence[Json]], clock: Callable[[], dt.datetime] | None = None) -> None:
        """Look at nothing yet.

        Args:
            read: Returns the job's Workloads.
            clock: Returns the time.
        """
        self._read = read
        self._clock = clock or (lambda: dt.datetime.now(dt.UTC))
        self._spans: dict[tuple[str, str], list[Usage]] = {}
        self._waited_s: float | None = None

    def look(self) -> list[Usage]:
        """Read the Workloads, and return what the job has had until now."""
        for workload in self._read():
            if usages := usages_of(workload, self._clock()):
                since = conditions(workload)["Admitted"]["lastTransitionTime"]
                self._spans[workload["metadata"]["uid"], since] = usages
                if self._waited_s is None:
                    self._waited_s = usages[0].waited_s
        return self.usages

    @property
    def usages(self) -> list[Usage]:
        """What the job had by the last look, times that are alike together; each has the first wait."""
        seconds: dict[str, float] = {}
        alike: dict[str, Usage] = {}
        for usage in (usage for span in self._spans.values() for usage in span):
            key = json.dumps([usage.flavor, usage.resources], sort_keys=True)
            seconds[key] = seconds.get(key, 0.0) + usage.seconds
            alike.setdefault(key, usage)
        return [
            usage.model_copy(update={"seconds": round(seconds[key], 1), "waited_s": self._waited_s})
            for key, usage in alike.items()
        ]


class BudgetSpentError(ShopfloorError):
    """A run has cost what it may."""


class Ledger:
    """Writes what a job has had to the MLflow run of its step while it goes on, and tells when that is enough."""

    def __init__(self, settings: Settings, tag: str, read: Callable[[], Sequence[Json]]) -> None:
        """Write nothing yet.

        Args:
            settings: Name the step's run, the prices and what the run may cost.
            tag: `POD_USAGE` or `JOB_USAGE`.
            read: Returns the job's Workloads.
        """
        self._settings = settings
        self._tag = tag
        self._meter = Meter(read)
        self._written: list[Usage] = []
        self._silent = False

    def write(self) -> None:
        """Look, and write what is new; a server that does not answer is told once, and fails nothing.

        Raises:
            BudgetSpentError: The run has cost what it may.
        """
        settings = self._settings
        try:
            usages = self._meter.look()
            if usages and usages != self._written and settings.step_run_id:
                text = json.dumps([usage.model_dump(mode="json") for usage in usages])
                mlflow = Mlflow(settings.tracking_uri, settings.request_timeout_s)
                mlflow.post("runs/set-tag", {"run_id": settings.step_run_id, "key": self._tag, "value": text})
                self._written = usages
            cost = spent(settings) if settings.max_cost is not None else None
        except Exception as error:  # of Kubernetes' client or MLflow: the work is worth more than its account
            if not self._silent:
                logger.warning("What this step has of the cluster is not counted: %s", first_line(error, 200))
            self._silent = True
            return
        if cost is not None and settings.max_cost is not None and cost.amount >= settings.max_cost:
            raise BudgetSpentError(
                f"The run has cost {cost.amount:.2f} {cost.currency}, and may cost {settings.max_cost:g}: it stops.",
                f"What it finished is kept: `shopfloor runs resume {settings.run_id} --max-cost MORE` goes on.",
            )


def spent(settings: Settings) -> Cost:
    """Return what the steps of this step's run have written that they had.

    Raises:
        ServiceError: MLflow does not answer, or refuses.
    """
    mlflow = Mlflow(settings.tracking_uri, settings.request_timeout_s)
    experiment = mlflow.get("runs/get", "run", run_id=settings.run_id)["info"]["experiment_id"]
    answer = mlflow.post(
        "runs/search",
        {
            "experiment_ids": [experiment],
            "filter": f"tags.`{PARENT}` = '{settings.run_id}'",
            "max_results": 1000,
        },
    )
    usages = [
        Usage.model_validate(usage)
        for run in answer.get("runs", [])
        for tag, text in tags_of(run["data"]).items()
        if tag in {POD_USAGE, JOB_USAGE}
        for usage in json.loads(text)
    ]
    return Cost.of(usages, settings.cluster.prices, settings.cluster.currency)


def of_pod(settings: Settings, uid: str) -> Ledger:
    """Return the ledger of a step's own pod; its Workloads are asked for when it is first written.

    Args:
        settings: Name the namespace.
        uid: Of the pod.
    """

    def read() -> list[Json]:
        custom, _ = apis()
        return workloads_of(custom, settings.cluster.namespace, uid, settings.request_timeout_s)

    return Ledger(settings, POD_USAGE, read)
