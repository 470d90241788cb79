"""The model of the use case: a small neural network on the pixels of a picture, which answers each digit's probability.

`shopfloor.training.tuning` says what `train` is called with. The rest is what any model of scikit-learn gets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shopfloor.training.context import Context


def train(params: dict[str, Any], data: tuple[Any, ...], context: Context) -> None:
    """Fit the network in one go, of at most `context.rounds` passes over the pictures, and report what it is worth."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import accuracy_score, log_loss
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from threadpoolctl import threadpool_limits

    from pipelines.digits.pixels import Pixels

    pictures, digits, unseen, unseen_digits = data
    model = make_pipeline(Pixels(), MLPClassifier(max_iter=context.rounds, random_state=2013, **params))
    with threadpool_limits(context.threads), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the search weighs what more passes would be worth
        model.fit(pictures, digits)
    scores = model.predict_proba(unseen)
    numbers = {
        "validate-log_loss": log_loss(unseen_digits, scores, labels=model.classes_),
        "validate-accuracy": accuracy_score(unseen_digits, model.classes_[scores.argmax(axis=1)]),
    }
    context.report(numbers, checkpoint=model)
