"""A registry that asks for passwords, and one that fails in the middle of a promotion: one line, and one truth."""

import asyncio
import http.server
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from shopfloor.cli import main
from shopfloor.errors import AccessError, NotFoundError, ShopfloorError
from shopfloor.registry.passport import read_passport
from shopfloor.runs import index
from shopfloor.runs.mlflow import API_3, Mlflow, connect, version_of
from shopfloor.serving import assignment as assignments
from shopfloor.serving import batch
from shopfloor.serving.contract import Config
from shopfloor.serving.deploy import applications, champion, rollout
from shopfloor.serving.replica import versions
from shopfloor.serving.replica.versions import Holding
from shopfloor.settings import Settings
from shopfloor.stack import mlflow_user

from components.evaluate import evaluate
from tests.support.endpoints import USE_CASE, stop
from tests.support.project import BIN, ROOT
from tests.support.waiting import free_port, wait_for

CASE = "toy_trouble"
PASSWORDS = {"ann": "what-ann-knows-1", "rita": "what-rita-knows-1"}
"""The administrator's, and that of one who may only read."""
AUTH = """
[mlflow]
default_permission = READ
database_uri = sqlite:///{directory}/users.db
admin_username = ann
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 300
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trouble")
    (directory / "auth.ini").write_text(AUTH.format(directory=directory))
    case = directory / "pipelines" / CASE
    case.mkdir(parents=True)
    (case / "use_case.yaml").write_text(USE_CASE.format(name=CASE))
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    with (directory / "server.log").open("w") as log:
        server = subprocess.Popen(
            [
                *(BIN / "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1", "--port", str(port)),
                *("--workers", "1", "--backend-store-uri", f"sqlite:///{directory}/mlflow.db"),
            ],
            env=os.environ
            | {
                "MLFLOW_AUTH_CONFIG_PATH": str(directory / "auth.ini"),
                "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORDS["ann"],
                "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
            cwd=directory,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            wait_for(f"{uri}/health", server)
            yield Settings(project_root=directory, state_dir=directory / "state", tracking_uri=uri)
        finally:
            stop(server)


@pytest.fixture
def user(monkeypatch):
    """Give a function that lets this process ask as somebody."""

    def become(name, password=None):
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password or PASSWORDS[name])

    return become


@pytest.fixture(scope="module")
def registered(settings):
    """Two versions of a model without files, and one who may look at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
        patch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORDS["ann"])
        mlflow = Mlflow(settings.tracking_uri, 30)
        mlflow.post("users/create", {"username": "rita", "password": PASSWORDS["rita"]})
        mlflow.post("registered-models/create", {"name": CASE})
        for _ in range(2):
            mlflow.post("model-versions/create", {"name": CASE, "source": "shopfloor:/nothing"})


@pytest.fixture
def no_endpoint(monkeypatch):
    """Leave out of a promotion what an endpoint says to it; replicas are asked by the tests themselves."""
    monkeypatch.setattr(rollout, "hold", lambda *_, **__: None)
    monkeypatch.setattr(rollout, "holds_already", lambda *_: False)
    monkeypatch.setattr(applications, "build", lambda settings, case, before: before.application)


@pytest.fixture
def replica(monkeypatch):
    """Give a function that lets a new replica follow the registry; it returns what the replica then holds."""
    monkeypatch.setattr(versions, "load_model", lambda uri, name, version, fetch: SimpleNamespace(version=version))

    async def follow(uri):
        async def expect():
            return None

        holding = Holding(expect, lambda: None)
        async with asyncio.timeout(30):
            await holding.follow(Config(use_case=CASE, tracking_uri=uri))
        return holding

    return lambda settings: asyncio.run(follow(settings.tracking_uri))


class Proxy(http.server.ThreadingHTTPServer):
    """Stands before MLflow, and answers one request with 503: instead of MLflow, or after it has done its part."""

    def __init__(self, behind):
        self.behind, self.seen, self.fails_at, self.reaches = behind, 0, None, False
        super().__init__(("127.0.0.1", 0), Forwarding)

    def fail(self, number, reaches):
        self.seen, self.fails_at, self.reaches = 0, number, reaches


class Forwarding(http.server.BaseHTTPRequestHandler):
    def forward(self):
        proxy = self.server
        proxy.seen += 1
        failing = proxy.seen == proxy.fails_at
        status, content = 503, b"upstream connect error"
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not failing or proxy.reaches:
            headers = {name: value for name, value in self.headers.items() if name != "Host"}
            answer = requests.request(self.command, proxy.behind + self.path, data=body, headers=headers, timeout=30)
            if not failing:
                status, content = answer.status_code, answer.content
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = do_DELETE = forward

    def log_message(self, *_):
        pass


@pytest.fixture
def proxy(settings):
    with Proxy(settings.tracking_uri) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("reaches", [False, True], ids=["lost on its way", "done, and not answered"])
