"""What the live view of a run takes from the log of a step that runs."""

from shopfloor.cli.submit import latest_count


def test_a_running_step_shows_its_last_count_whatever_it_printed_since(tmp_path):
    log = tmp_path / "tune.log"
    assert latest_count(log) == ""

    log.write_text(
        "reads 4/5 is no count: ratio\ntrial 1/16 auc 0.7\ntrial 2/16 auc 0.6; best 0.7\nWARNING: 2/3 slow\n"
    )

    assert latest_count(log) == "trial 2/16 auc 0.6; best 0.7"


def test_a_long_log_is_read_from_its_end(tmp_path):
    log = tmp_path / "tune.log"
    log.write_text("x" * 10_000 + "\ntrial 2/16 auc 0.6\n")
    assert latest_count(log) == "trial 2/16 auc 0.6"


def test_a_step_that_waits_says_what_for_until_it_goes_on(tmp_path):
    log = tmp_path / "tune.log"
    log.write_text("trial 1/4 auc 0.6\nwaiting for 1 CPU: 0.5 of 3 are free\nWARNING: slow\n")
    assert latest_count(log) == "waiting for 1 CPU: 0.5 of 3 are free"
    log.write_text(log.read_text() + "going on\n")
    assert latest_count(log) == "going on"
