"""What can be done with a recorded run, by the engine that has it: see how it stands, read, stop, retry, resume.

MLflow's record says which engine and under which id. Where the record says that a run goes on and the engine that it
has ended, nobody was left to write so: whoever looks next closes the record.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from shopfloor.engines.base import GOING, Engine, KnowsSteps, TakesJobs, engine_url
from shopfloor.engines.local_runs import log_folder
from shopfloor.errors import (
    MAX_CHARACTERS,
    ConflictError,
    NotFoundError,
    ServiceError,
    ShopfloorError,
    UsageError,
    without_secrets,
)
from shopfloor.flows.dispatch import Submitted, engine_of, start, submitted
from shopfloor.flows.submission import Submission
from shopfloor.flows.submit import Outcome, View
from shopfloor.records import StepRecord
from shopfloor.runs import conclude, owner
from shopfloor.runs import index as run_records
from shopfloor.runs.mlflow import lookup
from shopfloor.settings import Settings

if TYPE_CHECKING:
    from shopfloor.flows.queue import RunQueue

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 120.0
"""How long a stopped run may take to end its steps (a pod has 30 s), to run its exit tasks and to end its record."""
POD_LOG = "step.log"
"""Name of the log that a step in a pod of its own records."""
POLL_S = 0.5
LOCK_TIMEOUT_S = 30.0
"""How long a retry waits for another command that retries the same run."""
WATCH_POLL_S = 2.0
_OF_ONE_TRY = (run_records.ENGINE_RUN, run_records.PROCESS)
"""Tags of a run that a retry replaces."""


def refresh(settings: Settings, client: Any) -> None:
    """Close the records of runs that have ended without a word; warns of engines that cannot be asked."""
    conclude.close_dead_runs(settings, client)
    silent: set[str] = set()
    for run in run_records.open_runs(client):
        place = run.data.tags.get(run_records.ENGINE_URL, "")
        if run_records.engine_run_of(run) is None or place in silent:
            continue
        try:
            reconcile(settings, client, run)
        except ShopfloorError as error:
            silent.add(place)
            logger.warning("Run %s may have ended: %s", run.info.run_id, error.message)


def reconcile(settings: Settings, client: Any, run: Any) -> str:
    """Close the record of a run that its engine says has ended; return the run's state.

    Raises:
        ServiceError: The engine does not answer.
        NotFoundError: The run belongs to an engine that this profile does not talk to.
    """
    engine = _engine(settings, run)
    try:
        state, outcome = str(engine.status(_engine_run(run))), ""
    except NotFoundError:
        state, outcome = "killed", f"The {engine.name} engine no longer knows the run."
    if state in GOING:
        return state
    # The run may have written its own end since its record was read, or been retried.
    before, run = run.data.tags, client.get_run(run.info.run_id)
    if _recorded_state(run) != "running" or any(run.data.tags.get(tag) != before.get(tag) for tag in _OF_ONE_TRY):
        return _recorded_state(run)
    _explain(client, engine, run)
    return conclude.close(settings, client, run, state, outcome or _reason(client, engine, run, state))


def stop(settings: Settings, client: Any, run: Any) -> str:
    """End a run and return its state; what it finished stays finished.

    Raises:
        UsageError: It has ended already.
        ServiceError: Its engine does not answer, or it does not end.
    """
    state_before = _recorded_state(run)
    if state_before != "running":
        raise UsageError(
            f"Run {run.info.run_id} has ended already: {state_before}.", "`shopfloor runs list` shows what runs."
        )
    engine, engine_run = _engine(settings, run), _engine_run(run)
    engine.stop(engine_run)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while time.monotonic() < deadline:
        if (state := _state_now(settings, client, run.info.run_id)) not in GOING:
            from shopfloor.flows.queue import end_waiting_jobs

            end_waiting_jobs(settings, run.info.run_id)
            return state
        time.sleep(POLL_S)
    raise ServiceError(
        f"Run {run.info.run_id} was asked to stop and has not ended yet.", f"Look at {engine.name} run {engine_run}."
    )


def retry(settings: Settings, client: Any, run: Any, view: View) -> Outcome | Submitted:
    """Let a run that failed or was killed go on, with the very same parameters and in the same record.

    Raises:
        UsageError: It has not failed.
        ConflictError: Another command of this machine retries it.
        NotFoundError: Its engine does not know it any more, or it does not say what was asked for.
        ServiceError: Its engine does not answer.
    """
    _require_ended_badly(run)
    with _alone(settings, run.info.run_id):
        run = client.get_run(run.info.run_id)
        _require_ended_badly(run)  # another command, perhaps on another machine, may have begun it since
        engine = _engine(settings, run)
        if isinstance(engine, TakesJobs):
            return _retry_elsewhere(settings, client, run, engine)
        request = submission_of(run)
        texts = {"given": [f"{name}={_text(value)}" for name, value in request.arguments.items()], "use_case": None}
        return start(settings, engine.name, request.model_copy(update=texts), view, run_id=run.info.run_id)


@contextlib.contextmanager
def _alone(settings: Settings, run_id: str) -> Iterator[None]:
    """Keep two commands of this machine from beginning the same run again.

    Raises:
        ConflictError: Another one is at it.
    """
    try:
        with FileLock(settings.private_dir("locks") / f"retry-{run_id}.lock", timeout=LOCK_TIMEOUT_S, mode=0o600):
            yield
    except Timeout as error:
        raise ConflictError(
            f"Another command retries run {run_id}.", f"See how it goes on: shopfloor runs show {run_id}."
        ) from error


def _retry_elsewhere(settings: Settings, client: Any, run: Any, engine: TakesJobs) -> Submitted:
    state_before = _recorded_state(run)
    before = _engine_run(run)
    closed = run.data.tags
    run_records.reopen(
        client,
        run,
        {run_records.SUBMITTER: owner.this_process()},
        forget=(run_records.PROCESS, run_records.ENGINE_RUN),
    )
    try:
        after = engine.retry(before)
    except BaseException:
        client.set_tag(run.info.run_id, run_records.ENGINE_RUN, before)
        conclude.close(settings, client, run, state_before, closed.get(run_records.OUTCOME, ""))
        raise
    client.set_tag(run.info.run_id, run_records.ENGINE_RUN, after)
    return submitted(_at(settings, run), run, engine.name, after)


def _require_ended_badly(run: Any) -> None:
    state = _recorded_state(run)
    if state not in {"failed", "killed"}:
        verb = "goes on" if state == "running" else "has not failed"
        raise UsageError(f"Run {run.info.run_id} {verb}: {state}.", "To run it anew: `shopfloor runs resume`.")


def resume(settings: Settings, run: Any, view: View, max_cost: float | None = None) -> Outcome | Submitted:
    """Submit what a run was asked for once more: only what changed since, and what follows it, runs.

    Args:
        settings: The profile.
        run: MLflow's run.
        view: Hears of the steps of a local run.
        max_cost: What the new run may cost; `None`: as much as the one before might.

    Raises:
        UsageError: It goes on, or what was asked for is no longer there.
        ServiceError: A service is down.
    """
    if _recorded_state(run) == "running":
        raise UsageError(f"Run {run.info.run_id} goes on.", f"To end it: `shopfloor runs stop {run.info.run_id}`.")
    engine = _engine(settings, run)
    limit = {} if max_cost is None else {"max_cost": max_cost}
    request = submission_of(run).model_copy(update={"use_cache": True, "from_step": None, **limit})
    return start(_at(settings, run), engine.name, request, view)


def steps(settings: Settings, client: Any, run: Any) -> list[StepRecord]:
    """Return the steps of a run: those that are recorded, then those of which only its engine knows.

    A step in somebody else's image records nothing, and one that waits has not begun to. Where the engine cannot be
    asked, a warning says so.
    """
    records = run_records.steps_of(client, run)
    return records + _unrecorded(settings, run, records)


def queue(settings: Settings, run: Any) -> RunQueue | None:
    """Return why a run waits in a cluster's queue; `None` of one that has ended, or that no queue has."""
    here = _at(settings, run)
    engine = run.data.tags.get(run_records.ENGINE, "local")
    if engine != "argo" or not here.cluster.queue or _recorded_state(run) != "running":
        return None
    if run.data.tags.get(run_records.ENGINE_URL, "").rstrip("/") != engine_url(here, engine).rstrip("/"):
        return None
    from shopfloor.flows.queue import of_run

    return of_run(here, run.info.run_id)


