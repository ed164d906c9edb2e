"""Advice: which settings are at odds with what runs have shown, one small rule each.

A rule looks at what was seen (`evidence.py`) and returns its advice, or None where nothing is wrong. Its
sentence has the numbers that it compares, and says what to set instead.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any, Final

from bench.evidence import Seen
from bench.figure import shown
from bench.stats import percentile

NEARLY_ALL: Final = 99.9
"""The percentile of run times that settings must have room for."""

WORKER_STATEMENTS: Final = 7
"""Statements of one worker that may be on their way at once: a claim, two batches of outcomes, and the loops
reaper, reconcile, sampler and housekeeping. Slots need none: outcomes are recorded in batches."""

BEAT_CONNECTIONS: Final = 2
"""Connections that the heartbeat's thread keeps for itself, as in scheduler/heartbeat.py."""

_LEAST_POOL: Final = 3
"""What the product takes at the least."""

WORKER_CALLS: Final = 7
"""Calls of one worker to Redis at once: a lease or the wait for one, two batches of moves, and the loops
pump, reaper, reconcile and sampler."""

BATCH_MAX: Final = 1000
"""The largest page of ids."""

_CLOSE: Final = 0.8
"""So near to its bound, as a share of it, a value may well be beyond it the next time."""

_FAR: Final = 4
"""What is at most so many times what suffices is left as it is."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What to set instead: the variable, what it is, what it should be, and why, as one sentence."""

    name: str
    now: int
    instead: int
    why: str

    @property
    def line(self) -> str:
        """The advice for a reader."""
        return f"{self.name}={self.now}: {self.why}. Set {self.instead}."

    def content(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"name": self.name, "now": self.now, "instead": self.instead, "why": self.why}


Rule = Callable[[Seen], Advice | None]


def lease(seen: Seen) -> Advice | None:
    """A lease that nothing renews must outlast the run."""
    longest, now = percentile(seen.bare_ms, NEARLY_ALL), seen.settings.vis_timeout_ms
    if not seen.bare_ms or longest <= now:
        return None
    lost = seen.outcomes.get("lost", 0)
    return Advice(
        "VIS_TIMEOUT_MS",
        now,
        _round_up(2 * longest),
        f"runs without a heartbeat take up to {shown(longest, 'ms')} (p99.9), so their leases run out first:"
        f" {lost:,} runs were lost",
    )


def timeout(seen: Seen) -> Advice | None:
    """A handler's time must not be up before it is done."""
    longest, now = percentile(seen.run_ms, NEARLY_ALL), seen.settings.task_timeout_ms
    ended = seen.outcomes.get("timed_out", 0)
    if not seen.run_ms or longest < _CLOSE * now:
        return None
    return Advice(
        "TASK_TIMEOUT_MS",
        now,
        _round_up(3 * longest),
        f"runs take up to {shown(longest, 'ms')} (p99.9), and {ended:,} were ended by it",
    )


def grace(seen: Seen) -> Advice | None:
    """A worker that is stopped should let its runs end."""
    longest, now = percentile(seen.run_ms, NEARLY_ALL), seen.settings.shutdown_grace_ms
    if not seen.run_ms or longest <= now:
        return None
    return Advice(
        "SHUTDOWN_GRACE_MS",
        now,
        _round_up(1.5 * longest),
        f"runs take up to {shown(longest, 'ms')} (p99.9), so each deployment gives some of them back",
    )


