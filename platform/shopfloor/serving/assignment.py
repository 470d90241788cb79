"""The assignment as it stands in the registry: one tag of the registered model, which every replica follows.

Serve takes a replica out of the proxy while it hands it a new configuration; requests then wait or fail. A replica that
looks at the registry by itself changes its versions in peace, and the tag changes all that belongs together at once.
"""

from __future__ import annotations

from pydantic import ValidationError

from shopfloor.errors import NotFoundError, ServiceError
from shopfloor.runs.mlflow import Mlflow
from shopfloor.serving.contract import TAG, Assignment


def read(mlflow: Mlflow, use_case: str) -> Assignment:
    """Return what the registry says; an assignment of nothing where it has no such model, or the model no tag.

    Args:
        mlflow: The registry.
        use_case: Name of the registered model.

    Raises:
        ServiceError: MLflow does not answer, or refuses, or the tag is broken.
    """
    try:
        model = mlflow.get("registered-models/get", "registered_model", name=use_case)
    except NotFoundError:  # said by MLflow itself; any other 404 says nothing about the model
        return Assignment()
    tags = {tag["key"]: tag.get("value", "") for tag in model.get("tags", [])}
    try:
        return Assignment.model_validate_json(tags[TAG]) if tags.get(TAG) else Assignment()
    except ValidationError as error:
        raise ServiceError(
            f"The tag {TAG} of the model {use_case} is broken.", f"Remove it, then: shopfloor models promote {use_case}"
        ) from error


def write(mlflow: Mlflow, use_case: str, assignment: Assignment) -> None:
    """Let the endpoint of `use_case` hold these versions; its replicas see it within a second.

    Args:
        mlflow: The registry.
        use_case: Name of the registered model.
        assignment: What its endpoint is to hold.

    Raises:
        NotFoundError: There is no such model.
        ServiceError: MLflow does not answer, or refuses.
    """
    content = {"name": use_case, "key": TAG, "value": assignment.model_dump_json()}
    try:
        mlflow.post("registered-models/set-tag", content)
    except NotFoundError as error:
        raise NotFoundError(
            f"There is no model {use_case!r}.", "`shopfloor models list` shows what there is."
        ) from error
