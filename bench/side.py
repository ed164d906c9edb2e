"""A side: one of two systems that are compared, and what is measured of it again and again."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Final
from urllib.parse import urlencode

import psycopg

from bench import load
from bench.burst import Stalled, ended_by, metrics, ran_once
from bench.http import Connection, Origin
from bench.index import connected
from bench.rates import frozen
from bench.system import Member, System
from bench.vitals import cpu_s
from bench.workload import Mix, deck
from scheduler.embedded import Postgres, Redis
from scheduler.errors import StartError

WORKERS: Final = 3
_SENDERS: Final = 4
_LONGEST_S: Final = 120.0
_LOOK_S: Final = 0.1
_WARM_S: Final = 2.0
_BUSY_PASSES: Final = {"RECONCILE_INTERVAL_MS": "100", "METRICS_SAMPLE_MS": "60000"}
_RATE: Final = """
SELECT count(*) / extract(epoch FROM max(finished_at) - min(finished_at))::float8
FROM tasks WHERE id = ANY (%(ids)s::uuid[])
"""
_SPENT: Final = """
SELECT
    coalesce(sum(rows), 0)::float8, coalesce(sum(calls), 0)::float8, coalesce(sum(total_exec_time), 0) / 1000
FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = %(database)s) AND query LIKE %(like)s
"""
_CLAIM: Final = "UPDATE tasks AS t%attempts = t.attempts + %"
_SETTLE: Final = "WITH settled AS (%"
_EPOCHS: Final = "SELECT name, epoch,%"
_SAMPLE: Final = """
SELECT id::text FROM tasks TABLESAMPLE SYSTEM (%(percent)s) WHERE finished_at IS NOT NULL
ORDER BY random() LIMIT %(n)s
"""


@dataclass(frozen=True, slots=True)
class Side:
    """A system on given servers.

    Attributes:
        system: The system; its fleet is started where it is needed.
        postgres: Its server, which pg_stat_statements watches, and which other sides may share.
        redis: Its Redis.
        database: The name of its database.
    """

    system: System
    postgres: Postgres
    redis: Redis
    database: str

    @property
    def url(self) -> str:
        """Its database."""
        return self.system.postgres_url

    def passed(self, n: int) -> dict[str, float]:
        """Let n noops pass, and tell how fast.

        The fleet is ready before, and frozen while the tasks come in.

        Returns:
            `enqueue` and `drain`, tasks a second; `claim` and `settle`, rows a second of Postgres' time.
        """
        me = self.system
        with me.with_fleet(WORKERS) as fleet:
            before = ended_by(metrics(me))
            with frozen(fleet):
                sent = load.run(load.bulk(deck(Mix(noop=100), n), host=me.host, size=100, keys=False))
                ids = sent.all_ids()
                self._forget()
            self._until_ended(before + n)
        ran_once(me, ids)
        drain = me.query(_RATE, {"ids": ids})[0][0]
        rates = {"enqueue": sent.rate, "drain": float(str(drain))}
        for name, like in (("claim", _CLAIM), ("settle", _SETTLE)):
            rows, _, seconds = self._spent(like)
            rates[name] = rows / seconds
        return rates

    def _until_ended(self, n: float) -> None:
        deadline = time.monotonic() + _LONGEST_S
        while (ended := ended_by(metrics(self.system))) < n:
            if time.monotonic() > deadline:
                raise Stalled(f"only {ended:,.0f} of {n:,.0f} tasks have ended after {_LONGEST_S:.0f} s")
            time.sleep(_LOOK_S)

    def paths(self, n: int) -> dict[str, list[str]]:
        """Paths of n requests of each kind: four pages of 50 tasks, a task, and a task's runs."""
        ids = self._ended_ids(n)
        pages = {
            "newest": {},
            "older": {"cursor": sorted(ids)[len(ids) // 2]},
            "open": {"status": "queued"},
            "dead": {"status": "dead"},
        }
        paths = {name: [f"/v1/tasks?{urlencode({'limit': 50, **q})}"] for name, q in pages.items()}
        paths["lookup"] = [f"/v1/tasks/{id_}" for id_ in ids]
        paths["runs"] = [f"/v1/tasks/{id_}/runs" for id_ in ids]
        return {name: list(islice(cycle(each), n)) for name, each in paths.items()}

    def _ended_ids(self, n: int) -> list[str]:
        [(rows,)] = self.system.query("SELECT reltuples::float8 FROM pg_class WHERE relname = 'tasks'")
        percent = min(100.0, 100 * 10 * n / max(float(str(rows)), 1))
        found = self.system.query(_SAMPLE, {"percent": percent, "n": n})
        return [str(id_) for (id_,) in found]

    def answered(self, paths: Sequence[str]) -> float:
        """Seconds in which the API answers requests, a few at a time."""
        began = time.monotonic()
        load.run(_get_all(self.system.host, paths))
        return time.monotonic() - began

    def passes(self, seconds: float) -> dict[str, float]:
        """Passes of reconcile with nothing to put right: `reconcile`, passes a second of Postgres' time."""
        with self._leader(_BUSY_PASSES):
            self._forget()
            time.sleep(seconds)
            (_, passes, _), (_, _, spent) = self._spent(_EPOCHS), self._spent("%")
        return {"reconcile": passes / spent}

    def idle(self, seconds: float) -> dict[str, float]:
        """The CPU of a worker with nothing to do but reconcile, and of its servers, in percent of a core."""
        with self._leader({}) as worker:
            parts = {"worker": [worker.pid], "servers": [self.postgres.pid, self.redis.pid]}
            before = {name: cpu_s(pids) for name, pids in parts.items()}
            time.sleep(seconds)
            return {name: (cpu_s(pids) - before[name]) / seconds * 100 for name, pids in parts.items()}

    @contextmanager
    def _leader(self, env: Mapping[str, str]) -> Iterator[Member]:
        """A worker whose passes have begun: the leadership of the last one has to run out first."""
        self._forget()
        with self.system.with_fleet(1, env=env) as fleet:
            deadline = time.monotonic() + _LONGEST_S
            while self._spent(_EPOCHS)[1] < 2:
                if time.monotonic() > deadline:
                    raise Stalled("a worker has not begun to reconcile")
                time.sleep(_LOOK_S)
            time.sleep(_WARM_S)
            yield fleet[0]

    def rebuild(self, open_: int) -> float:
        """Seconds in which `scheduler reconcile` fills an empty Redis again.

        Raises:
            Stalled: it holds other than at least `open_` ids then.
        """
        with connected(self.redis.url) as client:
            client.flushall()
        seconds = self.reconcile()
        with connected(self.redis.url) as client:
            held = sum(int(client.hlen(key)) for key in client.scan_iter("*:live"))
        if held < open_:
            raise Stalled(f"Redis holds {held:,} ids after its rebuild, and {open_:,} tasks are open")
        return seconds

    def reconcile(self) -> float:
        """Seconds that `scheduler reconcile` takes, the start of its process included."""
        began = time.monotonic()
        command = [sys.executable, "-m", "scheduler", "reconcile"]
        done = subprocess.run(command, env=self.system.stack.env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StartError(f"`scheduler reconcile` failed: {done.stderr.strip()[-300:]}")
        return time.monotonic() - began

    def _forget(self) -> None:
        """Begin to count statements anew."""
        with psycopg.connect(self.postgres.admin_url, dbname="postgres", autocommit=True) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
            connection.execute("SELECT pg_stat_statements_reset()")

    def _spent(self, like: str) -> tuple[float, float, float]:
        """Rows, calls and seconds of the statements of our database that are like this."""
        params = {"database": self.database, "like": like}
        with psycopg.connect(self.postgres.admin_url, dbname="postgres", autocommit=True) as connection:
            [(rows, calls, seconds)] = connection.execute(_SPENT, params).fetchall()
        return rows, calls, seconds


async def _get_all(host: str, paths: Sequence[str]) -> None:
    """Ask for each path once, a few at a time."""
    waiting = iter(paths)

    async def ask() -> None:
        connection = Connection(Origin.parse(host))
        for path in waiting:
            answer = await connection.get(path)
            if answer.status != 200:
                raise StartError(f"GET {path} was answered {answer.status}: {answer.body[:200]!r}")
        connection.close()

    await asyncio.gather(*(ask() for _ in range(_SENDERS)))
