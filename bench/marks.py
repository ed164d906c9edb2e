"""Marks: what the runs of tasks have written when they began and ended, and what follows from it.

    KIND PLACE DUE PID AT               # as peer_apps/program.py writes them

The same lines come from ours and from every peer, so what is read from them is the same for all.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.stats import percentile

_LOOK_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Mark:
    """One line; `due` and `at` are seconds of the machine's monotonic clock."""

    ended: bool
    place: int
    due: float
    pid: int
    at: float


def read(path: Path) -> list[Mark]:
    """All whole lines of a file; none if there is no file."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="ascii").rpartition("\n")
    lines = [line.split() for line in whole.splitlines()]
    return [Mark(kind == "ended", int(p), float(due), int(pid), float(at)) for kind, p, due, pid, at in lines]


def clear(path: Path) -> None:
    """Forget all lines."""
    path.write_text("", encoding="ascii")


def ended(marks: Sequence[Mark]) -> set[int]:
    """The places of the tasks that a run has ended of."""
    return {mark.place for mark in marks if mark.ended}


def await_ended(path: Path, n: int, within_s: float) -> list[Mark]:
    """Wait until n tasks have ended, but no longer than told; what is there then."""
    deadline = time.monotonic() + within_s
    while len(ended(found := read(path))) < n and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    return found


def latencies(marks: Sequence[Mark], due: Mapping[int, float] | None = None) -> dict[str, float]:
    """Milliseconds from when a task was due until it first began: `p50`, `p95`, `p99`.

    Args:
        marks: The lines.
        due: When each place was due, if the lines do not know it.
    """
    first: dict[int, Mark] = {}
    for mark in sorted(marks, key=lambda mark: mark.at):
        if not mark.ended:
            first.setdefault(mark.place, mark)
    waits = [1000 * (m.at - (due[m.place] if due is not None else m.due)) for m in first.values()]
    return {f"p{percent}": percentile(waits, percent) for percent in (50, 95, 99)}


def held(marks: Sequence[Mark], pids: Collection[int]) -> set[int]:
    """The places of the tasks that have begun in some processes, and not ended there."""
    there = [mark for mark in marks if mark.pid in pids]
    return {mark.place for mark in there if not mark.ended} - {mark.place for mark in there if mark.ended}


def toll(marks: Sequence[Mark], n: int, pids: Collection[int], killed_at: float) -> dict[str, float]:
    """What it has cost to kill some processes.

    Args:
        marks: The lines of all n tasks, some time later.
        n: How many tasks there are.
        pids: The processes.
        killed_at: When they were killed.

    Returns:
        `held`, tasks that ran there then; `again`, those of them that were done later; `lost`, tasks that
        are not done, whether they had begun or not; `twice`, tasks that a run has ended of more than once;
        `last_s`, seconds from then to the last end.
    """
    ran = held(marks, pids)
    ends = Counter(mark.place for mark in marks if mark.ended)
    return {
        "held": len(ran),
        "again": sum(place in ends for place in ran),
        "lost": n - len(ends),
        "twice": sum(count > 1 for count in ends.values()),
        "last_s": max((mark.at - killed_at for mark in marks if mark.ended), default=0.0),
    }
