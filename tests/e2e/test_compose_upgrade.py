"""The stack with real services goes over to another image, with databases one migration behind; and back."""

import contextlib
import json
import subprocess
import sys

import pytest
from shopfloor.stack import versions

from tests.support.compose import RUN_S, START_S, engine_answers
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.skipif(not engine_answers(), reason="no Docker engine answers here"),
    pytest.mark.timeout(START_S + 2 * RUN_S),
]
WANTED = {name: revisions[0] for name, revisions in versions.release().schemas.items()}
BEFORE = {name: revisions[1] for name, revisions in versions.release().schemas.items()}
"""The schemas before the last migration of each database."""
DOWNGRADE = f"""
from alembic import command
from mlflow.server.auth.db import utils as users
from mlflow.store.db import utils
from sqlalchemy import create_engine

url = "postgresql+psycopg2://mlflow@postgres/"
command.downgrade(utils._get_alembic_config(url + "mlflow"), "{BEFORE["mlflow"]}")
config = users._get_alembic_config(url + "mlflow_auth")
with create_engine(url + "mlflow_auth").begin() as connection:
    config.attributes["connection"] = connection
    command.downgrade(config, "{BEFORE["mlflow_auth"]}")
"""


@pytest.fixture(scope="module")
def older(stack, first):
    """Give the image that runs; both of MLflow's databases are as an older one left them."""
    make_older(stack)
    container = stack.compose("ps", "--quiet", "mlflow").strip()
    return stack.run("docker", "inspect", "--format", "{{.Config.Image}}", container).strip()


@pytest.fixture(scope="module")
def newer(older):
    """Give another image, which has the same in it."""
    with image(f"FROM {older}\nLABEL try=upgrade\n", "test-upgrade") as name:
        yield name


@pytest.fixture(scope="module")
def newest(older):
    """Give one more image with the same in it."""
    with image(f"FROM {older}\nLABEL try=killed\n", "test-killed") as name:
        yield name


@pytest.fixture(scope="module")
def broken(older):
    """Give another image, whose last migration fails."""
    file = f"/opt/shopfloor/lib/python3.11/site-packages/mlflow/store/db_migrations/versions/{WANTED['mlflow']}_*.py"
    change = f"sed -i 's/^def upgrade.*/&\\n    raise RuntimeError(\"It does not go\")/' {file}"
    with image(f"FROM {older}\nUSER 0\nRUN {change}\nUSER 10001:10001\n", "test-broken") as name:
        yield name


@contextlib.contextmanager
def image(dockerfile, tag):
    name = f"shopfloor/platform:{tag}"
    command = ["docker", "build", "--quiet", "--tag", name, "-"]
    subprocess.run(command, input=dockerfile, text=True, check=True, capture_output=True)
    try:
        yield name
    finally:
        subprocess.run(["docker", "rmi", "--force", name], check=False, capture_output=True)


def make_older(stack):
    stack.compose("run", "--rm", "-T", "--no-deps", "migrate", "python", "-c", DOWNGRADE)


def query(stack, database, text):
    command = ("psql", "--username=postgres", "--no-align", "--tuples-only", "-c", text, database)
    return stack.compose("exec", "-T", "postgres", *command).strip()


def schemas(stack):
    tables = {name: table for name, (_, table) in versions.SCHEMAS.items()}
    return {name: query(stack, name, f"SELECT version_num FROM {table}") for name, table in tables.items()}


def upgraded(stack, tmp_path, image, *arguments, code=0):
    command = ("upgrade", "--store", str(tmp_path / "store"), "--image", image, "--json", *arguments)
    return json.loads(stack.run(sys.executable, "-m", "shopfloor", *command, code=code))


def answers(result):
    return [(one["use_case"], one["largest_difference"], one["problem"]) for one in result["champions"]]


def images(stack):
    listed = [json.loads(line) for line in stack.compose("ps", "--format", "json").splitlines()]
    return {one["Image"] for one in listed if one["Service"] in {"mlflow", "ray-head", "ray-worker"}}


def test_a_migration_that_fails_leaves_the_old_image_and_all_runs(stack, older, broken, tmp_path):
    runs = query(stack, "mlflow", "SELECT count(*) FROM runs")

    result = upgraded(stack, tmp_path, broken, "--no-rehearse", code=1)

    assert result["outcome"] == "put back"
    assert "It does not go" in result["problem"]
    assert images(stack) == {older}
    assert query(stack, "mlflow", "SELECT count(*) FROM runs") == runs
    wait_until(lambda: stack.champion() == "1", 180)


def test_an_upgrade_is_rehearsed_and_the_champion_answers_exactly_with_the_new_image(stack, newer, tmp_path):
    make_older(stack)

    result = upgraded(stack, tmp_path, newer)

    assert result["outcome"] == "upgraded"
    assert answers(result["rehearsal"]) == answers(result) == [("flight_delays", 0, "")]
    assert schemas(stack) == WANTED
    assert images(stack) == {newer}
    assert f"PLATFORM_IMAGE={newer}" in (stack.root / ".env").read_text().splitlines()
    wait_until(lambda: stack.champion() == "1", 180)
    assert upgraded(stack, tmp_path, newer)["outcome"] == "nothing to do"


def migrating(stack):
    """Return the container in which the databases are migrated, empty where there is none."""
    labels = {"project": stack.project, "service": "migrate", "oneoff": "True"}
    filters = [f"--filter=label=com.docker.compose.{name}={value}" for name, value in labels.items()]
    return stack.run("docker", "ps", "--quiet", *filters).strip()


def killed(stack, line, *command, when=lambda _: True):
    """Kill the command when it has said a line that begins so and this holds; what it started itself goes on."""
    process = stack.start(*command)
    said = []
    for text in process.stdout:
        said.append(text)
        if text.startswith(line):
            break
    else:
        raise AssertionError("".join(said))
    wait_until(lambda: when(stack), 60)
    process.kill()
    process.wait()
    return "".join(said)


def test_an_upgrade_that_is_killed_goes_on_at_each_stage_and_the_champion_answers_exactly(stack, newest, tmp_path):
    make_older(stack)
    runs = query(stack, "mlflow", "SELECT count(*) FROM runs")
    command = ("upgrade", "--store", str(tmp_path / "store"), "--image", newest, "--no-rehearse")

    killed(stack, "Migrating the databases", *command, when=migrating)
    assert "in its stage 'migrate'" in killed(stack, "Starting the other services", *command)
    said = killed(stack, "Bringing the endpoints back", *command)
    assert "in its stage 'start'" in said
    result = upgraded(stack, tmp_path, newest, "--no-rehearse")

    assert result["outcome"] == "upgraded"
    assert answers(result) == [("flight_delays", 0, "")]
    assert schemas(stack) == WANTED
    assert images(stack) == {newest}
    assert query(stack, "mlflow", "SELECT count(*) FROM runs") == runs
    wait_until(lambda: stack.champion() == "1", 180)
