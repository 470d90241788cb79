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
    found = plan(settings, "pipelines/numbers.py", None, list(given), **more)
    return {step.step: (step.action, step.why) for step in found.steps}, found


def run(settings, **arguments):
    compiled = compile_pipeline(settings, "pipelines/numbers.py")
    store = ResultStore(settings, lambda effect: True)
    assert LocalRun(settings, settings.state_dir / "run", store, Quiet()).execute(compiled.spec, arguments)


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

    actions, found = planned(settings, "start=1")
    assert actions["double"] == ("run", "Changed: parameter number.")
    (change,) = next(step for step in found.steps if step.step == "double").changes
    assert (change.part, change.old, change.new) == ("parameter number", "2", "1")
    assert actions["double-2"] == ("run", "Unless the new number of double is the same.")

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


@pytest.mark.parametrize(
    ("condition", "values", "expected"),
    [
        ("inputs.parameter_values['a'] == true", {"a": True}, True),
        ("!(inputs.parameter_values['a'] == true)", {"a": True}, False),
        ("inputs.parameter_values['a'] == 'x && y' ", {"a": "z"}, False),
        ("int(inputs.parameter_values['a']) > 3 && inputs.parameter_values['b'] != 'x'", {"a": 4, "b": "y"}, True),
        ("int(inputs.parameter_values['a']) >= 4.5", {"a": 4}, False),
        ("inputs.parameter_values['a'] < -1", {"a": -2}, True),
        ("inputs.parameter_values['a'] == 'x'", {"a": _Unknown("step")}, None),
        ("something(inputs.parameter_values['a'])", {"a": 1}, None),
        ("__import__('os').system('true')", {}, None),
    ],
)
def test_conditions_are_evaluated_or_left_open(condition, values, expected):
    assert _holds(condition, values) is expected
