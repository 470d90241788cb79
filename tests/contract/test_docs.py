"""The documentation says what the program does: commands parse, links lead somewhere, tables are complete."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from shopfloor.cli.main import app
from shopfloor.settings import ClusterSettings, Settings
from shopfloor.use_case import UseCase

PROJECT = Path(__file__).parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def commands():
    for page in PAGES:
        for block in BLOCK.findall(page.read_text()):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] == "shopfloor":
                    yield pytest.param(words[1:], id=f"{page.name}: {' '.join(words)}"[:100])


@pytest.mark.parametrize("words", commands())
def test_a_command_of_the_docs_parses(words):
    command = typer.main.get_command(app)
    if "--help" in words:
        words = words[: words.index("--help")]
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"there is no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    flags = {name for parameter in command.params if getattr(parameter, "is_flag", False) for name in parameter.opts}
    given, rest = [], iter(words)
    for word in rest:
        if word.startswith("-"):
            assert word.partition("=")[0] in options, f"{command.name} has no option {word}"
            if word not in flags and "=" not in word:
                next(rest)
        else:
            given.append(word)
    assert len(given) <= len(arguments) or any(argument.nargs == -1 for argument in arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_link_of_a_page_leads_somewhere(page):
    for target in LINK.findall(page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_page_is_in_the_index():
    index = (PROJECT / "docs" / "README.md").read_text()
    for page in PAGES[1:]:
        name = page.relative_to(PROJECT / "docs").as_posix()
        assert name == "README.md" or name in index, name


def test_every_target_of_make_in_the_docs_exists():
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`make ([a-z-]+)`", page.read_text())) <= targets, page


def leaves(model, prefix=""):
    for name, field in model.model_fields.items():
        inner = [field.annotation, *getattr(field.annotation, "__args__", ())]
        sections = [part for part in inner if isinstance(part, type) and hasattr(part, "model_fields")]
        if sections and not str(field.annotation).startswith("dict"):
            for section in sections:
                yield from leaves(section, f"{prefix}{field.alias or name}.")
        else:
            yield f"{prefix}{field.alias or name}"


def test_every_key_of_a_use_case_is_in_its_reference():
    text = (PROJECT / "docs" / "reference" / "use_case.md").read_text()
    for key in leaves(UseCase):
        assert key.rpartition(".")[2] in text, key


def test_every_setting_is_in_its_reference():
    text = (PROJECT / "docs" / "reference" / "settings.md").read_text()
    internal = {"project_root", "cluster", "run_id", "step_run_id", "published_dir"}
    for name in {*Settings.model_fields, *ClusterSettings.model_fields} - internal:
        assert f"`{name}`" in text or f".{name}`" in text, name
