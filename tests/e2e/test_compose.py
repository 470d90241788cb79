"""The stack with real services, from nothing: a run, its endpoint, more workers, and whatever dies in the middle.

`make test-compose` builds the image first. The images of the other services are those that the engine has or can pull.
"""

import json
import subprocess

import pytest
import requests
from shopfloor.stack import secrets

from tests.support.compose import RUN_S, SERVICES, START_S, SUBMIT, engine_answers
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.skipif(not engine_answers(), reason="no Docker engine answers here"),
    pytest.mark.timeout(START_S + 2 * RUN_S),
]


def test_every_service_is_healthy_and_lets_us_in(stack):
    shown = [json.loads(line) for line in stack.compose("ps", "--all", "--format", "json").splitlines()]
    assert {one["Service"]: one["Health"] for one in shown if one["Service"] in SERVICES} == dict.fromkeys(
        SERVICES, "healthy"
    )
    once = {one["Service"]: one["ExitCode"] for one in shown}
    assert (once["migrate"], once["bootstrap"]) == (0, 0)
    services = json.loads(stack.shopfloor("status", "--json"))["services"]
    assert [(one["name"], one["health"]) for one in services[:2]] == [("mlflow", "healthy"), ("ray", "healthy")]


def test_without_its_secret_no_service_answers(stack):
    for port, path in (("MLFLOW_PORT", "/api/2.0/mlflow/experiments/search"), ("RAY_DASHBOARD_PORT", "/api/jobs/")):
        assert requests.get(f"http://127.0.0.1:{stack.environment[port]}{path}", timeout=10).status_code == 401
    assert requests.get(f"http://127.0.0.1:{stack.environment['S3_PORT']}/shopfloor", timeout=10).status_code == 403


def test_the_store_does_all_that_we_and_our_components_ask_of_it(stack):
    verdicts = {row["name"]: row["verdict"] for row in json.loads(stack.shopfloor("storage", "check", "--json"))}
    assert len(verdicts) >= 9
    assert set(verdicts.values()) == {"ok"}


def test_a_run_ends_in_a_champion_that_answers(stack, first):
    assert first["state"] == "succeeded"
    assert stack.champion() == "1"
    again = json.loads(stack.shopfloor(*SUBMIT))
    assert {step["state"] for step in again["steps"]} == {"cached"}
    assert "trial 4/4" in stack.shopfloor("runs", "logs", first["run_id"], "tune")


def test_an_endpoint_answers_who_shows_a_token_that_counts(stack, first):
    def status(headers: dict) -> int:
        return requests.post(f"{stack.endpoint}/predict", json=stack.example(), timeout=10, headers=headers).status_code

    web_shop = {"Authorization": f"Bearer {stack.shopfloor('tokens', 'create', 'web-shop').strip()}"}
    wait_until(lambda: status(web_shop) == 200, 30)
    assert (status(stack.bearer()), status({})) == (200, 401)
    stack.shopfloor("tokens", "revoke", "web-shop", "--yes")
    wait_until(lambda: status(web_shop) == 401, 30)


def test_a_command_within_the_head_has_its_secrets_and_finds_the_data(stack, first):
    within = ("exec", "-T", "ray-head", "shopfloor")
    assert json.loads(stack.compose(*within, "rollout", "status", "flight_delays", "--json"))
    assert "weather" in stack.compose(*within, "features", "materialize", "flight_delays")


def test_a_database_that_refuses_is_named_and_used_again_when_it_does_not(stack, first):
    def let_in_with(password: str) -> None:
        order = f"psql -U postgres -q -v password={password} <<< \"ALTER ROLE feast PASSWORD :'password'\""
        stack.compose("exec", "-T", "postgres", "bash", "-c", order)

    materialize = ("docker", "compose", "exec", "-T", "ray-head", "shopfloor", "features", "materialize")
    let_in_with("another")
    try:
        done = subprocess.run(
            [*materialize, "flight_delays"],
            cwd=stack.root,
            env=stack.environment,
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )
    finally:
        let_in_with('"$(cat /run/secrets/feast_db_password)"')
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]
    assert told.startswith("error: Feast's registry postgresql")
    assert "password authentication failed" in told
    stack.run(*materialize, "flight_delays")


def test_a_backup_is_whole_and_its_champion_answers_exactly_in_a_stack_beside_this_one(stack, first, tmp_path):
    store = str(tmp_path / "store")
    made = json.loads(stack.shopfloor("backup", "create", "--store", store, "--json"))
    drilled = json.loads(stack.shopfloor("backup", "drill", "--store", store, "--json"))

    assert made["counts"] == drilled["counts"]
    assert [(one["version"], one["largest_difference"], one["problem"]) for one in drilled["champions"]] == [
        ("1", 0, "")
    ]
    assert stack.champion() == "1"
    ours = f"label=com.docker.compose.project.working_dir={stack.root}"
    assert "shopfloor-drill" not in stack.run("docker", "ps", "--all", "--filter", ours, "--format", "{{.Names}}")


def test_more_workers_join(stack, first):
    stack.compose("up", "-d", "--wait", "--no-recreate", "--scale", "ray-worker=2")
    token = (stack.root / ".secrets/ray_token").read_text().strip()
    url = f"http://127.0.0.1:{stack.environment['RAY_DASHBOARD_PORT']}/nodes?view=summary"

    def alive() -> bool:
        nodes = requests.get(url, timeout=10, headers={"Authorization": f"Bearer {token}"}).json()["data"]["summary"]
        return sum(node["raylet"].get("state") == "ALIVE" for node in nodes) == 3

    wait_until(alive, 60)
    stack.compose("up", "-d", "--wait", "--no-recreate", "--scale", "ray-worker=1")


@pytest.mark.parametrize("service", SERVICES)
def test_whatever_dies_in_the_middle_of_a_run_comes_back_and_the_same_submit_ends_well(stack, first, service):
    trials = 5 + SERVICES.index(service)
    process = stack.start(*SUBMIT, "-p", f"trials={trials}", "-p", "register_only=true")
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("tune: running"):
            break
    stack.crash(service)
    lines.append(process.communicate(timeout=RUN_S)[0])

    # It may have outlived the death; if not, one line says why.
    if process.returncode:
        assert "Traceback" not in "".join(lines), "".join(lines)
    stack.compose("up", "-d", "--wait")
    ended = json.loads(stack.shopfloor(*SUBMIT, "-p", f"trials={trials}", "-p", "register_only=true"))
    assert ended["state"] == "succeeded"
    assert {step["name"]: step["state"] for step in ended["steps"]}["pull-data"] == "cached"
    wait_until(lambda: stack.champion() == "1", 180)


def test_everything_comes_back_after_a_restart_of_all(stack, first):
    stack.compose("restart", "--timeout", "10")
    stack.compose("up", "-d", "--wait")
    wait_until(lambda: stack.champion() == "1", 180)
    stack.compose("exec", "-T", "ray-head", "test", "-w", "/app/.dvc/tmp")  # the engine forgets modes of a tmpfs


def test_no_secret_stands_in_what_can_be_inspected(stack):
    files = [stack.root / ".secrets" / name for name in secrets.RANDOM]
    values = {file.read_text().strip() for file in files}
    containers = stack.compose("ps", "--all", "--quiet").split()
    text = stack.run("docker", "inspect", *containers) + stack.compose("logs", "--no-color")
    assert [value for value in values if value in text] == []
