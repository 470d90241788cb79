"""Gates: a use case's bounds against a model's numbers. Pure, so that whoever judges later judges the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from shopfloor.errors import UsageError
from shopfloor.records import GateResult, LiveNumbers, SliceResult
from shopfloor.use_case import Bound, GatesSection, LiveGates

HIGHER_IS_BETTER = {"roc_auc": True, "pr_auc": True, "log_loss": False, "brier": False, "calibration_error": False}
"""The metrics of a test set that a gate can bound."""
LIVE_HIGHER_IS_BETTER = HIGHER_IS_BETTER | {
    "agreement": True,
    "p99_ms": False,
    "error_rate": False,
    "cost_per_1000": False,
}
"""Those of real requests."""


def judge(
    gates: GatesSection,
    metrics: Mapping[str, float],
    slices: Sequence[SliceResult],
    champion: str | None,
    champion_metrics: Mapping[str, float],
    champion_note: str = "",
) -> list[GateResult]:
    """Return the verdict of every gate.

    Args:
        gates: The bounds.
        metrics: The model's metrics on all test rows.
        slices: Its metrics by slice.
        champion: The champion's version, `None` where there is none: then its gates are met.
        champion_metrics: The champion's metrics on the same rows; empty where it could not be scored.
        champion_note: Why it could not.

    Raises:
        UsageError: A gate bounds an unknown metric.
    """
    _require_known((*gates.metrics, *gates.slices, *gates.champion), HIGHER_IS_BETTER)
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
            note = f"no slice has {slice_bound.min_rows} rows of both kinds"
            results.append(
                GateResult(gate=f"{name} by slice", bound=_words(slice_bound), value=None, passed=True, note=note)
            )
    for name, champion_bound in gates.champion.items():
        results.append(
            _against_champion(
                name, champion_bound.max_loss, metrics.get(name), champion, champion_metrics, champion_note
            )
        )
    return results


def judge_live(gates: LiveGates, numbers: LiveNumbers, champion: LiveNumbers | None) -> list[GateResult]:
    """Return the verdict of every gate on what a version did for real requests.

    Args:
        gates: The bounds.
        numbers: The version's.
        champion: The champion's over the same time; `None` where the version is champion itself.

    Raises:
        UsageError: A gate bounds an unknown metric.
    """
    _require_known((*gates.metrics, *gates.champion), LIVE_HIGHER_IS_BETTER)
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
        result = _against_champion(
            name, champion_bound.max_loss, numbers.metrics.get(name), champion.version, champion.metrics, ""
        )
        results.append(_undecided(result, missing) if missing else result)
    return results


def _too_few(gates: LiveGates, name: str, numbers: LiveNumbers) -> str:
    count = numbers.counts.get(name, 0)
    if name in numbers.metrics and count >= gates.min_requests:
        return ""
    return f"not enough data: version {numbers.version} has {count} of {gates.min_requests} answers"


def _undecided(result: GateResult, why: str) -> GateResult:
    return result.model_copy(update={"passed": False, "undecided": True, "missed_by": 0.0, "note": why})


def _require_known(names: Sequence[str], known: Mapping[str, bool]) -> None:
    for name in names:
        if name not in known:
            raise UsageError(
                f"A gate bounds {name!r}, which is no metric.", f"Known metrics: {', '.join(sorted(known))}."
            )


def _bounded(gate: str, bound: Bound, value: float | None) -> GateResult:
    if value is None or math.isnan(value):
        return GateResult(gate=gate, bound=_words(bound), value=None, passed=False, note="the metric is not defined")
    missed_by = max(0.0, bound.min - value if bound.min is not None else value - (bound.max or 0.0))
    return GateResult(gate=gate, bound=_words(bound), value=value, passed=missed_by == 0, missed_by=missed_by)


def _against_champion(
    name: str,
    max_loss: float,
    value: float | None,
    champion: str | None,
    champion_metrics: Mapping[str, float],
    champion_note: str,
) -> GateResult:
    gate = f"{name} vs champion"
    if champion is None:
        return GateResult(gate=gate, bound="none", value=value, passed=True, note="there is no champion yet")
    if name not in champion_metrics or value is None:
        # Nobody can say that the new one is not worse; a person must decide.
        note = champion_note or "the champion could not be scored on these rows"
        return GateResult(gate=gate, bound=f"version {champion}", value=value, passed=False, note=note)
    theirs = champion_metrics[name]
    bound = Bound(min=theirs - max_loss) if LIVE_HIGHER_IS_BETTER[name] else Bound(max=theirs + max_loss)
    result = _bounded(gate, bound, value)
    return result.model_copy(update={"note": f"version {champion} has {theirs:.4f}"})


def _margin(result: GateResult, bound: Bound) -> float:
    if result.value is None:
        return -math.inf
    return result.value - bound.min if bound.min is not None else (bound.max or 0.0) - result.value


def _words(bound: Bound) -> str:
    return f">= {bound.min:.4g}" if bound.min is not None else f"<= {bound.max:.4g}"
