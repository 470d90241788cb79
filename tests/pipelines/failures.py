"""Failures: what runs all the same, with what, and what is tried again."""

from kfp import dsl

from tests.pipelines.case import Case
from tests.pipelines.control import farewell
from tests.pipelines.parts import IMAGE, fail, say


@dsl.pipeline(name="default-after-a-failure")
def default_after_a_failure():
    say(text=fail().output).ignore_upstream_failure()


@dsl.pipeline(name="failing")
def failing() -> str:
    return fail().output


@dsl.pipeline(name="default-after-a-failed-pipeline")
def default_after_a_failed_pipeline():
    say(text=failing().output).ignore_upstream_failure()


@dsl.pipeline(name="exit-handler-after-a-failure")
def exit_handler_after_a_failure():
    with dsl.ExitHandler(farewell(text="bye")):
        say(text=fail().output)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def forget(text: dsl.OutputPath(str)):
    """Write nothing."""


@dsl.pipeline(name="output-not-written")
def output_not_written():
    say(text=forget().outputs["text"])


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def once(place: str) -> str:
    """Fail the first time."""
    import pathlib

    file = pathlib.Path(place)
    if not file.exists():
        file.write_text("")
        raise SystemExit(1)
    return "second"


@dsl.pipeline(name="tried-again")
def tried_again(place: str = "tried"):
    once(place=place).set_retry(2, backoff_duration="1s", backoff_factor=1.5)


CASES = {
    "default_after_a_failure": Case(
        default_after_a_failure, {"fail.Output": None, "say.Output": "default"}, fails=True, on_local=False
    ),
    "default_after_a_failed_pipeline": Case(
        default_after_a_failed_pipeline, {"say.Output": "default"}, fails=True, on_local=False
    ),
    "exit_handler_after_a_failure": Case(
        exit_handler_after_a_failure,
        {"exit-handler-1/say.Output": None, "farewell.Output": "bye FAILED"},
        fails=True,
        on_local=False,
    ),
    "output_not_written": Case(
        output_not_written, {"forget.text": None, "say.Output": None}, fails=True, on_local=False
    ),
    "tried_again": Case(tried_again, {"once.Output": "second"}, runs=False),
}
