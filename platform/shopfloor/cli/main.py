"""The `shopfloor` command: global options, the commands of its modules, and the one place where errors end."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from shopfloor.errors import ShopfloorError
from shopfloor.settings import Settings, load_settings

app = typer.Typer(
    name="shopfloor",
    help="From a data version to a served model: one pipeline over DVC, Feast, Ray, MLflow and Ray Serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class State:
    """What the global options say."""

    def __init__(self, profile: str | None) -> None:
        """Remember the profile; nothing is read before a command needs it."""
        self.profile = profile

    def settings(self) -> Settings:
        """Return the settings of the profile."""
        return load_settings(self.profile)


def settings_from(context: typer.Context) -> Settings:
    """Return the settings that the command runs with."""
    state: State = context.obj
    return state.settings()


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(version("shopfloor"))
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    profile: Annotated[
        str | None, typer.Option(help="Which backends to talk to: a file in platform/profiles/.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    context.obj = State(profile)


def run() -> None:
    """Run the command line; every error ends here as one message and an exit code."""
    # A dead server is noticed in seconds, not after minutes of retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    debug = "--debug" in sys.argv
    # The option may stand anywhere, as people expect of a switch that they add to a command that failed.
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments, prog_name="shopfloor")
    except ShopfloorError as error:
        _say(f"error: {error}", debug)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _say("Stopped.", debug)
        sys.exit(130)
    except BrokenPipeError:
        # The reader has gone; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        _say(f"bug: {type(error).__name__}: {error} (the traceback comes with --debug)", debug)
        sys.exit(1)


def _say(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    sys.stderr.write(message + "\n")


def _register() -> None:
    from shopfloor.cli import data, models, runs, stack, submit

    for module in (stack, data, submit, runs, models):
        module.register(app)


_register()
