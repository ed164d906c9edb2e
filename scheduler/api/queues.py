"""How much each queue holds."""

from __future__ import annotations

import asyncio

from scheduler.api.backend import Needs
from scheduler.api.openapi import answers, new_router
from scheduler.api.problems import UNAVAILABLE
from scheduler.api.views import QueuePage, queue_view

router = new_router("queues")


@router.get("/v1/queues", responses=answers(UNAVAILABLE))
async def list_queues(backend: Needs) -> QueuePage:
    """List the queues with what is ready, waiting for its due time, dead and in flight."""
    names = await backend.store.queues()
    depths = await asyncio.gather(*(backend.index.shard(name).depths() for name in names))
    return QueuePage(items=[queue_view(name, d) for name, d in zip(names, depths, strict=True)])
