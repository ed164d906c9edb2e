"""The watch: an observer that looks at both stores again and again while the system is harmed.

It sees what is over before the audit begins: an id that was in two places of Redis for a moment. And it says
whether tasks were running when a fault struck.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Self

import psycopg
import redis

from bench import index
from scheduler.errors import SchedulerError

_LOOK_S: Final = 0.1
_QUICK_LOOK_S: Final = 0.02
_STALE_S: Final = 2.0
_OPEN: Final = """
SELECT count(*) FILTER (WHERE status = 'running'), count(*), coalesce(sum(attempts), 0)
FROM tasks WHERE finished_at IS NULL
"""

Connect = Callable[[], psycopg.Connection[Any]]


class Overdue(SchedulerError):
    """Something that was waited for has not happened in time."""


class Watch:
    """Looks from threads of its own, until its block ends. A store that does not answer is passed over.

    Attributes:
        wrong: Ids that were not in exactly one place of Redis, each with what was wrong at first.
        looks: How often Redis has answered.
    """

    def __init__(self, connect: Connect, redis_url: str, prefix: str) -> None:
        self._connect = connect
        self._redis_url = redis_url
        self._prefix = prefix
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=look_on, name=look_on.__name__)
            for look_on in (self._look_at_rows, self._look_at_index)
        ]
        self._running = 0
        self._seen = 0.0
        self.wrong: dict[str, str] = {}
        self.looks = 0

    @property
    def busy(self) -> bool:
        """Whether tasks were running when Postgres last answered, which was not long ago."""
        return self._running > 0 and time.monotonic() - self._seen < _STALE_S

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _look_at_rows(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            with contextlib.suppress(psycopg.Error), self._connect() as connection:
                while not self._stopping.wait(_LOOK_S):
                    self._running = open_tasks(connection)[0]
                    self._seen = time.monotonic()

    def _look_at_index(self) -> None:
        with index.connected(self._redis_url) as client:
            while not self._stopping.wait(_QUICK_LOOK_S):
                with contextlib.suppress(redis.RedisError):
                    for id_, what in index.disorder(index.look(client, self._prefix)).items():
                        self.wrong.setdefault(id_, what)
                    self.looks += 1


def open_tasks(connection: psycopg.Connection[Any]) -> tuple[int, int, int]:
    """How many tasks run, how many are open, and how many attempts the open ones have had."""
    running, open_, attempts = connection.execute(_OPEN).fetchone() or (0, 0, 0)
    return running, open_, int(attempts)


def until_quiet(connect: Connect, *, within_s: float, stalled_s: float) -> float:
    """Wait until no task is open; the seconds that it took.

    It ends early if nothing at all has happened to the open tasks for `stalled_s`.
    """
    began = moved = time.monotonic()
    last: tuple[int, int, int] | None = None
    with connect() as connection:
        while True:
            now, found = time.monotonic(), open_tasks(connection)
            if found != last:
                last, moved = found, now
            if not found[1] or now - began > within_s or now - moved > stalled_s:
                return now - began
            time.sleep(_LOOK_S)


def until(holds: Callable[[], object], what: str, *, within_s: float = 30.0) -> float:
    """Look again and again until it holds; the seconds that it took.

    Raises:
        Overdue: it does not within the time; `what` was waited for is in the text.
    """
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > within_s:
            raise Overdue(f"{what}: not within {within_s:g} s")
        time.sleep(_QUICK_LOOK_S)
    return time.monotonic() - began
