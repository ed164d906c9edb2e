"""The command `soak`: half an hour at half load, and nothing grows.

An API and some workers run an open loop of tasks, sent through HTTP one a request, in pieces of a minute at
most. What the processes hold is sampled every few seconds and judged at the end: see `leaks.py`. Then
nothing may be open, Redis must be as small as it was, and every accepted task is audited.

Half load is half of what the same system ends a second when it is sent as much as it takes; that is measured
first, which also warms it up. The tasks are noops, short work and one in ten that fails once; none of them
becomes a dead letter, which Redis would keep.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from bench import index, load, record
from bench.audit import Verdict, audit
from bench.burst import Stalled, open_tasks
from bench.figure import lined_up
from bench.leaks import HEADERS, MIB, Sample, Samples, Trend
from bench.receipts import LoadResult
from bench.system import OWN_SERVERS, System, system
from bench.vitals import there
from bench.watch import Overdue, until
from bench.workload import PRIORITIES, Body
from scheduler.errors import ConfigError, StartError

WORKERS: Final = 2
APP: Final = "bench.work"
EVERY_S: Final = 5.0
REDIS_GROWTH: Final = 1.05
"""Bytes in Redis at the end, by those before the load: what clients' buffers may make of it."""

_PIECE_S: Final = 60.0
_WARM_UP: Final = 4_000
_TELL_S: Final = 30.0
_REST_S: Final = 30.0
_SETTINGS: Final = OWN_SERVERS | {
    "LOG_LEVEL": "warning",
    "HTTP_ADDR": "127.0.0.1:0",
    "METRICS_ADDR": "127.0.0.1:0",
    "RETRY_BASE_MS": "100",
}


