"""However it ends, nothing of a system outlives it: no process, port or connection, and no lease for good.

The servers are given, so that what is left in them can be seen. Whoever owns the system is killed or
interrupted, or fails; so is `bench run`, which has servers of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from jupyter_client.manager import KernelManager
from marked import MARK, command, marked, needs_proc

from bench import index
from bench.audit import audit
from bench.system import system
from bench.vitals import below
from bench.watch import until

ROOT = Path(__file__).parents[2]
OWN = {
    "HTTP_ADDR": "127.0.0.1:0",
    "METRICS_ADDR": "127.0.0.1:0",
    "LOG_LEVEL": "warning",
    "WORKER_POOL": "4",
    "VIS_TIMEOUT_MS": "1500",
    "REAPER_SCAN_INTERVAL_MS": "200",
}
OWNER = f"""
import os
from bench.burst import drain, metrics, send
from bench.system import system
from bench.vitals import below
from bench.workload import Mix, deck

def tell(what, n, of):
    if what == os.environ.get("FAIL_WHEN"):
        raise RuntimeError("the load failed")

with system({OWN!r}, say=lambda _: None) as me:
    me.start_fleet(2)
    before = metrics(me)
    send(me, deck(Mix(sleep=100, sleep_ms=400), 48), tell)
    drain(me, 48, before, tell)
"""
"""A notebook's cell, or a program: a fleet works off sleepers."""

SCENARIO = """
[mix]
sleep = 100
sleep_ms = 800
[load]
kind = "bulk"
tasks = 60
[fleet]
processes = 2
slots = 4
"""

pytestmark = [needs_proc, pytest.mark.slow]


def ports(pids: set[int]) -> set[int]:
    """The TCP ports on which they listen."""
    sockets = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(str(descriptor.readlink()))
            except OSError:
                continue  # it has just been closed
    return {port for port, inode in listening() if f"socket:[{inode}]" in sockets}


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def listening() -> Iterator[tuple[int, str]]:
    """Every TCP port of this machine on which somebody listens, and the socket."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A":
            yield int(words[1].rpartition(":")[2], 16), words[9]


class Left:
    """What there is of a system on given servers."""

    def __init__(self, postgres_url: str, redis_url: str) -> None:
        self.postgres_url, self.redis_url = postgres_url, redis_url
        self._databases = self.databases()

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.postgres_url, application_name="the test") as connection:
            return connection.execute(sql).fetchall()

    def databases(self) -> set[str]:
        return {name for (name,) in self.rows("SELECT datname FROM pg_database")}

    def backends(self) -> list[str]:
        return [
            name
            for (name,) in self.rows(
                "SELECT application_name FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name <> 'the test'"
            )
        ]

    def clients(self) -> list[str]:
        with redis.Redis.from_url(self.redis_url, decode_responses=True) as client:
            names = [each["name"] for each in client.client_list()]
        return [name for name in names if name.startswith(("scheduler", "bench"))]

    def look(self) -> index.Index:
        with index.connected(self.redis_url) as client:
            return index.look(client, "sched1")

    def strays(self) -> list[str]:
        """Databases and keys that are no part of a system."""
        with redis.Redis.from_url(self.redis_url, decode_responses=True) as client:
            keys = [key for key in client.scan_iter() if not key.startswith("sched1:")]
        return [*keys, *(self.databases() - self._databases)]

    def ids(self) -> list[str]:
        return [id_ for (id_,) in self.rows("SELECT id::text FROM tasks")]

    def open(self) -> int:
        return self.rows("SELECT count(*) FROM tasks WHERE finished_at IS NULL")[0][0]


class Program:
    """The owner as a program of its own."""

    def __init__(self, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER], env=env, cwd=ROOT, stderr=subprocess.PIPE
        )
        self.pid = self.process.pid
        self.killed = False

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def close(self) -> str:
        """Wait for the end; what it said last."""
        _, said = self.process.communicate(timeout=30)
        return said.decode().strip().rpartition("\n")[2]


class Cell:
    """The owner as a cell of a notebook."""

    def __init__(self, env: dict[str, str]) -> None:
        self.manager = KernelManager()
        self.manager.start_kernel(env=env, cwd=str(ROOT))
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=30)
        self.asked = self.client.execute(OWNER)
        self.killed = False
        self.pid = self.manager.provisioner.pid

    def interrupt(self) -> None:
        self.manager.interrupt_kernel()

    def close(self) -> str:
        """Wait for the cell's end, and end the kernel; the error of the cell."""
        said = "" if self.killed else self._error()
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        return said

    def _error(self) -> str:
        while True:
            answer = self.client.get_shell_msg(timeout=30)
            if answer["parent_header"]["msg_id"] == self.asked:
                return str(answer["content"]["ename"])


