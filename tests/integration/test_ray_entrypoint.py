"""What a Ray job runs is a command line for a shell: nothing of the clone's path is run by it."""

import subprocess
from types import SimpleNamespace

from shopfloor.engines.base import Job
from shopfloor.engines.ray import RayEngine
from shopfloor.errors import ServiceError
from shopfloor.settings import Settings


def engine_that(ask, root):
    settings = Settings(project_root=root, state_dir=root, ray_dashboard_url="http://127.0.0.1:1")
    engine = RayEngine(settings)
    engine._ask = ask
    return engine


def test_a_clone_whose_path_is_a_command_is_only_a_path(tmp_path):
    root = tmp_path / "$(touch marked) 'x' `touch marked`"
    root.mkdir()
    jobs = []
    engine = engine_that(lambda method, **job: jobs.append(job), root)

    engine.submit(Job(name="p", ir={}, platforms={}, arguments={"text": "$(touch marked)"}, file=root / "p.py"))

    line = jobs[0]["entrypoint"].replace("exec env", "env").partition(" -m shopfloor")[0] + " -c pass"
    result = subprocess.run(["sh", "-c", line], cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, check=False)
    assert result.returncode == 0
    assert [path.name for path in (*tmp_path.rglob("marked"),)] == []


def test_a_job_whose_answer_was_lost_is_the_one_that_began(tmp_path):
    asked = []

    def ask(method, *arguments, **job):
        asked.append((method, job.get("submission_id") or arguments[0]))
        if method == "submit_job":
            raise ServiceError("The cluster does not answer.")
        return SimpleNamespace(status="RUNNING")

    engine_run = engine_that(ask, tmp_path)._begin(entrypoint="x")

    assert asked == [("submit_job", engine_run), ("get_job_info", engine_run)]
