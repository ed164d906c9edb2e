"""Sends a load to the API and brings back a receipt for each accepted task.

Three ways, each a coroutine that returns a LoadResult:

    closed     w senders, each sends its next body when the last one is answered. It waits politely for a
               slow server, and so hides its stalls: its rate is the server's.
    open_loop  bodies are sent at intended times, whatever the server does, over at most so many
               connections. Latency counts from the intended time, so a stall is seen in full.
    bulk       a few senders, up to 1,000 bodies a request: the quickest way to fill the queue.

`run` drives one of them from synchronous code: `run(closed(deck, host="http://127.0.0.1:8080"))`. It works
in a notebook cell too; there, as in any coroutine, `await closed(...)` does the same.

Every body is sent with an idempotency key of this load, so that sending it again after a broken connection
cannot create a second task. With `keys=False` a body whose answer was lost is not sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Final, TypeVar

import uvloop

from bench.delivery import BULK, Delivery, Progress
from bench.http import Connection, Origin
from bench.receipts import LATE_S, LoadResult
from bench.workload import Body

T = TypeVar("T")

HOST: Final = "http://127.0.0.1:8080"
BULK_MAX: Final = 1000
PATIENCE_S: Final = 30.0


async def closed(
    bodies: Sequence[Body],
    *,
    host: str = HOST,
    senders: int = 8,
    keys: bool = True,
    patience_s: float = PATIENCE_S,
    progress: Progress | None = None,
) -> LoadResult:
    """Send each body as `POST /v1/tasks` until it is accepted or refused, `senders` at a time.

    429 and 503 are tried again after their Retry-After (at most 5 s), an outage after a growing pause. If
    nothing is decided for `patience_s` the load gives up and says why.
    """
    load = Delivery(bodies, host, keys=keys, patience_s=patience_s)
    chunks = (range(i, i + 1) for i in range(len(bodies)))
    async with load.under_way(progress):
        await load.work_off(chunks, senders)
    return load.result


async def bulk(
    bodies: Sequence[Body],
    *,
    host: str = HOST,
    size: int = BULK_MAX,
    senders: int = 4,
    keys: bool = True,
    patience_s: float = PATIENCE_S,
    progress: Progress | None = None,
) -> LoadResult:
    """Send the bodies as `POST /v1/tasks/bulk`, `size` a request; else as `closed` does.

    Raises:
        ValueError: `size` is not from 1 to 1,000.
    """
    if not 1 <= size <= BULK_MAX:
        raise ValueError(f"the bulk size is {size}; it must be from 1 to {BULK_MAX}")
    load = Delivery(bodies, host, keys=keys, patience_s=patience_s, path=BULK)
    chunks = (range(i, min(i + size, len(bodies))) for i in range(0, len(bodies), size))
    async with load.under_way(progress):
        await load.work_off(chunks, senders)
    return load.result


async def open_loop(
    bodies: Sequence[Body],
    *,
    host: str = HOST,
    rate: float | None = None,
    times: Sequence[float] | None = None,
    connections: int = 64,
    skip_after_s: float = 10.0,
    keys: bool = True,
    progress: Progress | None = None,
) -> LoadResult:
    """Send each body once at its intended time: every 1/`rate` seconds, or at `times` after the start.

    At most `connections` requests are under way. A body that finds none free waits, is counted as late, and
    is skipped and counted when it is overdue by `skip_after_s`. Nothing is sent early; timers count in
    milliseconds, so up to about 1 ms late.

    Raises:
        ValueError: neither or both of `rate` and `times` are given, or they do not fit the bodies.
    """
    timetable = _timetable(len(bodies), rate, times)
    load = Delivery(bodies, host, keys=keys)
    idle = [Connection(load.origin) for _ in range(connections)]
    free = asyncio.Semaphore(connections)

    async def send(index: int, intended: float) -> None:
        connection = idle.pop()  # the last one used: the others may close for want of use, and stay closed
        try:
            await load.deliver(connection, range(index, index + 1), intended)
        finally:
            idle.append(connection)
            free.release()

    async with load.under_way(progress), asyncio.TaskGroup() as group:
        for index, intended in enumerate(timetable):
            await load.sleep_until(intended)
            await free.acquire()
            overdue = load.now() - intended
            load.result.late += overdue > LATE_S
            if overdue > skip_after_s:
                load.result.skipped += 1
                free.release()
                continue
            group.create_task(send(index, intended))
    for connection in idle:
        connection.close()
    return load.result


async def answers(host: str) -> None:
    """Return if an HTTP server answers at `host`, whatever it says. Raises NoAnswer, ValueError."""
    connection = Connection(Origin.parse(host), timeout_s=5.0)
    await connection.get("/readyz")
    connection.close()


def run(load: Coroutine[Any, Any, T]) -> T:
    """Drive `load` to its end on an event loop and thread of its own, and return its result.

    A KeyboardInterrupt cancels it first; what was accepted until then is in the object that the progress
    callback was given.
    """
    loop = uvloop.new_event_loop()
    task = loop.create_task(load)
    ended = threading.Event()

    def drive() -> None:
        with contextlib.suppress(BaseException):  # task.result() below raises it, in the caller's thread
            loop.run_until_complete(task)
        loop.close()
        ended.set()

    threading.Thread(target=drive, name="load").start()
    try:
        ended.wait()  # not join: an interrupted join takes the thread for ended
    except KeyboardInterrupt:
        loop.call_soon_threadsafe(task.cancel)
        ended.wait()
        raise
    return task.result()


def _timetable(n: int, rate: float | None, times: Sequence[float] | None) -> Iterable[float]:
    if (rate is None) == (times is None):
        raise ValueError("an open loop takes either a rate or the times of its requests")
    if times is not None:
        if len(times) != n:
            raise ValueError(f"{len(times)} times do not fit {n} bodies")
        return times
    assert rate is not None
    if rate <= 0:
        raise ValueError(f"the rate is {rate:g} a second; it must be above 0")
    return (index / rate for index in range(n))
