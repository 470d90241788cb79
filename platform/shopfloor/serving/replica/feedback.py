"""What became true of a prediction, as a client reports it: `POST /<use_case>/feedback`."""

from __future__ import annotations

import json
import time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shopfloor.serving.errors import BadRequest
from shopfloor.serving.log_files import Feedback
from shopfloor.serving.model.row import bad_fields


class Body(BaseModel):
    """The body."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    request_id: str = Field(min_length=1, max_length=128, description="`X-Request-Id` of the answer.")
    outcome: bool | int | float | str = Field(description="What was predicted, as it turned out.")


MAX_BYTES = 16 * 1024
"""Size of a body: an outcome is a value, not a document."""
EXAMPLE = {"request_id": "5f1c2a-1", "outcome": True}


def parse(body: bytes) -> Feedback:
    """Return the feedback that a body holds.

    Raises:
        BadRequest: It is none; the fields are named.
    """
    try:
        body_content = Body.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        if problems[0]["type"] == "json_invalid" or not problems[0]["loc"]:
            raise BadRequest(400, "The body must be one JSON object with request_id and outcome.") from None
        fields = {str(item["loc"][0])[:200]: item["msg"].replace("Input should be", "must be") for item in problems}
        raise bad_fields([{"field": field, "problem": text} for field, text in fields.items()]) from None
    return Feedback(body_content.request_id, time.time(), json.dumps(body_content.outcome))


def operation(problem: dict[str, Any]) -> dict[str, Any]:
    """Return the route's OpenAPI operation.

    Args:
        problem: Schema of a refusal.
    """
    schema = Body.model_json_schema()
    content = {"application/json": {"schema": schema, "example": EXAMPLE}}
    refusal = {"content": {"application/json": {"schema": problem}}}
    words = {
        "400": "The body is not such an object.",
        "401": "The endpoint asks for a bearer token, and none that counts was sent.",
        "421": "The endpoint does not answer under the name in `Host`.",
        "404": "This endpoint keeps no log.",
        "408": "The body did not arrive in time.",
        "413": "The body is too large.",
        "415": "The content type is not JSON.",
        "422": "A field is missing, unknown or wrong; `fields` names it.",
        "503": "The feedback is not kept: the log takes nothing, or the replica has too many requests; send it again.",
        "504": "The log did not take it in time; send it again.",
    }
    return {
        "summary": "Say what became true of a prediction",
        "requestBody": {"required": True, "content": content},
        "responses": {
            "202": {
                "description": "It is kept: on the disk or in the store, not only in memory.",
                "content": {"application/json": {"schema": {"type": "object"}}},
            },
            **{status: {"description": text, **refusal} for status, text in words.items()},
        },
    }
