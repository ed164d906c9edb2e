"""Every metric: its name, labels and meaning, declared once, and the endpoint that shows them.

Names and labels of the original README are kept verbatim. Label values come from closed sets only: the
four priorities, the types that this process has handlers for (any other is `other`), and the words of
lifecycle. Gauges describe the whole system, read from Redis, so every process shows the same and a
dashboard takes their `max`, never their `sum`.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import start_http_server

from scheduler import clock
from scheduler.errors import StartError
from scheduler.lifecycle import DEAD_REASONS
from scheduler.model import PRIORITIES, Depths

disable_created_metrics()  # type: ignore[no-untyped-call] # the library forgot the annotation

BUCKETS: Final[tuple[float, ...]] = tuple(round(0.001 * 2 ** (k / 2), 6) for k in range(36))
"""Seconds: steps of √2 from 1 ms to 185 s, so a quantile read from them is off by a few percent at most."""

OTHER: Final = "other"
REFUSALS: Final = ("unknown", "terminal", "dead", "not_due", "running", "undecided")
REPAIRS: Final = ("pushed", "adopted", "nudged", "dlq_added", "dlq_removed", "rebuilt")


class Server(Protocol):
    """The running endpoint: where it listens, and how to stop it."""

    server_port: int

    def shutdown(self) -> None: ...
    def server_close(self) -> None: ...


class Metrics:
    """The metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self._types: set[str] = set()

        self.enqueued = Counter("tasks_enqueued", "New tasks committed; replays are not counted.", registry=r)
        self.dequeued = Counter("tasks_dequeued", "Claims that Postgres accepted.", ["priority"], registry=r)
        self.succeeded = Counter(
            "tasks_succeeded", "Successes that Postgres accepted.", ["type", "priority"], registry=r
        )
        self.failed = Counter(
            "tasks_failed",
            "Failed or timed out runs that Postgres accepted, retried or not.",
            ["type", "priority"],
            registry=r,
        )
        self.retried = Counter("tasks_retried", "Settled runs whose task will be retried.", registry=r)
        self.reaped = Counter("tasks_reaped", "Runs settled as lost.", registry=r)
        self.acks = Counter("acks", "Ids acknowledged in Redis.", registry=r)
        self.dead = Counter(
            "tasks_dead", "Tasks that became dead letters.", ["type", "priority", "reason"], registry=r
        )
        self.released = Counter("tasks_released", "Tasks given back without an outcome.", registry=r)
        self.fenced = Counter(
            "outcomes_fenced", "Outcomes refused because the worker no longer held the task.", registry=r
        )
        self.refused = Counter(
            "messages_refused", "Leased ids whose row could not be claimed.", ["reason"], registry=r
        )
        self.repairs = Counter(
            "reconcile_repairs", "What reconcile had to put right in Redis.", ["kind"], registry=r
        )
        self.loop_errors = Counter(
            "loop_errors", "Passes of a background loop that failed.", ["loop"], registry=r
        )

        self.run_seconds = Histogram(
            "task_run_seconds", "Time that a handler ran, in seconds.", ["type"], buckets=BUCKETS, registry=r
        )
        self.start_seconds = Histogram(
            "enqueue_to_start_seconds",
            "Time from the moment a task was due to the start of its handler, in seconds.",
            ["priority"],
            buckets=BUCKETS,
            registry=r,
        )

        self.queue_depth = Gauge("queue_depth", "Tasks ready to run.", ["priority"], registry=r)
        self.retry_depth = Gauge(
            "retry_set_depth", "Tasks that wait for their due time.", ["priority"], registry=r
        )
        self.dlq_depth = Gauge("dlq_depth", "Dead letters.", ["priority"], registry=r)
        self.inflight = Gauge("processing_inflight", "Tasks leased by workers.", registry=r)
        self.last_poll = Gauge(
            "last_poll_age_seconds",
            "Seconds since this process last polled the store.",
            ["store"],
            registry=r,
        )

        for priority in PRIORITIES:
            for by_priority in (self.dequeued, self.start_seconds, self.queue_depth):
                by_priority.labels(priority)
            self.retry_depth.labels(priority)
            self.dlq_depth.labels(priority)
        for reason in REFUSALS:
            self.refused.labels(reason)
        for kind in REPAIRS:
            self.repairs.labels(kind)

    def know_types(self, types: set[str]) -> None:
        """Give these types a label value of their own, and their series a first value of 0."""
        self._types = types
        for name in (*sorted(types), OTHER):
            self.run_seconds.labels(name)
            for priority in PRIORITIES:
                self.succeeded.labels(name, priority)
                self.failed.labels(name, priority)
                for reason in DEAD_REASONS:
                    self.dead.labels(name, priority, reason)

    def type_label(self, type_: str) -> str:
        """The label value for a type: itself if this process knows it, `other` if not."""
        return type_ if type_ in self._types else OTHER

    def show(self, depths: Depths) -> None:
        """Set the gauges to what Redis holds."""
        for i, priority in enumerate(PRIORITIES):
            self.queue_depth.labels(priority).set(depths.queued[i])
            self.retry_depth.labels(priority).set(depths.retry[i])
            self.dlq_depth.labels(priority).set(depths.dead[i])
        self.inflight.set(depths.leased)

    def watch_polls(self, **polled: Callable[[], float | None]) -> None:
        """Show with every scrape how long ago each store last answered this process.

        Args:
            polled: By the store's name, what tells when it last answered, as a reading of clock.monotonic;
                while it has never answered, the age counts from this call.
        """
        start = clock.monotonic()

        def age(last: Callable[[], float | None]) -> float:
            return clock.monotonic() - (last() or start)

        for store, last in polled.items():
            self.last_poll.labels(store).set_function(partial(age, last))

    def serve(self, address: tuple[str, int]) -> tuple[Server, threading.Thread]:
        """Answer `GET /metrics` on `address` from a thread of its own; port 0 lets the system choose.

        Raises:
            StartError: the address cannot be bound.
        """
        host, port = address
        try:
            return start_http_server(port, host, self.registry)
        except OSError as error:
            what = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be bound ({error.strerror})"
            raise StartError(
                f"the metrics address {host}:{port} {what}; set METRICS_ADDR to another one (port 0: any)"
            ) from None
