"""A registered model, loaded and warm: what turns a checked row, or an MLflow scoring request, into an answer.

Rows skip the DataFrame where the library behind the model has a quick way in, and only where that way gives the same
answer as the model's pyfunc flavour on the model's own example. Whatever has no quick way answers through pyfunc.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shopfloor.serving.schema import BadRequest, Column, NoRowSchema, RowSchema, Value, bad_fields, columns_of

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.pyfunc import PyFuncModel

logger = logging.getLogger(__name__)


class Unanswerable(BadRequest):
    """The row is as it must be, and the model refuses it all the same."""


Many = Callable[[list[list[Value]]], list[Any]]
"""Takes rows, returns a prediction for each; may be called in any thread, by one thread at a time."""
Predictor = Callable[[list[Value]], Any]
"""Takes a row's values in column order, returns what JSON can hold: a number, a text or a list of them."""

TOLERANCE = 1e-6
MAX_ERROR_CHARACTERS = 2000

_to_json = json.JSONEncoder(allow_nan=False).encode


@dataclass(frozen=True)
class ServedModel:
    """One version of a model, ready to answer."""

    name: str
    version: str
    pyfunc: PyFuncModel
    rows: RowSchema | None
    """`None` where the signature does not describe rows; `reason` says why."""
    reason: str
    example: dict[str, Value]
    predictor: Predictor
    many: Many
    frame: Callable[[pd.DataFrame], Any]
    """Takes rows with the model's columns, returns an array of their predictions."""
    quick: bool
    """Rows skip the DataFrame."""

    def parse(self, body: bytes) -> list[Value]:
        """Return the values of the JSON object of one row.

        Raises:
            BadRequest: The body is not a row of this model.
        """
        if self.rows is None:
            raise BadRequest(422, f"Version {self.version} answers /invocations only: {self.reason}.")
        return self.rows.parse(body)

    def predict(self, body: bytes) -> bytes:
        """Answer the JSON object of one row.

        Raises:
            BadRequest: The body is not a row that the model can answer.
        """
        values = self.parse(body)
        try:
            return self.answer(self.predictor(values))
        except Exception as error:
            raise self.unanswerable(error) from error

    def answer(self, prediction: Any) -> bytes:
        """Return the body of an answer.

        Raises:
            ValueError: JSON cannot hold the prediction.
        """
        text = _to_json(prediction)
        return f'{{"prediction":{text},"model":"{self.name}","version":"{self.version}"}}'.encode()

    def unanswerable(self, error: Exception) -> Unanswerable:
        """Return what a client is told when the model's library fails with `error`."""
        logger.warning("version %s refused a row", self.version, exc_info=error)
        return Unanswerable(422, f"The model cannot answer this row: {_first_line(error)}.")

    def invoke(self, body: bytes, content_type: str, max_rows: int) -> tuple[int, str, bytes]:
        """Answer as MLflow's scoring server does; return status, content type and body.

        Args:
            body: One of MLflow's formats.
            content_type: Says which.
            max_rows: Rows that the request may hold.

        Raises:
            BadRequest: The body is none of MLflow's formats, or does not meet the model's signature.
        """
        from mlflow.exceptions import MlflowException
        from mlflow.pyfunc.scoring_server import invocations

        model = _Checked(self.pyfunc, max_rows)
        try:
            answer = invocations(body, content_type, model, self.pyfunc.metadata.get_input_schema())
        except MlflowException as error:
            raise model.refusal or BadRequest(400, _reason(error)) from error
        except Exception as error:  # its parsers leave the strangest bodies to the web framework
            raise BadRequest(400, f"The body cannot be read: {_first_line(error)}.") from error
        if answer.status != 200:
            raise BadRequest(answer.status, answer.response)
        return answer.status, answer.mimetype, answer.response.encode()


