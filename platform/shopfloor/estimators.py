"""An estimator of scikit-learn that use_case.yaml names: what a `model.py` would say of it, in whole or in part.

The estimator stands at the end of a pipeline whose first step makes numbers of the columns, by their types in the
training set. All of it is scikit-learn's own but for two small transformers, so it is stored and loaded like any model
of that library. Who needs it loads it by name (`UseCase.code`), as a use case's own code, which may ask what judges.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sklearn.base import BaseEstimator, TransformerMixin

from shopfloor.errors import UsageError
from shopfloor.use_case import UseCase

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FILE = "model.skops"
FEW_VALUES = 50
"""A text column with no more values gets a number for each of them."""
WORDS = 3
"""Words that a text of a column has on average, from which on they are looked at one by one."""
TEXT_NUMBERS = 32
"""Numbers that stand for a text of words."""
HASHES = 2**14


class Times(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Makes numbers of times: days since 1970, month, day, weekday and hour; NaN where one is missing."""

    def fit(self, frame: pd.DataFrame, truth: Any = None) -> Times:
        """Learn nothing but the number of columns."""
        self.n_features_in_ = frame.shape[1]
        return self

    def transform(self, frame: pd.DataFrame) -> np.ndarray:
        """Return five numbers for each column, shape (rows, 5 * columns)."""
        import numpy as np
        import pandas as pd

        parts = []
        for name in frame.columns:
            times = pd.to_datetime(frame[name])
            at = times.dt
            days = (times - pd.Timestamp(0)) / pd.Timedelta(days=1)
            parts += [days, at.month, at.day, at.dayofweek, at.hour]
        return np.column_stack([np.asarray(part, dtype=np.float64) for part in parts])


