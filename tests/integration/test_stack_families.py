"""Real processes: found again by marker, session and start time, and ended as whole families."""

import contextlib
import os
import socket
import subprocess
import sys
import uuid

import psutil
import pytest
from shopfloor.processes import alive, identify
from shopfloor.stack.families import (
    Family,
    end,
    holder_of,
    listening_ports,
    members,
    memory_bytes,
    port_is_free,
    spawn,
)

from tests.support.waiting import wait_until

VARIABLE = "SHOPFLOOR_TEST_MARKER"
SLEEPER = "import time; time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPER!r}]).wait()"
APART = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], start_new_session=True).wait()"


@pytest.fixture
def start(tmp_path):
    """Start Python code as a family of its own; whatever is left at the end is killed."""
    families = []

    def start(code: str) -> tuple[Family, subprocess.Popen]:
        marker = (VARIABLE, uuid.uuid4().hex)
        environment = {**os.environ, marker[0]: marker[1]}
        child = spawn([sys.executable, "-c", code], environment, tmp_path / "logs" / "out.log", tmp_path)
        families.append(Family(root=identify(child.pid), marker=marker))
        return families[-1], child

    yield start
    for family in families:
        for process in members(family):
            with contextlib.suppress(psutil.Error):
                process.kill()


def test_a_spawned_process_has_its_own_session_and_writes_to_its_log(start, tmp_path):
    family, child = start("print('hello')")

    assert child.wait(10) == 0
    assert (tmp_path / "logs" / "out.log").read_text() == "hello\n"
    assert family.root is not None
    assert not alive(family.root)


def test_a_process_leads_a_session_away_from_the_terminal(start):
    _, child = start(SLEEPER)

    assert os.getsid(child.pid) == child.pid != os.getsid(0)


def test_another_process_with_the_same_pid_is_not_ours(start):
    family, _ = start(SLEEPER)
    before = family.root.model_copy(update={"started": family.root.started - 100})

    assert alive(family.root)
    assert not alive(before)


def test_a_process_that_ended_but_was_not_waited_for_is_dead(start):
    family, child = start("")

    wait_until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)

    assert not alive(family.root)


def test_end_stops_the_whole_tree(start):
    family, _ = start(PARENT)
    wait_until(lambda: len(members(family)) == 2)

    assert end([family], grace_s=5) == 2

    assert members(family) == []


def test_end_finds_a_child_in_another_session_whose_parent_is_gone(start):
    family, child = start(APART)
    wait_until(lambda: len(members(family)) == 2)
    child.kill()
    child.wait(5)

    assert end([family], grace_s=5) == 1

    assert members(family) == []


def test_end_finds_a_process_whose_start_was_never_recorded(start):
    family, _ = start(SLEEPER)
    unrecorded = Family(root=None, marker=family.marker)

    assert end([unrecorded], grace_s=5) == 1

    assert not alive(family.root)


def test_end_kills_what_does_not_stop_when_asked(start, tmp_path):
    family, _ = start(STUBBORN)
    wait_until(lambda: (tmp_path / "logs" / "out.log").read_text())

    assert end([family], grace_s=0.3) == 1

    assert not alive(family.root)


def test_end_leaves_others_alone(start):
    family, _ = start(SLEEPER)
    other, _ = start(SLEEPER)

    end([family], grace_s=5)

    assert len(members(other)) == 1


def test_end_never_stops_its_own_process(monkeypatch):
    own = Family(root=identify(os.getpid()), marker=(VARIABLE, "nobody"))

    assert os.getpid() not in {process.pid for process in members(own)}


def test_end_of_nothing_is_nothing():
    assert end([Family(root=None, marker=(VARIABLE, uuid.uuid4().hex))], grace_s=1) == 0


def test_a_port_that_somebody_listens_on_is_not_free_and_its_holder_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        assert not port_is_free(port)
        assert str(os.getpid()) in holder_of(port)
        assert port in listening_ports([psutil.Process()])

    assert port_is_free(port)


def test_a_port_taken_on_every_interface_is_not_free_on_this_one():
    with socket.create_server(("0.0.0.0", 0)) as server:  # noqa: S104
        assert not port_is_free(server.getsockname()[1])


def test_memory_of_a_process_is_more_than_nothing():
    assert memory_bytes([psutil.Process()]) > 1024**2
