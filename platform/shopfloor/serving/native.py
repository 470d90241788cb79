"""Quick ways into a model: rows of numbers straight to the library that made it, without a DataFrame on the way.

Each is a function of a matrix, which a single row, a batch of a replica, a scoring request of many rows and a part of a
batch run all go through. `predictors.py` takes one only where it answers the model's own example as pyfunc does.
"""

from __future__ import annotations

import functools
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shopfloor.serving.schema import Column, Value

if TYPE_CHECKING:
    import numpy as np
    from mlflow.pyfunc import PyFuncModel

Matrix = Callable[["np.ndarray"], "np.ndarray"]
"""Takes rows x columns, NaN where a value is missing; returns an array whose items are the rows' predictions."""
Predictor = Callable[[list[Value]], Any]
"""Takes a row's values in column order, returns what JSON can hold: a number, a text or a list of them."""


@dataclass(frozen=True)
class Native:
    """How a model's library answers rows of numbers."""

    matrix: Matrix
    """May be called by several threads at once."""
    one: Predictor
    """Of one row, in the thread that answers requests."""
    single_precision: bool = False
    """A matrix of 32 bits is enough: the library makes one of any other."""
    portable: bool = False
    """`matrix` can be pickled, and needs nothing but its library where it is loaded again."""


def native(pyfunc: PyFuncModel, columns: tuple[Column, ...]) -> Native | None:
    """Return the quick way into a model, where its library has one and all of its columns are numbers."""
    try:
        raw = pyfunc.get_raw_model()
    except NotImplementedError:
        return None
    if any(column.type in {"string", "datetime"} for column in columns):
        return None
    if is_booster(pyfunc):
        return _booster(raw, columns)
    function = pyfunc.metadata.flavors["python_function"].get("predict_fn", "predict")
    if "sklearn" in pyfunc.metadata.flavors and hasattr(raw, function):
        matrix = _sklearn(getattr(raw, function))
        return Native(matrix, one_of(matrix))
    return None


def is_booster(pyfunc: PyFuncModel) -> bool:
    """Tell whether the model is a booster of XGBoost, which computes in 32 bits."""
    return "xgboost" in pyfunc.metadata.flavors and type(pyfunc.get_raw_model()).__name__ == "Booster"


def one_of(matrix: Matrix) -> Predictor:
    """Return the predictor of one row that asks for a matrix of one row."""
    import numpy as np

    def predict(values: list[Value]) -> Any:
        return matrix(np.array([values], dtype=np.float64))[0].tolist()

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


def _sklearn(function: Callable[[Any], Any]) -> Matrix:
    def matrix(rows: np.ndarray) -> Any:
        with warnings.catch_warnings():  # the columns stand in the order of the signature, their names are not needed
            warnings.simplefilter("ignore", UserWarning)
            return function(rows)

    return matrix
