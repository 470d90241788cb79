"""What differs from one problem to the next, read from `pipelines/<use_case>/use_case.yaml`.

The file is validated as a whole: an unknown key, a wrong type or an impossible value is an error that names the file,
the line and the key. The use case's own code stands beside it and is imported by name, when a step needs it.

One module for both, the sections and how they are read: every step stands on it, and would stand on each part of it.
"""

from __future__ import annotations

import datetime as dt
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveInt, Tag, ValidationError, model_validator

from shopfloor.errors import NotFoundError, UsageError
from shopfloor.settings import Settings

FILE_NAME = "use_case.yaml"
FUNCTIONS = {
    "features": ("source_tables", "definitions", "rows"),
    "model": ("train", "save", "load", "predict"),
    "expectations": ("suites",),
}
"""Functions that each module of a use case defines at least."""
ESTIMATORS = "shopfloor.estimators"
"""Module that stands in for the `model.py` of a use case whose `model.estimator` names one of scikit-learn's, and for
what a `model.py` of the flavor `sklearn` leaves out beside `train`."""
_OWN_TYPES = {f"{ESTIMATORS}.{name}" for name in ("Times", "Texts", "Lists")}
_TRUSTED_LIBRARIES = ("sklearn.", "numpy.", "scipy.")
NAME = r"^[a-z][a-z0-9_]*$"
"""A name of a use case: of its folder, its registered model, its application and its Python package."""
Interval = tuple[dt.date, dt.date]
Task = Literal["binary", "multiclass", "regression", "custom"]
"""What a model predicts: the probability of label 1 of 0 and 1 (`binary`), one of several classes (`multiclass`), a
number (`regression`), or what the use case's own `metrics.py` can judge (`custom`)."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSection(_Section):
    """Which DVC-tracked tables the use case reads."""

    path: str
    """Directory, relative to the project, that DVC tracks."""
    tables: list[str] = Field(min_length=1)
    """Each is the file `<path>/<table>.parquet`."""


class TimeSplit(_Section):
    """Half-open intervals [from, to) of the event timestamp, UTC."""

    train: Interval
    validate_: Interval = Field(alias="validate")
    test: Interval
    monitor: Interval | None = None

    @model_validator(mode="after")
    def _in_order(self) -> TimeSplit:
        ends: list[dt.date] = []
        for begin, end in filter(None, (self.train, self.validate_, self.test, self.monitor)):
            if begin >= end:
                raise ValueError(f"an interval must end after it begins, not [{begin}, {end}]")
            if ends and begin < ends[-1]:
                raise ValueError(f"train, validate, test and monitor must follow one another; {begin} is too early")
            ends.append(end)
        return self

    def intervals(self) -> dict[str, Interval]:
        """Return the intervals by name: train, validate, test and, where given, monitor."""
        intervals = {"train": self.train, "validate": self.validate_, "test": self.test}
        return intervals | ({"monitor": self.monitor} if self.monitor else {})


class RandomSplit(_Section):
    """Parts of the rows, drawn by a seed; of each class the same part where the task is a classification."""

    by: Literal["random"]
    validate_: float = Field(default=0.2, alias="validate", gt=0, lt=1)
    test: float = Field(default=0.2, gt=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _leaves_some(self) -> RandomSplit:
        if self.validate_ + self.test >= 1:
            raise ValueError(
                f"validate and test are {self.validate_ + self.test:g} of the rows: none are left to train on"
            )
        return self


class GroupSplit(RandomSplit):
    """The same of whole groups: rows that share a value of `column` stay together."""

    by: Literal["group"]  # type: ignore[assignment]
    column: str


class ColumnSplit(_Section):
    """The split of each row, in a column that says `train`, `validate`, `test` or `monitor`."""

    by: Literal["column"]
    column: str


def _kind_of_split(split: Any) -> str:
    """Return how rows are split: by time where nothing else is said."""
    kind = split.get("by", "time") if isinstance(split, dict) else getattr(split, "by", "time")
    return str(kind)


Split = Annotated[
    Annotated[TimeSplit, Tag("time")]
    | Annotated[RandomSplit, Tag("random")]
    | Annotated[GroupSplit, Tag("group")]
    | Annotated[ColumnSplit, Tag("column")],
    Discriminator(
        _kind_of_split,
        custom_error_type="split",
        custom_error_message="by must be random, group or column; without it, train, validate and test are intervals",
    ),
]


class FeaturesSection(_Section):
    """Which features a row has, and how rows are split."""

    service: str | None = None
    """Name of the Feast feature service."""
    source: str | None = None
    """Name of the table whose rows are learnt from as they stand, in place of a feature service."""
    time: str | None = None
    """Column of `source` with the time of a row."""
    inputs: list[str] = []
    """Columns of `source` that the model gets; none: all that have no other use."""
    leave_out: list[str] = []
    """Columns of `source` that the model does not get; `evaluation.slices` may name them."""
    files: list[str] = []
    """Columns of `source` that name files of `data.path`, such as pictures: the model gets their content, in base64."""
    closed: list[str] = []
    """Texts of which the training set has every value that there is: the endpoint refuses any other."""
    target: str
    unlabelled: Literal["refuse", "leave_out"] = "refuse"
    """What becomes of rows whose target is missing: an error, or they are left out and counted."""
    split: Split

    @model_validator(mode="after")
    def _one_origin(self) -> FeaturesSection:
        if (self.service is None) == (self.source is None):
            raise ValueError("give either service, of Feast, or source, a table")
        if self.service is not None and (self.time or self.inputs or self.leave_out or self.files):
            raise ValueError("time, inputs, leave_out and files go with source; of a service features.py says them")
        if self.inputs and self.leave_out:
            raise ValueError("give either inputs or leave_out")
        if self.source is not None and self.time is None and isinstance(self.split, TimeSplit):
            raise ValueError("a split by time needs time, the column that has it; or split by random, group or column")
        if self.target in self.inputs:
            raise ValueError(f"{self.target!r} is the target, and no input")
        idle = {*self.leave_out, self.target, self.time}
        if useless := [name for name in self.files if name in idle or (self.inputs and name not in self.inputs)]:
            raise ValueError(f"files names {useless[0]!r}, which is no input")
        return self


class IntRange(_Section):
    """A whole number between `low` and `high`, both included."""

    type: Literal["int"]
    low: int
    high: int
    log: bool = False


class FloatRange(_Section):
    """A number between `low` and `high`."""

    type: Literal["float"]
    low: float
    high: float
    log: bool = False


class Choice(_Section):
    """One of `values`."""

    type: Literal["choice"]
    values: list[Any] = Field(min_length=1)


Range = Annotated[IntRange | FloatRange | Choice, Field(discriminator="type")]


class Workers(_Section):
    """What one trial takes from the Ray cluster."""

    per_trial: PositiveInt = 1
    """More than one: the trial trains through Ray Train."""
    cpus: float = Field(default=1, gt=0)
    """CPUs of each worker."""
    gpus: float = Field(default=0, ge=0)
    """GPUs of each worker, whole or a fraction."""


class SearchSection(_Section):
    """How Ray Tune looks for the best parameters."""

    metric: str
    mode: Literal["min", "max"]
    trials: PositiveInt
    max_concurrent: PositiveInt = 2
    max_rounds: PositiveInt = 100
    grace_rounds: PositiveInt = 10
    """Rounds that every trial gets before ASHA may stop it."""
    checkpoint_every: PositiveInt = 20
    """Rounds between two checkpoints of a trial."""
    seed: int = 0
    workers: Workers = Workers()
    space: dict[str, Range] = Field(min_length=1)


class ModelSection(_Section):
    """How the model is stored."""

    flavor: Literal["xgboost", "sklearn", "lightgbm", "catboost", "pytorch", "onnx", "pyfunc"] = "sklearn"
    """MLflow's name for the library that made the model; `pyfunc` for a `PythonModel` of the use case's own."""
    estimator: str | None = Field(default=None, pattern=r"^[A-Za-z_]\w*(\.\w+)+$")
    """Class of scikit-learn in place of a `model.py`, by its full name; `search.space` has its parameters."""
    params: dict[str, Any] = {}
    """Parameters of `estimator` that are not searched."""
    trusted: list[str] = []
    """Types that a model of scikit-learn may hold beside those of scikit-learn, NumPy and SciPy: loading one runs its
    code, in the replicas too."""

    @model_validator(mode="after")
    def _of_scikit_learn(self) -> ModelSection:
        if self.estimator is not None and self.flavor != "sklearn":
            raise ValueError(f"an estimator is registered with the flavor sklearn, not {self.flavor}")
        if self.estimator is None and self.params:
            raise ValueError("params are those of an estimator, and model.estimator names none")
        return self

    def trusts(self, type_name: str) -> bool:
        """Tell whether a stored model may hold a type: a class of the libraries', or one that is named as trusted.

        Functions of the libraries may do anything, and are not trusted by themselves.
        """
        if type_name in self.trusted or type_name in _OWN_TYPES:
            return True
        if not type_name.startswith(_TRUSTED_LIBRARIES):
            return False
        package, _, attribute = type_name.rpartition(".")
        try:
            return isinstance(getattr(importlib.import_module(package), attribute), type)
        except (ImportError, AttributeError):
            return False


class EvaluationSection(_Section):
    """What the evaluation looks at beside the whole test set."""

    slices: list[str] = []
    """Columns whose values are looked at one by one."""
    golden_rows: PositiveInt = 50
    """Test rows that the endpoint must answer exactly as the model does offline."""


class Bound(_Section):
    """A metric's lowest or highest admissible value."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Bound:
        if (self.min is None) == (self.max is None):
            raise ValueError("give either min or max")
        return self


