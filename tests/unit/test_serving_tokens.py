"""Tokens of the endpoints: what opens, what does not, and a file that changes while it is used."""

import datetime as dt
import json
import os

import pytest
from shopfloor.errors import ConflictError, UsageError
from shopfloor.serving.replica import tokens
from shopfloor.serving.replica.tokens import Tokens, create, read, revoke
from typer.testing import CliRunner


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "LOOK_EVERY_S", 0.0)
    return tmp_path / "tokens"


def bearer(token):
    return f"Bearer {token}".encode()


def test_a_token_opens_its_use_cases_and_no_other(file):
    one, everything = create(file, "one", ["flight_delays"], None), create(file, "all", [], None)
    known = Tokens(file)

    assert known.allow(bearer(one), "flight_delays")
    assert not known.allow(bearer(one), "fraud")
    assert known.allow(bearer(everything), "fraud")


@pytest.mark.parametrize("header", [None, b"", b"Bearer", b"Bearer wrong", b"Basic {token}", b"{token}"])
def test_anything_but_a_right_bearer_token_opens_nothing(file, header):
    token = create(file, "one", [], None)
    given = header.replace(b"{token}", token.encode()) if header else header
    assert not Tokens(file).allow(given, "flight_delays")


def test_a_token_ends_after_its_last_day(file):
    today = dt.datetime.now(dt.UTC).date()
    lasting = create(file, "lasting", [], today)
    ended = create(file, "ended", [], today - dt.timedelta(days=1))
    assert Tokens(file).allow(bearer(lasting), "x")
    assert not Tokens(file).allow(bearer(ended), "x")


def test_the_file_holds_no_token_and_only_its_owner_reads_it(file):
    token = create(file, "one", ["a", "b"], None)
    assert token not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    assert [(entry.name, sorted(entry.use_cases)) for entry in read(file)] == [("one", ["a", "b"])]


def test_a_change_of_the_file_counts_at_once(file):
    token = create(file, "one", [], None)
    known = Tokens(file)
    assert known.allow(bearer(token), "x")
    revoke(file, "one")
    assert not known.allow(bearer(token), "x")
    again = create(file, "one", [], None)
    assert known.allow(bearer(again), "x")
    assert not known.allow(bearer(token), "x")


@pytest.mark.parametrize("text", ["one", "one abc *", f"one {'0' * 64} * tomorrow", f"one {'z' * 64} *"])
def test_a_broken_file_opens_nothing_and_names_the_line(file, text):
    token = create(file, "good", [], None)
    known = Tokens(file)
    assert known.allow(bearer(token), "x")
    file.write_text(f"# tokens\n{text}\n")
    with pytest.raises(UsageError, match=r"tokens:2"):
        read(file)
    assert not known.allow(bearer(token), "x")
    file.unlink()
    assert not known.allow(bearer(token), "x")


def test_a_name_is_given_once(file):
    create(file, "one", [], None)
    with pytest.raises(ConflictError, match="has a token 'one' already"):
        create(file, "one", [], None)
    with pytest.raises(UsageError, match="is no name"):
        create(file, "two words", [], None)
    with pytest.raises(UsageError, match="has no token 'two'. It has one."):
        revoke(file, "two")


def test_the_commands_make_list_and_remove(file, monkeypatch):
    from shopfloor.cli.main import app

    monkeypatch.setenv("SHOPFLOOR_SERVE_TOKENS_FILE", str(file))

    def run(*words):
        done = CliRunner().invoke(app, ["tokens", *words])
        assert done.exit_code == 0, done.output
        return done.output

    token = run("create", "alice", "--use-case", "flight_delays", "--days", "3").strip()
    assert Tokens(file).allow(bearer(token), "flight_delays")
    (listed,) = json.loads(run("list", "--json"))["tokens"]
    assert (listed["name"], listed["use_cases"]) == ("alice", "flight_delays")
    run("revoke", "alice")
    assert json.loads(run("list", "--json")) == {"tokens": []}
    assert os.path.exists(file)
