"""The house stays small: how much of the library each step stands on, how many rooms there are, on how many floors.

A component's closure is what its content key hashes: the modules of the library that it imports, directly or through
others, also within functions; packages that hold no code do not count. A room is a folder with modules. Floors are
counted by what is imported, not by what would be allowed: a room that stands directly in the library, with those within
it, is one floor above the highest that one of its modules imports, also within functions. The modules of the ground
(errors, settings and so on), which stand in no room, are below the first floor.
"""

import ast
import graphlib
from pathlib import Path

import pytest
from shopfloor.pipeline.keys import component_key
from shopfloor.settings import Settings

PROJECT = Path(__file__).resolve().parents[2]
LIBRARY = PROJECT / "platform" / "shopfloor"
COMPONENTS = sorted(file.stem for file in (PROJECT / "components").glob("[a-z]*.py") if file.stem != "base")
MOST_MODULES = 15
MOST_ROOMS = 24
MOST_FLOORS = 7


def closure(component):
    """Return the modules of the library that a component's key hashes."""
    source = (PROJECT / "components" / f"{component}.py").read_text()
    command = ["sh", "-c", f"\nfrom kfp import dsl\n{source}"]
    parts = component_key(Settings(project_root=PROJECT), command, {}, {}, {}).parts
    return sorted(part.removeprefix("code ") for part in parts if part.startswith("code shopfloor"))


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_step_stands_on_few_modules(component):
    modules = closure(component)
    print(f"{component}: {len(modules)}", *modules, sep="\n  ")

    assert len(modules) <= MOST_MODULES, modules


def sources(file):
    """Return the rooms of the library from which a module imports, wherever it does."""
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("shopfloor.")}
    return {name for name in rooms if (LIBRARY / name).is_dir()}


def test_there_are_few_rooms_on_few_floors():
    rooms = {file.parent for file in LIBRARY.rglob("*.py")}
    below = {
        room.name: {other for file in room.rglob("*.py") for other in sources(file)} - {room.name}
        for room in rooms
        if room.parent == LIBRARY
    }
    floors = {}
    for room in graphlib.TopologicalSorter(below).static_order():
        floors[room] = 1 + max((floors[other] for other in below[room]), default=0)
    for number in sorted(set(floors.values()), reverse=True):
        print(f"floor {number}:", *sorted(room for room, floor in floors.items() if floor == number))
    print(f"{len(rooms)} rooms")

    assert len(rooms) <= MOST_ROOMS
    assert max(floors.values()) <= MOST_FLOORS
