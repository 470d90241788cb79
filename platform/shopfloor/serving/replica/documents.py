"""What the endpoint says about itself: its OpenAPI document, and a page that shows it without reaching the internet."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from shopfloor.serving.contract import VERSION_HEADER, Config
from shopfloor.serving.model.loading import ServedModel
from shopfloor.serving.online.features import EXPLAIN, PartialRowSchema
from shopfloor.serving.protocols import open_inference
from shopfloor.serving.replica import feedback

_PROBLEM = {
    "type": "object",
    "required": ["message"],
    "properties": {
        "message": {"type": "string"},
        "fields": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"field": {"type": "string"}, "problem": {"type": "string"}},
            },
        },
    },
}
_INFERENCE_PROBLEM = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}, "fields": _PROBLEM["properties"]["fields"]},  # type: ignore[index]
}
_REFUSALS = {
    "400": "The body is not JSON, or not one of the formats.",
    "401": "The endpoint asks for a bearer token, and none that counts was sent.",
    "404": "The version asked for is not loaded.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large, or holds too many rows.",
    "421": "The endpoint does not answer under the name in `Host`.",
    "415": "The content type is none that is understood.",
    "422": "A field is missing, unknown or wrong; `fields` names it.",
    "503": "No champion is loaded, or the replica has too many requests; come back after `Retry-After` seconds.",
    "504": "The model did not answer in time.",
}
_PLAIN = {bool: "boolean", int: "number", float: "number", str: "string", type(None): "null"}
_AT_THE_DOOR = {"400", "401", "408", "421", "503", "504"}
"""Said of every request, in the endpoint's own form, before the Open Inference Protocol has its word."""


