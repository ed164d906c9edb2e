"""Either store goes away under load and comes back: nothing ends, nothing spins, nothing is lost."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import pytest
from fix_api import client_of, open_backend
from fix_process import until
from fix_system import Site

from bench import load, scrape
from bench.receipts import LoadResult
from bench.recovery import Fault, bring_back, crash, silence
from scheduler.supervisor import Server

RATE = 300
"""Requests a second, in an open loop: they come whatever the API does."""

LEAD_S = 1.0
"""How long the load runs before the store goes away."""

TAIL_S = 2.0
"""How long it goes on after the store is back."""

COMMIT_S = 1.0
"""ENQUEUE_TIMEOUT_MS."""

MOST_CPU = 0.5
"""Of one core: what a process may use while a store is away."""

BODIES = [{"type": "noop", "priority": p} for p in ("critical", "high", "default", "low")]


AWAY_S = 10.0
FAULTS = [pytest.param(fault, id=fault.__name__) for fault in (crash, silence)]


@dataclass(slots=True)
class Outage:
    """What was seen while one store was away under load, and afterwards.

    Attributes:
        probe: The answer to a POST of a task at the beginning.
        ready: The answer of /readyz at the end.
        ages: `last_poll_age_seconds` by store at the end, of the API and of each worker.
        shares: The share of one core that each of these processes used meanwhile.
        away_s: How long it was away.
        resumed_s: How long it was back when the first task was claimed.
        load: What the load brought back.
    """

    probe: httpx.Response
    ready: httpx.Response
    ages: list[dict[str, float]]
    shares: list[float]
    away_s: float
    resumed_s: float
    load: LoadResult


def outage(site: Site, server: Server, fault: Fault) -> Outage:
    """Take one store away from a site under load, and bring it back."""
    host = site.system.host
    bodies = [BODIES[i % 4] for i in range(round(RATE * (LEAD_S + AWAY_S + TAIL_S)))]
    seen = LoadResult(0, 0.0)

    def see(result: LoadResult) -> None:
        nonlocal seen
        seen = result

    sending = load.open_loop(bodies, host=host, rate=RATE, connections=4096, skip_after_s=60, progress=see)
    with ThreadPoolExecutor(1) as background:
        loading = background.submit(load.run, sending)
        until(lambda: seen.accepted >= RATE * LEAD_S)
        until(lambda: httpx.get(f"{host}/readyz").json()["last_poll_s"] is not None)
        fault(server)
        usage, began = site.usage(), time.monotonic()
        try:
            probe = httpx.post(f"{host}/v1/tasks", json=BODIES[0], timeout=30)
            until(lambda: time.monotonic() - began >= AWAY_S)
            shares = usage.shares()
            ages = [ages_at(url) for url in site.system.endpoints]
            ready = httpx.get(f"{host}/readyz", timeout=30)
        finally:
            away_s = time.monotonic() - began
            bring_back(server)
        back, at = time.monotonic(), site.system.now()
        until(lambda: site.value("SELECT count(*) FROM task_runs WHERE claimed_at > %(at)s", at=at))
        resumed_s = time.monotonic() - back
        return Outage(probe, ready, ages, shares, away_s, resumed_s, loading.result())


def ages_at(url: str) -> dict[str, float]:
    page = scrape.page([url])
    return {store: page.total("last_poll_age_seconds", store=store) for store in ("postgres", "redis")}


def check(site: Site, found: Outage, *, away: str, there: str) -> None:
    """What must be true whichever store it was."""
    site.drained()
    site.prove([receipt.id for receipt in found.load.receipts])
    site.system.stack.check()  # no process has ended
    assert found.load.unanswered == 0
    assert found.resumed_s <= 3
    assert max(found.shares) < MOST_CPU
    assert found.ready.status_code == 503
    assert found.ready.json()["detail"] == f"No answer from {away}."
    assert (found.ready.json()[away], found.ready.json()[there]) == ("down", "up")
    assert min(age[away] for age in found.ages) > found.away_s - 2.5  # /readyz waits for 2 s after them
    assert found.ready.json()["last_poll_age_s"][away] > found.away_s - 0.5
    assert found.ready.json()["last_poll_age_s"][there] < 2.5


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_redis_goes_away_and_tasks_are_accepted(site, own_redis, fault):
    # A lease that a silent Redis carries out after its worker has given up belongs to nobody: it runs out.
    here = site(
        workers=2, redis=own_redis.url, ENQUEUE_TIMEOUT_MS=round(COMMIT_S * 1000), VIS_TIMEOUT_MS=8_000
    )
    found = outage(here, own_redis, fault)
    check(here, found, away="redis", there="postgres")
    assert set(found.load.statuses) == {201}
    assert found.load.latency_s(99) < 2
    assert found.ready.json()["last_poll_s"] > AWAY_S - 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_postgres_goes_away_and_the_answer_is_honest(site, own_postgres, fault):
    here = site(workers=2, postgres=own_postgres.url, ENQUEUE_TIMEOUT_MS=round(COMMIT_S * 1000))
    found = outage(here, own_postgres, fault)
    check(here, found, away="postgres", there="redis")
    assert set(found.load.statuses) == {201, 503}
    assert found.load.statuses[503] > RATE * (AWAY_S - COMMIT_S) / 2
    assert found.load.latency_s(100) < COMMIT_S + 1
    assert (found.probe.status_code, found.probe.headers["retry-after"]) == (503, "1")
    assert found.probe.elapsed.total_seconds() < COMMIT_S + 1
    assert found.ready.json()["last_poll_s"] > AWAY_S - 1  # only Postgres knows; the API counts on


async def test_no_request_waits_for_a_silent_redis(make_settings, redis_url, proxy):
    silent = proxy(redis_url)
    async with open_backend(make_settings(REDIS_ADDR=silent.url)) as backend, client_of(backend) as api:
        silent.swallow("up", "down")
        began = time.monotonic()
        answers = await asyncio.gather(*(api.post("/v1/tasks", json=BODIES[0]) for _ in range(20)))
        assert {answer.status_code for answer in answers} == {201}
        assert time.monotonic() - began < 3  # STORE_TIMEOUT_MS is 5 s


async def test_no_request_waits_longer_than_it_should_for_a_silent_postgres(
    make_settings, postgres_url, proxy
):
    """The two flushers wait for their first statements; what lines up behind them has its own deadline."""
    silent = proxy(postgres_url)
    settings = make_settings(POSTGRES_URL=silent.url, ENQUEUE_TIMEOUT_MS=300)
    async with open_backend(settings) as backend, client_of(backend) as api:

        async def post(after_s: float) -> tuple[int, float]:
            await asyncio.sleep(after_s)
            began = time.monotonic()
            answer = await api.post("/v1/tasks", json=BODIES[0])
            return answer.status_code, time.monotonic() - began

        silent.swallow("up", "down")
        found = await asyncio.gather(*(post(0.05 * i) for i in range(5)))
        assert {status for status, _ in found} == {503}
        assert max(waited_s for _, waited_s in found) < 1.5  # STORE_TIMEOUT_MS is 5 s
        silent.heal()
