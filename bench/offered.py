"""Offered: how the API answers to load at rates of its own, and what a standstill looks like to a client.

A closed loop waits for each answer before it sends the next request, so while the server stands still it
sends nothing, and nothing of what it did not send has a latency. An open loop sends on time, and its latency
counts from the time at which a request was to be sent.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Timer

import pandas as pd

from bench.observation import Observation, observed
from bench.scenario import Open
from bench.system import System
from bench.workload import Mix, deck

KEPT_UP = 0.98
"""The share of what was offered that must be accepted in the time of the offer."""


@contextmanager
def standstill(me: System, *, at_s: float, for_s: float) -> Iterator[None]:
    """The API stands still once, `at_s` seconds after entering, for `for_s` seconds; never after leaving."""
    pids = [child.pid for child in me.stack.children if child.args[0] == "api"]

    def tell(number: int) -> None:
        for pid in pids:
            os.kill(pid, number)

    timers = [Timer(at_s, tell, [signal.SIGSTOP]), Timer(at_s + for_s, tell, [signal.SIGCONT])]
    for timer in timers:
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
            timer.join()
        tell(signal.SIGCONT)


def ladder(
    me: System, rates: Sequence[float], *, seconds: float, repeats: int = 1
) -> tuple[pd.DataFrame, list[Observation]]:
    """Offer noops at each of the rates for so many seconds, from the lowest to the highest.

    Returns:
        A frame with a row a step, and what was observed in each. Columns:
            rate (float): requests offered a second.
            repeat (int)
            accepted_per_s (float): over the time that the whole load took.
            p50_s, p95_s (float): latency of the answers, from the intended times.
            wait_p95_s (float): from a task's commit to its start.
            lag_s (float): p95 of how late the client itself sent.
            disturbed (bool): other work took part of the machine, so the row is for no median.
    """
    rows, seen = [], []
    for repeat in range(repeats):
        for rate in sorted(rates):
            load = Open(rate, seconds)
            run = observed(me, f"{rate:g}/s", deck(Mix(noop=100), load.tasks, 1 + repeat), load)
            got = run.receipts
            latency = got.latency_s(50), got.latency_s(95)
            sent = run.snapshot.p95_wait_s, got.lag_s, run.company.disturbed
            rows.append((rate, repeat, got.rate, *latency, *sent))
            seen.append(run)
    columns = ["rate", "repeat", "accepted_per_s", "p50_s", "p95_s", "wait_p95_s", "lag_s", "disturbed"]
    return pd.DataFrame(rows, columns=columns), seen


def sustainable(steps: pd.DataFrame, limit_s: float) -> float:
    """The highest rate that was offered up to which every step kept the limit and kept up; 0 if none did.

    Disturbed steps are passed over; a rate that has no others is not known to be kept.
    """
    kept = (steps["p95_s"] <= limit_s) & (steps["accepted_per_s"] >= KEPT_UP * steps["rate"])
    best = 0.0
    for rate in sorted(steps["rate"].unique()):
        fine = kept[(steps["rate"] == rate) & ~steps["disturbed"]]
        if fine.empty or not fine.all():
            break
        best = float(rate)
    return best
