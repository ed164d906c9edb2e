"""Peer stores: how an observer sees which of a peer's tasks are done for good."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import redis

from bench.burst import Stalled
from bench.index import connected

LONGEST_S: Final = 180.0
_LOOK_S: Final = 0.01
_LOOK_AT_ROWS_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Counted:
    """A Redis that is asked how many tasks are open: a task is done when there is one less.

    Attributes:
        left: Counts them; see `total` and `group_left`.
    """

    left: Callable[[redis.Redis], int]

    def clear(self, url: str) -> None:
        """Forget everything."""
        with connected(url) as client:
            client.flushdb()

    def times(self, url: str, n: int) -> list[float]:
        """Looks again and again.

        Raises:
            Stalled: it takes too long.
        """
        deadline, times = time.monotonic() + LONGEST_S, list[float]()
        with connected(url) as client:
            while len(times) < n:
                _patience(deadline)
                left = min(self.left(client), n)
                times += [time.monotonic()] * (n - left - len(times))
                time.sleep(_LOOK_S)
        return times


@dataclass(frozen=True, slots=True)
class Logged:
    """A Postgres whose tables say when each task was done.

    Attributes:
        open: Asks whether a task is open.
        done: Asks for the instants of the ends, in seconds.
        tables: What is emptied.
    """

    open: str
    done: str
    tables: str

    def clear(self, url: str) -> None:
        """Empty the tables."""
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"TRUNCATE {self.tables} CASCADE".encode())

    def times(self, url: str, n: int) -> list[float]:
        """Waits until nothing is open, and reads.

        Raises:
            Stalled: it takes too long, or fewer than n have ended well.
        """
        deadline = time.monotonic() + LONGEST_S
        with psycopg.connect(url, autocommit=True) as connection:
            while _value(connection, f"SELECT EXISTS ({self.open})"):
                _patience(deadline)
                time.sleep(_LOOK_AT_ROWS_S)
            times = sorted(at for (at,) in connection.execute(self.done.encode()).fetchall())
        if len(times) < n:
            raise Stalled(f"{len(times)} successes are logged, of {n}")
        return times[len(times) - n :]


def total(*commands: str) -> Callable[[redis.Redis], int]:
    """Adds up the answers to some commands: `total("LLEN waiting", "HLEN held")`."""

    def left(client: redis.Redis) -> int:
        pipe: Any = client.pipeline(transaction=True)
        for command in commands:
            pipe.execute_command(*command.split())
        return sum(pipe.execute())

    return left


def group_left(stream: str) -> Callable[[redis.Redis], int]:
    """Counts what the one consumer group of a stream has not read, or not acknowledged."""

    def left(client: redis.Redis) -> int:
        groups: Any = client.xinfo_groups(stream)
        return sum(int(group["pending"]) + int(group["lag"] or 0) for group in groups)

    return left


def _value(connection: psycopg.Connection[Any], sql: str) -> Any:
    return connection.execute(sql.encode()).fetchall()[0][0]


def _patience(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise Stalled(f"its tasks were not done within {LONGEST_S:.0f} s")
