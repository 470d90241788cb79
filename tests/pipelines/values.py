"""Parameters: of every type, with defaults, with text in which somebody could see more than text."""

from typing import Optional

from kfp import dsl

from tests.pipelines.case import Case
from tests.pipelines.parts import IMAGE, say, show

TRICKY = 'it\'s "quoted", {{inputs.x}} {{=1}} $$ $(HOME) $(SHOPFLOOR_POD) \\n\n\té'


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def pick(
    text: str = "abc",
    whole: int = 1,
    real: float = 2,
    flag: bool = True,
    items: list = [0, 1],  # noqa: B006
    fields: dict = {"a": 1},  # noqa: B006
    note: Optional[str] = None,  # noqa: UP045  KFP reads no other form
) -> str:
    """Give a text that shows the type of each value."""
    return repr([text[items[1]], whole, real, flag, items, fields, note])


@dsl.pipeline(name="defaults-and-constants")
def defaults_and_constants():
    pick()
    pick(text="xyz", whole=-3, real=0.5, flag=False, items=[0, 2], fields={"b": [1, 2.5]}, note="n")


@dsl.pipeline(name="pipeline-parameters")
def pipeline_parameters(
    text: str,
    items: list = [2, 0],  # noqa: B006
    fields: dict = {"k": {"x": 1}},  # noqa: B006
    note: Optional[str] = None,  # noqa: UP045
):
    pick(text=text, items=items, fields=fields, note=note)


@dsl.pipeline(name="text-in-text")
def text_in_text(text: str = TRICKY):
    first = say(text=text)
    say(text=f"<{first.output}|{text}|{TRICKY}>")


@dsl.pipeline(name="placeholder-in-a-dict")
def placeholder_in_a_dict(x: str = "hello", n: int = 3):
    show(value={"a": x, "b": [f"<{n}>", 1, {"c": x}], "d": "{{ plain }}"})


CASES = {
    "defaults_and_constants": Case(
        defaults_and_constants,
        {
            "pick.Output": "['b', 1, 2.0, True, [0, 1], {'a': 1}, None]",
            "pick-2.Output": "['z', -3, 0.5, False, [0, 2], {'b': [1, 2.5]}, 'n']",
        },
    ),
    "pipeline_parameters": Case(
        pipeline_parameters,
        {"pick.Output": "['x', 1, 2.0, True, [2, 0], {'k': {'x': 1}}, None]"},
        arguments={"text": "xyz"},
        on_local=False,
    ),
    "text_in_text": Case(
        text_in_text, {"say.Output": TRICKY, "say-2.Output": f"<{TRICKY}|{TRICKY}|{TRICKY}>"}, on_local=False
    ),
    "placeholder_in_a_dict": Case(
        placeholder_in_a_dict,
        {"show.Output": '{"a": "hello", "b": ["<3>", 1, {"c": "hello"}], "d": "{{ plain }}"}'},
        on_local=False,
    ),
}
