"""Writes the generated pages of docs/reference from the program itself; a test compares them.

.venv/bin/python -m tests.contract.references
"""

import ast
import importlib
import inspect
import json
import textwrap
import typing
from pathlib import Path
from types import SimpleNamespace

import typer
from pydantic import RootModel
from shopfloor import errors
from shopfloor.cli.main import INTERRUPTED, app
from shopfloor.cli.submit import GATE_MISSED

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reference"
PACKAGE = Path(errors.__file__).parent
NOTE = "<!-- Generated: `.venv/bin/python -m tests.contract.references`. -->\n"


def commands(command, path):
    """Yield each command with its words, those of a group after the group."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{path} {name}")


def _cell(text):
    return " ".join(str(text or "").split()).replace("|", "\\|")


def _default(parameter):
    value = parameter.default
    if value in (None, False, "", [], ()) or callable(value):
        return ""
    return f"`{getattr(value, 'value', value)}`"


def cli():
    """Return the page of every command and option."""
    root = typer.main.get_command(app)
    parts = [
        NOTE,
        "# The command line\n",
        "`shopfloor [--profile NAME] [--debug] COMMAND ...`. Progress goes to stderr, results to stdout. `--json`\n"
        "prints one JSON document and nothing else; a table is drawn for a terminal, and tab-separated for a pipe.\n",
        "## Options of every command\n",
        *_options(root),
    ]
    for path, command in commands(root, "shopfloor"):
        if path == "shopfloor":
            continue
        words = [f"`{path}`" if getattr(command, "commands", None) else f"`{path}{_arguments(command)}`"]
        parts.append(f"## {words[0]}\n" if len(path.split()) == 2 else f"### {words[0]}\n")
        parts.append(inspect.cleandoc(command.help or "") + "\n")
        parts += _options(command)
    return "\n".join(parts)


def _arguments(command):
    names = [
        p.name.upper().replace("_", "-") if p.required else f"[{p.name.upper()}]"
        for p in command.params
        if p.param_type_name == "argument"
    ]
    return "".join(f" {name}" for name in names)


def _options(command):
    rows = []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            rows.append((f"`{parameter.name.upper()}`", "", _cell(getattr(parameter, "help", ""))))
        elif parameter.name != "help":
            names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
            variable = getattr(parameter, "envvar", None)
            text = _cell(parameter.help) + (f" Or ${variable}." if variable else "")
            rows.append((names, _default(parameter), text))
    if not rows:
        return []
    return ["| option | default | meaning |\n|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in rows), ""]


def exit_codes():
    """Return the page of the exit codes, from the kinds of errors."""
    kinds = {}
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.ShopfloorError) and kind.__module__ == errors.__name__:
            kinds.setdefault(kind.exit_code, []).append((name, inspect.getdoc(kind).splitlines()[0]))
    rows = [
        ("0", "done", "It did what was asked; for a training run: the model was promoted, or nothing had to change.")
    ]
    for code in sorted(kinds):
        for name, text in kinds[code]:
            rows.append((str(code), f"`{name}`", text))
    rows.append((str(GATE_MISSED), "gate missed", "The model of a run was not good enough; the champion stays."))
    rows.append((str(INTERRUPTED), "stopped", "Ctrl-C; what was finished stays finished."))
    lines = [f"| {code} | {kind} | {_cell(text)} |" for code, kind, text in rows]
    head = "Every error is one line on stderr: what is wrong, and what to do. `--debug` adds the traceback.\n"
    table = "| code | kind | meaning |\n|---|---|---|"
    tail = "\nA line that begins with `bug:` is a fault of ours, with exit code 1.\n"
    return "\n".join([NOTE, "# Exit codes\n", head, table, *lines, tail])


def documents():
    """Return for each command with `--json` the records that it prints, and whether each is one or a list of them."""
    root = typer.main.get_command(app)
    options = {path: {name for one in command.params for name in one.opts} for path, command in commands(root, "")}
    printing = {path.strip(): command for path, command in commands(root, "") if "--json" in options[path]}
    return {path: printed(inspect.unwrap(command.callback), []) for path, command in printing.items()}


def printed(function, visited):
    """Return what `render.emit_json` is called with in a function of the command line, and in those that it calls."""
    if function in visited:
        return []
    visited.append(function)
    module = inspect.getmodule(function)
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    imported = {
        alias.asname or alias.name: (node.module, alias.name)
        for body in (ast.parse(inspect.getsource(module)), tree)
        for node in ast.walk(body)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    kinds = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        if name in {"render.emit_json", "render.emit_json_list"}:
            kinds.append((_named(ast.unparse(call.args[0]), imported), name.endswith("_list")))
        elif isinstance(call.func, ast.Name):
            inner = vars(module).get(name) or (_named(name, imported) if name in imported else None)
            if inspect.isfunction(inner) and inner.__module__.startswith("shopfloor.cli."):
                kinds += printed(inner, visited)
    return list(dict.fromkeys(kinds))


def _named(name, imported):
    """Return what a name in the source stands for, `Plan` or `planning.Plan`."""
    first, *rest = name.split(".")
    package, attribute = imported[first]
    value = getattr(importlib.import_module(package), attribute, None) or importlib.import_module(
        f"{package}.{attribute}"
    )
    for part in rest:
        value = getattr(value, part)
    return value


def _fields(record):
    """Yield name, type and docstring of each field, in order; those of its bases first."""
    for base in reversed(record.__mro__):
        if not hasattr(base, "model_fields") or base.__module__.startswith("pydantic"):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for node, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and node.target.id in record.model_fields:
                meaning = (
                    after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
                )
                kind = record.model_fields[node.target.id].annotation
                values = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
                yield node.target.id, " | ".join(map(repr, values)) or ast.unparse(node.annotation), meaning


def _inner(record, visited):
    """Yield the records that a record's fields hold, each once."""
    for field in record.model_fields.values():
        for one in _records_in(field.annotation):
            if one not in visited:
                visited.append(one)
                _inner(one, visited)
    return visited


