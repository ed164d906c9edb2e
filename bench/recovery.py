"""Recovery: how soon a system is whole again after a fault, and what the fault has cost.

Each function does one kind of harm again and again and returns its figures. What a crash and an outage cost
is measured on an arena, whose leases and loops are short; a flush and a stop on a system with the default
settings, where a lease lasts a minute: what is given back sooner was not waited for.
"""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import psycopg

from bench import index, load
from bench.amnesia import DEEPEST, recovery
from bench.arena import LEASE_MS, MAX_LOSSES, PREFIX, SETTINGS, STORE_TIMEOUT_MS, Arena
from bench.audit import audit
from bench.burst import Burst, drain, metrics, send
from bench.figure import Figure
from bench.stats import percentile
from bench.system import Member, System
from bench.traffic import Traffic
from bench.vitals import below
from bench.watch import Overdue, open_tasks, until, until_quiet
from bench.workload import Body, Mix, deck
from scheduler.supervisor import Server

CLAIMED_S: Final = LEASE_MS / 1000 + 2 * int(SETTINGS["REAPER_SCAN_INTERVAL_MS"]) / 1000 + 0.5
"""A lease, two scans of the reaper, and half a second."""
WHOLE_S: Final = 5.0
RESUMED_S: Final = 3.0
GIVEN_BACK_S: Final = 1.0

_QUIET_S: Final = 90.0
_STALLED_S: Final = 15.0

Fault = Callable[[Server], None]
SLOTS: Final = {"WORKER_POOL": "12"}
"""What an arena needs for `crashes`: room for what a dead worker held."""


# A worker is killed.

_WORK_S: Final = 0.8
_WORKS: Final[list[Body]] = [{"type": "work", "payload": {"ms": round(_WORK_S * 1000)}}] * 24
_ALONE: Final = 4
"""How many suspects a worker runs at a time; one worker may have taken up all of them."""
_STARTED_S: Final = 3.0
"""What the processes that they run in may take to start, all at once on two cores."""
ENDED_S: Final = CLAIMED_S + len(_WORKS) / _ALONE * _WORK_S + _STARTED_S
_HELD: Final = """
SELECT count(*) FROM tasks WHERE status = 'running' AND split_part(worker, ':', 2)::integer = %(pid)s
"""
_AGAIN: Final = """
SELECT
    extract(epoch FROM next.claimed_at - %(at)s)::float8,
    extract(epoch FROM next.finished_at - %(at)s)::float8
FROM task_runs AS lost
JOIN task_runs AS next ON next.task_id = lost.task_id AND next.attempt = lost.attempt + 1
WHERE lost.outcome = 'lost' AND lost.finished_at > %(at)s
    AND split_part(lost.worker, ':', 2)::integer = %(pid)s
"""


def crashes(arena: Arena, rounds: int) -> list[Figure]:
    """Kill the worker that holds the most, `rounds` times: when are its tasks claimed, and when done?"""
    found = [_crash(arena) for _ in range(rounds)]
    return [
        Figure(
            "crash.claimed",
            f"A worker is killed: until its tasks are claimed again, p99 (lease {LEASE_MS / 1000:g} s)",
            "s",
            tuple(percentile(claimed, 99) for claimed, _ in found),
            "≤",
            CLAIMED_S,
        ),
        Figure(
            "crash.ended",
            "... until the last of them, as a suspect run alone, has ended",
            "s",
            tuple(max(ended) for _, ended in found),
            "≤",
            ENDED_S,
        ),
    ]


def _crash(arena: Arena) -> tuple[list[float], list[float]]:
    """For each task that a killed worker held: seconds until it was claimed again, and until it ended."""
    load.run(load.bulk(_WORKS, host=arena.apis[0].url))
    with arena.connect() as rows:
        until(lambda: open_tasks(rows)[0] == len(_WORKS), "all tasks run")
        victim = max(arena.workers, key=lambda part: _one(rows, _HELD, pid=part.pid))
        what = {"pid": victim.pid, "at": _one(rows, "SELECT clock_timestamp()")}
        with arena.alone(victim.name):
            victim.kill()
        held = _one(rows, _HELD, pid=what["pid"])
        _rest(arena)
        again = rows.execute(_AGAIN, what).fetchall()
    if len(again) < held:
        raise Overdue(f"{len(again)} of the {held} tasks that a killed worker held were claimed again")
    return [claimed for claimed, _ in again], [ended for _, ended in again]


# A store is away.

