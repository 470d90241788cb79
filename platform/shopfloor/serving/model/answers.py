"""What a model's pyfunc answers: an item a row, of the form that its version was judged by, and as MLflow sends it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from shopfloor.judging import golden
from shopfloor.runs.mlflow import by_row

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel


class OfLabel1:
    """A model of MLflow's whose prediction is the second of the two probabilities that it answers."""

    def __init__(self, pyfunc: PyFuncModel) -> None:
        """Stand for a model."""
        self._pyfunc = pyfunc

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        """Return the second probabilities of rows, as MLflow's own `predict` is asked for both."""
        return self._pyfunc.predict(data, params=params)[:, 1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pyfunc, name)


class OfClasses:
    """A model of MLflow's whose prediction is a class, with the probabilities of all where it answers those."""

    def __init__(self, pyfunc: PyFuncModel, classes: tuple[int | str, ...]) -> None:
        """Stand for a model of these classes, sorted."""
        self._pyfunc = pyfunc
        self._classes = classes

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        """Return the classes of rows, with their probabilities, as MLflow's own `predict` is asked for what it has."""
        answers = self._pyfunc.predict(data, params=params)
        if list(getattr(answers, "columns", ())) == [str(one) for one in self._classes]:
            answers = answers.to_numpy()  # of a graph that answers each class by its name
        return golden.classified(answers_of(answers, len(answers)), self._classes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pyfunc, name)


def answers_of(output: Any, rows: int) -> Any:
    """Return what a model's pyfunc answers, an item a row.

    MLflow lets some libraries answer with a frame. One column is a prediction a row, columns without names are a list a
    row, and named ones an object a row; so are lists with names.

    Args:
        output: What MLflow returns.
        rows: How many were asked.
    """
    import pandas as pd

    if not isinstance(output, pd.DataFrame):
        return by_row(output, rows)
    if output.shape[1] == 1:
        return output.iloc[:, 0].to_numpy()
    return output.to_numpy() if isinstance(output.columns, pd.RangeIndex) else output.to_dict("records")


def as_mlflow(output: Any, bare: bool = False) -> str:
    """Return what MLflow's scoring server sends of what a model's pyfunc answers.

    Args:
        output: What MLflow returns.
        bare: Whether it stands without `predictions` around it.

    Raises:
        Exception: JSON cannot hold it.
    """
    from mlflow.pyfunc.scoring_server import predictions_to_json, unwrapped_predictions_to_json

    text = io.StringIO()
    output = (
        golden.plain(output) if isinstance(output, list | dict) else output
    )  # MLflow leaves what they hold as it is
    (unwrapped_predictions_to_json if bare else predictions_to_json)(output, text)
    return text.getvalue()
