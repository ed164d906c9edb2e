"""Handlers that no worker should have to run. `scheduler worker --app hell`, from this directory.

They harm nothing but the process that runs them.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from scheduler import handler

MEGABYTE = 1024 * 1024


@handler("innocent")
async def innocent() -> None:
    """What shares a worker with all of the others."""
    await asyncio.sleep(0.005)


@handler("naps")
async def naps(payload: dict[str, Any]) -> None:
    """Take some time, and let everything else run meanwhile."""
    await asyncio.sleep(payload["s"])


# --- those that do not end ---


@handler("blocks")
async def blocks(payload: dict[str, Any]) -> None:
    """Sleep without letting anything else run."""
    time.sleep(payload["s"])  # noqa: ASYNC251 - this is what is tested


@handler("hangs")
async def hangs() -> None:
    await asyncio.Event().wait()


@handler("hangs_in_a_thread")
def hangs_in_a_thread() -> None:
    threading.Event().wait()


@handler("refuses_to_be_cancelled")
async def refuses_to_be_cancelled() -> None:
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue


# --- those that end in their own way ---


@handler("exits")
async def exits() -> NoReturn:
    raise SystemExit(3)


@handler("exits_in_a_thread")
def exits_in_a_thread() -> NoReturn:
    raise SystemExit(3)


@handler("interrupts")
async def interrupts() -> NoReturn:
    raise KeyboardInterrupt


@handler("interrupts_in_a_thread")
def interrupts_in_a_thread() -> NoReturn:
    raise KeyboardInterrupt


@handler("is_cancelled")
async def is_cancelled() -> NoReturn:
    raise asyncio.CancelledError


@handler("is_cancelled_in_a_thread")
def is_cancelled_in_a_thread() -> NoReturn:
    raise asyncio.CancelledError


@handler("cancels_itself")
async def cancels_itself() -> None:
    """Return with a cancellation of the running task still to come."""
    asyncio.current_task().cancel()


@handler("recurses")
async def recurses() -> None:
    def deeper(n: int) -> int:
        return deeper(n + 1) + 1

    deeper(0)


@handler("hogs_memory")
def hogs_memory() -> None:
    """Take memory until the process has no more: it may have 256 MB above what it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 256 * MEGABYTE
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    taken = []
    while True:
        taken.append(bytearray(16 * MEGABYTE))


# --- those whose words are hard to keep ---


@handler("says_nul")
async def says_nul() -> NoReturn:
    raise ValueError("before\0after")


@handler("says_surrogates")
async def says_surrogates() -> NoReturn:
    raise ValueError("before\ud800after")


@handler("says_ten_megabytes")
async def says_ten_megabytes() -> NoReturn:
    raise ValueError("x" * 10 * MEGABYTE)


class Unprintable(Exception):
    def __str__(self) -> NoReturn:
        raise RuntimeError("no text")


class Unutterable(Exception):
    def __str__(self) -> NoReturn:
        raise SystemExit(4)


@handler("says_nothing")
async def says_nothing() -> NoReturn:
    raise Unprintable


@handler("exits_when_asked")
async def exits_when_asked() -> NoReturn:
    raise Unutterable


@handler("returns_what_cannot_be_sent")
async def returns_what_cannot_be_sent() -> object:
    return threading.Lock()


# --- those that take their process with them ---


@handler("ends_the_process")
async def ends_the_process() -> NoReturn:
    os._exit(3)


@handler("ends_the_process_from_a_thread")
def ends_the_process_from_a_thread() -> NoReturn:
    os._exit(3)


@handler("segfaults")
async def segfaults() -> None:
    ctypes.string_at(0)


@handler("is_killed")
async def is_killed() -> None:
    """As the kernel kills whom it finds with too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


@handler("stops_the_loop")
async def stops_the_loop() -> None:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(60)


@handler("cancels_everything")
async def cancels_everything() -> None:
    """Cancel whatever runs on the loop, the worker's own tasks and this one included."""
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(60)


@handler("cancels_the_others")
async def cancels_the_others() -> None:
    """Cancel what a worker works with, its slots, loops and flushers, and return."""
    for task in asyncio.all_tasks():
        if task.get_name().startswith(("slot", "feeder", "loop", "settle", "watch", "suspects")):
            task.cancel()
