"""A use case in memory, for what reads no more of one than its sections."""

from typing import Any

from shopfloor.use_case import UseCase

KEPT_BY_SKOPS = """

def save(model, directory):
    import skops.io
    skops.io.dump(model, directory / "model.skops")


def load(directory):
    import skops.io
    return skops.io.load(directory / "model.skops")


def predict(model, frame):
    return model.predict(frame)
"""
"""What a model.py of scikit-learn has beside `prepare` and `train`."""


def use_case(**sections: Any) -> UseCase:
    """Return a small use case of the table `rows`, some of its sections as they are given."""
    small: dict[str, Any] = {
        "name": "toy",
        "data": {"path": "data/toy", "tables": ["rows"]},
        "features": {"source": "rows", "target": "y", "split": {"by": "random"}},
        "search": {
            "metric": "m", "mode": "min", "trials": 1, "space": {"depth": {"type": "int", "low": 1, "high": 2}},
        },
        "model": {"flavor": "sklearn"},
    }  # fmt: skip
    return UseCase.model_validate(small | sections)
