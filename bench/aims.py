"""The aims: what every row of `bench limits` must reach, and what it should reach, by topic.

What must be reached decides the exit code. A row without bounds is told because one would ask for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from bench.receipts import LATE_S
from bench.rows import Limit


def _least(
    name: str,
    title: str,
    unit: str,
    of: str,
    against: str = "",
    *,
    must: float | None = None,
    aim: float | None = None,
) -> Limit:
    """Its bounds are lower ones. The topic is filled in below."""
    return Limit(name, "", title, unit, of, against, must, aim)


def _most(
    name: str,
    title: str,
    unit: str,
    of: str,
    against: str = "",
    *,
    must: float | None = None,
    aim: float | None = None,
) -> Limit:
    """Its bounds are upper ones."""
    return Limit(name, "", title, unit, of, against, must, aim, at_most=True)


def _startup() -> Iterator[Limit]:
    yield _most("help", "`scheduler worker --help`", "s", "help.s", must=0.3)
    yield _most("worker-ready", "a worker, from its start until it takes tasks", "s", "worker.s", must=1)
    yield _most("stack-ready", "`scheduler up` with 3 workers, on data it has", "s", "stack.s", must=1.5)


def _footprint() -> Iterator[Limit]:
    yield _most("idle-worker", "CPU of an idle worker, of a core", "%", "idle.worker", must=2, aim=0.5)
    yield _most("idle-api", "CPU of an idle API, of a core", "%", "idle.api", must=2, aim=0.5)
    yield _most("idle-servers", "CPU of both idle servers, of a core", "%", "idle.servers")
    for part, must, aim in (("worker", 60, 50), ("api", 90, 75)):
        the = "the API" if part == "api" else "a worker"
        yield _most(
            f"rss-{part}", f"memory of {the}, its peak", "MiB", f"stream.{part}_peak", must=must, aim=aim
        )
        title = f"growth of {the} while tasks stream through"
        yield _most(f"growth-{part}", title, "MiB", f"stream.{part}_growth", must=5)
    yield _most("queued", "Redis for a task that waits", "bytes", "queued.bytes")
    title = "growth of a worker that meets a backlog of 40 MB"
    yield _most("payloads", title, "MiB", "payloads.growth", must=20)


def _latency() -> Iterator[Limit]:
    title = "send to start, idle fleet, 200/s, p95, against the HTTP reply"
    yield _most("start", title, "ms", "idle-200.p95", "idle-200.reply_p95", must=3)
    for arm, fleet in (("idle", "idle fleet"), ("half", "half-loaded fleet")):
        for rate in (200, 1000):
            for rank in ("p50", "p95", "p99"):
                aim = 5 if (arm, rate, rank) == ("idle", 200, "p95") else None
                title = f"send to start, {fleet}, {rate:,}/s, {rank}"
                yield _most(f"start-{arm}-{rate}-{rank}", title, "ms", f"{arm}-{rate}.{rank}", aim=aim)
    title = "critical p95 beside a burst of 10,000 low tasks, against idle"
    yield _most("burst", title, "ms", "burst.p95", "idle-200.p95", must=3)
    title = "the same from `created_at` to the start"
    yield _most("burst-created", title, "ms", "burst.created_p95", "idle-200.created_p95")
    yield _most("burst-reply", "the HTTP reply to it", "ms", "burst.reply_p95", "idle-200.reply_p95")
    title = "the generator's own lateness at 200/s, p95"
    yield _most("lag-200", title, "ms", "idle-200.lag_p95", must=1000 * LATE_S)
    yield _most("lag", "the generator's own lateness at 1,000/s, p95", "ms", "idle-1000.lag_p95")


def _occupancy() -> Iterator[Limit]:
    yield _most("long", "24 tasks of 1 s on 2 × 12 slots, new workers", "s", "seconds.all_s", must=1.5)
    yield _most("long-after", "24 tasks of 1 s, workers used to noops", "s", "after-noops.all_s", must=1.5)
    yield _least("busy", "slots in use while 1 ms and 1 s tasks wait", "%", "mix.busy_percent", must=95)


def _rates() -> Iterator[Limit]:
    title = "noops drained by 3 × 12, against batches of one"
    yield _least("drain", title, "/s", "drain.rate", "ones.rate", must=10, aim=14)
    title = "the same against pgbench, 16 clients"
    yield _least("drain-pgbench", title, "/s", "drain.rate", "pgbench.rate")
    yield _most(
        "cpu", "CPU a task in that drain, workers and servers", "µs", "drain.cpu_us", must=110, aim=65
    )
    title = "one task a request, against a FastAPI route without a database"
    yield _least("single", title, "/s", "single.rate", "route.rate", must=0.9, aim=1.2)
    title = "the same with 2 API processes, against pgbench, 16 clients"
    yield _least("two", title, "/s", "two.rate", "pgbench.rate", must=0.45, aim=0.6)
    for batch, must in ((100, 18_000), (1000, 28_000)):
        bulk, title = f"bulk-{batch}", f"{batch:,} tasks a request"
        yield _least(bulk, title, "/s", f"{bulk}.rate", must=must, aim=35_000)
        title = "the same against array inserts by one connection"
        yield _least(f"{bulk}-unnest", title, "/s", f"{bulk}.rate", f"unnest-{batch}.rate", must=0.5)
    title = "CPU of the API for it, against the FastAPI route's"
    yield _most("single-cpu", title, "µs", "single.server_us", "route.server_us")
    yield _most("generator", "the generator's own CPU, one task a request", "µs", "single.generator_us")


def _crowd() -> Iterator[Limit]:
    for arm, what, p95 in (
        ("64", "64 connections", None),
        ("256", "256 connections", None),
        ("1000", "1,000 connections", 2000),
        ("full", "1,000 connections, room for 100 tasks", 2000),
    ):
        yield _least(f"crowd-{arm}", f"{what}: tasks accepted", "/s", f"{arm}.rate")
        yield _most(f"crowd-{arm}-p95", f"{what}: time to answer, p95", "ms", f"{arm}.p95", must=p95)
        yield _most(f"crowd-{arm}-busy", f"{what}: answers 503", "%", f"{arm}.busy_percent")
        yield _most(f"crowd-{arm}-faults", f"{what}: other server errors", "", f"{arm}.faults", must=0)
    title = "time to answer small requests beside bulk ones, p95, against theirs"
    yield _most("beside", title, "ms", "beside.p95", "beside.bulk_p95", must=1)
    title = "small requests accepted beside bulk ones, against alone"
    yield _least("beside-share", title, "/s", "beside.rate", "64.rate", must=0.08)
    yield _most("beside-alone", "their p95, against alone", "ms", "beside.p95", "64.p95")
    yield _least("beside-bulk", "tasks accepted in bulk meanwhile", "/s", "beside.bulk_rate")
    yield _most("beside-faults", "beside bulk requests: server errors but 503", "", "beside.faults", must=0)


AIMS: Final[dict[str, tuple[Limit, ...]]] = {
    topic: tuple(replace(limit, topic=topic) for limit in limits)
    for topic, limits in {
        "startup": _startup(),
        "footprint": _footprint(),
        "latency": _latency(),
        "occupancy": _occupancy(),
        "rates": _rates(),
        "crowd": _crowd(),
    }.items()
}
"""The rows of each topic."""