def reaper(seen: Seen) -> Advice | None:
    """What is lost should be found soon, measured by the lease that it took to lose it."""
    every, lease_ms = seen.settings.reaper_scan_interval_ms, seen.settings.vis_timeout_ms
    if every <= lease_ms / 2:
        return None
    return Advice(
        "REAPER_SCAN_INTERVAL_MS",
        every,
        max(10, lease_ms // 8),
        f"a lease lasts {lease_ms:,} ms, and one that has run out may lie unseen for {every:,} ms more",
    )


def pump_interval(seen: Seen) -> Advice | None:
    """The pump should look more often than the shortest wait before a retry lasts."""
    every, first = seen.settings.retry_scan_interval_ms, seen.settings.backoff.ceiling_ms(1)
    if not seen.retries_s or every <= max(first, 10):
        return None
    return Advice(
        "RETRY_SCAN_INTERVAL_MS",
        every,
        max(10, int(first) // 2),
        f"a first retry is due {shown(first, 'ms')} after its failure, and a worker's pump looks every"
        f" {every:,} ms only",
    )


def pump_batch(seen: Seen) -> Advice | None:
    """All pumps together must move what becomes due; page follows page, each a round trip."""
    batch, page_ms = seen.settings.retry_batch_size, seen.costs.wake_ms
    most = seen.planned.fleet.processes * batch * 1000 / page_ms if page_ms else float("inf")
    if seen.retries_s <= most:
        return None
    wanted = 2 * seen.retries_s * page_ms / 1000 / seen.planned.fleet.processes
    return Advice(
        "RETRY_BATCH_SIZE",
        batch,
        min(BATCH_MAX, ceil(wanted)),
        f"up to {seen.retries_s:,} retries a second become due, and pages of {batch:,} that take"
        f" {shown(page_ms, 'ms')} each move {most:,.0f} a second",
    )


def worker_connections(seen: Seen) -> Advice | None:
    """What a worker does at once should not wait for a connection to Postgres."""
    now, wanted = seen.settings.pgpool_max_conns, WORKER_STATEMENTS + BEAT_CONNECTIONS
    if now >= wanted:
        return None
    return Advice(
        "PGPOOL_MAX_CONNS",
        now,
        wanted,
        f"the heartbeat keeps {BEAT_CONNECTIONS} of them, and claims, outcomes and loops of"
        f" {seen.settings.worker_pool:,} slots, up to {WORKER_STATEMENTS} statements, share"
        f" {now - BEAT_CONNECTIONS}",
    )


def worker_calls(seen: Seen) -> Advice | None:
    """Nor for one to Redis."""
    now = seen.settings.redis_pool_size
    if now >= WORKER_CALLS:
        return None
    return Advice(
        "REDIS_POOL_SIZE",
        now,
        WORKER_CALLS,
        f"leases, outcomes and loops of a worker are up to {WORKER_CALLS} calls at once",
    )


def fleet_connections(seen: Seen) -> Advice | None:
    """All pools together must fit into the server, or a burst ends in refused connections."""
    each, most = seen.settings.pgpool_max_conns, seen.most_connections
    pools = seen.planned.fleet.processes + 1
    if most is None or pools * each <= most:
        return None
    return Advice(
        "PGPOOL_MAX_CONNS",
        each,
        max(_LEAST_POOL, most // pools),
        f"{pools:,} pools, with the API's, may open {pools * each:,} connections, and Postgres has"
        f" max_connections={most}, which may be raised instead",
    )


def lease_ahead(seen: Seen) -> Advice | None:
    """Leasing ahead hides a round trip; more only keeps tasks from slots that are free elsewhere."""
    now, trip_ms = seen.settings.lease_ahead_ms, seen.costs.lease_ms + seen.costs.settle_ms
    enough = max(50, _round_up(5 * trip_ms))
    if now <= _FAR * enough:
        return None
    back = seen.outcomes.get("released", 0)
    kept = ""
    if seen.run_ms:
        mean_ms = max(statistics.fmean(seen.run_ms), 0.01)
        room = min(int(seen.planned.fleet.slots * now / mean_ms), seen.settings.lease_batch_size)
        kept = f", so a worker keeps up to {room:,} tasks waiting"
    return Advice(
        "LEASE_AHEAD_MS",
        now,
        enough,
        f"a claim and a settle take {shown(trip_ms, 'ms')}{kept}; {back:,} leases were given back unstarted",
    )


def lease_batch(seen: Seen) -> Advice | None:
    """A claim should bring what the slots can start until the next one has come."""
    now, trip_ms = seen.settings.lease_batch_size, seen.costs.lease_ms
    most = now * 1000 / trip_ms if trip_ms else float("inf")
    if seen.starts_s < _CLOSE * most:
        return None
    could = 1 / seen.costs.loop_s if seen.costs.loop_s else 4.0 * seen.starts_s
    return Advice(
        "LEASE_BATCH_SIZE",
        now,
        min(BATCH_MAX, max(2 * now, ceil(2 * could * trip_ms / 1000))),
        f"a claim takes {shown(trip_ms, 'ms')}, so a worker gets at most {most:,.0f} tasks a second, and one"
        f" has started {seen.starts_s:,}",
    )


RULES: Final[tuple[Rule, ...]] = (
    *(lease, timeout, grace, reaper, pump_interval, pump_batch),
    *(worker_connections, worker_calls, fleet_connections, lease_ahead, lease_batch),
)


def given(seen: Seen) -> list[Advice]:
    """What all rules say."""
    return [found for rule in RULES if (found := rule(seen)) is not None]


def _round_up(value: float) -> int:
    """The next number of two digits and zeros; 10 at the least.

    >>> _round_up(1234), _round_up(7)
    (1300, 10)
    """
    step = int(10 ** max(len(str(int(value))) - 2, 0))
    return max(10, ceil(value / step) * step)
