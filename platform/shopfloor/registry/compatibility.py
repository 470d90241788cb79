"""What a champion's clients would be refused by another version, said before a person makes that one champion.

A run's own version was judged by the gate of the signature already; this is for a promotion by hand.
"""

from __future__ import annotations

import tempfile

from shopfloor.errors import ShopfloorError, first_line
from shopfloor.judging.signature import Inputs, incompatibility, inputs_of
from shopfloor.runs.mlflow import import_mlflow
from shopfloor.settings import Settings


def concern(settings: Settings, model: str, version: str, champion: str | None) -> str:
    """Return in one sentence why clients of the champion cannot ask a version; empty where they can, or there is none.

    Args:
        settings: Say where the registry is.
        model: Name of the registered model.
        version: The one that is to be champion.
        champion: Version that answers now.

    Raises:
        ShopfloorError: The version's files are gone, or MLflow does not answer.
    """
    if champion is None or champion == version:
        return ""
    try:
        before = _inputs(settings, model, champion)
    except ShopfloorError as error:  # no reason to keep a broken champion
        return f"Nobody can say whether clients of the champion may ask version {version}: {error.message}"
    if before is None:
        return ""
    inputs = _inputs(settings, model, version)
    if inputs is None:
        return (
            f"Version {version} names no inputs: clients that ask version {champion}, the champion, would be refused."
        )
    problem = incompatibility(inputs, before)
    return f"Clients that ask version {champion}, the champion, may be refused: {problem}." if problem else ""


def _inputs(settings: Settings, model: str, version: str) -> Inputs | None:
    """Return the inputs that a version's signature names, `None` where it names none.

    Raises:
        ShopfloorError: Its files cannot be read.
    """
    mlflow = import_mlflow()
    mlflow.set_tracking_uri(settings.tracking_uri)
    # MLflow would leave its copy of the file behind.
    with tempfile.TemporaryDirectory() as directory:
        uri = f"models:/{model}/{version}/{mlflow.models.model.MLMODEL_FILE_NAME}"
        try:
            file = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=directory)
        except (mlflow.MlflowException, OSError) as error:  # the artifact stores raise either
            raise ShopfloorError(
                f"The files of version {version} of {model} cannot be read: {first_line(error)}.",
                "Register it again, or bring its artifacts back.",
            ) from error
        signature = mlflow.models.Model.load(file).signature
    schema = signature.inputs if signature else None
    return inputs_of(schema) if schema is not None and schema.has_input_names() else None