@dataclass(frozen=True, slots=True)
class Soak:
    """What was found.

    Attributes:
        rate: Tasks sent a second.
        capacity: Tasks that the system ended a second when it was sent all it took.
        minutes: How long the load lasted.
        sent: Answers by status; "none" where there was none, "skipped" what was never sent.
        late: Requests that were sent late.
        trends: What the processes and the servers hold.
        redis: Bytes and keys in Redis before and after.
        verdict: The audit.
    """

    rate: float
    capacity: float
    minutes: float
    sent: dict[str, int]
    late: int
    trends: list[Trend]
    redis: dict[str, int]
    verdict: Verdict

    @property
    def redis_flat(self) -> bool:
        """Whether Redis is as it was."""
        before, after = self.redis["bytes_before"], self.redis["bytes_after"]
        return after <= REDIS_GROWTH * before and self.redis["keys_after"] <= self.redis["keys_before"]

    @property
    def holds(self) -> bool:
        """Whether nothing grew, every task that was sent was accepted, and the audit passes."""
        flat = self.redis_flat and all(trend.flat for trend in self.trends)
        return flat and self.sent.keys() == {"201"} and self.verdict.passed

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        verdict = self.verdict
        return {
            "rate": round(self.rate, 1),
            "capacity": round(self.capacity, 1),
            "minutes": self.minutes,
            "workers": WORKERS,
            "sent": self.sent,
            "late": self.late,
            "trends": [asdict(trend) | {"flat": trend.flat} for trend in self.trends],
            "redis": self.redis | {"flat": self.redis_flat},
            "audit": {"passed": verdict.passed, "accepted": verdict.accepted, "checks": len(verdict.checks)},
            "holds": self.holds,
        }

    def lines(self) -> list[str]:
        """What a person should read."""
        redis, verdict = self.redis, "as before" if self.redis_flat else "GREW"
        before, after = (
            f"{redis[f'bytes_{when}'] / MIB:.2f} MiB and {redis[f'keys_{when}']} keys"
            for when in ("before", "after")
        )
        told = f"Redis: {before} before, {after} after: {verdict}"
        sent = ", ".join(f"{n:,} × {status}" for status, n in self.sent.items())
        trends = lined_up(HEADERS, [trend.cells() for trend in self.trends])
        return [trends, "", told, f"answers: {sent}; {self.late:,} sent late", *self.verdict.lines()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `soak` to `parser`."""
    parser.add_argument("--minutes", type=float, default=30.0, metavar="M", help="length of the load (30)")
    parser.add_argument("--rate", type=float, metavar="R", help="tasks a second (half of the capacity)")
    parser.add_argument(
        "--every", type=float, default=EVERY_S, metavar="S", help="seconds between samples (5)"
    )
    parser.add_argument(
        "--app", default=APP, metavar="MODULE", help="whose handler `work` takes a part of the tasks"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a record here")


def main(args: argparse.Namespace) -> int:
    """0 if nothing grew and the audit passes, 1 if not."""
    if not there():
        raise StartError("a soak looks into /proc, and this system has none: run it on Linux")
    if args.minutes * 60 < 4 * args.every or args.every <= 0 or (args.rate is not None and args.rate <= 0):
        raise ConfigError("a soak needs a rate above 0 and time for four samples: see --minutes and --every")
    try:
        found = soak(args.minutes, rate=args.rate, every_s=args.every, app=args.app)
    except (Overdue, Stalled) as error:
        print(f"soak: {error}")
        return 1
    print("\n".join(("", *found.lines())))
    print("\nsoak passed" if found.holds else "\nSOAK FAILED")
    if args.out is not None:
        record.write(args.out, record.make(_command(args), found.record()))
    return 0 if found.holds else 1


def _command(args: argparse.Namespace) -> list[str]:
    """What a reader types to soak again."""
    return [
        "bench soak",
        f"--minutes {args.minutes:g}",
        *([] if args.rate is None else [f"--rate {args.rate:g}"]),
        *([] if args.every == EVERY_S else [f"--every {args.every:g}"]),
        *([] if args.app == APP else [f"--app {args.app}"]),
    ]


def soak(minutes: float, *, rate: float | None, every_s: float, app: str = APP) -> Soak:
    """Run the load for `minutes` on a system of its own; at half of its capacity if there is no `rate`."""
    with system(_SETTINGS, say=print) as me:
        me.start_fleet(WORKERS, args=("--app", app))
        _capacity(me)  # warm-up, not counted
        capacity = _capacity(me)
        rate = capacity / 2 if rate is None else rate
        print(f"capacity {capacity:.0f}/s, load {rate:.0f}/s for {minutes:g} minutes", flush=True)
        before = _redis(me)
        with Samples(
            _pids(me),
            postgres_url=me.postgres_url,
            redis_url=me.redis_url,
            every_s=every_s,
            see=_Teller(minutes).see,
        ) as samples:
            accepted, sent, late = _load(me, rate, minutes * 60)
        until(lambda: not open_tasks(me), "every task has ended", within_s=120)
        after = _redis_at_rest(me, REDIS_GROWTH * before["bytes"])
        print("auditing", flush=True)
        verdict = audit(me.postgres_url, me.redis_url, [str(UUID(bytes=id_)) for id_ in accepted])
    redis = {
        f"{name}_{when}": n
        for when, held in (("before", before), ("after", after))
        for name, n in held.items()
    }
    return Soak(rate, capacity, minutes, sent, late, samples.judge(), redis, verdict)


def _body(i: int) -> Body:
    kinds: Sequence[Body] = (
        {"type": "work", "payload": {"ms": 5}},
        {"type": "flaky", "payload": {"fail_times": 1}},
    )
    kind: Body = kinds[0] if i % 10 < 2 else kinds[1] if i % 10 == 2 else {"type": "noop"}
    return kind | {"priority": PRIORITIES[i % 4], "max_retries": 3}


def _capacity(me: System) -> float:
    """Tasks that the system ends a second while it is sent all that it takes."""
    began = time.monotonic()
    load.run(load.closed([_body(i) for i in range(_WARM_UP)], host=me.host, senders=32))
    until(lambda: not open_tasks(me), "every task of the warm-up has ended", within_s=120)
    return _WARM_UP / (time.monotonic() - began)


def _load(me: System, rate: float, seconds: float) -> tuple[list[bytes], dict[str, int], int]:
    """Send the load in pieces: the accepted ids of 16 bytes, the answers by status, how many were late."""
    ids: list[bytes] = []
    sent: dict[str, int] = {}
    late, numbers = 0, count()
    until_s = time.monotonic() + seconds
    while (left_s := until_s - time.monotonic()) > 0:
        n = max(1, round(rate * min(left_s, _PIECE_S)))
        bodies = [_body(i) for i in (next(numbers) for _ in range(n))]
        piece: LoadResult = load.run(load.open_loop(bodies, host=me.host, rate=rate))
        _all_there(me)
        ids += [UUID(receipt.id).bytes for receipt in piece.receipts]
        for status, answers in piece.statuses.items():
            sent[str(status)] = sent.get(str(status), 0) + answers
        for name, missing in (("none", piece.unanswered), ("skipped", piece.skipped)):
            if missing:
                sent[name] = sent.get(name, 0) + missing
        late += piece.late
    return ids, sent, late


def _all_there(me: System) -> None:
    """Raises Stalled if a process has ended: that is an answer, and not a start that failed."""
    try:
        me.stack.check()
    except StartError as error:
        raise Stalled(str(error)) from None


def _pids(me: System) -> dict[str, int]:
    """The API and the workers, by name."""
    workers = {f"worker {i}": member.pid for i, member in enumerate(me.fleet, 1)}
    return {"API": me.stack.children[0].pid} | workers


def _redis(me: System) -> dict[str, int]:
    """Bytes that Redis uses, without its log of slow calls, and its keys."""
    with index.connected(me.redis_url) as client:
        client.slowlog_reset()
        client.memory_purge()
        return {"bytes": int(client.info("memory")["used_memory"]), "keys": int(client.dbsize())}


def _redis_at_rest(me: System, small: float) -> dict[str, int]:
    """The same once it is small, or after a while: buffers of clients shrink when they are idle."""
    with suppress(Overdue):
        until(lambda: _redis(me)["bytes"] <= small, "Redis is small again", within_s=_REST_S)
    return _redis(me)


class _Teller:
    """Says every half minute how far it is and what the processes hold."""

    def __init__(self, minutes: float) -> None:
        self._minutes = minutes
        self._told = 0.0

    def see(self, second: float, sample: Sample) -> None:
        """Told each sample."""
        if second - self._told >= _TELL_S:
            self._told = second
            memory = [f"{n / MIB:.1f}" for name, n in sample.items() if name.endswith("memory")]
            held = [f"{n:.0f}" for name, n in sample.items() if name.endswith("descriptors")]
            print(
                f"{second / 60:.1f} of {self._minutes:g} min: memory {' '.join(memory)} MiB,"
                f" descriptors {' '.join(held)}",
                flush=True,
            )
