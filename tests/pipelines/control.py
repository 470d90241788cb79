"""Control flow: conditions, loops, what is collected from them, nested pipelines, exit handlers."""

from kfp import dsl

from tests.pipelines.case import Case
from tests.pipelines.parts import IMAGE, double, read_all, say, total, write


@dsl.pipeline(name="branches")
def branches(count: int = 2) -> str:
    doubled = double(number=count)
    with dsl.If(doubled.output > 10):
        many = say(text="many")
    with dsl.Elif(doubled.output == 4):
        four = say(text="four")
    with dsl.Else():
        few = say(text="few")
    chosen = say(text=dsl.OneOf(many.output, four.output, few.output))
    with dsl.If(chosen.output == "four"):
        say(text="met")
    return chosen.output


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def named(items: list) -> str:
    """Give the texts of a list, as JSON."""
    import json

    return json.dumps(items)


@dsl.pipeline(name="loops")
def loops(items: list = [{"a": "x"}, {"a": "y"}]):  # noqa: B006
    with dsl.ParallelFor(items, parallelism=1) as item:
        said = say(text=item.a)
    named(items=dsl.Collected(said.output))
    with dsl.ParallelFor([[1, 2], [3]]) as outer, dsl.ParallelFor(outer) as inner:
        double(number=inner)


@dsl.pipeline(name="collected-over-skipped")
def collected_over_skipped():
    with dsl.ParallelFor([1, 2, 3]) as item, dsl.If(item >= 2):
        number = double(number=item)
        text = say(text="s")
        part = write(number=item)
    total(numbers=dsl.Collected(number.output))
    named(items=dsl.Collected(text.output))
    read_all(parts=dsl.Collected(part.outputs["data"]))


@dsl.pipeline(name="collected-over-nothing")
def collected_over_nothing(items: list = []):  # noqa: B006
    with dsl.ParallelFor(items) as item:
        number = double(number=item)
        part = write(number=item)
    total(numbers=dsl.Collected(number.output))
    read_all(parts=dsl.Collected(part.outputs["data"]))


@dsl.pipeline(name="inner")
def inner(number: int) -> int:
    return double(number=double(number=number).output).output


@dsl.pipeline(name="nested")
def nested() -> int:
    return inner(number=inner(number=1).output).output


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def farewell(status: dsl.PipelineTaskFinalStatus, text: str) -> str:
    """Give how the tasks before ended."""
    return f"{text} {status.state}"


@dsl.pipeline(name="exit-handler")
def exit_handler(text: str = "bye"):
    with dsl.ExitHandler(farewell(text=text)):
        say(text="before")


CASES = {
    "branches": Case(
        branches,
        {
            "condition-branches-1/condition-2/say.Output": None,
            "condition-branches-1/condition-3/say-2.Output": "four",
            "condition-branches-1/condition-4/say-3.Output": None,
            "say-4.Output": "four",
            "condition-5/say-5.Output": "met",
        },
        on_local=False,
    ),
    "loops": Case(
        loops,
        {
            "for-loop-1-iteration-0/say.Output": "x",
            "for-loop-1-iteration-1/say.Output": "y",
            "named.Output": '["x", "y"]',
        },
        on_local=False,
    ),
    "collected_over_skipped": Case(
        collected_over_skipped,
        {"total.Output": 10, "named.Output": '["s", "s"]', "read-all.Output": "2 3"},
        on_local=False,
    ),
    "collected_over_nothing": Case(collected_over_nothing, {"total.Output": 0, "read-all.Output": ""}, on_local=False),
    "nested": Case(nested, {"inner/double-2.Output": 4, "inner-2/double-2.Output": 16}),
    "exit_handler": Case(exit_handler, {"farewell.Output": "bye SUCCEEDED"}),
}
