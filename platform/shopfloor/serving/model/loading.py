"""A registered model, loaded and warm: what turns checked rows into an answer.

Rows skip the DataFrame where the library behind the model has a quick way in, and only where that way gives the same
answer as the model's pyfunc flavour on the model's own example, and the offline answers to the golden requests that the
version brings. Whatever has no quick way answers through pyfunc.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from shopfloor.errors import first_line
from shopfloor.judging import golden
from shopfloor.judging.golden import TOLERANCE, Golden, difference
from shopfloor.runs.mlflow import CLASSES, COLUMNS
from shopfloor.serving.errors import BadRequest, NoRowSchema
from shopfloor.serving.model.native import (
    Matrix,
    Native,
    OfClasses,
    OfLabel1,
    Predictor,
    answers_of,
    answers_one_of_two,
    as_mlflow,
    in_single_precision,
    method_of_sklearn,
    native,
    one_of,
)
from shopfloor.serving.model.row import Column, RowSchema, Value, columns_of
from shopfloor.storage import keep_scratch

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.pyfunc import PyFuncModel

logger = logging.getLogger(__name__)


class Unanswerable(BadRequest):
    """The row may be as it must be, and the version does not answer it: its own failure."""


class AnswersDifferently(Exception):
    """A loaded version does not answer its golden requests as its model did offline."""


Many = Callable[[list[list[Value]]], list[Any]]
"""Function of rows that returns a prediction for each; may be called in any thread."""

Direct = Callable[["pd.DataFrame"], list[Any]]
"""Function of a frame as the model gets it that returns a prediction for each row; may be called in any thread."""

T = TypeVar("T")

Fetch = Callable[[str, str, str, Path], Path]
"""Function of tracking URI, name, version and an empty directory that returns where in that the model lies."""

QUICK_S = 0.002
"""Time that a row may take where requests are answered: all others wait for it."""

TOGETHER = 8
"""Rows that are tried together, and must take half as long as one by one where they are to be gathered."""
TRIED_S = 0.25
"""Time after which a slow model is tried no more to see how long it takes."""

_to_json = json.JSONEncoder(allow_nan=False).encode


@dataclass(frozen=True, eq=False)
class ServedModel:
    """One version of a model, ready to answer."""

    name: str
    version: str
    pyfunc: PyFuncModel
    rows: RowSchema | None
    """Schema of a row; `None` where the signature does not describe rows, and `reason` says why."""
    reason: str
    example: dict[str, Value]
    predictor: Predictor
    many: Many
    native: Native | None
    """Way of rows around the DataFrame, where there is one."""
    direct: Direct | None
    """Way of frames around MLflow's look at their columns, where there is one and `native` is none."""
    quick: bool
    """Whether a row is answered so quickly that it needs no thread of its own."""
    row_s: float = 0.0
    """Seconds that a row takes at best."""
    gathers: bool = False
    """Whether rows that come while others are answered are better answered together."""
    classes: tuple[int | str, ...] = ()
    """Classes of a multiclass model, sorted."""
    example_answer: Any = None
    """Prediction of the example."""
    known_answers: tuple[Any, ...] = ()
    """Predictions of the example and of the golden requests: what a prediction looks like."""
    as_mlflow: Any = None
    """What MLflow's scoring server answers to the same rows as `predictions`, where the model has no classes."""

    def parse(self, body: bytes) -> list[Value]:
        """Return the values of the JSON object of one row.

        Raises:
            BadRequest: The body is not a row of this model.
        """
        if self.rows is None:
            # Not the client's error: who sends rows got them answered by the champion, and its gates must count this.
            raise Unanswerable(422, f"Version {self.version} answers /invocations only: {self.reason}.")
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


def load_model(tracking_uri: str, name: str, version: str, fetch: Fetch | None = None) -> ServedModel:
    """Fetch a version from the MLflow registry, load it and ask it its example and its golden requests once.

    Args:
        tracking_uri: MLflow's server, the registry of the models too.
        name: Registered model.
        version: A version number.
        fetch: What brings its files here; `None` is `download`.

    Raises:
        AnswersDifferently: It is not the model that was judged, or does not answer as that did.
        Exception: Whatever MLflow or the model's library raises when the version is not there or does not load.
    """
    fetched, remove = keep_scratch()
    try:
        model = prepare(name, version, (fetch or download)(tracking_uri, name, version, fetched))
    except BaseException:
        remove()
        raise
    # A model may read its files when it is asked: they go when it does.
    weakref.finalize(model.pyfunc, remove)
    return model


