"""Worker: one worker process of the twin: its buffer, its slots, and the rules of both.

How much it leases ahead, when it gives back what waits in vain, and when its heartbeat renews are rules of
the product that are no modules of their own there; they are repeated here and tested against it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from bench.agenda import Ticks
from scheduler.config import Settings

WEIGHT: Final = 0.02
GUESS_S: Final = 0.05
SHORTEST_S: Final = 1e-5
STUCK_S: Final = 0.2
UNWEIGHED: Final = 8
"""As in scheduler/slots.py; the last is how much is leased ahead before a payload was seen."""

WATCH_S: Final = 0.025
"""What is found by looking every 50 ms is found after half of that on average."""

LONGEST_BEAT_S: Final = 2.0
LONGEST_UNSEEN_S: Final = 5.0
"""As in scheduler/heartbeat.py."""


class Worker:
    """What a process holds and does.

    Attributes:
        buffer: Tasks that it has leased and not begun.
        running: Runs that keep a slot.
        arrived: Batches that its loop has not taken yet.
        over: Runs whose time is up, as (worker, task, begin), that its loop has not seen to yet.
        in_hand, began: The task that its loop is at, -1 for none, and since when.
        turning: Its loop is at work.
        parked: Its feeder waits for room.
        idle_since, looking: Since when it waits to be woken, and whether it is planned that it asks again.
        watched: It is planned to look whether its slots are stuck.
        weighed: It has seen a payload; those of all types are small.
    """

    __slots__ = (
        *("number", "buffer", "arrived", "over", "running", "in_hand", "began", "turning", "parked"),
        *("idle_since", "looking", "watched", "weighed", "_slots", "_ahead_s", "_most", "_vis_s", "_beats"),
        *("_unseen_s", "_mean_s", "_sum_began", "_last_began"),
    )

    def __init__(self, number: int, settings: Settings, phase: float) -> None:
        self.number = number
        self.buffer: deque[int] = deque()
        self.arrived: deque[list[int]] = deque()
        self.over: deque[tuple[Worker, int, float]] = deque()
        self.running = 0
        self.in_hand = -1
        self.began = self.idle_since = 0.0
        self.turning = self.parked = self.looking = self.watched = self.weighed = False
        self._slots = settings.worker_pool
        self._ahead_s = settings.lease_ahead_ms / 1000
        self._most = settings.lease_batch_size
        self._vis_s = settings.vis_timeout_ms / 1000
        self._beats = Ticks(min(self._vis_s / 8, LONGEST_BEAT_S), [phase])
        self._unseen_s = min(self._vis_s / 2, LONGEST_UNSEEN_S)
        self._mean_s = GUESS_S
        self._sum_began = self._last_began = 0.0

    @property
    def full(self) -> bool:
        """No slot is free."""
        return self.running == self._slots

    @property
    def stuck_from(self) -> float:
        """From when on a full worker is stuck, if no slot comes free until then."""
        return self._last_began + STUCK_S

    def room(self, now: float) -> int:
        """How many more tasks are worth leasing: `Slots.room`."""
        free, waiting = self._slots - self.running, len(self.buffer)
        if not free and now > self.stuck_from:
            return 0
        expected_s = self._mean_s + WEIGHT * (self.running * now - self._sum_began)
        ahead = min(int(self._slots * self._ahead_s / expected_s), self._most)
        target = free + (ahead if self.weighed else min(ahead, UNWEIGHED))
        wanted = target - waiting
        if wanted < target / 2 and not (free and not waiting):
            return 0
        return max(0, min(wanted, self._most))

    def put(self, batch: Sequence[int]) -> None:
        """Line up a batch."""
        self.buffer.extend(batch)
        self.weighed = True

    def begin(self, now: float) -> None:
        """A run takes a slot."""
        self.running += 1
        self._sum_began += now
        self._last_began = now

    def free(self, began: float) -> None:
        """The slot of the run that began then is free."""
        self.running -= 1
        self._sum_began = self._sum_began - began if self.running else 0.0

    def learn(self, seconds: float) -> None:
        """A run has taken so long."""
        self._mean_s += WEIGHT * (max(seconds, SHORTEST_S) - self._mean_s)

    def lease_end(self, claimed: float, now: float) -> float:
        """When the lease of a task that begins now runs out: in the buffer the heartbeat has renewed it."""
        renewed = claimed
        while (beat := self._beats.after(renewed + self._unseen_s)) <= now:
            renewed = beat
        return renewed + self._vis_s
