"""Asks an endpoint as any client would: a row that somebody has, or the example in its own OpenAPI document."""

from __future__ import annotations

import json
import os
from typing import Any

from pydantic import JsonValue

from shopfloor.errors import NotFoundError, ServiceError, ShopfloorError, UsageError, first_line
from shopfloor.records import Record
from shopfloor.serving.deploy import applications, rollout
from shopfloor.settings import Settings
from shopfloor.use_case import load_served_case


class Answer(Record):
    """What an endpoint answers to a row."""

    use_case: str
    description: str
    """Description of the use case: what its models predict."""
    version: str
    row: JsonValue
    """What was sent."""
    prediction: JsonValue
    endpoint: str
    """Address that was asked."""


def ask(settings: Settings, use_case: str, row: str | None = None) -> Answer:
    """Ask the endpoint of a use case.

    Args:
        settings: Say where the endpoints are; the token is `SERVE_TOKEN` of the environment.
        use_case: Its name.
        row: JSON of a row; `None` takes the example of the endpoint's OpenAPI document.

    Raises:
        NotFoundError: There is no such endpoint.
        UsageError: The row is no JSON object, or none that the champion takes; or the endpoint asks for a token.
        ServiceError: It does not answer.
    """
    running = applications.running(settings)
    if use_case not in running:
        raise NotFoundError(
            f"{use_case} has no endpoint.", f"Endpoints: {', '.join(sorted(running)) or 'none'}; `shopfloor status`."
        )
    address = f"{rollout.endpoint(settings, use_case)}/predict"
    content = example(address) if row is None else _parsed(row)
    answer = _request("POST", address, content)
    try:
        description = load_served_case(settings, use_case).description
    except ShopfloorError:  # its folder is gone, or broken: it answers all the same
        description = ""
    return Answer(
        use_case=use_case,
        description=description,
        version=answer["version"],
        row=content,
        prediction=answer["prediction"],
        endpoint=address,
    )


def ask_all(settings: Settings) -> list[Answer]:
    """Ask each endpoint its example, in the order of their names.

    Raises:
        ServiceError: One does not answer, or Ray's dashboard does not.
    """
    return [ask(settings, name) for name in sorted(applications.running(settings))]


def in_words(prediction: JsonValue) -> str:
    """Return a prediction as a person reads it: `setosa (98.5 %)`, `0.1342`, or its JSON."""
    if isinstance(prediction, dict) and isinstance(probabilities := prediction.get("probabilities"), dict):
        best = str(prediction.get("class"))
        share = probabilities.get(best)
        return f"{best} ({share:.1%})".replace("%", " %") if isinstance(share, float | int) else best
    if isinstance(prediction, float):
        return f"{prediction:.4g}"
    return prediction if isinstance(prediction, str) else json.dumps(prediction)


def _parsed(row: str) -> JsonValue:
    try:
        content: JsonValue = json.loads(row)
    except ValueError as error:
        raise UsageError(f"{row[:100]!r} is no JSON: {first_line(error)}.", """Write --row '{"age": 42}'.""") from error
    return content


def example(address: str) -> JsonValue:
    """Return the row that an endpoint's own OpenAPI document gives as an example.

    Args:
        address: Of its predictions, which ends in `/predict`.

    Raises:
        UsageError: It gives none: the model takes no row of named columns.
        ServiceError: It does not answer.
    """
    base = address.removesuffix("/predict")
    document = _request("GET", f"{base}/openapi.json")
    for path, operations in document["paths"].items():
        if path.endswith("/predict"):
            content = operations["post"]["requestBody"]["content"]["application/json"]
            examples = [content.get("example"), *(one["value"] for one in content.get("examples", {}).values())]
            if (first := next((one for one in examples if one is not None), None)) is not None:
                found: JsonValue = first
                return found
    raise UsageError(f"{base} gives no example of a row.", f"Its ways in: {base}/docs")


def _request(method: str, address: str, content: JsonValue = None) -> dict[str, Any]:
    import requests

    from shopfloor.serving.deploy.verify import TOKEN_VARIABLE

    token = os.environ.get(TOKEN_VARIABLE)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = requests.request(
            method, address, json=content if method == "POST" else None, headers=headers, timeout=30
        )
        body = answer.json()
    except (requests.RequestException, ValueError) as error:
        raise ServiceError(f"{address} does not answer: {type(error).__name__}.", "See `shopfloor status`.") from error
    if answer.status_code in {401, 403}:
        raise UsageError(f"{address} asks for a token.", f"Set {TOKEN_VARIABLE}; docs/how-to/require-tokens.md.")
    if answer.status_code >= 500:
        raise ServiceError(f"{address} answers {answer.status_code}: {body.get('message')}", "See `shopfloor status`.")
    if not answer.ok:
        raise UsageError(
            f"{address} refuses the row: {body.get('message')}", "Its address with /docs says what it takes."
        )
    found: dict[str, Any] = body
    return found
