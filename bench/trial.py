"""A trial: one system of its own, harmed by the plan of a seed, mended, left to come to rest, and audited."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from bench.arena import LEASE_MS, MAX_LOSSES, PREFIX, STORE_TIMEOUT_MS, Arena
from bench.audit import Verdict, audit, check
from bench.builds import made
from bench.faults import Blow, Fault, carry_out, plan
from bench.traffic import Book, Traffic
from bench.watch import Watch, until_quiet

RATE: Final = 70.0
"""Tasks a second that the clients would send if nobody had to wait: a little more than the fleet can do, so
that there is always a queue."""

COUNTS: Final = 0.8
"""The share of planned faults that must have landed."""

_MEND_S: Final = 30.0
_QUIET_S: Final = 90.0
_STALLED_S: Final = 12.0
_PATIENCE_S: Final = 15.0
"""How long Redis may disagree with a system at rest: a dead leader's lease is part of it."""


def run(seed: int, seconds: float, *, build: str | None = None, folder: Path) -> dict[str, Any]:
    """Harm a system of its own for `seconds` by the plan of `seed`; what became of it, as it is recorded.

    Args:
        seed: Decides the faults and what the clients send.
        seconds: How long, at least; the last fault is undone before the clients stop.
        build: A broken build to run in place of the product.
        folder: Where logs and data go; it must be there.
    """
    with ExitStack() as stack:
        arena = stack.enter_context(Arena(folder, stack.enter_context(made(build)) if build else {}))
        watch = Watch(arena.connect, arena.redis.url, PREFIX)
        traffic = Traffic(
            [api.url for api in arena.apis],
            seed=seed,
            rate=RATE,
            lease_ms=LEASE_MS,
            log=folder / "clients.jsonl",
        )
        with watch:
            with traffic:
                blows = _harm(plan(seed, seconds), seconds, arena, watch)
            arena.mend(_MEND_S)
            quiet_s = until_quiet(arena.connect, within_s=_QUIET_S, stalled_s=_STALLED_S)
        verdict = _judge(arena, traffic.book, watch)
        facts = _facts(arena)
    landed = sum(blow.landed for blow in blows)
    return {
        "seed": seed,
        "seconds": seconds,
        "build": build,
        "passed": verdict.passed,
        "counts": landed >= COUNTS * len(blows),
        "planned": len(blows),
        "landed": landed,
        "quiet_s": round(quiet_s, 1),
        "looks": watch.looks,
        "answers": {str(status): n for status, n in sorted(traffic.book.statuses.items())},
        "keys": len(traffic.book.keys),
        "doubtful": traffic.book.doubtful,
        **facts,
        "verdict": verdict.record(),
        "faults": [_fault(blow) for blow in blows],
    }


def _harm(planned: Sequence[Fault], seconds: float, arena: Arena, watch: Watch) -> list[Blow]:
    """Carry out the plan; returns when the time is over and the last fault is undone."""
    began, over = time.monotonic(), threading.Event()
    try:
        blows = carry_out(planned, arena, lambda: watch.busy, over)
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))
    finally:
        over.set()
        arena.heal()
    return blows


def _judge(arena: Arena, book: Book, watch: Watch) -> Verdict:
    """The audit of everything that there is, and what could only be seen while it happened."""
    verdict = audit(
        arena.postgres.url,
        arena.redis.url,
        book.accepted,
        prefix=PREFIX,
        keys=book.keys,
        doubtful=book.doubtful,
        max_losses=MAX_LOSSES,
        slack_s=STORE_TIMEOUT_MS / 1000,
        patience_s=_PATIENCE_S,
    )
    seen = [f"{id_} {what}" for id_, what in watch.wrong.items()]
    ended = [f"{death.part} with code {death.code}, last words: {death.said}" for death in arena.deaths]
    return replace(
        verdict,
        checks=(
            *verdict.checks,
            check("two places meanwhile", "an id that Redis had in no place or in two, for a moment", seen),
            check("ended by itself", "a process that nobody killed", ended),
            check("refused", "an answer that the request did not deserve", book.refused),
        ),
    )


def _facts(arena: Arena) -> dict[str, Any]:
    """What the history tells of the harm: how the runs ended, and how many answers came too late."""
    with arena.connect() as connection:
        outcomes = connection.execute("SELECT outcome, count(*) FROM task_runs GROUP BY 1 ORDER BY 1")
        late = connection.execute("SELECT count(*) FROM task_runs WHERE late_outcome IS NOT NULL")
        return {"runs": dict(outcomes.fetchall()), "late": late.fetchall()[0][0]}


def _fault(blow: Blow) -> dict[str, Any]:
    fault = blow.fault
    return {
        "kind": fault.kind,
        "at_s": fault.at_s,
        "struck_s": blow.struck_s,
        "landed": blow.landed,
        "what": blow.what,
    }
