"""How bodies reach the API: encoding, trying again, and what an answer says about each body of a request.

The three ways of `load` differ in when they send; this is what they share.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from math import ceil
from typing import Final

from bench.http import Connection, NoAnswer, Origin, Response
from bench.receipts import LoadResult, Receipt
from bench.workload import Body

Progress = Callable[[LoadResult], None]

TASKS: Final = "/v1/tasks"
BULK: Final = "/v1/tasks/bulk"

BUSY: Final = frozenset({429, 503})
"""Nothing was accepted; try again when the answer says."""
DOUBTFUL: Final = frozenset({500, 502, 504})
"""It may have been accepted: only a body with a key is sent again."""
ACCEPTED: Final = frozenset({"created", "existing"})
"""What an item of a bulk answer says of an accepted task."""
MISPLACED: Final = frozenset({401, 403, 404, 405})
"""Every other body would be answered alike."""

RETRY_AFTER_CAP_S: Final = 5.0
PAUSE_S: Final = 0.05
PROGRESS_S: Final = 0.1


class GaveUp(Exception):
    """Going on makes no sense: nothing gets through, or this is not the API."""


class Delivery:
    """One load under way: what its senders share."""

    def __init__(
        self,
        bodies: Sequence[Body],
        host: str,
        *,
        keys: bool,
        patience_s: float | None = None,
        path: str = TASKS,
    ) -> None:
        self.origin = Origin.parse(host)
        self.result = LoadResult(asked=len(bodies), began=time.monotonic())
        self._path = path
        self._endpoint = f"{self.origin}{path}"
        self._bodies = bodies
        self._keys = keys
        self._name = uuid.uuid4().hex
        self._patience_s = patience_s
        self._decided = 0.0

    def now(self) -> float:
        """Seconds since the load began."""
        return time.monotonic() - self.result.began

    async def sleep_until(self, instant: float) -> None:
        """Return at `instant` (seconds since the load began) or up to about 1 ms later, never before."""
        while (ahead := instant - self.now()) > 0:  # noqa: ASYNC110 - time is waited for, not a state
            await asyncio.sleep(ceil(ahead * 1000) / 1000)  # timers count in ms, and may be early by one

    @asynccontextmanager
    async def under_way(self, progress: Progress | None) -> AsyncIterator[None]:
        """Keeps the clock, reports progress, and turns GaveUp into a word in the result."""
        self.result.began = time.monotonic()
        reporter = asyncio.create_task(self._report(progress))
        try:
            yield
        except* GaveUp as group:
            self.result.gave_up = str(group.exceptions[0])
        finally:
            reporter.cancel()
            self.result.seconds = self.now()
            if progress is not None:
                progress(self.result)

    async def _report(self, progress: Progress | None) -> None:
        while progress is not None:
            await asyncio.sleep(PROGRESS_S)
            self.result.seconds = self.now()
            progress(self.result)

    async def work_off(self, chunks: Iterable[range], senders: int) -> None:
        """The closed loop: each sender takes the next chunk when it is done with its last one."""
        waiting = iter(chunks)
        async with asyncio.TaskGroup() as group:
            for _ in range(senders):
                group.create_task(self._sender(waiting))

    async def _sender(self, waiting: Iterator[range]) -> None:
        connection = Connection(self.origin)
        try:
            for chunk in waiting:
                await self.deliver(connection, chunk, None)
        finally:
            connection.close()

    async def deliver(self, connection: Connection, chunk: range, intended: float | None) -> None:
        """Send one chunk: until it is decided if `intended` is None, else once."""
        data = self._encoded(chunk)
        first, pause_s = self.now(), PAUSE_S
        while True:
            sent = self.now()
            try:
                response = await connection.post(self._path, data)
            except NoAnswer as fault:
                self.result.unanswered += 1
                again, why, wait_s = self._keys or not fault.sent, str(fault), pause_s
            else:
                self.result.statuses[response.status] += 1
                again = response.status in BUSY or (self._keys and response.status in DOUBTFUL)
                why, wait_s = f"it answers {response.status}", _retry_after(response, pause_s)
                if not again:
                    self._decide(chunk, response, first if intended is None else intended, sent)
            if not again or intended is not None:
                return
            self._check_patience(why)
            await asyncio.sleep(wait_s * random.uniform(1, 1.2))  # not all senders at once
            pause_s = min(pause_s * 2, 1.0)

    def _encoded(self, chunk: range) -> bytes:
        bodies = [self._bodies[index] for index in chunk]
        if self._keys:
            bodies = [
                {**body, "idempotency_key": self._key(index)}
                for body, index in zip(bodies, chunk, strict=True)
            ]
        return json.dumps({"tasks": bodies} if self._path == BULK else bodies[0]).encode()

    def _key(self, index: int) -> str:
        return f"{self._name}-{index}" if self._keys else ""

    def _decide(self, chunk: range, response: Response, intended: float, sent: float) -> None:
        """An answer for good: receipts for what was accepted, a count for what was refused."""
        answered = self._decided = self.now()
        if response.status in MISPLACED:
            raise GaveUp(f"{self._endpoint} answers {response.status}; is this Scheduler's API?")
        before = self.result.accepted
        if response.status < 300:
            for place, (task_id, replay) in zip(chunk, self._outcomes(chunk, response), strict=True):
                if task_id is not None:
                    receipt = Receipt(task_id, place, intended, sent, answered, replay, self._key(place))
                    self.result.receipts.append(receipt)
        accepted = self.result.accepted - before
        self.result.refused += len(chunk) - accepted
        if accepted:
            self.result.latencies.append(answered - intended)

    def _outcomes(self, chunk: range, response: Response) -> list[tuple[str | None, bool]]:
        """For each body of the request in its order: the task's id or None, and whether it is a replay."""
        try:
            answer = json.loads(response.body)
            if self._path == TASKS:
                return [(answer["id"], response.headers.get("idempotent-replayed") == "true")]
            outcomes: list[tuple[str | None, bool]] = [
                (item["task"]["id"] if item["result"] in ACCEPTED else None, item["result"] == "existing")
                for item in answer["items"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise GaveUp(f"{self._endpoint} answers without a task ({error!r})") from None
        if len(outcomes) != len(chunk):
            raise GaveUp(f"{self._endpoint} answers {len(outcomes)} items to {len(chunk)} tasks")
        return outcomes

    def _check_patience(self, why: str) -> None:
        if self._patience_s is not None and self.now() - self._decided > self._patience_s:
            raise GaveUp(f"{self._endpoint} accepted nothing for {self._patience_s:g} s: {why}")


def _retry_after(response: Response, otherwise_s: float) -> float:
    """Seconds to wait, by the answer's Retry-After if it gives a number, and at most the cap."""
    try:
        seconds = float(response.headers["retry-after"])
    except (KeyError, ValueError):  # absent, or the form that is a date
        return otherwise_s
    return min(max(seconds, 0.0), RETRY_AFTER_CAP_S)