class SliceBound(Bound):
    """A bound for every slice that has at least `min_rows` rows."""

    min_rows: PositiveInt = 100


class ChampionBound(_Section):
    """How much worse than the champion's a metric may be, on the same rows."""

    max_loss: float = Field(ge=0)


class LiveGates(_Section):
    """Bounds on what a version does for real requests, judged while it is shadow or canary."""

    metrics: dict[str, Bound] = {}
    champion: dict[str, ChampionBound] = {}
    min_requests: PositiveInt = 200
    """Answers that a verdict needs."""
    tolerance: float = Field(default=0.05, ge=0)
    """Two numeric predictions that differ by no more agree."""
    watch_s: float = Field(default=0, ge=0)
    """How long after its promotion a champion goes on being judged, and is rolled back where it misses; 0: not."""


class DriftBound(_Section):
    """How far the requests of an endpoint may be from the test set, where a run of `monitoring` judges them."""

    max: float = Field(gt=0, le=1)
    """Distance of the furthest input, or of the predictions: 0 for the same spread, 1 for nothing in common."""
    min_rows: PositiveInt = 500
    """Rows that a verdict needs, of the requests and of the test set: few ones are far from any others."""


class GatesSection(_Section):
    """The bounds that a model must meet to be promoted."""

    metrics: dict[str, Bound] = {}
    slices: dict[str, SliceBound] = {}
    champion: dict[str, ChampionBound] = {}
    champion_window: PositiveInt = 5
    """Champions that `champion` looks at, the present one and those before it that were not rolled back: the best of
    them counts."""
    signature: Literal["compatible", "any"] = "compatible"
    """`compatible`: every row that the champion takes, the model must take too, or its clients would be refused."""
    live: LiveGates = LiveGates()
    drift: DriftBound | None = None


