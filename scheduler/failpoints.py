"""Failpoints: named places where a test makes a process fail, one for each arrow of the lifecycle.

    SCHEDULER_FAILPOINT=settle.commit:kill scheduler worker

In production nothing is armed and a failpoint is one comparison per batch. An armed one fires once, at the
n-th call that passes it (`settle.commit:lost:3`, default the first), and says so on standard error:

    kill       the effect has happened, then the process is killed (SIGKILL)
    exception  the effect has not happened, the caller gets an error
    lost       the effect has happened, the caller gets an error instead of the answer
    late       the caller gets an error, and the effect happens afterwards; that is said, too

A process that is about to end waits for what is late with `landed`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any, Final, Literal, TypeVar, get_args

from scheduler.errors import ConfigError, QueueUnavailable, StoreUnavailable

T = TypeVar("T")

Mode = Literal["kill", "exception", "lost", "late"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)

POINTS: Final[dict[str, type[Exception]]] = {
    "enqueue.commit": StoreUnavailable,
    "enqueue.push": QueueUnavailable,
    "lease.pop": QueueUnavailable,
    "lease.claim": StoreUnavailable,
    "lease.place": QueueUnavailable,
    "heartbeat.renew": StoreUnavailable,
    "heartbeat.sign": StoreUnavailable,
    "settle.commit": StoreUnavailable,
    "settle.place": QueueUnavailable,
    "release.commit": StoreUnavailable,
    "release.place": QueueUnavailable,
    "release.sign_off": StoreUnavailable,
    "pump.move": QueueUnavailable,
    "reap.expired": QueueUnavailable,
    "reap.commit": StoreUnavailable,
    "reap.place": QueueUnavailable,
    "reap.put_off": QueueUnavailable,
    "leave.commit": StoreUnavailable,
    "leave.sign_off": StoreUnavailable,
    "reconcile.census": QueueUnavailable,
    "reconcile.mark": QueueUnavailable,
    "reconcile.push": QueueUnavailable,
    "reconcile.adopt": QueueUnavailable,
    "reconcile.nudge": QueueUnavailable,
    "reconcile.dlq_add": QueueUnavailable,
    "reconcile.dlq_del": QueueUnavailable,
    "reconcile.epoch": QueueUnavailable,
    "reconcile.mirror": StoreUnavailable,
    "cancel.commit": StoreUnavailable,
    "cancel.forget": QueueUnavailable,
    "redrive.commit": StoreUnavailable,
    "redrive.push": QueueUnavailable,
    "purge.commit": StoreUnavailable,
    "purge.remove": QueueUnavailable,
}
"""Each point, and what its caller gets when the call fails there."""

_LATE_S: Final = 1.0

_armed: tuple[str, Mode] | None = None
_left = 0
_late: set[asyncio.Task[Any]] = set()


def arm(text: str) -> None:
    """Arm the failpoint that `text` names: `POINT:MODE` or `POINT:MODE:N`; an empty text arms none.

    Raises:
        ConfigError: there is no such point or mode, or N is no number of 1 or more.
    """
    global _armed, _left  # noqa: PLW0603 - one process, one failpoint
    if not text:
        _armed = None
        return
    point, _, rest = text.partition(":")
    mode, _, nth = rest.partition(":")
    n = int(nth or "1") if (nth or "1").isdecimal() else 0
    if point not in POINTS or mode not in MODES or n < 1:
        raise ConfigError(f"SCHEDULER_FAILPOINT={text!r} is not POINT:MODE[:N] with a known point and mode")
    _armed, _left = (point, mode), n


async def through(point: str, call: Coroutine[Any, Any, T]) -> T:
    """Await `call`, which is the arrow named `point`; fail there if that is armed."""
    if _armed is None or _armed[0] != point:
        return await call
    return await _fire(point, call)


async def _fire(point: str, call: Coroutine[Any, Any, T]) -> T:
    global _armed, _left  # noqa: PLW0603 - it fires once
    assert _armed is not None
    _left -= 1
    if _left:
        return await call
    mode, _armed = _armed[1], None
    os.write(2, f"failpoint {point}:{mode} was hit\n".encode())
    error = POINTS[point](f"failpoint {point}:{mode}")
    if mode == "exception":
        call.close()
        raise error
    if mode == "late":
        task = asyncio.create_task(_later(f"failpoint {point}:{mode} happened\n", call))
        _late.add(task)
        task.add_done_callback(_late.discard)
        raise error
    await call
    if mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise error


async def _later(words: str, call: Coroutine[Any, Any, Any]) -> None:
    await asyncio.sleep(_LATE_S)
    await call
    os.write(2, words.encode())


async def landed() -> None:
    """Wait until what is late has happened, in the loop that asks; where nothing is, return at once.

    What a process has sent may be carried out when it has gone. Here it is the process that is late, so it
    must not go before.
    """
    loop = asyncio.get_running_loop()
    if late := {task for task in _late if task.get_loop() is loop}:
        await asyncio.wait(late)
