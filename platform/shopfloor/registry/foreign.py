"""A model that was trained elsewhere, loaded by its own library: its columns, its task, and what it answers.

It answers as a model of that task that was trained here would: the probability of label 1, a class with the
probabilities of all, or a number. What MLflow logged itself answers what its pyfunc flavor answers.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shopfloor.errors import ShopfloorError, UsageError, first_line
from shopfloor.registry import flavors, graph
from shopfloor.registry.sources import TITLES, Source, refuse_code
from shopfloor.use_case import Task

if TYPE_CHECKING:
    import pandas as pd

_LIBRARIES = {
    "onnx": ("onnx", "onnxruntime"),
    "xgboost": ("xgboost",),
    "lightgbm": ("lightgbm",),
    "skops": ("sklearn", "skops"),
    "pickle": ("joblib",),
}
_PACKAGES = {"sklearn": "scikit-learn"}


@dataclass(frozen=True)
class Foreign:
    """A loaded model, and what its library says of it."""

    flavor: str
    """MLflow's name of the library."""
    model: Any
    task: Task | None
    """Kind of its predictions; `None` where nothing says which."""
    answer: Callable[[pd.DataFrame], Any] | None
    """Function of rows that returns an array of answers; `None` where only MLflow's flavor can ask the library."""
    classes: Sequence[int | str] = ()
    """Those of a multiclass model, in the order of its probabilities."""
    names: Sequence[str] | None = None
    """Its columns; `None` where it does not say."""
    count: int | None = None
    """Number of its columns; `None` where it does not say."""
    types: Mapping[str, str] = field(default_factory=dict)
    """MLflow's types of the columns, where the model has its own; that of all under an empty name."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the flavor's `save_model`."""


def load(source: Source, allow_code: bool) -> Foreign:
    """Load a file by its own library.

    Args:
        source: What `sources.fetch` found, of any kind but MLflow's.
        allow_code: Somebody trusts its maker: it may run code.

    Raises:
        UsageError: The library is absent, the file is broken or holds something else, or nobody allowed its code.
    """
    if not allow_code:
        refuse_code(source)
    for library in _LIBRARIES[source.kind]:
        _require(source, library)
    with _told_in_one_line(source):
        return _LOADERS[source.kind](source, allow_code)


def task_of(model: Any) -> Task | None:
    """Return what a model of scikit-learn or XGBoost predicts; `None` of any other."""
    if hasattr(model, "save_config"):
        return _objective(model)[0]
    classes = getattr(model, "classes_", None)
    if classes is None or isinstance(classes, list):
        return None
    return "binary" if [float(one) for one in classes if not isinstance(one, str)] == [0.0, 1.0] else "multiclass"


def _require(source: Source, library: str) -> None:
    try:
        importlib.import_module(library)
    except ImportError as error:
        raise no_library(source, library) from error


def no_library(source: Source, library: str) -> UsageError:
    """Return what is raised where a model's library is not installed."""
    package = _PACKAGES.get(library, library)
    return UsageError(
        f"{source.file} is {TITLES[source.kind]}, and {package} is not installed here.",
        f"Add {package} to requirements/runtime.in, then `make lock-add` and `make install`: replicas need it too.",
    )


@contextmanager
def _told_in_one_line(source: Source) -> Iterator[None]:
    try:
        yield
    except ShopfloorError:
        raise
    except ImportError as error:
        raise UsageError(
            f"{source.file} cannot be loaded: {first_line(error, 300)}.", "Install what it needs."
        ) from error
    except Exception as error:  # each library has its own for a broken file
        raise UsageError(
            f"{source.file} cannot be read as {TITLES[source.kind]}: {first_line(error, 300)}.",
            "Save it anew with the library that made it.",
        ) from error


def _onnx(source: Source, allow_code: bool) -> Foreign:
    one = graph.read(source.path, source.file)
    return Foreign("onnx", one.model, one.task, None, one.classes, one.names, one.count, one.types)


def _xgboost(source: Source, allow_code: bool) -> Foreign:
    import xgboost

    return _booster(source, xgboost.Booster(model_file=str(source.path)))


def _booster(source: Source, booster: Any) -> Foreign:
    """Return a booster of XGBoost, whose objective says what it answers."""
    import xgboost

    task, classes = _objective(booster)
    if any(kind == "c" for kind in booster.feature_types or ()):
        raise UsageError(
            f"{source.file} has categorical columns, whose codes are nowhere but in its training data.",
            "Put the encoding before the booster in a Pipeline of scikit-learn, and import that.",
        )

    def answer(frame: pd.DataFrame) -> Any:
        if booster.feature_names is None:
            booster.feature_names = list(frame.columns)
        return booster.predict(xgboost.DMatrix(frame))

    return Foreign(
        "xgboost",
        booster,
        task,
        answer,
        range(classes) if classes > 1 else (),
        booster.feature_names,
        booster.num_features(),
    )