class Texts(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Puts an empty text where one is missing."""

    def fit(self, texts: pd.Series[Any], truth: Any = None) -> Texts:
        """Learn nothing."""
        self.fitted_ = True
        return self

    def transform(self, texts: pd.Series[Any]) -> list[str]:
        """Return the texts."""
        return ["" if text is None or text != text else str(text) for text in texts]


class Lists(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Makes a column of numbers for each place in lists of one length; NaN where a list is missing."""

    def fit(self, lists: pd.Series[Any], truth: Any = None) -> Lists:
        """Learn the length.

        Raises:
            ValueError: The lists are of several.
        """
        lengths = set(lists.dropna().map(len))
        if len(lengths) != 1:
            raise ValueError(f"the lists of {lists.name!r} are of {len(lengths)} lengths: an estimator takes one")
        self.length_ = lengths.pop()
        return self

    def transform(self, lists: pd.Series[Any]) -> np.ndarray:
        """Return the numbers, shape (rows, length)."""
        import numpy as np

        missing = np.full(self.length_, np.nan)
        return np.stack([missing if one is None else np.asarray(one, dtype=np.float64) for one in lists])


class EstimatorCode:
    """The functions of a `model.py`, for the estimator of a use case; those that its own one has come before these."""

    def __init__(self, use_case: UseCase, own: Any = None) -> None:
        """Take the estimator's name, its fixed parameters and the task of the use case.

        Args:
            use_case: Says all that.
            own: Its `model.py`, where it has one.
        """
        vars(self).update({name: value for name, value in vars(own).items() if callable(value)} if own else {})
        self._use_case = use_case
        self._key = f"pipelines/{use_case.name}/use_case.yaml: model.estimator"

    def train(self, params: dict[str, Any], data: tuple[Any, ...], context: Any) -> None:
        """Fit the estimator once, and report what it is worth on the validation split.

        Raises:
            UsageError: There is no such estimator, it is none of the task, or has no such parameter.
        """
        from sklearn.pipeline import Pipeline
        from threadpoolctl import threadpool_limits

        rows, truth, unseen, unseen_truth = data
        estimator = self._estimator(params, context.threads)
        model = Pipeline([("columns", _columns(rows, estimator)), ("estimator", estimator)])
        with threadpool_limits(context.threads):  # of OpenMP, which estimators without n_jobs use
            model.fit(rows, truth)
        if "n_jobs" in estimator.get_params():
            estimator.set_params(n_jobs=None)  # an answer shares its machine with others
        context.report(self._worth(model, unseen, unseen_truth), checkpoint=model)

    def save(self, model: Any, directory: Path) -> None:
        """Write the pipeline into `directory`."""
        import skops.io

        skops.io.dump(model, directory / FILE)

    def load(self, directory: Path) -> Any:
        """Read the pipeline that `save` wrote; a type that nobody trusts is an error of skops."""
        import skops.io

        file = directory / FILE
        types = skops.io.get_untrusted_types(file=file)
        return skops.io.load(file, trusted=[name for name in types if self._use_case.model.trusts(name)])

    def predict(self, model: Any, frame: pd.DataFrame) -> np.ndarray:
        """Return a number a row, of several classes their probabilities; a class where there are none."""
        from threadpoolctl import threadpool_limits

        probable = self._use_case.task in {"binary", "multiclass"} and hasattr(model, "predict_proba")
        with threadpool_limits(1):  # more of OpenMP's threads wait for one another where others use the CPUs
            answers: np.ndarray = model.predict_proba(frame) if probable else model.predict(frame)
        if not probable:
            return answers
        return answers[:, 1] if self._use_case.task == "binary" else answers

    def _estimator(self, params: dict[str, Any], threads: int) -> Any:
        """Return the estimator, not fitted yet."""
        from sklearn.utils import get_tags

        section, task = self._use_case.model, self._use_case.task
        kind = self._class()
        estimator = kind()
        own = estimator.get_params()
        values = section.params | params
        if unknown := sorted(values.keys() - own.keys()):
            raise UsageError(
                f"{self._key}: {section.estimator} has no parameter {unknown[0]!r}.",
                f"It has {', '.join(sorted(own))}.",
            )
        if "random_state" in own:
            values = {"random_state": self._use_case.search.seed, **values}
        if "n_jobs" in own:
            values = {"n_jobs": threads, **values}
        estimator.set_params(**values)
        wanted = "regressor" if task == "regression" else "classifier"
        if get_tags(estimator).estimator_type != wanted:
            raise UsageError(
                f"{self._key}: {section.estimator} is no {wanted}, and task is {task}.", "Mend one of them."
            )
        if task == "binary" and not hasattr(estimator, "predict_proba"):
            raise UsageError(
                f"{self._key}: {section.estimator} answers no probability, as task: binary asks for.",
                "Take another one.",
            )
        return estimator

    def _class(self) -> Any:
        import difflib

        name = str(self._use_case.model.estimator)
        module, _, attribute = name.rpartition(".")
        try:
            package = importlib.import_module(module)
        except ImportError as error:
            raise UsageError(f"{self._key}: {module} cannot be imported: {error}.", "Mend the name.") from error
        kind = getattr(package, attribute, None)
        if not isinstance(kind, type) or not all(hasattr(kind, method) for method in ("fit", "predict", "get_params")):
            near = difflib.get_close_matches(attribute, [one for one in dir(package) if not one.startswith("_")], 1)
            remedy = f"Did you mean {module}.{near[0]}?" if near and kind is None else "Name a class of an estimator."
            raise UsageError(f"{self._key}: {name} is no estimator.", remedy)
        return kind

    def _worth(self, model: Any, rows: pd.DataFrame, truth: pd.Series[Any]) -> dict[str, float]:
        """Return the metrics on the validation split that a command shows after a run."""
        from shopfloor.judging import metrics

        case = self._use_case
        classes = model.classes_.tolist() if case.task == "multiclass" else ()
        predictions = metrics.predictions_of(case.task, self.predict(model, rows), len(rows), classes=classes)
        shown = [metric for metric in metrics.of_use_case(case) if metric.headline]
        numbers = metrics.measure(truth.to_numpy(), predictions, shown)
        return {f"validate-{name}": value for name, value in numbers.items()}


def _columns(rows: pd.DataFrame, estimator: Any) -> Any:
    """Return the encoder of the columns, by their types and by what the estimator takes; not fitted yet."""
    from sklearn.base import is_classifier
    from sklearn.compose import ColumnTransformer
    from sklearn.model_selection import KFold, StratifiedKFold
    from sklearn.preprocessing import OneHotEncoder, TargetEncoder

    held = {name: _held(rows[name]) for name in rows.columns if rows[name].dtype == object}
    if bytes in held.values():
        name = next(name for name, kind in held.items() if kind is bytes)
        raise UsageError(
            f"{name!r} holds bytes, of which no estimator makes numbers.",
            "Name it in features.leave_out of use_case.yaml, or write a model.py.",
        )
    texts = [name for name, kind in held.items() if kind is str]
    lists = [name for name, kind in held.items() if kind is not str]
    times = [name for name in rows.columns if rows[name].dtype.kind == "M"]
    numbers = [name for name in rows.columns if name not in {*held, *times}]
    few = [name for name in texts if rows[name].nunique() <= FEW_VALUES]
    words = [name for name in texts if name not in few and _words(rows[name]) >= WORDS]
    many = [name for name in texts if name not in {*few, *words}]
    folds = (StratifiedKFold if is_classifier(estimator) else KFold)(5, shuffle=True, random_state=0)
    steps = [
        ("numbers", _complete(estimator), numbers),
        ("times", _complete(estimator, Times()), times),
        ("few", OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=2, sparse_output=False), few),
        ("many", TargetEncoder(cv=folds), many),
        *((f"words of {name}", _of_words(), name) for name in words),
        *((f"numbers of {name}", _complete(estimator, Lists()), name) for name in lists),
    ]
    return ColumnTransformer([step for step in steps if step[2]], sparse_threshold=0)


def _held(values: pd.Series[Any]) -> type:
    """Return what a column of objects holds: texts, bytes or arrays."""
    there = values.dropna()
    return type(there.iloc[0]) if len(there) else str


def _words(texts: pd.Series[Any]) -> float:
    return float(texts.dropna().head(1000).str.count(r"\S+").mean())


def _complete(estimator: Any, *first: Any) -> Any:
    """Return what scales numbers, and fills those that are missing where the estimator takes none."""
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.utils import get_tags

    filled = [] if get_tags(estimator).input_tags.allow_nan else [SimpleImputer(strategy="median", add_indicator=True)]
    return make_pipeline(*first, *filled, StandardScaler())


def _of_words() -> Any:
    """Return what makes numbers of texts by the words in them."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.pipeline import make_pipeline

    hashed = HashingVectorizer(n_features=HASHES, alternate_sign=False)
    return make_pipeline(Texts(), hashed, TfidfTransformer(), TruncatedSVD(TEXT_NUMBERS, random_state=0))
