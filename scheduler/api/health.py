"""Whether the process lives, and whether it can do its work."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from scheduler import clock
from scheduler.api.backend import Needs
from scheduler.api.openapi import answers, new_router
from scheduler.api.problems import NOT_READY, Problem
from scheduler.api.views import HealthView, PollAges, ReadyView
from scheduler.errors import SchedulerError

PATIENCE_S: Final = 2.0
"""Longest wait for a store's sign of life."""

router = new_router("health")


@router.get("/healthz", responses=answers())
async def health() -> HealthView:
    """Say that the process lives. No store is asked."""
    return HealthView()


@router.get("/readyz", responses=answers(NOT_READY))
async def ready(backend: Needs) -> ReadyView:
    """Say whether both stores answer, and how long ago the last polls were."""
    store, index = backend.store, backend.index
    polled, pinged = await _in_time(store.last_poll_s(), index.ping())
    up = {"postgres": _succeeded(polled), "redis": _succeeded(pinged)}
    # What Postgres said the last time, while it is away.
    last_poll_s = _age_s(store.worker_polled)
    ages = PollAges(postgres=_age_s(store.polled), redis=_age_s(index.polled))
    if not all(up.values()):
        raise Problem(
            NOT_READY,
            f"No answer from {' and '.join(name for name in up if not up[name])}.",
            extra={name: "up" if up[name] else "down" for name in up}
            | {"last_poll_s": last_poll_s, "last_poll_age_s": ages.model_dump()},
        )
    return ReadyView(last_poll_s=last_poll_s, last_poll_age_s=ages)


def _age_s(at: float | None) -> float | None:
    return None if at is None else round(clock.monotonic() - at, 3)


async def _in_time(*calls: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """The calls, each ended or, after PATIENCE_S, told to end: a dead link may take longer to notice."""
    tasks = [asyncio.create_task(call) for call in calls]
    _, late = await asyncio.wait(tasks, timeout=PATIENCE_S)
    for task in late:
        task.cancel()
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    return tasks


def _succeeded(call: asyncio.Task[Any]) -> bool:
    """Whether the store answered; an error that is no store's is raised."""
    if not call.done() or call.cancelled():
        return False
    error = call.exception()
    if error is not None and not isinstance(error, SchedulerError):
        raise error
    return error is None
