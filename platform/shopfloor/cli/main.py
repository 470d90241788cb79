"""The `shopfloor` command: global options, the commands of its modules, and the one place where errors end."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

from shopfloor.cli.context import State
from shopfloor.cli.render import printable
from shopfloor.environment import NO_REPORTS, direct_loopback
from shopfloor.errors import ShopfloorError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells give it."""

app = typer.Typer(
    name="shopfloor",
    help="From a data version to a served model: one pipeline over DVC, Feast, Ray, MLflow and Ray Serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(version("shopfloor"))
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    profile: Annotated[
        str | None,
        typer.Option(help="Which backends to talk to: a file in platform/profiles/, or the path of a .toml file."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    context.obj = State(profile)


def run() -> None:
    """Run the command line; every error ends here as one message on stderr and an exit code."""
    # A dead server is noticed in seconds, not after minutes of retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ |= {**NO_REPORTS, **direct_loopback(os.environ)}
    arguments = _global_options_first(sys.argv[1:])
    debug = "--debug" in arguments
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if not debug:  # each attempt at a server that is down; what came of them is said once
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    sys.exit(_execute(arguments, debug))


def _execute(arguments: Sequence[str], debug: bool) -> int:
    """Run one command; return its exit code."""
    try:
        code = app(args=list(arguments), prog_name="shopfloor", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # typer turns Ctrl-C into this
            _say("Stopped.", debug=False)
        return code if isinstance(code, int) else 0
    except ShopfloorError as error:
        _say(f"error: {error}", debug)
        return error.exit_code
    except TyperException as error:
        _say(_usage(error), debug)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        _say("Stopped.", debug)
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # The reader has gone, of which typer makes an exit; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from shopfloor.runs.mlflow import failed

        if failure := failed(error):
            _say(f"error: {failure}", debug)
            return failure.exit_code
        _say(f"bug: {type(error).__name__}: {error} (the traceback comes with --debug)", debug)
        return 1


def _global_options_first(arguments: Sequence[str]) -> list[str]:
    """Move `--debug` and `--profile` before the command: people add them at the end of a command that they repeat."""
    first: list[str] = []
    rest: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--":
            rest += [argument, *remaining]
        elif argument == "--debug" or argument.startswith("--profile="):
            first.append(argument)
        elif argument == "--profile":
            first += [argument, *(value for value in [next(remaining, None)] if value is not None)]
        else:
            rest.append(argument)
    return first + rest


def _usage(error: TyperException) -> str:
    """Return one line for a command that was asked wrongly; a group without a command shows its help."""
    message = error.format_message()
    if message.lstrip().startswith("Usage:"):
        return message
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "shopfloor"
    return f"error: {message.rstrip('.')}. `{path} --help` shows how."


def _say(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    sys.stderr.write(printable(message) + "\n")


def _register() -> None:
    from shopfloor.cli import (
        ask,
        backup,
        compile,
        costs,
        data,
        features,
        gc,
        models,
        new,
        plan,
        rollout,
        runs,
        stack,
        storage,
        submit,
        teams,
        tokens,
        upgrade,
    )

    modules = (
        stack,
        data,
        features,
        new,
        plan,
        submit,
        compile,
        runs,
        costs,
        models,
        rollout,
        ask,
        tokens,
        storage,
        teams,
        backup,
        upgrade,
        gc,
    )
    for module in modules:
        module.register(app)


_register()
