"""Redis is disposable: whatever happens to it, nothing is lost, and it is whole again within seconds."""

from __future__ import annotations

import signal
import time

import pytest
from fix_process import until
from fix_system import EXECUTED
from waiting import eventually

from bench import amnesia, index
from scheduler.embedded import Redis
from scheduler.model import Result
from scheduler.settle import decide

OPEN = "SELECT count(*) FROM tasks WHERE finished_at IS NULL"


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
    """FLUSHALL at a random moment of a drain; `bench amnesia --seeds 1-50` plays the scene more often."""
    here = site(workers=0, **amnesia.SETTINGS)
    scene = amnesia.play(here.system, n, seed)
    assert scene.passed, scene.line()
    assert 0.1 * n <= scene.ended < n


@pytest.mark.slow
def test_redis_is_whole_again_within_five_seconds(site):
    """10,000 tasks wait; the worker serves another queue, so all of them stay."""
    here = site(workers=1, WORKER_QUEUES="elsewhere")
    ids = here.send([{"type": "noop"}] * 10_000)
    for _ in range(5):
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


@pytest.mark.slow
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
        here.client.slowlog_reset()
        here.client.memory_purge()
        return here.client.info("memory")["used_memory"]

    keys = set(here.client.keys("*"))
    baseline = min(settled_bytes() for _ in range(5))
    for _ in range(50):
        here.send([{"type": "noop"}] * 20_000)
    here.drained(200)
    assert here.value("SELECT count(*) FROM tasks WHERE status = 'succeeded'") == 1_001_000
    until(lambda: settled_bytes() <= 1.05 * baseline, within_s=20)  # buffers of clients shrink when idle
    assert set(here.client.keys("*")) == keys
