"""The peers that we are measured against, each in the settings that were found to be its best.

They are the fastest of those that were tried: PgQueuer of the ones on Postgres, Dramatiq of the ones on Redis
that keep a message until it is done.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Final

import psycopg
import redis

from bench.burst import Stalled
from bench.index import connected
from bench.peer import APPS, Setup, environment, run

_LONGEST_S: Final = 180.0
_LOOK_S: Final = 0.01
_LOOK_AT_ROWS_S: Final = 0.05


class PgQueuer:
    """PgQueuer on a database of its own.

    Args:
        url: That database, empty, as its owner.
        server_pid: Its Postgres.
    """

    name = "pgqueuer"
    requirements = ("pgqueuer>=1.6", "asyncpg>=0.30", "uvloop>=0.21")
    durability = "Postgres, fsync; all tables logged (durable); a log row a job is kept"
    ready = "ready"
    setups: tuple[Setup, ...] = tuple(
        Setup(
            f"pgqueuer-{processes}x{batch}",
            f"PgQueuer, {processes} processes, batch_size={batch}, max_concurrent_tasks={2 * batch}",
            processes,
            {"PEER_BATCH": str(batch), "PEER_CONCURRENT": str(2 * batch)},
        )
        for processes, batch in ((3, 100), (2, 100), (2, 500))
    )

    def __init__(self, url: str, server_pid: int) -> None:
        self._python = environment(self.name, self.requirements) / "python"
        self._app = str(APPS / "pgqueuer_app.py")
        self._env = os.environ | {"PEER_URL": url.replace("postgres://", "postgresql://", 1)}
        self._connection = psycopg.connect(url, autocommit=True)
        self.server_pid = server_pid
        self._run("install")

    def _run(self, *words: str) -> None:
        run([str(self._python), self._app, *words], self.name, self._env)

    def enqueue(self, n: int) -> None:
        """Add n noops, 1,000 an INSERT."""
        self._run("enqueue", str(n))

    def commands(self, setup: Setup) -> list[list[str]]:
        """One command a process."""
        return [[str(self._python), self._app, "work"]] * setup.processes

    def env(self, setup: Setup) -> dict[str, str]:
        """The environment of its workers."""
        return self._env | dict(setup.env)

    def times(self, n: int) -> list[float]:
        """The instants of its log, which a job's end and its removal are committed with."""
        deadline = time.monotonic() + _LONGEST_S
        while self._value("SELECT EXISTS (SELECT FROM pgqueuer)"):
            _patience(deadline, self.name)
            time.sleep(_LOOK_AT_ROWS_S)
        rows = self._connection.execute(
            "SELECT extract(epoch FROM created)::float8 FROM pgqueuer_log"
            " WHERE status = 'successful' ORDER BY 1"
        ).fetchall()
        if len(rows) != n:
            raise Stalled(f"{self.name} logged {len(rows)} successes of {n}")
        return [at for (at,) in rows]

    def _value(self, sql: str) -> Any:
        return self._connection.execute(sql.encode()).fetchall()[0][0]

    def clear(self) -> None:
        """Empty its tables."""
        self._connection.execute("TRUNCATE pgqueuer, pgqueuer_log")

    def close(self) -> None:
        """Close the observer's connection."""
        self._connection.close()


class Dramatiq:
    """Dramatiq on a Redis of its own.

    Args:
        url: That Redis, empty.
        server_pid: Its process.
    """

    name = "dramatiq"
    requirements = ("dramatiq[redis]>=2.2", "hiredis>=3")
    durability = (
        "Redis in memory, no file: a crash of Redis loses what waits; nothing is kept of what is done"
    )
    ready = "Worker process is ready for action."
    setups: tuple[Setup, ...] = (
        Setup("dramatiq-3x12", "Dramatiq, -p 3 -t 12", 3, {}, ("-p", "3", "-t", "12")),
        Setup("dramatiq-2x8", "Dramatiq, -p 2 -t 8", 2, {}, ("-p", "2", "-t", "8")),
        Setup(
            "dramatiq-2x8-400",
            "Dramatiq, -p 2 -t 8, dramatiq_queue_prefetch=400",
            2,
            {"dramatiq_queue_prefetch": "400"},
            ("-p", "2", "-t", "8"),
        ),
    )

    def __init__(self, url: str, server_pid: int) -> None:
        self._bin: Path = environment(self.name, self.requirements)
        self._env = os.environ | {"PEER_URL": url}
        self._url = url
        self.server_pid = server_pid

    def enqueue(self, n: int) -> None:
        """Send n noops, one by one."""
        run(
            [str(self._bin / "python"), str(APPS / "dramatiq_app.py"), "enqueue", str(n)],
            self.name,
            self._env,
        )

    def commands(self, setup: Setup) -> list[list[str]]:
        """One command for all processes."""
        return [[str(self._bin / "dramatiq"), "dramatiq_app", *setup.options]]

    def env(self, setup: Setup) -> dict[str, str]:
        """The environment of its workers."""
        return self._env | dict(setup.env)

    def times(self, n: int) -> list[float]:
        """Looks at how many messages are left: one is removed when it is acknowledged."""
        deadline, times = time.monotonic() + _LONGEST_S, list[float]()
        with connected(self._url) as client:
            while len(times) < n:
                _patience(deadline, self.name)
                left = _left(client)
                times += [time.monotonic()] * (n - left - len(times))
                time.sleep(_LOOK_S)
        return times

    def clear(self) -> None:
        """Empty its Redis, while nothing runs or waits."""
        with connected(self._url) as client:
            if _left(client):
                client.flushdb()


def _left(client: redis.Redis) -> int:
    return int(client.hlen("dramatiq:default.msgs"))


def _patience(deadline: float, name: str) -> None:
    if time.monotonic() > deadline:
        raise Stalled(f"{name} has not done its tasks within {_LONGEST_S:.0f} s")