_RATE: Final = 40.0
_LEAD_S: Final = 2.0
_CLAIMED: Final = "SELECT count(*) FROM tasks WHERE claimed_at > %(at)s"


def crash(server: Server) -> None:
    """It dies, and its port refuses connections."""
    server.kill()


def silence(server: Server) -> None:
    """It stands still, with every connection open."""
    for pid in (server.pid, *below(server.pid)):
        os.kill(pid, signal.SIGSTOP)


def bring_back(server: Server) -> None:
    """It answers again, whichever it was."""
    if server.alive():
        for pid in (server.pid, *below(server.pid)):
            os.kill(pid, signal.SIGCONT)
    server.start()


FAULTS: Final[Sequence[Fault]] = (crash, silence)


def outages(
    arena: Arena, rounds: int, seconds: float, *, log: Path, faults: Sequence[Fault] = FAULTS
) -> list[Figure]:
    """Take each store away for `seconds` under load, `rounds` times in each way; then audit everything."""
    resumed: dict[tuple[str, str], list[float]] = defaultdict(list)
    urls = [api.url for api in arena.apis]
    traffic = Traffic(urls, seed=1, rate=_RATE, lease_ms=LEASE_MS, log=log)
    with traffic:
        for _ in range(rounds):
            for server in (arena.redis, arena.postgres):
                for fault in faults:
                    time.sleep(_LEAD_S)
                    resumed[server.name, fault.__name__].append(_outage(arena, server, fault, seconds))
        time.sleep(_LEAD_S)
    _rest(arena)
    verdict = audit(
        arena.postgres.url,
        arena.redis.url,
        traffic.book.accepted,
        prefix=PREFIX,
        keys=traffic.book.keys,
        doubtful=traffic.book.doubtful,
        max_losses=MAX_LOSSES,
        slack_s=STORE_TIMEOUT_MS / 1000,
        patience_s=_STALLED_S,
    )
    n = rounds * 2 * len(faults)
    return [
        *(
            Figure(
                f"outage.{name.lower()}.{fault}",
                f"{name} is away for {seconds:g} s ({fault}): until the first claim after its return",
                "s",
                tuple(found),
                "≤",
                RESUMED_S,
            )
            for (name, fault), found in resumed.items()
        ),
        Figure(
            "outage.amiss",
            f"Tasks lost, succeeded twice or else amiss after {n} outages, of {verdict.accepted:,} accepted",
            values=(sum(check.offenders for check in verdict.checks),),
            sign="=",
        ),
        Figure("outage.ended", f"Processes that ended in {n} outages", values=(len(arena.deaths),), sign="="),
    ]


def _outage(arena: Arena, server: Server, fault: Fault, seconds: float) -> float:
    """Seconds from a store's return to the first claim."""
    with arena.alone("redis" if server is arena.redis else "postgres"):
        fault(server)
        time.sleep(seconds)
        bring_back(server)
    back = time.monotonic()
    with arena.connect() as rows:
        at = _one(rows, "SELECT clock_timestamp()")
        until(lambda: _one(rows, _CLAIMED, at=at), f"{server.name} is back, and a task is claimed")
    return time.monotonic() - back


# Redis forgets everything.

_NOOPS: Final = Mix(noop=100)


def flushes(me: System, rounds: int, n: int) -> list[Figure]:
    """FLUSHALL with `n` tasks waiting, `rounds` times, and once in the middle of their drain."""
    prefix = me.settings.redis_prefix
    me.start_fleet(1, env={"WORKER_QUEUES": "elsewhere"})  # so that all of them wait
    burst = send(me, deck(_NOOPS, n), _silent)
    whole = []
    with index.connected(me.redis_url) as client:
        for _ in range(rounds):
            client.flushall()
            whole.append(until(lambda: index.depth(client, prefix) >= n, "all tasks are in Redis again"))
        found = index.look(client, prefix)
        amiss = len(set(burst.ids) ^ found.held) + len(index.disorder(found))
        deepest = _flush_amid(me, client, burst)
    me.stop_fleet()
    verdict = audit(me.postgres_url, me.redis_url, burst.ids)
    amiss += sum(check.offenders for check in verdict.checks)
    return [
        Figure(
            "flush.whole",
            f"FLUSHALL with {n:,} tasks queued: until all are in Redis again",
            "s",
            tuple(whole),
            "≤",
            WHOLE_S,
        ),
        Figure(
            "flush.depth",
            "FLUSHALL amid a drain: most ids in the lists, as a share of the rows that wait",
            "×",
            (deepest,),
            "≤",
            DEEPEST,
        ),
        Figure(
            "flush.amiss",
            f"Tasks lost, succeeded twice or else amiss after {rounds + 1} flushes, of {n:,}",
            values=(amiss,),
            sign="=",
        ),
    ]


