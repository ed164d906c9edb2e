"""Scheduler, as the programs of its peers are: the same work, for `scheduler worker --app scheduler_app`."""

from __future__ import annotations

from typing import Any

import program

from scheduler import handler


@handler("peer.work")
async def work(payload: dict[str, Any]) -> None:
    """The work."""
    await program.work_async(payload["place"], payload["due"], payload["ms"])