@contextmanager
def owned(kind: type[Program | Cell], env: dict[str, str]) -> Iterator[Program | Cell]:
    owner = kind(env)
    try:
        yield owner
    finally:
        if Path(f"/proc/{owner.pid}").exists():
            os.kill(owner.pid, signal.SIGKILL)


def kill(owner: Program | Cell) -> None:
    owner.killed = True
    os.kill(owner.pid, signal.SIGKILL)


def interrupt(owner: Program | Cell) -> None:
    owner.interrupt()


def wait(_owner: Program | Cell) -> None:
    """It fails by itself."""


@pytest.mark.parametrize(
    ("kind", "end", "fail_when", "last_words"),
    [
        pytest.param(Program, kill, "", "", id="the owner is killed"),
        pytest.param(Program, interrupt, "", "KeyboardInterrupt", id="the owner is interrupted"),
        pytest.param(Program, wait, "accepted", "RuntimeError: the load failed", id="the load fails"),
        pytest.param(Cell, kill, "", "", id="the kernel is killed"),
        pytest.param(Cell, interrupt, "", "KeyboardInterrupt", id="a cell is interrupted"),
        pytest.param(Cell, wait, "ended", "RuntimeError", id="a cell fails"),
    ],
)
def test_nothing_is_left(
    postgres_url: str,
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Program | Cell],
    end: Callable[[Program | Cell], None],
    fail_when: str,
    last_words: str,
) -> None:
    mark, left = uuid.uuid4().hex, Left(postgres_url, redis_url)
    monkeypatch.setenv("POSTGRES_URL", postgres_url)
    monkeypatch.setenv("REDIS_ADDR", redis_url)
    env = dict(os.environ) | {MARK: mark, "FAIL_WHEN": fail_when, "TMPDIR": str(tmp_path)}
    with owned(kind, env) as owner:
        if end is not wait:
            until(lambda: bool(left.look().leased), "a task is leased", within_s=60)
            parts = marked(mark) - {owner.pid}
            assert len([pid for pid in parts if "-m scheduler" in command(pid)]) == 3
            held = ports(parts)
            assert len(held) >= 4  # the API and its metrics, and those of two workers
            assert left.backends()
            assert left.clients()
        else:
            held = set()
        end(owner)
        said = owner.close()
    assert said.endswith(last_words)

    until(lambda: not marked(mark), "every process has ended", within_s=30)
    assert not held & {port for port, _ in listening()}
    until(lambda: not left.backends() and not left.clients(), "both servers are left", within_s=10)
    assert not left.strays()
    if end is not kill:
        assert not list(tmp_path.iterdir())

    # What was leased to whoever is gone is reaped by whoever comes next, and everything ends as it must.
    with system(OWN, say=lambda _: None) as me:
        me.start_fleet(1)
        until(lambda: not left.open(), "every task has ended", within_s=60)
    assert not left.look().held
    verdict = audit(postgres_url, redis_url, left.ids())
    assert verdict.passed, verdict.lines()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_run(tmp_path: Path, number: signal.Signals) -> None:
    """Its servers are its own and end with it; what they held ends with them."""
    mark = uuid.uuid4().hex
    (tmp_path / "tiny.toml").write_text(SCENARIO)
    folders = tmp_path / "folders"
    folders.mkdir()
    env = dict(os.environ) | {MARK: mark, "PYTHONPATH": str(ROOT), "TMPDIR": str(folders)}
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", "run", "tiny.toml"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def parts() -> set[int]:
        return {*below(process.pid), *marked(mark)} - {process.pid}

    try:
        # Both servers, the API and its metrics, those of two workers. A server may hide its environment.
        until(lambda: len(ports(parts())) >= 6, "every part listens", within_s=60)
        started = parts()
        held = ports(started)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert "Traceback" not in said
    until(lambda: not any(map(alive, started | marked(mark))), "every process has ended", within_s=30)
    assert not held & {port for port, _ in listening()}
    assert not (tmp_path / "results").exists()
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert not list(folders.iterdir())