def _flush_amid(me: System, client: Any, burst: Burst) -> float:
    """FLUSHALL when a quarter of the burst has ended; the largest depth by the rows that wait."""
    n = len(burst.ids)
    with psycopg.connect(me.postgres_url, autocommit=True) as rows:
        me.start_fleet(2)
        until(lambda: open_tasks(rows)[1] <= n * 3 // 4, "a quarter has ended", within_s=120)
        client.flushall()
        _, deepest = recovery(rows, client, me.settings.redis_prefix, n)
    drain(me, n, metrics(me), _silent)
    return deepest


# A worker is asked to stop.

_GRACE_S: Final = 2.0
_STOPPING: Final = {"SHUTDOWN_GRACE_MS": str(round(_GRACE_S * 1000)), "WORKER_POOL": "16"}
_FITS: Final[Body] = {"type": "sleeper", "payload": {"sleep_ms": 1000}}
_LONG: Final[Body] = {"type": "sleeper", "payload": {"sleep_ms": 5000}}
_SPENT: Final = """
SELECT count(*) FROM tasks
WHERE id = ANY (%(ids)s::uuid[])
    AND (failures + losses > 0 OR (payload->>'sleep_ms' = '1000' AND attempts <> 1))
"""
_TAKEN: Final = """
SELECT extract(epoch FROM max(next.claimed_at) - %(at)s)::float8
FROM task_runs AS back
JOIN task_runs AS next ON next.task_id = back.task_id AND next.attempt = back.attempt + 1
WHERE back.task_id = ANY (%(ids)s::uuid[]) AND back.outcome = 'released' AND next.claimed_at > %(at)s
"""


def stops(me: System, rounds: int) -> list[Figure]:
    """SIGTERM to the worker that holds the most, `rounds` times: half of its tasks fit its grace."""
    me.start_fleet(2, env=_STOPPING)
    found = [_stop(me) for _ in range(rounds)]
    me.stop_fleet()
    codes, ended, spent, taken = zip(*found, strict=True)
    return [
        Figure("stop.code", "SIGTERM to a worker: its exit code", values=codes, sign="="),
        Figure(
            "stop.ended",
            f"... until its exit, with a grace of {_GRACE_S:g} s and work for longer",
            "s",
            ended,
        ),
        Figure(
            "stop.spent",
            "... tasks that spent a retry or a loss, or fitted the grace and were run again",
            values=spent,
            sign="=",
        ),
        Figure(
            "stop.taken",
            f"... after the grace, until another worker has claimed the rest"
            f" (lease {me.settings.vis_timeout_ms / 1000:g} s)",
            "s",
            taken,
            "≤",
            GIVEN_BACK_S,
        ),
    ]


def _stop(me: System) -> tuple[int, float, int, float]:
    """The exit code, seconds to the exit, tasks that paid, and seconds after the grace to the last claim."""
    ids = send(me, [_FITS, _LONG] * 8, _silent).ids  # type: ignore[arg-type] # a list of bodies will do
    with psycopg.connect(me.postgres_url, autocommit=True) as rows:
        until(lambda: open_tasks(rows)[0] == len(ids), "all tasks run")
        leaving: Member = max(me.fleet, key=lambda member: _one(rows, _HELD, pid=member.pid))
        at, began = me.now(), time.monotonic()
        code = me.stack.end(leaving.child)
        ended_s = time.monotonic() - began
        me.fleet.remove(leaving)
        me.pids.add(leaving.pid)
        until(lambda: not open_tasks(rows)[1], "all tasks have ended")
        spent, taken_s = _one(rows, _SPENT, ids=ids), _one(rows, _TAKEN, ids=ids, at=at)
    me.start_fleet(1, env=_STOPPING)
    return code, ended_s, spent, taken_s - _GRACE_S


def _rest(arena: Arena) -> None:
    """Undo all harm, and wait until nothing is open."""
    arena.mend(_QUIET_S)
    until_quiet(arena.connect, within_s=_QUIET_S, stalled_s=_STALLED_S)


def _one(rows: psycopg.Connection[Any], sql: str, **params: object) -> Any:
    """The one value that a statement answers."""
    [(value,)] = rows.execute(sql.encode(), params or None).fetchall()
    return value


def _silent(what: str, n: int, of: int) -> None:
    """Progress is told by the command."""
