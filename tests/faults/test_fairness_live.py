"""The fair choice on real servers: shares under saturation, a bound on waiting, and no storm of retries."""

from __future__ import annotations

import asyncio
import random
import statistics
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from fix_process import until
from fix_system import EXECUTED, Site

from bench import load
from scheduler.fairness import Policy
from scheduler.model import PRIORITIES

WINDOW = 1_000
WEIGHTS = {"critical": 8, "high": 4, "default": 2, "low": 1}


def check_shares(leased: Sequence[str]) -> None:
    """In any window of 1,000 of these priorities in a row each has its share, to 5 points."""
    assert len(leased) >= WINDOW
    for start in range(len(leased) - WINDOW + 1):
        counts = Counter(leased[start : start + WINDOW])
        for priority, weight in WEIGHTS.items():
            assert abs(counts[priority] / WINDOW - weight / sum(WEIGHTS.values())) <= 0.05, (start, counts)


async def test_full_lists_share_by_weight(flow):
    """Leases of all sizes, as many workers would take them."""
    for priority in PRIORITIES:
        await flow.shard.push([(f"{priority}-{i}", priority, 0) for i in range(2_500)])
    rng, order = random.Random(11), []
    while (await flow.shard.depths()).queued[0]:
        order += await flow.shard.lease(rng.randint(1, 150), f"worker:{len(order)}", 60_000, Policy())
    leased = [id_.partition("-")[0] for id_ in order]
    until_empty = len(leased) - leased[::-1].index("critical") - 1
    assert until_empty >= 4 * WINDOW
    check_shares(leased[:until_empty])


async def test_no_list_waits_beyond_the_bound_in_strict_mode(flow):
    """The highest list never empties, and each of the others is served once in a while, and no more often."""
    bound_s = 0.3
    policy = Policy("strict", max_wait_ms=round(bound_s * 1000))
    for priority in PRIORITIES:
        await flow.shard.push([(f"{priority}-{i}", priority, 0) for i in range(1_000)])
    served = {priority: [time.monotonic()] for priority in PRIORITIES}
    longest_step_s, last = 0.0, time.monotonic()
    while time.monotonic() - served["critical"][0] < 7 * bound_s:
        for id_ in await flow.shard.lease(1, f"worker:{time.monotonic_ns()}", 60_000, policy):
            served[id_.partition("-")[0]].append(time.monotonic())
        await asyncio.sleep(0.005)
        longest_step_s, last = max(longest_step_s, time.monotonic() - last), time.monotonic()
    for priority in PRIORITIES[1:]:
        waits = [later - earlier for earlier, later in pairwise(served[priority])]
        assert len(waits) >= 3
        assert max(waits) <= bound_s + 4 * longest_step_s  # all three may be overdue in the same step
        assert statistics.median(waits) >= bound_s
    assert len(served["critical"]) > 10 * len(served["low"])


def test_a_worker_under_saturation_shares_by_weight(site):
    """By the order of claims in Postgres, as long as all four lists are full."""
    here = site(workers=0, WORKER_POOL=4)
    here.send([{"type": "noop", "priority": p} for p in PRIORITIES for _ in range(800)])
    here.system.start_fleet(1)
    here.drained()
    order = here.column("SELECT priority FROM tasks ORDER BY claimed_at, lease_token")
    until_empty = len(order) - order[::-1].index("critical") - 1
    print(until_empty)
    check_shares(order[: min(until_empty, WINDOW + 300)])


class Waits:
    """How long critical tasks wait: 50 of them a second, and the p95 of each second."""

    RATE = 50

    def __init__(self, site: Site) -> None:
        self._site = site

    def over(self, seconds: int) -> float:
        """The median of the p95 of each of the next seconds, in seconds."""
        began = self._site.system.now()
        bodies = [{"type": "noop", "priority": "critical"}] * (self.RATE * seconds)
        result = load.run(load.open_loop(bodies, host=self._site.system.host, rate=self.RATE))
        assert result.accepted == len(bodies)
        until(lambda: not self._site.value(
            "SELECT count(*) FROM tasks WHERE priority = 'critical' AND finished_at IS NULL"
        ))
        return statistics.median(
            self._site.column(
                "SELECT percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM r.started_at - t.due_at))"
                " FROM tasks AS t JOIN task_runs AS r ON r.task_id = t.id"
                " WHERE t.priority = 'critical' AND t.created_at >= %(began)s"
                " GROUP BY floor(extract(epoch FROM t.created_at - %(began)s))",
                began=began,
            )
        )


class Dues:
    """The due times of all retries of a priority, read from the retry set while they wait there."""

    def __init__(self, site: Site, priority: str) -> None:
        self._site = site
        self._key = site.key("retry", priority)
        self._stopping = threading.Event()
        self._thread = ThreadPoolExecutor(1)
        self._found: set[tuple[str, float]] = set()

    def __enter__(self):
        self._done = self._thread.submit(self._sample)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.shutdown()
        self._done.result()

    def _sample(self) -> None:
        while not self._stopping.wait(0.1):  # the shortest wait in the set is RETRY_BASE_MS
            self._found.update(self._site.client.zrange(self._key, 0, -1, withscores=True))

    def seconds(self) -> list[float]:
        """All due times, in order."""
        return sorted(score / 1000 for _, score in self._found)


@pytest.mark.parametrize("n", [1_000, pytest.param(5_000, marks=[pytest.mark.slow])])
def test_tasks_that_always_fail_make_no_storm(site, n):
    """Their retries are spread out, and critical tasks hardly notice them."""
    here = site(workers=2)
    waits = Waits(here)
    waits.over(1)
    idle_s = waits.over(3)
    with Dues(here, "low") as dues:
        ids = here.send([{"type": "always_fail", "priority": "low", "max_retries": 3}] * n)
        stormy_s = waits.over(5)
        here.drained()
    here.prove(ids)
    assert here.value(f"SELECT count(*) FROM task_runs WHERE {EXECUTED} AND outcome = 'failed'") == 4 * n
    assert here.value("SELECT count(*) FROM tasks WHERE dead_at IS NOT NULL") == n
    due = dues.seconds()
    assert len(due) == 3 * n
    busiest = max(bisect_right(due, second + 1) - i for i, second in enumerate(due))
    print(f"{idle_s=:.4f} {stormy_s=:.4f} {busiest=} mean={len(due) / (due[-1] - due[0]):.0f} spread={due[-1]-due[0]:.2f}")
    assert busiest <= 3 * len(due) / (due[-1] - due[0])
    assert stormy_s <= 2 * max(idle_s, 0.02)
