"""`scheduler up`: the whole system on one machine, from nothing, and nothing left of it afterwards."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from fix_process import Process, alive, environment, until

from bench.vitals import below
from scheduler.errors import StartError
from scheduler.stack import Stack
from scheduler.supervisor import HOST, free_port


@pytest.fixture
def crowded() -> Iterator[int]:
    """Somebody else has the usual ports of both servers, and the port that is given."""
    with ExitStack() as stack:
        for port in (5432, 6379):
            with suppress(OSError):  # it is taken already
                stack.enter_context(socket.create_server((HOST, port)))
        yield stack.enter_context(socket.create_server((HOST, 0))).getsockname()[1]


def processes(data: Path) -> set[int]:
    """Every process whose command line names a path in the directory."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{data}/".encode() in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
    return found


def address(up: Process, part: str) -> str:
    """Where the table of `up` says that a part is."""
    return up.says(rf"{part} +(http://\S+)")[1]


def origin(up: Process) -> str:
    """Where the API is, without the path of what is shown there."""
    return "{0.scheme}://{0.netloc}".format(urlsplit(address(up, "API")))


def answers(url: str) -> bool:
    """Whether somebody serves there."""
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def finished(api: str, task_id: str) -> bool:
    return httpx.get(f"{api}/v1/tasks/{task_id}").json()["status"] == "succeeded"


def test_the_whole_system_comes_up_on_other_ports_and_keeps_its_data(start, scheduler, server_dir, crowded):
    data = server_dir / "data"
    env = {"HTTP_ADDR": f"{HOST}:{crowded}", "METRICS_ADDR": f"{HOST}:{crowded}", "REDIS_PASS": "sesame"}
    env |= {"SHUTDOWN_GRACE_MS": "200"}
    up = start("up", "--data-dir", str(data), "--workers", "2", **env)

    # It says which ports it could not have, and where everything is.
    for taken, part in ((5432, "Postgres"), (6379, "Redis"), (crowded, r"api \(HTTP_ADDR\)")):
        other = up.says(rf"port {taken} is taken; {part} listens on (\d+)")[1]
        assert int(other) != taken
    up.says(r"Ctrl-C stops everything\.")
    api = origin(up)
    shown = [line for line in up.out if not line.startswith("export ")]
    assert not [line for line in shown if "app:app" in line or "sesame" in line]
    for part in ("API metrics", "worker 1 metrics", "worker 2 metrics"):
        assert "queue_depth" in httpx.get(address(up, part)).text

    # It works.
    answer = httpx.post(f"{api}/v1/tasks", json={"type": "noop"})
    assert answer.status_code == 201, answer.text
    task = answer.json()["id"]
    until(lambda: finished(api, task))

    # The two lines that it prints for other terminals are what another command needs there.
    said = (re.fullmatch(r"export (\w+)='([^']+)' .*", line) for line in up.out)
    exports = {found[1]: found[2] for found in said if found}
    assert exports.keys() == {"POSTGRES_URL", "REDIS_ADDR"}
    assert "succeeded" in scheduler("task", "show", task, **exports).stdout

    # Ctrl-C stops everything, the servers last: what runs can be given back.
    sleeper = {"type": "sleeper", "payload": {"sleep_ms": 60_000}}
    sleepers = [httpx.post(f"{api}/v1/tasks", json=sleeper).json()["id"] for _ in range(4)]
    until(lambda: {httpx.get(f"{api}/v1/tasks/{id_}").json()["status"] for id_ in sleepers} == {"running"})
    started = below(up.pid)
    assert len(started) > 5  # two servers with their watchers, the API, two workers
    up.signal(signal.SIGINT)
    assert up.ends() == 0
    assert up.out[-1] == "stopping"
    assert up.err == []
    until(lambda: not any(map(alive, started)), within_s=5)
    assert processes(data) == set()

    # The second start finds what the first one left, and dies so that it cannot stop anything itself.
    up = start("up", "--data-dir", str(data), "--workers", "1", **env)
    up.says(r"Ctrl-C stops everything\.")
    assert finished(origin(up), task)
    runs = [httpx.get(f"{origin(up)}/v1/tasks/{id_}/runs").json()["items"] for id_ in sleepers]
    assert [[run["outcome"] for run in of_task] for of_task in runs] == [["released"]] * 4
    started = below(up.pid)
    up.signal(signal.SIGKILL)
    until(lambda: not any(map(alive, started)), within_s=15)
    assert processes(data) == set()


