"""End-to-end latency: from a task's acceptance to its success, both by the server's clock.

Asking after every task would load the API more than the tasks do, so this is a sample: the tasks to follow
are spread evenly over the deck (`--e2e-sample`), and a bounded number of times a second (`--e2e-rate`) one
of them is looked up. The look-ups themselves appear in no statistics. What is reported is
`finished_at - created_at` of each followed task that succeeded, as the request type `E2E`; how large the
sample was, and how many of it died or were still open, is printed at the end.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from datetime import datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Final
from urllib.parse import urlsplit

import gevent
from locust.env import Environment

OPEN_MAX: Final = 1_000
"""Tasks followed at once. Only a run without an end can reach it; those beyond it are not followed."""
TIMEOUT_S: Final = 5.0


class EndToEnd:
    """The sample of one process."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._open: deque[tuple[str, str]] = deque()
        self._counts: Counter[str] = Counter()
        self._per_s = 0.0
        self._connection: HTTPConnection | None = None
        gevent.spawn(self._look_up_for_ever)

    def begin(self, per_s: float) -> None:
        """A run starts; from now on there are at most `per_s` look-ups a second."""
        self._per_s = per_s
        self._open.clear()
        self._counts.clear()

    def follow(self, task_id: str, kind: str) -> None:
        """A task of the sample was accepted. `kind` is the row of E2E that it counts in."""
        if self._per_s and len(self._open) < OPEN_MAX:
            self._counts["sampled"] += 1
            self._open.append((task_id, kind))

    def wait(self, timeout_s: float) -> None:
        """Return when no sampled task is open any more, or after `timeout_s`."""
        end = time.monotonic() + timeout_s
        while self._open and time.monotonic() < end:
            gevent.sleep(0.05)

    def counts(self) -> dict[str, int]:
        """Tasks sampled, and how many of them succeeded, died (or were cancelled) and are open."""
        return {
            "sampled": self._counts["sampled"],
            "succeeded": self._counts["succeeded"],
            "dead": self._counts["dead"] + self._counts["cancelled"],
            "open": len(self._open),
        }

    def _look_up_for_ever(self) -> None:
        while True:
            gevent.sleep(1 / self._per_s if self._per_s else 0.1)
            if self._open:
                task_id, kind = self._open[0]
                if self._ended(task_id, kind):
                    self._open.popleft()
                else:
                    self._open.rotate(-1)

    def _ended(self, task_id: str, kind: str) -> bool:
        """Look up one task; True if it is terminal, and then it is counted."""
        task = self._task(task_id)
        if task is None or task["finished_at"] is None:
            return False
        self._counts[task["status"]] += 1
        if task["status"] == "succeeded":
            took = datetime.fromisoformat(task["finished_at"]) - datetime.fromisoformat(task["created_at"])
            fire(self._environment, "E2E", kind, took.total_seconds())
        return True

    def _task(self, task_id: str) -> dict[str, str | None] | None:
        """The task as the API shows it; None if it cannot be had now."""
        try:
            if self._connection is None:
                url = urlsplit(self._environment.host)
                kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
                self._connection = kind(url.netloc, timeout=TIMEOUT_S)
            self._connection.request("GET", f"/v1/tasks/{task_id}")
            response = self._connection.getresponse()
            text = response.read()
            return json.loads(text) if response.status == 200 else None
        except (OSError, HTTPException):
            self._connection = None
            return None


def fire(environment: Environment, request_type: str, name: str, seconds: float) -> None:
    """Put a latency into Locust's statistics, as a row of its own."""
    environment.events.request.fire(
        request_type=request_type,
        name=name,
        response_time=seconds * 1000,
        response_length=0,
        exception=None,
        context={},
    )