class Batching(_Section):
    """Single rows that arrive close together are answered together."""

    max_rows: int = Field(default=32, ge=2)
    """Rows that are answered at once."""
    wait_ms: float = Field(default=5, gt=0)
    """How long the first of them waits for the others."""


class Autoscaling(_Section):
    """More replicas when there is more to do; `replicas` is the least."""

    max_replicas: PositiveInt
    target_in_flight: float = Field(default=20, gt=0)
    """Requests that a replica should be answering at once."""


class OnlineSection(_Section):
    """What a request may send instead of feature values."""

    entities: dict[str, Literal["string", "long", "double", "boolean", "datetime"]] = Field(min_length=1)
    """Name to type: entity keys, and what `at_request` in features.py computes from."""
    deadline_ms: float = Field(default=50, gt=0)
    """How long a request waits for the online store."""
    fallback: Literal["missing", "refuse"] = "missing"
    """Without an answer by then, values are missing where the model's column is optional; or the request is refused."""


class ServingSection(_Section):
    """How the champion answers."""

    replicas: PositiveInt = 1
    autoscaling: Autoscaling | None = None
    batching: Batching | None = None
    max_in_flight: PositiveInt = 200
    """Requests that a replica holds at once; one more is refused with 503 and `Retry-After`."""
    timeout_s: float = Field(default=30, gt=0)
    """How long one request may take."""
    log: bool = True
    """Whether predictions and feedback are kept in the artifact store."""
    log_days: PositiveInt = 365
    """Days after which they are removed."""
    log_max_gb: float = Field(default=10, gt=0)
    """Size of the log of predictions in GiB, from which on the oldest are removed."""
    cpus: float = Field(default=0.5, gt=0)
    """CPUs that Ray sets aside for a replica."""
    cost_per_hour: float | None = Field(default=None, ge=0)
    """Cost of a replica, in the currency of the bounds."""
    gpus: float = Field(default=0, ge=0)
    max_rows: PositiveInt = 10_000
    """Rows in one request."""
    max_body_bytes: PositiveInt = 8 * 1024 * 1024
    """Size of one request."""
    online: OnlineSection | None = None
    """Features that the endpoint looks up."""


