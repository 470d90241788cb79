"""The passport of a model version: what it was made of and how it was judged, kept beside it in MLflow.

Whoever reads passports needs this module only; `register.py` writes them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from shopfloor.errors import NotFoundError, ServiceError, first_line
from shopfloor.records import Passport
from shopfloor.runs.mlflow import lookup, no_version

FILE = "passport.json"


def read_passport(client: Any, model: str, version: str) -> Passport:
    """Return the passport of a model version.

    Raises:
        NotFoundError: There is no such version, or it was registered without a passport.
        ServiceError: MLflow, or where it keeps files, does not answer.
    """
    try:
        with lookup(client):
            client.get_registered_model(model)  # where it is none, a server with users says so to administrators only
            run_id = client.get_model_version(model, version).run_id
    except NotFoundError as error:
        raise no_version(model, version) from error
    passport = find_passport(client, run_id)
    if passport is None:
        raise NotFoundError(
            f"Version {version} of {model!r} has no passport.",
            "Neither a pipeline nor `shopfloor models import` registered it.",
        )
    return passport


def find_passport(client: Any, run_id: str) -> Passport | None:
    """Return the passport that a `register` step left at its run, `None` where it left none.

    Raises:
        ServiceError: MLflow, or where it keeps files, does not answer.
    """
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory() as directory:
        try:
            with lookup(client):
                if all(file.path != FILE for file in client.list_artifacts(run_id)):
                    return None
                file = download_artifacts(
                    run_id=run_id, artifact_path=FILE, dst_path=directory, tracking_uri=client.tracking_uri
                )
        except NotFoundError:
            return None
        except ServiceError:
            raise
        except Exception as error:  # each kind of store has its own
            raise ServiceError(
                f"The passport of run {run_id} cannot be read: {first_line(error, 300)}.", "Look at MLflow's artifacts."
            ) from error
        return Passport.model_validate_json(Path(file).read_text(encoding="utf-8"))


def write_passport(client: Any, run_id: str, passport: Passport) -> None:
    """Leave a passport at the run of the `register` step that made the version."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / FILE
        file.write_text(passport.model_dump_json(indent=1), encoding="utf-8")
        client.log_artifact(run_id, str(file))
