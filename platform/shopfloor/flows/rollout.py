"""A version on trial with real requests: its share, stage by stage, and the verdict of the gates at each of them.

The champion answers the others, and the version answers copies of those, so that the two can be compared. A bound that
is broken ends the trial at once: all requests go to the champion, and the registry says why. Who judges renews the
lease of the version's share: killed in the middle, the share ends by itself, and the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from shopfloor.errors import ServiceError, ShopfloorError, UsageError
from shopfloor.judging import gates
from shopfloor.judging.metrics import of_use_case
from shopfloor.records import GateResult, LiveNumbers, Record
from shopfloor.registry import compatibility
from shopfloor.runs.mlflow import Mlflow, version_of
from shopfloor.serving import assignment as assignments
from shopfloor.serving.assignment import Entry
from shopfloor.serving.contract import LEASE_ENDED, LEASE_S
from shopfloor.serving.deploy import champion, jobs, rollout
from shopfloor.serving.deploy.rollout import Traffic
from shopfloor.serving.monitoring import numbers_of, read_requests
from shopfloor.settings import Settings
from shopfloor.use_case import ImportedCase, ServedCase, load_served_case

TAG = "shopfloor.rollout"
"""Tag of a version: how its trial ended, and why."""
STAGES = (5.0, 25.0, 50.0, 100.0)
POLL_S = 2.0
GUARD_POLL_S = 5.0
Ending = Literal["promoted", "rolled_back", "not_enough_data"]


class VersionVerdict(Record):
    """What a version did, and what the gates say to it."""

    version: str
    role: Literal["champion", "challenger"]
    percent: float
    """Share of the requests that it answers."""
    numbers: LiveNumbers
    gates: list[GateResult]


class RolloutStatus(Record):
    """How a trial stands."""

    use_case: str
    since: dt.datetime
    shadow: bool
    versions: list[VersionVerdict]


class RolloutResult(Record):
    """How a trial ended."""

    use_case: str
    version: str
    outcome: Ending
    percent: float
    """Share at the end of the trial."""
    reason: str
    gates: list[GateResult]


def introduce(
    settings: Settings,
    use_case: str,
    version: str,
    traffic: Traffic,
    lease_s: float | None = None,
    before: Entry | None = None,
) -> Entry:
    """Load a version beside the champion and give it its part of the requests.

    The first version of a model that was imported is champion at once: no run made it, which would have been judged,
    and nobody answers whom it could be compared with. Deployed again, it gets what use_case.yaml says of serving now.

    Args:
        settings: Say where everything is.
        use_case: Its name.
        version: A version in the registry.
        traffic: What it gets.
        lease_s: How long it keeps its share where the caller does not renew its lease; `None` until somebody ends it.
        before: What the caller read of the registry before it decided; `None` reads it now.

    Raises:
        NotFoundError: There is no such version.
        UsageError: It is the champion, the use case has none whose requests could be shared, or the champion's clients
            would be refused by it.
        ConflictError: Somebody else changed who answers in between.
        ServiceError: MLflow or Ray does not answer.
        ShopfloorError: It does not load; what answered before still answers.
    """
    case = load_served_case(settings, use_case)
    mlflow = rollout.registry(settings)
    version_of(mlflow, use_case, version)
    entry = champion.current(mlflow, use_case, before)
    champion.project(mlflow, use_case, entry)
    assignment = entry.assignment
    alone = assignment.challenger is None and traffic == rollout.NO_TRAFFIC
    if isinstance(case, ImportedCase) and alone and assignment.champion in {None, version}:
        champion.promote_version(settings, use_case, version, "the first version of an imported model", entry)
        return assignments.read(mlflow, use_case)
    if assignment.champion == version:
        on_trial = f"End the trial of version {assignment.challenger} first: shopfloor rollout end {use_case}"
        raise UsageError(
            f"Version {version} is the champion of {use_case}.",
            on_trial if assignment.challenger else "It answers all requests already.",
        )
    if assignment.champion is None and traffic != rollout.NO_TRAFFIC:
        raise UsageError(f"{use_case} has no champion that answers.", f"shopfloor models promote {use_case}/{version}")
    if traffic.canary_percent and case.gates.signature == "compatible":
        refuse_what_clients_cannot_ask(settings, use_case, version, assignment.champion)
    entry = rollout.deploy(settings, use_case, challenger=version, traffic=traffic, lease_s=lease_s, before=entry)
    champion.project(mlflow, use_case, entry)
    return entry


def refuse_what_clients_cannot_ask(settings: Settings, use_case: str, version: str, present: str | None) -> None:
    """Refuse a share for a version that refuses the champion's clients: no gate would see it, a 422 is a client's own.

    Raises:
        UsageError: It lacks an input of the champion's, or requires another one.
        ServiceError: MLflow does not answer.
    """
    if concern := compatibility.concern(settings, use_case, version, present):
        raise UsageError(concern, "Give it the shadow alone, or let gates.signature be `any`.")


def end(settings: Settings, use_case: str, reason: str = "", before: Entry | None = None) -> str:
    """Take the version on trial off the endpoint, and return which it was.

    Raises:
        UsageError: No version is on trial.
        ConflictError: Somebody else changed who answers in between.
        ServiceError: MLflow or Ray does not answer.
    """
    mlflow = rollout.registry(settings)
    entry = champion.current(mlflow, use_case, before)
    version = entry.assignment.challenger
    if version is None:
        raise UsageError(f"{use_case} has no version on trial.", "`shopfloor deploy` puts one beside the champion.")
    champion.project(mlflow, use_case, entry)
    entry = rollout.deploy(settings, use_case, challenger=None, action="end", reason=reason, before=entry)
    champion.project(mlflow, use_case, entry)
    return version


def remove(settings: Settings, use_case: str, reason: str = "") -> bool:
    """Remove an endpoint and its champion, and tell whether there was one; the model's versions stay.

    Raises:
        ConflictError: Somebody else changed who answers in between.
        ServiceError: MLflow or Ray does not answer.
    """
    mlflow = rollout.registry(settings)
    champion.project(mlflow, use_case, assignments.read(mlflow, use_case))
    removed = rollout.undeploy(settings, use_case, reason)
    champion.project(mlflow, use_case, assignments.read(mlflow, use_case))
    return removed


def status(settings: Settings, use_case: str, since: dt.datetime) -> RolloutStatus:
    """Return bound, value and verdict for both versions, from the requests since then.

    Raises:
        UsageError: A gate bounds an unknown metric.
        ServiceError: Ray does not answer.
    """
    case = load_served_case(settings, use_case)
    gates.require_known(settings, case)
    assignment = assignments.read(rollout.registry(settings), use_case).assignment
    present, challenger = assignment.champion, assignment.challenger
    log = read_requests(settings, use_case, since)
    versions: list[VersionVerdict] = []
    numbers = {version: numbers_of(case, log, version, present) for version in (present, challenger) if version}
    percent = rollout.live_share(settings, use_case) if challenger else 0.0
    if present:
        verdicts = gates.judge_live(case.gates.live, of_use_case(case), numbers[present], None)
        versions.append(_verdict(present, "champion", 100 - percent, numbers[present], verdicts))
    if challenger:
        verdicts = gates.judge_live(case.gates.live, of_use_case(case), numbers[challenger], numbers.get(present or ""))
        versions.append(_verdict(challenger, "challenger", percent, numbers[challenger], verdicts))
    return RolloutStatus(use_case=use_case, since=since, shadow=assignment.shadow, versions=versions)


def run(
    settings: Settings,
    use_case: str,
    version: str,
    progress: Callable[[str], None],
    stages: Sequence[float] = STAGES,
    stage_timeout_s: float = 600.0,
    lease_s: float = LEASE_S,
) -> RolloutResult:
    """Step a version through its stages and make it champion, or take it back.

    Args:
        settings: Say where everything is.
        use_case: Its name.
        version: The version on trial.
        progress: Is told what happens.
        stages: Shares in percent, rising.
        stage_timeout_s: How long a stage may wait for enough requests.
        lease_s: How long the version keeps its share where this process is killed or paused.

    Raises:
        UsageError: The stages do not rise from above 0 to 100 at most, there are no gates, or the log is off.
        ConflictError: Somebody else changed who answers; says who.
        ServiceError: MLflow or Ray does not answer; the same command goes on.
    """
    case = load_served_case(settings, use_case)
    gates.require_known(settings, case)
    _require_sense(case, stages)
    mlflow = rollout.registry(settings)
    start = dt.datetime.now(dt.UTC)
    entry = assignments.read(mlflow, use_case)
    present = entry.assignment
    resumed = present.challenger == version
    remaining = [stage for stage in stages if not (resumed and stage < present.canary_percent)]
    verdicts: list[GateResult] = []
    for percent in remaining:
        share = Traffic(canary_percent=percent, shadow=True)
        entry = introduce(settings, use_case, version, share, lease_s, entry)
        progress(f"Version {version} answers {percent:g} % of the requests")
        with _lease(mlflow, use_case, entry):
            verdicts = _watch(settings, mlflow, case, entry, version, start, stage_timeout_s, lease_s)
        missed = _missed(verdicts)
        if missed:
            reason = f"{missed[0].gate} is {missed[0].value:.6g}, the bound is {missed[0].bound}"
            end(settings, use_case, reason, entry)
            return _ended(mlflow, case, version, "rolled_back", percent, reason, verdicts)
        waiting = [result for result in verdicts if result.undecided]
        if waiting:
            rollout.deploy(settings, use_case, challenger=version, before=entry)
            reason = f"{waiting[0].gate}: {waiting[0].note}"
            return _ended(mlflow, case, version, "not_enough_data", percent, reason, verdicts)
    words = ", ".join(f"{stage:g}" for stage in stages)
    champion.promote_version(settings, use_case, version, f"its canary met the gates at {words} %", entry)
    return _ended(mlflow, case, version, "promoted", remaining[-1], f"the gates were met at {words} %", verdicts)


def detach(settings: Settings, use_case: str, version: str, stages: Sequence[float], stage_timeout_s: float) -> str:
    """Let a Ray job do what `run` does, and return its id; the terminal may go.

    Raises:
        NotFoundError: There is no such version.
        UsageError: As `run` says.
        ServiceError: MLflow or Ray does not answer.
    """
    _require_sense(load_served_case(settings, use_case), stages)
    version_of(rollout.registry(settings), use_case, version)
    percents = ",".join(f"{stage:g}" for stage in stages)
    options = ("--stages", percents, "--stage-timeout", f"{stage_timeout_s:g}s")
    return jobs.begin(settings, "rollout", "run", f"{use_case}/{version}", *options)


def guard(settings: Settings, use_case: str, progress: Callable[[str], None]) -> RolloutResult | None:
    """Judge a new champion for the time that its use case sets, and roll it back where a bound is broken.

    Args:
        settings: Say where everything is.
        use_case: Its name.
        progress: Is told what happens.

    Returns:
        How the champion ended; `None` where it stays, or somebody else has changed it.

    Raises:
        ServiceError: MLflow, Ray or the log of predictions does not answer, at the first look or at the last one.
    """
    case = load_served_case(settings, use_case)
    gates.require_known(settings, case)
    mlflow = rollout.registry(settings)
    version = assignments.read(mlflow, use_case).assignment.champion
    if version is None:
        return None
    start = dt.datetime.now(dt.UTC)
    deadline = time.monotonic() + case.gates.live.watch_s
    progress(f"Version {version} of {use_case} is watched for {case.gates.live.watch_s:g} s")
    while True:
        last = time.monotonic() > deadline
        try:
            entry = assignments.read(mlflow, use_case)
            if entry.assignment.champion != version:
                return None
            numbers = numbers_of(case, read_requests(settings, use_case, start), version, version)
            verdicts = gates.judge_live(case.gates.live, of_use_case(case), numbers, None)
            if missed := _missed(verdicts):
                bound = f"the bound is {missed[0].bound}"
                reason = f"after its promotion {missed[0].gate} is {missed[0].value:.6g}, {bound}"
                champion.roll_back(settings, use_case, reason, entry)
                return _ended(mlflow, case, version, "rolled_back", 100, reason, verdicts)
        except ServiceError as error:
            if last:
                raise
            progress(f"Version {version} of {use_case} is looked at again: {error.message}")
        if last:
            return None
        time.sleep(GUARD_POLL_S)


@contextlib.contextmanager
def _lease(mlflow: Mlflow, use_case: str, entry: Entry) -> Any:
    """Give the share back at once where who judges is stopped; one that is killed cannot, and its lease runs out."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(ShopfloorError):
            assignments.renew(mlflow, use_case, entry, LEASE_ENDED)
        raise