def _records_in(annotation):
    if inspect.isclass(annotation) and hasattr(annotation, "model_fields"):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _records_in(argument)


def _table(record):
    if issubclass(record, RootModel):
        kind = record.model_fields["root"].annotation
        names = ", ".join(getattr(one, "__name__", str(one)) for one in kind.__args__)
        return [f"An object: `{kind.__name__}[{names}]`.\n"]
    rows = [f"| `{name}` | `{_cell(kind)}` | {_cell(meaning)} |" for name, kind, meaning in _fields(record)]
    return ["| field | type | meaning |\n|---|---|---|", *rows, ""]


def json_output():
    """Return the page of what `--json` prints."""
    parts = [NOTE, "# What --json prints\n", "One JSON document on stdout; everything else goes to stderr.\n"]
    inner, places = [], {}
    for command, kinds in documents().items():
        assert kinds, f"{command} --json prints nothing"
        parts.append(f"## `{command}`\n")
        if len(kinds) > 1:
            parts.append("One of these.\n")
        for record, many in kinds:
            title = inspect.getdoc(record).splitlines()[0]
            start = f"{'A list of ' if many else ''}`{record.__name__}`"
            if record in places:
                parts.append(f"{start}: as of [`{places[record]}`](#{places[record].replace(' ', '-')}).\n")
                continue
            places[record] = command
            parts += [f"{start}: {title}\n", *_table(record)]
            _inner(record, inner)
    parts.append("## Records within these\n")
    for record in sorted(inner, key=lambda one: one.__name__):
        parts += [f"### {record.__name__}\n", inspect.getdoc(record).splitlines()[0] + "\n", *_table(record)]
    return "\n".join(parts)


