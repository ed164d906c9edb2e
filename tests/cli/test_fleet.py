"""`scheduler worker --processes N`: several workers under one parent, restarted, and never left behind."""

from __future__ import annotations

import errno
import os
import signal
import socket
from pathlib import Path

import httpx
import psycopg
import pytest
from fix_process import alive, environment, free_ports, until

from scheduler import config
from scheduler.child import Child
from scheduler.fleet import Fleet
from scheduler.supervisor import HOST


def worker_line(port: int) -> str:
    return rf"ready worker metrics={port} slots=12 pid=(\d+)"


@pytest.fixture
def fleet(start, here):
    """Three workers that are ready, with ports in a row: the parent, the pids, the first port."""
    first = free_ports(3)
    parent = start("worker", "--processes", "3", **here | {"METRICS_ADDR": f"{HOST}:{first}"})
    pids = [int(parent.says(worker_line(first + i))[1]) for i in range(3)]
    assert int(parent.says(r"ready fleet workers=3 pid=(\d+)")[1]) == parent.pid
    return parent, pids, first


def descriptors() -> int:
    """How many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def served(port: int) -> bool:
    try:
        return httpx.get(f"http://{HOST}:{port}/metrics").is_success
    except httpx.TransportError:
        return False


def test_each_worker_has_a_port_and_one_that_dies_is_replaced(here, fleet):
    parent, pids, first = fleet
    assert all(served(first + i) for i in range(3))
    os.kill(pids[1], signal.SIGKILL)
    until(lambda: len(parent.out) == 5)
    again = int(parent.says(worker_line(first + 1).replace(r"(\d+)", rf"((?!{pids[1]}$)\d+)"))[1])
    assert served(first + 1)
    assert [alive(pid) for pid in (*pids, again)] == [True, False, True, True]
    assert '"worker ended; starting it again"' in parent.err[-1]
    parent.signal(signal.SIGTERM)
    assert parent.ends() == 0
    assert not any(map(alive, (*pids, again)))
    with psycopg.connect(here["POSTGRES_URL"]) as connection:
        assert connection.execute("SELECT pid FROM workers").fetchall() == [
            (pids[1],)
        ]  # the others signed off


def test_no_worker_outlives_its_parent(fleet):
    parent, pids, _ = fleet
    parent.signal(signal.SIGKILL)
    until(lambda: not any(map(alive, pids)), within_s=10)


def test_the_second_signal_ends_a_fleet_at_once(here, fleet):
    """Its workers wait for the lock that keeps them from signing off; nobody waits for them."""
    parent, pids, _ = fleet
    with psycopg.connect(here["POSTGRES_URL"]) as connection:
        connection.execute("LOCK TABLE workers IN ACCESS EXCLUSIVE MODE")
        parent.signal(signal.SIGTERM)
        until(lambda: sum('"stopped"' in line or '"stopping"' in line for line in parent.err) >= 3)
        parent.signal(signal.SIGTERM)
        parent.ends(within_s=3)
        assert not any(map(alive, pids))


def test_a_fleet_of_which_one_cannot_start_does_not_start(start, here):
    first = free_ports(3)
    with socket.create_server((HOST, first + 2)):
        parent = start("worker", "--processes", "3", **here | {"METRICS_ADDR": f"{HOST}:{first}"})
        assert parent.ends() == 2
    said = [line for line in parent.err if line.startswith("scheduler: ")]
    assert len(said) == 1
    assert f"{first + 2} is taken" in said[0]
    pids = [int(line.rpartition("=")[2]) for line in parent.out]
    assert not any(map(alive, pids))


def test_a_child_that_has_ended_leaves_nothing_open():
    """A worker that keeps dying is started again for days: one descriptor each would end that."""
    before = descriptors()
    child = Child(["worker"], env=environment(WORKER_POOL="none"), log=Path(os.devnull))
    assert child.wait(30) == 2
    until(lambda: descriptors() == before)


def test_a_keeper_that_has_no_memory_for_a_new_process_tries_again(here, monkeypatch):
    """It would end, and the fleet would be one process short for good."""
    settings, _ = config.load(here)
    fleet = Fleet(settings, 1, ["worker"], here)
    tries = []

    def no_memory(i: int) -> Child:
        tries.append(i)
        if len(tries) > 2:
            fleet._signals = 1
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    ended = Child(["--help"], env=dict(os.environ))
    assert ended.wait(30) == 0
    fleet._children.append(ended)
    monkeypatch.setattr(fleet, "_start", no_memory)
    fleet._keep(0)
    assert len(tries) == 3
