"""Summary: what a run came to, in figures, whether it was measured or simulated.

The definitions are those of the snapshot table (`bench/report.py`): the drain lasts from the first commit to
the last end, a wait is that of a task's first start, and only calls that came to an end have run times.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import fsum, isnan
from typing import Any, Final

from bench.history import History
from bench.stats import percentile
from bench.workload import PRIORITIES, Expected
from scheduler.lifecycle import OUTCOMES, STATUSES

_RELEASED: Final = OUTCOMES.index("released")
_LOST: Final = OUTCOMES.index("lost")
_FAILED: Final = OUTCOMES.index("failed")


@dataclass(frozen=True, slots=True)
class Wait:
    """Waits of tasks for their first start, in seconds."""

    p50_s: float
    p95_s: float
    mean_s: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts to the unit, and times in seconds.

    Attributes:
        counts: Tasks and runs, as theory counts them.
        runs: Runs by outcome; those that were given back, too.
        drain_s: From the first commit to the last end.
        wait: Of all tasks that were started.
        waits: The same by priority, of those that occur.
        p95_run_s: 95 % of handler calls that came to an end took no longer; None if there was none.
        in_flight: Claimed tasks at a time, on average over the drain.
        utilisation: Slot-seconds of handler calls over those there were; a lost run counts up to its lease.
    """

    counts: Expected
    runs: Mapping[str, int]
    drain_s: float
    wait: Wait
    waits: Mapping[str, Wait]
    p95_run_s: float | None
    in_flight: float
    utilisation: float

    @property
    def throughput(self) -> float:
        """Tasks that ended, a second."""
        return (self.counts.succeeded + self.counts.dead) / self.drain_s if self.drain_s else 0.0

    def content(self) -> dict[str, Any]:
        """The summary as JSON has it."""
        return asdict(self) | {"throughput": self.throughput}


def summarise(history: History, *, slots: int, lease_s: float) -> Summary:
    """The figures of a history, for a fleet with so many slots in all and such leases.

    Raises:
        ValueError: a task has not ended, so that the drain is not over.
    """
    if still := sum(map(isnan, history.ended)):
        raise ValueError(f"{still:,} tasks have not ended")
    runs = Counter(history.outcome)
    drain_s = max(history.ended) - min(history.enqueued)
    took, used, held = array("d"), [], []
    for outcome, claimed, started, finished in zip(
        history.outcome, history.claimed, history.started, history.finished, strict=True
    ):
        held.append(finished - claimed)
        if outcome == _LOST:
            used.append(min(finished - claimed, lease_s))
        elif not isnan(started):
            took.append(finished - started)
    ran = fsum(took) + fsum(used)
    waits = _waits(history)
    return Summary(
        counts=_counts(history, runs),
        runs={name: runs[number] for number, name in enumerate(OUTCOMES)},
        drain_s=drain_s,
        wait=_wait([each for every in waits.values() for each in every]),
        waits={name: _wait(every) for name, every in waits.items()},
        p95_run_s=percentile(took, 95) if took else None,
        in_flight=fsum(held) / drain_s if drain_s else 0.0,
        utilisation=ran / (slots * drain_s) if drain_s else 0.0,
    )


def _counts(history: History, runs: Mapping[int, int]) -> Expected:
    statuses = Counter(history.statuses)
    succeeded, dead = STATUSES.index("succeeded"), STATUSES.index("dead")
    last = dict(zip(history.task, history.outcome, strict=True))
    lost = sum(last[task] == _LOST for task, status in enumerate(history.statuses) if status == dead)
    return Expected(
        tasks=len(history.types),
        succeeded=statuses[succeeded],
        dead_failed=statuses[dead] - lost,
        dead_lost=lost,
        runs=len(history) - runs[_RELEASED],
        failed=runs[_FAILED],
        retries=runs[_FAILED] - (statuses[dead] - lost),
        lost=runs[_LOST],
    )


def _waits(history: History) -> dict[str, list[float]]:
    """From each task's commit to its first start, by priority; what was given back had not started."""
    seen = bytearray(len(history.types))
    waits: dict[str, list[float]] = {name: [] for name in PRIORITIES}
    by_number = list(waits.values())
    for task, outcome, claimed, started in zip(
        history.task, history.outcome, history.claimed, history.started, strict=True
    ):
        if outcome != _RELEASED and not seen[task]:
            seen[task] = 1
            began = claimed if outcome == _LOST else started
            by_number[history.priorities[task]].append(began - history.enqueued[task])
    return {name: every for name, every in waits.items() if every}


def _wait(waits: list[float]) -> Wait:
    return Wait(percentile(waits, 50), percentile(waits, 95), fsum(waits) / len(waits))
