"""Before anybody waits for a GPU: what a run will ask of the team's queue, whether it can ever get it, and when.

Joins the run's manifests, Kueue's objects as a member of the team may read them, what the team's earlier runs recorded,
and the price table. What cannot be read is a note, never an error: a run may be submitted without any of it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

from shopfloor.engines.argo import asks as asking
from shopfloor.engines.argo import quota as quotas
from shopfloor.engines.argo import waiting
from shopfloor.engines.argo.queue_api import RUN_LABEL, QueueApi, QueueState, runs_of
from shopfloor.engines.argo.waiting import Estimate, Holder, Waiting
from shopfloor.errors import ServiceError, ShopfloorError, UsageError
from shopfloor.flows import costs
from shopfloor.pipeline import ir
from shopfloor.pipeline.compilation import Compiled
from shopfloor.records import Cost, Record, Usage
from shopfloor.runs.mlflow import Mlflow
from shopfloor.settings import Settings
from shopfloor.training.tuning import OWN_CLUSTER
from shopfloor.use_case import load_use_case

logger = logging.getLogger(__name__)

SEARCH = "shopfloor.training.tuning"
"""Module whose step brings a RayJob along."""


class StepForecast(Record):
    """What one job of a run asks of the queue; a step that brings a RayJob has two: its own pod, and the RayJob."""

    step: str
    kind: str
    """`pod` or `RayJob`."""
    asks: str
    """Pods and their requests, in words."""
    repeated: bool
    """Whether there may be several such jobs, as in a loop."""
    flavors: list[str]
    """Flavors on which it could be, in the order in which they are tried; of a RayJob, those of its workers."""
    refusal: str = ""
    """Reason why the queue can never admit it, and the nearest job that it could; empty where it can."""
    at_once: bool = False
    """Whether the team's own idle share takes it, and nothing stands before it."""
    ahead: int | None = None
    """Number of the team's jobs that it would stand behind."""
    start: Estimate | None = None
    """Seconds that jobs like it stood in the queue; none where there is no history."""
    hourly: dict[str, float] = {}
    """Flavor to the price of an hour of it, for those that it could be on."""
    cost: Estimate | None = None
    """What the step's earlier runs cost, at today's prices, in the same numbers as a time; none without history."""
    unknown: list[str] = []
    """Resources of which only the run itself will say how much it asks for."""


class FlavorForecast(Record):
    """How much of a flavor's resource a team has."""

    flavor: str
    resource: str
    own: str
    most: str | None
    """Most that the queue can hold, with all that it can borrow; none where nobody knows."""
    used: str
    """Amount that the team's jobs hold now."""
    borrowed: str
    """Part of it that is another team's."""


class QueueForecast(Record):
    """What a run on the cluster will ask of its queue."""

    queue: str
    """LocalQueue, with its namespace."""
    cluster_queue: str
    cohort: str
    pending: int
    """Number of jobs that wait in it."""
    currency: str
    steps: list[StepForecast]
    flavors: list[FlavorForecast]
    held_by: list[Holder]
    """Runs of the team that hold its quota."""
    notes: list[str]
    """Sentences on what could not be read, or is not known."""


class RunQueue(Record):
    """Why a run waits, and what holds the quota that it waits for."""

    waiting: list[Waiting]
    """Its jobs that are not admitted, or that no node takes."""
    held_by: list[Holder]
    """Runs of the same team that hold its quota; none where nothing waits for quota."""
    held_by_others: dict[str, str]
    """Flavor and resource, as in `gpu-spot nvidia.com/gpu`, to what all other teams hold of it together."""
    notes: list[str]
    """Sentences on what could not be read."""


def forecast(
    settings: Settings, compiled: Compiled, arguments: dict[str, Any], reused: Iterable[str] = ()
) -> QueueForecast | str:
    """Return what a run will ask of its queue, or one sentence on why nobody can say.

    Args:
        settings: Of a profile whose runs go to Argo, with a queue.
        compiled: The pipeline.
        arguments: Its parameters.
        reused: Steps whose results are there: their pods look them up, and bring no RayJob.

    Raises:
        UsageError: The pipeline cannot be translated.
    """
    if not settings.cluster.queue:
        return "The profile names no queue (cluster.queue): nobody counts what its runs ask for."
    try:
        api = QueueApi(settings)
        state = api.state()
    except ShopfloorError as error:
        return f"What the queue says is not known: {error.message} {error.remedy}".rstrip()
    try:
        defaults = asking.default_requests(api.limit_ranges())
    except ServiceError as error:
        defaults = {}
        state.notes.append(f"What a container gets that says nothing is not counted: {error.message}")
    asks = asks_of(settings, compiled, arguments, defaults, frozenset(reused))
    return of_state(settings, state, asks, _history(settings, compiled, arguments, state.notes), _runs(api, state))


