"""Tokens of the endpoints: what opens, what does not, and a file that changes while it is used."""

import datetime as dt
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from shopfloor.errors import ConflictError, UsageError
from shopfloor.serving.replica import tokens
from shopfloor.serving.replica.tokens import Tokens, create, put, read, revoke
from typer.testing import CliRunner


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "LOOK_EVERY_S", 0.0)
    return tmp_path / "tokens"


def bearer(token):
    return f"Bearer {token}".encode()


def test_a_token_opens_its_use_cases_and_no_other(file):
    one, everything = create(file, "one", ["flight_delays"], None), create(file, "all", [], None)
    reader = Tokens(file)

    assert reader.allow(bearer(one), "flight_delays")
    assert not reader.allow(bearer(one), "fraud")
    assert reader.allow(bearer(everything), "fraud")


@pytest.mark.parametrize("header", [None, b"", b"Bearer", b"Bearer wrong", b"Basic {token}", b"{token}"])
def test_anything_but_a_right_bearer_token_opens_nothing(file, header):
    token = create(file, "one", [], None)
    authorization = header.replace(b"{token}", token.encode()) if header else header
    assert not Tokens(file).allow(authorization, "flight_delays")


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


def test_a_token_that_was_made_elsewhere_takes_the_place_of_its_name_and_of_no_other(file):
    other = create(file, "other", [], None)
    put(file, "platform", "the first one")
    put(file, "platform", "the second one")

    reader = Tokens(file)
    opens = [reader.allow(bearer(token), "flight_delays") for token in (other, "the first one", "the second one")]
    assert opens == [True, False, True]


def test_who_may_read_the_file_stays_as_it_was_given(file):
    create(file, "one", [], None)
    file.chmod(0o444)
    create(file, "two", [], None)
    assert file.stat().st_mode & 0o777 == 0o444


def test_a_change_of_the_file_counts_at_once(file):
    token = create(file, "one", [], None)
    reader = Tokens(file)
    assert reader.allow(bearer(token), "x")
    revoke(file, "one")
    assert not reader.allow(bearer(token), "x")
    again = create(file, "one", [], None)
    assert reader.allow(bearer(again), "x")
    assert not reader.allow(bearer(token), "x")


def test_a_change_that_keeps_size_inode_and_time_counts_too(file):
    token = create(file, "one", [], None)
    known = Tokens(file)
    assert known.allow(bearer(token), "x")
    status, text = file.stat(), file.read_text()
    with file.open("r+") as handle:
        handle.write(text.replace(read(file)[0].digest, "0" * 64))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not known.allow(bearer(token), "x")


@pytest.mark.parametrize("text", ["one", "one abc *", f"one {'0' * 64} * tomorrow", f"one {'z' * 64} *"])
def test_a_broken_file_opens_nothing_and_names_the_line(file, text):
    token = create(file, "good", [], None)
    reader = Tokens(file)
    assert reader.allow(bearer(token), "x")
    file.write_text(f"# tokens\n{text}\n")
    with pytest.raises(UsageError, match=r"tokens:2"):
        read(file)
    assert not reader.allow(bearer(token), "x")
    file.unlink()
    assert not reader.allow(bearer(token), "x")


def test_a_name_is_given_once(file):
    create(file, "one", [], None)
    with pytest.raises(ConflictError, match="has a token 'one' already"):
        create(file, "one", [], None)
    with pytest.raises(UsageError, match="is no name"):
        create(file, "two words", [], None)
    with pytest.raises(UsageError, match="has no token 'two'. It has one."):
        revoke(file, "two")


@pytest.mark.parametrize("use_case", ["a b", "", "a\u00a0b", "a,b", "A", "*x", "a\nb *"])
def test_a_use_case_that_cannot_be_one_is_refused_and_every_token_counts_on(file, use_case):
    token = create(file, "good", [], None)
    with pytest.raises(UsageError, match="is no name of a use case"):
        create(file, "one", [use_case], None)
    assert Tokens(file).allow(bearer(token), "x")


@pytest.mark.parametrize("name", ["a\u00a0b", "", "a b", "#a", "a\nb", "-x"])
def test_a_name_that_a_line_cannot_hold_is_refused(file, name):
    with pytest.raises(UsageError, match="is no name"):
        create(file, name, [], None)


def test_a_file_that_is_no_text_opens_nothing_any_more(file):
    token = create(file, "good", [], None)
    reader = Tokens(file)
    assert reader.allow(bearer(token), "x")
    file.write_bytes(file.read_bytes() + b"\xff\xfe")
    assert not reader.allow(bearer(token), "x")
    with pytest.raises(UsageError, match="no text in UTF-8"):
        revoke(file, "good")


def test_comments_stay_and_a_broken_line_can_be_revoked(file):
    token = create(file, "good", [], None)
    file.write_text(f"# the shop's\n{file.read_text()}broken line of * more\n\n# end\n")
    assert not Tokens(file).allow(bearer(token), "x")

    revoke(file, "broken")

    assert Tokens(file).allow(bearer(token), "x")
    create(file, "other", [], None)
    lines = file.read_text().splitlines()
    assert (lines[0], lines[2:4]) == ("# the shop's", ["", "# end"])
    assert [entry.name for entry in read(file)] == ["good", "other"]


def test_tokens_that_are_made_and_removed_at_once_are_all_made_and_removed(file):
    for number in range(10):
        create(file, f"old-{number}", [], None)
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(create, file, f"new-{number}", [], None) for number in range(10)]
        jobs += [pool.submit(revoke, file, f"old-{number}") for number in range(10)]
    for job in jobs:
        job.result()
    assert {entry.name for entry in read(file)} == {f"new-{number}" for number in range(10)}


def test_the_commands_make_list_and_remove(file, monkeypatch):
    from shopfloor.cli.main import app

    monkeypatch.setenv("SHOPFLOOR_SERVE_TOKENS_FILE", str(file))

    def run(*words):
        result = CliRunner().invoke(app, ["tokens", *words])
        assert result.exit_code == 0, result.output
        return result.output

    token = run("create", "alice", "--use-case", "flight_delays", "--days", "3").strip()
    assert Tokens(file).allow(bearer(token), "flight_delays")
    (listed,) = json.loads(run("list", "--json"))["tokens"]
    assert (listed["name"], listed["use_cases"]) == ("alice", ["flight_delays"])
    run("revoke", "alice")
    assert json.loads(run("list", "--json")) == {"tokens": []}
    assert os.path.exists(file)
