"""What each of MLflow's flavors needs so that a registered model answers as `model.py`'s `predict` does.

scikit-learn is stored in the skops format, which loads only the types that it is told to trust: those of scikit-learn,
NumPy and SciPy are, whatever else a model holds must be named in use_case.yaml.
"""

from __future__ import annotations

import importlib
import pickle
from typing import TYPE_CHECKING, Any

from shopfloor.errors import UsageError, first_line
from shopfloor.use_case import ModelSection

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_PACKAGES: dict[str, list[tuple[str, ...]]] = {
    "xgboost": [("xgboost-cpu", "xgboost")],
    "sklearn": [("scikit-learn",), ("skops",)],
    "pytorch": [("torch",)],
    "onnx": [("onnx",), ("onnxruntime", "onnxruntime-gpu")],
    "lightgbm": [("lightgbm",)],
    "catboost": [("catboost",)],
    "pyfunc": [("cloudpickle",)],
}
_ASKED_BY_PREDICT = {"lightgbm", "catboost"}
_METHODS = ("predict", "predict_proba")


def module(flavor: str) -> Any:
    """Return MLflow's module of a flavor.

    Raises:
        UsageError: Its library is not installed here.
    """
    try:
        return importlib.import_module(f"mlflow.{flavor}")
    except ImportError as error:
        package = _PACKAGES[flavor][0][0]
        raise UsageError(
            f"model.flavor is {flavor}, and {package} is not installed here: {first_line(error)}.",
            f"Add {package} to requirements/runtime.in, then `make lock-add` and `make install`.",
        ) from error


def log(section: ModelSection, package: str, model: Any, **arguments: Any) -> Any:
    """Log a model in its flavor; return what MLflow says of it.

    Args:
        section: Names the flavor.
        package: Package of the use case. A `PythonModel` of it takes its code along, so that each version answers by
            the code that it was made with.
        model: What `load` of model.py returned.
        **arguments: Those of the flavor's `log_model`, also what `options` says.

    Raises:
        UsageError: The library is absent, or the model is no `PythonModel` where it should be one.
    """
    own = module(section.flavor)
    if section.flavor != "pyfunc":
        return own.log_model(model, **arguments)
    import cloudpickle

    if not isinstance(model, own.PythonModel):
        raise UsageError(
            f"model.flavor is pyfunc, and load in model.py returns a {type(model).__name__}.",
            "Let it return an instance of a class of your own that derives from mlflow.pyfunc.PythonModel.",
        )
    code = importlib.import_module(package)
    cloudpickle.register_pickle_by_value(code)
    try:
        return own.log_model(python_model=model, **arguments)
    except Exception as error:  # MLflow has one of its own around it
        cause = error.__cause__ or error
        if not isinstance(cause, TypeError | AttributeError | pickle.PicklingError):
            raise
        raise UsageError(
            f"The model of {package} cannot be pickled: {first_line(cause)}.",
            "Keep what has no pickle (locks, connections, open files) out of it; make it in load_context.",
        ) from error
    finally:
        cloudpickle.unregister_pickle_by_value(code)


def requirements(flavor: str) -> list[str]:
    """Return the pinned packages that a server of the model needs; asking MLflow to guess them costs half a minute."""
    from importlib.metadata import PackageNotFoundError, version

    pinned = [f"mlflow=={version('mlflow')}", f"pandas=={version('pandas')}"]
    for alternatives in _PACKAGES[flavor]:
        for package in alternatives:
            try:
                pinned.append(f"{package}=={version(package)}")
                break
            except PackageNotFoundError:
                continue
    return pinned


def options(section: ModelSection, model: Any, example: pd.DataFrame, answers: np.ndarray) -> dict[str, Any]:
    """Return the further arguments of the flavor's `log_model`.

    Args:
        section: Names the flavor, and the types of its own that a model may hold.
        model: What `load` of model.py returned.
        example: Rows.
        answers: What `predict` of model.py answered to them.

    Raises:
        UsageError: The model answers otherwise than `predict`, or holds types that nobody said are trusted.
    """
    if section.flavor == "pytorch":
        # What MLflow exports of PyTorch by itself takes one tensor, and no row of named columns.
        return {"serialization_format": "pickle"}
    if section.flavor in _ASKED_BY_PREDICT:
        _require_predict(section.flavor, model, example, answers)
    if section.flavor == "sklearn":
        return {
            "pyfunc_predict_fn": _method(model, example, answers),
            "skops_trusted_types": _trusted_types(model, section),
        }
    return {}


def _method(model: Any, example: pd.DataFrame, answers: np.ndarray) -> str:
    """Return the estimator's method that answers as `predict` of model.py: of two probabilities the second counts."""
    import numpy as np

    expected = np.asarray(answers)
    for method in _METHODS:
        if not hasattr(model, method):
            continue
        own = np.asarray(getattr(model, method)(example))
        if own.ndim == 2 and own.shape[1] == 2 and expected.ndim == 1:
            own = own[:, 1]
        if own.shape == expected.shape and _alike(own, expected):
            return method
    raise UsageError(
        f"predict in model.py answers otherwise than {' and '.join(_METHODS)} of {type(model).__name__}.",
        "Let it answer what one of them does: what else it computes belongs into the estimator, e.g. by a Pipeline.",
    )


def _require_predict(flavor: str, model: Any, example: pd.DataFrame, answers: np.ndarray) -> None:
    """Refuse a model whose own `predict`, the one that MLflow asks, is not what `predict` of model.py answers."""
    import numpy as np

    own, expected = np.asarray(model.predict(example)), np.asarray(answers)
    if own.shape != expected.shape or not _alike(own, expected):
        raise UsageError(
            f"predict in model.py answers otherwise than predict of {type(model).__name__}, which is all that MLflow's "
            f"flavor {flavor} asks.",
            "Let load return a mlflow.pyfunc.PythonModel that answers it, with model.flavor: pyfunc; of LightGBM a "
            "Booster answers probabilities.",
        )


def _alike(own: np.ndarray, expected: np.ndarray) -> bool:
    """Tell whether both are the same numbers, or the same texts."""
    import numpy as np

    if own.dtype.kind in "biuf" and expected.dtype.kind in "biuf":
        return np.allclose(own, expected, rtol=1e-9, atol=1e-9, equal_nan=True)
    return bool((own == expected).all())


def _trusted_types(model: Any, section: ModelSection) -> list[str]:
    """Return the types of a model that skops must be told to trust."""
    types = types_within(model)
    if unknown := [name for name in types if not section.trusts(name)]:
        raise UsageError(
            f"The model holds types that nobody said are trusted: {', '.join(unknown)}.",
            "If loading them is safe, add them to model.trusted in use_case.yaml.",
        )
    return types


def types_within(model: Any) -> list[str]:
    """Return the types of a model that skops loads only where it is told to trust them.

    Raises:
        UsageError: skops cannot store the model.
    """
    import skops.io

    try:
        types: list[str] = skops.io.get_untrusted_types(data=skops.io.dumps(model))
    except Exception as error:  # whatever it says of what it does not know
        raise UsageError(
            f"skops cannot store the model: {first_line(error)}.",
            "Use functions and classes that an import finds by name; a lambda has none.",
        ) from error
    return types


def foreign(types: list[str]) -> list[str]:
    """Return those of the types that are none of scikit-learn, NumPy or SciPy, and none of ours."""
    return [name for name in types if not ModelSection().trusts(name)]