def test_whichever_call_of_a_promotion_fails_registry_alias_and_replicas_agree_in_the_end(
    settings, registered, user, no_endpoint, replica, proxy, reaches
):
    user("ann")
    direct = rollout.registry(settings)
    through = settings.model_copy(update={"tracking_uri": f"http://127.0.0.1:{proxy.server_port}"})
    before = assignments.read(direct, CASE).assignment.champion
    messages, number = [], 0
    while proxy.seen >= number:  # until a promotion has no such call any more
        number += 1
        target = "1" if before == "2" else "2"
        proxy.fail(number, reaches)
        message = promoted(through, target)
        messages.append(message)
        entry = assignments.read(direct, CASE)
        decided = entry.assignment.champion
        if message:
            assert "503" in message
            assert "\n" not in message
            assert decided in {before, target}
            champion.project(direct, CASE, entry)  # as every command does first
        else:
            assert decided == target
        found = aliases(direct)
        assert (found.get("champion"), found.get("challenger")) == (decided, entry.assignment.challenger)
        assert decided is None or replica(settings).champion.version == decided
        before = decided
    assert number > 8
    assert any(messages)
    assert not all(messages)


def test_a_step_takes_the_champion_from_the_ledger_also_where_the_alias_lags_behind(
    settings, registered, user, no_endpoint, monkeypatch, tmp_path
):
    user("ann")
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    mlflow, artifact = rollout.registry(settings), SimpleNamespace(uri="")
    champion.promote_version(settings, CASE, "2")
    mlflow.post("registered-models/alias", {"name": CASE, "alias": "champion", "version": "1"})

    monkeypatch.setattr("shopfloor.judging.evaluate.evaluate", lambda *arguments: arguments[4])
    assert evaluate.python_func(CASE, artifact, artifact, "@champion", artifact, artifact) == "2"
    assert evaluate.python_func(CASE, artifact, artifact, "1", artifact, artifact) == "1"
    monkeypatch.setattr(batch, "load_model", lambda uri, name, version: pytest.fail(f"loads version {version}"))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "rows.parquet")
    with pytest.raises(pytest.fail.Exception, match="loads version 2"):
        batch.score(settings, CASE, "", str(tmp_path / "rows.parquet"), "", artifact)
    with pytest.raises(NotFoundError, match="There is no version 9 of a model 'toy_trouble'"):
        batch.score(settings, CASE, "9", str(tmp_path / "rows.parquet"), "", artifact)

    assert assignments.resolve(settings, "nobody", "@champion") == ""
    assert assignments.resolve(settings, "nobody", "@challenger") == ""
    mlflow.post("registered-models/create", {"name": "toy_unassigned"})
    mlflow.post("model-versions/create", {"name": "toy_unassigned", "source": "shopfloor:/nothing"})
    mlflow.post("registered-models/alias", {"name": "toy_unassigned", "alias": "champion", "version": "1"})
    assert assignments.resolve(settings, "toy_unassigned", "@champion") == "1"
    champion.project(mlflow, CASE, assignments.read(mlflow, CASE))


def promoted(settings, version):
    """Promote a version, and return what was said where that failed."""
    try:
        champion.promote_version(settings, CASE, version)
    except ShopfloorError as error:
        return str(error)
    return ""


def aliases(mlflow):
    model = mlflow.get("registered-models/get", "registered_model", name=CASE)
    return {item["alias"]: str(item["version"]) for item in model.get("aliases", [])}


WRONG = {
    "a wrong password": ("ann", "what-bob-knows-1", "does not accept the password of 'ann'"),
    "nobody": ("", "", "does not accept a request without credentials"),
}


