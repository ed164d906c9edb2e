r"""The product's own processes, started as a user starts them, watched, and never left behind.

    worker = start("worker", **here, WORKER_POOL="2")      # on the test's servers
    ready = worker.says(r"ready worker metrics=(\d+) .*")
    worker.signal(signal.SIGTERM)
    assert worker.ends() == 0

`scheduler(...)` runs a command to its end. Both see the settings that the test gives and no other.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

import psycopg
import pytest
from fix_servers import WHEEL, Servers

from bench.vitals import below
from scheduler import config
from scheduler.supervisor import free_port

COMMAND = [sys.executable, "-m", "scheduler"]
PATIENCE_S = 30.0


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell lets its jobs in the background ignore SIGINT, and so would all that the tests start."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def environment(**variables: str) -> dict[str, str]:
    """Our environment with these settings and no other."""
    ours = {declared.name for declared in config.VARS.values()}
    return {k: v for k, v in os.environ.items() if k not in ours} | variables


def free_ports(n: int) -> int:
    """The first of `n` ports in a row that are free."""
    while True:
        first = free_port()
        if all(free_port(first + i) == first + i for i in range(n)):
            return first


def alive(pid: int) -> bool:
    """Whether a process runs: one that is dead and not yet buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(holds: Callable[[], object], within_s: float = PATIENCE_S) -> None:
    """Look again and again until it holds; fail if it does not within the time."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.01)


class Process:
    """One `scheduler` command while it runs. Its output is read as it comes, so it never has to wait."""

    def __init__(self, args: tuple[str, ...], env: Mapping[str, str], cwd: Path | None = None) -> None:
        self._process = subprocess.Popen(
            [*COMMAND, *args],
            env=env,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self.out: list[str] = []
        self.err: list[str] = []
        self._news = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self._process.stdout, self.out), (self._process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def says(self, pattern: str, *, within_s: float = PATIENCE_S) -> re.Match[str]:
        """The first line of its standard output that matches as a whole, as soon as there is one."""
        return self._first(self.out, pattern, within_s)

    def logs(self, pattern: str, *, within_s: float = PATIENCE_S) -> re.Match[str]:
        """The first line of its standard error that matches as a whole, as soon as there is one."""
        return self._first(self.err, pattern, within_s)

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        self._process.send_signal(number)

    def ends(self, *, within_s: float = PATIENCE_S) -> int:
        """Wait for the end; the exit code. All output has been read then."""
        code = self._process.wait(within_s)
        for reader in self._readers:
            reader.join(within_s)
        return code

    def running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End it and all that it started."""
        started = below(self.pid)
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        for pid in started:  # those with a lifeline are on their way; a test must not wait for them
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for reader in self._readers:
            reader.join(5)

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        with stream:
            for line in stream:
                with self._news:
                    lines.append(line.rstrip("\n"))
                    self._news.notify_all()

    def _first(self, lines: list[str], pattern: str, within_s: float) -> re.Match[str]:
        deadline = time.monotonic() + within_s
        seen = 0
        while True:
            gone = not any(reader.is_alive() for reader in self._readers)  # then these are all lines
            with self._news:
                if seen == len(lines):
                    self._news.wait(0.1)
                new = lines[seen:]
            seen += len(new)
            for line in new:
                if found := re.fullmatch(pattern, line):
                    return found
            assert not gone, (pattern, self.out, self.err)
            assert time.monotonic() < deadline, (pattern, self.out, self.err)


Start = Callable[..., Process]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a command with the settings that are given; all are killed after the test."""
    started: list[Process] = []

    def start(*args: str, cwd: Path | None = None, **variables: str) -> Process:
        started.append(Process(args, environment(**variables), cwd))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def scheduler() -> Run:
    """Run a command to its end with the settings that are given."""

    def run(*args: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *args],
            env=environment(**variables),
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
            stdin=subprocess.DEVNULL,
        )

    return run


def variables(postgres_url: str, redis_url: str) -> dict[str, str]:
    """The variables that name these servers, and addresses that nobody else has."""
    anywhere = dict.fromkeys(("METRICS_ADDR", "HTTP_ADDR"), "127.0.0.1:0")
    return {"POSTGRES_URL": postgres_url, "REDIS_ADDR": redis_url} | anywhere


@pytest.fixture
def here(postgres_url: str, redis_url: str) -> dict[str, str]:
    """Variables for the test's own database and Redis."""
    return variables(postgres_url, redis_url)


@pytest.fixture(scope="module")
def idle(servers: Servers) -> Iterator[dict[str, str]]:
    """Variables for a database and a Redis that a module shares, because no test gets to use them."""
    with servers.database() as url:
        yield variables(url, servers.redis().url)


@pytest.fixture
def make_empty_database(servers: Servers) -> Iterator[Callable[..., str]]:
    """Make databases without our schema on the server of a kind; all are dropped after the test."""
    made: list[tuple[str, str]] = []

    def make(kind: str = WHEEL) -> str:
        server = servers.postgres(kind)
        name = f"bare_{len(made)}"
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        made.append((server.admin_url, name))
        return server.url.replace("/app?", f"/{name}?")

    yield make
    for url, name in made:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