@pytest.mark.slow
def test_every_address_that_is_shown_answers(start, here, tmp_path):
    """On servers of one's own nothing but the processes is started."""
    up = start("up", "--data-dir", str(tmp_path), "--workers", "1", **here)
    up.says(r"Ctrl-C stops everything\.")
    urls = re.findall(r"http://\S+", "\n".join(up.out))
    assert len(urls) == 3
    assert [httpx.get(url).status_code for url in urls] == [200, 200, 200]
    assert {path.name for path in tmp_path.iterdir()} == {"logs"}
    assert not [line for line in up.out if line.startswith("export ")]
    up.signal(signal.SIGTERM)
    assert up.ends() == 0


def test_a_worker_that_dies_is_replaced_and_without_the_api_the_whole_ends(start, here, tmp_path):
    env = here | {"METRICS_ADDR": f"{HOST}:{free_port()}"}
    up = start("up", "--data-dir", str(tmp_path), "--workers", "1", **env)
    up.says(r"Ctrl-C stops everything\.")

    def pid_of(command: str) -> int:
        words = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in below(up.pid)}
        [pid] = [pid for pid, line in words.items() if f"\0{command}\0".encode() in line]
        return pid

    worker = pid_of("worker")
    os.kill(worker, signal.SIGKILL)
    up.says(r"a worker ended with code -9; starting it again")
    until(lambda: answers(address(up, "worker 1 metrics")))
    assert pid_of("worker") != worker
    started = below(up.pid)
    os.kill(pid_of("api"), signal.SIGKILL)
    assert up.ends() == 2
    assert up.err == [f"scheduler: `scheduler api` ended with code -9; see {tmp_path / 'logs'}"]
    assert not any(map(alive, started))


def test_a_worker_that_does_not_start_again_is_tried_again_and_takes_nothing_with_it(
    here, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    app = tmp_path / "shop.py"
    app.write_text("")
    said: list[str] = []
    with Stack(environment(**here), tmp_path / "data", said.append) as stack:
        [(first, _)] = stack.start_workers(1, args=["--app", "shop"])
        app.write_text("1 / 0  # as a deploy may leave it")
        first.kill()
        stack.revive_workers()
        stack.check(workers=False)
        with pytest.raises(StartError, match="`scheduler worker` ended with code 2"):
            stack.check()
        assert "it did not start; trying again in 0.1 s: " in said[1]
        app.write_text("")
        until(lambda: stack.revive_workers() or stack.children[0].returncode is None)
        stack.check()
    assert len(said) == 3
    assert stack.children == []


def test_of_workers_that_are_started_together_all_serve_or_none_is_left(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.py").write_text(
        "import os, time\nif os.environ['METRICS_ADDR'].endswith('1'):\n    time.sleep(60)\n1 / 0\n"
    )
    port = next(port for port in iter(free_port, None) if port % 10 == 9)  # the next one ends in 0, then 1
    env = environment(**here | {"METRICS_ADDR": f"{HOST}:{port}"})
    before = set(below(os.getpid()))
    with Stack(env, tmp_path / "data", lambda _: None) as stack:
        with pytest.raises(StartError, match="`scheduler worker` ended with exit code 2"):
            stack.start_workers(2, args=["--app", "shop"])
        assert stack.children == []
        assert set(below(os.getpid())) <= before


def test_without_its_servers_the_whole_ends(postgres_url, tmp_path):
    with Stack(environment(POSTGRES_URL=postgres_url), tmp_path, print) as stack:
        stack.start_servers()
        stack.check()
        stack.redis.kill()
        with pytest.raises(StartError, match=f"Redis has ended; see {stack.redis.log_path}"):
            stack.check()


def test_a_part_that_does_not_start_is_named_and_the_others_are_stopped(start, here, tmp_path):
    env = here | {"REDIS_ADDR": f"{HOST}:1"}
    up = start("up", "--data-dir", str(tmp_path), "--workers", "1", **env)
    assert up.ends() == 2
    [line] = up.err
    assert line.startswith("scheduler: `scheduler worker` ended with exit code 2: ")
    assert "REDIS_ADDR" in line
    assert below(up.pid) == []
