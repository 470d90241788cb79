"""Who a process is, recorded and known again."""

import os
import subprocess
import sys
import time

import psutil
import pytest
from shopfloor import processes
from shopfloor.processes import ProcessId, age_s, alive, find, identify, own_processes


def test_a_process_is_found_again_from_its_text():
    here = identify()

    again = ProcessId.parse(str(here))

    assert again == here
    assert find(again).pid == os.getpid()


@pytest.mark.parametrize("text", ["", "host 12 1.5", "1 2", "x boot 3", "1 boot x", "1 boot 3 4"])
def test_another_text_names_no_process(text):
    assert ProcessId.parse(text) is None


def test_a_clock_that_is_set_by_an_hour_changes_neither_who_a_process_is_nor_its_age(monkeypatch):
    before, age = identify(), age_s(identify())
    now, boot = time.time(), psutil.boot_time()

    monkeypatch.setattr(time, "time", lambda: now + 3600)
    monkeypatch.setattr(psutil, "boot_time", lambda: boot + 3600)

    assert alive(before)
    assert identify() == before
    assert age_s(before) - age < 60


def test_the_same_pid_and_ticks_of_another_boot_are_another_process():
    earlier = identify().model_copy(update={"boot": "an earlier one"})

    assert not alive(earlier)
    assert not earlier.is_here


def test_the_same_pid_that_began_at_another_time_is_another_process():
    assert not alive(identify().model_copy(update={"started": 1}))


def test_a_name_with_spaces_and_parentheses_hides_no_start():
    rename = "import ctypes; ctypes.CDLL(None).prctl(15, b') R 1 (', 0, 0, 0)"
    script = f"{rename}; print(1, flush=True); import time; time.sleep(9)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        child.stdout.readline()

        assert alive(identify(child.pid))
        assert age_s(identify(child.pid)) < 60
        child.kill()


def test_a_process_that_is_gone_has_no_identity():
    with pytest.raises(psutil.NoSuchProcess):
        identify(2**22 + 1)


def test_a_walk_over_all_processes_passes_by_those_that_are_gone(monkeypatch):
    gone = psutil.Process()
    monkeypatch.setattr(gone, "uids", lambda: (_ for _ in ()).throw(psutil.NoSuchProcess(1)))
    monkeypatch.setattr(processes.psutil, "process_iter", lambda: iter([gone, psutil.Process()]))

    assert [process.pid for process in own_processes()] == [os.getpid()]
