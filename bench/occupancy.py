"""Occupancy: whether slots are used while work waits, with tasks of one second beside tasks of a millisecond.

    seconds       as many tasks of 1 s as two workers have slots, on workers that have run nothing yet
    after-noops   the same on workers that have just run a thousand noops each, and expect more of them
    mix           5 % of the tasks take 1 s, the others 1 ms

Everything is read from the history of runs afterwards.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from heapq import merge
from typing import Final

from bench import load
from bench.burst import ran_once
from bench.latency import await_ended
from bench.rounds import SLOTS, Arms, Size
from bench.system import System
from bench.workload import Body

WORKERS: Final = 2
LONG_PERCENT: Final = 5

_LONG: Final[Body] = {"type": "sleeper", "payload": {"sleep_ms": 1000}}
_SHORT: Final[Body] = {"type": "sleeper", "payload": {"sleep_ms": 1}}
_NOOP: Final[Body] = {"type": "noop"}
_SEED: Final = 1
_SPAN: Final = """
SELECT extract(epoch FROM max(finished_at) - min(created_at))::float8
FROM tasks WHERE id = ANY (%(ids)s::uuid[])
"""
_RUNS: Final = """
SELECT extract(epoch FROM t.created_at)::float8, extract(epoch FROM r.started_at)::float8,
    extract(epoch FROM r.finished_at)::float8
FROM task_runs AS r JOIN tasks AS t ON t.id = r.task_id
WHERE t.id = ANY (%(ids)s::uuid[]) AND r.outcome = 'succeeded'
"""

Run = tuple[float, float, float]
"""When a task was committed, started and ended, in seconds of one clock."""


@contextmanager
def arms(me: System, size: Size) -> Iterator[Arms]:
    """The arms; each starts workers of its own, which know nothing of earlier run times."""
    yield {
        "seconds": partial(_seconds, me, 0),
        "after-noops": partial(_seconds, me, 1000),
        "mix": partial(_mix, me, size.mix),
    }


def _seconds(me: System, noops: int) -> dict[str, float]:
    """Seconds from the commit of the first task of 1 s to the end of the last one."""
    with me.with_fleet(WORKERS):
        if noops:
            _send(me, [_NOOP] * (WORKERS * noops))
            await_ended(me)
        ids = _send(me, [_LONG] * (WORKERS * SLOTS))
        await_ended(me)
    ran_once(me, ids)
    return {"all_s": float(str(me.query(_SPAN, {"ids": ids})[0][0]))}


def _mix(me: System, n: int) -> dict[str, float]:
    """The percentage of slot-seconds in use while tasks wait."""
    long = n * LONG_PERCENT // 100
    bodies = [_LONG] * long + [_SHORT] * (n - long)
    random.Random(_SEED).shuffle(bodies)
    with me.with_fleet(WORKERS):
        ids = _send(me, bodies)
        await_ended(me)
    ran_once(me, ids)
    rows = me.query(_RUNS, {"ids": ids})
    runs = [(float(str(a)), float(str(b)), float(str(c))) for a, b, c in rows]
    return {"busy_percent": 100 * busy_share(runs, WORKERS * SLOTS)}


def busy_share(runs: Sequence[Run], slots: int) -> float:
    """Slot-seconds in use over slot-seconds there are, in the time in which at least one task waits.

    A task waits from its commit until its handler starts, wherever it is meanwhile. 0 if none ever waits.
    """
    came = sorted((committed, 1, 0) for committed, _, _ in runs)
    began = sorted((started, -1, 1) for _, started, _ in runs)
    ended = sorted((finished, 0, -1) for _, _, finished in runs)
    waiting = busy = 0
    used = there = last = 0.0
    for at, waits, runs_more in merge(came, began, ended):
        if waiting:
            used += busy * (at - last)
            there += slots * (at - last)
        waiting, busy, last = waiting + waits, busy + runs_more, at
    return used / there if there else 0.0


def _send(me: System, bodies: Sequence[Body]) -> list[str]:
    return load.run(load.bulk(bodies, host=me.host, keys=False)).all_ids()
