"""What a killed search left is read as plain JSON, and believed only where it points at the search's own files."""

import json
import math
import pickle

import pytest
from pyarrow import fs
from shopfloor.training.finished import FinishedTrials
from shopfloor.use_case import SearchSection

SECTION = SearchSection.model_validate(
    {"metric": "loss", "mode": "min", "trials": 3, "max_rounds": 10, "space": {"x": {"type": "choice", "values": [1]}}}
)


@pytest.fixture
def root(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "search" / name).mkdir(parents=True)
    return tmp_path / "search"


def trials(root, count=3):
    return FinishedTrials(fs.LocalFileSystem(), str(root), SECTION, count)


def end(finished, name, loss):
    best = {"loss": loss, "best_round": 5, "auc": math.nan}
    numbers = {"rounds": 10, "time_total_s": 1.0, "loss": loss, "best": best}
    finished.reported(name, numbers)
    return finished.ended(name, {"x": 1}, numbers, f"{finished._root}/{name}")


def test_the_next_attempt_finds_what_finished_and_not_what_failed(root):
    first = trials(root)
    end(first, "a", 0.5)
    end(first, "b", 0.4)
    first.broke("c", {"x": 2}, {}, "ValueError: no")

    second = trials(root)
    assert second.kept == first.kept
    assert [one.trial.trial_id for one in second.usable()] == ["b", "a"]
    assert not second.failed
    assert second.kept["a"].trial.curve == [(10, 0.5)]


def test_a_metric_that_is_no_finite_number_is_left_out(root):
    finished = trials(root)
    assert end(finished, "a", 0.5).metrics == {"loss": 0.5}
    assert end(finished, "b", math.inf).metrics == {}
    assert [one.trial.trial_id for one in finished.usable()] == ["a"]


@pytest.mark.parametrize("place", ["/etc", "{root}/../elsewhere", "{root}/not-there", "{root}"])
def test_a_checkpoint_elsewhere_is_not_believed(root, place):
    (root.parent / "elsewhere").mkdir()
    end(trials(root), "a", 0.5)
    file = root / "finished" / "a.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"checkpoint": place.format(root=root)}))
    assert not trials(root).kept


def test_what_is_no_trial_is_passed_over(root):
    end(trials(root), "a", 0.5)
    (root / "finished" / "b.json").write_bytes(pickle.dumps(fails_if_loaded()))
    (root / "finished" / "c.json").write_text('{"trial": {}}')
    assert list(trials(root).kept) == ["a"]


class fails_if_loaded:
    def __reduce__(self):
        return (exec, ("raise AssertionError('a pickle was loaded')",))
