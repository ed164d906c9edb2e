"""The pace of a run of many seeds: what it takes of a machine that does nothing else.

Seeds and a yardstick are timed in turns, in CPU of their own processes, so that neighbours hardly matter:
they slow both. What is known is how long the yardstick takes on the reference machine, undisturbed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import process_time

PROCESSORS = 2
REFERENCE_S = 0.038
"""CPU of the yardstick on the machine of the committed records, where nothing else runs."""


@dataclass(frozen=True)
class Pace:
    """CPU of seeds, and of the yardsticks between them, in seconds."""

    cpu_s: float
    yardstick_s: float
    yardsticks: int = 1

    def __add__(self, other: Pace) -> Pace:
        return Pace(
            self.cpu_s + other.cpu_s,
            self.yardstick_s + other.yardstick_s,
            self.yardsticks + other.yardsticks,
        )

    @property
    def slowness(self) -> float:
        """How much slower than the reference this machine was; 1 if it was no slower."""
        return max(1.0, self.yardstick_s / self.yardsticks / REFERENCE_S)

    @property
    def undisturbed_s(self) -> float:
        """Seconds on two processors of the reference machine that have nothing else to do."""
        return self.cpu_s / PROCESSORS / self.slowness

    def __str__(self) -> str:
        return (
            f"{self.cpu_s:.0f} s of CPU, {self.slowness:.2f} × as slow as the reference machine:"
            f" {self.undisturbed_s:.0f} s on two processors of it"
        )


def yardstick() -> float:
    """The CPU that a fixed piece of work takes, of the kind that a simulation is made of; in seconds."""
    began = process_time()
    asyncio.run(_hand_over(pairs=20, times=80))
    return process_time() - began


async def _hand_over(pairs: int, times: int) -> None:
    queues = [asyncio.Queue[int](1) for _ in range(pairs)]
    await asyncio.gather(*(end(queue, times) for queue in queues for end in (_give, _take)))


async def _give(queue: asyncio.Queue[int], times: int) -> None:
    for i in range(times):
        async with asyncio.timeout(60):
            await queue.put(i)


async def _take(queue: asyncio.Queue[int], times: int) -> None:
    for _ in range(times):
        async with asyncio.timeout(60):
            await queue.get()
