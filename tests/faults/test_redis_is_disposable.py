"""Redis is disposable: whatever happens to it, nothing is lost, and it is whole again within seconds."""

from __future__ import annotations

import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Self

import psycopg
import pytest
from fix_process import until
from fix_system import EXECUTED, Site
from redis import Redis as Client
from waiting import eventually

from bench import index
from bench.workload import Mix, deck, expected
from scheduler.embedded import Redis
from scheduler.model import Result
from scheduler.settle import decide

MIX = Mix(flaky=10, fail=5, sleep=5, sleep_ms=50)
"""All four types; the sleepers end well within their lease, so that some runs are always in progress."""

READY = "SELECT count(*) FROM tasks WHERE status = 'queued' OR (status = 'retrying' AND due_at <= now())"
OPEN = "SELECT count(*) FROM tasks WHERE finished_at IS NULL"


class Sample(NamedTuple):
    waiting: int
    """Rows that are ready to run; the larger of two counts, before and after the look into Redis."""
    depth: int
    """Ids in the lists."""


class Depths:
    """Samples of what waits in Postgres and in Redis, taken in the background."""

    def __init__(self, site: Site, every_s: float = 0.05) -> None:
        self._site = site
        self._every_s = every_s
        self._stopping = threading.Event()
        self._thread = ThreadPoolExecutor(1)
        self.samples: list[Sample] = []

    def __enter__(self) -> Self:
        self._done = self._thread.submit(self._sample)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.shutdown()
        self._done.result()

    def excess(self, at_least: int) -> float:
        """The largest depth as a share of what waits, where at least so many rows wait."""
        return max(depth / waiting for waiting, depth in self.samples if waiting >= at_least)

    def _sample(self) -> None:
        with psycopg.connect(self._site.system.postgres_url, autocommit=True) as connection:

            def ready() -> int:
                return connection.execute(READY).fetchone()[0]

            while not self._stopping.wait(self._every_s):
                before, depth = ready(), self._site.depth()
                self.samples.append(Sample(max(before, ready()), depth))


def flush(client: Client, leases: str) -> int:
    """FLUSHALL; how many ids were leased at that moment."""
    with client.pipeline(transaction=True) as pipe:
        pipe.zcard(leases).flushall()
        leased, _ = pipe.execute()
    return leased


@pytest.mark.parametrize(
    ("n", "seed"),
    [
        pytest.param(2_000, 1),
        *(
            pytest.param(20_000, seed, marks=[pytest.mark.slow, pytest.mark.timeout(240)])
            for seed in (1, 2, 3)
        ),
    ],
)
def test_nothing_is_lost_when_redis_forgets_everything(site, n, seed):
    """FLUSHALL at a random moment of a burst, when 10 to 60 % of it has ended."""
    here = site(workers=2, RETRY_BASE_MS=100, RETRY_JITTER_MS=100)
    dealt = deck(MIX, n, seed)
    moment = random.Random(seed).uniform(0.1, 0.6) * n
    ids = here.send(dealt)
    until(lambda: n - here.value(OPEN) >= moment)
    leased = flush(here.client, here.key("leases"))
    with Depths(here) as depths:
        here.drained(120)
    until(lambda: not here.client.hlen(here.key("live")), within_s=10)  # far less than a lease
    here.prove(ids)
    executions = here.value(f"SELECT count(*) FROM task_runs WHERE {EXECUTED}")
    assert 0 <= executions - expected(dealt).runs <= leased
    assert depths.excess(at_least=n // 20) <= 1.2


@pytest.mark.parametrize("times", [1, pytest.param(5, marks=[pytest.mark.slow])])
def test_redis_is_whole_again_within_five_seconds(site, times):
    """10,000 tasks wait; the worker serves another queue, so all of them stay."""
    here = site(workers=1, WORKER_QUEUES="elsewhere")
    ids = here.send([{"type": "noop"}] * 10_000)
    for _ in range(times):
        until(lambda: here.client.hlen(here.key("live")) == len(ids))
        began = time.monotonic()
        here.client.flushall()
        until(lambda: here.client.hlen(here.key("live")) == here.value(OPEN))
        assert time.monotonic() - began <= 5
        found = index.look(here.client, here.system.settings.redis_prefix)
        assert found.held == set(ids)
        assert index.disorder(found) == {}
    assert here.column("SELECT DISTINCT status FROM tasks") == ["queued"]


async def test_a_retry_that_redis_takes_for_a_running_task_does_not_wait_for_the_end_of_its_lease(make_flow):
    """Its settle was committed and Redis never heard of it: a crash, or a flush between the two."""
    flow = await make_flow(VIS_TIMEOUT_MS=60_000)
    await flow.enqueue("flaky")
    await flow.reconciler().reconcile()
    [lease] = await flow.lease()
    failed = decide(lease, Result("failed"), None, flow.settings)
    assert await flow.store.settle([failed], worker="host:1:w1") == {lease.id}
    flow.db.age(lease.id, 10_000)
    assert await flow.place(lease.id) == "leases"
    assert (await flow.reconciler().reconcile())["nudged"] == 1
    await flow.reaper().step()
    pump = flow.pump(batch=1)
    await eventually(pump.step)  # true when it has moved a full page
    [again] = await flow.lease()
    assert again.attempt == 2


def test_a_full_redis_drains(site, own_redis):
    """Tasks are accepted beyond what Redis has room for, and each of them is run, once."""
    here = site(workers=1, redis=own_redis.url)
    first = here.send([{"type": "noop"}] * 100)  # so that its scripts and connections have their room
    here.drained()
    [worker] = here.system.fleet
    worker.child.signal(signal.SIGSTOP)
    here.client.config_set("maxmemory", here.client.info("memory")["used_memory"] + 300_000)
    ids = here.send([{"type": "noop"}] * 6_000)
    assert here.client.info("errorstats")["errorstat_OOM"]["count"] > 0
    assert 0 < here.client.hlen(here.key("live")) < len(ids)
    worker.child.signal(signal.SIGCONT)
    here.drained()
    here.prove([*first, *ids])
    assert here.column(f"SELECT DISTINCT attempt FROM task_runs WHERE {EXECUTED}") == [1]


def test_an_eviction_policy_that_spares_our_keys_is_mentioned(start, here, server_dir):
    """One that may evict them keeps a worker from starting: see tests/cli/test_bad_luck.py."""
    settings = {"maxmemory": "100mb", "maxmemory-policy": "volatile-lru"}
    with Redis(server_dir / "cache", settings=settings) as server:
        worker = start("worker", **here | {"REDIS_ADDR": server.url})
        worker.logs(r".*volatile-lru.*noeviction.*")
        worker.says(r"ready worker .*")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_has_succeeded_leaves_nothing_in_redis(site, own_redis):
    """A million successes later Redis is as small as it was when it was empty: it holds no history."""
    here = site(workers=2, redis=own_redis.url)
    here.send([{"type": "noop"}] * 1_000)  # scripts are known and connections open, as they will be
    here.drained()

    def settled_bytes() -> int:
        here.client.execute_command("MEMORY", "PURGE")
        return here.client.info("memory")["used_memory"]

    keys = set(here.client.keys("*"))
    baseline = min(settled_bytes() for _ in range(5))
    for _ in range(50):
        here.send([{"type": "noop"}] * 20_000)
    here.drained(200)
    assert here.value("SELECT count(*) FROM tasks WHERE status = 'succeeded'") == 1_001_000
    until(lambda: settled_bytes() <= 1.05 * baseline, within_s=20)  # buffers of clients shrink when idle
    assert set(here.client.keys("*")) == keys