def load_model(tracking_uri: str, name: str, version: str) -> ServedModel:
    """Fetch a version from the MLflow registry, load it and answer its example once.

    Args:
        tracking_uri: MLflow's server, the registry of the models too.
        name: Registered model.
        version: A version number.

    Raises:
        Exception: Whatever MLflow or the model's library raises when the version is not there or does not load.
    """
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)
    pyfunc = mlflow.pyfunc.load_model(f"models:/{name}/{version}")
    try:
        columns = columns_of(pyfunc.metadata.signature)
    except NoRowSchema as error:
        return ServedModel(name, version, pyfunc, None, str(error), {}, _unanswered, _unanswered, pyfunc.predict, False)
    rows = RowSchema(columns, single_precision=_is_booster(pyfunc))
    example = rows.example(_first_row(pyfunc.input_example))
    values = list(example.values())
    through_pyfunc = _pyfunc_rows(pyfunc, columns)
    expected = through_pyfunc([values])[0]
    native = _native(pyfunc, columns)
    quick = native is not None and all(_agrees(way, values, expected) for way in (native[0], _one(native[1])))
    predictor, many = native if native is not None and quick else (_one(through_pyfunc), through_pyfunc)
    frame = _booster_frame(pyfunc.get_raw_model(), columns) if quick and _is_booster(pyfunc) else pyfunc.predict
    logger.info("loaded %s version %s, %s", name, version, "native" if quick else "pyfunc")
    return ServedModel(name, version, pyfunc, rows, "", example, predictor, many, frame, quick)


def _native(pyfunc: PyFuncModel, columns: tuple[Column, ...]) -> tuple[Predictor, Many] | None:
    """Return the quick ways in, where the model's library has them and all columns are numbers."""
    try:
        raw = pyfunc.get_raw_model()
    except NotImplementedError:
        return None
    if any(column.type in {"string", "datetime"} for column in columns):
        return None
    if _is_booster(pyfunc):
        one = _booster_predictor(raw, columns)
        return (one, _booster_rows(raw)) if one is not None else None
    function = pyfunc.metadata.flavors["python_function"].get("predict_fn", "predict")
    if "sklearn" in pyfunc.metadata.flavors and hasattr(raw, function):
        many = _sklearn_rows(getattr(raw, function))
        return _one(many), many
    return None


def _is_booster(pyfunc: PyFuncModel) -> bool:
    return "xgboost" in pyfunc.metadata.flavors and type(pyfunc.get_raw_model()).__name__ == "Booster"


def _booster_predictor(raw: Any, columns: tuple[Column, ...]) -> Predictor | None:
    """Return a predictor of one row for an XGBoost booster, where its features are the columns, in order."""
    import numpy as np

    if raw.feature_names not in (None, [column.name for column in columns]):
        return None
    # A copy, because threads help a batch (which pyfunc's own booster answers) and hurt a single row.
    booster = raw.copy()
    booster.set_param({"nthread": 1})

    def predict(values: list[Value]) -> Any:
        return booster.inplace_predict(np.array([values], dtype=np.float64), validate_features=False)[0].tolist()

    several = isinstance(predict([0.0] * len(columns)), list)
    return predict if several else _BoosterRow(booster, len(columns))


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


def _sklearn_rows(function: Callable[[Any], Any]) -> Many:
    import warnings

    import numpy as np

    def predict_rows(rows: list[list[Value]]) -> list[Any]:
        with warnings.catch_warnings():  # the columns stand in the order of the signature, their names are not needed
            warnings.simplefilter("ignore", UserWarning)
            return list(function(np.array(rows, dtype=np.float64)).tolist())

    return predict_rows


def _booster_rows(raw: Any) -> Many:
    import numpy as np

    booster = raw.copy()
    booster.set_param({"nthread": 1})

    def predict_rows(rows: list[list[Value]]) -> list[Any]:
        return list(booster.inplace_predict(np.array(rows, dtype=np.float64), validate_features=False).tolist())

    return predict_rows


def _booster_frame(raw: Any, columns: tuple[Column, ...]) -> Callable[[pd.DataFrame], Any]:
    import numpy as np

    booster = raw.copy()
    booster.set_param({"nthread": 1})
    names = [column.name for column in columns]

    def predict_frame(frame: pd.DataFrame) -> Any:
        # In 32 bits, as XGBoost holds them: half the memory to read.
        return booster.inplace_predict(frame[names].to_numpy(dtype=np.float32), validate_features=False)

    return predict_frame


