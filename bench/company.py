"""Company: what else the machine did during a measurement, which is what disturbs it.

Linux counts the time of every core in /proc/stat; what this process and all that it started used of it is
known, too. The rest was other people's work. Steal is the time that the host gave to other machines.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from bench import record
from bench.vitals import cpu_s

BUSY_PERCENT: Final = 10.0
STEAL_PERCENT: Final = 2.0
"""Above these a measurement counts as disturbed."""

DISTURBED: Final = "disturbed"
"""What a round calls the share of the cores, in percent, that one of its measurements had to do without."""

_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_IDLE, _IOWAIT, _STEAL, _GUEST = 3, 4, 7, 8
"""Places in the first line of /proc/stat."""


class Company:
    """Watches from entering until leaving. What we have started counts as ours, whether it still runs or not.

    Attributes:
        seconds: How long that was.
        busy_percent: Percent of all cores that other work used.
        steal_percent: Percent of all cores that the host withheld.
        own_percent: Percent of all cores that we used ourselves.
    """

    seconds = 0.0
    busy_percent = 0.0
    steal_percent = 0.0
    own_percent = 0.0

    @property
    def disturbed(self) -> bool:
        """Whether the figures of that time are to be doubted."""
        return self.busy_percent > BUSY_PERCENT or self.steal_percent > STEAL_PERCENT

    def data(self) -> dict[str, Any]:
        """What a record keeps of it."""
        return {
            "seconds": round(self.seconds),
            "busy_percent": round(self.busy_percent, 1),
            "steal_percent": round(self.steal_percent, 1),
            "disturbed": self.disturbed,
        }

    def __enter__(self) -> Self:
        self._began, self._own, self._all = time.monotonic(), _own_s(), _machine_s()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began
        seconds = self.seconds * (os.cpu_count() or 1)
        busy, steal = (after - before for after, before in zip(_machine_s(), self._all, strict=True))
        own = _own_s() - self._own
        self.own_percent = 100 * own / seconds
        self.busy_percent = 100 * max(0.0, busy - own) / seconds
        self.steal_percent = 100 * steal / seconds


def told(made: dict[str, Any]) -> str:
    """Where a record comes from that kept its company, and what else the machine did meanwhile.

    Of the whole, and of each measurement: a neighbour who comes for a minute is little of the whole.
    """
    found: Mapping[str, Any] = made["result"]
    disturbed = " **The machine was disturbed.**" if found["disturbed"] else ""
    disturbed += _parts([*found.get("rounds", ()), *found.get("kills", ())])
    return (
        f"{record.told(made)}. It took {found['seconds']:,} s; other work used {found['busy_percent']:g} % of"
        f" the cores meanwhile, and the host withheld {found['steal_percent']:g} %.{disturbed}"
    )


def _parts(rounds: Sequence[Mapping[str, float]]) -> str:
    """Which measurements were disturbed, each by its name and how often."""
    arms = Counter(
        arm for each in rounds for arm, _, what in (key.partition(".") for key in each) if what == DISTURBED
    )
    if not arms:
        return " No single measurement was disturbed." if rounds else ""
    named = ", ".join(f"{arm} ({n}×)" for arm, n in sorted(arms.items()))
    return f" Disturbed were single measurements of {named}."


def _own_s() -> float:
    """CPU of this process and of all that it has started, ended or not."""
    return cpu_s([os.getpid()])


def _machine_s() -> tuple[float, float]:
    """CPU of everybody on all cores, and what the host withheld."""
    first = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    ticks = [int(word) for word in first.split()[1:]]
    busy = sum(n for place, n in enumerate(ticks[:_GUEST]) if place not in {_IDLE, _IOWAIT, _STEAL})
    return busy * _TICK_S, ticks[_STEAL] * _TICK_S
