"""Evidence: what runs have shown of a scenario, as far as its settings are judged by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Final

from bench.costs import Costs
from bench.history import History
from bench.scenario import Scenario
from bench.workload import TYPES
from scheduler.config import Settings
from scheduler.lifecycle import OUTCOMES

_SLEEPER: Final = TYPES.index("sleeper")
_LOST: Final = OUTCOMES.index("lost")
_FAILED: Final = OUTCOMES.index("failed")


@dataclass(frozen=True, slots=True)
class Seen:
    """What runs have shown, of one scenario.

    Attributes:
        planned: The scenario, with its settings.
        costs: What a round trip takes.
        run_ms: How long calls of handlers took.
        bare_ms: The same of those whose lease nothing renews; of a lost run how long it wanted to take.
        outcomes: How many runs ended how.
        retries_s: The most retries that were due within one second.
        starts_s: The most runs that one worker began within one second.
        most_connections: What the Postgres server admits; None if nobody asked it.
    """

    planned: Scenario
    costs: Costs
    run_ms: Sequence[float] = ()
    bare_ms: Sequence[float] = ()
    outcomes: Mapping[str, int] = field(default_factory=dict)
    retries_s: int = 0
    starts_s: int = 0
    most_connections: int | None = None

    @property
    def settings(self) -> Settings:
        """What the fleet ran with."""
        return self.planned.fleet.config


def seen_in(
    planned: Scenario, histories: Sequence[History], costs: Costs, *, most_connections: int | None = None
) -> Seen:
    """What the repeats of a scenario have shown."""
    run_ms: list[float] = []
    bare_ms: list[float] = []
    outcomes: Counter[str] = Counter()
    retries = starts = 0
    # How long a lost run wanted to take is not in its history; no sleep is longer than this one.
    longest_ms = max(
        (card.mix.sleep_ms for card in planned.deck().cards if card.kind == "sleeper"), default=0
    )
    for history in histories:
        for task, outcome, started, finished in zip(
            history.task, history.outcome, history.started, history.finished, strict=True
        ):
            outcomes[OUTCOMES[outcome]] += 1
            bare = history.types[task] == _SLEEPER
            if not isnan(started):
                run_ms.append(1000 * (finished - started))
                bare_ms += [run_ms[-1]] if bare else []
            elif outcome == _LOST and bare:
                bare_ms.append(float(longest_ms))
        retries = max(retries, _busiest(_retried(history)))
        starts = max([starts, *map(_busiest, _started(history).values())])
    return Seen(planned, costs, run_ms, bare_ms, outcomes, retries, starts, most_connections)


def _retried(history: History) -> list[float]:
    """When each retry after a failure was due."""
    last: dict[int, int] = {}
    dues = []
    for task, outcome, due in zip(history.task, history.outcome, history.due, strict=True):
        if last.get(task) == _FAILED:
            dues.append(due)
        last[task] = outcome
    return dues


def _started(history: History) -> dict[int, list[float]]:
    """When each worker began its runs."""
    starts: dict[int, list[float]] = {worker: [] for worker in history.worker}
    for worker, started in zip(history.worker, history.started, strict=True):
        if not isnan(started):
            starts[worker].append(started)
    return starts


def _busiest(times: Sequence[float]) -> int:
    """The most of them within one second."""
    ranked, most, first = sorted(times), 0, 0
    for number, at in enumerate(ranked):
        while ranked[first] < at - 1:
            first += 1
        most = max(most, number - first + 1)
    return most
