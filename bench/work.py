"""Handlers of the workbench: `scheduler worker --app bench.work` serves them beside the built-in ones."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from scheduler import handler


@handler("work")
async def work(payload: dict[str, Any]) -> None:
    """Take `ms` milliseconds (default 100), with the lease renewed, as that of an ordinary handler is."""
    await asyncio.sleep(int(payload.get("ms", 100)) / 1000)


@handler("gate")
async def gate(payload: dict[str, Any]) -> None:
    """Wait until there is a file at `path`."""
    path = Path(payload["path"])
    while not path.exists():  # noqa: ASYNC110, ASYNC240 - a file is the one signal between two processes
        await asyncio.sleep(0.02)
