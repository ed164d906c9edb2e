"""Validity: what speaks against a run. A run that was disturbed is kept and stamped, and never averaged.

A flag says what it spoils: `times`, so that counts and costs of servers still stand, or `all`. Some spoil
nothing and are said for the reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from bench.company import BUSY_PERCENT, STEAL_PERCENT

Spoils = Literal["nothing", "times", "all"]

STEP_S: Final = 0.1
"""So far Postgres' clock and ours may part during a run."""

GAP_S: Final = 1.0
"""The longest time between two scrapes."""

LATE_S: Final = 0.01
"""95 % of the requests of an open loop must be sent within this of their time."""

SPAN: Final = 0.05
"""A burst that takes a larger share of its drain to come is not all there from the beginning."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One thing that speaks against a run."""

    name: str
    why: str
    spoils: Spoils = "times"

    def content(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Conduct:
    """How a run went, apart from what became of its tasks.

    Attributes:
        busy_percent: Of the cores, used by others.
        steal_percent: Of the cores, withheld by the host.
        step_s: By how much Postgres' clock and ours have parted.
        gap_s: The longest time between two scrapes.
        ended: Workers that ended though nobody wanted it.
        offences: Names of the audit's checks that failed.
        skipped: Tasks of an open loop that were not sent.
        lag_s: p95 of how late an open loop sent; 0 for other loads.
        span: The share of a burst's drain in which it came; 0 for other loads.
        missed: Faults that did not land while tasks ran.
    """

    busy_percent: float = 0.0
    steal_percent: float = 0.0
    step_s: float = 0.0
    gap_s: float = 0.0
    ended: int = 0
    offences: Sequence[str] = ()
    skipped: int = 0
    lag_s: float = 0.0
    span: float = 0.0
    missed: Sequence[str] = ()


def flags(seen: Conduct) -> list[Flag]:
    """Everything that speaks against it."""
    rules: tuple[tuple[bool, Flag], ...] = (
        (
            seen.busy_percent > BUSY_PERCENT,
            Flag("neighbours", f"other work used {seen.busy_percent:.0f} % of the cores"),
        ),
        (
            seen.steal_percent > STEAL_PERCENT,
            Flag("steal", f"the host withheld {seen.steal_percent:.1f} % of the cores"),
        ),
        (abs(seen.step_s) > STEP_S, Flag("clock", f"the clock was moved by {seen.step_s:+.2f} s")),
        (seen.gap_s > GAP_S, Flag("scrape gap", f"nothing was scraped for {seen.gap_s:.1f} s", "nothing")),
        (seen.ended > 0, Flag("worker ended", f"{seen.ended} workers ended by themselves", "all")),
        (bool(seen.offences), Flag("audit", f"the audit failed: {', '.join(seen.offences)}", "all")),
        (seen.skipped > 0, Flag("skipped", f"{seen.skipped:,} tasks could not be sent in time", "all")),
        (seen.lag_s > LATE_S, Flag("generator late", f"5 % were sent {seen.lag_s * 1000:.0f} ms late")),
        (
            seen.span > SPAN,
            Flag("slow arrival", f"the burst took {seen.span:.0%} of its drain to come", "nothing"),
        ),
        (bool(seen.missed), Flag("faults missed", f"not while tasks ran: {', '.join(seen.missed)}", "all")),
    )
    return [flag for holds, flag in rules if holds]


def valid(found: Sequence[Flag]) -> bool:
    """Whether the times of a run may be averaged with others'."""
    return all(flag.spoils == "nothing" for flag in found)
