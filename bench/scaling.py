"""Scaling: the same tasks on fleets of several sizes, and the bounds that say what stops them.

A fleet cannot end more tasks a second than slots / run time, nor more than cores / CPU a task. The first
bound is known beforehand; the second is measured in the same run, with all processes of ours counted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pandas as pd

from bench.observation import Observation, observed
from bench.system import System
from bench.workload import Mix, deck


def grid(
    me: System, workers: Sequence[int], slots: Sequence[int], *, tasks: int, sleep_ms: int, repeats: int = 1
) -> tuple[pd.DataFrame, list[Observation]]:
    """Drain `tasks` sleepers on every combination of workers and slots, `repeats` times each.

    Returns:
        A frame with a row a run, and what was observed in each. Columns:
            workers, slots, repeat (int)
            per_s (float): tasks that ended a second.
            slot_bound_per_s, cpu_bound_per_s (float): see the module.
            efficiency (float): per_s over the slots' bound.
            disturbed (bool): other work took part of the machine, so the row is for no median.
            limiter (string): the lower one of the two bounds, `slots` or `CPU`.
    """
    rows, seen = [], []
    for repeat in range(repeats):
        for n in workers:
            for each in slots:
                with me.with_fleet(n, env={"WORKER_POOL": str(each)}):
                    title, dealt = f"{n} × {each}", deck(Mix(sleep=100, sleep_ms=sleep_ms), tasks, 1 + repeat)
                    run = observed(me, title, dealt, seed=1 + repeat)
                seen.append(run)
                bounds = 1000 * n * each / sleep_ms, _cpu(run)
                rows.append((n, each, repeat, run.snapshot.throughput, *bounds, run.company.disturbed))
    columns = ["workers", "slots", "repeat", "per_s", "slot_bound_per_s", "cpu_bound_per_s", "disturbed"]
    frame = pd.DataFrame(rows, columns=columns)
    slower = frame["slot_bound_per_s"] <= frame["cpu_bound_per_s"]
    named = slower.map({True: "slots", False: "CPU"}).astype("string")
    return frame.assign(efficiency=frame["per_s"] / frame["slot_bound_per_s"], limiter=named), seen


def _cpu(run: Observation) -> float:
    """Tasks a second that all cores could do at the CPU that one has cost, our own client's included."""
    cores = os.cpu_count() or 1
    used = run.company.own_percent / 100 * cores * (run.at("drained") - run.at("began"))
    return cores * run.snapshot.ended / used if used else float("inf")
