"""A version on trial with real requests: its share, stage by stage, and the verdict of the gates at each of them.

The champion answers the others, and the version answers copies of those, so that the two can be compared. A bound that
is broken ends the trial at once: all requests go to the champion, and the registry says why. Killed in the middle, the
same command goes on from the stage that the endpoint has.
"""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from shopfloor.errors import NotFoundError, UsageError
from shopfloor.flows import promote as promotion
from shopfloor.judging import gates
from shopfloor.judging.live import COLUMNS, live_numbers
from shopfloor.records import GateResult, LiveNumbers, Record
from shopfloor.registry import passport as registry
from shopfloor.runs import recorder as tracking
from shopfloor.serving.deploy import applications, rollout
from shopfloor.serving.deploy.rollout import Traffic
from shopfloor.serving.prediction_log import read_log
from shopfloor.settings import Settings
from shopfloor.use_case import UseCase, load_use_case

TAG = "shopfloor.rollout"
"""Of a version: how its trial ended, and why."""
STAGES = (5.0, 25.0, 50.0, 100.0)
POLL_S = 2.0


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
    outcome: Literal["promoted", "rolled_back", "not_enough_data"]
    percent: float
    """Share at the end of the trial."""
    reason: str
    gates: list[GateResult]


def introduce(settings: Settings, use_case: str, version: str, traffic: Traffic) -> None:
    """Load a version beside the champion and give it its part of the requests.

    Raises:
        NotFoundError: There is no such version.
        UsageError: It is the champion, or the use case has none whose requests could be shared.
        ServiceError: MLflow or Ray does not answer.
        ShopfloorError: It does not load; what answered before still answers.
    """
    client = tracking.connect(settings)
    if not registry.version_exists(client, use_case, version):
        raise NotFoundError(
            f"There is no version {version} of a model {use_case!r}.", "`shopfloor models list` shows what there is."
        )
    champion = rollout.live_versions(settings, use_case).get("champion")
    if champion == version:
        raise UsageError(f"Version {version} is the champion of {use_case}.", "It answers all requests already.")
    if champion is None and traffic != rollout.NO_TRAFFIC:
        raise UsageError(f"{use_case} has no champion that answers.", f"shopfloor models promote {use_case}/{version}")
    rollout.deploy(settings, use_case, challenger=version, traffic=traffic)
    client.set_registered_model_alias(use_case, registry.CHALLENGER, version)


def status(settings: Settings, use_case: str, since: dt.datetime) -> RolloutStatus:
    """Return bound, value and verdict for both versions, from the requests since then.

    Raises:
        UsageError: A gate bounds an unknown metric.
        ServiceError: Ray does not answer.
    """
    case = load_use_case(settings, use_case)
    live = rollout.live_versions(settings, use_case)
    traffic = rollout.declared_traffic(settings, use_case)
    champion, challenger = live.get("champion"), live.get("challenger")
    log = _read(settings, use_case, since)
    versions: list[VersionVerdict] = []
    numbers = {version: _numbers(case, log, version, champion) for version in (champion, challenger) if version}
    percent = traffic.canary_percent if challenger else 0.0
    if champion:
        verdicts = gates.judge_live(case.gates.live, numbers[champion], None)
        versions.append(_verdict(champion, "champion", 100 - percent, numbers[champion], verdicts))
    if challenger:
        verdicts = gates.judge_live(case.gates.live, numbers[challenger], numbers.get(champion or ""))
        versions.append(_verdict(challenger, "challenger", percent, numbers[challenger], verdicts))
    return RolloutStatus(use_case=use_case, since=since, shadow=traffic.shadow, versions=versions)


def run(
    settings: Settings,
    use_case: str,
    version: str,
    progress: Callable[[str], None],
    stages: Sequence[float] = STAGES,
    stage_timeout_s: float = 600.0,
) -> RolloutResult:
    """Step a version through its stages and make it champion, or take it back.

    Args:
        settings: Say where everything is.
        use_case: Its name.
        version: The version on trial.
        progress: Is told what happens.
        stages: Shares in percent, rising.
        stage_timeout_s: How long a stage may wait for enough requests.

    Raises:
        UsageError: The stages do not rise from above 0 to 100 at most, there are no gates, or the log is off.
        ServiceError: MLflow or Ray does not answer; the same command goes on.
    """
    case = load_use_case(settings, use_case)
    _require_sense(case, stages)
    client = tracking.connect(settings)
    begun = dt.datetime.now(dt.UTC)
    present = rollout.declared_traffic(settings, use_case)
    resumed = rollout.live_versions(settings, use_case).get("challenger") == version
    remaining = [stage for stage in stages if not (resumed and stage < present.canary_percent)]
    verdicts: list[GateResult] = []
    for percent in remaining:
        introduce(settings, use_case, version, Traffic(canary_percent=percent, shadow=True))
        stage_begun = dt.datetime.now(dt.UTC)
        progress(f"Version {version} answers {percent:g} % of the requests")
        verdicts = _watch(settings, case, version, begun, stage_begun, stage_timeout_s)
        missed = [result for result in verdicts if not result.passed and not result.undecided]
        if missed:
            reason = f"{missed[0].gate} is {missed[0].value:.6g}, the bound is {missed[0].bound}"
            return _take_back(settings, client, case, version, percent, reason, verdicts)
        waiting = [result for result in verdicts if result.undecided]
        if waiting:
            rollout.deploy(settings, use_case, challenger=version)
            reason = f"{waiting[0].gate}: {waiting[0].note}"
            return _ended(client, case, version, "not_enough_data", percent, reason, verdicts)
    words = ", ".join(f"{stage:g}" for stage in stages)
    promotion.promote_version(settings, use_case, version, reason=f"its canary met the gates at {words} %")
    return _ended(client, case, version, "promoted", remaining[-1], f"the gates were met at {words} %", verdicts)


