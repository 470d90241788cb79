"""The local engine decides and repeats as KFP does."""

import importlib.util
import os
import zipfile

import pytest
from shopfloor.engines.failures import of_exit
from shopfloor.engines.local import LocalRun, remove_old
from shopfloor.errors import Failure, UsageError
from shopfloor.pipeline.compilation import compile_pipeline
from shopfloor.pipeline.results import ResultStore
from shopfloor.settings import Settings

HEAD = """
from typing import Dict, List, NamedTuple, Optional
from kfp import dsl

def component(function):
    return dsl.component(base_image="python:3.11", install_kfp_package=False)(function)

@component
def say(text: str) -> str:
    print("GOT", text)
    return text
"""
BRANCHES = """
@component
def answer(text: str) -> NamedTuple("Answers", [("first", str), ("second", str)]):
    return (text, "second")

@dsl.pipeline(name="branches")
def pipeline(name: str = "a", none: Optional[str] = None):
    answers = answer(text=name)
    with dsl.If(answers.outputs["first"] == "a"):
        say(text="same").set_display_name("same")
    with dsl.Else():
        say(text="other")
    with dsl.If(answers.outputs["second"] == "R&&D"):
        say(text="never")
    with dsl.If(none == "x"):
        say(text="never")
    with dsl.Else():
        say(text="none")
"""


class Listener:
    """Keeps what every step gave."""

    def __init__(self):
        self.outputs = []
        self.logs = []

    def step_started(self, step):
        return {}

    def step_finished(self, step, state, seconds, outputs, log, failure):
        self.outputs.append((step, outputs.get("Output"), failure) if failure else (step, outputs.get("Output")))
        self.logs.append(log.read_text() if log else "")


@pytest.fixture
def run(tmp_path):
    """Run a pipeline of this text and return what its steps gave, in their order."""

    def run(text, **arguments):
        file = tmp_path / "pipeline.py"
        file.write_text(HEAD + text)
        settings = Settings(project_root=tmp_path, state_dir=tmp_path / "state", artifact_root=str(tmp_path / "store"))
        listener = Listener()
        engine = LocalRun(settings, tmp_path / "run", ResultStore(settings, lambda effect: True), listener)
        run.succeeded = engine.execute(compile_pipeline(settings, str(file)).pipeline, arguments)
        run.logs = listener.logs
        return listener.outputs

    return run


@pytest.mark.parametrize(
    ("name", "branch"),
    [("a", "same"), ("it's", "other"), ("a\nb", "other"), ("x' or 'a' == 'a", "other"), ("C:\\new", "other")],
)
def test_what_a_step_answers_is_compared_and_never_run(run, name, branch):
    steps = run(BRANCHES, name=name)

    assert run.succeeded
    assert {output for step, output in steps if step != "answer"} == {branch, "none"}


def test_a_condition_that_nobody_can_read_is_refused_before_anything_runs(run):
    with pytest.raises(UsageError, match=r"Nobody can read the condition .* of task 'condition-1'"):
        run(
            "@dsl.pipeline(name='quotes')\ndef pipeline(name: str = 'a'):\n"
            '    with dsl.If(say(text=name).output == "it\'s"):\n        say(text="same")\n'
        )


NONE = """
@component
def think(depth: Optional[int] = None, rate: Optional[float] = None, names: Optional[List[str]] = None,
          extra: Optional[Dict[str, str]] = None, on: Optional[bool] = None, note: Optional[str] = None,
          tries: int = 3, sizes: List[int] = [1, 2]) -> str:
    return repr((depth, rate, names, extra, on, note, tries, sizes))

@dsl.pipeline(name="none")
def pipeline(depth: Optional[int] = None, note: str = None):
    think()
    think(depth=depth, note=note, names=["a"])
"""


def test_a_parameter_without_a_value_is_none_and_whole_numbers_stay_whole(run):
    steps = run(NONE)

    assert run.succeeded
    assert dict(steps) == {
        "think": "(None, None, None, None, None, None, 3, [1, 2])",
        "think-2": "(None, None, ['a'], None, None, None, 3, [1, 2])",
    }


LOOPS = """
@component
def words() -> List[str]:
    return []

@component
def join(texts: List[str]) -> str:
    return "+".join(texts) or "nothing"

@component
def tell(text: str, status: dsl.PipelineTaskFinalStatus) -> str:
    return status.state

@dsl.pipeline(name="loops")
def pipeline(items: List[str] = ["a", "b"]):
    before = say(text="before")
    with dsl.ExitHandler(exit_task=tell(text="over")):
        with dsl.ParallelFor(items) as item:
            say(text=f"item: {item}")
    with dsl.ParallelFor(["c"]) as item:
        both = say(text=f"{before.output} {item}")
    join(texts=dsl.Collected(both.output))
    with dsl.ParallelFor(words().output) as word:
        one = say(text=word)
    join(texts=dsl.Collected(one.output))
"""


def test_loops_take_what_stands_around_them_and_collect_nothing_from_nothing(run):
    steps = run(LOOPS)

    assert run.succeeded
    outputs = [output for _, output in steps]
    for expected in ("item: a", "item: b", "SUCCEEDED", "before c", "nothing"):
        assert expected in outputs
    assert ("join", "before c") in steps


