"""What runs, with what and under which name, on this machine: no task hides another, and no failure a success."""

import threading

import pytest
from kfp import dsl
from shopfloor.engines.walk import TaskFailed, Walk
from shopfloor.pipeline import ir
from shopfloor.pipeline.sdk import mend


@dsl.component
def show(text: str) -> str:
    return text


@dsl.component
def names() -> list[str]:
    return []


@dsl.component
def total(texts: list[str]) -> int:
    return len(texts)


@dsl.component
def tell(status: dsl.PipelineTaskFinalStatus) -> None:
    pass


@dsl.component
def after(text: str = "after") -> None:
    pass


class Executed:
    """Stands for the processes: what ran with what, and what each of it gives."""

    def __init__(self, gives=lambda step: {"Output": step.arguments.get("text")}):
        self.gives = gives
        self.arguments = {}
        self._lock = threading.Lock()

    def stop(self):
        self.stopped = True

    def __call__(self, step):
        with self._lock:
            assert step.name not in self.arguments, f"{step.name} twice"
            self.arguments[step.name] = step.arguments
        outputs = self.gives(step)
        if isinstance(outputs, Exception):
            raise outputs
        return outputs


def walk(pipeline, executed, arguments=None, parallel=2):
    mend(pipeline.pipeline_spec)
    constants = {"{{$.pipeline_job_name}}": "the-run"}
    walked = Walk(ir.checked(pipeline.pipeline_spec), executed, executed.stop, constants, parallel)
    return walked.run(arguments or {}), walked.failures


def test_one_failing_item_of_a_loop_fails_the_run_and_hides_no_other():
    @dsl.pipeline
    def pipeline():
        with dsl.ParallelFor(["a", "b", "c"], parallelism=1) as item:
            shown = show(text=item)
        after().after(shown)

    executed = Executed(
        lambda step: TaskFailed("bad item") if step.arguments["text"] == "b" else {"Output": step.arguments["text"]}
    )

    succeeded, failures = walk(pipeline, executed)

    assert (succeeded, failures) == (False, ["show: bad item"])
    assert executed.arguments == {"show.0": {"text": "a"}, "show.1": {"text": "b"}, "show.2": {"text": "c"}}


def test_a_field_of_an_item_stands_within_a_text():
    @dsl.pipeline
    def pipeline():
        with dsl.ParallelFor([{"region": "eu"}, {"region": "{{$.inputs.parameters['x']}}"}]) as item:
            show(text=f"region {item.region}")
            show(text=item.region)

    executed = Executed()

    assert walk(pipeline, executed) == (True, [])
    # What an item holds is no template.
    assert {name: given["text"] for name, given in executed.arguments.items()} == {
        "show.0": "region eu",
        "show-2.0": "eu",
        "show.1": "region {{$.inputs.parameters['x']}}",
        "show-2.1": "{{$.inputs.parameters['x']}}",
    }


def test_a_pipeline_used_twice_keeps_both_apart():
    @dsl.pipeline
    def inner(text: str) -> str:
        return show(text=text).output

    @dsl.pipeline
    def outer():
        inner(text="bad")
        inner(text="fine")

    executed = Executed(lambda step: TaskFailed("bad") if step.arguments["text"] == "bad" else {"Output": ""})

    assert walk(outer, executed) == (False, ["show: bad"])
    assert executed.arguments == {"inner.show": {"text": "bad"}, "inner-2.show": {"text": "fine"}}


def test_loops_in_loops_have_a_number_each():
    @dsl.pipeline
    def pipeline(regions: list[str] = ["eu", "us"]):  # noqa: B006  KFP compiles it
        with dsl.ParallelFor(regions) as region:
            several = names()
            with dsl.ParallelFor(several.output) as name:
                show(text=f"{region} {name}")

    executed = Executed(lambda step: {"Output": ["x", "y"]})

    assert walk(pipeline, executed)[0]
    texts = {name: given["text"] for name, given in executed.arguments.items() if name.startswith("show")}
    assert texts == {"show.0.0": "eu x", "show.0.1": "eu y", "show.1.0": "us x", "show.1.1": "us y"}


def test_what_a_loop_without_items_collects_is_an_empty_list():
    @dsl.pipeline
    def pipeline():
        with dsl.ParallelFor(names().output) as name:
            shown = show(text=name)
        total(texts=dsl.Collected(shown.output))

    executed = Executed(lambda step: {"Output": []})

    assert walk(pipeline, executed)[0]
    assert executed.arguments == {"names": {}, "total": {"texts": []}}


def test_what_a_branch_skipped_is_left_out_of_what_a_loop_collects():
    @dsl.pipeline
    def pipeline():
        with dsl.ParallelFor(["a", "b", "c"]) as item, dsl.If(item != "b"):
            shown = show(text=item)
        total(texts=dsl.Collected(shown.output))

    executed = Executed()

    assert walk(pipeline, executed)[0]
    assert executed.arguments["total"] == {"texts": ["a", "c"]}


@pytest.mark.parametrize(("fails", "state"), [(False, "SUCCEEDED"), (True, "FAILED")])
def test_an_exit_task_runs_after_a_loop_and_is_told_how_it_ended(fails, state):
    @dsl.pipeline
    def pipeline(items: list[str] = ["a", "b"]):  # noqa: B006  KFP compiles it
        with dsl.ExitHandler(exit_task=tell(), name="all of it"), dsl.ParallelFor(items) as item:
            show(text=f"item: {item}")

    executed = Executed(lambda step: TaskFailed("bad") if fails and step.name == "show.1" else {"Output": ""})

    assert walk(pipeline, executed)[0] is not fails
    assert [executed.arguments[f"show.{number}"]["text"] for number in (0, 1)] == ["item: a", "item: b"]
    status = executed.arguments["tell"]["status"]
    assert (status["state"], status["pipeline_task_name"]) == (state, "exit-handler-1")
    assert status["error"].get("message", "") == ("show: bad" if fails else "")


def test_a_text_of_a_step_decides_as_a_text():
    @dsl.pipeline
    def pipeline(text: str):
        with dsl.If(show(text=text).output == "yes"):
            after()
        with dsl.Else():
            after(text="else")

    for text in ("it's", "x' or 'a' == 'a", "two\nlines", "a && b", "yes"):
        executed = Executed()
        assert walk(pipeline, executed, {"text": text})[0]
        assert set(executed.arguments) == {"show", "after" if text == "yes" else "after-2"}


def test_tasks_that_do_not_wait_for_one_another_run_at_once():
    both = threading.Barrier(2, timeout=10)

    @dsl.pipeline
    def pipeline():
        one, other = show(text="1"), show(text="2")
        after().after(one, other)

    def meets(step):
        if step.task != "after":
            both.wait()
        return {"Output": ""}

    assert walk(pipeline, Executed(meets)) == (True, [])


def test_a_loop_runs_no_more_items_at_once_than_it_says():
    running, most = [], []

    @dsl.pipeline
    def pipeline():
        with dsl.ParallelFor(["a", "b", "c", "d"], parallelism=1) as item:
            show(text=item)

    def count(step):
        running.append(step.name)
        most.append(len(running))
        running.remove(step.name)
        return {"Output": ""}

    assert walk(pipeline, Executed(count), parallel=4)[0]
    assert max(most) == 1


def test_an_error_that_ends_the_run_begins_nothing_more():
    @dsl.pipeline
    def pipeline():
        after().after(show(text="1"))

    executed = Executed(lambda step: OSError("no space"))

    with pytest.raises(OSError, match="no space"):
        walk(pipeline, executed)
    assert set(executed.arguments) == {"show"}
    assert executed.stopped