def _pyfunc_rows(pyfunc: PyFuncModel, columns: tuple[Column, ...]) -> Many:
    import pandas as pd
    from mlflow.utils.proto_json_utils import _get_jsonable_obj

    dtypes = dict(
        zip((column.name for column in columns), pyfunc.metadata.get_input_schema().pandas_types(), strict=True)
    )

    def series(column: Column, values: list[Value]) -> pd.Series:
        if any(value is None for value in values):
            absent = math.nan if column.type in {"float", "double"} else None
            return pd.Series([absent if value is None else value for value in values])
        return pd.Series(values) if column.type == "datetime" else pd.Series(values, dtype=dtypes[column.name])

    def predict_rows(rows: list[list[Value]]) -> list[Any]:
        by_column = zip(*rows, strict=True)
        frame = pd.DataFrame(
            {column.name: series(column, list(values)) for column, values in zip(columns, by_column, strict=True)}
        )
        answers = _get_jsonable_obj(pyfunc.predict(frame), pandas_orient="records")
        return [answer.item() if hasattr(answer, "item") else answer for answer in answers]

    return predict_rows


def _one(many: Many) -> Predictor:
    return lambda values: many([values])[0]


def _agrees(native: Predictor, values: list[Value], expected: Any) -> bool:
    """Tell whether the quick way answers the example as pyfunc does."""
    import numpy as np

    try:
        answer = native(values)
        return answer == expected or bool(np.allclose(answer, expected, rtol=0, atol=TOLERANCE))
    except Exception:
        logger.info("no quick way into this model", exc_info=True)
        return False


def _unanswered(values: Any) -> Any:
    raise AssertionError("a model without rows answers no row")


def _first_row(example: Any) -> dict[str, Any] | None:
    """Return the first row of an input example, where it has named columns."""
    import pandas as pd

    if isinstance(example, pd.DataFrame) and len(example):
        return {str(name): example[name].iloc[0] for name in example.columns}
    return example if isinstance(example, dict) else None


class _Checked:
    """A pyfunc model that looks at the parsed rows once more: MLflow itself predicts from a missing required number."""

    def __init__(self, pyfunc: PyFuncModel, max_rows: int) -> None:
        self.metadata = pyfunc.metadata
        self.refusal: BadRequest | None = None
        self._pyfunc = pyfunc
        self._max_rows = max_rows
        schema = self.metadata.get_input_schema()
        named = schema is not None and schema.has_input_names() and not schema.is_tensor_spec()
        self._required = set(schema.required_input_names()) if named else set()
        numbers = (
            {spec.name for spec in schema.inputs if str(spec.type) in {"DataType.double", "DataType.float"}}
            if named
            else set()
        )
        self._optional = numbers - self._required

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        self.refusal = self._refuse(data)
        if self.refusal:
            raise self.refusal
        for column in self._optional - set(getattr(data, "columns", self._optional)):
            data[column] = math.nan  # left out is missing; MLflow would hand on a frame that lacks a column
        return self._pyfunc.predict(data, params=params)

    def _refuse(self, data: Any) -> BadRequest | None:
        import numpy as np
        import pandas as pd

        rows = len(next(iter(data.values()), [])) if isinstance(data, dict) else len(data)
        if rows > self._max_rows:
            return BadRequest(413, f"The request holds {rows} rows; at most {self._max_rows} are answered at once.")
        if not isinstance(data, pd.DataFrame):
            return None
        if not rows:
            return BadRequest(400, "The request holds no row.")
        problems = []
        for name in data.columns:
            if name in self._required and data[name].isna().any():
                problems.append({"field": str(name), "problem": "is missing in a row"})
            elif data[name].dtype.kind == "f" and np.isinf(data[name]).any():
                problems.append({"field": str(name), "problem": "must be a finite number"})
        return bad_fields(problems) if problems else None


def _reason(error: Any) -> str:
    """Return what is wrong, without MLflow's copy of the data, its schema and its traceback."""
    message = str(error.message)
    trace = error.json_kwargs.get("stack_trace", "")
    if "unexpected error while evaluating" in message and trace:
        lines = [line.strip() for line in trace.splitlines() if re.match(r"\w[\w.]*(Error|Exception): ", line)]
        return f"The model cannot answer: {lines[-1] if lines else message}"[:MAX_ERROR_CHARACTERS]
    if "Failed to enforce schema" in message:
        message = message.rpartition("Error: ")[2]
    return message.partition("\nInput:")[0][:MAX_ERROR_CHARACTERS]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:MAX_ERROR_CHARACTERS]
