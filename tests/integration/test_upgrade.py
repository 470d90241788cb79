"""A database of MLflow's, one migration behind, and what an upgrade makes of it; no service runs here.

`tests/e2e/test_main_job.py` upgrades a whole stack, and `test_compose_upgrade.py` one of containers.
"""

import contextlib
import shutil
import sqlite3

import pytest
from filelock import FileLock
from shopfloor import processes
from shopfloor.backup import restore as restoring
from shopfloor.errors import ConflictError, ServiceError, ShopfloorError, UsageError
from shopfloor.flows.changeover import Packages
from shopfloor.flows.upgrade import examine, upgrade
from shopfloor.settings import Settings
from shopfloor.stack import lifecycle, versions
from shopfloor.stack import state as states

from tests.support.schemas import BEFORE, make_older


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """A database as the MLflow before the last migration left it."""
    file = tmp_path_factory.mktemp("older") / "mlflow.db"
    make_older(file)
    return file


@pytest.fixture
def settings(older, tmp_path):
    """Settings of an embedded stack that is stopped and has that database."""
    state = tmp_path / "state"
    own = Settings(
        project_root=tmp_path,
        state_dir=state,
        artifact_root=str(state / "artifacts"),
        data_remote=str(state / "dvc-remote"),
        feature_registry=str(state / "feast" / "registry.db"),
        online_store=str(state / "feast" / "online.db"),
    )
    own.private_dir("mlflow")
    shutil.copy(older, versions.database(own))
    return own


@pytest.fixture
def unwilling(settings):
    """The same, with a column that the migration wants to add."""
    with contextlib.closing(sqlite3.connect(versions.database(settings))) as database:
        database.execute("ALTER TABLE jobs ADD COLUMN executor_backend TEXT")
        database.commit()
    return settings


def content(settings):
    with contextlib.closing(sqlite3.connect(versions.database(settings))) as database:
        return list(database.iterdump())


def changed_over(settings):
    return upgrade(settings, str(settings.project_root / "store"), None, lambda _: None, rehearse=False)


def wanted():
    return versions.release().schemas["mlflow"][0]


def test_up_starts_no_mlflow_on_an_older_schema_and_names_both(settings):
    before = content(settings)

    with pytest.raises(ServiceError, match=rf"has schema {BEFORE}, and MLflow .* wants {wanted()}.*shopfloor upgrade"):
        lifecycle.up(settings)

    assert content(settings) == before
    assert states.read(settings) is None


def test_a_look_says_what_would_change_and_changes_nothing(settings):
    before = content(settings)

    examination = examine(settings, "")

    parts = {part.name: (part.present, part.wanted) for part in examination.parts}
    assert parts["schema of mlflow"] == (BEFORE, wanted())
    assert examination.needed
    assert examination.problems == examination.writers == []
    assert content(settings) == before


def test_a_database_of_a_newer_mlflow_is_left_alone(settings):
    with contextlib.closing(sqlite3.connect(versions.database(settings))) as database:
        database.execute("UPDATE alembic_version SET version_num = 'of-tomorrow'")
        database.commit()

    with pytest.raises(UsageError, match=rf"has schema of-tomorrow, and MLflow .* knows none after {wanted()}"):
        changed_over(settings)
    with pytest.raises(ServiceError, match="A newer MLflow wrote it"):
        lifecycle.up(settings)

    assert not (settings.project_root / "store").exists()


def test_a_component_that_is_not_as_locked_is_refused_with_both_versions(settings):
    settings.lock_file.parent.mkdir()
    settings.lock_file.write_text("mlflow==3.0.1 \\\n    --hash=sha256:0\n")

    with pytest.raises(UsageError, match=rf"mlflow {versions.installed('mlflow')} is installed.*lock says 3.0.1"):
        changed_over(settings)


def test_a_service_that_was_started_before_its_package_was_replaced_is_named_with_both_versions(settings):
    service = states.Service(
        name="mlflow", process=processes.identify(), log=settings.state_dir / "log", version="3.0.1"
    )
    state = states.StackState(
        boot_id=processes.boot_id(),
        addresses={},
        services={"mlflow": service},
        ray_dir=settings.state_dir,
        ray_token_file=settings.state_dir / "token",
    )
    states.write(settings, state)

    for command in (lifecycle.up, lifecycle.require_up):
        with pytest.raises(ServiceError, match=rf"mlflow 3.0.1 runs, and {versions.installed('mlflow')} is installed"):
            command(settings)


def test_a_migration_that_fails_puts_everything_back_and_says_why(unwilling):
    before = content(unwilling)

    result = changed_over(unwilling)

    assert result.outcome == "put back"
    assert "duplicate column name" in result.problem
    assert f"has schema {BEFORE}" in result.problem  # so that MLflow stays stopped
    assert content(unwilling) == before
    assert not states.upgrade_file(unwilling).exists()


def test_killed_in_the_middle_of_a_migration_it_begins_again_from_the_backup(settings, monkeypatch):
    def killed(settings):
        with contextlib.closing(sqlite3.connect(versions.database(settings))) as database:
            database.execute("ALTER TABLE jobs ADD COLUMN executor_backend TEXT")
            database.commit()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(versions, "migrate", killed)
        changed_over(settings)
    with pytest.raises(ConflictError, match="An upgrade was cut short"):
        lifecycle.up(settings)
    assert examine(settings, "").unfinished == "migrate"

    schemas = []

    def start(self, progress):
        schemas.append(versions.schema_of(versions.database(settings)))
        raise ShopfloorError("There is no Ray.")

    monkeypatch.setattr(Packages, "start", start)
    result = changed_over(settings)

    assert schemas == [wanted(), BEFORE]
    assert result.problem.startswith("There is no Ray.")
    assert versions.schema_of(versions.database(settings)) == BEFORE


def test_killed_while_it_puts_back_it_puts_back(settings, monkeypatch):
    before = content(settings)

    def failing(settings):
        versions.database(settings).write_text("rubbish")
        raise ShopfloorError("It does not go.")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(versions, "migrate", failing)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(restoring, "put_back", killed)
        changed_over(settings)
    assert examine(settings, "").unfinished == "put back"

    assert changed_over(settings).problem.startswith("It does not go.")
    assert content(settings) == before


def test_of_two_upgrades_one_is_refused(settings):
    with (
        FileLock(settings.private_dir("locks") / "upgrade.lock"),
        pytest.raises(ConflictError, match="Another upgrade is at work"),
    ):
        changed_over(settings)