def logs(settings: Settings, client: Any, run: Any, step: str | None = None, follow: bool = False) -> Iterator[str]:
    """Yield what the steps of a run printed, or one of them; with `follow`, a run that goes on until it ends.

    Raises:
        NotFoundError: It has no such step.
        ServiceError: Its engine does not answer.
    """
    if follow and _recorded_state(run) == "running":
        yield from _engine(settings, run).logs(_engine_run(run), step, follow=True)
        return
    records = run_records.steps_of(client, run)
    others = dict.fromkeys(record.name for record in _unrecorded(settings, run, records))
    matches = [record for record in records if step in {None, record.name}]
    if step in others:
        yield from _engine(settings, run).logs(_engine_run(run), step)
        return
    if step is not None and not matches:
        names = ", ".join([*dict.fromkeys(record.name for record in records), *others]) or "none yet"
        raise NotFoundError(f"Run {run.info.run_id!r} has no step {step!r}.", f"It has {names}.")
    count = 0
    for record in matches:
        text, whose = _step_log(settings, client, run, record), ""
        if text is None and record.result_of:
            text, whose = _log_of_maker(settings, client, record), f": result of run {record.result_of}"
        if text is not None:
            count += 1
            yield from [f"--- {record.name}{whose}"] if step is None or whose else []
            yield from text.splitlines()
    if not count:
        yield from _engine(settings, run).logs(_engine_run(run), step)
        return
    for other in others:
        yield f"--- {other}"
        yield from _engine(settings, run).logs(_engine_run(run), other)


