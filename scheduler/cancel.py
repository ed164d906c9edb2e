"""Cancel a task that has not ended: Postgres decides, Redis forgets what it can."""

from __future__ import annotations

from scheduler import failpoints, log
from scheduler.errors import QueueError
from scheduler.model import Task
from scheduler.queue import Index
from scheduler.store import Store


async def cancel(store: Store, index: Index, task_id: str) -> tuple[Task | None, bool]:
    """Cancel one task: its row (None if unknown), and whether this call cancelled it.

    A waiting retry leaves Redis at once; an id in a list or under a lease leaves when its claim is refused.
    A worker that runs the task learns of it with its next renewal.
    """
    task, cancelled = await failpoints.through("cancel.commit", store.cancel(task_id))
    if task is not None and cancelled:
        try:
            forget = index.shard(task.queue).forget([(task.id, task.priority)])
            await failpoints.through("cancel.forget", forget)
        except QueueError as error:
            log.get("cancel").warning("cancelled in Postgres; the claim will refuse the id", error=str(error))
    return task, cancelled