ARTIFACTS = """
@component
def write(text: str, file: dsl.Output[dsl.Dataset]):
    open(file.path, "w").write(text)

@component
def read(file: dsl.Input[dsl.Dataset]) -> str:
    return open(file.path).read()

@dsl.pipeline(name="inner")
def inner(file: dsl.Input[dsl.Dataset]) -> str:
    return read(file=file).output

@dsl.pipeline(name="artifacts")
def pipeline(which: str = "two"):
    one = write(text="one")
    two = write(text="two")
    inner(file=one.outputs["file"]).after(two)
    with dsl.If(which == "one"):
        first = write(text="chosen one")
    with dsl.Else():
        second = write(text="chosen two")
    read(file=dsl.OneOf(first.outputs["file"], second.outputs["file"]))
"""


def test_artifacts_of_one_component_stay_apart_and_reach_inner_pipelines(run):
    steps = run(ARTIFACTS)

    assert run.succeeded
    assert {step: output for step, output in steps if "read" in step} == {"inner.read": "one", "read": "chosen two"}


def test_of_an_old_run_only_what_the_result_store_hands_on_stays(run, tmp_path):
    run(ARTIFACTS.partition("@dsl")[0] + "@dsl.pipeline\ndef pipeline():\n    read(file=write(text='one').output)\n")
    folder = tmp_path / "run"
    remove_old(tmp_path)
    assert len(list(folder.glob("logs/*"))) == 2
    for path in (folder, *folder.glob("logs/*")):
        os.utime(path, (0, 0))
    remove_old(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["steps"]
    assert [path.name for path in (folder / "steps").iterdir()] == ["write"]
    assert (folder / "steps/write/0/file").read_text() == "one"


METRICS = """
@component
def judge(metrics: dsl.Output[dsl.Metrics]) -> None:
    metrics.log_metric("rows", 10)
    metrics.log_metric("auc", float("{value}"))

@component
def use(metrics: dsl.Input[dsl.Metrics]) -> str:
    return str(sorted(metrics.metadata))

@dsl.pipeline(name="metrics")
def pipeline():
    use(metrics=judge().outputs["metrics"])
"""


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_metric_that_is_no_number_is_left_out_and_the_run_goes_on(run, value):
    steps = run(METRICS.format(value=value))

    assert run.succeeded
    assert steps[-1] == ("use", "['rows']")
    assert f"metrics: auc is {value}, and left out." in run.logs[0]


def test_packages_are_installed_for_their_step_alone(run, tmp_path):
    wheel = tmp_path / "probe_of_packages-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("probe_of_packages.py", "ANSWER = 'found'\n")
        info = "probe_of_packages-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: probe-of-packages\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")

    steps = run(
        f"@dsl.component(base_image='python:3.11', install_kfp_package=False, packages_to_install=[{str(wheel)!r}])\n"
        "def probe() -> str:\n    import probe_of_packages\n    return probe_of_packages.ANSWER\n\n"
        "@dsl.pipeline(name='packages')\ndef pipeline():\n    probe()\n"
    )

    assert steps == [("probe", "found")]
    assert importlib.util.find_spec("probe_of_packages") is None
    assert not list((tmp_path / "run/packages").glob("*"))


FAILURES = """
@component
def mend() -> str:
    from shopfloor.errors import DataError
    print("ValueError: of somebody else", flush=True)
    raise DataError("Table 'a' has no rows.", "Look at data/a.csv.")

@component
def slip() -> str:
    return {}["x"]

@component
def give_up() -> str:
    import sys
    sys.exit("No such table: 'a'")

@component
def vanish() -> str:
    import os
    print("about to end", flush=True)
    os._exit(7)

@component
def starve() -> str:
    import os, signal
    print("ValueError: of somebody else", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

@dsl.pipeline(name="failures")
def pipeline():
    mend()
    slip()
    give_up()
    vanish()
    starve()
"""


def test_a_step_that_fails_says_as_data_what_is_wrong_whatever_stands_in_its_log(run):
    steps = run(FAILURES)

    assert not run.succeeded
    assert {step: failure for step, _, failure in steps} == {
        "mend": Failure("DataError", "Table 'a' has no rows.", "Look at data/a.csv."),
        "slip": Failure("KeyError", "KeyError: 'x'"),
        "give-up": Failure("SystemExit", "No such table: 'a'"),
        "vanish": Failure("exit", "The step's process ended with exit code 7: about to end"),
        "starve": of_exit(-9),
    }


def test_a_step_sees_gpus_where_it_asks_for_one(run, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")

    steps = run(
        "@component\ndef gpus() -> str:\n    import os\n    return os.environ['CUDA_VISIBLE_DEVICES']\n\n"
        "@dsl.pipeline(name='gpus')\ndef pipeline():\n    gpus()\n"
        "    gpus().set_accelerator_type('nvidia.com/gpu').set_accelerator_limit(1)\n"
    )

    assert dict(steps) == {"gpus": "", "gpus-2": "3"}