def download(tracking_uri: str, name: str, version: str, directory: Path) -> Path:
    """Copy a version from the MLflow registry under `directory`, and return the model's own directory there.

    Raises:
        MlflowException: The version is not there, or MLflow does not answer.
    """
    import mlflow
    from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR

    mlflow.set_tracking_uri(tracking_uri)
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)  # nobody looks on
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{name}/{version}", dst_path=str(directory)))


def prepare(name: str, version: str, directory: Path) -> ServedModel:
    """Return the model in a directory as one that is ready to answer, and has answered its example and golden requests.

    Raises:
        AnswersDifferently: As in `load_model`.
    """
    import mlflow

    pyfunc = mlflow.pyfunc.load_model(str(directory))
    if answers_one_of_two(pyfunc):
        pyfunc = OfLabel1(pyfunc)
    described = pyfunc.metadata.metadata or {}
    classes = tuple(described.get(CLASSES, ()))
    if classes:
        pyfunc = OfClasses(pyfunc, classes)
    try:
        columns = columns_of(pyfunc.metadata.signature, described.get(COLUMNS))
    except NoRowSchema as error:
        return ServedModel(name, version, pyfunc, None, str(error), {}, _unanswered, _unanswered, None, None, False)
    rows = RowSchema(columns, single_precision=in_single_precision(pyfunc))
    example = rows.example(_first_row(pyfunc.input_example))
    values = list(example.values())
    through_pyfunc = _rows(_through_pyfunc(pyfunc), rows)
    expected = through_pyfunc([values])[0]
    requests = golden.read(directory)
    way = _quick_way(pyfunc, columns, directory, values, expected, classes)
    if way is not None and requests is not None:
        try:
            _require_offline_answers(requests, rows, way.one, _many(way.matrix))
        except AnswersDifferently as error:
            logger.warning("no quick way into %s version %s: %s", name, version, error)
            way = None
    direct = _direct(pyfunc, classes) if way is None else None
    if direct is not None and not _same(direct, rows, values, expected, requests):
        direct = None
    if way is None:
        many = through_pyfunc if direct is None else _rows(direct, rows)
        predictor = _one(many)
        if requests is not None and direct is None:
            _require_offline_answers(requests, rows, predictor, many)
    else:
        predictor, many = way.one, _many(way.matrix)
    logger.info("loaded %s version %s, %s", name, version, "native" if way else "direct" if direct else "pyfunc")
    known = [values, *(rows.parse(json.dumps(row).encode()) for row in (requests.rows if requests else ()))]
    row_s = _took_s(predictor, values)
    return ServedModel(
        name,
        version,
        pyfunc,
        rows,
        "",
        example,
        predictor,
        many,
        way,
        direct,
        way is not None and row_s <= QUICK_S,
        row_s,
        direct is not None and _took_s(many, [values] * TOGETHER) < TOGETHER * row_s / 2,
        classes=classes,
        example_answer=expected,
        known_answers=(expected, *(requests.predictions if requests else ())),
        as_mlflow=None if classes else json.loads(as_mlflow(pyfunc.predict(rows.frame(known))))["predictions"],
    )


def _require_offline_answers(requests: Golden, schema: RowSchema, one: Predictor, many: Many) -> None:
    """Ask golden requests one by one and all at once.

    Raises:
        AnswersDifferently: One is refused, or answered otherwise than offline; says which.
    """

    def refused(number: int | str, error: Exception) -> AnswersDifferently:
        return AnswersDifferently(f"golden row {number} is refused: {first_line(error)}")

    parsed, answers = [], []
    for number, row in enumerate(requests.rows):
        try:
            parsed.append(schema.parse(json.dumps(row).encode()))
            answers.append(one(parsed[-1]))
        except Exception as error:
            raise refused(number, error) from error
    try:
        together = many(parsed)
    except Exception as error:
        raise refused(f"0 to {len(parsed) - 1} at once", error) from error
    if len(together) != len(parsed):
        raise AnswersDifferently(f"{len(together)} predictions answer {len(parsed)} golden rows at once")
    for number, expected in enumerate(requests.predictions):
        for answer in (answers[number], together[number]):
            apart = difference(answer, expected)
            if apart > TOLERANCE:
                raise AnswersDifferently(
                    f"golden row {number} is answered {_short(answer)}, and was {_short(expected)} offline "
                    f"(difference {apart:.3g}, at most {TOLERANCE:g}): {_short(requests.rows[number])}"
                )


