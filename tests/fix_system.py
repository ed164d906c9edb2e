"""A whole system seen from outside: an API and workers, as processes, on the test's servers.

    here = site(workers=2, VIS_TIMEOUT_MS=2000)    # on shared servers, or on `postgres=` and `redis=`
    ids = here.send([{"type": "noop"}] * 100)      # over HTTP; what was accepted
    here.drained()                                 # nothing is open any more
    here.prove(ids)                                # and the audit finds nothing wrong

The test sees what anybody could: HTTP, the metrics, the tables, and the keys in Redis.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import psutil
import pytest
from fix_process import until
from redis import Redis as Client

from bench import load
from bench.audit import audit
from bench.system import System, system
from bench.workload import Body, Expected
from scheduler import keys
from scheduler.model import PRIORITIES

EXECUTED = "outcome IN ('succeeded', 'failed', 'timed_out', 'lost')"
"""Of a row of task_runs: the handler ran, or may have."""


class Site:
    """One running system and the test's own look at it."""

    def __init__(self, running: System) -> None:
        self.system = running
        self.names = keys.shard_keys(running.settings.redis_prefix, "default")
        self.client = Client.from_url(running.redis_url, decode_responses=True)

    def send(self, bodies: Sequence[Body]) -> list[str]:
        """Enqueue all of these, as many as fit a request at once; their ids."""
        result = load.run(load.bulk(bodies, host=self.system.host))
        assert result.accepted == len(bodies), result
        return [receipt.id for receipt in sorted(result.receipts, key=lambda r: r.place)]

    def value(self, sql: str, **params: object) -> Any:
        """The one value that a statement answers."""
        [(value,)] = self.system.query(sql, params)
        return value

    def column(self, sql: str, **params: object) -> list[Any]:
        """The first value of each row that a statement answers."""
        return [row[0] for row in self.system.query(sql, params)]

    def drained(self, within_s: float = 60.0) -> None:
        """Wait until every task has ended."""
        until(lambda: not self.value("SELECT count(*) FROM tasks WHERE finished_at IS NULL"), within_s)

    def prove(self, ids: Sequence[str], exactly: Expected | None = None) -> None:
        """Audit these ids, which the client was given."""
        here = self.system
        verdict = audit(here.postgres_url, here.redis_url, ids, exactly=exactly)
        assert verdict.passed, "\n".join(verdict.lines())

    def key(self, kind: str, priority: str | None = None) -> str:
        """The name of a key of the queue `default`."""
        return self.names[keys.position(kind, priority)]

    def depth(self) -> int:
        """How many ids are in the lists of the queue `default`, at one moment."""
        with self.client.pipeline(transaction=True) as pipe:
            for priority in PRIORITIES:
                pipe.llen(self.key("q", priority))
            return sum(pipe.execute())

    def usage(self) -> Usage:
        """Begin to measure the CPU that the API and the workers use."""
        return Usage([child.pid for child in self.system.stack.children])

    def close(self) -> None:
        self.client.close()


class Usage:
    """The CPU that processes use, from now on."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]
        self._began = time.monotonic()
        self._used = [self._seconds(process) for process in self._processes]

    def shares(self) -> list[float]:
        """For each process: the share of one core that it has used."""
        elapsed = time.monotonic() - self._began
        now = [self._seconds(process) for process in self._processes]
        return [(after - before) / elapsed for before, after in zip(self._used, now, strict=True)]

    @staticmethod
    def _seconds(process: psutil.Process) -> float:
        times = process.cpu_times()
        return times.user + times.system


MakeSite = Callable[..., Site]


@pytest.fixture
def site(postgres_url: str, redis_url: str) -> Iterator[MakeSite]:
    """Start an API and some workers with settings by the names of their variables; stopped at the end."""
    with ExitStack() as stack:

        def start(
            workers: int = 1, *, postgres: str | None = None, redis: str | None = None, **variables: object
        ) -> Site:
            env = {
                "POSTGRES_URL": postgres or postgres_url,
                "REDIS_ADDR": redis or redis_url,
                "METRICS_ADDR": "127.0.0.1:0",
                "HTTP_ADDR": "127.0.0.1:0",
                **{name: str(value) for name, value in variables.items()},
            }
            running = stack.enter_context(system(env, say=lambda _: None))
            here = Site(running)
            stack.callback(here.close)
            running.start_fleet(workers)
            return here

        yield start
