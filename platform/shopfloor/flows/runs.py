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
from typing import Any

from filelock import FileLock, Timeout

from shopfloor.engines.base import Engine, KnowsSteps, engine_url
from shopfloor.errors import ConflictError, NotFoundError, ServiceError, ShopfloorError, UsageError
from shopfloor.flows.dispatch import Submitted, engine_of, start, submitted
from shopfloor.flows.submission import Submission
from shopfloor.flows.submit import Outcome, View
from shopfloor.records import StepRecord
from shopfloor.runs import conclude
from shopfloor.runs import index as run_records
from shopfloor.runs.mlflow import lookup
from shopfloor.settings import Settings

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 45.0
"""How long a stopped run may take to end its steps and its record."""
POD_LOG = "step.log"
"""Name of the log that a step in a pod of its own records."""
POLL_S = 0.5
LOCK_TIMEOUT_S = 30.0
"""How long a retry waits for another command that retries the same run."""
WATCH_POLL_S = 2.0


def refresh(settings: Settings, client: Any) -> None:
    """Close the records of runs that have ended without a word; warns of engines that cannot be asked."""
    conclude.close_dead_runs(settings, client)
    silent: set[str] = set()
    for run in run_records.open_runs(client):
        engine = run.data.tags.get(run_records.ENGINE, "local")
        place = f"{engine} {run.data.tags.get(run_records.ENGINE_URL, '')}"
        if engine == "local" or run_records.ENGINE_RUN not in run.data.tags or place in silent:
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
    run_id, tags = run.info.run_id, run.data.tags
    engine = _engine(settings, run)
    try:
        state = str(engine.status(tags[run_records.ENGINE_RUN]))
        outcome = ""
    except NotFoundError:
        state, outcome = "killed", f"The {engine.name} engine no longer knows the run."
    if state in {"pending", "running"}:
        return state
    # The run may have written its own end since its record was read.
    run = client.get_run(run_id)
    recorded = str(run.data.tags.get(run_records.STATE, "running"))
    if recorded != "running" or run.data.tags.get(run_records.ENGINE_RUN) != tags[run_records.ENGINE_RUN]:
        return recorded
    if not outcome:
        outcome = _reason(client, engine, run, state)
    return conclude.close(settings, client, run, state, outcome)


def stop(settings: Settings, client: Any, run: Any) -> str:
    """End a run and return its state; what it finished stays finished.

    Raises:
        UsageError: It has ended already.
        ServiceError: Its engine does not answer, or it does not end.
    """
    recorded = _recorded(run)
    if recorded != "running":
        raise UsageError(
            f"Run {run.info.run_id} has ended already: {recorded}.", "`shopfloor runs list` shows what runs."
        )
    if _is_local(run):
        process = run_records.find_process(run)
        if process is not None:
            process.terminate()
        waited_for = f"process {process.pid}" if process else "its process"
    else:
        engine_run = _engine_run(run)
        _engine(settings, run).stop(engine_run)
        waited_for = f"{run.data.tags[run_records.ENGINE]} run {engine_run}"
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while time.monotonic() < deadline:
        conclude.close_dead_runs(settings, client)
        now = client.get_run(run.info.run_id)
        state = _recorded(now) if _is_local(run) or _recorded(now) != "running" else reconcile(settings, client, now)
        if state not in {"pending", "running"}:
            return state
        time.sleep(POLL_S)
    raise ServiceError(f"Run {run.info.run_id} was asked to stop and has not ended yet.", f"Look at {waited_for}.")


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
        if not _is_local(run):
            return _retry_elsewhere(settings, client, run)
        request = submission_of(run)
        texts = {"given": [f"{name}={_text(value)}" for name, value in request.arguments.items()], "use_case": None}
        return start(settings, "local", request.model_copy(update=texts), view, run_id=run.info.run_id)


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