def _watch(
    settings: Settings,
    mlflow: Mlflow,
    case: ServedCase,
    entry: Entry,
    version: str,
    start: dt.datetime,
    timeout_s: float,
    lease_s: float,
) -> list[GateResult]:
    """Return the verdicts when each is decided or one is a miss, or when the time is over.

    Raises:
        ConflictError: Somebody else changed who answers.
        ServiceError: MLflow or the log of predictions did not answer for as long as the lease holds.
    """
    stage_begun = dt.datetime.now(dt.UTC)
    present = entry.assignment.champion
    renewal_s = time.monotonic()
    judgement_s = renewal_s
    deadline = renewal_s + timeout_s
    while True:
        try:
            assignments.require_same(case.name, entry, assignments.read(mlflow, case.name))
            if time.monotonic() - renewal_s > lease_s / 6:
                assignments.renew(mlflow, case.name, entry, assignments.fresh_lease(lease_s))
                renewal_s = time.monotonic()
        except ServiceError:
            if time.monotonic() - renewal_s > lease_s:
                raise
        try:
            log = read_requests(settings, case.name, start)
        except ServiceError:
            if time.monotonic() - judgement_s > lease_s:
                raise
            time.sleep(POLL_S)
            continue
        judgement_s = time.monotonic()
        recent = tuple(frame[frame["time"] >= stage_begun] for frame in log)
        verdicts = gates.judge_live(
            case.gates.live,
            of_use_case(case),
            _merged(case, log, recent, version, present),
            numbers_of(case, log, present, None) if present else None,
        )
        if not any(result.undecided for result in verdicts) or _missed(verdicts) or time.monotonic() > deadline:
            return verdicts
        time.sleep(POLL_S)


