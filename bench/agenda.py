"""Agenda: virtual time. What is to happen when, and loops that look again and again if something is there."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import inf
from typing import Any


class Agenda:
    """Calls functions at their times, the earliest first; at one time, in the order of their planning."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._planned = 0

    def at(self, when: float, happen: Callable[[Any], None], whom: Any) -> None:
        """Plan the call `happen(whom)`; `when` must not be past."""
        self._planned += 1
        heappush(self._events, (when, self._planned, happen, whom))

    def play(self) -> None:
        """Until nothing is planned any more."""
        events = self._events
        while events:
            self.now, _, happen, whom = heappop(events)
            happen(whom)


class Ticks:
    """The instants at which the loops of several processes look: each every `interval_s`, from its own phase.

    >>> ticks = Ticks(10.0, [0.5, 0.2])
    >>> ticks.after(0.0), ticks.after(2.0), ticks.after(2.1), ticks.after(16.0)
    (2.0, 2.0, 5.0, 22.0)
    """

    def __init__(self, interval_s: float, phases: Sequence[float]) -> None:
        self._interval = interval_s
        self._phases = sorted(phase * interval_s for phase in phases)

    def after(self, at: float) -> float:
        """The first of them that is not before `at`."""
        rest = at % self._interval
        place = bisect_left(self._phases, rest)
        if place < len(self._phases):
            return at - rest + self._phases[place]
        return at - rest + self._interval + self._phases[0]


class Patrol:
    """The same loop in several processes. It is called at a tick only if something is due by then.

    Args:
        agenda: Where it is planned.
        ticks: When the processes look.
        again_s: How long a full page takes; after one, the next follows at once.
        page: Handles what is due; returns whether that was a full page, and when the next thing is due (inf
            if nothing is left).
    """

    def __init__(
        self, agenda: Agenda, ticks: Ticks, again_s: float, page: Callable[[], tuple[bool, float]]
    ) -> None:
        self._agenda = agenda
        self._ticks = ticks
        self._again_s = again_s
        self._page = page
        self._next = inf

    def plan(self, due: float) -> None:
        """Something is due at this time."""
        if due < inf:
            self._plan(self._ticks.after(due))

    def _plan(self, tick: float) -> None:
        if tick < self._next:
            self._next = tick
            self._agenda.at(tick, self._look, tick)

    def _look(self, tick: float) -> None:
        if tick != self._next:
            return  # an earlier tick has taken its place
        self._next = inf
        full, due = self._page()
        if full:
            self._plan(self._agenda.now + self._again_s)
        else:
            self.plan(due)
