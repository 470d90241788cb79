"""Whether clients of one version can ask another one: every row that the first takes, the second must take too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shopfloor.records import FeatureSet, GateResult
from shopfloor.use_case import GatesSection

_WIDER = {
    ("integer", "long"),
    ("integer", "float"),
    ("integer", "double"),
    ("long", "double"),
    ("float", "double"),
    ("boolean", "double"),
}
"""Pairs (from, to) of MLflow's types where every value of the first is one of the second."""


@dataclass(frozen=True)
class Input:
    """One column of a model's rows."""

    type: str
    """MLflow's name of it, e.g. `double`."""
    required: bool
    """Whether a row must have a value."""


Inputs = Mapping[str, Input]


def inputs_of(schema: Any) -> dict[str, Input]:
    """Return the named columns of an MLflow input schema."""
    return {one.name: Input(getattr(one.type, "name", str(one.type)), bool(one.required)) for one in schema.inputs}


def inputs_of_features(features: FeatureSet) -> dict[str, Input]:
    """Return the columns of a model that is trained on these features."""
    return {name: Input(features.mlflow_type(name), name not in features.optional) for name in features.features}


def incompatibility(new: Inputs, old: Inputs) -> str:
    """Return why a client of the old version cannot ask the new one; empty where each can."""
    for name, column in new.items():
        if name not in old:
            if column.required:
                return f"{name!r} is new and required"
            continue
        before = old[name]
        if column.type != before.type and (before.type, column.type) not in _WIDER:
            return f"{name!r} was {before.type} and is {column.type}"
        if column.required and not before.required:
            return f"{name!r} may no longer be missing"
    gone = sorted(old.keys() - new.keys())
    return f"{gone[0]!r} is no input any more" if gone else ""


def judge_signature(gates: GatesSection, inputs: Inputs, champion: str, champion_inputs: Inputs | None) -> GateResult:
    """Return the verdict on whether the champion's clients can ask the new version as they ask the champion.

    Args:
        gates: `gates.signature` says whether they must.
        inputs: The new version's columns.
        champion: The champion's version.
        champion_inputs: Its columns; `None` where its signature names none, and nobody can rely on any.
    """
    problem = incompatibility(inputs, champion_inputs) if champion_inputs is not None else ""
    note = f"against version {champion}: {problem}" if problem else f"as version {champion}'s"
    if gates.signature == "any":
        return GateResult(gate="signature", bound="any", value=None, passed=True, note=note)
    return GateResult(gate="signature", bound="compatible", value=None, passed=not problem, note=note)
