"""A run is known to go on, or not, by the process that records it."""

from types import SimpleNamespace

import psutil
import pytest
from shopfloor import processes
from shopfloor.errors import NotFoundError
from shopfloor.runs import index, owner


def run(process):
    return SimpleNamespace(data=SimpleNamespace(tags={index.PROCESS: process}), info=SimpleNamespace(run_id="7"))


def test_a_clock_that_is_set_ends_no_run(monkeypatch):
    name = owner.this_process()

    monkeypatch.setattr(psutil, "boot_time", lambda: 0.0)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: 1.0)

    assert owner._process_lives(name)
    assert owner.find_process(run(name)).pid == processes.identify().pid


def test_a_machine_that_was_started_anew_has_ended_its_runs_and_of_another_one_nobody_can_tell():
    host, pid, boot, ticks = owner.this_process().split()
    before = f"{host} {pid} another-boot/1 {ticks}"
    elsewhere = f"other {pid} another-boot/1 {ticks}"
    container = f"{host} {pid} {boot.partition('/')[0]}/1 {ticks}"

    assert not owner._process_lives(before)
    assert owner.find_process(run(before)) is None
    assert not owner._process_lives("written by an older version")
    for name in (elsewhere, container):
        assert owner._process_lives(name)
        with pytest.raises(NotFoundError, match="belongs to a process on"):
            owner.find_process(run(name))
