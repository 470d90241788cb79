"""Why a step failed is data that its process leaves, or what its exit code means."""

import pytest
from shopfloor import errors
from shopfloor.engines import failures
from shopfloor.errors import DataError, Failure


def test_what_ends_a_process_is_read_as_it_was_left(tmp_path, monkeypatch):
    file = tmp_path / "failure.json"
    monkeypatch.setenv(errors.FAILURE_FILE, str(file))

    errors.leave(DataError("No rows.\nNone.", "Look at data/."))

    failure = failures.read(file, 1)
    assert failure == Failure("DataError", "No rows.\nNone.", "Look at data/.")
    assert str(failure) == "No rows.\nNone. Look at data/."


def test_what_a_process_took_back_or_left_before_it_was_killed_is_not_why_it_failed(tmp_path, monkeypatch):
    file = tmp_path / "failure.json"
    monkeypatch.setenv(errors.FAILURE_FILE, str(file))

    errors.leave(DataError("No rows."))
    killed = failures.read(file, -9)
    errors.leave(None)

    assert (killed.kind, failures.read(file, 1).kind) == ("SIGKILL", "exit")


def test_an_error_without_a_text_is_told_by_its_class():
    assert Failure.of(AssertionError()) == Failure("AssertionError", "AssertionError")


@pytest.mark.parametrize("text", [None, "", "{", "[1]", '{"kind": "a"}', '{"other": 1}'])
def test_what_cannot_be_read_is_no_failure_that_was_left(tmp_path, text):
    file = tmp_path / "failure.json"
    if text is not None:
        file.write_text(text)

    assert failures.read(file, 1).kind == "exit"


@pytest.mark.parametrize(
    ("code", "printed", "kind", "message"),
    [
        (-9, "ValueError: no\n", "SIGKILL", "SIGKILL ended the step's process."),
        (143, "", "SIGTERM", "SIGTERM ended the step's process."),
        (1, "ERROR: No distribution\n", "exit", "The step's process ended with exit code 1: ERROR: No distribution"),
        (1, '{\n  "outputs": {}\n}\n', "exit", "The step's process ended with exit code 1."),
        (255, "", "exit", "The step's process ended with exit code 255."),
    ],
)
def test_an_end_without_an_exception_is_told_by_its_exit_code(tmp_path, code, printed, kind, message):
    log = tmp_path / "log"
    log.write_text(printed)

    failure = failures.of_exit(code, log)

    assert (failure.kind, failure.message) == (kind, message)


def test_kfps_executor_is_run_by_ours_wherever_a_command_calls_it():
    script = "set -e\n_KFP_RUNTIME=true python3 -m kfp.dsl.executor_main     --component_module_path x"

    assert failures.telling(["sh", "-c", script])[2].count("-m shopfloor.engines.executor_main     --component") == 1
    assert failures.telling(["python3", "-m", "kfp.dsl.executor_main"])[2] == "shopfloor.engines.executor_main"
    assert failures.telling(["sh", "-c", "echo kfp.dsl.executor_main"])[2] == "echo kfp.dsl.executor_main"
