"""A registered model, loaded and warm: what turns checked rows into an answer.

Rows skip the DataFrame where the library behind the model has a quick way in, and only where that way gives the same
answer as the model's pyfunc flavour on the model's own example. Whatever has no quick way answers through pyfunc.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shopfloor.serving.many_rows import ManyRows
from shopfloor.serving.native import Matrix, Native, Predictor, is_booster, native, one_of
from shopfloor.serving.schema import BadRequest, Column, NoRowSchema, RowSchema, Value, columns_of

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel

logger = logging.getLogger(__name__)


class Unanswerable(BadRequest):
    """The row is as it must be, and the model refuses it all the same."""


Many = Callable[[list[list[Value]]], list[Any]]
"""Takes rows, returns a prediction for each; may be called in any thread."""

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
    native: Native | None
    """How rows skip the DataFrame, where they do."""
    many_rows: ManyRows | None
    """Checks many rows at once, where they do."""

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

    def answer(self, prediction: Any, inputs: dict[str, Any] | None = None) -> bytes:
        """Return the body of an answer, with what the model was given where that was asked for.

        Raises:
            ValueError: JSON cannot hold the prediction.
        """
        text = _to_json(prediction)
        more = f',"inputs":{_to_json(inputs)}' if inputs is not None else ""
        return f'{{"prediction":{text},"model":"{self.name}","version":"{self.version}"{more}}}'.encode()

    def unanswerable(self, error: Exception) -> Unanswerable:
        """Return what a client is told when the model's library fails with `error`."""
        logger.warning("version %s refused a row", self.version, exc_info=error)
        return Unanswerable(422, f"The model cannot answer this row: {first_line(error)}.")


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
    return prepare(name, version, mlflow.pyfunc.load_model(f"models:/{name}/{version}"))


def prepare(name: str, version: str, pyfunc: PyFuncModel) -> ServedModel:
    """Return a model that MLflow has loaded as one that is ready to answer; it has answered its example once."""
    try:
        columns = columns_of(pyfunc.metadata.signature)
    except NoRowSchema as error:
        return ServedModel(name, version, pyfunc, None, str(error), {}, _unanswered, _unanswered, None, None)
    rows = RowSchema(columns, single_precision=is_booster(pyfunc))
    example = rows.example(_first_row(pyfunc.input_example))
    values = list(example.values())
    through_pyfunc = _pyfunc_rows(pyfunc, columns)
    expected = through_pyfunc([values])[0]
    way = native(pyfunc, columns)
    if way is not None and not all(_agrees(one, values, expected) for one in (way.one, one_of(way.matrix))):
        way = None
    if way is None:
        predictor, many = _one(through_pyfunc), through_pyfunc
    else:
        predictor, many = way.one, _many(way.matrix)
    logger.info("loaded %s version %s, %s", name, version, "native" if way else "pyfunc")
    return ServedModel(
        name, version, pyfunc, rows, "", example, predictor, many, way, ManyRows(rows) if way is not None else None
    )


def _many(matrix: Matrix) -> Many:
    import numpy as np

    def predict_rows(rows: list[list[Value]]) -> list[Any]:
        return list(matrix(np.array(rows, dtype=np.float64)).tolist())

    return predict_rows


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


def first_line(error: Exception) -> str:
    """Return what an error says, short enough for an answer."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:MAX_ERROR_CHARACTERS]
