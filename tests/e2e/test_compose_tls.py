"""The stack behind nginx, as platform/compose/tls.yml starts it: what another machine reaches, and what it does not."""

import json
import shutil
import subprocess

import pytest
import requests
from shopfloor.environment import THROUGH_MLFLOW

from tests.support.cluster_api import certificate
from tests.support.compose import RUN_S, START_S, engine_answers
from tests.support.waiting import free_port, wait_until

DOMAIN = "example.org"
LABELS = ("mlflow", "models", "grafana")
SECRETS = ("tls_certificate", "tls_key")
FILES = "docker-compose.yml:platform/compose/tls.yml"
ELSEWHERE = """
import hashlib, mlflow, os, pathlib
file = pathlib.Path("/tmp/large")
file.write_bytes(os.urandom(32 * 1024**2))
mlflow.set_experiment("from elsewhere")
with mlflow.start_run() as run:
    mlflow.log_metric("loss", 1.0)
    mlflow.log_artifact(str(file))
back = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="large", dst_path="/tmp/back")
assert hashlib.sha256(pathlib.Path(back).read_bytes()).digest() == hashlib.sha256(file.read_bytes()).digest()
print(mlflow.get_run(run.info.run_id).data.metrics["loss"])
"""
"""A run with a file that nginx may not write aside, by a client that has the certificate and the password only."""

pytestmark = [
    pytest.mark.skipif(not engine_answers(), reason="no Docker engine answers here"),
    pytest.mark.timeout(START_S + 2 * RUN_S),
]


@pytest.fixture(scope="module")
def proxied(stack, first):
    """Give the stack with nginx before it, as docs/how-to/put-tls-in-front.md says, and without it afterwards."""
    own = {"COMPOSE_FILE": FILES, "TLS_DOMAIN": DOMAIN, "TLS_PORT": str(free_port())}
    stack.environment |= own
    try:
        image = image_of(stack, "proxy")
        if subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode:
            pytest.skip(f"the engine does not have {image}")
        pem = certificate(stack.root / "both.pem", *(f"{label}.{DOMAIN}" for label in LABELS))
        for name in SECRETS:
            shutil.copy(pem, stack.root / ".secrets" / name)
            (stack.root / ".secrets" / name).chmod(0o444)
        stack.compose("up", "-d", "--wait")
        wait_until(lambda: stack.champion() == "1", 180)
        yield stack
        stack.compose("rm", "--stop", "--force", "proxy")
    finally:
        for name in own:
            del stack.environment[name]
        for name in SECRETS:
            (stack.root / ".secrets" / name).unlink(missing_ok=True)
        stack.compose("up", "-d", "--wait")


def image_of(stack, service):
    return json.loads(stack.compose("config", "--format", "json"))["services"][service]["image"]


def ask(stack, label, path, method="GET", **more):
    """Ask by a name of the domain, which the test's certificate holds besides the address."""
    headers = {"Host": f"{label}.{DOMAIN}"} | more.pop("headers", {})
    url = f"https://127.0.0.1:{stack.environment['TLS_PORT']}{path}"
    return requests.request(method, url, headers=headers, verify=stack.root / "both.pem", timeout=30, **more)


def test_the_endpoint_answers_who_has_a_token_and_serves_own_pages_stay_away(proxied):
    example = proxied.example()

    answer = ask(proxied, "models", "/flight_delays/predict", "POST", json=example, headers=proxied.bearer())
    assert (answer.status_code, answer.json()["version"]) == (200, "1")
    assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
    assert ask(proxied, "models", "/flight_delays/predict", "POST", json=example).status_code == 401
    assert ask(proxied, "models", "/-/routes").status_code == 404


def test_another_name_and_a_connection_without_tls_get_nothing(proxied):
    assert ask(proxied, "ray", "/").status_code == 421
    plain = requests.get(f"http://127.0.0.1:{proxied.environment['TLS_PORT']}/", timeout=10)
    assert (plain.status_code, "shopfloor" in plain.text) == (400, False)


def test_mlflow_wants_its_password_and_no_page_of_elsewhere_changes_anything(proxied):
    user = ("shopfloor", (proxied.root / ".secrets/mlflow_password").read_text())
    path, body = "/api/2.0/mlflow/experiments/search", {"max_results": 1}

    assert ask(proxied, "mlflow", path, "POST", json=body).status_code == 401
    assert ask(proxied, "mlflow", path, "POST", json=body, auth=user).status_code == 200
    foreign = {"Origin": "https://mlflow.example.net"}
    assert ask(proxied, "mlflow", path, "POST", json=body, auth=user, headers=foreign).status_code == 403
    # A proxy that takes a name more is no reason for MLflow to take it.
    evil = {"Host": "mlflow.example.net"}
    assert ask(proxied, "mlflow", path, "POST", json=body, auth=user, headers=evil).status_code == 403


def test_a_client_of_mlflow_elsewhere_writes_a_run_with_a_large_file_and_reads_it_back(proxied):
    variables = {
        "MLFLOW_TRACKING_URI": f"https://mlflow.{DOMAIN}:{proxied.environment['TLS_PORT']}",
        "MLFLOW_TRACKING_USERNAME": "shopfloor",
        "MLFLOW_TRACKING_PASSWORD": (proxied.root / ".secrets/mlflow_password").read_text().strip(),
        "MLFLOW_TRACKING_SERVER_CERT_PATH": "/both.pem",
        "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE": str(16 * 1024**2),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    } | THROUGH_MLFLOW
    # On the machine's own network, where the names of the stack's services mean nothing.
    options = ["--rm", "--network", "host", "--add-host", f"mlflow.{DOMAIN}:127.0.0.1", "--entrypoint", "python"]
    options += ["--volume", f"{proxied.root / 'both.pem'}:/both.pem:ro"]
    options += [option for name, value in variables.items() for option in ("--env", f"{name}={value}")]

    assert proxied.run("docker", "run", *options, image_of(proxied, "mlflow"), "-c", ELSEWHERE).split()[-1] == "1.0"
