"""Waiting for something that happens elsewhere: looked at again and again, with a deadline."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

LONGEST_S = 10.0
_LOOK_S = 0.005


async def eventually(look: Callable[[], Any | Awaitable[Any]], within_s: float = LONGEST_S) -> Any:
    """The first true answer of `look`; fails if there is none within the time."""
    deadline = monotonic() + within_s
    while True:
        answer = look()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        assert monotonic() < deadline, (
            f"still {answer!r} after {within_s} s: {inspect.getsource(look).strip()}"
        )
        await asyncio.sleep(_LOOK_S)
