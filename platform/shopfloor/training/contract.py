"""What a use case's `model.py` must do, tried for one round before a search: a mistake shows at once, and once.

In a search the same mistake would fail every trial, and each of them several times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shopfloor.errors import DataError, UsageError, first_line
from shopfloor.storage import scratch
from shopfloor.use_case import FUNCTIONS, Choice, UseCase

if TYPE_CHECKING:
    import pandas as pd

SAMPLE_ROWS = 5000


def try_contract(use_case: UseCase, train: pd.DataFrame, validate: pd.DataFrame, target: str) -> None:
    """Train one round on a sample, and save, load and ask the model.

    Args:
        use_case: Its model.py is tried.
        train: Rows of the features and the target.
        validate: The same of the validation split.
        target: Name of the target's column.

    Raises:
        UsageError: model.py lacks a function, one of them fails, or does not do what is asked of it.
        DataError: All rows to train on have the same label.
    """
    if train[target].nunique() < 2:
        raise DataError(
            f"All {len(train)} rows of the split 'train' have the same {target!r}: nothing can be learnt from them.",
            "Mend features.split in use_case.yaml, or look at the labels.",
        )
    code = use_case.code("model")
    missing = [name for name in FUNCTIONS["model"] if not hasattr(code, name)]
    if missing:
        raise UsageError(
            f"model.py of {use_case.name} defines no {missing[0]}().",
            "docs/how-to/add-a-use-case.md says what it does.",
        )
    section = use_case.search
    params = {name: one.values[0] if isinstance(one, Choice) else one.low for name, one in section.space.items()}
    samples = [_sample(frame) for frame in (train, validate)]
    reports: list[tuple[dict[str, float], Any]] = []
    data = _call(use_case, "prepare", lambda: code.prepare(*samples, target))
    _call(
        use_case,
        "train",
        lambda: code.train(
            params,
            data,
            rounds=1,
            threads=1,
            resume_from=None,
            report=lambda round_, numbers, model: reports.append((dict(numbers), model)),
        ),
    )
    if not reports:
        raise UsageError(f"train of {use_case.name} never called report().", "Call it after each round.")
    numbers, model = reports[-1]
    if section.metric not in numbers:
        raise UsageError(
            f"The model reports {', '.join(sorted(numbers)) or 'nothing'}, not {section.metric!r}.",
            "Change search.metric in use_case.yaml, or what model.py reports.",
        )
    with scratch() as directory:
        _call(use_case, "save", lambda: code.save(model, directory))
        if not any(directory.iterdir()):
            raise UsageError(f"save of {use_case.name} wrote no file.", "Write the model into the directory given.")
        again = _call(use_case, "load", lambda: code.load(directory))
        rows = samples[1].drop(columns=target)
        answers = _call(use_case, "predict", lambda: code.predict(again, rows))
    if len(answers) != len(rows):
        raise UsageError(
            f"predict of {use_case.name} answers {len(answers)} predictions to {len(rows)} rows.", "Answer one a row."
        )


def _call(use_case: UseCase, function: str, call: Any) -> Any:
    try:
        return call()
    except Exception as error:  # whatever the use case's code raises
        raise UsageError(
            f"{function} of pipelines/{use_case.name}/model.py fails: {type(error).__name__}: {first_line(error, 300)}",
            "The log of the step has the traceback: shopfloor runs logs latest tune",
        ) from error


def _sample(frame: pd.DataFrame) -> pd.DataFrame:
    """Return rows from all over the frame, as many as are quick to train on."""
    step = max(1, len(frame) // SAMPLE_ROWS)
    return frame.iloc[::step]
