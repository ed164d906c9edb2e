"""The contest: the three pieces of work that every peer does, as `ours` lets our own workers do them.

burst    noops that wait already are drained by workers that are ready; they are frozen while they come in
pace     tasks come at a low rate, at intended times: how long does each wait until it begins?
kill     a third of the workers is killed while they work: what is done again, and what is never done?
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bench import marks
from bench.burst import Stalled
from bench.peer import Entrant, Setup, send
from bench.stats import middle_rate
from bench.vitals import below, cpu_s

WARM_UP: Final = 600
RATE: Final = 50
TASK_MS: Final = 200
KILL_AT: Final = 0.3
LATE_S: Final = 30.0


def burst(entrant: Entrant, setup: Setup, n: int) -> dict[str, float]:
    """Noops drained.

    Returns:
        `rate`, tasks a second between 5 % and 95 % of them; `cpu_us`, microseconds of CPU a task of the
        workers and their server.
    """
    warm_up, n = min(WARM_UP, n), round(n * entrant.peer.share)
    entrant.clear()
    with entrant.running(setup) as fleet:
        entrant.ask(setup, "burst", str(warm_up))
        entrant.times(warm_up)
        send(fleet, signal.SIGSTOP)
        entrant.ask(setup, "burst", str(n))
        pids = [entrant.server_pid, *(process.pid for process in fleet)]
        used = cpu_s(pids)
        send(fleet, signal.SIGCONT)
        times = entrant.times(n)
        used = cpu_s(pids) - used
    return {"rate": middle_rate(times), "cpu_us": used * 1e6 / n}


def pace(entrant: Entrant, setup: Setup, n: int) -> dict[str, float]:
    """Waits at a low rate, in milliseconds: see `marks.latencies`.

    Raises:
        Stalled: not all have begun and ended some time later.
    """
    entrant.clear()
    marks.clear(entrant.marks)
    with entrant.running(setup):
        for count in (RATE, n):  # the first ones warm up
            marks.clear(entrant.marks)
            entrant.ask(setup, "pace", str(RATE), str(count))
            found = marks.await_ended(entrant.marks, count, LATE_S)
            if (done := len(marks.ended(found))) < count:
                raise Stalled(f"only {done} of {count} tasks were done {LATE_S:.0f} s after the last was due")
    return marks.latencies(found)


def kill(entrant: Entrant, n: int, patience_s: float) -> dict[str, float]:
    """What the busiest third of the workers takes with it: see `marks.toll`."""
    entrant.clear()
    marks.clear(entrant.marks)
    with entrant.running(entrant.peer.safe) as fleet:
        send(fleet, signal.SIGSTOP)
        entrant.ask(entrant.peer.safe, "batch", str(TASK_MS), str(n))
        send(fleet, signal.SIGCONT)
        trees = {worker.pid: [worker.pid, *below(worker.pid)] for worker in fleet}
        order = busiest(entrant.marks, n, trees)
        victims = sorted(fleet, key=lambda worker: order.index(worker.pid))[: max(1, len(fleet) // 3)]
        pids = [pid for victim in victims for pid in trees[victim.pid]]
        killed_at = time.monotonic()
        send(victims, signal.SIGKILL)
        found = marks.await_ended(entrant.marks, n, patience_s)
    return marks.toll(found, n, pids, killed_at)


def busiest(path: Path, n: int, trees: Mapping[int, Sequence[int]]) -> list[int]:
    """Wait for the middle of a run, and rank the workers by how many tasks they are at.

    Tasks begin and end in step, so the middle is half a task after some have ended.

    Args:
        path: The file of the marks.
        n: How many tasks there are.
        trees: By the process of each worker, all the processes that tasks of it run in.
    """
    marks.await_ended(path, round(n * KILL_AT), LATE_S)
    time.sleep(TASK_MS / 2000)
    found = marks.read(path)
    return sorted(trees, key=lambda pid: -len(marks.held(found, trees[pid])))
