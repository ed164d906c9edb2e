"""The hammer: the lightest closed loop there is, for when the generator must cost less than what it measures.

It sends one prepared request over and over, over so many connections, each as soon as the last one is
answered: straight from the callback that read the answer, so that no coroutine wakes up for it, and of the
answer only the status is kept. It keeps no receipts and tries nothing again; whoever must know what became of
the tasks counts the rows. `load.py` is the generator for everything else.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import httptools

from bench.http import TIMEOUT_S, Origin, post


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
    """Send `requests` of them, or as many as fit into `seconds`. `host` is a URL without TLS."""
    answers = Answers()
    origin = Origin.parse(host)
    began = time.monotonic()
    left = iter(range(requests)) if requests is not None else None

    def more() -> bool:
        if left is not None:
            return next(left, None) is not None
        return seconds is not None and time.monotonic() - began < seconds

    wire = post(origin, request.path, request.body)

    async def sender() -> None:
        loop = asyncio.get_running_loop()
        while more():
            sent = time.monotonic()
            try:
                _, line = await loop.create_connection(
                    lambda: _Line(wire, more, answers), origin.host, origin.port
                )
            except OSError:
                answers.statuses[0] += 1
                answers.latencies.append(time.monotonic() - sent)
            else:
                await line.used_up()

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(sender())
    answers.seconds = time.monotonic() - began
    return answers


class _Line(asyncio.Protocol):
    """One connection: a request as soon as it stands, and the next one with every answer."""

    def __init__(self, wire: bytes, more: Callable[[], bool], answers: Answers) -> None:
        self._wire = wire
        self._more = more
        self._answers = answers
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._sent: float | None = None
        """When the request was sent that has no answer yet."""
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def used_up(self) -> None:
        """Wait until nothing more is to be sent, or the connection is lost."""
        try:
            while not self._over.done():
                # Whoever waits for an answer is looked at now and then: a timer for each would cost more.
                await asyncio.wait((self._over,), timeout=TIMEOUT_S / 10)
                if self._sent is not None and time.monotonic() - self._sent > TIMEOUT_S:
                    self._transport.abort()
        finally:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so
        self._send()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def connection_lost(self, _: Exception | None) -> None:
        if self._sent is not None:
            self._count(0, self._sent)
        self._end()

    def on_message_complete(self) -> None:
        """What httptools calls: the answer is there."""
        if self._sent is None:  # an answer to nothing
            self._transport.abort()
            return
        self._count(self._parser.get_status_code(), self._sent)
        if self._parser.should_keep_alive() and self._more():
            self._send()
        else:
            self._end()

    def _send(self) -> None:
        self._sent = time.monotonic()
        self._transport.write(self._wire)

    def _count(self, status: int, sent: float) -> None:
        self._sent = None
        self._answers.statuses[status] += 1
        self._answers.latencies.append(time.monotonic() - sent)

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)