def metrics():
    """Return the page of what a replica counts, what it reads from others included."""
    from shopfloor.serving.replica.answering import Answering
    from shopfloor.serving.replica.app import Predictor
    from shopfloor.serving.replica.metrics import ReplicaMetrics

    replica = ReplicaMetrics()
    Answering(replica)
    holding, shadow = SimpleNamespace(canary_percent=0, errors=()), SimpleNamespace(waiting=0, dropped=0)
    Predictor._watch(SimpleNamespace(_metrics=replica, _holding=holding, _shadow=shadow, _log=None))
    labels = {
        getattr(collector, "_name", ""): collector._labelnames
        for collector in replica._registry._collector_to_names
        if collector is not replica
    }
    rows = []
    for family in replica._registry.collect():
        names = labels.get(family.name) or family.samples[0].labels
        name = f"{family.name}_total" if family.type == "counter" else family.name
        label_text = ", ".join(f"`{label}`" for label in names)
        rows.append(f"| `{name}` | {family.type} | {label_text} | {_cell(family.documentation)} |")
    head = """`GET /<use_case>/metrics` of a replica, in Prometheus' text format. A histogram has the series `_bucket`,
`_sum` and `_count`. The metrics of all replicas of a Ray node are among those that the node exports, with `ray_` before
the name: there Prometheus reads them, without asking each replica.
"""
    return "\n".join([NOTE, "# Metrics\n", head, "| metric | kind | labels | meaning |\n|---|---|---|---|", *rows, ""])


def _endpoint_document():
    """Return the OpenAPI document of an endpoint whose model has one input."""
    from shopfloor.serving.contract import Config
    from shopfloor.serving.model.row import Column, RowSchema
    from shopfloor.serving.replica.documents import openapi

    rows = RowSchema((Column("amount", "double", True),))
    # What a prediction looks like depends on the model; this page says what holds for all.
    model = SimpleNamespace(
        name="<use_case>", version="1", rows=rows, example={"amount": 1.5}, classes=(), known_answers=(), as_mlflow=[]
    )
    config = Config(use_case="<use_case>", tracking_uri="")
    return openapi(model, "/<use_case>", {"amount": 1.5}, None, config)


def http_api():
    """Return the page of an endpoint's routes, from the document that it gives itself."""
    head = """The routes of an endpoint on Ray Serve. `GET /<use_case>/openapi.json` gives the same with the types of
the model that answers, and `GET /<use_case>/docs` a page to try it. Bodies are JSON unless said otherwise.

## Headers

| header | of | meaning |
|---|---|---|
| `Authorization: Bearer TOKEN` | request | where the endpoint requires tokens |
| `X-Shopfloor-Version` | request | the version that is to answer: `champion`, `challenger` or a loaded number |
| `X-Shopfloor-Version` | answer | the version that did |
| `X-Request-Id` | both | names the request in the log, for feedback; made where the request has none |
| `X-Request-Key` | request | requests with the same key stay with the same version during a canary |
| `Inference-Header-Content-Length` | both | bytes of JSON before binary tensors, of the Open Inference Protocol |
| `Retry-After` | answer | with 503: when to come back, in seconds |
"""
    parts = [NOTE, "# HTTP API\n", head, "## Routes\n"]
    document = _endpoint_document()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(f"### `{method.upper()} {path}`\n\n{_cell(operation.get('summary'))}.\n")
            parts += _bodies("Body", operation.get("requestBody", {}).get("content", {}))
            parts += _bodies("Answer", next(iter(operation["responses"].values())).get("content", {}))
            parts.append("| status | meaning |\n|---|---|")
            parts += [f"| {code} | {_cell(one.get('description'))} |" for code, one in operation["responses"].items()]
            parts.append("")
    parts.append("## What is wrong\n\nThe body of every refusal.\n")
    for name, schema in document["components"]["schemas"].items():
        parts += [f"### {name}\n", *_schema(schema)]
    return "\n".join(parts)


def _bodies(title, content):
    """Return what a body may be, by its content type: its JSON Schema and an example."""
    parts = []
    for kind, one in content.items():
        schema = one.get("schema", {})
        if set(schema) == {"$ref"} or schema in ({"type": "object"}, {"type": "string"}):
            parts.append(f"{title}: `{kind}`.\n")
        else:
            parts += [f"{title}: `{kind}`, by this JSON Schema.\n", *_schema(schema)]
        if "example" in one:
            parts += ["For example:\n", "```json", json.dumps(one["example"], ensure_ascii=False), "```", ""]
    return parts


def _schema(schema):
    return ["```json", json.dumps(schema, indent=1, ensure_ascii=False), "```", ""]


