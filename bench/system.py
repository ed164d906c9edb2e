"""A system under test: servers, an API and a fleet of its own, on free ports, and nothing left of it.

The parts are the product's own commands, started as a user would start them. When the block ends, however it
ends, every process is stopped and the end is checked: a leak is an error, not a surprise for the next run.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg

from scheduler.child import Child
from scheduler.stack import Say, Stack

_OURS: Final = ("POSTGRES_", "PGPOOL_", "PG_", "REDIS_", "METRICS_", "WORKER_", "VIS_", "REAPER_", "RETRY_")
_KEPT: Final = ("POSTGRES_URL", "REDIS_ADDR", "REDIS_PASS")


class Leak(RuntimeError):
    """Something of a system outlived it."""


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
    """A running system: where to send tasks, where the truth is, and the fleet."""

    stack: Stack
    host: str = ""
    api_metrics: str = ""
    fleet: list[Member] = field(default_factory=list)

    @property
    def postgres_url(self) -> str:
        """The database, for the observer's own queries."""
        return self.stack.env["POSTGRES_URL"]

    @property
    def redis_url(self) -> str:
        """Redis, for the observer's own look."""
        address = self.stack.env["REDIS_ADDR"]
        return address if "://" in address else f"redis://{address.removeprefix(':')}"

    def start_api(self) -> None:
        """Start the API."""
        facts = self.stack.start_api()
        self.host = f"http://{facts['http']}"
        self.api_metrics = f"http://127.0.0.1:{facts['metrics']}/metrics"

    def start_fleet(self, workers: int, *, env: Mapping[str, str] | None = None) -> None:
        """Add `workers` processes, with settings of their own in `env`; returns when all are ready."""
        self.fleet += [
            Member(child, f"http://127.0.0.1:{facts['metrics']}/metrics")
            for child, facts in self.stack.start_workers(workers, env=env)
        ]

    def stop_fleet(self) -> None:
        """Stop all workers in good order."""
        while self.fleet:
            self.stack.end(self.fleet.pop().child)

    def query(self, sql: str, params: Mapping[str, object] | None = None) -> list[tuple[object, ...]]:
        """The observer's own look into Postgres: one statement, all rows."""
        with psycopg.connect(self.postgres_url, autocommit=True) as connection:
            return connection.execute(sql.encode(), params).fetchall()

    def statement(self, sql: str) -> None:
        """One statement without rows."""
        with psycopg.connect(self.postgres_url, autocommit=True) as connection:
            connection.execute(sql.encode())


def settings_of(env: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """The environment of a run: ours without stray settings, so that a run depends on its own alone."""
    kept = {k: v for k, v in env.items() if k in _KEPT or not k.startswith(_OURS)}
    return kept | dict(own)


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
        stack = Stack(settings_of(os.environ, own), Path(directory), say)
        pids: list[int] = []
        with stack:
            stack.start_servers(postgres_settings=postgres)
            me = System(stack)
            me.start_api()
            yield me
            pids = [child.pid for child in stack.children]
            pids += [server.pid for server in (stack.postgres, stack.redis) if server is not None]
        left = [pid for pid in pids if _lives(pid)]
        if left:
            raise Leak(f"processes {left} outlived their system")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
