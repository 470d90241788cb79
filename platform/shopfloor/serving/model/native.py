"""What a model answers through pyfunc, and quick ways around it: rows straight to the library that made the model.

A quick way is a function of a matrix, without a DataFrame, which a single row, a batch of a replica, a scoring request
of many rows and a part of a batch run all go through. `loading.py` takes one only where it answers the model's own
example as pyfunc does.
"""

from __future__ import annotations

import functools
import io
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shopfloor.judging.golden import classified, plain
from shopfloor.runs.mlflow import by_row
from shopfloor.serving.model.row import NESTED, Column, Value

if TYPE_CHECKING:
    import numpy as np
    from mlflow.pyfunc import PyFuncModel

Matrix = Callable[["np.ndarray"], "np.ndarray"]
"""Function of rows x columns, NaN where a value is missing, that returns an array of the rows' predictions."""
Predictor = Callable[[list[Value]], Any]
"""Function of a row's values in column order that returns what JSON can hold: a number, a text or a list of them."""


@dataclass(frozen=True)
class Native:
    """How a model's library answers rows of numbers."""

    matrix: Matrix
    """May be called by several threads at once."""
    one: Predictor
    """Predictor of one row, in the thread that answers requests."""
    single_precision: bool = False
    """A matrix of 32 bits is enough: the library makes one of any other."""
    portable: bool = False
    """`matrix` can be pickled, and needs nothing but its library where it is loaded again."""
    record: Callable[[Any], dict[str, Any]] | None = None
    """Makes of a prediction the record that MLflow answers instead, where it wraps the library in a frame."""

    def classified(self, classes: Sequence[int | str]) -> Native:
        """Return the same way, with classes for an answer where it has a probability for each."""
        matrix = _Classified(self.matrix, tuple(classes))
        return replace(self, matrix=matrix, one=one_of(matrix), record=None)

    def as_mlflow(self, rows: np.ndarray) -> list[Any]:
        """Return the predictions of rows in the form in which MLflow's scoring server answers them."""
        answers: list[Any] = self.matrix(rows).tolist()
        return [self.record(answer) for answer in answers] if self.record else answers


class _Classified:
    """A way of many rows to their classes; a class of a module, so that it can be pickled where the way within can."""

    def __init__(self, matrix: Matrix, classes: tuple[int | str, ...]) -> None:
        self._matrix = matrix
        self._classes = classes

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        import numpy as np

        answers = classified(self._matrix(rows), self._classes)
        if isinstance(answers, list):
            table = np.empty(len(answers), dtype=object)
            table[:] = answers
            return table
        return np.asarray(answers)


def native(pyfunc: PyFuncModel, columns: tuple[Column, ...], directory: Path) -> Native | None:
    """Return the quick way into a model, where its library has one and all of its columns are numbers.

    Args:
        pyfunc: The model as MLflow loads it.
        columns: Its inputs.
        directory: Where MLflow put its files.
    """
    try:
        raw = pyfunc.get_raw_model()
    except NotImplementedError:
        return None
    if any(column.type in {"string", "datetime", *NESTED} for column in columns):
        return None
    flavors = pyfunc.metadata.flavors
    if is_booster(pyfunc):
        return _booster(raw, columns)
    if "onnx" in flavors:
        return _onnx(raw, columns, directory / flavors["onnx"]["data"])
    if "pytorch" in flavors:
        return _pytorch(raw)
    function = method_of_sklearn(pyfunc)
    if function is not None:
        matrix = _sklearn(function, of_label_1=answers_one_of_two(pyfunc))
        return Native(matrix, one_of(matrix))
    return None


def method_of_sklearn(pyfunc: PyFuncModel) -> Callable[[Any], Any] | None:
    """Return the method with which an estimator of scikit-learn answers; `None` for any other model."""
    if "sklearn" not in pyfunc.metadata.flavors:
        return None
    return getattr(pyfunc.get_raw_model(), _method(pyfunc), None)


