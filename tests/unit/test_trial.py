"""What becomes of the reports of a trial: which leave a model, and where a trial goes on from one."""

import shutil
from types import SimpleNamespace

from shopfloor.training import trial

from tests.support.cases import use_case

SEARCH = {
    "metric": "loss", "mode": "min", "trials": 1, "max_rounds": 100, "grace_rounds": 20, "checkpoint_every": 30,
    "space": {"depth": {"type": "int", "low": 1, "high": 2}},
}  # fmt: skip
JOB = SimpleNamespace(use_case=use_case(search=SEARCH))


class Kept:
    """A checkpoint, as Ray hands one back."""

    def __init__(self, directory):
        self.directory = directory

    def as_directory(self):
        from contextlib import nullcontext

        return nullcontext(self.directory)


def run(tmp_path, train, checkpoint=None):
    """Run a trial, and return what it sent: numbers, and where a checkpoint came with them, its copy."""
    sent = []

    def send(numbers, directory):
        copy = tmp_path / f"checkpoint-{numbers['rounds']}"
        sent.append((numbers, shutil.copytree(directory, copy) if directory else None))

    code = SimpleNamespace(train=train, save=lambda model, directory: (directory / "model").write_text(model))
    trial._train(JOB, code, {}, None, checkpoint, send)
    return sent


def losing(*losses):
    """Return a `train` that reports these losses, a round each, of models that are named by their round."""

    def train(params, data, context):
        for loss in losses:
            context.report({"loss": loss}, checkpoint=f"model of round {context.round + 1}")

    return train


def test_the_last_report_of_a_trial_leaves_its_model_however_few_there_are(tmp_path):
    [(numbers, checkpoint)] = run(tmp_path, losing(0.5))
    assert numbers == {"loss": 0.5, "rounds": 1, "best": {"loss": 0.5, "best_round": 1}, trial.FINISHED: True}
    assert (trial.best_model(checkpoint) / "model").read_text() == "model of round 1"


def test_a_trial_that_is_cut_off_goes_on_with_the_round_after_its_checkpoint_and_the_best_before_it(tmp_path):
    def cut(params, data, context):
        losing(*[0.1] * 30, *[0.2] * 5)(params, data, context)
        raise ConnectionError

    saved = []
    try:
        run(tmp_path, lambda *given: cut(*given))
    except trial.OwnError:
        saved = sorted(tmp_path.glob("checkpoint-*"))
    assert [one.name for one in saved] == ["checkpoint-20", "checkpoint-30"]

    def go_on(params, data, context):
        assert (context.round, context.rounds, context.threads) == (30, 100, 1)
        assert (context.resume_from / "model").read_text() == "model of round 30"
        context.report({"loss": 0.3}, checkpoint="after", round=99)

    [(numbers, checkpoint)] = run(tmp_path / "again", go_on, Kept(saved[-1]))
    assert (numbers["rounds"], numbers["best"]["best_round"]) == (99, 20)
    assert (trial.best_model(checkpoint) / "model").read_text() == "model of round 20"


def test_a_report_without_a_model_tells_its_numbers_alone(tmp_path):
    def train(params, data, context):
        context.report({"loss": 0.5}, checkpoint="first", round=20)
        context.report({"loss": 0.1}, round=60)

    (_, first), (numbers, second) = run(tmp_path, train)
    assert first is not None
    assert (numbers["best"]["best_round"], second) == (20, None)
