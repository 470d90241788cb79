"""The documentation says what the program does: commands parse, links lead somewhere, tables and schema are complete.

`.venv/bin/python -m tests.contract.test_docs` writes the JSON Schema of use_case.yaml anew.
"""

import ast
import contextlib
import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml
from pydantic import TypeAdapter
from shopfloor.cli.main import _global_options_first, app
from shopfloor.settings import ClusterSettings, Settings
from shopfloor.use_case import ImportedCase, UseCase

from tests.contract import references

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
SCHEMA = PROJECT / "docs" / "reference" / "use_case.schema.json"
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def lines(page):
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        yield from block.replace("\\\n", " ").splitlines()


def commands():
    for page in PAGES:
        for line in lines(page):
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                del words[0]
            if words and words[0] in {"shopfloor", ".venv/bin/shopfloor"}:
                yield pytest.param(words[1:], id=f"{page.name}: {' '.join(words)}"[:100])


def parse(words):
    """Let the command line's own parser read the words; nothing runs."""
    command, words = typer.main.get_command(app), _global_options_first(words)
    context = command.make_context("shopfloor", list(words))
    while hasattr(command, "resolve_command"):
        rest = [*getattr(context, "_protected_args", []), *context.args]
        if not rest and command.invoke_without_command:
            return
        assert rest, f"{context.command_path} needs a command"
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, list(rest), parent=context)


@pytest.mark.parametrize("words", commands())
def test_a_command_of_the_docs_parses(words):
    with contextlib.suppress(typer.Exit):  # --help and --version
        parse(words)


