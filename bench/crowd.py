"""Crowd: the API under more connections than it can serve at once: how it answers, and what it refuses.

    64, 256, 1000   connections that send one task a request, each as soon as the last one is answered
    full            1,000 connections to an API whose line holds 100 tasks, so that most are told to come back
    beside          64 such connections while four others send a thousand tasks a request

Nobody waits before trying again, not even after a 503: a load that no well-behaved client makes.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from bench import load
from bench.hammer import Answers, hammer
from bench.parking import emptied, noops
from bench.rounds import Arms, Size
from bench.stand import Stand
from bench.stats import percentile
from bench.system import System

FEW: Final = 64
MANY: Final = 1000
BULK_CONNECTIONS: Final = 4
LINE: Final = 100


@contextmanager
def arms(me: System, size: Size) -> Iterator[Arms]:
    """The arms, on a system without a fleet; an API with a short line runs until the end."""
    with tempfile.TemporaryDirectory() as folder, Stand(me.stack.env, Path(folder)) as stand:
        short = stand.api("api-short", ENQUEUE_MAX_WAITING=str(LINE)).start().url
        seconds = size.press_s
        pressed = {str(n): partial(_press, me, me.host, n, seconds) for n in (FEW, 256, MANY)}
        yield {
            **pressed,
            "full": partial(_press, me, short, MANY, seconds),
            "beside": partial(_beside, me, seconds),
        }


def _press(me: System, host: str, connections: int, seconds: float) -> dict[str, float]:
    with emptied(me):
        return told(load.run(hammer(host, noops(1), connections, seconds=seconds)))


def _beside(me: System, seconds: float) -> dict[str, float]:
    with emptied(me):
        small, bulk = load.run(_both(me.host, seconds))
    many = {f"bulk_{name}": value for name, value in told(bulk).items()}
    return told(small) | many | {"bulk_rate": 1000 * many["bulk_rate"]}


async def _both(host: str, seconds: float) -> tuple[Answers, Answers]:
    return await asyncio.gather(
        hammer(host, noops(1), FEW, seconds=seconds),
        hammer(host, noops(1000), BULK_CONNECTIONS, seconds=seconds),
    )


def told(answers: Answers) -> dict[str, float]:
    """Accepted a second, milliseconds to any answer, percent of 503, and server errors of any other kind."""
    sent = answers.statuses.total()
    return {
        "rate": answers.accepted / answers.seconds,
        "p50": 1000 * percentile(answers.latencies, 50),
        "p95": 1000 * percentile(answers.latencies, 95),
        "p99": 1000 * percentile(answers.latencies, 99),
        "busy_percent": 100 * answers.busy / sent if sent else 0.0,
        "faults": float(answers.faults),
    }
