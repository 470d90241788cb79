"""`plan` on pipelines compiled here: what would run, what would be reused, what nobody can tell yet, and why."""

import pytest
from shopfloor.engines.local import LocalRun
from shopfloor.errors import UsageError
from shopfloor.flows.plan import _holds, _Unknown, plan
from shopfloor.pipeline.compilation import compile_pipeline
from shopfloor.pipeline.results import ResultStore
from shopfloor.settings import Settings

FILE = """
from kfp import dsl

@dsl.component(base_image="python:3.11", install_kfp_package=False)
def double(number: int) -> int:
    return number * 2

@dsl.component(base_image="python:3.11", install_kfp_package=False)
def describe(number: int, word: str = "is") -> str:
    return f"it {word} {number}"

@dsl.pipeline(name="numbers")
def numbers(start: int = 2, word: str = "is"):
    first = double(number=start)
    second = double(number=first.output)
    with dsl.If(second.output > 5):
        describe(number=second.output, word=word)
    with dsl.Else():
        describe(number=0)
"""


class Quiet:
    def step_started(self, step):
        return {}

    def step_finished(self, *_):
        pass


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/numbers.py").write_text(FILE)
    return Settings(project_root=tmp_path, state_dir=tmp_path / "state", artifact_root=str(tmp_path / "artifacts"))


def planned(settings, *given, **more):
    result = plan(settings, "pipelines/numbers.py", None, list(given), **more)
    return {step.step: (step.action, step.why) for step in result.steps}, result


def run(settings, **arguments):
    compiled = compile_pipeline(settings, "pipelines/numbers.py")
    store = ResultStore(settings, lambda effect: True)
    assert LocalRun(settings, settings.state_dir / "run", store, Quiet()).execute(compiled.pipeline, arguments)


def test_before_the_first_run_everything_runs_or_waits(settings):
    actions, _ = planned(settings)
    assert actions["double"] == ("run", "It has not run yet.")
    assert actions["double-2"] == ("run", "It has not run yet.")
    assert actions["describe"] == ("unknown", "Whether it runs depends on what double-2 gives.")


def test_after_a_run_the_plan_says_what_the_next_run_does(settings):
    run(settings)
    actions, _ = planned(settings)
    reuse = ("reuse", "Nothing that it depends on changed.")
    assert actions == {
        "double": reuse,
        "double-2": reuse,
        "describe": reuse,
        "describe-2": ("skip", "Its condition is not met."),
    }

    actions, result = planned(settings, "start=1")
    assert actions["double"] == ("run", "Changed: parameter number.")
    (change,) = next(step for step in result.steps if step.step == "double").changes
    assert (change.part, change.old, change.new) == ("parameter number", "2", "1")
    assert actions["double-2"] == ("run", "Unless double gives the same number again.")

    actions, _ = planned(settings, "word=was")
    assert actions["double-2"] == reuse
    assert actions["describe"] == ("run", "Changed: parameter word.")


def test_changed_code_is_named_and_a_comment_is_none(settings):
    run(settings)
    file = settings.project_root / "pipelines/numbers.py"
    file.write_text(FILE.replace("    return number * 2", "    # Twice.\n    return number * 2"))
    assert planned(settings)[0]["double"][0] == "reuse"
    file.write_text(FILE.replace("number * 2", "number + number"))
    actions, _ = planned(settings)
    assert actions["double"] == ("run", "Changed: code.")
    assert actions["describe"][0] == "unknown"


def test_what_is_asked_for_runs_in_any_case(settings):
    run(settings)
    actions, _ = planned(settings, from_step="double-2")
    assert actions["double"][0] == "reuse"
    assert actions["double-2"] == ("run", "Asked for.")
    actions, _ = planned(settings, use_cache=False)
    assert actions["double"] == ("run", "Asked for.")
    with pytest.raises(UsageError, match="has no step 'train'. It has double, double-2"):
        planned(settings, from_step="train")


def test_a_damaged_artifact_is_the_reason(settings):
    run(settings)
    for entry in (settings.project_root / "artifacts/results").glob("[0-9a-f][0-9a-f]/*.json"):
        entry.write_text(entry.read_text()[:-20])
    action, why = planned(settings)[0]["double"]
    assert action == "run"
    assert why.startswith("The stored result ")
    assert why.endswith(" is damaged.")


def test_an_older_result_is_reused_as_a_run_would_reuse_it(settings):
    run(settings, start=1)
    run(settings, start=2)

    actions, _ = planned(settings, "start=1")

    assert actions["double"] == ("reuse", "An earlier result fits.")
    assert actions["double-2"] == ("reuse", "An earlier result fits.")
    assert actions["describe"] == ("skip", "Its condition is not met.")


def test_a_step_whose_results_nobody_may_reuse_runs(settings):
    run(settings)
    file = settings.project_root / "pipelines/numbers.py"
    file.write_text(
        FILE.replace("first = double(number=start)", "first = double(number=start).set_caching_options(False)")
    )

    actions, _ = planned(settings)

    assert actions["double"] == ("run", "The pipeline lets nobody reuse its results.")
    assert actions["double-2"] == ("run", "Unless double gives the same number again.")


TEXTS = """
    with dsl.If(word == "R&&D"):
        describe(number=1)
    with dsl.Elif(word == "!(now) || inputs.parameter_values['x']".replace("'", '"')):
        describe(number=2)
    with dsl.Else():
        describe(number=3)
"""


@pytest.mark.parametrize(
    ("word", "branch"),
    [("R&&D", 0), ('!(now) || inputs.parameter_values["x"]', 1), ("R and D", 2), ("it's", 2), ("x' or 'a' == 'a", 2)],
)
def test_the_branch_of_a_text_is_planned_as_it_is_run(settings, word, branch):
    file = settings.project_root / "pipelines/numbers.py"
    file.write_text(FILE[: FILE.index("    first =")] + TEXTS)
    steps = ["describe", "describe-2", "describe-3"]

    actions, _ = planned(settings, f"word={word}")
    run(settings, word=word)
    after, _ = planned(settings, f"word={word}")

    assert [actions[step][0] for step in steps] == ["run" if place == branch else "skip" for place in range(3)]
    assert [after[step][0] for step in steps] == ["reuse" if place == branch else "skip" for place in range(3)]


def test_what_follows_one_of_two_branches_is_planned_from_the_one_that_runs(settings):
    file = settings.project_root / "pipelines/numbers.py"
    file.write_text(
        FILE[: FILE.index("    first =")]
        + "    with dsl.If(start > 1):\n        one = double(number=start)\n"
        + "    with dsl.Else():\n        two = double(number=0)\n"
        + "    describe(number=dsl.OneOf(one.output, two.output))\n"
    )
    run(settings)

    actions, _ = planned(settings)

    assert {step: action for step, (action, _) in actions.items()} == {
        "double": "reuse",
        "double-2": "skip",
        "describe": "reuse",
    }


def test_a_condition_that_asks_what_nobody_knows_yet_or_cannot_be_read_is_left_open():
    assert _holds("inputs.parameter_values['a'] == 'x'", {"a": _Unknown("step")}) is None
    assert _holds("inputs.parameter_values['a'] == 'x' && 1 == 2", {"a": _Unknown("step")}) is False
    assert _holds("something(inputs.parameter_values['a'])", {"a": 1}) is None