def watch(settings: Settings, client: Any, run_id: str) -> Iterator[str]:
    """Yield the lines of a run's log as they come, until it has ended and its record says so."""
    run = client.get_run(run_id)
    yield from _engine(settings, run).logs(_engine_run(run), follow=True)
    while _state_now(settings, client, run_id) in GOING:
        time.sleep(WATCH_POLL_S)


def _state_now(settings: Settings, client: Any, run_id: str) -> str:
    """Return a run's state; closes its record where it has ended."""
    conclude.close_dead_runs(settings, client)
    run = client.get_run(run_id)
    return reconcile(settings, client, run) if _recorded_state(run) == "running" else _recorded_state(run)


def submission_of(run: Any) -> Submission:
    """Return what a run was asked for.

    Raises:
        NotFoundError: The run does not say.
    """
    text = run_records.submission_of(run)
    if not text:
        raise NotFoundError(f"Run {run.info.run_id} does not say what it was asked for.", "Submit its pipeline again.")
    return Submission.model_validate_json(text)


def _unrecorded(settings: Settings, run: Any, records: list[StepRecord]) -> list[StepRecord]:
    """Return the steps of which the run's engine knows, and of which there is no record."""
    if run_records.engine_run_of(run) is None:
        return []
    try:
        engine = _engine(settings, run)
        steps = engine.steps(_engine_run(run)) if isinstance(engine, KnowsSteps) else []
    except NotFoundError:
        # Its time to live is over, or it is with another server: the record is what is left.
        return []
    except ShopfloorError as error:
        logger.warning("Only what is recorded is shown: %s", error.message)
        return []
    names = {step.name for step in records}
    return [step for step in steps if step.name not in names]