def _retry_elsewhere(settings: Settings, client: Any, run: Any) -> Submitted:
    recorded = _recorded(run)
    engine = _engine(settings, run)
    before = _engine_run(run)
    closed = run.data.tags
    run_records.reopen(
        client,
        run,
        {run_records.SUBMITTER: run_records.this_process()},
        forget=(run_records.PROCESS, run_records.ENGINE_RUN),
    )
    try:
        after = engine.retry(before)
    except BaseException:
        client.set_tag(run.info.run_id, run_records.ENGINE_RUN, before)
        conclude.close(settings, client, run, recorded, closed.get(run_records.OUTCOME, ""))
        raise
    client.set_tag(run.info.run_id, run_records.ENGINE_RUN, after)
    return submitted(_at(settings, run), run, engine.name, after)


def _require_ended_badly(run: Any) -> None:
    recorded = _recorded(run)
    if recorded not in {"failed", "killed"}:
        verb = "goes on" if recorded == "running" else "has not failed"
        raise UsageError(f"Run {run.info.run_id} {verb}: {recorded}.", "To run it anew: `shopfloor runs resume`.")


def resume(settings: Settings, run: Any, view: View) -> Outcome | Submitted:
    """Submit what a run was asked for once more: only what changed since, and what follows it, runs.

    Raises:
        UsageError: It goes on, or what was asked for is no longer there.
        ServiceError: A service is down.
    """
    if _recorded(run) == "running":
        raise UsageError(f"Run {run.info.run_id} goes on.", f"To end it: `shopfloor runs stop {run.info.run_id}`.")
    engine = run.data.tags.get(run_records.ENGINE, "local")
    _require_profile(settings, run)
    request = submission_of(run).model_copy(update={"use_cache": True, "from_step": None})
    return start(_at(settings, run), engine, request, view)


def steps(settings: Settings, client: Any, run: Any) -> list[StepRecord]:
    """Return the steps of a run: those that are recorded, then those of which only its engine knows.

    A step in somebody else's image records nothing, and one that waits has not begun to. Where the engine cannot be
    asked, a warning says so.
    """
    recorded = run_records.steps_of(client, run)
    return recorded + _unrecorded(settings, run, recorded)


def logs(settings: Settings, client: Any, run: Any, step: str | None = None, follow: bool = False) -> Iterator[str]:
    """Yield what the steps of a run printed, or one of them; with `follow`, a run that goes on until it ends.

    Raises:
        NotFoundError: It has no such step.
        ServiceError: Its engine does not answer.
    """
    if follow and _recorded(run) == "running":
        if _is_local(run):
            yield from _follow_here(settings, client, run, step)
        else:
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
    if not count and not _is_local(run):
        yield from _engine(settings, run).logs(_engine_run(run), step)
        return
    for other in others:
        yield f"--- {other}"
        yield from _engine(settings, run).logs(_engine_run(run), other)


def watch(settings: Settings, client: Any, run_id: str) -> Iterator[str]:
    """Yield the lines of a run's log as they come, until it has ended and its record says so."""
    run = client.get_run(run_id)
    if not _is_local(run):
        yield from _engine(settings, run).logs(_engine_run(run), follow=True)
    while True:
        conclude.close_dead_runs(settings, client)
        run = client.get_run(run_id)
        ended = _recorded(run) != "running"
        if ended or (not _is_local(run) and reconcile(settings, client, run) not in {"pending", "running"}):
            return
        time.sleep(WATCH_POLL_S)


def submission_of(run: Any) -> Submission:
    """Return what a run was asked for.

    Raises:
        NotFoundError: The run does not say.
    """
    text = run_records.submission_of(run)
    if not text:
        raise NotFoundError(f"Run {run.info.run_id} does not say what it was asked for.", "Submit its pipeline again.")
    return Submission.model_validate_json(text)


def _unrecorded(settings: Settings, run: Any, recorded: list[StepRecord]) -> list[StepRecord]:
    """Return the steps of which the run's engine knows, and of which there is no record."""
    if _is_local(run) or run_records.ENGINE_RUN not in run.data.tags:
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
    names = {step.name for step in recorded}
    return [step for step in steps if step.name not in names]


def _engine(settings: Settings, run: Any) -> Engine:
    _require_profile(settings, run)
    return engine_of(_at(settings, run), run.data.tags[run_records.ENGINE])


