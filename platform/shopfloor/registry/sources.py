"""Where a model that was made elsewhere lies, and what it is: a file or a directory of MLflow's, told by its content.

Nothing is loaded here. Whatever could run code when it is loaded says so, and needs that somebody allows it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shopfloor.errors import NotFoundError, ServiceError, UsageError, first_line, without_secrets
from shopfloor.registry import flavors
from shopfloor.runs.mlflow import failed, import_mlflow
from shopfloor.settings import Settings
from shopfloor.storage import hash_directory

Kind = Literal["mlflow", "onnx", "xgboost", "lightgbm", "skops", "pickle"]
TITLES: dict[Kind, str] = {
    "mlflow": "an MLflow model",
    "onnx": "an ONNX file",
    "xgboost": "an XGBoost file",
    "lightgbm": "a LightGBM file",
    "skops": "a skops file of scikit-learn",
    "pickle": "a pickle",
}
_MLMODEL = "MLmodel"
_SUFFIXES: dict[str, Kind] = {".onnx": "onnx", ".pkl": "pickle", ".pickle": "pickle", ".joblib": "pickle"}
_SAFE_LOADERS = {f"mlflow.{flavor}" for flavor in ("catboost", "lightgbm", "onnx", "sklearn", "xgboost")}
_PICKLES = {".pkl", ".pickle", ".joblib", ".cloudpickle", ".pt", ".pth"}
_FORMATS = "Name an MLflow model, or a file of ONNX, XGBoost (.json, .ubj), LightGBM (.txt), skops or a pickle."


@dataclass(frozen=True)
class Source:
    """A model somewhere on this machine."""

    name: str
    """How it was named: a path or a URI."""
    path: Path
    kind: Kind
    digest: str
    """SHA-256 of the file, or over all files of the directory."""

    @property
    def file(self) -> str:
        """Its last part, for a message."""
        return self.name.rstrip("/").rpartition("/")[2]


def fetch(settings: Settings, source: str, directory: Path) -> Source:
    """Return the model that a path or a URI names; one that is elsewhere is copied first.

    Args:
        settings: Say where MLflow is, for `models:/` and `runs:/`.
        source: A file, a directory, or a URI that MLflow reads.
        directory: An empty one, for the copy.

    Raises:
        NotFoundError: There is no such thing.
        UsageError: It is no model.
        ServiceError: What keeps it does not answer.
    """
    name = without_secrets(source)
    if ":/" in source:
        path = _download(settings, source, name, directory)
    else:
        path = Path(source).expanduser()
        if not path.exists():
            raise NotFoundError(f"There is no file and no directory {name!r}.", _FORMATS)
        name = str(path.resolve())
    kind = _kind_of_directory(name, path) if path.is_dir() else _kind_of_file(name, path)
    return Source(name, path, kind, hash_directory(path) if path.is_dir() else _digest(path))


def has_signature(source: Source) -> bool:
    """Tell whether a model of MLflow's says what it takes."""
    return bool((_mlmodel(source.path).get("signature") or {}).get("inputs"))


def refuse_code(source: Source) -> None:
    """Refuse a model that may run code of its maker's when it is loaded.

    Raises:
        UsageError: It may; the message says why.
    """
    reason = next(_code(source), None)
    if reason is not None:
        raise UsageError(
            f"{source.file} {reason}: loading it runs whatever code its maker put in, as you.",
            "Where you trust who made it, add --allow-code.",
        )


def _download(settings: Settings, source: str, name: str, directory: Path) -> Path:
    mlflow = import_mlflow()
    mlflow.set_tracking_uri(settings.tracking_uri)
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(directory)))
    except mlflow.MlflowException as error:
        if failure := failed(error):
            raise failure from error
        raise NotFoundError(f"{name} cannot be read: {first_line(error, 300)}.", _FORMATS) from error
    except Exception as error:  # each kind of store has its own
        raise ServiceError(f"{name} cannot be read: {first_line(error, 300)}.", "Look at where it is kept.") from error


def _kind_of_directory(name: str, path: Path) -> Kind:
    file = path / _MLMODEL
    if not file.is_file():
        raise UsageError(f"The directory {name} is no MLflow model: it has no file {_MLMODEL}.", _FORMATS)
    if "python_function" not in _flavors(path):
        raise UsageError(f"{name} has no python_function flavor, by which MLflow serves a model.", "Log it anew.")
    return "mlflow"


def _kind_of_file(name: str, path: Path) -> Kind:
    with path.open("rb") as handle:
        start = handle.read(512)
    if not start:
        raise UsageError(f"{name} is empty.", _FORMATS)
    if start.startswith(b"tree\n"):
        return "lightgbm"
    if start.startswith(b"{") and b"learner" in start:
        return "xgboost"
    if start.startswith(b"PK\x03\x04") and _holds_schema(path):
        return "skops"
    if start.startswith(b"\x80"):
        return "pickle"
    kind = _SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"{name} is no model of a kind that is known here.", _FORMATS)
    return kind


def _holds_schema(path: Path) -> bool:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return "schema.json" in archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False


def _code(source: Source) -> Iterator[str]:
    """Yield why loading a model could run code of its maker's."""
    if source.kind == "pickle":
        yield "is a pickle"
    if source.kind != "mlflow":
        return
    parts = _flavors(source.path)
    loader = parts["python_function"].get("loader_module")
    if parts["python_function"].get("code"):
        yield "brings code along"
    if loader not in _SAFE_LOADERS:
        yield f"is loaded by {loader}"
    for file in sorted(source.path.rglob("*")):
        if file.suffix in _PICKLES:
            yield f"holds the pickle {file.name}"
    trusted = parts.get("sklearn", {}).get("skops_trusted_types") or ()
    for kind in flavors.foreign(list(trusted)):
        yield f"holds the type {kind}"


def _flavors(path: Path) -> dict[str, Any]:
    try:
        return {name: dict(options) for name, options in _mlmodel(path)["flavors"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{_MLMODEL} in {path} names no flavors.", "Log the model anew.") from error


def _mlmodel(path: Path) -> dict[str, Any]:
    import yaml

    try:
        return dict(yaml.safe_load((path / _MLMODEL).read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise UsageError(f"{path / _MLMODEL} is broken: {first_line(error, 200)}.", "Log the model anew.") from error


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