def _took_s(answer: Callable[[T], Any], asked: T) -> float:
    """Return the seconds that an answer takes at best: whatever else the machine does only adds to them."""
    times: list[float] = []
    while len(times) < 5 and sum(times) < TRIED_S:
        began = time.perf_counter()
        answer(asked)
        times.append(time.perf_counter() - began)
    return min(times)


def _short(value: Any) -> str:
    return repr(value)[:500]


def _many(matrix: Matrix) -> Many:
    import numpy as np

    def predict_rows(rows: list[list[Value]]) -> list[Any]:
        return list(matrix(np.array(rows, dtype=np.float64)).tolist())

    return predict_rows


def _rows(answer: Direct, schema: RowSchema) -> Many:
    """Return the way of rows through a way of frames."""

    def predict_rows(rows: list[list[Value]]) -> list[Any]:
        answers = answer(schema.frame(rows))
        if len(answers) != len(rows):
            raise ValueError(f"the model answers {len(answers)} predictions to {len(rows)} rows")
        return answers

    return predict_rows


def _through_pyfunc(pyfunc: PyFuncModel) -> Direct:
    from mlflow.utils.proto_json_utils import _get_jsonable_obj

    def answer(frame: pd.DataFrame) -> list[Any]:
        answers = _get_jsonable_obj(answers_of(pyfunc.predict(frame), len(frame)), pandas_orient="records")
        return [golden.plain(answer) for answer in answers]

    return answer


def _direct(pyfunc: PyFuncModel, classes: tuple[int | str, ...]) -> Direct | None:
    """Return the way of frames into an estimator of scikit-learn, which needs no second look at its columns' types."""
    function = method_of_sklearn(pyfunc)
    if function is None:
        return None
    of_label_1 = answers_one_of_two(pyfunc)

    def answer(frame: pd.DataFrame) -> list[Any]:
        answers = function(frame)
        if of_label_1:
            answers = answers[:, 1]
        if classes:
            answers = golden.classified(answers, classes)
        return list(answers.tolist() if hasattr(answers, "tolist") else answers)

    return answer


def _one(many: Many) -> Predictor:
    return lambda values: many([values])[0]


def _quick_way(
    pyfunc: PyFuncModel,
    columns: tuple[Column, ...],
    directory: Path,
    values: list[Value],
    expected: Any,
    classes: tuple[int | str, ...],
) -> Native | None:
    """Return the quick way into a model, where there is one and it answers the example as pyfunc does."""
    try:
        way = native(pyfunc, columns, directory)
        if way is not None and classes:
            way = way.classified(classes)
        if way is None or any(difference(one(values), expected) > TOLERANCE for one in (way.one, one_of(way.matrix))):
            return None
        return way
    except Exception:  # whatever a library says to a model that it cannot answer: pyfunc can
        logger.info("no quick way into this model", exc_info=True)
        return None


def _same(direct: Direct, schema: RowSchema, values: list[Value], expected: Any, requests: Golden | None) -> bool:
    """Tell whether a way of frames answers the example as pyfunc does, and golden requests as the model did offline.

    The example is asked beside another row, too, where the model takes one that is made of the columns' types alone.
    """
    many = _rows(direct, schema)
    other = list(schema.example(None).values())
    try:
        together = many([values, values])
        with contextlib.suppress(Exception):  # it need not take it
            together += many([values, other])[:1] + many([other, values])[1:]
        if any(difference(answer, expected) > TOLERANCE for answer in [*many([values]), *together]):
            return False
        if requests is not None:
            _require_offline_answers(requests, schema, _one(many), many)
    except Exception:  # whatever a library says to a frame that it cannot answer: pyfunc can
        logger.info("no direct way into this model", exc_info=True)
        return False
    return True


def _unanswered(values: Any) -> Any:
    raise AssertionError("a model without rows answers no row")


def _first_row(example: Any) -> dict[str, Any] | None:
    """Return the first row of an input example, where it has named columns."""
    import pandas as pd

    if isinstance(example, pd.DataFrame) and len(example):
        return {str(name): example[name].iloc[0] for name in example.columns}
    return example if isinstance(example, dict) else None
