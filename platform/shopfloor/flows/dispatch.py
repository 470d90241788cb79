"""From what was asked for to the engine that was asked for.

The `local` engine runs a pipeline while the command waits. An engine that takes jobs is handed one, and the run goes on
by itself; its MLflow run is made here, so that every engine's runs stand in one list, and names the engine's own id.
"""

from __future__ import annotations

import importlib
import json
import shlex
from typing import Any, Literal, cast

from shopfloor.engines.base import Engine, Job, TakesJobs, engine_url
from shopfloor.engines.manifests import check_schedule
from shopfloor.errors import UsageError, whole
from shopfloor.flows import plan as planning
from shopfloor.flows import submission
from shopfloor.flows.queue import QueueForecast, forecast, require_holdable
from shopfloor.flows.submission import Submission
from shopfloor.flows.submit import Outcome, View, submit
from shopfloor.pipeline.compilation import Compiled, refuse_artifacts
from shopfloor.records import Record
from shopfloor.runs import conclude, owner
from shopfloor.runs import index as run_records
from shopfloor.runs import recorder as tracking
from shopfloor.serving.assignment import AT_CHAMPION
from shopfloor.settings import Settings

EngineName = Literal["local", "ray", "argo", "kfp"]
_ENGINES = {
    "local": ("shopfloor.engines.local_runs", "LocalEngine"),
    "ray": ("shopfloor.engines.ray", "RayEngine"),
    "argo": ("shopfloor.engines.argo.engine", "ArgoEngine"),
    "kfp": ("shopfloor.engines.kfp.engine", "KfpEngine"),
}


class Submitted(Record):
    """A run, or a schedule, that an engine has taken."""

    run_id: str | None
    """MLflow run; a schedule has none, as each of its runs makes its own."""
    engine: str
    engine_run: str
    """Id under which the engine knows it."""
    state: str
    message: str
    """Sentence that says where the run stands."""
    links: dict[str, str]
    queue: QueueForecast | None = None
    """What it asks of the cluster's queue; none where the engine has no such, or nobody can say."""
    notes: list[str] = []
    """Sentences on what could not be looked up."""


def start(
    settings: Settings, engine: str, request: Submission, view: View, cron: str | None = None, run_id: str | None = None
) -> Outcome | Submitted:
    """Run a pipeline where `engine` says.

    Args:
        settings: The profile.
        engine: `local` runs it to its end, the others take it and come back.
        request: The pipeline and its parameters.
        view: Hears of the steps of a local run.
        cron: A schedule, for engines that keep one.
        run_id: MLflow run that goes on, for the local engine.

    Raises:
        UsageError: The command was asked wrongly; nothing ran.
        ServiceError: A service is down.
    """
    if cron is not None:
        _check_schedule(settings, engine, request, cron)
    if request.max_cost is not None:
        settings = _limited(settings, engine, request.max_cost)
    runner = engine_of(settings, engine)
    if isinstance(runner, TakesJobs):
        return _hand_over(settings, runner, request, cron)
    return submit(settings, request, view, run_id)


def manifest(settings: Settings, engine: str, request: Submission, cron: str | None = None) -> str:
    """Return exactly what `start` would send to an engine's service; asks no service.

    The champion is not looked up: where there is one, it is given as a parameter, or left empty.

    Raises:
        UsageError: The engine takes no manifest, or cannot run such a pipeline.
    """
    if engine not in {"argo", "kfp"}:
        raise UsageError(f"The {engine} engine takes no manifest.", "Name --engine argo or kfp.")
    compiled, arguments = submission.read(settings, request.file, request.use_case, request.given, request.function)
    if cron is not None:
        _check_schedule(settings, engine, request, cron)
        _leave_open(compiled, arguments)
    else:
        submission.resolve_data(settings, compiled, arguments)
    refuse_artifacts(compiled, arguments, engine)
    job = _job(settings, engine, compiled, arguments, request, cron)
    return str(cast(Any, engine_of(settings, engine)).manifest(job))


def engine_of(settings: Settings, name: str) -> Engine:
    """Return the engine of that name; nothing is asked yet."""
    module, class_name = _ENGINES[name]
    return cast(Engine, getattr(importlib.import_module(module), class_name)(settings))


