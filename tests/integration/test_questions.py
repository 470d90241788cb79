"""A person at a real terminal is asked before something is replaced or ended; a script is not."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from shopfloor.cli.main import INTERRUPTED, app
from shopfloor.serving.replica import tokens

from tests.contract.references import commands

PROJECT = Path(__file__).resolve().parents[2]
ASKING = {
    "deploy",
    "backup prune",
    "gc empty",
    "undeploy",
    "upgrade",
    "models promote",
    "models rollback",
    "rollout run",
    "rollout end",
    "runs stop",
    "tokens revoke",
}


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "tokens"
    tokens.create(file, "alice", [], None)
    return file


def revoke(file, answer, *options):
    """Let a person revoke a token who answers what is asked; return the exit code and what the terminal showed."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "shopfloor", "tokens", "revoke", "alice", *options]
    environment = {**os.environ, "SHOPFLOOR_SERVE_TOKENS_FILE": str(file)}
    os.write(ours, answer.encode())
    result = subprocess.run(
        command, cwd=PROJECT, env=environment, stdin=theirs, capture_output=True, text=True, timeout=60, check=False
    )
    os.close(theirs)
    os.close(ours)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize(("answer", "code", "left"), [("n\n", INTERRUPTED, ["alice"]), ("y\n", 0, [])])
def test_a_person_at_a_terminal_is_asked_first(file, answer, code, left):
    ended, shown = revoke(file, answer)

    assert ended == code, shown
    assert "Whoever asks with the token of alice will be refused. Go on?" in shown
    assert [one.name for one in tokens.read(file)] == left


def test_yes_asks_nothing(file):
    assert revoke(file, "", "--yes") == (0, "")
    assert tokens.read(file) == []


def test_every_command_that_replaces_or_ends_something_takes_yes():
    taking = {
        path.removeprefix("shopfloor ")
        for path, command in commands(typer.main.get_command(app), "shopfloor")
        if any("--yes" in one.opts for one in command.params)
    }
    assert taking == ASKING
