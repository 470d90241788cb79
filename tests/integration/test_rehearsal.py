"""Versions that do something to the process that loads them, from a registry in a file."""

import asyncio
import os

import psutil
import pytest
from shopfloor.serving.beside import rehearsal
from shopfloor.serving.contract import Assignment, Config
from shopfloor.serving.model.loading import load_model
from shopfloor.serving.replica.versions import Holding

from tests.support.endpoints import file_registry

MODEL = """
import os, signal, sys, time
import mlflow

class Model(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        {on_load}

    def predict(self, context, model_input, params=None):
        return model_input["a"].to_numpy() * 2

mlflow.models.set_model(Model())
"""


@pytest.fixture(scope="module")
def register(tmp_path_factory):
    """Give a function that registers a model that does something when it is loaded; it returns the version."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    directory = tmp_path_factory.mktemp("registry")
    uri, experiment = file_registry(directory)

    def register(on_load: str) -> tuple[str, str, str]:
        code = directory / "model.py"
        code.write_text(MODEL.format(on_load=on_load))
        with mlflow.start_run(experiment_id=experiment):
            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(code),
                signature=ModelSignature(Schema([ColSpec("double", "a")]), Schema([ColSpec("double")])),
                pip_requirements=[],
                registered_model_name="toy",
            )
        return uri, "toy", str(info.registered_model_version)

    return register


def test_a_version_that_loads_elsewhere_is_loaded_here_from_the_same_files(register, tmp_path):
    pids = tmp_path / "pids"
    order = register(f"print('loaded'); open({str(pids)!r}, 'a').write(f'{{os.getpid()}} ')")
    pids.unlink(missing_ok=True)  # MLflow may have loaded it when it was registered

    served = load_model(*order, rehearsal.Rehearsal().fetch)

    assert served.many([[1.5], [2.0]]) == [3.0, 4.0]
    elsewhere, here = pids.read_text().split()
    assert int(here) == os.getpid() != int(elsewhere)


@pytest.mark.parametrize(
    ("on_load", "why"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the process that tried it was killed by signal 11"),
        ("os._exit(0)", "the process that tried it ended with 0"),
        ("raise ValueError('no such tree')", "ValueError: no such tree"),
    ],
)
def test_what_a_version_does_to_its_process_is_said_and_nothing_is_left(register, tmp_path, on_load, why):
    order = register(f"if 'rehearsal' in ' '.join(sys.orig_argv): {on_load}")
    with pytest.raises(rehearsal.RehearsalFailed, match=f"^{why}"):
        rehearsal.Rehearsal().fetch(*order, tmp_path)


def test_a_version_that_is_never_done_is_given_up(register, tmp_path):
    order = register("if 'rehearsal' in ' '.join(sys.orig_argv): time.sleep(600)")
    with pytest.raises(rehearsal.RehearsalFailed, match="the process that tried it was not done after 1 s"):
        rehearsal.Rehearsal().fetch(*order, tmp_path, limit_s=1)


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this system has no such class of processes")
def test_a_version_is_loaded_in_turn_also_where_the_machine_is_never_idle(register, tmp_path):
    turn = tmp_path / "turn"
    order = register(f"print(os.sched_getscheduler(0), os.nice(0), file=open({str(turn)!r}, 'w'))")
    rehearsal.Rehearsal().fetch(*order, tmp_path / "files")

    assert turn.read_text().split() == [str(os.SCHED_BATCH), "19"]


def test_a_version_that_is_not_there_is_said_as_mlflow_says_it(register, tmp_path):
    uri, name, _ = register("pass")
    with pytest.raises(rehearsal.RehearsalFailed, match=r"^MlflowException: .*99"):
        rehearsal.Rehearsal().fetch(uri, name, "99", tmp_path)


def test_a_newer_assignment_ends_the_rehearsal_of_a_version_that_is_never_done(register, tmp_path):
    pid = tmp_path / "pid"
    tell = f"print(os.getpid(), file=open({str(pid)!r}, 'w'), flush=True)"
    hang = f"{tell}; signal.signal(signal.SIGALRM, signal.SIG_IGN); time.sleep(600)"
    uri, name, slow = register(f"if 'rehearsal' in ' '.join(sys.orig_argv): {hang}")
    _, _, quick = register("pass")

    async def follow() -> psutil.Process:
        async def expect() -> None:
            return None

        async def until(holds) -> None:
            async with asyncio.timeout(240):
                while not holds():
                    await asyncio.sleep(0.05)

        holding = Holding(expect, lambda: None)
        config = Config(use_case=name, tracking_uri=uri)
        holding._take_up(config, Assignment(challenger=slow), asyncio.Event())
        await until(lambda: pid.exists() and pid.read_text().endswith("\n"))
        process = psutil.Process(int(pid.read_text()))
        holding._take_up(config, Assignment(challenger=quick), asyncio.Event())
        await until(lambda: holding.challenger is not None)
        assert (holding.challenger.version, list(holding.errors)) == (quick, [])
        return process

    ended = asyncio.run(follow())  # which ends when its threads have
    assert not ended.is_running()