def _engine(settings: Settings, run: Any) -> Engine:
    """Return the engine that has a run.

    Raises:
        NotFoundError: This profile names another one; says where the run is.
    """
    engine, here = run.data.tags.get(run_records.ENGINE, "local"), _at(settings, run)
    theirs = run.data.tags.get(run_records.ENGINE_URL, "")
    if theirs.rstrip("/") != engine_url(here, engine).rstrip("/"):
        raise NotFoundError(
            f"Run {run.info.run_id} is with {engine} at {theirs}, which profile {settings.profile!r} does not name.",
            f"Add --profile {run.data.tags.get('shopfloor.profile', 'cluster')}.",
        )
    return engine_of(here, engine)


def _at(settings: Settings, run: Any) -> Settings:
    """Return the settings with the Ray cluster that has the run: `--ray-address` may have named another one."""
    url = run.data.tags.get(run_records.ENGINE_URL)
    if run.data.tags.get(run_records.ENGINE) == "ray" and url:
        return settings.with_ray_dashboard(url)
    return settings


def _engine_run(run: Any) -> str:
    engine_run = run_records.engine_run_of(run)
    if engine_run is None:
        raise NotFoundError(f"Run {run.info.run_id} never reached its engine.", "Submit it again.")
    return engine_run


def _recorded_state(run: Any) -> str:
    return str(run.data.tags.get(run_records.STATE, "running"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _explain(client: Any, engine: Engine, run: Any) -> None:
    """Record of the steps that left no end of their own, such as one that was killed, why they failed."""
    errors: dict[str, str] = {}
    if isinstance(engine, KnowsSteps):
        with contextlib.suppress(ShopfloorError):
            errors = {step.name: step.error for step in engine.steps(_engine_run(run)) if step.state == "failed"}
    for record in run_records.steps_of(client, run):
        if record.run_id and record.state == "running" and errors.get(record.name):
            error = without_secrets(errors[record.name])[:MAX_CHARACTERS]
            client.set_tag(record.run_id, run_records.ERROR, error)


def _reason(client: Any, engine: Engine, run: Any, state: str) -> str:
    """Return why a run did not succeed, as far as no step says so."""
    if state == "killed":
        return "The run was stopped; `shopfloor runs resume` goes on."
    if state != "failed" or any(step.state == "failed" for step in run_records.steps_of(client, run)):
        return ""
    why = ""
    with contextlib.suppress(ShopfloorError):
        why = without_secrets(engine.why(_engine_run(run)))[:MAX_CHARACTERS]
    return f"The {engine.name} run failed: {why or 'it does not say why.'}"


def _step_log(settings: Settings, client: Any, run: Any, record: StepRecord) -> str | None:
    """Return a step's log: the recorded one, or, while it runs on this machine, the one that it writes."""
    text = _recorded_text(client, record.run_id, f"{record.name}.log", POD_LOG)
    if text is None or record.state == "running":
        with contextlib.suppress(OSError):
            return (log_folder(settings, run.info.run_id) / f"{record.name}.log").read_text(
                encoding="utf-8", errors="replace"
            )
    return text


def _log_of_maker(settings: Settings, client: Any, record: StepRecord) -> str:
    """Return the log of the step whose result a cached one took, or that it is gone."""
    with contextlib.suppress(NotFoundError), lookup(client):
        maker = client.get_run(record.result_of)
        for step in run_records.steps_of(client, maker):
            text = _step_log(settings, client, maker, step) if step.name == record.name else None
            if text is not None:
                return text
    return "Its log is not kept any more."


def _recorded_text(client: Any, run_id: str | None, *names: str) -> str | None:
    """Return the text of the first of these files that a step's run holds."""
    there = {item.path for item in client.list_artifacts(run_id)} if run_id is not None else set()
    name = next((name for name in names if name in there), None)
    if name is None:
        return None
    with tempfile.TemporaryDirectory() as directory:
        file = Path(client.download_artifacts(run_id, name, directory))
        return file.read_text(encoding="utf-8", errors="replace")
