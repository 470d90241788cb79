"""The plain records that modules hand to one another and write beside artifacts, all JSON."""

from __future__ import annotations

import datetime as dt
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

REFERENCE_FILE = "reference.json"
PREDICTION = "prediction"
"""Name of what a model answers, beside the names of its inputs."""


class Record(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TableVersion(Record):
    """One table of a data version."""

    name: str
    md5: str
    """DVC's hash of the file."""
    size_bytes: int


class DataVersion(Record):
    """A DVC data version: which bytes, at which git revision."""

    path: str
    md5: str
    """DVC's hash of the directory, ending in `.dir`."""
    rev: str
    """The git revision asked for; empty means the workspace."""
    commit: str
    """The git commit that the revision names; empty for the workspace."""
    tables: list[TableVersion]


class Check(Record):
    """One expectation's result."""

    table: str
    expectation: str
    column: str | None
    critical: bool
    success: bool
    observed: str
    """Observation in words, e.g. `unexpected 12 of 336776 rows`."""


class Checks(Record):
    """The result of a Great Expectations validation of all tables."""

    success: bool
    """No critical expectation is unmet."""
    checks: list[Check]


Kind = Literal["int", "float", "bool", "str", "datetime", "numbers", "bytes"]
"""What a column of features holds. In a frame a time is in UTC and without a zone, a whole number or a yes or no that
may be missing is a floating-point number, since NumPy has no other that can be, and a list of numbers is an array."""
_MLFLOW_TYPES = {
    "int": "long",
    "float": "double",
    "bool": "boolean",
    "str": "string",
    "datetime": "datetime",
    "numbers": "Array(double)",
    "bytes": "binary",
}


class FeatureSet(Record):
    """What stands beside the built features."""

    feature_service: str
    """Feast's feature service, or `table <name>` where rows are learnt from as they stand in one."""
    features: dict[str, Kind]
    """Feature name to its kind; the model's inputs, in order."""
    optional: list[str]
    """Features that may be missing in a row."""
    values: dict[str, list[str]] = {}
    """Text feature to its values in the training set, sorted, where those are few."""
    closed: list[str] = []
    """Text features that have no other values."""
    lengths: dict[str, int] = {}
    """Feature of lists to their length, where all are of one."""
    target: str
    classes: list[int | str] = []
    """Labels of a multiclass task in the training set, sorted: the order of a model's probabilities."""
    entities: list[str]
    """Columns that identify and slice a row, not the model's inputs."""
    rows: dict[str, int]
    """Rows per split."""

    def mlflow_type(self, name: str) -> str:
        """Return MLflow's name of a feature's type, as it is in a frame."""
        kind = self.features[name]
        return "double" if kind in {"int", "bool"} and name in self.optional else _MLFLOW_TYPES[kind]


class Trial(Record):
    """One trial of the search."""

    trial_id: str
    params: dict[str, Any]
    metrics: dict[str, float]
    rounds: int
    seconds: float
    status: Literal["finished", "stopped", "failed"]
    """`stopped`: ASHA ended it early."""
    error: str = ""
    """Reason why it failed, in one line."""
    curve: list[tuple[int, float]] = []
    """Rounds to the search's metric, as it was reported on the way."""


class Search(Record):
    """A finished search."""

    metric: str
    mode: Literal["min", "max"]
    best_trial_id: str
    trials: list[Trial]

    @property
    def best_params(self) -> dict[str, Any]:
        """Parameters of the best trial."""
        return next(trial.params for trial in self.trials if trial.trial_id == self.best_trial_id)

    def failures(self) -> str:
        """Return how many trials failed and the first reason, in one sentence; empty where none did."""
        failed = [trial for trial in self.trials if trial.status == "failed"]
        if not failed:
            return ""
        return f"{len(failed)} of {len(self.trials)} trials failed: {failed[0].error}"


class GateResult(Record):
    """One gate's verdict."""

    gate: str
    """Name of what is bounded, e.g. `roc_auc`, `roc_auc[origin=JFK]`, `roc_auc vs champion`."""
    bound: str
    """The bound in words, e.g. `>= 0.7`."""
    value: float | None
    passed: bool
    missed_by: float = 0.0
    note: str = ""
    undecided: bool = False
    """There is not enough data for a verdict: neither passed nor missed."""


class LiveNumbers(Record):
    """What a version did for real requests, by the log of its endpoint."""

    version: str
    requests: int
    """Number that it answered for somebody."""
    shadows: int
    """Copies that it answered for nobody."""
    metrics: dict[str, float]
    """What is known of p99_ms, error_rate, agreement, cost_per_1000 and, from feedback, of the evaluation's metrics."""
    counts: dict[str, int]
    """Metric to the number of answers that it rests on."""


class SliceResult(Record):
    """Metrics of the rows that share one value of a column."""

    column: str
    value: str
    rows: int
    metrics: dict[str, float]


class Line(Record):
    """One line of a picture."""

    name: str
    points: list[tuple[float, float]]


class Curve(Record):
    """A picture of how a model predicts: points, joined or not, and what they are to be compared with."""

    title: str
    x: str
    """Words along the horizontal axis."""
    y: str
    lines: list[Line]
    """The model's, and where there is one the champion's on the same rows."""
    marks: bool = False
    """Whether the points themselves show."""
    joined: bool = True
    """Whether a line goes through the points."""
    within: Literal["unit", "data"] = "unit"
    """Part of the plane: the unit square, or less of it from 0 on, or as far as the points go."""
    reference: Literal["diagonal", "zero"] = "diagonal"
    """The dashed line of a perfect model: x = y, or y = 0."""


class Confusion(Record):
    """How often a class was taken for which."""

    classes: list[int | str]
    counts: list[list[int]]
    """A row for each class that is true, a column for each that was predicted."""


class Evaluation(Record):
    """What the model is worth on the test set."""

    task: str = "binary"
    """What the model predicts, as use_case.yaml says it."""
    rows: int
    metrics: dict[str, float]
    """Values by the names of `judging.metrics`; one that is not defined on these rows is absent."""
    champion: str | None
    """Version of the champion that it was compared with."""
    champion_metrics: dict[str, float]
    slices: list[SliceResult]
    gates: list[GateResult]
    passed: bool
    headlines: list[str] = []
    """Names of the metrics that tell most, the first of them by slice too."""
    titles: dict[str, str] = {}
    """Metric to its name for a person."""
    curves: list[Curve] = []
    confusion: Confusion | None = None
    """Of a multiclass task."""
    importance: dict[str, float]
    """Feature name to gain, summing to 1."""


class Scored(Record):
    """A data set that a version has scored."""

    use_case: str
    version: str
    rows: int
    """Number of rows in all, also of those that an earlier run has scored."""
    data: str
    """URI of the rows."""
    predictions: str
    """URI of the directory that holds them with their predictions."""


def is_missing(value: Any) -> bool:
    """Tell whether there is no value, as JSON and pandas say it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


class Spread(Record):
    """How the values of a column are spread over bins, the last of which is for those that are missing."""

    edges: list[float] = []
    """Of numbers: a value up to the first edge is in the first bin, one above the last in the last but one."""
    values: list[str] = []
    """Of all others: a bin each, and one for all values that are not among them."""
    shares: list[float]
    """Share of the rows in each bin."""

    def shares_of(self, values: Sequence[Any]) -> list[float]:
        """Return the share of other values in each bin; what is no number where numbers are counts as missing.

        Args:
            values: As JSON has them; `None` and NaN are missing.
        """
        import numpy as np

        bins = len(self.edges or self.values) + 1
        known = [value for value in values if not is_missing(value)]
        if self.edges:
            numbers = [float(value) for value in known if isinstance(value, int | float)]
            places = np.searchsorted(self.edges, numbers, side="left")
        else:
            number = {value: place for place, value in enumerate(self.values)}
            places = np.array([number.get(str(value), bins - 1) for value in known], dtype=int)
        counts = np.bincount(places, minlength=bins + 1).astype(float)
        counts[bins] = len(values) - len(places)
        return [float(share) for share in counts / max(1, len(values))]

    def labels(self) -> list[str]:
        """Return a word for each bin."""
        if not self.edges:
            return [*self.values, "others", "missing"]
        edges = [f"{edge:.4g}" for edge in self.edges]
        between = [f"{low} to {high}" for low, high in itertools.pairwise(edges)]
        return [f"up to {edges[0]}", *between, f"above {edges[-1]}", "missing"]

    @model_validator(mode="after")
    def _has_a_share_for_each_bin(self) -> Spread:
        if len(self.shares) != len(self.edges or self.values) + 2 or self.edges != sorted(self.edges):
            raise ValueError("a spread has edges that rise, and a share for each bin")
        return self


class Reference(Record):
    """What the columns of a version looked like on the test set; a version keeps it beside its model."""

    rows: int
    columns: dict[str, Spread]
    """Inputs, and `PREDICTION`."""


class ColumnDrift(Record):
    """How far the values of a column are from those of the test set."""

    column: str
    distance: float
    """0 where they are spread in the same way, 1 where the two have nothing in common."""
    rows: int
    """Number of rows that it rests on."""
    bins: list[str]
    """What is in each bin, in words."""
    reference: list[float]
    """Share of the test set's rows in each bin."""
    live: list[float]
    """Share of the rows that came since."""


class Monitored(Record):
    """What a version did for the requests of a time, and what the gates say to it."""

    use_case: str
    version: str
    since: dt.datetime
    until: dt.datetime
    numbers: LiveNumbers
    drift: list[ColumnDrift]
    """Its inputs and predictions, the furthest first."""
    note: str = ""
    """Why there is no drift to tell."""
    gates: list[GateResult]
    passed: bool
    """No gate is missed; those that need more requests count as met."""

    def as_metrics(self) -> dict[str, float]:
        """Return its numbers by name: those of the requests, how many they were, and how far the furthest column is."""
        furthest = {"drift": self.drift[0].distance} if self.drift else {}
        return {**self.numbers.metrics, "requests": float(self.numbers.requests), **furthest}


class Usage(Record):
    """What a pod, or the pods of a job that are alike, had of one of Kueue's flavors, and for how long."""

    flavor: str
    """Empty where nobody knows it."""
    seconds: float
    """How long it was admitted."""
    resources: dict[str, float]
    """Kubernetes' name of a resource to how much of it all of them had together."""
    waited_s: float | None = None
    """How long it stood in the queue until it was admitted first; `None` where nobody knows."""

    @property
    def gpus(self) -> float:
        """Number of GPUs, slices of them included: what has the name of a maker."""
        return sum(amount for name, amount in self.resources.items() if "/" in name)


class Cost(Record):
    """What a run, or some of its steps, had of the cluster, and what that is worth."""

    amount: float
    """Price of all that has one."""
    currency: str
    gpu_seconds: dict[str, float]
    """Flavor to the seconds of its GPUs; flavors without GPUs are left out."""
    cpu_seconds: dict[str, float]
    """Flavor to the seconds of its CPUs."""
    unpriced: list[str] = []
    """Flavors that the price table lacks."""
    uncounted: list[str] = []
    """Steps of which nobody knows what they had."""

    def in_words(self) -> str:
        """Return the amount and what it is for, as in `3.30 USD: gpu-spot 3 GPU-hours; cpu 1.5 CPU-hours`."""
        hours = [
            f"{flavor} {seconds / 3600:.3g} {kind}-hours"
            for kind, times in (("GPU", self.gpu_seconds), ("CPU", self.cpu_seconds))
            for flavor, seconds in sorted(times.items())
        ]
        lacking = f" (no price of {', '.join(self.unpriced)})" if self.unpriced else ""
        missing = f" (not counted: {', '.join(self.uncounted)})" if self.uncounted else ""
        return f"{self.amount:.2f} {self.currency}: {', '.join(hours) or 'nothing'}{lacking}{missing}"

    @classmethod
    def of(
        cls,
        usages: Iterable[Usage],
        prices: Mapping[str, Mapping[Any, float]],
        currency: str,
        uncounted: Iterable[str] = (),
    ) -> Cost:
        """Return what usages cost.

        Args:
            usages: What there was.
            prices: Price of an hour by flavor, of a `gpu` and of a `cpu`.
            currency: Its unit.
            uncounted: Steps of which nobody knows what they had.
        """
        amount = 0.0
        seconds: dict[str, dict[str, float]] = {"gpu": {}, "cpu": {}}
        unpriced: set[str] = set()
        for usage in usages:
            price = prices.get(usage.flavor)
            if price is None:
                unpriced.add(usage.flavor or "unknown")
            for kind, number in (("gpu", usage.gpus), ("cpu", usage.resources.get("cpu", 0.0))):
                if number:
                    before = seconds[kind].get(usage.flavor, 0.0)
                    seconds[kind][usage.flavor] = before + number * usage.seconds
                    amount += (price or {}).get(kind, 0.0) * number * usage.seconds / 3600
        return cls(
            amount=amount,
            currency=currency,
            gpu_seconds=seconds["gpu"],
            cpu_seconds=seconds["cpu"],
            unpriced=sorted(unpriced),
            uncounted=sorted(uncounted),
        )


class StepRecord(Record):
    """One step of a run as the run list shows it."""

    name: str
    state: Literal["pending", "running", "cached", "succeeded", "failed", "killed", "skipped"]
    seconds: float = 0.0
    run_id: str | None = None
    result_of: str = ""
    """Run that made the result of a cached step, and has its log."""
    error: str = ""
    """What is wrong, where it failed, or what it waits for."""
    error_kind: str = ""
    """Name of the exception's class, of the signal that ended its process, or `exit`."""
    remedy: str = ""
    """What to do about the error."""

    @property
    def why(self) -> str:
        """The error and its remedy, in one text."""
        return f"{self.error} {self.remedy}".rstrip()

    @property
    def task(self) -> str:
        """Name of the pipeline's task, the same for all executions of it (`train` of `inner.train.0`)."""
        return next((part for part in reversed(self.name.split(".")) if not part.isdigit()), self.name)


class Imported(Record):
    """Where a model version comes from that was trained elsewhere."""

    source: str
    """Path or URI of the model."""
    kind: str
    """Form in which it came, e.g. `an ONNX file`."""
    sha256: str
    """Hash of the file, or over all files of the directory."""
    by: str
    """User and host of the import."""
    golden_rows: int
    """Number of rows of the example that it must answer as it did at its import."""


class Passport(Record):
    """What made a model version: enough to trace it, to verify it and to make it again."""

    model: str
    version: str
    created: dt.datetime
    run_id: str
    step_run_ids: dict[str, str]
    git_commit: str
    git_dirty: bool
    data: DataVersion | None
    """Data version that it was trained on; none of a model that was imported."""
    checks_passed: bool
    checks: int
    feature_service: str
    features: dict[str, str]
    lock_hash: str
    params: dict[str, Any]
    """The best trial's parameters."""
    trial_id: str
    metrics: dict[str, float]
    champion: str | None
    """The version that was champion when this one was evaluated."""
    gates: list[GateResult]
    model_hash: str
    content_hashes: dict[str, str]
    """Step output to the hash of its content."""
    run_key: str
    """Hash of everything that went into the run: the same key again means that nothing changed."""
    cost: Cost | None = None
    """What its steps had of the cluster until it was registered, those included whose results it reused; none where
    nobody counted."""
    imported: Imported | None = None
    """Origin of a model that was trained elsewhere, of which data, checks, parameters and metrics are not known."""
