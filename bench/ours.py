"""Ours: our own system does the work of `contest`, with the same measures."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench import load, marks
from bench.burst import Stalled, drain, metrics, ran_once, send
from bench.contest import LATE_S, RATE, TASK_MS, WARM_UP, busiest
from bench.parking import emptied
from bench.peer import APPS
from bench.progress import told
from bench.rates import frozen, server_pids
from bench.stats import middle_rate
from bench.system import Member, System
from bench.vitals import below, cpu_s
from bench.workload import Body, Mix, deck

NAME: Final = "ours"
WORKERS: Final = 3
FAST_WORKERS: Final = 2
FAST: Final = {"LEASE_BATCH_SIZE": "1000", "SETTLE_BATCH_SIZE": "1000", "LEASE_AHEAD_MS": "500"}
"""What drains noops fastest on two cores: a worker a core, and the largest batches. Each worker holds more,
and takes more with it when it dies."""
SAFE: Final = {"VIS_TIMEOUT_MS": "5000"}
"""A worker is taken for dead after five seconds, as its peers are told where they can be."""

_NOOPS: Final = Mix(noop=100)
_ENDS: Final = "SELECT extract(epoch FROM finished_at)::float8 FROM tasks WHERE id = ANY (%(ids)s::uuid[])"


def burst(me: System, n: int, workers: int, env: Mapping[str, str]) -> dict[str, float]:
    """Noops drained by so many workers with these settings: `rate` and `cpu_us`."""
    with emptied(me), me.with_fleet(workers, env=env) as fleet, told(f"{n:,} noops") as tell:
        before = metrics(me)
        send(me, deck(_NOOPS, WARM_UP), tell)
        before = drain(me, WARM_UP, before, tell)
        with frozen(fleet):
            ids = send(me, deck(_NOOPS, n), tell).ids
            pids = [*server_pids(me), *(member.pid for member in fleet)]
            used = cpu_s(pids)
        drain(me, n, before, tell)
        used = cpu_s(pids) - used
        ran_once(me, ids)
        times = [float(str(at)) for (at,) in me.query(_ENDS, {"ids": ids})]
    return {"rate": middle_rate(times), "cpu_us": used * 1e6 / n}


def pace(me: System, path: Path, n: int) -> dict[str, float]:
    """Waits at a low rate, in milliseconds: from when a request was to be sent until the handler begins.

    Raises:
        Stalled: not all were accepted, or have ended some time later.
    """
    with emptied(me), _serving(me, path, {}):
        for count in (RATE, n):  # the first ones warm up
            marks.clear(path)
            result = load.run(load.open_loop(_bodies(count, 0), host=me.host, rate=RATE, keys=False))
            found = marks.await_ended(path, result.accepted, LATE_S)
            if (done := len(marks.ended(found))) < count:
                raise Stalled(f"only {done} of {count} tasks were accepted and done")
    due = {receipt.place: result.began + receipt.intended for receipt in result.receipts}
    return marks.latencies(found, due)


def kill(me: System, path: Path, n: int, patience_s: float) -> dict[str, float]:
    """What the busiest of the three workers takes with it: see `marks.toll`."""
    with emptied(me), _serving(me, path, SAFE) as fleet:
        marks.clear(path)
        with frozen(fleet):
            load.run(load.bulk(_bodies(n, TASK_MS), host=me.host, keys=False))
        trees = {member.pid: [member.pid, *below(member.pid)] for member in fleet}
        victim = busiest(path, n, trees)[0]
        killed_at = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        found = marks.await_ended(path, n, patience_s)
    return marks.toll(found, n, trees[victim], killed_at)


def _bodies(n: int, ms: int) -> list[Body]:
    return [{"type": "peer.work", "payload": {"place": i, "due": 0, "ms": ms}} for i in range(n)]


@contextmanager
def _serving(me: System, path: Path, own: Mapping[str, str]) -> Iterator[list[Member]]:
    """Workers that know the work, with settings of their own."""
    env = {"PYTHONPATH": str(APPS), "PEER_MARKS": str(path), **own}
    try:
        me.start_fleet(WORKERS, args=("--app", "scheduler_app"), env=env)
        yield me.fleet
    finally:
        me.stop_fleet()
