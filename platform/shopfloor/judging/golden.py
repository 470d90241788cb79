"""Golden requests: rows of the test set with what the model answered offline, which every later answer must equal.

A registered version brings them along and answers them before it gets requests; the endpoint of a deployed version is
asked them too. The file is plain JSON, strictly checked: whoever may write to the registry may have changed it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from typing_extensions import TypeAliasType

from shopfloor.errors import ShopfloorError
from shopfloor.runs.mlflow import EXTRA_FILES

FILE = "golden.json"
MAX_BYTES = 16 * 2**20
TOLERANCE = 1e-6
"""Distance that an answer may have from the offline one; for numbers beyond 1, as a part of the offline one."""

Answer = TypeAliasType("Answer", "bool | int | FiniteFloat | str | list[Answer] | dict[str, Answer] | None")
"""A prediction: whatever JSON holds."""


class Golden(BaseModel):
    """Rows, and a prediction for each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: list[dict[str, bool | int | FiniteFloat | str | list[FiniteFloat] | None]] = Field(min_length=1)
    """As JSON holds them; bytes in base64."""
    predictions: list[Answer]


def classified(answers: Any, classes: Sequence[int | str]) -> Any:
    """Return what a multiclass model answers as an endpoint sends it: `{"class": ..., "probabilities": {...}}` a row.

    Args:
        answers: Probabilities, shape (rows, classes), or a class a row, which stays as it is.
        classes: All there are, in the order of the probabilities.
    """
    import numpy as np

    table = np.asarray(answers)
    if table.ndim != 2 or table.shape[1] != len(classes):
        return answers
    names = [str(one) for one in classes]
    rows = zip(table.argmax(axis=1).tolist(), table.tolist(), strict=True)
    return [
        {"class": classes[most], "probabilities": dict(zip(names, probabilities, strict=True))}
        for most, probabilities in rows
    ]


def plain(answer: Any) -> Any:
    """Return an answer as JSON holds it: of lists, objects and their values, without arrays and numbers of NumPy."""
    if isinstance(answer, Mapping):
        return {str(name): plain(value) for name, value in answer.items()}
    if hasattr(answer, "tolist"):
        answer = answer.tolist()
    return [plain(value) for value in answer] if isinstance(answer, list | tuple) else answer


def of(rows: Sequence[Mapping[str, Any]], answers: Sequence[Any]) -> Golden:
    """Return golden requests.

    Args:
        rows: As JSON holds them.
        answers: What a model answered, an item a row.

    Raises:
        ShopfloorError: They are not as many, or JSON cannot hold one.
    """
    if len(answers) != len(rows):
        raise ShopfloorError(f"The model answers {len(answers)} of {len(rows)} rows.", "Mend `predict`: one a row.")
    try:
        return Golden(rows=[dict(row) for row in rows], predictions=[plain(one) for one in answers])
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        what, number = ("answer to", first["loc"][1]) if first["loc"][0] == "predictions" else ("", first["loc"][1])
        raise ShopfloorError(
            f"The {what} golden row {number} is nothing that JSON holds: {first['input']!r:.100}.".replace("  ", " "),
            "Let `predict` answer finite numbers, texts, true and false, or lists and objects of them.",
        ) from None


def write(golden: Golden, directory: Path) -> Path:
    """Write the file that a version keeps, and return it.

    Raises:
        ShopfloorError: It would be larger than what `read` takes.
    """
    text = golden.model_dump_json()
    if len(text.encode()) > MAX_BYTES:
        raise ShopfloorError(
            f"{len(golden.rows)} golden rows take more than {MAX_BYTES} bytes.",
            "Lower evaluation.golden_rows in use_case.yaml.",
        )
    file = directory / FILE
    file.write_text(text, encoding="utf-8")
    return file


def read(directory: Path) -> Golden | None:
    """Return the golden requests in the directory of a logged model; `None` where it has none.

    Raises:
        ShopfloorError: The file is too large, or not what `write` writes.
    """
    file = directory / EXTRA_FILES / FILE
    if not file.is_file():
        return None
    if file.stat().st_size > MAX_BYTES:
        raise ShopfloorError(f"{FILE} of the version is larger than {MAX_BYTES} bytes.")
    try:
        golden = Golden.model_validate_json(file.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        problem = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
        raise ShopfloorError(f"{FILE} of the version cannot be read: {problem}.") from None
    if len(golden.rows) != len(golden.predictions):
        raise ShopfloorError(
            f"{FILE} of the version has {len(golden.rows)} rows and {len(golden.predictions)} predictions."
        )
    return golden


def difference(answer: Any, expected: Any) -> float:
    """Return how far two predictions are apart, infinite where they are not alike at all.

    Of numbers beyond 1 it is the distance as a part of the expected one. A prediction is a number, a text, or a list or
    an object of them. MLflow answers {"0": 0.5} for some libraries: 0.5.
    """
    ours, theirs = _leaves(answer), _leaves(expected)
    if len(ours) != len(theirs):
        return math.inf
    return max((_apart(one, other) for one, other in zip(ours, theirs, strict=True)), default=0.0)


def _leaves(prediction: Any) -> list[Any]:
    if isinstance(prediction, dict):
        prediction = list(prediction.values())
    if isinstance(prediction, list):
        return [leaf for item in prediction for leaf in _leaves(item)]
    return [prediction]


def _apart(one: Any, other: Any) -> float:
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        distance = abs(one - other) / max(1.0, abs(other))
        return distance if math.isfinite(distance) else math.inf
    return 0.0 if one == other else math.inf
