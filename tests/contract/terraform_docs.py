"""Writes each module's README.md of terraform/ from its files; a test compares them.

.venv/bin/python -m tests.contract.terraform_docs

Only what `terraform fmt` leaves is read, where a block begins and ends in the first column and its attributes in the
third; a parser of the language takes seconds for what these few lines find.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MODULES = Path(__file__).resolve().parents[2] / "terraform" / "modules"
NOTE = "<!-- Generated: `.venv/bin/python -m tests.contract.terraform_docs`. -->\n"
BLOCK = re.compile(r'^(variable|output) "(\w+)" \{\n(.*?)^\}', re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Entry:
    """A variable or an output."""

    kind: str
    name: str
    text: str

    def attribute(self, name: str) -> str | None:
        """Return the value as it stands there, on one line, or None where it is not said."""
        match = re.search(rf"^  {name} += (.*?)(?=^\n|^  [a-z]|\Z)", self.text, re.DOTALL | re.MULTILINE)
        if not match:
            return None
        value = re.sub(r"(?<=\n)( +\w+) += ", r"\1 = ", match[1].strip())
        value = re.sub(r"(?<![({\[,])\n +(?=[\w\"])", ", ", value)
        return re.sub(r"\n *", "", value)

    @property
    def description(self) -> str:
        """The sentence or two about it."""
        return (self.attribute("description") or "").strip('"')


def entries(folder: Path) -> Iterator[Entry]:
    """Yield what the files of a module or an environment declare."""
    for file in sorted(folder.glob("*.tf")):
        for kind, name, text in BLOCK.findall(file.read_text(encoding="utf-8")):
            yield Entry(kind, name, text)


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def readme(module: Path) -> str:
    """Return the page of a module: what it is, an example, what it takes and what it gives."""
    intro = re.match(r"((?:# .*\n)+)", (module / "main.tf").read_text(encoding="utf-8"))
    assert intro, f"{module}/main.tf begins with a comment that says what the module is."
    inputs = [entry for entry in entries(module) if entry.kind == "variable"]
    inputs.sort(key=lambda entry: entry.attribute("default") is not None)
    outputs = [entry for entry in entries(module) if entry.kind == "output"]
    example = (module / "examples" / "basic" / "main.tf").read_text(encoding="utf-8")
    parts = [
        NOTE,
        f"# {module.name}\n",
        re.sub("^# ", "", intro[1], flags=re.MULTILINE),
        "## Example\n",
        f"```hcl\n{example}```\n",
        "## Inputs\n",
        "| name | what it is | type | default |\n|---|---|---|---|",
        *(_row(entry) for entry in inputs),
        "\n## Outputs\n",
        "| name | what it is |\n|---|---|",
        *(f"| {_code(entry.name)} | {entry.description} |" for entry in outputs),
    ]
    return "\n".join(parts) + "\n"


def _row(entry: Entry) -> str:
    default = entry.attribute("default")
    shown = "required" if default is None else _code(default)
    return f"| {_code(entry.name)} | {entry.description} | {_code(entry.attribute('type') or '')} | {shown} |"


if __name__ == "__main__":
    for folder in sorted(MODULES.iterdir()):
        (folder / "README.md").write_text(readme(folder), encoding="utf-8")