@pytest.mark.parametrize(
    "line", ["sbmit", "runs", "runs show", "submit a.py --engin ray", "submit a.py --engine x", "down now"]
)
def test_a_command_that_does_not_exist_is_noticed(line):
    with pytest.raises((AssertionError, typer.exceptions.TyperException)):
        parse(line.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_link_of_a_page_leads_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_page_is_in_the_index():
    index = (PROJECT / "docs" / "README.md").read_text(encoding="utf-8")
    linked = set(LINK.findall(index))
    for page in PAGES[1:]:
        name = page.relative_to(PROJECT / "docs").as_posix()
        assert name == "README.md" or name in linked, name


def test_every_target_of_make_in_the_docs_exists():
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        used = set(re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8")))
        used |= {match[1] for line in lines(page) if (match := re.match(r"make ([a-z-]+)", line))}
        assert used <= targets, page


def whole_schema():
    """Return the JSON Schema of a use case: of one that trains its models, or of one whose models are imported."""
    return TypeAdapter(UseCase | ImportedCase).json_schema(by_alias=True)


def leaves(schema, part, path=""):
    """Yield the path of every key; one below a key that the user names follows that key's parent."""
    if "$ref" in part:
        part = schema["$defs"][part["$ref"].rpartition("/")[2]]
    inner = [*part.get("anyOf", []), *part.get("oneOf", [])]
    if isinstance(part.get("additionalProperties"), dict):
        inner.append(part["additionalProperties"])
    below = [leaf for one in inner for leaf in leaves(schema, one, path)]
    for name, one in part.get("properties", {}).items():
        below += leaves(schema, one, f"{path}.{name}" if path else name)
    return below or [path]


def documented_keys():
    """Return each key of the reference's table with its row; `.test` after `split.train` stands for `split.test`."""
    rows = {}
    for line in (PROJECT / "docs" / "reference" / "use_case.md").read_text(encoding="utf-8").splitlines():
        if not line.startswith("| `"):
            continue
        first = ""
        for name in re.findall(r"`([^`]+)`", line.split("|")[1]):
            first = first or name
            key = first.rpartition(".")[0] + name if name.startswith(".") else name
            rows[re.sub(r"\.<\w+>$", "", key)] = line
    return rows


def test_every_key_of_a_use_case_is_in_its_reference():
    schema, rows = whole_schema(), documented_keys()
    for key in leaves(schema, schema):
        parent, _, name = key.rpartition(".")
        assert key in rows or re.search(rf"\b{name}\b", rows.get(parent, "")), key


def test_every_key_of_the_reference_is_one_of_a_use_case():
    schema = whole_schema()
    keys = leaves(schema, schema)
    for key in documented_keys():
        assert any(one == key or one.startswith(f"{key}.") for one in keys), key


def parts_at(schema, part, path):
    """Yield the schemas of what may stand at a path, whose `<name>` is any key that the user chooses."""
    if "$ref" in part:
        part = schema["$defs"][part["$ref"].rpartition("/")[2]]
    if not path:
        yield part
        return
    for one in [*part.get("anyOf", []), *part.get("oneOf", [])]:
        yield from parts_at(schema, one, path)
    name, *rest = path
    inner = part.get("additionalProperties") if name.startswith("<") else part.get("properties", {}).get(name)
    if isinstance(inner, dict):
        yield from parts_at(schema, inner, rest)


def examples_of_keys():
    """Yield each row's first key and its example."""
    for line in (PROJECT / "docs" / "reference" / "use_case.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `") and line.count(" | ") >= 4:
            key, _, _, example = line.strip("| ").split(" | ")[:4]
            yield re.findall(r"`([^`]+)`", key)[0], example


@pytest.mark.parametrize(("key", "example"), examples_of_keys())
def test_the_example_of_a_key_is_what_the_key_takes(key, example):
    schema = whole_schema()
    value = json.loads(json.dumps(yaml.safe_load(example.strip("`")), default=str))
    parts = list(parts_at(schema, schema, key.split(".")))
    assert parts
    validators = [jsonschema.Draft202012Validator(part | {"$defs": schema["$defs"]}) for part in parts]
    assert any(validator.is_valid(value) for validator in validators), value


def test_every_setting_is_in_its_reference():
    text = (PROJECT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    internal = {"project_root", *references.INTERNAL}
    for name in {*Settings.model_fields, *ClusterSettings.model_fields} - internal:
        assert f"`{name}`" in text or f".{name}`" in text, name


def documented_defaults():
    """Yield the settings of the reference's tables, each with what its second column says."""
    text = (PROJECT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("| `"):
            names, default = line.split("|")[1:3]
            defaults = [default.strip()] if "`, `" not in names else [one.strip() for one in default.split(",")]
            yield from zip(re.findall(r"`([^`]+)`", names), defaults, strict=True)


@pytest.mark.parametrize(("name", "default"), documented_defaults())
def test_the_default_of_a_setting_is_that_of_its_reference(name, default):
    field = {**ClusterSettings.model_fields, **Settings.model_fields}[name]
    if field.is_required() or field.default in (None, ""):
        assert re.fullmatch("[a-z ]+", default), "words where there is no value"
    else:
        value = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
        value = value.lower() if isinstance(field.default, bool) else value
        assert default.strip("`") == value


def test_every_status_that_a_request_is_refused_with_is_a_clients_or_503_and_documented():
    documented = {
        int(code)
        for operations in references._endpoint_document()["paths"].values()
        for operation in operations.values()
        for code in operation["responses"]
    }
    refused = set()
    for file in (PROJECT / "platform" / "shopfloor" / "serving").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("BadRequest") and node.args:
                refused |= {one.value for one in ast.walk(node.args[0]) if type(getattr(one, "value", None)) is int}
    assert {one for one in refused if not (400 <= one < 500 or one == 503)} == set()
    assert refused - documented == set()


def schema_text():
    return json.dumps(whole_schema(), indent=2, ensure_ascii=False) + "\n"


def test_the_schema_of_a_use_case_is_the_models():
    again = "Write it anew: .venv/bin/python -m tests.contract.test_docs"
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), again


@pytest.mark.parametrize("file", sorted(PROJECT.glob("pipelines/*/use_case.yaml")), ids=lambda file: file.parent.name)
def test_a_use_case_meets_the_schema(file):
    jsonschema.validate(
        yaml.safe_load(file.read_text(encoding="utf-8")), json.loads(SCHEMA.read_text(encoding="utf-8"))
    )


def test_the_example_of_a_scikit_learn_model_does_what_a_search_asks_of_it():
    import types

    import numpy as np
    import pandas as pd
    from shopfloor.estimators import EstimatorCode
    from shopfloor.settings import Settings
    from shopfloor.training.trial import try_contract
    from shopfloor.use_case import load_use_case

    text = (PROJECT / "docs/how-to/add-a-use-case.md").read_text()
    module = types.ModuleType("model")
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], vars(module))  # noqa: S102

    class Example(UseCase):
        def code(self, name):
            return EstimatorCode(self, module)

    content = load_use_case(Settings(project_root=PROJECT), "flight_delays").model_dump(by_alias=True)
    content["model"] = {"flavor": "sklearn"}
    content["search"]["space"] = {"max_depth": {"type": "int", "low": 2, "high": 3}}
    rows = pd.DataFrame({"a": np.arange(200.0), "late": np.arange(200) % 3 == 0})
    try_contract(Example.model_validate(content), rows, rows, "late")


def test_every_variable_that_the_package_reads_is_in_its_reference():
    names = {name for name in references.variables_read() if not name.startswith("SHOPFLOOR_")}
    assert {"AWS_ACCESS_KEY_ID", "SERVE_TOKEN"} <= names
    assert names <= references.VARIABLES.keys()


@pytest.mark.parametrize("name", sorted(references.PAGES))
def test_a_generated_page_is_what_the_program_says(name):
    again = "Write it anew: .venv/bin/python -m tests.contract.references"
    assert (references.FOLDER / name).read_text(encoding="utf-8") == references.PAGES[name](), again


if __name__ == "__main__":
    SCHEMA.write_text(schema_text(), encoding="utf-8")
