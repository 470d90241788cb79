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


CASES = {
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