def _method(pyfunc: PyFuncModel) -> str:
    return str(pyfunc.metadata.flavors["python_function"].get("predict_fn", "predict"))


def answers_one_of_two(pyfunc: PyFuncModel) -> bool:
    """Tell whether a prediction is the second of the two probabilities that scikit-learn's `predict_proba` answers.

    The signature decides: it says one number a row where `predict` in model.py, which was judged, answers one.
    """
    if "sklearn" not in pyfunc.metadata.flavors or _method(pyfunc) != "predict_proba":
        return False
    outputs = pyfunc.metadata.signature.outputs if pyfunc.metadata.signature else None
    if outputs is None or not outputs.is_tensor_spec() or len(outputs.inputs) != 1:
        return False
    return len(outputs.inputs[0].shape) == 1 and len(getattr(pyfunc.get_raw_model(), "classes_", ())) == 2


def is_booster(pyfunc: PyFuncModel) -> bool:
    """Tell whether the model is a booster of XGBoost."""
    return "xgboost" in pyfunc.metadata.flavors and type(pyfunc.get_raw_model()).__name__ == "Booster"


def in_single_precision(pyfunc: PyFuncModel) -> bool:
    """Tell whether the model computes in 32 bits, whichever way its rows come in."""
    if "onnx" in pyfunc.metadata.flavors:
        return any(one.type == "tensor(float)" for one in pyfunc.get_raw_model().get_inputs())
    return "pytorch" in pyfunc.metadata.flavors or is_booster(pyfunc)


def one_of(matrix: Matrix) -> Predictor:
    """Return the predictor of one row that asks for a matrix of one row."""
    import numpy as np

    def predict(values: list[Value]) -> Any:
        return matrix(np.array([values], dtype=np.float64)).tolist()[0]

    return predict


def _booster(raw: Any, columns: tuple[Column, ...]) -> Native | None:
    """Return the way into an XGBoost booster, where its features are the columns, in order."""
    if raw.feature_names not in (None, [column.name for column in columns]):
        return None

    def copy() -> Any:
        # Threads help a batch of one client, and hurt the single rows and the other batches beside it.
        booster = raw.copy()
        booster.set_param({"nthread": 1})
        return booster

    matrix = functools.partial(copy().inplace_predict, validate_features=False)
    one = one_of(matrix)
    several = isinstance(one([0.0] * len(columns)), list)
    row = one if several else _BoosterRow(copy(), len(columns))
    return Native(matrix, row, single_precision=True, portable=True)


class _BoosterRow:
    """One row in, one number out, through XGBoost's C function; not to be called by two threads at a time.

    Half of what `Booster.inplace_predict` costs for one row is spent describing its arrays in JSON. Here they are
    always the same arrays, and described once.
    """

    def __init__(self, booster: Any, columns: int) -> None:
        import ctypes

        import numpy as np
        from xgboost.core import _LIB

        self._library = _LIB
        self._booster = booster  # owns what its handle points at
        self._row: Any = np.zeros((1, columns), dtype=np.float64)
        self._predictions = ctypes.POINTER(ctypes.c_float)()
        self._shape, self._dimensions = ctypes.POINTER(ctypes.c_uint64)(), ctypes.c_uint64()
        options = {
            "type": 0,
            "training": False,
            "iteration_begin": 0,
            "iteration_end": 0,
            "missing": math.nan,
            "strict_shape": False,
            "cache_id": 0,
        }
        self._arguments = (
            booster.handle,
            json.dumps(self._row.__array_interface__).encode(),
            json.dumps(options).encode(),
            ctypes.c_void_p(),
            ctypes.byref(self._shape),
            ctypes.byref(self._dimensions),
            ctypes.byref(self._predictions),
        )

    def __call__(self, values: list[Value]) -> float:
        self._row[0] = values  # None becomes NaN, a missing value; XGBoost makes 32 bits of it, as in a DMatrix
        if self._library.XGBoosterPredictFromDense(*self._arguments):
            raise ValueError(self._library.XGBGetLastError().decode())
        return float(self._predictions[0])


