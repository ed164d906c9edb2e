"""Handlers of the workbench: `scheduler worker --app bench.work` serves them beside the built-in ones."""

from __future__ import annotations

import asyncio
from typing import Any

from scheduler import handler


@handler("work")
async def work(payload: dict[str, Any]) -> None:
    """Take `ms` milliseconds (default 100), with the lease renewed, as that of an ordinary handler is."""
    await asyncio.sleep(int(payload.get("ms", 100)) / 1000)