def _hand_over(settings: Settings, runner: TakesJobs, request: Submission, cron: str | None) -> Submitted:
    engine = runner.name
    compiled, arguments = submission.read(settings, request.file, request.use_case, request.given, request.function)
    refuse_artifacts(compiled, arguments, engine)
    queue, notes = _asked_of_the_queue(settings, engine, compiled, arguments, request)
    if cron is not None:
        _leave_open(compiled, arguments)
        schedule = runner.submit(_job(settings, engine, compiled, arguments, request, cron))
        return Submitted(
            run_id=None,
            engine=engine,
            engine_run=schedule,
            state="scheduled",
            message=f"Schedule {schedule} runs it at {cron!r}.",
            links={"engine": engine_url(settings, engine)},
            queue=queue,
            notes=notes,
        )
    client = tracking.connect(settings)
    key = submission.resolve(settings, client, compiled, arguments)
    request = request.model_copy(update={"file": str(compiled.file), "arguments": arguments})
    tags = {
        run_records.ENGINE: engine,
        run_records.ENGINE_URL: engine_url(settings, engine),
        run_records.SUBMITTER: owner.this_process(),
        **({run_records.TEAM: settings.cluster.namespace} if engine in {"argo", "kfp"} else {}),
        **submission.origin(settings, key, request),
    }
    run = run_records.create_run(client, arguments.get("use_case"), compiled.name, arguments, tags)
    job = _job(settings.model_copy(update={"run_id": run.info.run_id}), engine, compiled, arguments, request, None)
    try:
        client.log_text(run.info.run_id, json.dumps(compiled.ir, indent=1), conclude.PIPELINE_FILE)
        engine_run = runner.submit(job)
    except BaseException as error:
        conclude.close(settings, client, run, "failed", f"It was not submitted: {whole(error)}")
        raise
    client.set_tag(run.info.run_id, run_records.ENGINE_RUN, engine_run)
    taken = submitted(settings, run, engine, engine_run)
    return taken.model_copy(update={"queue": queue, "notes": notes})


def _limited(settings: Settings, engine: str, max_cost: float) -> Settings:
    """Return the settings of a run that may cost so much.

    Raises:
        UsageError: Nobody would count it.
    """
    if engine != "argo":
        raise UsageError("--max-cost is for --engine argo, whose queue counts.", "Add --engine argo, or leave it out.")
    if not settings.cluster.queue or not settings.cluster.prices:
        raise UsageError(
            "--max-cost needs a queue and a price table in the profile (cluster.queue, cluster.prices).",
            "Add what is missing: docs/how-to/wait-for-a-gpu.md.",
        )
    return settings.model_copy(update={"max_cost": max_cost})


def _asked_of_the_queue(
    settings: Settings, engine: str, compiled: Compiled, arguments: dict[str, Any], request: Submission
) -> tuple[QueueForecast | None, list[str]]:
    """Return what a run will ask of its queue, and sentences on what is not known.

    Raises:
        UsageError: The queue could never admit a job of it.
    """
    if engine != "argo" or not settings.cluster.queue:
        return None, []
    queue = forecast(settings, compiled, arguments)
    if isinstance(queue, str):
        return None, [queue]
    if request.use_cache and any(step.refusal and step.kind == "RayJob" for step in queue.steps):
        # What an earlier run has found is not searched for again, however much it took then.
        preview = planning.plan(
            settings.model_copy(update={"default_engine": "local"}),
            request.file,
            request.use_case,
            request.given,
            from_step=request.from_step,
            function=request.function,
        )
        reused = [step.step for step in preview.steps if step.action == "reuse"]
        again = forecast(settings, compiled, arguments, reused) if reused else queue
        queue = queue if isinstance(again, str) else again
    require_holdable(queue)
    return queue, queue.notes


def submitted(settings: Settings, run: Any, engine: str, engine_run: str) -> Submitted:
    """Return what is known of a run that an engine has just taken."""
    run_id = run.info.run_id
    return Submitted(
        run_id=run_id,
        engine=engine,
        engine_run=engine_run,
        state="running",
        message=f"Run {run_id} is with the {engine} engine as {engine_run}.",
        links={
            "run": run_records.run_url(settings, run.info.experiment_id, run_id),
            "engine": engine_url(settings, engine),
        },
    )


def _job(
    settings: Settings,
    engine: str,
    compiled: Compiled,
    arguments: dict[str, Any],
    request: Submission,
    cron: str | None,
) -> Job:
    declared = compiled.parameters
    return Job(
        name=compiled.name,
        ir=compiled.without_cache(compiled.from_step_on(request.from_step)),
        platforms=compiled.platforms,
        arguments=arguments,
        # Each run of a schedule makes its record in its first step.
        run_id=run_records.scheduled(compiled.name) if cron else settings.run_id,
        # The key of a scheduled run does not hold what it finds at its time, so it must not reuse an earlier run's.
        use_cache=request.use_cache and not (cron and {"data_version", "champion"} & set(declared)),
        environment=settings.environment(),
        cron=cron,
        file=compiled.file,
        from_step=request.from_step,
        function=request.function,
    )


def _leave_open(compiled: Compiled, arguments: dict[str, Any]) -> None:
    """Let each run of a schedule find the champion of its own time."""
    declared = compiled.parameters
    if "champion" in declared:
        arguments.setdefault("champion", AT_CHAMPION)


def _check_schedule(settings: Settings, engine: str, request: Submission, cron: str) -> None:
    """Refuse a schedule that nobody keeps, or that is none.

    Raises:
        UsageError: It says which of both.
    """
    if engine in {"local", "ray"}:
        words = [part for text in request.given for part in ("-p", text)]
        case = ["--use-case", request.use_case] if request.use_case else []
        command = shlex.join(["shopfloor", "submit", request.file, *case, *words, "--engine", engine])
        raise UsageError(
            f"The {engine} engine keeps no schedule.",
            f"Put this into your crontab: {cron} cd {shlex.quote(str(settings.project_root))} && {command}",
        )
    check_schedule(cron)