class ServedCase(_Section):
    """What every `use_case.yaml` says, wherever its models come from: how they answer, and what bounds them."""

    name: str = Field(pattern=NAME)
    description: str = ""
    task: Task = "binary"
    gates: GatesSection = GatesSection()
    serving: ServingSection = ServingSection()

    @property
    def target(self) -> str:
        """Name of what is predicted; empty where the file does not say."""
        return ""

    def code(self, module: str) -> Any:
        """Import the use case's own module (`features`, `model`, `expectations`).

        Raises:
            NotFoundError: The use case has no such module.
        """
        return import_code(self.name, module)


class ImportedCase(ServedCase):
    """A validated `use_case.yaml` of models that were trained elsewhere: it has no data, no features and no search."""

    imported: Literal[True]
    """In the place of `data`, `features`, `search`, `model` and `evaluation`."""

    @model_validator(mode="after")
    def _judged_by_requests_alone(self) -> ImportedCase:
        for name in ("metrics", "slices", "champion", "drift"):
            if getattr(self.gates, name):
                raise ValueError(f"gates.{name} bounds a test set, and an imported model brings none; give gates.live")
        if self.serving.online is not None:
            raise ValueError("serving.online looks features up, and an imported model has no features.py")
        return self


class UseCase(ServedCase):
    """A validated `use_case.yaml` whose models are trained here."""

    data: DataSection
    features: FeaturesSection
    search: SearchSection
    model: ModelSection
    evaluation: EvaluationSection = EvaluationSection()

    @model_validator(mode="after")
    def _fits_together(self) -> UseCase:
        source = self.features.source
        if source is not None and source not in self.data.tables:
            raise ValueError(f"features.source is {source!r}, which data.tables lacks: {', '.join(self.data.tables)}")
        if source is not None and self.serving.online is not None:
            raise ValueError("serving.online looks features up in Feast, and features.source has none there")
        if self.task == "custom" and self.model.estimator is not None:
            raise ValueError("model.estimator goes with the other tasks; a custom one has a model.py")
        if self.features.files and self.model.estimator is not None:
            raise ValueError("features.files holds what an estimator cannot read; write a model.py")
        return self

    @property
    def target(self) -> str:
        """Name of what is predicted."""
        return self.features.target

    def code(self, module: str) -> Any:
        """Import the use case's own module; for `model` it is what stands in for one, or for a part of it.

        Raises:
            NotFoundError: The use case has no such module.
        """
        if module != "model" or self.model.flavor != "sklearn":
            return super().code(module)
        own = None if self.model.estimator is not None else super().code(module)
        return importlib.import_module(ESTIMATORS).EstimatorCode(self, own)


def import_code(use_case: str, module: str) -> ModuleType:
    """Import a use case's own module, where no more of it is needed than its name.

    Raises:
        NotFoundError: The use case has no such module.
    """
    name = f"pipelines.{use_case}.{module}"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
        raise NotFoundError(
            f"Use case {use_case!r} has no {module}.py.", f"Write pipelines/{use_case}/{module}.py."
        ) from error


def missing_code(settings: Settings, name: str) -> list[str]:
    """Return the functions that a use case's modules lack, as `model.py: save`; read, not imported."""
    import ast

    missing: list[str] = []
    use_case = load_use_case(settings, name)
    needless = {"features"} if use_case.features.source is not None else set()
    if use_case.model.estimator is not None:
        needless.add("model")
    only = {"model": FUNCTIONS["model"][:1]} if use_case.model.flavor == "sklearn" else {}
    for module, functions in (FUNCTIONS | only).items():
        if module in needless:
            continue
        file = settings.project_root / "pipelines" / name / f"{module}.py"
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError) as error:
            missing.append(f"{module}.py: {'there is none' if isinstance(error, FileNotFoundError) else error}")
            continue
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        for node in tree.body:
            if isinstance(node, ast.Assign):
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names |= {alias.asname or alias.name for alias in node.names}
        if "*" not in names:
            missing += [f"{module}.py: {function}" for function in functions if function not in names]
    return missing


def list_use_cases(settings: Settings) -> list[str]:
    """Return the names of the folders in `pipelines/` that hold a `use_case.yaml`."""
    return sorted(file.parent.name for file in (settings.project_root / "pipelines").glob(f"*/{FILE_NAME}"))


