"""Latency: from the instant at which a client meant to send a task until its handler starts.

    idle-200    critical noops, 200 a second, to a fleet with nothing else to do
    idle-1000   1,000 a second
    half-200    the same while tasks of 100 ms take half of the fleet's slots, coming and going
    half-1000
    burst       200 a second while a burst of low tasks is enqueued and worked off: those sent in that time

The loop is open: requests go out at intended times, whatever the servers do, and latency counts from the
intended time, so a stall is seen in full. The start is that of the first run in Postgres, `started_at`. It is
Postgres' clock at the claim and what the worker measured since it asked for the claim; client and servers
share a machine and its clock. The reply is the HTTP answer to the same requests, from the same instants.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from heapq import merge
from typing import Final

from bench import load
from bench.burst import Stalled, open_tasks, ran_once
from bench.delivery import BULK
from bench.hammer import Answers, Request, hammer
from bench.receipts import LoadResult, Receipt
from bench.rounds import SLOTS, Arms, Size
from bench.stats import percentile
from bench.system import System
from bench.workload import Body

OCCUPANT_S: Final = 0.1

_PROBE: Final[Body] = {"type": "noop", "priority": "critical"}
_OCCUPANT: Final[Body] = {"type": "sleeper", "payload": {"sleep_ms": round(OCCUPANT_S * 1000)}}
_BURST_RATE: Final = 200
_BURST_SIZE: Final = 1000
_ENDED_S: Final = 60.0
_LOOK_S: Final = 0.05
_STARTS: Final = """
SELECT t.id::text, extract(epoch FROM min(r.started_at))::float8,
    extract(epoch FROM min(r.started_at) - t.created_at)::float8
FROM tasks AS t JOIN task_runs AS r ON r.task_id = t.id
WHERE t.id = ANY (%(ids)s::uuid[]) AND r.started_at IS NOT NULL GROUP BY t.id
"""
_LAST_LOW: Final = "SELECT extract(epoch FROM max(finished_at))::float8 FROM tasks WHERE priority = 'low'"


@contextmanager
def arms(me: System, size: Size) -> Iterator[Arms]:
    """The arms, on a fleet that has been warmed up."""
    with me.with_fleet(size.workers):
        half = size.workers * SLOTS / 2
        seconds = size.probe_s
        probe(me, 200, 1.0)
        yield {
            "idle-200": partial(probe, me, 200, seconds),
            "idle-1000": partial(probe, me, 1000, seconds),
            "half-200": partial(probe, me, 200, seconds, occupied=half),
            "half-1000": partial(probe, me, 1000, seconds, occupied=half),
            "burst": partial(beside_burst, me, seconds, size.low),
        }


def probe(me: System, rate: int, seconds: float, *, occupied: float = 0.0) -> dict[str, float]:
    """Probe at `rate` for `seconds`, while other tasks take `occupied` slots on average."""
    timetable: list[tuple[float, Body]] = _every(rate, seconds, _PROBE)
    if occupied:
        others = _every(occupied / OCCUPANT_S, seconds, _OCCUPANT)
        timetable = list(merge(timetable, others, key=lambda sent: sent[0]))
    result = load.run(_open(me.host, timetable))
    await_ended(me)
    ran_once(me, [receipt.id for receipt in result.receipts])
    probes = [receipt for receipt in result.receipts if timetable[receipt.place][1] is _PROBE]
    return latencies(me, result, probes)


def beside_burst(me: System, seconds: float, low: int) -> dict[str, float]:
    """Probe at 200 a second; early on a burst of low tasks comes. Only the probes that meet it count."""
    result, began, burst = load.run(_with_burst(me.host, seconds, low))
    if burst.accepted * _BURST_SIZE < low:
        raise Stalled(f"the burst was not accepted: {dict(burst.statuses)}")
    await_ended(me)
    ran_once(me, [receipt.id for receipt in result.receipts])
    first = began - result.began
    last = float(str(me.query(_LAST_LOW)[0][0])) - _epoch(result)
    met = [receipt for receipt in result.receipts if first <= receipt.intended <= last]
    return latencies(me, result, met) | {"burst_s": last - first}


def latencies(me: System, result: LoadResult, receipts: Sequence[Receipt]) -> dict[str, float]:
    """Milliseconds until the start, from the row to the start, until the reply, and the generator's lag.

    Raises:
        Stalled: a task has not started, or nothing was accepted.
    """
    rows = me.query(_STARTS, {"ids": [receipt.id for receipt in receipts]})
    starts = {str(id_): float(str(at)) for id_, at, _ in rows}
    if not receipts or len(starts) < len(receipts):
        raise Stalled(f"of {len(receipts)} probes only {len(starts)} have started")
    epoch = _epoch(result)
    waits = [1000 * (starts[receipt.id] - epoch - receipt.intended) for receipt in receipts]
    replies = [1000 * (receipt.answered - receipt.intended) for receipt in receipts]
    lags = [1000 * (receipt.sent - receipt.intended) for receipt in receipts]
    return {
        "p50": percentile(waits, 50),
        "p95": percentile(waits, 95),
        "p99": percentile(waits, 99),
        "created_p95": percentile([1000 * float(str(wait)) for _, _, wait in rows], 95),
        "reply_p95": percentile(replies, 95),
        "lag_p95": percentile(lags, 95),
    }


def await_ended(me: System) -> None:
    """Wait until no task is open.

    Raises:
        Stalled: some are after a minute.
    """
    until = time.monotonic() + _ENDED_S
    while left := open_tasks(me):
        if time.monotonic() > until:
            raise Stalled(f"{left} tasks are open after {_ENDED_S:.0f} s")
        time.sleep(_LOOK_S)


def _epoch(result: LoadResult) -> float:
    """When a load began by the machine's wall clock, which embedded servers share."""
    return result.began + time.clock_gettime(time.CLOCK_REALTIME) - time.monotonic()


def _every(rate: float, seconds: float, body: Body) -> list[tuple[float, Body]]:
    return [(i / rate, body) for i in range(round(rate * seconds))]


async def _open(host: str, timetable: Sequence[tuple[float, Body]]) -> LoadResult:
    times, bodies = zip(*timetable, strict=True)
    result = await load.open_loop(bodies, host=host, times=times, keys=False)
    if result.accepted < result.asked:
        raise Stalled(f"only {result.accepted} of {result.asked} probes were accepted")
    return result


async def _with_burst(host: str, seconds: float, low: int) -> tuple[LoadResult, float, Answers]:
    """The probes; when the burst began, by time.monotonic; the answers to it. It comes from one client."""
    bodies = [{"type": "noop", "priority": "low"}] * _BURST_SIZE
    request = Request(BULK, json.dumps({"tasks": bodies}).encode())

    async def later() -> tuple[float, Answers]:
        await asyncio.sleep(seconds / 4)
        began = time.monotonic()
        return began, await hammer(host, request, 1, requests=low // _BURST_SIZE)

    probes, (began, burst) = await asyncio.gather(_open(host, _every(_BURST_RATE, seconds, _PROBE)), later())
    return probes, began, burst