def _objective(booster: Any) -> tuple[Task, int]:
    """Return the task of a booster of XGBoost, and how many classes it knows."""
    learner = json.loads(booster.save_config())["learner"]
    classes = int(learner["learner_model_param"]["num_class"])
    if learner["objective"]["name"] == "binary:logistic":
        return "binary", 0
    return "multiclass" if classes > 1 else "regression", classes


def _lightgbm(source: Source, allow_code: bool) -> Foreign:
    import lightgbm

    return _lightgbm_booster(lightgbm.Booster(model_file=str(source.path)))


def _lightgbm_booster(booster: Any) -> Foreign:
    """Return a booster of LightGBM, whose text says what it answers."""
    found = re.search(r"^objective=(\w+)", booster.model_to_string(num_iteration=1), re.MULTILINE)
    classes, objective = booster.num_model_per_iteration(), found[1] if found else ""
    names = booster.feature_name()
    if all(re.fullmatch(r"Column_\d+", name) for name in names):  # what LightGBM calls columns without names
        names = None
    task: Task = "binary" if objective == "binary" else "multiclass" if classes > 1 else "regression"
    return Foreign(
        "lightgbm", booster, task, booster.predict, range(classes) if classes > 1 else (), names, booster.num_feature()
    )


def _skops(source: Source, allow_code: bool) -> Foreign:
    import skops.io

    types = skops.io.get_untrusted_types(file=source.path)
    if (foreign := flavors.foreign(types)) and not allow_code:
        raise UsageError(
            f"{source.file} holds the types {', '.join(foreign)}: loading it may run whatever code they have, as you.",
            "Where you trust who made it, add --allow-code.",
        )
    return _estimator(source, skops.io.load(source.path, trusted=types))


def _pickle(source: Source, allow_code: bool) -> Foreign:
    import joblib

    return _estimator(source, joblib.load(source.path))


def _estimator(source: Source, model: Any) -> Foreign:
    """Return a model of scikit-learn, or the booster within one of XGBoost's or LightGBM's own estimators."""
    library = type(model).__module__.partition(".")[0]
    if library == "xgboost":
        return _of_xgboost(source, model)
    if library == "lightgbm":
        return _lightgbm_booster(getattr(model, "booster_", model))
    try:
        from sklearn.base import BaseEstimator, is_classifier
        from sklearn.utils.validation import check_is_fitted
    except ImportError as error:
        raise no_library(source, "sklearn") from error
    if not isinstance(model, BaseEstimator) or not hasattr(model, "predict"):
        raise UsageError(
            f"{source.file} holds a {type(model).__module__}.{type(model).__qualname__}, which is no model of "
            "scikit-learn, XGBoost or LightGBM.",
            "Log it by MLflow's flavor for it, and import that.",
        )
    check_is_fitted(model)
    names = getattr(model, "feature_names_in_", None)
    classes, task = ((), "regression") if not is_classifier(model) else _classes(source, model.classes_)
    method = "predict_proba" if task != "regression" and hasattr(model, "predict_proba") else "predict"

    def answer(frame: pd.DataFrame) -> Any:
        answers = getattr(model, method)(frame)
        return answers[:, 1] if task == "binary" and method == "predict_proba" else answers

    options = {"pyfunc_predict_fn": method, "skops_trusted_types": flavors.types_within(model)}
    count = getattr(model, "n_features_in_", None)
    return Foreign(
        "sklearn", model, task, answer, classes, None if names is None else list(names), count, options=options
    )


def _of_xgboost(source: Source, model: Any) -> Foreign:
    """Return the booster of an estimator, with the rounds that the estimator answers with: not those after its best."""
    if not hasattr(model, "get_booster"):
        return _booster(source, model)
    booster = model.get_booster()
    with suppress(AttributeError):  # nobody looked for the best round
        booster = booster[: model.best_iteration + 1]
    return _booster(source, booster)


def _classes(source: Source, values: Any) -> tuple[tuple[int | str, ...], Task]:
    """Return the classes of a classifier, none of one that knows 0 and 1, and its task."""
    import numpy as np

    if isinstance(values, list):
        raise UsageError(f"{source.file} predicts {len(values)} targets at once.", "Import a model for each of them.")
    classes = np.asarray(values).tolist()
    if all(isinstance(one, (bool, int, float)) and float(one).is_integer() for one in classes):
        classes = [int(one) for one in classes]
    if classes == [0, 1]:
        return (), "binary"
    return tuple(one if isinstance(one, int) else str(one) for one in classes), "multiclass"


_LOADERS: dict[str, Callable[[Source, bool], Foreign]] = {
    "onnx": _onnx,
    "xgboost": _xgboost,
    "lightgbm": _lightgbm,
    "skops": _skops,
    "pickle": _pickle,
}
