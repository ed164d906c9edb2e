"""Rates: how fast tasks come in and are worked off, and what the machine's own parts do at the same time.

    drain         noops worked off by workers × 12 that waited, frozen, until all were enqueued
    ones          the same fleet in batches of one: each task leased, claimed, settled, acknowledged alone
    single        one task a request over 64 connections, each answered after its commit
    two           the same over two API processes
    route         the same requests to an ordinary FastAPI route that keeps nothing
    bulk-100      a hundred tasks a request, over 4 connections
    bulk-1000     a thousand
    pgbench       single-row commits by 16 clients of pgbench
    unnest-100    rows that one connection inserts as arrays into a copy of `tasks`, a hundred a commit
    unnest-1000   a thousand

The generator sends prepared bytes, and its own CPU is told with each rate: it runs on the same cores.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Final

from bench import load, yardsticks
from bench.burst import drain, metrics, ran_once, send
from bench.hammer import Answers, Request, hammer
from bench.parking import emptied, noops, parked
from bench.progress import told
from bench.rounds import Arms, Size
from bench.stand import Stand
from bench.system import Member, System
from bench.vitals import cpu_s
from bench.workload import Mix, deck
from scheduler.errors import StartError

SENDERS: Final = 64
BULK_SENDERS: Final = 4

_NOOPS: Final = Mix(noop=100)
_ONES: Final = {"LEASE_BATCH_SIZE": "1", "SETTLE_BATCH_SIZE": "1"}
_RATE: Final = """
WITH ended AS (
    SELECT finished_at, row_number() OVER (ORDER BY finished_at) AS n, count(*) OVER () AS total
    FROM tasks WHERE id = ANY (%(ids)s::uuid[])
)
SELECT (max(n) - min(n)) / extract(epoch FROM max(finished_at) - min(finished_at))::float8
FROM ended WHERE n BETWEEN total * 0.05 AND total * 0.95
"""


@contextmanager
def arms(me: System, size: Size) -> Iterator[Arms]:
    """The arms, on a system without a fleet; a second API and the FastAPI route run until the end."""
    me.statement(yardsticks.TABLES)
    with (
        tempfile.TemporaryDirectory() as folder,
        Stand(me.stack.env, Path(folder)) as stand,
        yardsticks.route() as (route, route_pid),
    ):
        second = stand.api("api-second").start()
        arms = _Arms(me, size, {me.host: api_pid(me), second.url: second.pid, route: route_pid})
        if size.rounds > 1:
            arms.drain({})  # a warm-up, not counted
        yield {
            "drain": partial(arms.drain, {}),
            "ones": partial(arms.drain, _ONES),
            "single": partial(arms.singles, me.host),
            "two": partial(arms.singles, me.host, second.url),
            "route": partial(arms.singles, route, kept=False),
            "bulk-100": partial(arms.bulk, 100),
            "bulk-1000": partial(arms.bulk, 1000),
            "pgbench": arms.pgbench,
            "unnest-100": partial(arms.unnest, 100),
            "unnest-1000": partial(arms.unnest, 1000),
        }


@dataclass(frozen=True, slots=True)
class _Arms:
    me: System
    size: Size
    pids: Mapping[str, int]
    """The process behind each address."""

    def drain(self, env: Mapping[str, str]) -> dict[str, float]:
        """Tasks ended a second between 5 % and 95 % of them, and the CPU of workers and servers a task."""
        n = self.size.ones if env else self.size.drain
        with emptied(self.me):
            return drained(self.me, n, self.size.workers, env)

    def singles(self, *hosts: str, kept: bool = True) -> dict[str, float]:
        """Requests of one task a second, and microseconds of CPU for each: of the server, the generator."""
        return self._sent(hosts, self.size.singles, 1, SENDERS, kept=kept)

    def bulk(self, batch: int) -> dict[str, float]:
        """Tasks accepted a second, and microseconds of CPU a request: of the API, the generator."""
        return self._sent((self.me.host,), self.size.bulk, batch, BULK_SENDERS)

    def _sent(
        self, hosts: Sequence[str], n: int, batch: int, senders: int, *, kept: bool = True
    ) -> dict[str, float]:
        each, pids = n // batch // len(hosts), [self.pids[host] for host in hosts]
        with emptied(self.me):
            own, theirs = time.process_time(), cpu_s(pids)
            answers = load.run(_all(hosts, noops(batch), each, senders // len(hosts)))
            own, theirs = time.process_time() - own, cpu_s(pids) - theirs
            sent = sum(a.accepted for a in answers)
            if sent < each * len(hosts) or parked(self.me) != sent * batch * kept:
                raise StartError(f"not all was accepted or kept: {[dict(a.statuses) for a in answers]}")
        rate = sent * batch / max(a.seconds for a in answers)
        return {"rate": rate, "server_us": theirs * 1e6 / sent, "generator_us": own * 1e6 / sent}

    def pgbench(self) -> dict[str, float]:
        """Single-row commits a second."""
        with emptied(self.me):
            return {"rate": yardsticks.pgbench(self.me.postgres_url, self.size.pgbench_s)}

    def unnest(self, batch: int) -> dict[str, float]:
        """Rows inserted a second."""
        with emptied(self.me):
            self.me.statement("TRUNCATE unnest_tasks")
            return {"rate": yardsticks.unnest(self.me.postgres_url, self.size.bulk, batch)}


def drained(me: System, n: int, workers: int, env: Mapping[str, str]) -> dict[str, float]:
    """Let a fleet of its own drain n noops: `rate`, tasks a second, and `cpu_us`, microseconds a task.

    The fleet is ready before the burst and frozen while it comes in, so neither its start nor the way in is
    counted. CPU is that of the workers and both servers, from the thaw until all tasks have ended.
    """
    with (
        told(f"{n:,} noops{' in batches of one' if env else ''}") as tell,
        me.with_fleet(workers, env=env) as fleet,
    ):
        before = metrics(me)
        with frozen(fleet):
            burst = send(me, deck(_NOOPS, n), tell)
            pids = server_pids(me) + [member.pid for member in fleet]
            used = cpu_s(pids)
        drain(me, n, before, tell)
        used = cpu_s(pids) - used
    ran_once(me, burst.ids)
    rate = float(str(me.query(_RATE, {"ids": burst.ids})[0][0]))
    return {"rate": rate, "cpu_us": used * 1e6 / n}


@contextmanager
def frozen(fleet: Sequence[Member]) -> Iterator[None]:
    """Stop the workers where they are for the block, which must be shorter than their timeouts."""
    for member in fleet:
        member.child.signal(SIGSTOP)
    try:
        yield
    finally:
        for member in fleet:
            member.child.signal(SIGCONT)


def api_pid(me: System) -> int:
    """The process of the API."""
    return next(child.pid for child in me.stack.children if child.args[0] == "api")


def server_pids(me: System) -> list[int]:
    """The processes of both servers.

    Raises:
        StartError: they are not the system's own.
    """
    pids = [server.pid for server in (me.stack.postgres, me.stack.redis) if server is not None]
    if len(pids) < 2:
        raise StartError("this is measured on embedded servers; unset POSTGRES_URL and REDIS_ADDR for it")
    return pids


async def _all(hosts: Sequence[str], request: Request, each: int, senders: int) -> list[Answers]:
    return await asyncio.gather(*(hammer(host, request, senders, requests=each) for host in hosts))