def _sklearn(function: Callable[[Any], Any], of_label_1: bool) -> Matrix:
    def matrix(rows: np.ndarray) -> Any:
        with warnings.catch_warnings():  # the columns stand in the order of the signature, their names are not needed
            warnings.simplefilter("ignore", UserWarning)
            answers = function(rows)
        return answers[:, 1] if of_label_1 else answers

    return matrix


_ONNX_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}
"""Others stay with pyfunc: a matrix of floating point numbers holds no large integer, and no missing one."""


def _onnx(session: Any, columns: tuple[Column, ...], file: Path) -> Native | None:
    """Return the way into an ONNX graph: one input takes the whole matrix, several take a column each, by name."""
    import numpy as np
    import onnxruntime

    inputs = [(one.name, _ONNX_TYPES.get(one.type)) for one in session.get_inputs()]
    outputs = [one.name for one in session.get_outputs()]
    position = {column.name: index for index, column in enumerate(columns)}
    kinds = {kind for _, kind in inputs}
    if None in kinds or len(kinds) > 1 or not (len(inputs) == 1 or all(name in position for name, _ in inputs)):
        return None
    options, settings = session.get_session_options(), session.get_provider_options()
    # Threads help one batch and hurt what is answered beside it, as with a booster; a session keeps what it began with.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    alone = onnxruntime.InferenceSession(str(file), options, list(settings), list(settings.values()))

    def feed(rows: np.ndarray) -> dict[str, Any]:
        if len(inputs) == 1:
            [(name, kind)] = inputs
            return {name: np.ascontiguousarray(rows, dtype=kind)}
        return {name: np.ascontiguousarray(rows[:, position[name]], dtype=kind) for name, kind in inputs}

    def matrix(rows: np.ndarray) -> Any:
        # An output may be a list, or a column; one that is not a value a row has another size, and fails here.
        answers = [np.asarray(answer).reshape(len(rows)) for answer in alone.run(outputs, feed(rows))]
        if len(answers) == 1:
            return answers[0]
        by_name = np.empty(len(rows), dtype=object)
        by_row = zip(*(answer.tolist() for answer in answers), strict=True)
        by_name[:] = [dict(zip(outputs, row, strict=True)) for row in by_row]
        return by_name

    def record(prediction: Any) -> dict[str, Any]:
        return {outputs[0]: prediction} if len(outputs) == 1 else dict(prediction)

    return Native(matrix, one_of(matrix), single_precision=kinds == {"float32"}, record=record)


def _pytorch(module: Any) -> Native:
    """Return the way into a PyTorch module, which MLflow has put into evaluation mode and onto its device."""
    import numpy as np
    import torch

    torch.set_num_threads(1)  # of this process, a replica or a batch worker; PyTorch has no such setting for a module
    weight = next(module.parameters(), None)
    device = "cpu" if weight is None else weight.device

    def matrix(rows: np.ndarray) -> Any:
        with torch.no_grad():  # the tensor shares the array's memory, which must be its own
            answers = module(torch.from_numpy(rows.astype(np.float32)).to(device)).cpu().numpy()
        return answers.reshape(len(rows)) if answers.shape[1:] == (1,) else answers

    def record(prediction: Any) -> dict[str, Any]:
        columns = prediction if isinstance(prediction, list) else [prediction]
        return {str(number): value for number, value in enumerate(columns)}

    return Native(matrix, one_of(matrix), single_precision=True, record=record)


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
        return classified(answers_of(answers, len(answers)), self._classes)

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
    output = plain(output) if isinstance(output, list | dict) else output  # MLflow leaves what they hold as it is
    (unwrapped_predictions_to_json if bare else predictions_to_json)(output, text)
    return text.getvalue()