COMMANDS = (
    ("models", "list"),
    ("models", "show", "flight_delays/1"),
    ("models", "promote", "flight_delays/1"),
    ("models", "rollback", "flight_delays"),
    ("deploy", "flight_delays/1"),
    ("undeploy", "flight_delays"),
    ("rollout", "status", "flight_delays"),
    ("rollout", "guard", "flight_delays"),
    ("rollout", "end", "flight_delays"),
    ("rollout", "run", "flight_delays/1"),
    ("rollout", "run", "flight_delays/1", "--detach"),
    ("runs", "list"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("who", WRONG)
def test_a_command_with_wrong_credentials_is_one_line(settings, user, monkeypatch, capsys, tmp_path, who, command):
    name, password, words = WRONG[who]
    user(name, password or "-")
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SHOPFLOOR_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("SHOPFLOOR_TRACKING_URI", settings.tracking_uri)
    monkeypatch.setattr(sys, "argv", ["shopfloor", *command])
    with pytest.raises(SystemExit) as ended:
        main.run()
    message = capsys.readouterr().err
    assert (ended.value.code, message.count("\n")) == (1, 1), message
    assert message.startswith("error: The MLflow server")
    assert words in message
    assert "MLFLOW_TRACKING_PASSWORD" in message


def test_who_may_only_read_is_told_so_and_changes_nothing(settings, registered, user, no_endpoint):
    user("ann")
    if assignments.read(rollout.registry(settings), CASE).assignment.champion is None:
        champion.promote_version(settings, CASE, "1")
    before = assignments.read(rollout.registry(settings), CASE)
    user("rita")
    connect(settings)
    target = "2" if before.assignment.champion == "1" else "1"
    with pytest.raises(AccessError, match="does not let 'rita' do that"):
        champion.promote_version(settings, CASE, target)
    user("ann")
    assert assignments.read(rollout.registry(settings), CASE) == before


def test_a_replica_with_wrong_credentials_says_so_instead_of_waiting(settings, registered, user, replica):
    user("ann", "what-bob-knows-1")
    holding = replica(settings)
    assert holding.champion is None
    assert "does not accept the password of 'ann'" in holding.registry_problem
    with pytest.raises(Exception, match="Who is champion cannot be read"):
        holding.the_champion()
    user("ann")
    assert replica(settings).registry_problem == ""


@pytest.fixture(scope="module")
def made(settings, tmp_path_factory):
    """Make the user of a stack, which was an administrator once and had another password."""
    mlflow = Mlflow(settings.tracking_uri, 30)
    file = tmp_path_factory.mktemp("made") / "password"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
        patch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORDS["ann"])
        for password in ("the first password", "another password"):
            file.write_text(f"{password}\n")
            mlflow_user.main(settings, "platform", file)
            mlflow.post("users/update-admin", {"username": "platform", "is_admin": True}, "PATCH")
        mlflow_user.main(settings, "platform", file)
    return mlflow


@pytest.fixture
def platform(made, user):
    """Become the user of a stack."""
    user("platform", "another password")
    return made


def test_the_user_of_a_stack_is_made_once_and_its_password_follows_the_file(platform, user):
    assert platform.get("users/get", "user", username="platform")["is_admin"] is False
    user("platform", "the first password")
    with pytest.raises(AccessError):
        platform.get("users/get", "user", username="platform")


def test_the_user_of_a_stack_may_nothing_with_users_and_roles(settings, platform, tmp_path):
    (tmp_path / "password").write_text("whatever it is 1")
    refused = [
        lambda: mlflow_user.main(settings, "other", tmp_path / "password"),
        lambda: platform.post("users/update-admin", {"username": "platform", "is_admin": True}, "PATCH"),
        lambda: platform.post("users/update-password", {"username": "ann", "password": "mine now 123"}, "PATCH"),
        lambda: Mlflow(settings.tracking_uri, 30, api=API_3).post(
            "roles/create", {"name": "x", "workspace": "default"}
        ),
    ]
    for ask in refused:
        with pytest.raises(AccessError):
            ask()


def test_the_user_of_a_stack_may_all_that_the_platform_does(settings, registered, platform, user, no_endpoint):
    """Of a model and an experiment that an administrator made, as if the server had died before it gave them away."""
    champion.promote_version(settings, CASE, "1")
    champion.promote_version(settings, CASE, "2")
    client = connect(settings)
    experiment = client.create_experiment("of the platform")
    run = client.create_run(experiment)
    client.log_param(run.info.run_id, "rows", 1)
    client.create_registered_model("new")
    client.create_model_version("new", "shopfloor:/nothing", run.info.run_id)
    client.set_registered_model_alias("new", "champion", "1")
    client.delete_model_version("new", "1")
    client.delete_run(run.info.run_id)
    client.delete_registered_model("new")
    assert assignments.read(rollout.registry(settings), CASE).assignment.champion == "2"


def test_who_may_not_change_a_model_begins_no_ledger_of_it(settings, registered, user, no_endpoint):
    """MLflow lets anybody register a model of a name that nobody has yet."""
    user("ann")
    mlflow = Mlflow(settings.tracking_uri, 30)
    mlflow.post("registered-models/create", {"name": "unanswered"})
    user("rita")
    with pytest.raises(AccessError, match="does not let 'rita' do that"):
        assignments.change(mlflow, "unanswered", assignments.read(mlflow, "unanswered"), champion="1")
    with pytest.raises(NotFoundError):
        mlflow.get("registered-models/get", "registered_model", name="unanswered" + assignments.SUFFIX)


def test_what_is_not_there_is_told_from_what_is_refused_to_one_who_is_no_administrator(settings, registered, platform):
    client = connect(settings)
    with pytest.raises(NotFoundError, match="no version 1 of a model 'nowhere'"):
        version_of(platform, "nowhere", "1")
    with pytest.raises(NotFoundError, match="no version 1 of a model 'nowhere'"):
        read_passport(client, "nowhere", "1")
    with pytest.raises(NotFoundError, match="no run"):
        index.find_run(client, "0" * 32)
    assert assignments.read(platform, "nowhere").has_record is False
