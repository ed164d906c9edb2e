"""Arrivals: when each task of an open loop is to be sent, in seconds after the beginning.

A run sends at these times (`load.open_loop(..., times=...)`), and a simulation lets the tasks come at them.
"""

from __future__ import annotations

import random
from array import array

from bench.scenario import Open, Shape
from bench.tape import Replay


def times(load: Open | Shape | Replay, seed: int) -> array[float]:
    """As many rising times as the load has tasks; only random spacing reads the seed."""
    if isinstance(load, Replay):
        return load.tape().coming
    if isinstance(load, Shape):
        return _shaped(load)
    if load.spacing == "even":
        return array("d", (i / load.rate for i in range(load.tasks)))
    rng, at = random.Random(seed), 0.0
    drawn = array("d")
    for _ in range(load.tasks):
        at += rng.expovariate(load.rate)
        drawn.append(at)
    return drawn


def _shaped(load: Shape) -> array[float]:
    """Task number i comes when the steps so far amount to i tasks."""
    drawn = array("d")
    begin = before = 0.0
    for seconds, rate in load.steps:
        after = before + seconds * rate
        while len(drawn) < load.tasks and len(drawn) < after:
            drawn.append(begin + (len(drawn) - before) / rate)
        begin, before = begin + seconds, after
    drawn.extend([begin] * (load.tasks - len(drawn)))  # what rounding up has added comes at the end
    return drawn
