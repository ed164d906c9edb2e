"""Whether the process lives, and whether it can do its work."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from scheduler.api.backend import Needs
from scheduler.api.openapi import answers, new_router
from scheduler.api.problems import NOT_READY, Problem
from scheduler.api.views import HealthView, ReadyView
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
    """Say whether both stores answer, and when a worker last looked for work."""
    polled, pinged = await _in_time(backend.store.last_poll_s(), backend.index.ping())
    up = {"postgres": _succeeded(polled), "redis": _succeeded(pinged)}
    last_poll_s = polled.result() if up["postgres"] else None
    if not all(up.values()):
        raise Problem(
            NOT_READY,
            f"No answer from {' and '.join(store for store in up if not up[store])}.",
            extra={store: "up" if up[store] else "down" for store in up} | {"last_poll_s": last_poll_s},
        )
    return ReadyView(last_poll_s=last_poll_s)


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