def asks_of(
    settings: Settings,
    compiled: Compiled,
    arguments: dict[str, Any],
    defaults: dict[str, str],
    reused: frozenset[str] = frozenset(),
) -> list[asking.Ask]:
    """Return what every step of a run asks for, RayJobs after the pods that bring them.

    Args:
        settings: Of the profile.
        compiled: The pipeline.
        arguments: Its parameters.
        defaults: What a container gets that says nothing.
        reused: See `forecast`.
    """
    from shopfloor.engines.argo.translation import translate
    from shopfloor.training import rayjob
    from shopfloor.training.tuning import OWN_CLUSTER, workers_of

    workflow = translate(compiled.ir, compiled.platforms, arguments, settings, "0" * 32)
    asks = asking.asks_of(workflow, defaults)
    if not asks or settings.ray_address != OWN_CLUSTER:
        return asks
    searches = {step for step, source in _sources(compiled).items() if f"from {SEARCH} import" in source}
    result: list[asking.Ask] = []
    for ask in asks:
        result.append(ask)
        if ask.step in searches - reused and arguments.get("use_case"):
            search = load_use_case(settings, arguments["use_case"]).search
            trials = int(arguments.get("trials") or 0) or search.trials
            body = rayjob.body(settings, f"t-{ask.step}", "true", workers_of(search, trials))
            result.append(asking.ask_of_ray_job(ask.step, body, defaults))
    return result


def of_state(
    settings: Settings,
    state: QueueState,
    asks: Sequence[asking.Ask],
    history: Sequence[costs.StepUsage],
    runs: dict[str, str],
) -> QueueForecast:
    """Return what jobs will ask of a queue that stands so; asks nobody.

    Args:
        settings: Have the prices.
        state: Of the queue.
        asks: The jobs.
        history: What earlier jobs of the team had.
        runs: Run by the name of a job or pod.
    """
    prices, notes = settings.cluster.prices, list(state.notes)
    if state.pending is None:
        ahead = waiting.ahead_of(state.workloads, state.priority)
        count = sum(waiting.is_waiting(one) for one in state.workloads)
    else:
        ahead = sum(priority >= state.priority for priority, _ in state.pending)
        count = len(state.pending)
    steps = []
    for ask in asks:
        verdict = quotas.judge(ask, state.quota)
        flavors = list(max(verdict.flavors, key=lambda one: any("gpu" in name for name in one), default=()))
        gpus = any("/" in resource for pod_set in ask.pod_sets for resource in pod_set.requests)
        waits = [one.waited_s for one in history if one.waited_s is not None and one.has_gpus == gpus]
        own = [one for one in history if (one.step, one.kind) == (ask.step, ask.kind)]
        amounts = [Cost.of(one.usages, prices, settings.cluster.currency).amount for one in own]
        steps.append(
            StepForecast(
                step=ask.step,
                kind=ask.kind,
                asks=in_words(ask),
                repeated=ask.repeated,
                flavors=flavors,
                refusal=f"{verdict.refusal}; {verdict.nearest}." if verdict.refusal else "",
                at_once=not verdict.refusal and not ahead and quotas.free_now(state.quota, ask),
                ahead=ahead,
                start=waiting.estimate(waits or waiting.waits_of(state.workloads, gpus)),
                hourly=_hourly(ask, verdict, prices, state.quota),
                cost=waiting.estimate(amounts) if prices else None,
                unknown=list(ask.open),
            )
        )
    lacking = sorted({name for step in steps for name in step.flavors} - prices.keys())
    if prices and lacking:
        notes.append(
            f"The price table (cluster.prices of the profile) has no flavor {', '.join(lacking)}: it counts as nothing."
        )
    return QueueForecast(
        queue=state.local,
        cluster_queue=state.quota.name,
        cohort=state.quota.cohort,
        pending=count,
        currency=settings.cluster.currency,
        steps=steps,
        flavors=list(_flavors(state.quota)),
        held_by=waiting.held_by(state.workloads, runs),
        notes=notes,
    )


def of_run(settings: Settings, run_id: str) -> RunQueue:
    """Return why a run on the cluster waits, and what holds the quota that it waits for.

    Args:
        settings: Of the profile that has the run's queue.
        run_id: The run.
    """
    try:
        api = QueueApi(settings)
        workloads, pods = api.workloads(), api.pods()
        runs = runs_of([*api.jobs(), *pods])
        own = {name for name, run in runs.items() if run == run_id}
        waits = [one for one in waiting.ordered(workloads) if waiting.job_of(one)[1] in own]
        told = [waiting.unschedulable(pod, run_id) for pod in pods if pod["metadata"]["name"] in own]
        unplaced = [one for one in told if one is not None]
        if not waits:
            return RunQueue(waiting=unplaced, held_by=[], held_by_others={}, notes=[])
        state = api.state()
    except ShopfloorError as error:
        note = f"What the queue says is not known: {error.message} {error.remedy}".rstrip()
        return RunQueue(waiting=[], held_by=[], held_by_others={}, notes=[note])
    order = [one["metadata"]["name"] for one in waiting.ordered(workloads)]
    places = state.places if state.places is not None else {name: place for place, name in enumerate(order)}
    others: dict[str, str] = {}
    items = []
    for workload in waits:
        items.append(waiting.waits(workload, run_id, places.get(workload["metadata"]["name"])))
        for what, amount in quotas.held_by_others(state.quota, workload, items[-1].missing).items():
            others[what] = asking.shown(what.partition(" ")[2], amount)
    return RunQueue(
        waiting=items + unplaced,
        held_by=waiting.held_by(workloads, runs),
        held_by_others=others,
        notes=state.notes,
    )


