"""Gates: a use case's bounds against a model's numbers. Pure, so that whoever judges later judges the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from shopfloor.errors import UsageError
from shopfloor.judging.metrics import Metric, metric_named, of_requests, of_test_set, of_use_case
from shopfloor.records import ColumnDrift, GateResult, LiveNumbers, SliceResult
from shopfloor.settings import Settings
from shopfloor.use_case import Bound, DriftBound, GatesSection, LiveGates, ServedCase, where


def require_known(settings: Settings, use_case: ServedCase) -> tuple[Metric, ...]:
    """Return a use case's metrics; every gate bounds one of them, or what real requests show.

    Raises:
        UsageError: One does not; the message names file, line and key. Or `metrics.py` is broken.
    """
    metrics, gates = of_use_case(use_case), use_case.gates
    sections: list[tuple[str, Iterable[str], tuple[Metric, ...]]] = [
        ("gates.metrics", gates.metrics, of_test_set(metrics)),
        ("gates.slices", gates.slices, of_test_set(metrics)),
        ("gates.champion", gates.champion, of_test_set(metrics)),
        ("gates.live.metrics", gates.live.metrics, of_requests(metrics)),
        ("gates.live.champion", gates.live.champion, of_requests(metrics)),
    ]
    for section, names, choice in sections:
        for name in names:
            try:
                metric_named(name, choice)
            except UsageError as error:
                place = where(settings, use_case.name, *section.split("."), name)
                raise UsageError(f"{place}: {error.message}", error.remedy) from None
    return metrics


def judge(
    gates: GatesSection,
    known: Sequence[Metric],
    metrics: Mapping[str, float],
    slices: Sequence[SliceResult],
    champion: str | None,
    champion_metrics: Mapping[str, Mapping[str, float]],
    champion_note: str = "",
) -> list[GateResult]:
    """Return the verdict of every gate.

    Args:
        gates: The bounds.
        known: Metrics of the use case.
        metrics: The model's metrics on all test rows.
        slices: Its metrics by slice.
        champion: The champion's version, `None` where there is none: then its gates are met.
        champion_metrics: Version to its metrics on the same rows, of the champion and the champions before it that
            count; without the champion where it could not be scored.
        champion_note: Why it could not.

    Raises:
        UsageError: A gate bounds an unknown metric.
    """
    names = (*gates.metrics, *gates.slices, *gates.champion)
    bounded = {name: metric_named(name, of_test_set(known)) for name in names}
    results = [_bounded(name, bound, metrics.get(name)) for name, bound in gates.metrics.items()]
    for name, slice_bound in gates.slices.items():
        judged = [
            _bounded(f"{name}[{item.column}={item.value}]", slice_bound, item.metrics[name])
            for item in slices
            if item.rows >= slice_bound.min_rows and name in item.metrics
        ]
        if judged:
            # The worst slice stands for all: whether any is missed, and by how much.
            results.append(max(judged, key=lambda result: (result.missed_by, -_margin(result, slice_bound))))
        else:
            note = f"no slice has {slice_bound.min_rows} rows on which it is defined"
            results.append(
                GateResult(gate=f"{name} by slice", bound=_words(slice_bound), value=None, passed=True, note=note)
            )
    for name, champion_bound in gates.champion.items():
        results.append(
            _against_champions(
                bounded[name], champion_bound.max_loss, metrics.get(name), champion, champion_metrics, champion_note
            )
        )
    return results


def judge_live(
    gates: LiveGates, known: Sequence[Metric], numbers: LiveNumbers, champion: LiveNumbers | None
) -> list[GateResult]:
    """Return the verdict of every gate on what a version did for real requests.

    Args:
        gates: The bounds.
        known: Metrics of the use case.
        numbers: The version's.
        champion: The champion's over the same time; `None` where the version is champion itself.

    Raises:
        UsageError: A gate bounds an unknown metric.
    """
    bounded = {name: metric_named(name, of_requests(known)) for name in (*gates.metrics, *gates.champion)}
    results = []
    for name, bound in gates.metrics.items():
        missing = _too_few(gates, name, numbers)
        if champion is None and name == "agreement":
            continue  # with itself
        result = _bounded(name, bound, numbers.metrics.get(name))
        results.append(_undecided(result, missing) if missing else result)
    if champion is None:
        return results
    for name, champion_bound in gates.champion.items():
        missing = _too_few(gates, name, numbers) or _too_few(gates, name, champion)
        theirs = {champion.version: champion.metrics}
        result = _against_champions(
            bounded[name], champion_bound.max_loss, numbers.metrics.get(name), champion.version, theirs, ""
        )
        results.append(_undecided(result, missing) if missing else result)
    return results


def judge_drift(bound: DriftBound, drift: Sequence[ColumnDrift], test_rows: int, note: str = "") -> GateResult:
    """Return the verdict on the column that is furthest from where it was.

    Args:
        bound: How far it may be.
        drift: Of each column.
        test_rows: Rows of the test set that it is far from.
        note: Why there is none.
    """
    words = f"<= {bound.max:g}"
    if not drift:
        why = note or "there are no rows to compare"
        return _undecided(GateResult(gate="drift", bound=words, value=None, passed=False), why)
    furthest = max(drift, key=lambda column: column.distance)
    missed_by = max(0.0, furthest.distance - bound.max)
    gate = f"drift[{furthest.column}]"
    result = GateResult(gate=gate, bound=words, value=furthest.distance, passed=missed_by == 0, missed_by=missed_by)
    if test_rows < bound.min_rows:
        return _undecided(result, f"not enough data: the test set has {test_rows} of {bound.min_rows} rows")
    if furthest.rows < bound.min_rows:
        return _undecided(result, f"not enough data: {furthest.rows} of {bound.min_rows} rows")
    return result


def _too_few(gates: LiveGates, name: str, numbers: LiveNumbers) -> str:
    count = numbers.counts.get(name, 0)
    if name in numbers.metrics and count >= gates.min_requests:
        return ""
    return f"not enough data: version {numbers.version} has {count} of {gates.min_requests} answers"


def _undecided(result: GateResult, why: str) -> GateResult:
    return result.model_copy(update={"passed": False, "undecided": True, "missed_by": 0.0, "note": why})


def _bounded(gate: str, bound: Bound, value: float | None) -> GateResult:
    if value is None or math.isnan(value):
        return GateResult(gate=gate, bound=_words(bound), value=None, passed=False, note="the metric is not defined")
    missed_by = max(0.0, bound.min - value if bound.min is not None else value - (bound.max or 0.0))
    return GateResult(gate=gate, bound=_words(bound), value=value, passed=missed_by == 0, missed_by=missed_by)


def _against_champions(
    metric: Metric,
    max_loss: float,
    value: float | None,
    champion: str | None,
    champions: Mapping[str, Mapping[str, float]],
    champion_note: str,
) -> GateResult:
    gate = f"{metric.name} vs champion"
    if champion is None:
        return GateResult(gate=gate, bound="none", value=value, passed=True, note="there is no champion yet")
    theirs = {version: numbers[metric.name] for version, numbers in champions.items() if metric.name in numbers}
    if champion not in theirs or value is None:
        # Nobody can say that the new one is not worse; a person must decide.
        note = champion_note or "the champion could not be scored on these rows"
        return GateResult(gate=gate, bound=f"version {champion}", value=value, passed=False, note=note)
    # Against the present champion alone, each run could lose a little more.
    best = max(theirs, key=lambda version: theirs[version] if metric.higher_is_better else -theirs[version])
    if theirs[best] == theirs[champion]:
        best = champion
    bound = Bound(min=theirs[best] - max_loss) if metric.higher_is_better else Bound(max=theirs[best] + max_loss)
    result = _bounded(gate, bound, value)
    earlier = "" if best == champion else f", a champion before version {champion},"
    return result.model_copy(update={"note": f"version {best}{earlier} has {theirs[best]:.4f}"})


def _margin(result: GateResult, bound: Bound) -> float:
    if result.value is None:
        return -math.inf
    return result.value - bound.min if bound.min is not None else (bound.max or 0.0) - result.value


def _words(bound: Bound) -> str:
    return f">= {bound.min:.4g}" if bound.min is not None else f"<= {bound.max:.4g}"