def _watch(
    settings: Settings,
    case: UseCase,
    version: str,
    begun: dt.datetime,
    stage_begun: dt.datetime,
    timeout_s: float,
) -> list[GateResult]:
    """Return the verdicts when each is decided or one is a miss, or when the time is over."""
    deadline = time.monotonic() + timeout_s
    while True:
        champion = rollout.live_versions(settings, case.name).get("champion")
        log = _read(settings, case.name, begun)
        recent = tuple(frame[frame["time"] >= stage_begun] for frame in log)
        verdicts = gates.judge_live(
            case.gates.live,
            _merged(case, log, recent, version, champion),
            _numbers(case, log, champion, None) if champion else None,
        )
        decided = not any(result.undecided for result in verdicts)
        missed = any(not result.passed and not result.undecided for result in verdicts)
        if decided or missed or time.monotonic() > deadline:
            return verdicts
        time.sleep(POLL_S)


def _merged(case: UseCase, log: Any, recent: Any, version: str, champion: str | None) -> LiveNumbers:
    """Return what a version did in this stage; agreement and quality rest on the whole trial, for they need more."""
    whole, stage = _numbers(case, log, version, champion), _numbers(case, recent, version, champion)
    own = {"p99_ms", "error_rate", "cost_per_1000"}
    return stage.model_copy(
        update={
            "metrics": {k: v for k, v in whole.metrics.items() if k not in own}
            | {k: v for k, v in stage.metrics.items() if k in own},
            "counts": {k: v for k, v in whole.counts.items() if k not in own}
            | {k: v for k, v in stage.counts.items() if k in own},
        }
    )


def _numbers(case: UseCase, log: Any, version: str, champion: str | None) -> LiveNumbers:
    predictions, feedback = log
    tolerance = case.gates.live.tolerance
    return live_numbers(predictions, feedback, version, champion, tolerance, case.serving.cost_per_hour)


def _read(settings: Settings, use_case: str, since: dt.datetime) -> tuple[Any, Any]:
    root = applications.log_root(settings)
    return (
        read_log(settings, root, use_case, "predictions", since, COLUMNS).to_pandas(),
        read_log(settings, root, use_case, "feedback", since).to_pandas(),
    )


def _verdict(
    version: str,
    role: Literal["champion", "challenger"],
    percent: float,
    numbers: LiveNumbers,
    verdicts: list[GateResult],
) -> VersionVerdict:
    return VersionVerdict(version=version, role=role, percent=percent, numbers=numbers, gates=verdicts)


def _require_sense(case: UseCase, stages: Sequence[float]) -> None:
    if not stages or list(stages) != sorted(set(stages)) or stages[0] <= 0 or stages[-1] > 100:
        raise UsageError(f"The stages {list(stages)} do not rise from above 0 to at most 100.", "--stages 5,25,50,100")
    if not case.gates.live.metrics and not case.gates.live.champion:
        raise UsageError(
            f"{case.name} has no bounds for real requests.", "Give gates.live in its use_case.yaml, or promote by hand."
        )
    if not case.serving.log:
        raise UsageError(f"{case.name} keeps no log of predictions.", "Set serving.log in its use_case.yaml.")


def _take_back(
    settings: Settings,
    client: Any,
    case: UseCase,
    version: str,
    percent: float,
    reason: str,
    verdicts: list[GateResult],
) -> RolloutResult:
    rollout.deploy(settings, case.name, challenger=None)
    if registry.alias_version(client, case.name, registry.CHALLENGER) == version:
        client.delete_registered_model_alias(case.name, registry.CHALLENGER)
    return _ended(client, case, version, "rolled_back", percent, reason, verdicts)


def _ended(
    client: Any,
    case: UseCase,
    version: str,
    outcome: Literal["promoted", "rolled_back", "not_enough_data"],
    percent: float,
    reason: str,
    verdicts: list[GateResult],
) -> RolloutResult:
    record = {"outcome": outcome, "percent": percent, "reason": reason, "when": dt.datetime.now(dt.UTC).isoformat()}
    client.set_model_version_tag(case.name, version, TAG, json.dumps(record))
    return RolloutResult(
        use_case=case.name, version=version, outcome=outcome, percent=percent, reason=reason, gates=verdicts
    )
