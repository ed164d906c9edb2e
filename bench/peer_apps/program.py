"""The program: what the programs of all peers share, which is their command line and the work itself.

    python X_app.py install             # make its tables, where it has any
    python X_app.py burst N             # N noops, many at a time where it has a call for that
    python X_app.py pace RATE N         # N tasks at intended times, RATE a second, one by one
    python X_app.py batch MS N          # N tasks that take MS milliseconds each
    python X_app.py serve               # one worker process, until SIGTERM, where it has no command for that

PEER_URL is its server. A run of a task, but for a noop, appends a line to the file PEER_MARKS when it begins
and one when it ends, each in one write:

    KIND PLACE DUE PID AT               # began or ended; in seconds of the machine's monotonic clock

Nothing here is of a peer, and nothing of ours but this file is needed to run one.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

BULK = 1000
LEAD_S = 0.1

Burst = Callable[[int], Any]
"""Adds n noops; a coroutine function where the peer's own call is one."""
Send = Callable[[int, float, int], Any]
"""Adds one task: its place, when it is due, how many milliseconds it takes."""
Client = Callable[[], AbstractAsyncContextManager[tuple[Burst, Send]]]

_marks: list[int] = []


def ready() -> None:
    """Say that this worker process serves."""
    print("worker is up", flush=True)


def work(place: int, due: float, ms: int) -> None:
    """The task, in a thread or a process of its own."""
    mark("began", place, due)
    if ms:
        time.sleep(ms / 1000)
    mark("ended", place, due)


async def work_async(place: int, due: float, ms: int) -> None:
    """The task, as a coroutine."""
    mark("began", place, due)
    if ms:
        await asyncio.sleep(ms / 1000)
    mark("ended", place, due)


def mark(kind: str, place: int, due: float) -> None:
    """Append one line, which no other process can tear apart."""
    if not _marks:
        _marks.append(os.open(os.environ["PEER_MARKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644))
    os.write(_marks[0], f"{kind} {place} {due} {os.getpid()} {time.monotonic()}\n".encode())


def main(
    client: Client,
    *,
    install: Callable[[], Awaitable[None]] | None = None,
    serve: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Do what the command line says."""
    match sys.argv[1:]:
        case ["burst", n]:
            asyncio.run(_burst(client, int(n)))
        case ["pace", rate, n]:
            asyncio.run(_paced(client, float(rate), int(n)))
        case ["batch", ms, n]:
            asyncio.run(_batch(client, int(ms), int(n)))
        case ["install"] if install is not None:
            asyncio.run(install())
        case ["serve"] if serve is not None:
            asyncio.run(serve())
        case _:
            sys.exit(__doc__)


async def _burst(client: Client, n: int) -> None:
    async with client() as (burst, _):
        await _done(burst(n))


async def _paced(client: Client, rate: float, n: int) -> None:
    """The loop is open: a task that cannot be sent in time is sent late, and stays due when it was."""
    async with client() as (_, send):
        began = time.monotonic() + LEAD_S
        for place in range(n):
            due = began + place / rate
            await asyncio.sleep(due - time.monotonic())
            await _done(send(place, due, 0))


async def _batch(client: Client, ms: int, n: int) -> None:
    async with client() as (_, send):
        for place in range(n):
            await _done(send(place, 0.0, ms))


async def _done(answer: Any) -> None:
    if inspect.isawaitable(answer):
        await answer
