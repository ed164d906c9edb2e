"""A system under test: servers, an API and a fleet of its own, on free ports, and nothing left of it.

The parts are the product's own commands, started as a user would start them. When the block ends, however it
ends, every process is stopped and the end is checked: a leak is an error, not a surprise for the next run.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol, TypeVar, cast
from urllib.parse import quote

import psycopg

from scheduler.child import Child
from scheduler.config import VARS, Settings, load
from scheduler.stack import Say, Stack

T = TypeVar("T")

OWN_SERVERS: Final = {"POSTGRES_URL": "", "REDIS_ADDR": ""}
"""Settings of a system that starts servers of its own, whatever the environment names."""

_KEPT: Final = frozenset({"POSTGRES_URL", "REDIS_ADDR", "REDIS_PASS"})


class Leak(RuntimeError):
    """Something of a system outlived it."""


class Scraped(Protocol):
    """A process whose metrics can be read."""

    @property
    def metrics(self) -> str:
        """Where they are."""


class Running(Protocol):
    """What an observer must know of a system that runs, however it was started; see `System`."""

    @property
    def host(self) -> str:
        """Where tasks are sent."""

    @property
    def fleet(self) -> Sequence[Scraped]:
        """The workers."""

    @property
    def endpoints(self) -> list[str]:
        """Every metrics endpoint."""

    @property
    def settings(self) -> Settings:
        """What the parts were started with."""

    @property
    def postgres_url(self) -> str:
        """The database."""

    @property
    def redis_url(self) -> str:
        """Redis."""

    def query(self, sql: str, params: Mapping[str, object] | None = None) -> list[tuple[object, ...]]:
        """One statement, all rows."""

    def now(self) -> datetime:
        """The time by Postgres' clock."""


@dataclass(frozen=True, slots=True)
class Member:
    """A worker process of the fleet and where its metrics are."""

    child: Child
    metrics: str

    @property
    def pid(self) -> int:
        """The process id."""
        return self.child.pid


@dataclass(slots=True)
class System:
    """A running system: where to send tasks, where the truth is, and the fleet.

    `pids` are all processes that were ever part of it, whether they still run or not.
    """

    stack: Stack
    host: str = ""
    api_metrics: str = ""
    fleet: list[Member] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)

    @property
    def settings(self) -> Settings:
        """What the parts were started with."""
        return load(self.stack.env)[0]

    @property
    def postgres_url(self) -> str:
        """The database, for the observer's own queries."""
        return self.stack.env["POSTGRES_URL"]

    @property
    def redis_url(self) -> str:
        """Redis, for the observer's own look."""
        return redis_url_of(self.settings)

    @property
    def endpoints(self) -> list[str]:
        """Every metrics endpoint: the API's and the fleet's."""
        return [self.api_metrics, *(member.metrics for member in self.fleet)]

    def start_api(self) -> None:
        """Start the API."""
        facts = self.stack.start_api()
        self.host = f"http://{facts['http']}"
        self.api_metrics = f"http://127.0.0.1:{facts['metrics']}/metrics"

    def start_fleet(
        self, workers: int, *, args: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> None:
        """Add `workers` processes, with words and settings of their own; returns when all are ready."""
        self.fleet += [
            Member(child, f"http://127.0.0.1:{facts['metrics']}/metrics")
            for child, facts in self.stack.start_workers(workers, args=args, env=env)
        ]

    def stop_fleet(self) -> None:
        """Stop all workers in good order."""
        self.note()
        self.shrink(0)

    def shrink(self, workers: int) -> None:
        """Stop workers in good order until so many are left, the oldest first."""
        while len(self.fleet) > workers:
            self.stack.end(self.fleet.pop(0).child)

    @contextmanager
    def with_fleet(self, workers: int, *, env: Mapping[str, str] | None = None) -> Iterator[list[Member]]:
        """Workers for the time of the block; a system has one fleet at a time."""
        try:
            self.start_fleet(workers, env=env)
            yield self.fleet
        finally:
            self.stop_fleet()

    def query(self, sql: str, params: Mapping[str, object] | None = None) -> list[tuple[object, ...]]:
        """The observer's own look into Postgres: one statement, all rows."""
        with psycopg.connect(self.postgres_url, autocommit=True) as connection:
            return connection.execute(sql.encode(), params).fetchall()

    def now(self) -> datetime:
        """The time by Postgres' clock, in whose terms the history is."""
        return cast(datetime, self.query("SELECT clock_timestamp()")[0][0])

    def note(self) -> None:
        """Add the processes that run now to `pids`."""
        servers = (self.stack.postgres, self.stack.redis)
        self.pids |= {child.pid for child in self.stack.children}
        self.pids |= {server.pid for server in servers if server is not None and server.alive()}

    def statement(self, sql: str) -> None:
        """One statement without rows."""
        with psycopg.connect(self.postgres_url, autocommit=True) as connection:
            connection.execute(sql.encode())


def read_settings(env: Mapping[str, str]) -> Settings:
    """The settings of a system that runs already, from the variables that it was started with.

    Raises:
        ConfigError: one is malformed.
    """
    return load(env)[0]


def redis_url_of(settings: Settings) -> str:
    """Where the Redis of a system is, with the password that it wants."""
    scheme, _, place = settings.redis_addr.partition("://")
    secret = settings.redis_pass
    return f"{scheme}://:{quote(secret, safe='')}@{place}" if secret else f"{scheme}://{place}"


def settings_of(env: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """The environment of a run: ours without stray settings, so that a run depends on its own alone.

    Nor does a run forbid bytecode: every process would compile all that it imports, which takes a second and
    some 20 MiB that it keeps.
    """
    stray = {declared.name for declared in VARS.values()} - _KEPT | {"PYTHONDONTWRITEBYTECODE"}
    return {k: v for k, v in env.items() if k not in stray} | dict(own)


@contextmanager
def system(
    own: Mapping[str, str], *, say: Say, postgres: Mapping[str, str] | None = None
) -> Iterator[System]:
    """Servers and an API with the settings `own`; add a fleet with `start_fleet`.

    Raises:
        StartError: a part did not start.
        Leak: a process was still there after the end.
    """
    with tempfile.TemporaryDirectory(prefix="scheduler-") as directory:
        Path(directory).chmod(0o711)  # where root cannot be mapped, Postgres passes through as another user
        me = System(Stack(settings_of(os.environ, own), Path(directory), say))
        try:
            with me.stack:
                try:
                    _outside_loops(lambda: me.stack.start_servers(postgres_settings=postgres))
                    me.start_api()
                    yield me
                finally:
                    me.note()
        finally:
            left = sorted(filter(_lives, me.pids))
            if left:
                raise Leak(f"processes {left} outlived their system")


def _outside_loops(call: Callable[[], T]) -> T:
    """The call's result from a thread that has no event loop: a notebook's cells run inside one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
