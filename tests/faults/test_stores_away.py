"""Either store goes away under load and comes back: nothing ends, nothing spins, nothing is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fix_process import children, until
from fix_system import MakeSite, Site

from bench import load, scrape
from bench.receipts import LoadResult
from scheduler.supervisor import Server

RATE = 300
LEAD_S = 1.5
"""How long the load runs before the store goes away, and at least how long after it is back."""

MOST_CPU = 0.3
"""Of one core: what a process without a store may use."""

NODE = [{"type": "noop", "priority": p} for p in ("critical", "high", "default", "low")]


class Load:
    """RATE requests a second in the background, each sent once whatever the API does."""

    def __init__(self, host: str, seconds: float) -> None:
        self.seen = LoadResult(asked=0, began=0.0)
        self._thread = ThreadPoolExecutor(1)
        n = round(RATE * seconds)
        bodies = [NODE[i % len(NODE)] for i in range(n)]
        self._done: Future[LoadResult] = self._thread.submit(
            lambda: load.run(
                load.open_loop(
                    bodies, host=host, rate=RATE, connections=4096, skip_after_s=60, progress=self._see
                )
            )
        )

    def _see(self, result: LoadResult) -> None:
        self.seen = result

    def answers(self) -> int:
        """How many requests have been answered so far."""
        return sum(self.seen.statuses.values())

    def result(self) -> LoadResult:
        result = self._done.result()
        self._thread.shutdown()
        return result


def kill(server: Server) -> None:
    """Let it crash."""
    server.kill()


def freeze(server: Server) -> None:
    """Let it fall silent, with all connections open."""
    for pid in (server.pid, *children(server.pid)):
        os.kill(pid, signal.SIGSTOP)


def bring_back(server: Server) -> None:
    """Let it answer again, whether it crashed or was frozen."""
    if server.alive():
        for pid in (server.pid, *children(server.pid)):
            os.kill(pid, signal.SIGCONT)
    server.start()


Fault = Callable[[Server], None]

SIZES = [
    pytest.param(kill, 3.0, id="crash-3s"),
    pytest.param(kill, 10.0, id="crash-10s", marks=[pytest.mark.slow]),
    pytest.param(freeze, 10.0, id="frozen-10s", marks=[pytest.mark.slow]),
]


class Outage:
    """One store away for some seconds, under load; what was seen meanwhile and afterwards."""

    def __init__(self, site: Site, store: str, server: Server, fault: Fault, away_s: float) -> None:
        self.site = site
        self.host = site.system.host
        self.store = store
        under_way = Load(self.host, 2 * LEAD_S + away_s)
        until(lambda: under_way.seen.accepted > RATE * LEAD_S / 2)
        self.before = Counts(under_way)
        fault(server)
        usage, began = site.usage(), time.monotonic()
        try:
            self.probe = httpx.post(f"{self.host}/v1/tasks", json={"type": "noop"}, timeout=30)
            self.ready = httpx.get(f"{self.host}/readyz", timeout=30)
            until(lambda: time.monotonic() - began >= away_s)  # the outage lasts so long: it is what is tested
            self.ages = [self._ages(url) for url in site.system.endpoints]
            self.shares = usage.shares()
        finally:
            self.away_s = time.monotonic() - began
            bring_back(server)
        back = time.monotonic()
        at = site.system.now()
        until(lambda: site.value("SELECT count(*) FROM task_runs WHERE claimed_at > %(at)s", at=at))
        self.resumed_s = time.monotonic() - back
        self.load = under_way.result()

    def _ages(self, url: str) -> dict[str, float]:
        page = scrape.page([url])
        return {s: page.total("last_poll_age_seconds", store=s) for s in ("postgres", "redis")}

    def settle(self) -> None:
        """What is true whichever store it was, once the load is over."""
        self.site.drained()
        ids = [receipt.id for receipt in self.load.receipts]
        self.site.prove(ids)
        self.site.system.stack.check()  # no process has ended
        print(self.store, f"away {self.away_s:.1f} resumed {self.resumed_s:.2f} shares {[round(s, 3) for s in self.shares]}", self.load.statuses, self.load.unanswered, f"p50 {self.load.latency_s(50):.3f} p99 {self.load.latency_s(99):.3f}", self.ages, self.ready.json(), self.probe.status_code)
        assert self.resumed_s <= 3
        assert max(self.shares) < MOST_CPU


class Counts:
    def __init__(self, l): pass


@pytest.mark.parametrize(("fault", "away_s"), SIZES)
def test_redis_is_away(site, own_redis, fault, away_s):
    here = site(workers=2, redis=own_redis.url)
    outage = Outage(here, "redis", own_redis, fault, away_s)
    outage.settle()
    assert set(outage.load.statuses) == {201}
    assert outage.load.unanswered == 0
    assert outage.probe.status_code == 201


@pytest.mark.parametrize(("fault", "away_s"), SIZES)
def test_postgres_is_away(site, own_postgres, fault, away_s):
    here = site(workers=2, postgres=own_postgres.url)
    outage = Outage(here, "postgres", own_postgres, fault, away_s)
    outage.settle()
    assert set(outage.load.statuses) == {201, 503}
    assert outage.load.unanswered == 0
    assert outage.probe.status_code == 503
    assert outage.probe.headers["retry-after"] == "1"
