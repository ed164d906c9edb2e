"""The hammer: the lightest closed loop there is, for when the generator must cost less than what it measures.

It sends one prepared request over and over, over so many connections, each as soon as the last one is
answered. It keeps no receipts and tries nothing again; whoever must know what became of the tasks counts the
rows. `load.py` is the generator for everything else.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field

from bench.http import Connection, NoAnswer, Origin


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, always the same: a path and a JSON body."""

    path: str
    body: bytes


@dataclass(slots=True)
class Answers:
    """What came back.

    Attributes:
        statuses: Answers by HTTP status; 0 stands for no answer at all.
        latencies: Seconds from the sending to each answer.
        seconds: How long it took.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    latencies: array[float] = field(default_factory=lambda: array("d"))
    seconds: float = 0.0

    @property
    def accepted(self) -> int:
        """Answers of success."""
        return sum(n for status, n in self.statuses.items() if 200 <= status < 300)

    @property
    def busy(self) -> int:
        """Answers 503: nothing was accepted, and the client shall come back."""
        return self.statuses[503]

    @property
    def faults(self) -> int:
        """Server errors but 503, and requests without an answer."""
        return sum(n for status, n in self.statuses.items() if status == 0 or status >= 500) - self.busy


async def hammer(
    host: str,
    request: Request,
    connections: int,
    *,
    requests: int | None = None,
    seconds: float | None = None,
) -> Answers:
    """Send `requests` of them, or as many as fit into `seconds`."""
    answers = Answers()
    began = time.monotonic()
    left = iter(range(requests)) if requests is not None else None

    def more() -> bool:
        if left is not None:
            return next(left, None) is not None
        return seconds is not None and time.monotonic() - began < seconds

    async def sender() -> None:
        connection = Connection(Origin.parse(host))
        try:
            while more():
                sent = time.monotonic()
                try:
                    status = (await connection.post(request.path, request.body)).status
                except NoAnswer:
                    status = 0
                answers.statuses[status] += 1
                answers.latencies.append(time.monotonic() - sent)
        finally:
            connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(sender())
    answers.seconds = time.monotonic() - began
    return answers
