"""Container components: images of which nothing is known but the command."""

from typing import Optional

from kfp import dsl

from tests.pipelines.case import Case
from tests.pipelines.parts import double, say

DOLLARS = "$(TOKEN) $$ $HOME $$(x)"


@dsl.container_component
def flags(flag: dsl.OutputPath(bool), number: dsl.OutputPath(int), text: dsl.OutputPath(str)):
    """Write values as a shell does."""
    return dsl.ContainerSpec(
        image="busybox:1",
        command=["sh", "-ec", 'mkdir -p "$(dirname "$0")"; echo True > "$0"; echo "5 " > "$1"; echo line > "$2"'],
        args=[flag, number, text],
    )


@dsl.pipeline(name="outputs-as-a-shell-writes-them")
def outputs_as_a_shell_writes_them():
    found = flags()
    with dsl.If(found.outputs["flag"] == True):  # noqa: E712
        say(text="flagged")
    double(number=found.outputs["number"])
    say(text=found.outputs["text"])


@dsl.container_component
def silent(text: dsl.OutputPath(str)):
    """Write nothing."""
    return dsl.ContainerSpec(image="busybox:1", command=["sh", "-c", "true"], args=[text])


@dsl.pipeline(name="container-output-not-written")
def container_output_not_written():
    say(text=silent().outputs["text"])


@dsl.container_component
def echo(text: str, made: dsl.OutputPath(str), more: Optional[str] = None):  # noqa: UP045
    """Write the arguments."""
    return dsl.ContainerSpec(
        image="busybox:1",
        command=["sh", "-ec", 'out="$1"; shift; mkdir -p "$(dirname "$out")"; printf "%s|" "$@" > "$out"', "sh"],
        args=[
            made,
            text,
            DOLLARS,
            dsl.ConcatPlaceholder(["<", text, ">"]),
            dsl.IfPresentPlaceholder(input_name="more", then=["--more", more], else_=["--less"]),
        ],
    )


@dsl.pipeline(name="arguments-of-a-container")
def arguments_of_a_container(text: str = DOLLARS):
    echo(text=text)
    echo(text=say(text=DOLLARS).output, more="m")


TIMES = (dsl.PIPELINE_JOB_CREATE_TIME_UTC_PLACEHOLDER, dsl.PIPELINE_JOB_SCHEDULE_TIME_UTC_PLACEHOLDER)
COMPARE = 'mkdir -p "$(dirname "$0")"; [ "$1" = "$2" ] && [ "${1#20}" != "$1" ] && printf same > "$0"'


@dsl.container_component
def times(made: dsl.OutputPath(str)):
    """Write `same` where a run without a schedule was to be made when it was made."""
    return dsl.ContainerSpec(image="busybox:1", command=["sh", "-ec", COMPARE], args=[made, *TIMES])


@dsl.container_component
def times_under_python(made: dsl.OutputPath(str)):
    """Do the same in an image with Python."""
    call = f"import subprocess, sys; subprocess.run(['sh', '-ec', {COMPARE!r}, *sys.argv[1:]], check=True)"
    return dsl.ContainerSpec(image="python:3.11", command=["python3", "-c", call], args=[made, *TIMES])


@dsl.pipeline(name="times-of-a-run")
def times_of_a_run():
    times()
    times_under_python()
    with dsl.If(say(text=TIMES[0]).output == say(text=TIMES[1]).output):
        say(text="same")


CASES = {
    "times_of_a_run": Case(
        times_of_a_run,
        dict.fromkeys(("times.made", "times-under-python.made", "condition-1/say-3.Output"), "same"),
        on_local=False,
    ),
    "outputs_as_a_shell_writes_them": Case(
        outputs_as_a_shell_writes_them,
        {
            "flags.flag": True,
            "flags.number": 5,
            "flags.text": "line\n",
            "condition-1/say.Output": "flagged",
            "double.Output": 10,
            "say-2.Output": "line\n",
        },
        on_local=False,
    ),
    "container_output_not_written": Case(
        container_output_not_written, {"silent.text": None, "say.Output": None}, fails=True, on_local=False
    ),
    "arguments_of_a_container": Case(
        arguments_of_a_container,
        {
            "echo.made": f"{DOLLARS}|{DOLLARS}|<{DOLLARS}>|--less|",
            "echo-2.made": f"{DOLLARS}|{DOLLARS}|<{DOLLARS}>|--more|m|",
        },
        on_local=False,
    ),
}
