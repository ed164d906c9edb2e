"""Scheduler: tasks come in over HTTP, are kept in Postgres, dealt out by Redis, and run by workers.

    from scheduler import Context, Reject, Retry, handler

    @handler("send_mail")
    async def send_mail(payload: dict, ctx: Context) -> None: ...

How a task travels. Postgres is the truth and is told first; Redis holds ids and can be made again from it.

    enqueue ──▶ lease ──▶ run ──▶ settle ──▶ succeeded
                ▲ ▲ ▲      │        ├──▶ retrying ─────▶ pump ──┐
                │ │ │      │        └──▶ dead letter ──▶ dlq ─┐ │
                │ │ │      └─ its lease ran out ──▶ reaper ─┐ │ │
                │ │ └──── lost (too often: dead letter) ────┘ │ │
                │ └────── redriven ───────────────────────────┘ │
                └──────── due ──────────────────────────────────┘

Where things are. A line imports from itself and the lines above it, and the flow never sideways:

    words        errors  clock  lifecycle  model  backoff  fairness
    instruments  log  config  metrics  failpoints  loop  handlers  held  table
    storage      keys  shard  lua/  queue (Redis) · arrays  connections  sql/  migrate  store (Postgres)
    flow         enqueue  lease  run  settle
    loops        heartbeat  pump  reaper  reconcile  sampler  housekeeping
    desk         dlq  cancel
    worker       solo  slots  worker
    front        api/
    machine      child  fleet  supervisor  embedded  stack
    command      commands  local  cli
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scheduler.backoff import Backoff
    from scheduler.errors import Reject, Retry
    from scheduler.handlers import Context, handler

__all__ = ["Backoff", "Context", "Reject", "Retry", "handler"]

_HOMES = {
    "Backoff": "backoff",
    "Context": "handlers",
    "Reject": "errors",
    "Retry": "errors",
    "handler": "handlers",
}


def __getattr__(name: str) -> Any:
    """What handlers are written with, imported when it is first asked for: `--help` needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