def require_name(name: str) -> None:
    """Refuse what can be no name of a use case, a path above all.

    Raises:
        UsageError: It is none.
    """
    if not re.fullmatch(NAME, name):
        raise UsageError(
            f"{name[:100]!r} is no name of a use case.", "Use small letters, digits and _, as in pipelines/."
        )


def load_use_case(settings: Settings, name: str) -> UseCase:
    """Read and validate `pipelines/<name>/use_case.yaml`, of a use case whose models are trained here.

    Raises:
        NotFoundError: There is no use case of that name.
        UsageError: It is no name, its models are imported, or the file is broken; the message names file, line and key.
    """
    case = load_served_case(settings, name)
    if not isinstance(case, UseCase):
        raise UsageError(
            f"{where(settings, name, 'imported')}: models of {name} are imported: there is no data to train on.",
            "`shopfloor models import` brings the next version; a use case of another name can train its own.",
        )
    return case


def load_served_case(settings: Settings, name: str) -> ServedCase:
    """Read and validate `pipelines/<name>/use_case.yaml`, wherever its models come from.

    Returns:
        A `UseCase`, or an `ImportedCase`.

    Raises:
        NotFoundError: There is no use case of that name.
        UsageError: It is no name, or the file is broken; the message names file, line and key.
    """
    require_name(name)
    file = settings.project_root / "pipelines" / name / FILE_NAME
    if not file.is_file():
        names = ", ".join(list_use_cases(settings)) or "none"
        raise NotFoundError(f"There is no use case {name!r}.", f"Known use cases: {names}.")
    root = str(settings.project_root)
    if root not in sys.path:  # the use case's modules are imported from the project, wherever the command was started
        sys.path.insert(0, root)
    place = file.relative_to(settings.project_root)
    node, content = _read(file, place)
    kind = ImportedCase if isinstance(content, dict) and "imported" in content else UseCase
    try:
        use_case: ServedCase = kind.model_validate(content)
    except ValidationError as error:
        raise UsageError(
            "\n".join(_describe(place, node, problem) for problem in error.errors()),
            "docs/reference/use_case.md lists the keys.",
        ) from error
    if use_case.name != name:
        raise UsageError(f"{place}: name is {use_case.name!r}, the folder is {name!r}.", "Make them the same.")
    return use_case


def where(settings: Settings, name: str, *key: str) -> str:
    """Return where a key of a valid `use_case.yaml` stands, as `file:line: key`, for an error that names it.

    Args:
        settings: Say where the project is.
        name: The use case's name.
        key: Parts of the key, from the outermost on.
    """
    file = settings.project_root / "pipelines" / name / FILE_NAME
    place = file.relative_to(settings.project_root)
    return _place(place, _read(file, place)[0], key)


def _read(file: Path, place: Path) -> tuple[Any, Any]:
    """Return the YAML node of a file, which knows its lines, and what it holds.

    Raises:
        UsageError: It is not YAML.
    """
    import yaml

    try:
        # libyaml, where PyYAML has it, is ten times as fast.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(file.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        return node, None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or "not YAML"
        raise UsageError(f"{place}:{line}: {problem}.", "Mend the file.") from error


def _describe(file: Path, node: Any, problem: Any) -> str:
    """Return `file:line: key: what is wrong` for one pydantic error."""
    location = [part for part in problem["loc"] if part not in {"int", "float", "choice"}]
    if location[:2] == ["features", "split"]:
        del location[2:3]  # pydantic's name of the kind of split
    message = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"].removeprefix("Value error, ")
    if not location and (key := re.match(r"[a-z_]+(\.[a-z_]+)+ ", message)):  # of two sections that do not fit
        location, message = key.group().strip().split("."), message[key.end() :]
    return f"{_place(file, node, location)}: {message}."


def _place(file: Path, node: Any, location: Sequence[str | int]) -> str:
    """Return `file:line: key`, with the line of the last part of the key that is there."""
    line = node.start_mark.line + 1 if node else 1
    for part in location:
        children = getattr(node, "value", None)
        if not isinstance(children, list):
            break
        if isinstance(part, int) and part < len(children):
            node = children[part]
        else:
            match = [pair for pair in children if isinstance(pair, tuple) and pair[0].value == part]
            if not match:
                break
            line, node = match[0][0].start_mark.line + 1, match[0][1]
    key = ".".join(str(part) for part in location) or "(file)"
    return f"{file}:{line}: {key}"
