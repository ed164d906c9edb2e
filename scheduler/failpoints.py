"""Failpoints: named places where a test makes a process fail, one for each arrow of the lifecycle.

    SCHEDULER_FAILPOINT=settle.commit:kill scheduler worker

In production nothing is armed and a failpoint is one comparison per batch. An armed one fires once, at the
n-th call that passes it (`settle.commit:lost:3`, default the first), and says so on standard error:

    kill       the effect has happened, then the process is killed (SIGKILL)
    exception  the effect has not happened, the caller gets an error
    lost       the effect has happened, the caller gets an error instead of the answer
    late       the caller gets an error, and the effect happens afterwards
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
    "settle.commit": StoreUnavailable,
    "settle.place": QueueUnavailable,
    "release.commit": StoreUnavailable,
    "release.place": QueueUnavailable,
    "pump.move": QueueUnavailable,
    "reap.expired": QueueUnavailable,
    "reap.commit": StoreUnavailable,
    "reap.place": QueueUnavailable,
    "leave.commit": StoreUnavailable,
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
        ConfigError: there is no such point or mode.
    """
    global _armed, _left  # noqa: PLW0603 - one process, one failpoint
    if not text:
        _armed = None
        return
    point, _, rest = text.partition(":")
    mode, _, nth = rest.partition(":")
    if point not in POINTS or mode not in MODES or not (nth or "1").isdecimal():
        raise ConfigError(f"SCHEDULER_FAILPOINT={text!r} is not POINT:MODE[:N] with a known point and mode")
    _armed, _left = (point, mode), int(nth or "1")


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
        task = asyncio.create_task(_later(call))
        _late.add(task)
        task.add_done_callback(_late.discard)
        raise error
    await call
    if mode == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise error


async def _later(call: Coroutine[Any, Any, Any]) -> None:
    await asyncio.sleep(_LATE_S)
    await call
