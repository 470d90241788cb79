"""What `shopfloor doctor` says of a project that is well, and of one where something is broken."""

import contextlib
import os
import re
import shutil
import sqlite3
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from shopfloor.patches.register import PATCHES
from shopfloor.processes import ProcessId, boot_id
from shopfloor.settings import load_settings
from shopfloor.stack import doctor, installation, versions
from shopfloor.stack import state as states

from tests.support.project import git

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one use case, a lock of one package, a DVC remote and a clean git repository."""
    for name in [name for name in os.environ if name.startswith(("SHOPFLOOR_", "AWS_")) or "proxy" in name.lower()]:
        monkeypatch.delenv(name)
    root = tmp_path / "project"
    monkeypatch.setenv("SHOPFLOOR_PROJECT_ROOT", str(root))
    shutil.copytree(ROOT / "platform" / "profiles", root / "platform" / "profiles")
    shutil.copytree(ROOT / "pipelines" / "flight_delays", root / "pipelines" / "flight_delays")
    (root / "requirements").mkdir()
    (root / "requirements" / "runtime.txt").write_text(
        f"psutil=={metadata.version('psutil')} \\\n    --hash=sha256:0\n"
    )
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text("[core]\n    remote = local\n['remote \"local\"']\n    url = ../store\n")
    (root / "store").mkdir()
    (root / "dvc.lock").write_text("")
    (root / ".gitignore").write_text(".shopfloor/\nstore/\n")
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        git(root, *command)
    return root


def found(subject: str, verdict: str, profile: str | None = None) -> doctor.Finding:
    """Return the finding of this subject and verdict; a failing one must say what to do."""
    findings = doctor.examine(profile)
    matching = [finding for finding in findings if (finding.subject, finding.verdict) == (subject, verdict)]
    assert matching, findings
    assert all(finding.remedy for finding in findings if finding.verdict == "fail")
    return matching[0]


def test_a_good_project_has_no_failing_line(project):
    findings = doctor.examine()

    assert not [finding for finding in findings if finding.verdict == "fail"]
    assert {finding.subject for finding in findings} >= {
        *("python", "packages", "memory", "disk", "git", "dvc", "configuration", "use cases", "stack"),
    }


def test_a_package_that_is_not_as_locked_is_named_with_both_versions(project):
    lock = project / "requirements" / "runtime.txt"
    lock.write_text("pydantic==0.0.1 \\\n    --hash=sha256:0\nno-such-package==1.2 ; python_version > '3'\n")

    assert "no-such-package 1.2" in found("packages", "fail").message
    assert any(
        f"pydantic is {metadata.version('pydantic')}, not 0.0.1" in finding.message for finding in doctor.examine()
    )


def test_a_missing_lock_is_a_failing_line(project):
    (project / "requirements" / "runtime.txt").unlink()

    assert "runtime.txt" in found("packages", "fail").message


def test_a_broken_use_case_is_named_with_file_line_and_key(project):
    file = project / "pipelines" / "flight_delays" / "use_case.yaml"
    file.write_text(file.read_text().replace("service: flight_delays", "servise: flight_delays"))

    assert "use_case.yaml:9: features.servise: unknown key" in found("use cases", "fail").message


def test_a_use_case_that_lacks_a_function_or_bounds_no_metric_is_named(project):
    folder = project / "pipelines" / "flight_delays"
    code = (folder / "model.py").read_text()
    (folder / "model.py").write_text(code.replace("def save(", "def store("))
    (folder / "expectations.py").unlink()
    assert "lacks model.py: save; expectations.py: there is none" in found("use cases", "fail").message

    text = (folder / "use_case.yaml").read_text()
    (folder / "use_case.yaml").write_text(text.replace("log_loss: {max: 0.45}", "logloss: {max: 0.45}"))
    broken = found("use cases", "fail")
    place = r"pipelines/flight_delays/use_case\.yaml:\d+: gates\.metrics\.logloss"
    assert re.fullmatch(f"{place}: A gate bounds 'logloss', which is no metric\\.", broken.message)
    assert "Known metrics: " in broken.remedy


def test_a_broken_profile_is_one_failing_line(project):
    (project / "platform" / "profiles" / "embedded.toml").write_text("tracking_uri = [")

    assert "embedded.toml" in found("configuration", "fail").message


def test_an_unknown_profile_is_one_failing_line(project):
    assert "'moon'" in found("configuration", "fail", "moon").message


def test_an_address_from_the_environment_that_hides_the_stack_is_pointed_out(project, monkeypatch):
    monkeypatch.setenv("SHOPFLOOR_TRACKING_URI", "http://elsewhere:5000")

    assert "http://elsewhere:5000" in found("configuration", "warn").message


def test_a_proxy_between_us_and_services_elsewhere_is_pointed_out_and_never_for_those_here(project, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    assert "a proxy gets" not in " ".join(finding.message for finding in doctor.examine())

    monkeypatch.setenv("SHOPFLOOR_TRACKING_URI", "http://mlflow.example:5000")
    messages = [finding.message for finding in doctor.examine()]

    assert "a proxy gets the requests for mlflow.example" in messages


def test_a_state_directory_that_others_can_enter_is_a_failing_line(project):
    state = load_settings().private_state_dir()
    assert "closed" in found("privacy", "ok").message

    state.chmod(0o750)

    assert "chmod 700" in found("privacy", "fail").remedy


def test_dvcs_directory_of_all_accounts_is_pointed_out_until_the_clone_has_its_own(project):
    assert "all accounts" in found("privacy", "warn").message

    with (project / ".dvc" / "config.local").open("w") as file:
        file.write("[core]\n    site_cache_dir = /elsewhere\n")

    assert "all accounts" not in " ".join(finding.message for finding in doctor.examine())


def test_a_component_that_moved_under_a_patch_is_a_failing_line_with_the_patches_name(project, monkeypatch):
    same = replace(PATCHES[0], version="0.0.1")
    moved = replace(PATCHES[1], version="0.0.1", relies_on={"ray/serve/_private/constants.py:NO_SUCH_NAME": "0" * 12})
    monkeypatch.setattr(doctor, "PATCHES", (same,))
    assert f"ray is {metadata.version('ray')}" in found("patches", "warn").message

    monkeypatch.setattr(doctor, "PATCHES", (same, moved))

    assert moved.name in found("patches", "fail").message


def test_a_directory_without_git_is_a_failing_line(project):
    shutil.rmtree(project / ".git")

    assert "git clone" in found("git", "fail").remedy


def test_a_clone_of_another_user_says_how_git_is_told_to_trust_it(project, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "true")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    finding = found("git", "fail")
    assert finding.message == f"git does not trust {project}: it belongs to another user."
    assert finding.remedy.endswith(f"git config --global --add safe.directory {project}")


def test_uncommitted_changes_are_counted(project):
    (project / "new.txt").write_text("")

    assert "1 uncommitted change" in found("git", "warn").message


def test_a_repository_without_a_default_remote_for_data_is_a_failing_line(project):
    (project / ".dvc" / "config").write_text("[core]\n    analytics = false\n")

    assert "dvc remote add" in found("dvc", "fail").remedy


def test_an_empty_remote_for_data_is_pointed_out(project):
    (project / "store").rmdir()

    assert "../store" in found("dvc", "warn").message


def test_little_room_on_the_disk_is_a_failing_line(project, monkeypatch):
    monkeypatch.setattr(doctor, "DISK_MINIMUM_BYTES", 2**60)
    monkeypatch.setattr(doctor, "DISK_BYTES", 2**60)

    assert "GiB free" in found("disk", "fail").message


def test_an_object_store_that_does_not_answer_is_a_failing_line(project, monkeypatch):
    monkeypatch.setenv("SHOPFLOOR_S3_ENDPOINT_URL", "http://127.0.0.1:9")

    assert "http://127.0.0.1:9" in found("object store", "fail").message


def test_services_of_another_profile_that_do_not_answer_are_failing_lines(project):
    (project / "platform" / "profiles" / "office.toml").write_text(
        'tracking_uri = "http://127.0.0.1:9"\nray_dashboard_url = "http://127.0.0.1:9"\n'
    )

    assert "office.toml" in found("mlflow", "fail", "office").remedy
    assert "office.toml" in found("ray", "fail", "office").remedy


def test_a_service_that_died_is_a_failing_line(project):
    settings = load_settings()
    gone = ProcessId(pid=2**22 + 1, boot=boot_id(), started=1)
    dead = states.Service(name="mlflow", process=gone, log=Path("mlflow.log"))
    address = {"tracking_uri": "http://127.0.0.1:9"}
    state = states.StackState(
        boot_id=boot_id(),
        addresses=address,
        services={"mlflow": dead},
        ray_dir=project,
        ray_token_file=project / "ray-token",
    )
    states.write(settings, state)

    assert "`shopfloor up`" in found("mlflow", "fail").remedy


def test_a_database_of_another_mlflow_is_a_failing_line_with_both_schemas(project):
    file = versions.database(load_settings())
    file.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE alembic_version AS SELECT 'of-tomorrow' AS version_num")

    message = found("schema", "fail").message

    assert "has schema of-tomorrow" in message
    assert message.endswith(f"knows none after {versions.release().schemas['mlflow'][0]}")


def test_pins_for_another_machine_are_left_out(tmp_path):
    lock = tmp_path / "lock.txt"
    lock.write_text(
        "a==1 ; sys_platform == 'never' \\\n    --hash=sha256:0\nB_c==2 ; python_version >= '3' \\\n# d==4\n"
    )

    assert installation.read_lock(lock) == {"b-c": "2"}


def test_versions_are_compared_as_versions(tmp_path):
    assert installation.find_drift({"a": "1.0", "b": "2.0.0"}, {"a": "1.0.0", "b": "2.0.0"}) == []


def test_a_package_whose_requirement_is_not_met_is_a_conflict():
    installed = {**installation.installed_versions(), "click": "0.1", "pydantic-core": "0.1"}

    assert "pydantic" in {conflict.name for conflict in installation.find_conflicts(installed)}


def test_this_environment_is_without_conflicts():
    assert installation.find_conflicts(installation.installed_versions()) == []