def _at(settings: Settings, run: Any) -> Settings:
    """Return the settings with the Ray cluster that has the run: `--ray-address` may have named another one."""
    url = run.data.tags.get(run_records.ENGINE_URL)
    if run.data.tags.get(run_records.ENGINE) == "ray" and url:
        return settings.with_ray_dashboard(url)
    return settings


def _require_profile(settings: Settings, run: Any) -> None:
    """Refuse a run that an engine elsewhere has.

    Raises:
        NotFoundError: It says where.
    """
    engine = run.data.tags.get(run_records.ENGINE, "local")
    if engine in {"local", "ray"}:
        return
    theirs = run.data.tags.get(run_records.ENGINE_URL, "")
    if theirs != engine_url(settings, engine):
        raise NotFoundError(
            f"Run {run.info.run_id} is with {engine} at {theirs}, which profile {settings.profile!r} does not name.",
            f"Add --profile {run.data.tags.get('shopfloor.profile', 'cluster')}.",
        )


def _engine_run(run: Any) -> str:
    engine_run = run.data.tags.get(run_records.ENGINE_RUN)
    if engine_run is None:
        raise NotFoundError(f"Run {run.info.run_id} never reached its engine.", "Submit it again.")
    return str(engine_run)


def _is_local(run: Any) -> bool:
    return bool(run.data.tags.get(run_records.ENGINE, "local") == "local")


def _recorded(run: Any) -> str:
    return str(run.data.tags.get(run_records.STATE, "running"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _reason(client: Any, engine: Engine, run: Any, state: str) -> str:
    """Return why a run did not succeed, as far as no step says so."""
    if state == "killed":
        return "The run was stopped; `shopfloor runs resume` goes on."
    if state != "failed" or any(step.state == "failed" for step in run_records.steps_of(client, run)):
        return ""
    last = ""
    with contextlib.suppress(ShopfloorError):
        last = next((line for line in reversed(list(engine.logs(_engine_run(run)))) if line.strip()), "")
    return f"The {engine.name} run failed: {last or 'it left no log.'}"


def _step_log(settings: Settings, client: Any, run: Any, record: StepRecord) -> str | None:
    """Return a step's log: the recorded one, or, while it runs on this machine, the one that it writes."""
    text = _recorded_text(client, record.run_id, f"{record.name}.log", POD_LOG)
    if text is None or record.state == "running":
        with contextlib.suppress(OSError):
            return (_logs_here(settings, run) / f"{record.name}.log").read_text(encoding="utf-8", errors="replace")
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


def _logs_here(settings: Settings, run: Any) -> Path:
    """Return where the local engine keeps the logs of a run's steps."""
    return settings.state_dir / "runs" / str(run.info.run_id) / "logs"


def _follow_here(settings: Settings, client: Any, run: Any, step: str | None) -> Iterator[str]:
    """Yield what the steps of a run on this machine print, as they print it, until the run ends."""
    folder = _logs_here(settings, run)
    read: dict[str, int] = {}
    last = ""
    while True:
        ended = _recorded(client.get_run(run.info.run_id)) != "running"
        for file in sorted(folder.glob(f"{step or '*'}.log"), key=lambda file: file.stat().st_mtime):
            text = file.read_bytes()[read.get(file.stem, 0) :]
            whole = text if ended else text[: text.rfind(b"\n") + 1]
            if not whole:
                continue
            read[file.stem] = read.get(file.stem, 0) + len(whole)
            yield from [f"--- {file.stem}"] if step is None and last != file.stem else []
            last = file.stem
            yield from whole.decode(errors="replace").splitlines()
        if ended:
            return
        time.sleep(POLL_S)
        conclude.close_dead_runs(settings, client)


def _recorded_text(client: Any, run_id: str | None, *names: str) -> str | None:
    """Return the text of the first of these files that a step's run holds."""
    there = {item.path for item in client.list_artifacts(run_id)} if run_id is not None else set()
    name = next((name for name in names if name in there), None)
    if name is None:
        return None
    with tempfile.TemporaryDirectory() as directory:
        file = Path(client.download_artifacts(run_id, name, directory))
        return file.read_text(encoding="utf-8", errors="replace")
