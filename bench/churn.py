"""Churn: tasks come and go as fast as they can for minutes; autovacuum has to keep their table in shape."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from bench import load
from bench.burst import Stalled, ended_by, metrics
from bench.progress import told
from bench.side import WORKERS, Side
from bench.workload import Mix, deck

_BATCH: Final = 5_000
_AHEAD: Final = 15_000
_LOOK_S: Final = 0.05
_SAMPLE_S: Final = 2.0
_STALLED_S: Final = 60.0
_SHAPE: Final = """
SELECT n_live_tup::float8, n_dead_tup::float8, autovacuum_count::float8,
    pg_relation_size('tasks_open')::float8, pg_relation_size('tasks_pkey')::float8
FROM pg_stat_user_tables WHERE relname = 'tasks'
"""


class Shape(NamedTuple):
    """Of `tasks`: live and dead rows as Postgres counts them, runs of autovacuum, bytes of two indexes."""

    live: float
    dead: float
    vacuums: float
    open_bytes: float
    key_bytes: float


def churn(side: Side, minutes: float) -> dict[str, float]:
    """Keep a fleet busy for as many minutes; what that did to the table `tasks`.

    Returns:
        `churn.rate`, tasks a second, and what `told_by` tells.
    """
    me = side.system
    with me.with_fleet(WORKERS):
        rate, shapes = _keep_busy(side, minutes)
    return {"churn.rate": rate} | told_by([*shapes, _shape(side)])


def _keep_busy(side: Side, minutes: float) -> tuple[float, list[Shape]]:
    """Send as many tasks as the fleet ends; tasks a second, and the shapes of the table meanwhile."""
    me = side.system
    began, before = time.monotonic(), ended_by(metrics(me))
    shapes = [_shape(side)]
    sent, ended, moved = 0, 0.0, began
    with told(f"churn of {minutes:g} minutes") as tell:
        while (now := time.monotonic()) < began + minutes * 60:
            if sent - ended < _AHEAD:
                sent += load.run(load.bulk(deck(Mix(noop=100), _BATCH), host=me.host, keys=False)).accepted
            else:
                time.sleep(_LOOK_S)
            last, ended = ended, ended_by(metrics(me)) - before
            if ended > last:
                moved = now
            elif now - moved > _STALLED_S:
                raise Stalled(f"nothing has ended for {_STALLED_S:.0f} s")
            if now - began > len(shapes) * _SAMPLE_S:
                shapes.append(_shape(side))
            tell("seconds", round(now - began), round(minutes * 60))
    return ended / (time.monotonic() - began), shapes


def told_by(shapes: Sequence[Shape]) -> dict[str, float]:
    """What became of the table. What is bounded peaks no higher in the second half than in the first.

    Returns:
        `churn.dead`, dead rows at most in percent of all; `churn.vacuums`, runs of autovacuum; and peaks
        of the second half over those of the first: `churn.dead_growth`, of dead rows; `churn.open`, of the
        size of `tasks_open`; `churn.key`, of the bytes of `tasks_pkey` a row.
    """
    half = len(shapes) // 2

    def growth(measure: Callable[[Shape], float]) -> float:
        early, late = (max(map(measure, part)) for part in (shapes[:half], shapes[half:]))
        return late / max(early, 1)

    return {
        "churn.dead": max(100 * shape.dead / max(shape.live + shape.dead, 1) for shape in shapes),
        "churn.vacuums": shapes[-1].vacuums - shapes[0].vacuums,
        "churn.dead_growth": growth(lambda shape: shape.dead),
        "churn.open": growth(lambda shape: shape.open_bytes),
        "churn.key": growth(lambda shape: shape.key_bytes / max(shape.live + shape.dead, 1)),
    }


def _shape(side: Side) -> Shape:
    [shape] = side.system.query(_SHAPE)
    return Shape(*(float(str(value)) for value in shape))
