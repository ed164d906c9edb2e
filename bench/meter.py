"""The meter: what work costs, counted at the servers and in /proc, where a busy neighbour changes little.

    with Meter(postgres.admin_url, redis.url, {"worker": [pid], "postgres": [pid]}) as meter:
        before = meter.read()
        ...
        cost = meter.read().since(before).per(tasks)

A cost is a number a task by name:

    redis.evalsha              calls of a command, by scripts or by clients; one name a command
    redis.commands             all of them
    postgres.statements        statements that clients sent
    postgres.commits           transactions of the database; a connection tells them late, and when it closes
    postgres.wal_bytes         log written, full page images included
    cpu_us.worker, cpu_us.all  microseconds of CPU, by the parts that were named, and in all

Postgres must preload pg_stat_statements, which `SETTINGS` asks for, and the URL must be a superuser's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, cast

import psycopg
import redis
from psycopg.conninfo import conninfo_to_dict

from bench.vitals import cpu_s

SETTINGS: Final = {"shared_preload_libraries": "pg_stat_statements"}
"""What Postgres must be started with."""

_COUNTS: Final = """
SELECT
    (SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements
     WHERE toplevel AND userid <> (SELECT oid FROM pg_roles WHERE rolname = current_user)),
    (SELECT xact_commit FROM pg_stat_database WHERE datname = %(database)s),
    pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint
"""
_UNASKED: Final = ("hello", "select", "auth", "quit", "info", "client|")
"""Commands of a connection's beginning and end, and the meter's own."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What had been counted when the meter was read, or, after `since`, between two readings."""

    redis: Mapping[str, int]
    statements: int
    commits: int
    wal_bytes: int
    cpu_s: Mapping[str, float]

    def since(self, earlier: Tally) -> Tally:
        """What was added since an earlier reading."""
        return Tally(
            {name: n - earlier.redis.get(name, 0) for name, n in self.redis.items()},
            self.statements - earlier.statements,
            self.commits - earlier.commits,
            self.wal_bytes - earlier.wal_bytes,
            {part: s - earlier.cpu_s.get(part, 0.0) for part, s in self.cpu_s.items()},
        )

    def per(self, tasks: int) -> dict[str, float]:
        """Costs a task, by name."""
        costs = {f"redis.{name}": n / tasks for name, n in sorted(self.redis.items()) if n}
        costs["redis.commands"] = sum(self.redis.values()) / tasks
        costs["postgres.statements"] = self.statements / tasks
        costs["postgres.commits"] = self.commits / tasks
        costs["postgres.wal_bytes"] = self.wal_bytes / tasks
        costs |= {f"cpu_us.{part}": s * 1e6 / tasks for part, s in self.cpu_s.items()}
        costs["cpu_us.all"] = sum(self.cpu_s.values()) * 1e6 / tasks
        return costs


class Meter:
    """Reads the counters of two servers and the CPU of named parts.

    Args:
        admin_url: Postgres, as a superuser. What this role sends itself is not counted.
        redis_url: Redis.
        parts: Process ids by the name of the part; what they have started counts with them.
    """

    def __init__(self, admin_url: str, redis_url: str, parts: Mapping[str, Sequence[int]]) -> None:
        self._database = conninfo_to_dict(admin_url)["dbname"]
        self._postgres = psycopg.connect(admin_url, dbname="postgres", autocommit=True)
        self._redis = redis.Redis.from_url(redis_url)
        self.parts = dict(parts)
        self._postgres.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")

    def read(self) -> Tally:
        """All counters now."""
        cpu = {part: cpu_s(pids) for part, pids in self.parts.items()}
        params = {"database": self._database}
        [(statements, commits, wal_bytes)] = self._postgres.execute(_COUNTS, params).fetchall()
        stats = cast("dict[str, dict[str, int]]", self._redis.info("commandstats"))
        calls = {name.removeprefix("cmdstat_"): int(row["calls"]) for name, row in stats.items()}
        asked = {name: n for name, n in calls.items() if not name.startswith(_UNASKED)}
        return Tally(asked, statements, commits, wal_bytes, cpu)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._postgres.close()
        self._redis.close()
