"""A burst: send a deck, wait until every task of it has ended, and say how far it is meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench import arrivals, load, scrape, swarm
from bench.delivery import Progress
from bench.receipts import LoadResult
from bench.scenario import Bulk, Closed, Load, Locust, Open, Shape
from bench.system import Running
from bench.tape import Replay
from bench.workload import Dealt
from scheduler.errors import SchedulerError, StartError

_LOOK_S: Final = 0.5
_COUNT_S: Final = 2.0
_STALLED_S: Final = 60.0
_COUNTED_S: Final = 2.0
_ONCE: Final = """
SELECT
    (SELECT count(*) FROM tasks WHERE id = ANY (%(ids)s::uuid[]) AND status = 'succeeded'),
    count(*) FILTER (WHERE outcome = 'succeeded'),
    count(*) FILTER (WHERE outcome NOT IN ('succeeded', 'released'))
FROM task_runs WHERE task_id = ANY (%(ids)s::uuid[])
"""

Tell = Callable[[str, int, int], None]
"""Told (what is being counted, how many so far, of how many)."""


class Stalled(SchedulerError):
    """Nothing has ended for a long time, though tasks are open."""


class Miscounted(StartError):
    """Tasks did not come to the counts that are known beforehand, so no figure of theirs means anything."""


@dataclass(frozen=True, slots=True)
class Burst:
    """What a burst brought back: the client's receipts, with the ids that were accepted."""

    dealt: Dealt
    result: LoadResult

    @property
    def ids(self) -> list[str]:
        """The accepted ids, as the client was given them."""
        return [receipt.id for receipt in self.result.receipts]

    @property
    def places(self) -> list[int]:
        """The places in the deck of what was accepted."""
        return [receipt.place for receipt in self.result.receipts]


def send(system: Running, dealt: Dealt, tell: Tell, how: Load | None = None, *, seed: int = 1) -> Burst:
    """Send the deck; returns when all of it is accepted, or was sent at its time if it is an open loop.

    Args:
        system: To whom.
        dealt: What.
        tell: Told of the progress.
        how: The load that the deck is for; as bulk requests if it is not given.
        seed: Decides random arrivals.

    Raises:
        Stalled: a task was not accepted that should have been tried until it was.
    """
    how = how or Bulk(len(dealt))

    def progress(so_far: LoadResult) -> None:
        tell("accepted", so_far.accepted, so_far.asked)

    if isinstance(how, Locust):
        result = swarm.run(dealt, how, host=system.host, progress=progress)
    else:
        result = load.run(_sending(dealt, how, system.host, seed, progress))
    progress(result)
    patient = isinstance(how, Bulk | Closed | Locust)
    if not result.accepted or (patient and result.accepted < result.asked):
        raise Stalled(f"only {result.accepted} of {result.asked} tasks were accepted: {result.gave_up}")
    return Burst(dealt, result)


def _sending(
    dealt: Dealt, how: Bulk | Closed | Open | Shape | Replay, host: str, seed: int, progress: Progress
) -> Coroutine[Any, Any, LoadResult]:
    if isinstance(how, Bulk):
        return load.bulk(dealt, host=host, size=how.size, senders=how.senders, progress=progress)
    if isinstance(how, Closed):
        return load.closed(dealt, host=host, senders=how.senders, progress=progress)
    return load.open_loop(dealt, host=host, times=arrivals.times(how, seed), progress=progress)


def drain(system: Running, n: int, before: scrape.Page, tell: Tell) -> scrape.Page:
    """Wait until nothing is open any more; `before` is the fleet's page at the beginning of the burst.

    Progress comes from the fleet's counters, the end from Postgres. Both looks cost what is being measured:
    they are rare, and Postgres, which has to count, is asked when the counters say that all have ended, and
    now and then because a worker that died took its counts with it.

    Returns:
        The fleet's page after the end. A worker counts just after its commit, so the page is asked for until
        it has all n ends, or until a moment has passed.

    Raises:
        Stalled: nothing has ended for a minute.
    """
    last, moved = -1, time.monotonic()
    counted = moved
    while True:
        ended = round(ended_by(metrics(system)) - ended_by(before))
        now = time.monotonic()
        if ended != last:
            last, moved = ended, now
            tell("ended", min(max(ended, 0), n), n)
        if ended >= n or now - counted > _COUNT_S:
            counted = now
            if not (left := open_tasks(system)):
                break
            if now - moved > _STALLED_S:
                raise Stalled(f"nothing has ended for {_STALLED_S:.0f} s and {left} tasks are open")
        time.sleep(_LOOK_S)
    tell("ended", n, n)
    until = time.monotonic() + _COUNTED_S
    while ended_by(after := metrics(system)) - ended_by(before) < n and time.monotonic() < until:
        time.sleep(_LOOK_S)
    return after


def metrics(system: Running) -> scrape.Page:
    """The fleet's metrics now."""
    return scrape.page(member.metrics for member in system.fleet)


def ended_by(page: scrape.Page) -> float:
    """Tasks that have ended, by the fleet's own counters."""
    return page.total("tasks_succeeded_total") + page.total("tasks_dead_total")


def open_tasks(system: Running) -> int:
    """Tasks that have not ended, by Postgres' index of them."""
    return int(str(system.query("SELECT count(*) FROM tasks WHERE finished_at IS NULL")[0][0]))


def ran_once(system: Running, ids: Sequence[str]) -> None:
    """See that tasks whose handlers cannot fail came to what they must: each succeeded in its only run.

    No benchmark without faults has retries, losses or dead letters to measure.

    Raises:
        Miscounted: a task has not succeeded, or a run failed, timed out or was lost.
    """
    tasks, successes, others = (int(str(n)) for n in system.query(_ONCE, {"ids": list(ids)})[0])
    if (tasks, successes, others) != (len(ids), len(ids), 0):
        raise Miscounted(
            f"of {len(ids):,} tasks {tasks:,} have succeeded, in {successes:,} runs,"
            f" and {others:,} runs went wrong"
        )
