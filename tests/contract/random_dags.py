"""Random pipelines: tasks in branches and loops that take each other's outputs; each result depends on all inputs."""

from typing import Any

from hypothesis import strategies as st
from kfp import dsl
from kfp.compiler import Compiler

Tree = dict[str, Any]
DEPTH = 2
"""How deep branches and loops stand in each other."""
_PICK = st.integers(0, 9)
"""Which of the outputs that can be seen; counted from the newest."""
_ITEMS = st.lists(st.sampled_from(["", "a", "{x}", 'q"', "$"]), min_size=1, max_size=3)


@dsl.container_component
def mix(first: str, second: str, mixed: dsl.OutputPath(str), bit: dsl.OutputPath(str)):
    """Give a number that depends on both inputs, and whether it is odd."""
    return dsl.ContainerSpec(
        image="busybox",
        command=[
            "sh",
            "-ec",
            'mkdir -p "$(dirname "$2")" "$(dirname "$3")"; sum=$(printf "%s/%s" "$0" "$1" | cksum | cut -d " " -f 1); '
            'printf "%s" "$sum" > "$2"; printf "%s" "$((sum % 2))" > "$3"',
        ],
        args=[first, second, mixed, bit],
    )


@dsl.container_component
def fold(items: list, mixed: dsl.OutputPath(str)):
    """Give a number that depends on a list and its order."""
    return dsl.ContainerSpec(
        image="busybox",
        command=[
            "sh",
            "-ec",
            'mkdir -p "$(dirname "$1")"; printf "%s" "$0" | tr -d " " | cksum | cut -d " " -f 1 | tr -d "\\n" > "$1"',
        ],
        args=[items, mixed],
    )


def _blocks(depth: int) -> st.SearchStrategy[list[Tree]]:
    nodes: list[st.SearchStrategy[Tree]] = [_task()]
    if depth:
        inner = _blocks(depth - 1)
        nodes += [
            st.fixed_dictionaries({"kind": st.just("if"), "on": _PICK, "then": inner, "else": st.none() | inner}),
            st.fixed_dictionaries(
                {"kind": st.just("loop"), "items": _ITEMS, "limit": st.sampled_from([None, 1, 2]), "body": inner}
            ),
        ]
    return st.lists(st.one_of(nodes), min_size=1, max_size=3)


def _task() -> st.SearchStrategy[Tree]:
    return st.fixed_dictionaries({"kind": st.just("task"), "first": _PICK, "second": _PICK, "after": st.none() | _PICK})


PIPELINES = _blocks(DEPTH)


def compiled(block: list[Tree], place: str) -> None:
    """Compile a tree with KFP's compiler into the file `place`."""

    @dsl.pipeline(name="random")
    def pipeline(seed: str = "seed") -> str:
        return _add(block, [seed], []).outputs["mixed"]

    Compiler().compile(pipeline, place)


def _add(block: list[Tree], outputs: list[Any], tasks: list[Any]) -> Any:
    """Add a block's nodes and return its last task, which always runs."""
    outputs, tasks = list(outputs), list(tasks)
    last = None
    for node in block:
        if node["kind"] == "task":
            last = _call(node, outputs)
            if node["after"] is not None and tasks:
                last.after(tasks[node["after"] % len(tasks)])
            tasks.append(last)
            outputs.append(last.outputs["mixed"])
        elif node["kind"] == "loop":
            with dsl.ParallelFor(node["items"], parallelism=node["limit"]) as item:
                inner = _add(node["body"], [*outputs, item], [])
            last = fold(items=dsl.Collected(inner.outputs["mixed"]))
            outputs.append(last.outputs["mixed"])
        else:
            task = mix(first=_pick(outputs, node["on"]), second="bit")
            with dsl.If(task.outputs["bit"] == "1"):
                one = _add(node["then"], outputs, [])
            if node["else"] is None:
                last = task
            else:
                with dsl.Else():
                    other = _add(node["else"], outputs, [])
                output = dsl.OneOf(one.outputs["mixed"], other.outputs["mixed"])
                last = mix(first=output, second=outputs[0])
            outputs.append(last.outputs["mixed"])
    return last


def _call(node: Tree, outputs: list[Any]) -> Any:
    return mix(first=_pick(outputs, node["first"]), second=_pick(outputs, node["second"]))


def _pick(outputs: list[Any], number: int) -> Any:
    return outputs[-1 - number % len(outputs)]
