"""Traffic: clients that go on sending while everything fails around them, and a list of all they were told.

Each client sends one task after another, to the APIs in turn, some with an idempotency key and some without.
A body with a key is sent again, to the other API, until it is accepted; now and then it is sent twice at
once, or once more after its acceptance. A body without a key is sent again only if it surely has not arrived.
Some accepted tasks are cancelled. The list is what the audit starts from.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self, TextIO

from bench.delivery import TASKS
from bench.http import Connection, NoAnswer, Origin, Response
from bench.workload import PRIORITIES, Body

_CLIENTS: Final = 16
_RUSH: Final = 15
"""A client's first tasks are sent without a pause, so that there is a queue from the beginning."""

_KEYED: Final = 0.6
_AT_ONCE: Final = 0.05
_REPLAYED: Final = 0.1
_CANCELLED: Final = 0.04
_DELAYED: Final = 0.1
_PATIENCE_S: Final = 20.0
_ANSWER_S: Final = 3.0
_PAUSE_S: Final = 0.1

_ACCEPTED: Final = frozenset({200, 201})
_NOT_NOW: Final = frozenset({429, 500, 502, 503, 504})

Answer = Response | NoAnswer


def draw(rng: random.Random, lease_ms: int) -> Body:
    """One task of a mix in which everything occurs."""
    kinds = ("noop", "work", "flaky", "always_fail", "sleeper", "outlives")
    [kind] = rng.choices(kinds, weights=(25, 50, 12, 5, 7, 1))
    payload: Body = {
        "noop": {},
        "work": {"ms": rng.randint(100, 300)},
        "flaky": {"fail_times": rng.randint(1, 2)},
        "always_fail": {},
        "sleeper": {"sleep_ms": rng.randint(50, 200)},
        "outlives": {"sleep_ms": 3 * lease_ms // 2},
    }[kind]
    body: Body = {
        "type": "sleeper" if kind == "outlives" else kind,
        "priority": rng.choice(PRIORITIES),
        "payload": payload,
        "max_retries": 1 if kind == "always_fail" else 3,
    }
    if rng.random() < _DELAYED:
        body["delay_ms"] = rng.randint(200, 1500)
    return body


class Book:
    """Every request and what was answered to it.

    Attributes:
        keys: Every idempotency key that was sent → the ids of all 2xx answers to it.
        doubtful: Requests without a key that may have arrived and had no answer that says so.
        refused: Answers that no request of ours deserves.
        statuses: All answers, by status; 0 is no answer.
    """

    def __init__(self, log: TextIO) -> None:
        self._log = log
        self._began = time.monotonic()
        self._unkeyed: list[str] = []
        self.keys: dict[str, set[str]] = {}
        self.doubtful = 0
        self.refused: list[str] = []
        self.statuses: Counter[int] = Counter()

    @property
    def accepted(self) -> list[str]:
        """The ids that were given: each one of a request without a key, and each key's once."""
        return [*self._unkeyed, *sorted({id_ for ids in self.keys.values() for id_ in ids})]

    def now(self) -> float:
        """Seconds since the beginning."""
        return round(time.monotonic() - self._began, 3)

    def write(self, sent_s: float, origin: Origin, path: str, key: str | None, answer: Answer) -> str | None:
        """Write a request down with its answer; the task's id, if there is one in it."""
        status, id_ = 0, None
        if isinstance(answer, Response):
            status = answer.status
            id_ = str(json.loads(answer.body)["id"]) if status in _ACCEPTED else None
        self.statuses[status] += 1
        line = {"sent_s": sent_s, "answered_s": self.now(), "api": str(origin), "path": path}
        line |= {"key": key, "status": status, "id": id_}
        self._log.write(json.dumps(line) + "\n")
        return id_

    def enter(self, key: str | None, answer: Answer, id_: str | None) -> None:
        """Enter what the answer to a new task promises."""
        if key is not None:
            self.keys.setdefault(key, set()).update({id_} if id_ else ())
        elif id_ is not None:
            self._unkeyed.append(id_)
        elif not surely_not_arrived(answer):
            self.doubtful += 1
        if isinstance(answer, Response) and answer.status not in _ACCEPTED | _NOT_NOW:
            self.refused.append(f"{answer.status} {answer.body[:200]!r}")


def surely_not_arrived(answer: Answer) -> bool:
    """Whether a request without a key may be sent again."""
    return answer.status == 429 if isinstance(answer, Response) else not answer.sent


class Traffic:
    """Clients in a thread of their own, until its block ends; their list is `book`.

    Args:
        urls: The APIs.
        seed: Decides what is sent. When it is sent, and so what becomes of it, is the machine's affair.
        rate: Tasks a second, if nobody has to wait.
        lease_ms: VIS_TIMEOUT_MS of the fleet: a few tasks sleep past it.
        log: Where every request and answer is written down, one JSON object a line.
    """

    def __init__(self, urls: Sequence[str], *, seed: int, rate: float, lease_ms: int, log: Path) -> None:
        self._file = log.open("w", encoding="utf-8")
        self.book = Book(self._file)
        self._stopping = threading.Event()
        self._clients = [
            _Client(self.book, urls, f"{seed}-{number}", lease_ms=lease_ms, pause_s=_CLIENTS / rate)
            for number in range(_CLIENTS)
        ]
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()), name="traffic")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Send nothing new; return when everything that was sent is answered or given up."""
        self._stopping.set()
        self._thread.join()
        self._file.close()

    async def _all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for client in self._clients:
                group.create_task(client.run(self._stopping))


class _Client:
    """One of them; its dice are its own, so what it sends depends on the seed alone."""

    def __init__(self, book: Book, urls: Sequence[str], name: str, *, lease_ms: int, pause_s: float) -> None:
        self._book = book
        self._origins = [Origin.parse(url) for url in urls]
        self._connections = [Connection(origin, timeout_s=_ANSWER_S) for origin in self._origins]
        self._name = name
        self._lease_ms = lease_ms
        self._pause_s = pause_s
        self._rng = random.Random(name)
        self._turn = self._rng.randrange(len(urls))

    async def run(self, stopping: threading.Event) -> None:
        """Send one task after another."""
        number = 0
        while not stopping.is_set():
            number += 1
            body = draw(self._rng, self._lease_ms)
            key = f"{self._name}-{number}" if self._rng.random() < _KEYED else None
            at_once, again, cancel = (self._rng.random() for _ in range(3))
            if key is not None and at_once < _AT_ONCE:
                await asyncio.gather(*(self._send(body, key) for _ in self._connections))
            id_ = await self._deliver(body, key)
            if id_ is not None and key is not None and again < _REPLAYED:
                await self._send(body, key)
            if id_ is not None and cancel < _CANCELLED:
                await self._ask(f"{TASKS}/{id_}/cancel", {}, None)
            if number > _RUSH:
                await asyncio.sleep(self._pause_s * self._rng.uniform(0.5, 1.5))
        for connection in self._connections:
            connection.close()

    async def _deliver(self, body: Body, key: str | None) -> str | None:
        """Send a task until it is known what became of it, or patience ends; its id if it was accepted."""
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until:
            answer, id_ = await self._send(body, key)
            if id_ is not None or (key is None and not surely_not_arrived(answer)):
                return id_
            await asyncio.sleep(_PAUSE_S)
        return None

    async def _send(self, body: Body, key: str | None) -> tuple[Answer, str | None]:
        answer, id_ = await self._ask(TASKS, body, key)
        self._book.enter(key, answer, id_)
        return answer, id_

    async def _ask(self, path: str, body: Body, key: str | None) -> tuple[Answer, str | None]:
        """One request, to the API whose turn it is."""
        self._turn = (self._turn + 1) % len(self._connections)
        connection, origin, sent = self._connections[self._turn], self._origins[self._turn], self._book.now()
        data = body if key is None else body | {"idempotency_key": key}
        answer: Answer
        try:
            answer = await connection.post(path, json.dumps(data).encode())
        except NoAnswer as fault:
            answer = fault
        return answer, self._book.write(sent, origin, path, key, answer)
