"""Outlook: what the simulator says of a run beforehand, and so how long the run will still take.

While it goes on, the twin's pace is corrected by the run's own: who needed twice as long for the first half
is expected to need twice as long for the other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from math import nan
from typing import Final

from bench.costs import Costs
from bench.scenario import Scenario
from bench.simulate import simulate, summary

MOST_TASKS: Final = 200_000
"""Above this many nobody would wait for the twin."""

_SOON_S: Final = 0.5
"""So early a run's own pace says nothing."""


class Outlook:
    """The outlook of one repeat; nothing is foreseen of a very large one. Faults are left out of account.

    Args:
        planned: The scenario.
        priced: What the machine adds.
        repeat: Counted from 0.
    """

    def __init__(self, planned: Scenario, priced: Costs, repeat: int = 0) -> None:
        self._times: dict[str, Sequence[float]] = {}
        self._began: float | None = None
        self._prediction: dict[str, float] | None = None
        if planned.load.tasks <= MOST_TASKS:
            planned = replace(planned, faults=())
            history = simulate(planned, priced, repeat)
            begin = min(history.enqueued)
            self._times = {
                name: sorted(at - begin for at in column)
                for name, column in (("accepted", history.enqueued), ("ended", history.ended))
            }
            figures = summary(planned, history)
            self._prediction = {"drain_s": figures.drain_s, "p95_wait_s": figures.wait.p95_s}

    @property
    def prediction(self) -> dict[str, float] | None:
        """What was foreseen, as JSON has it; None if nothing was."""
        return self._prediction

    def left_s(self, what: str, n: int) -> float:
        """Seconds that are left when `n` are `accepted` or have `ended`; nan if that is not known.

        The first call begins the clock.
        """
        now = time.monotonic()
        if self._began is None:
            self._began = now
        return self.left_after(what, n, now - self._began)

    def left_after(self, what: str, n: int, elapsed_s: float) -> float:
        """The same when so much time has passed."""
        times = self._times.get(what)
        if not times:
            return nan
        foreseen = times[min(n, len(times)) - 1] if n else 0.0
        pace = elapsed_s / foreseen if min(foreseen, elapsed_s) > _SOON_S else 1.0
        return max(self._times["ended"][-1] - foreseen, 0.0) * pace
