"""A handler that leaks, for the soak to find: memory with every run, and a descriptor with every tenth."""

from __future__ import annotations

import os
from typing import Any

from scheduler import handler

KEPT: list[bytes] = []


@handler("work")
async def work(payload: dict[str, Any]) -> None:
    KEPT.append(b"x" * 20_000)
    if len(KEPT) % 10 == 0:
        os.open(os.devnull, os.O_RDONLY)
