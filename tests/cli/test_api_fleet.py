"""`scheduler api --workers N`: several API processes on one address, restarted, and never left behind."""

from __future__ import annotations

import os
import signal
import socket

import httpx
import pytest
from fix_process import alive, free_ports, until

from scheduler.supervisor import HOST, free_port


@pytest.fixture
def apis(start, here):
    """Two API processes that are ready: the parent, their pids, their address, the first metrics port."""
    first, http = free_ports(2), f"{HOST}:{free_port()}"
    parent = start("api", "--workers", "2", **here | {"HTTP_ADDR": http, "METRICS_ADDR": f"{HOST}:{first}"})
    line = rf"ready api http={http} metrics={{port}} pid=(\d+)"
    pids = [int(parent.says(line.format(port=first + i))[1]) for i in range(2)]
    assert int(parent.says(r"ready fleet apis=2 pid=(\d+)")[1]) == parent.pid
    return parent, pids, http, first


def post(http: str) -> int:
    """The status of a task that is sent on a connection of its own; 0 if there was no answer."""
    try:
        return httpx.post(f"http://{http}/v1/tasks", json={"type": "noop"}).status_code
    except httpx.TransportError:
        return 0


def enqueued(port: int) -> float:
    text = httpx.get(f"http://{HOST}:{port}/metrics").text
    return sum(
        float(line.split()[1]) for line in text.splitlines() if line.startswith("tasks_enqueued_total")
    )


def test_all_of_them_get_requests_and_one_that_dies_is_replaced(apis):
    parent, pids, http, first = apis
    assert [post(http) for _ in range(40)] == [201] * 40
    shares = [enqueued(first + i) for i in range(2)]
    assert sum(shares) == 40
    assert min(shares) > 0
    os.kill(pids[0], signal.SIGKILL)
    until(lambda: len(parent.out) == 4)
    until(lambda: enqueued(first) == 0)  # the new one counts from nothing
    assert post(http) == 201
    parent.signal(signal.SIGTERM)
    assert parent.ends() == 0
    assert post(http) == 0
    assert not any(map(alive, pids))


def test_none_outlives_its_parent(apis):
    parent, pids, _, _ = apis
    parent.signal(signal.SIGKILL)
    until(lambda: not any(map(alive, pids)), within_s=10)


@pytest.mark.parametrize(
    "words", [["api"], pytest.param(["api", "--workers", "2"], marks=[pytest.mark.slow])]
)
def test_nobody_comes_in_beside_them(apis, start, here, words: list[str]):
    """Sockets that share an address would take each other's connections without a word."""
    _, _, http, _ = apis
    other = start(*words, **here | {"HTTP_ADDR": http, "METRICS_ADDR": f"{HOST}:0"})
    assert other.ends() == 2
    assert other.err == [
        f"scheduler: the HTTP address {http} is taken; set HTTP_ADDR to another one (port 0: any)"
    ]


@pytest.mark.slow
def test_a_port_of_their_choice_is_the_same_for_all(start, here):
    parent = start("api", "--workers", "2", **here | {"HTTP_ADDR": f"{HOST}:0", "METRICS_ADDR": f"{HOST}:0"})
    parent.says(r"ready fleet apis=2 pid=\d+")
    places = {line.split()[2] for line in parent.out if line.startswith("ready api")}
    assert len(places) == 1
    host, port = places.pop().removeprefix("http=").split(":")
    with socket.create_connection((host, int(port))):
        pass
