"""Drift: how far Redis is from Postgres on a system that works.

Between a commit and the word to Redis there is always a moment, so one difference means nothing. Two looks
some seconds apart do: what is in the wrong place at both, and has not moved meanwhile, is adrift. One thing
needs no second look: every script leaves each id in one place, so two places are an offence at once.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import redis
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from bench import index
from bench.audit import Check, Verdict, check, judge_rows
from bench.index import Index

LEASE_S: Final = 60.0
"""The default of VIS_TIMEOUT_MS, in seconds."""

GAP_S: Final = 5.0
"""Seconds between two looks: two intervals of reconcile and of the reaper, with their default settings."""

MEANINGS: Final = {
    "two_places": "an id that is in two places of Redis, or that `live` tells wrong",
    "missing": "an open task that Redis does not know",
    "lapsed": "a task that runs on a lease which is over, and nobody reaps it",
    "unreaped": "a lease in Redis that is over, and nobody looks after it",
    "dead_letters": "a dead letter that is not in the DLQ, or the other way round",
    "left": "an id in `retry` or in a lease whose task has ended or never was",
}
"""Kind of drift → what it is."""

_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_OPEN: Final = """
SELECT id::text, status || attempts, status = 'running' AND lease_expires_at < now()
FROM tasks WHERE finished_at IS NULL
"""
_ENDED: Final = """
SELECT id::text, extract(epoch FROM now() - finished_at)::float8 FROM tasks WHERE id = ANY (%(ids)s::uuid[])
"""
_DEAD: Final = "SELECT id::text FROM tasks WHERE dead_at IS NOT NULL"


@dataclass(frozen=True, slots=True)
class Look:
    """Both stores at one moment: first the rows, then Redis.

    Attributes:
        open: Open tasks → what they are at: status and attempts.
        lapsed: Those of them that run on a lease which is over.
        dead: Dead letters, by the rows.
        index: What Redis holds.
        left: Ids in a retry set or in a lease that is not over, and no task is open that explains them.
    """

    open: Mapping[str, str]
    lapsed: frozenset[str]
    dead: frozenset[str]
    index: Index
    left: frozenset[str]


def look(
    connection: psycopg.Connection[Any], client: redis.Redis, prefix: str, lease_s: float = LEASE_S
) -> Look:
    """Look at both stores. `lease_s` is how long a lease lasts: VIS_TIMEOUT_MS.

    Raises:
        psycopg.Error: Postgres did not answer.
        redis.RedisError: Redis did not.
    """
    rows = connection.execute(_OPEN).fetchall()
    dead = connection.execute(_DEAD).fetchall()
    open_ = {id_: at for id_, at, _ in rows}
    found = index.look(client, prefix)
    return Look(
        open_,
        frozenset(id_ for id_, _, lapsed in rows if lapsed),
        frozenset(id_ for (id_,) in dead),
        found,
        frozenset(_left(connection, found, found.tended - open_.keys(), lease_s)),
    )


def _left(
    connection: psycopg.Connection[Any], found: Index, ids: Collection[str], lease_s: float
) -> Iterator[str]:
    """Those of the ids whose task is not open now either, and which nothing explains.

    A lease is explained if it can be of the task's last run. It stays until it is over when that run was
    cancelled, or when its worker died between the word to Postgres and the word to Redis.
    """
    uuids = [id_ for id_ in ids if _UUID.fullmatch(id_)]
    ended_s = dict(connection.execute(_ENDED, {"ids": uuids}).fetchall())
    for id_ in ids:
        if id_ in ended_s and ended_s[id_] is None:
            continue  # it came, or came back, between the rows and Redis
        explained_ms = 1000 * max(0.0, lease_s - ended_s.get(id_, lease_s))
        if found.leased.get(id_, math.inf) > explained_ms:
            yield id_


def drift(first: Look, second: Look) -> dict[str, list[str]]:
    """By kind, the ids that were adrift at both looks."""

    def still(id_: str) -> bool:
        """Whether the task is at what it was at the first look."""
        return first.open.get(id_) == second.open.get(id_)

    def missing(at: Look) -> set[str]:
        return at.open.keys() - at.index.held

    def unreaped(at: Look) -> set[tuple[str, str]]:
        return {(id_, at.index.live.get(id_, "")) for id_, ms in at.index.leased.items() if ms < 0}

    return {
        "two_places": sorted(index.disorder(first.index).keys() | index.disorder(second.index).keys()),
        "missing": sorted(filter(still, missing(first) & missing(second))),
        "lapsed": sorted(filter(still, first.lapsed & second.lapsed)),
        "unreaped": sorted(id_ for id_, _ in unreaped(first) & unreaped(second)),
        "dead_letters": sorted(
            (first.dead ^ set(first.index.letters)) & (second.dead ^ set(second.index.letters))
        ),
        "left": sorted(first.left & second.left),
    }


def checks(found: Mapping[str, Sequence[str]]) -> list[Check]:
    """Drift as the audit's table has it."""
    return [check(kind.replace("_", " "), MEANINGS[kind], ids) for kind, ids in found.items()]