VARIABLES = {
    "REDIS_PASSWORD": "password of the online store, where that is Redis",
    "MLFLOW_TRACKING_USERNAME": "user at MLflow, with `MLFLOW_TRACKING_PASSWORD`",
    "MLFLOW_TRACKING_PASSWORD": "that user's password",
    "MLFLOW_TRACKING_TOKEN": "bearer token for MLflow, where there is no user",
    "AWS_ACCESS_KEY_ID": "account at the object store; boto, DVC and Arrow read it too",
    "AWS_SECRET_ACCESS_KEY": "that account's secret",
    "AWS_REGION": "region of the object store",
    "AWS_DEFAULT_REGION": "the same, where `AWS_REGION` is not set",
    "RAY_ADDRESS": "cluster of a search that runs as a Ray job; Ray sets it there",
    "RAY_AUTH_MODE": "`token` where the Ray cluster asks for one and the setting `ray_token_file` is not set",
    "RAY_AUTH_TOKEN": "that token",
    "RAY_AUTH_TOKEN_PATH": "or the file that holds it",
    "SERVE_TOKEN": "token that `verify` sends to an endpoint that asks for one",
    "ARGO_TOKEN": "bearer token of the Argo server, before `cluster.token_file`",
    "SHOPFLOOR_RESULTS_KEY": "secret of the team: stored results count only where the same one signed them",
    "SHOPFLOOR_BACKUP_KEY": "key that seals the secrets in a backup, where no `--key-file` is named",
    "KFP_TOKEN": "bearer token of Kubeflow Pipelines, before `cluster.token_file`",
    "OMP_NUM_THREADS": "threads of the numeric libraries in a step; without it they take what the machine has",
    "USER": "who submitted a run, for its record",
    "PATH": "where the programs are that a step, a stage or a service starts",
    "PYTHONPATH": "what a Ray job finds beside the project",
}
"""What the variables mean that a person sets and the package reads, other than the settings."""
INTERNAL = {"cluster", "run_id", "step_run_id", "attempt", "published_dir"}
"""Settings that are a table, or that an engine sets for its steps."""


def _constants(trees):
    """Return what the names in capitals stand for that some module gives a text."""
    return {
        target.id: node.value.value
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.isupper()
    }


def variables_read():
    """Return the environment variables that the package reads by name."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in sorted(PACKAGE.rglob("*.py"))]
    constants, names = _constants(trees), set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and _is_environment(node.value):
            key = node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_environment(node.func.value):
            key = node.args[0] if node.func.attr == "get" else None
        else:
            continue
        if isinstance(key, ast.Constant):
            names.add(key.value)
        elif isinstance(key, ast.Name) and key.id in constants:
            names.add(constants[key.id])
    return names


def _is_environment(node):
    return ast.unparse(node) in {"os.environ", "environ"}


def environment():
    """Return the page of the environment variables."""
    from shopfloor.environment import ENV_PREFIX
    from shopfloor.settings import Settings

    parts = [
        NOTE,
        "# Environment variables\n",
        "What the components read themselves (`MLFLOW_*`, `AWS_*`, `RAY_*`) works as their own documentation says.\n",
        "## Settings\n",
        "Each is the [setting](settings.md) of that name. `shopfloor settings` shows which of them counts.\n",
        ", ".join(f"`{ENV_PREFIX}{name.upper()}`" for name in Settings.model_fields if name not in INTERNAL) + "\n",
        "## Options\n",
        "| variable | option of | meaning |\n|---|---|---|",
    ]
    for path, command in commands(typer.main.get_command(app), "shopfloor"):
        for one in command.params:
            if variable := getattr(one, "envvar", None):
                parts.append(f"| `{variable}` | `{path} {one.opts[0]}` | {_cell(one.help)} |")
    parts += ["", "## Secrets, and what else is read\n", "| variable | meaning |\n|---|---|"]
    parts += [f"| `{name}` | {_cell(text)} |" for name, text in sorted(VARIABLES.items())]
    parts.append("")
    return "\n".join(parts)


PAGES = {
    "environment.md": environment,
    "cli.md": cli,
    "exit-codes.md": exit_codes,
    "json-output.md": json_output,
    "metrics.md": metrics,
    "http-api.md": http_api,
}


def main():
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
