"""The watch: an observer that looks at both stores again and again while the system is harmed.

It sees what is over before the audit begins: an id that was in two places of Redis for a moment. And it says
whether tasks were running when a fault struck.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

import psycopg
import redis

from bench import index

_LOOK_S: Final = 0.1
_STALE_S: Final = 2.0
_OPEN: Final = """
SELECT count(*) FILTER (WHERE status = 'running'), count(*), coalesce(sum(attempts), 0)
FROM tasks WHERE finished_at IS NULL
"""

Connect = Callable[[], psycopg.Connection[Any]]


class Watch:
    """Looks from a thread of its own, from `start` to `stop`. A store that does not answer is passed over.

    Attributes:
        wrong: Ids that were not in exactly one place of Redis, each with what was wrong when it was first seen.
        looks: How often both stores answered.
    """

    def __init__(self, connect: Connect, redis_url: str, prefix: str) -> None:
        self._connect = connect
        self._redis_url = redis_url
        self._prefix = prefix
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="watch")
        self._running = 0
        self._seen = 0.0
        self.wrong: dict[str, str] = {}
        self.looks = 0

    @property
    def busy(self) -> bool:
        """Whether tasks were running when Postgres last answered, which was not long ago."""
        return self._running > 0 and time.monotonic() - self._seen < _STALE_S

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopping.set()
        self._thread.join()

    def _main(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._connect() as connection, index.connected(self._redis_url) as client:
                    self._look_on(connection, client)
            except (psycopg.Error, redis.RedisError):
                self._stopping.wait(_LOOK_S)

    def _look_on(self, connection: psycopg.Connection[Any], client: redis.Redis) -> None:
        while not self._stopping.wait(_LOOK_S):
            self._running = open_tasks(connection)[0]
            self._seen = time.monotonic()
            for id_, what in index.disorder(index.look(client, self._prefix)).items():
                self.wrong.setdefault(id_, what)
            self.looks += 1


def open_tasks(connection: psycopg.Connection[Any]) -> tuple[int, int, int]:
    """How many tasks run, how many are open, and how many attempts the open ones have had."""
    running, open_, attempts = connection.execute(_OPEN).fetchone() or (0, 0, 0)
    return running, open_, int(attempts)


def until_quiet(connect: Connect, *, within_s: float, stalled_s: float) -> tuple[float, int]:
    """Wait until no task is open; (seconds that it took, tasks that are open still).

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
                return now - began, found[1]
            time.sleep(_LOOK_S)