def audit_live(
    postgres_url: str,
    redis_url: str,
    accepted: Sequence[str] | None,
    *,
    prefix: str = "sched1",
    keys: Mapping[str, Collection[str]] | None = None,
    max_losses: int = 3,
    slack_s: float = 5.0,
    gap_s: float = GAP_S,
    lease_s: float = LEASE_S,
) -> Verdict:
    """Judge a system that works. That a task has not ended is no offence; that Redis is adrift is one.

    It is asked as `audit` is, but that `accepted` may be None: every task that there is. `gap_s` are the
    seconds between the two looks, `lease_s` those of a lease.
    """
    with psycopg.connect(postgres_url, autocommit=True) as rows, index.connected(redis_url) as client:
        first = look(rows, client, prefix, lease_s)
        time.sleep(gap_s)
        found = drift(first, look(rows, client, prefix, lease_s))
        with rows.transaction():
            judged, statuses = judge_rows(
                rows,
                accepted or [],
                keys=keys,
                max_losses=max_losses,
                slack_s=slack_s,
                everything=accepted is None,
                unfinished=True,
            )
    n = sum(statuses.values()) if accepted is None else len(accepted)
    return Verdict(n, statuses, (*judged, *checks(found)))


def watch(
    postgres_url: str, redis_url: str, *, prefix: str, every_s: float, lease_s: float = LEASE_S
) -> Iterator[dict[str, list[str]]]:
    """Look again and again; the drift between each look and the one before.

    Raises:
        psycopg.Error: Postgres did not answer.
        redis.RedisError: Redis did not.
    """
    with psycopg.connect(postgres_url, autocommit=True) as rows, index.connected(redis_url) as client:
        last = look(rows, client, prefix, lease_s)
        while True:
            time.sleep(every_s)
            now = look(rows, client, prefix, lease_s)
            yield drift(last, now)
            last = now


class Exporter:
    """`scheduler_drift{kind}` for Prometheus: how many ids are adrift."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._gauge = Gauge("scheduler_drift", "Ids that are adrift.", ["kind"], registry=registry)
        self._looks = Gauge("scheduler_drift_looks", "Looks that were made.", registry=registry)
        self._registry = registry
        for kind in MEANINGS:
            self._gauge.labels(kind)

    def show(self, found: Mapping[str, Sequence[str]]) -> None:
        """Set the gauges to what was found."""
        self._looks.inc()
        for kind, ids in found.items():
            self._gauge.labels(kind).set(len(ids))

    @contextmanager
    def serving(self, host: str, port: int) -> Iterator[int]:
        """Answer `GET /metrics` while the block runs; the port (0 lets the system choose).

        Raises:
            OSError: the address cannot be bound.
        """
        server, thread = start_http_server(port, host, self._registry)
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