def end_waiting_jobs(settings: Settings, run_id: str) -> None:
    """Delete the RayJobs of a run that has ended whose driver has not begun; none where searches bring none.

    A driver ends its job with its step's pod (`training/job_guard`). Before there is one nobody does: Argo's executor
    kills a step that it is asked to end (4.0), and the pod, which owns the job, is kept to be looked at.

    Args:
        settings: Of the profile that has the run's queue.
        run_id: The run.
    """
    if settings.ray_address != OWN_CLUSTER:
        return
    try:
        api = QueueApi(settings)
    except UsageError:  # by Argo's server alone: such a job ends when its driver begins
        return
    try:
        for job in api.jobs():
            status = job.get("status") or {}
            begun = status.get("jobStatus") or status.get("jobDeploymentStatus") in {"Complete", "Failed"}
            if job["metadata"]["labels"][RUN_LABEL] == run_id and not begun:
                api.delete_job(job["metadata"]["name"])
    except ShopfloorError as error:
        logger.warning("A search of the run may still wait for its nodes: %s", error.message)


def require_holdable(queue: QueueForecast) -> None:
    """Refuse a run of which a job could never be admitted.

    Raises:
        UsageError: It names the job, what it asks for and the nearest that could be admitted.
    """
    for step in queue.steps:
        if step.refusal:
            raise UsageError(step.refusal, "Ask for less, or ask the platform team for more: manifests/teams.")


def in_words(ask: asking.Ask) -> str:
    """Return the pods of a job and what each requests."""
    return " + ".join(
        f"{pod_set.count} x "
        + ", ".join(f"{asking.shown(name, amount)} {name}" for name, amount in sorted(pod_set.requests.items()))
        for pod_set in ask.pod_sets
    )


def _hourly(ask: asking.Ask, verdict: quotas.Verdict, prices: dict[Any, Any], quota: quotas.Quota) -> dict[str, float]:
    """Return what an hour of a job costs, by the flavor of the pods that can be on the most expensive one."""
    if verdict.refusal or not prices:
        return {}

    def price(pod_set: asking.PodSet, flavor: str) -> float:
        resources = {name: pod_set.total(name) for name in pod_set.requests}
        return Cost.of([Usage(flavor=flavor, seconds=3600, resources=resources)], prices, "").amount

    fixed = 0.0
    varying: dict[str, float] = {}
    for pod_set, flavors in zip(ask.pod_sets, verdict.flavors, strict=True):
        wants_gpu = any("/" in name for name in pod_set.requests)
        if len(ask.pod_sets) == 1 or wants_gpu:
            for flavor in flavors:
                varying[flavor] = varying.get(flavor, 0.0) + price(pod_set, flavor)
        else:
            fixed += price(pod_set, flavors[0])
    if not varying:
        first = verdict.flavors[0][0]
        return {first: fixed}
    return {flavor: amount + fixed for flavor, amount in varying.items()}


def _flavors(quota: quotas.Quota) -> Iterable[FlavorForecast]:
    for group in quota.groups:
        for flavor in group.flavors:
            for resource, share in flavor.shares.items():
                if share.ceiling:
                    most = None if math.isinf(share.ceiling) else asking.shown(resource, share.ceiling)
                    own, used, borrowed = (
                        asking.shown(resource, amount) for amount in (share.nominal, share.used, share.borrowed)
                    )
                    yield FlavorForecast(
                        flavor=flavor.name, resource=resource, own=own, most=most, used=used, borrowed=borrowed
                    )


def _sources(compiled: Compiled) -> dict[str, str]:
    """Return the source of every step that is a component of Python, by the step's name."""
    pipeline, sources = compiled.pipeline, {}

    def walk(component: ir.Message) -> None:
        for name, task in ir.in_order(component):
            inner = pipeline.component(task)
            if ir.is_dag(inner):
                walk(inner)
            else:
                sources[name] = "\n".join(ir.command_of(pipeline.executor(inner)))

    walk(pipeline.root)
    return sources


def _history(
    settings: Settings, compiled: Compiled, arguments: dict[str, Any], notes: list[str]
) -> list[costs.StepUsage]:
    """Return what earlier jobs of the team had, as far as MLflow can say it."""
    mlflow = Mlflow(settings.tracking_uri, settings.request_timeout_s)
    try:
        return costs.recorded(mlflow, arguments.get("use_case") or compiled.name)
    except ShopfloorError as error:
        notes.append(f"What earlier runs waited and cost is not known: {error.message}")
        return []


def _runs(api: QueueApi, state: QueueState) -> dict[str, str]:
    try:
        return runs_of([*api.jobs(), *api.pods()])
    except ServiceError as error:
        state.notes.append(f"Which runs hold the quota is not known: {error.message}")
        return {}