def openapi(
    model: ServedModel, prefix: str, example: Mapping[str, Any], partial_schema: PartialRowSchema | None, config: Config
) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of the endpoint while `model` answers.

    Args:
        model: The version whose inputs are described.
        prefix: Path of the use case, without a slash at its end.
        example: A row that is shown.
        partial_schema: What a row may be instead, where features are looked up.
        config: Says what the use case is.
    """
    row = model.rows.json_schema() if model.rows else {"type": "object"}
    if partial_schema is not None:
        row = {"anyOf": [row, partial_schema.json_schema()]}
    answer = {
        "type": "object",
        "required": ["prediction", "model", "version"],
        "properties": {
            "prediction": _prediction(model) | {"description": _meaning(config)},
            "model": {"type": "string"},
            "version": {"type": "string"},
            "inputs": {"type": "object", "description": "With `explain_inputs`: each input's value and source."},
        },
    }
    # Some libraries answer MLflow's requests with a frame, in a form of its own.
    scored = {"type": "array", "items": _prediction(model)} if model.classes else _like(model.as_mlflow)
    batch = {
        "type": "object",
        "description": "One of MLflow's formats; see the documentation of MLflow's scoring server.",
        "properties": {name: {} for name in ("dataframe_split", "dataframe_records", "inputs", "instances", "params")},
    }
    versions = {
        "name": VERSION_HEADER,
        "in": "header",
        "required": False,
        "schema": {"type": "string"},
        "description": "`champion` (the default), `challenger` or the number of a loaded version.",
    }
    predict = _operation("Answer one row", _json(row, example), _json(answer), versions)
    invocations = _operation(
        "Answer rows as MLflow's scoring server does",
        _json(batch, {"dataframe_records": [example]}) | {"text/csv": {"schema": {"type": "string"}}},
        _json({"type": "object", "properties": {"predictions": scored}}),
        versions,
    )
    status = {"summary": "Versions loaded and errors", "responses": {"200": {"description": "The endpoint's state."}}}
    live = {"summary": "Tell whether the replica lives", "responses": {"200": {"description": "It does."}}}
    metrics = {
        "summary": "What this replica counted",
        "responses": {"200": {"description": "Prometheus' text format."}},
    }
    ready = {
        "summary": "Tell whether a champion answers",
        "responses": {
            "200": {"description": "It does."},
            "503": {"description": "None is loaded.", "content": _json({"$ref": "#/components/schemas/Problem"})},
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": model.name, "version": model.version, "description": config.description},
        "paths": {
            f"{prefix}/predict": {"post": predict},
            f"{prefix}/invocations": {"post": invocations},
            f"{prefix}/feedback": {"post": feedback.operation({"$ref": "#/components/schemas/Problem"})},
            f"{prefix}/status": {"get": status},
            f"{prefix}/healthz": {"get": live},
            f"{prefix}/readyz": {"get": ready},
            f"{prefix}/metrics": {"get": metrics},
            **_open_inference(model, prefix, versions, example),
        },
        "components": {"schemas": {"Problem": _PROBLEM, "InferenceProblem": _INFERENCE_PROBLEM}},
    }


def _open_inference(
    model: ServedModel, prefix: str, versions: dict[str, Any], example: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the paths of the Open Inference Protocol; its own document holds the details."""
    root = f"{prefix}/v2"
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype", "data"],
        "properties": {
            "name": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer"}},
            "datatype": {"type": "string"},
            "data": {"type": "array", "items": {}},
        },
    }
    request = {
        "type": "object",
        "required": ["inputs"],
        "properties": {"id": {"type": "string"}, "inputs": {"type": "array", "items": tensor, "minItems": 1}},
    }
    answer = {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": tensor},
        },
    }
    problem = _json({"$ref": "#/components/schemas/InferenceProblem"})
    either = _json({"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("InferenceProblem", "Problem")]})
    refusals = {
        status: {"description": text, "content": either if status in _AT_THE_DOOR else problem}
        for status, text in _REFUSALS.items()
    }
    infer = {
        "summary": "Answer tensors by the Open Inference Protocol",
        "parameters": [versions],
        "requestBody": {"required": True, "content": _json(request, open_inference.example(model, example))},
        "responses": {"200": {"description": "The answer.", "content": _json(answer)}} | refusals,
    }

    def read(summary: str, *parameters: dict[str, Any]) -> dict[str, Any]:
        answers = {"200": {"description": "The answer.", "content": _json({"type": "object"})}}
        none = {"503": {"description": "No champion is loaded.", "content": problem}}
        absent = {"404": {"description": _REFUSALS["404"], "content": problem}} if parameters else {}
        return {"get": {"summary": summary, "parameters": list(parameters), "responses": answers | none | absent}}

    return {
        root: read("Describe the server"),
        f"{root}/health/live": read("Tell whether the replica lives"),
        f"{root}/health/ready": read("Tell whether a champion answers"),
        f"{root}/models/{model.name}": read("Describe the model's tensors", versions),
        f"{root}/models/{model.name}/ready": read("Tell whether the model answers", versions),
        f"{root}/models/{model.name}/infer": {"post": infer},
    }


def page(model: ServedModel, prefix: str, base_url: str, example: Mapping[str, Any], config: Config) -> str:
    """Return the documentation page: a command that works as it stands, a form to try it, and the table of inputs.

    It is self-contained on purpose: the usual viewers of OpenAPI load themselves from a CDN, which a factory's network
    does not reach.

    Args:
        model: The version whose inputs are described.
        prefix: Path of the use case, without a slash at its end.
        base_url: Scheme, host and port under which the reader reached the page.
        example: A row that is shown.
        config: Says what the use case is, and which entities may be sent.
    """
    text = json.dumps(example, indent=1)
    columns = model.rows.columns if model.rows else ()
    inputs = [(one.name, one.type, "yes" if one.required else "no") for one in columns]
    entities = config.online.entities if config.online else {}
    looked_up = (
        f"<p>Instead of inputs, a row may name entities, whose features are looked up; what it sends counts first. "
        f"With <code>{EXPLAIN}</code> true, the answer says each input's value and where it came from.</p>"
        f"{_table(('entity', 'type'), list(entities.items()))}"
    )
    return _PAGE.format(
        name=html.escape(model.name),
        version=html.escape(model.version),
        prefix=html.escape(prefix),
        description=html.escape(config.description),
        meaning=html.escape(_meaning(config)),
        command=_curl(base_url, f"{prefix}/predict", example),
        example=html.escape(text),
        height=min(30, text.count("\n") + 2),
        inputs=_table(("name", "type", "required"), inputs),
        entities=looked_up if entities else "",
        feedback=_curl(base_url, f"{prefix}/feedback", feedback.EXAMPLE),
        infer=_curl(base_url, f"{prefix}/v2/models/{model.name}/infer", open_inference.example(model, example)),
        note=html.escape(f"This version answers /invocations only: {model.reason}." if model.reason else ""),
        header=VERSION_HEADER,
    )


def _prediction(model: ServedModel) -> dict[str, Any]:
    """Return the schema of a prediction: of classes all are named, any other is like those that are known."""
    if not model.classes:
        return _like(*model.known_answers)
    one = {"enum": list(model.classes)}
    if not isinstance(model.example_answer, dict):
        return one
    names = [str(name) for name in model.classes]
    probabilities = {
        "type": "object",
        "required": names,
        "properties": {name: {"type": "number", "minimum": 0, "maximum": 1} for name in names},
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "required": ["class", "probabilities"],
        "properties": {"class": one, "probabilities": probabilities},
        "additionalProperties": False,
    }


def _like(*answers: Any) -> dict[str, Any]:
    """Return the schema of answers of the same kinds; of none it says nothing."""
    kinds = []
    if objects := [one for one in answers if isinstance(one, dict)]:
        names = dict.fromkeys(name for one in objects for name in one)
        kinds.append(
            {
                "type": "object",
                "required": [name for name in names if all(name in one for one in objects)],
                "properties": {name: _like(*(one[name] for one in objects if name in one)) for name in names},
            }
        )
    if lists := [one for one in answers if isinstance(one, list)]:
        kinds.append({"type": "array", "items": _like(*(item for one in lists for item in one))})
    plain = {_PLAIN[type(one)] for one in answers if type(one) in _PLAIN}
    if not kinds and plain == {"null"}:  # something may come in its place
        return {}
    kinds += [{"type": name} for name in sorted(plain)]
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {}


def _meaning(config: Config) -> str:
    """Return what a prediction is."""
    of = f" for {config.target}" if config.target else ""
    return f"What the model answers{of}, as it does offline: a number, a text, or several of them."


def _table(names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{name}" for name in names)
    body = "".join(
        f"<tr><td><code>{html.escape(first)}</code>{''.join(f'<td>{html.escape(one)}' for one in rest)}"
        for first, *rest in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _curl(base_url: str, path: str, content: Mapping[str, Any]) -> str:
    """Return a command that sends this, as HTML."""
    body = shlex.quote(json.dumps(content))
    return html.escape(f"curl -X POST {base_url}{path} -H 'Content-Type: application/json' -d {body}")


def _operation(summary: str, body: dict[str, Any], answer: dict[str, Any], parameter: dict[str, Any]) -> dict[str, Any]:
    problem = _json({"$ref": "#/components/schemas/Problem"})
    refusals = {status: {"description": text, "content": problem} for status, text in _REFUSALS.items()}
    return {
        "summary": summary,
        "parameters": [parameter],
        "requestBody": {"required": True, "content": body},
        "responses": {"200": {"description": "The answer.", "content": answer}} | refusals,
    }


def _json(schema: dict[str, Any], example: Any = None) -> dict[str, Any]:
    return {"application/json": {"schema": schema} | ({} if example is None else {"example": example})}


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name}</title>
<link rel="service-desc" type="application/vnd.oai.openapi+json" href="{prefix}/openapi.json">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
pre, textarea {{ background: #f5f5f5; padding: .7rem; width: 100%; box-sizing: border-box; font: 13px/1.4 monospace;
  border: 1px solid #ddd; white-space: pre-wrap; overflow-wrap: anywhere }}
td, th {{ text-align: left; padding: .1rem 1.5rem .1rem 0 }}
</style></head><body>
<h1>{name}</h1>
<p>{description}</p>
<p>Version {version} is the champion. Machine-readable: <a href="{prefix}/openapi.json">openapi.json</a>,
<a href="{prefix}/status">status</a>. {note}</p>
<h2>POST {prefix}/predict</h2>
<p>One row as a JSON object. <code>prediction</code>: {meaning} Another loaded version answers with the header
<code>{header}: challenger</code>.</p>
<pre>{command}</pre>
<form id="try"><textarea id="body" rows="{height}" spellcheck="false">{example}</textarea>
<p><button>Send</button></p></form><pre id="answer" hidden></pre>
<h2>Inputs</h2>
{inputs}{entities}
<h2>POST {prefix}/feedback</h2>
<p>What became true of a prediction, by the <code>X-Request-Id</code> of its answer. 202 means that it is kept.</p>
<pre>{feedback}</pre>
<h2>POST {prefix}/invocations</h2>
<p>Many rows, in the formats of MLflow's scoring server: <code>dataframe_split</code>, <code>dataframe_records</code>,
<code>inputs</code>, <code>instances</code>, or CSV.</p>
<h2>POST {prefix}/v2/models/{name}/infer</h2>
<p>Many rows as tensors, by the Open Inference Protocol; its <a href="{prefix}/v2/models/{name}">metadata</a>.</p>
<pre>{infer}</pre>
<script>
document.getElementById("try").addEventListener("submit", async (event) => {{
  event.preventDefault();
  const answer = document.getElementById("answer");
  const headers = {{"Content-Type": "application/json"}};
  const body = document.getElementById("body").value;
  const response = await fetch("{prefix}/predict", {{method: "POST", headers, body}});
  answer.hidden = false;
  answer.textContent = response.status + " " + await response.text();
}});
</script></body></html>
"""