def _missed(verdicts: Sequence[GateResult]) -> list[GateResult]:
    return [result for result in verdicts if not result.passed and not result.undecided]


def _merged(case: ServedCase, log: Any, recent: Any, version: str, present: str | None) -> LiveNumbers:
    """Return what a version did in this stage; agreement and quality rest on the whole trial, for they need more."""
    whole, stage = numbers_of(case, log, version, present), numbers_of(case, recent, version, present)
    own = {"p99_ms", "error_rate", "cost_per_1000"}
    return stage.model_copy(
        update={
            "metrics": {k: v for k, v in whole.metrics.items() if k not in own}
            | {k: v for k, v in stage.metrics.items() if k in own},
            "counts": {k: v for k, v in whole.counts.items() if k not in own}
            | {k: v for k, v in stage.counts.items() if k in own},
        }
    )


def _verdict(
    version: str,
    role: Literal["champion", "challenger"],
    percent: float,
    numbers: LiveNumbers,
    verdicts: list[GateResult],
) -> VersionVerdict:
    return VersionVerdict(version=version, role=role, percent=percent, numbers=numbers, gates=verdicts)


def _require_sense(case: ServedCase, stages: Sequence[float]) -> None:
    if not stages or list(stages) != sorted(set(stages)) or stages[0] <= 0 or stages[-1] > 100:
        raise UsageError(f"The stages {list(stages)} do not rise from above 0 to at most 100.", "--stages 5,25,50,100")
    if not case.gates.live.metrics and not case.gates.live.champion:
        raise UsageError(
            f"{case.name} has no bounds for real requests.", "Give gates.live in its use_case.yaml, or promote by hand."
        )
    if not case.serving.log:
        raise UsageError(f"{case.name} keeps no log of predictions.", "Set serving.log in its use_case.yaml.")


def _ended(
    mlflow: Mlflow,
    case: ServedCase,
    version: str,
    outcome: Ending,
    percent: float,
    reason: str,
    verdicts: list[GateResult],
) -> RolloutResult:
    record = {"outcome": outcome, "percent": percent, "reason": reason, "when": dt.datetime.now(dt.UTC).isoformat()}
    content = {"name": case.name, "version": version, "key": TAG, "value": json.dumps(record)}
    mlflow.post("model-versions/set-tag", content)
    return RolloutResult(
        use_case=case.name, version=version, outcome=outcome, percent=percent, reason=reason, gates=verdicts
    )
