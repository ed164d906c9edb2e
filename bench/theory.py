"""Theory: what a scenario must come to, in closed form, before anything runs.

Counts are exact (`workload.expected` is their home; here they are told by type). Times are bounds: `floor`
says how long a drain takes at the least, whatever the machine, because of

    slots     the work takes that many slot-seconds, and there are only so many slots
    waits     a task that fails waits before each retry; one whose lease runs out is found then, not before
    arrivals  the last task does not end before it has come

A queue with random arrivals and random run times and nothing else is M/M/c, and Erlang's formula says how
long its tasks wait: the simulator is held against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, inf, log
from operator import add

from bench.arrivals import times
from bench.scenario import Open, Scenario, Shape
from bench.tape import Replay
from bench.workload import TYPES, Expected, Mix, TaskType, fate
from scheduler.backoff import Backoff
from scheduler.config import Settings


@dataclass(frozen=True, slots=True)
class Part:
    """All tasks of one type: what becomes of them, and what they cost.

    Attributes:
        counts: To the unit.
        slot_s: Slot-seconds of all their runs, counting sleep only. A lost run has its slot for its lease.
        chain_s: The least time from one such task's commit to its end: runs and waits between them.
    """

    counts: Expected
    slot_s: float
    chain_s: float

    def __add__(self, other: Part) -> Part:
        chain_s = max(self.chain_s, other.chain_s)
        return Part(self.counts + other.counts, self.slot_s + other.slot_s, chain_s)


@dataclass(frozen=True, slots=True)
class Floor:
    """Bounds of the drain from below, in seconds; the greatest of them is the floor."""

    slots_s: float
    waits_s: float
    arrivals_s: float

    @property
    def drain_s(self) -> float:
        """No drain is shorter."""
        return max(self.slots_s, self.waits_s, self.arrivals_s)

    @property
    def binding(self) -> str:
        """Which of the bounds it is: `slots`, `waits` or `arrivals`; `nothing` if all are 0."""
        bounds = {"slots": self.slots_s, "waits": self.waits_s, "arrivals": self.arrivals_s}
        return max(bounds, key=bounds.__getitem__) if self.drain_s else "nothing"


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is known of a scenario beforehand.

    Attributes:
        parts: By type, all four.
        floor: Of the drain.
        offered: Slot-seconds that come in a second over slots, for a load with a rate; above 1 the backlog
            grows for as long as the load lasts. None for the other loads.
    """

    parts: Mapping[TaskType, Part]
    floor: Floor
    offered: float | None

    @property
    def counts(self) -> Expected:
        """All types together."""
        return sum((part.counts for part in self.parts.values()), Expected())

    @property
    def slot_s(self) -> float:
        """Slot-seconds of all runs."""
        return sum(part.slot_s for part in self.parts.values())


def forecast(scenario: Scenario, repeat: int = 0) -> Forecast:
    """What must become of a scenario if no worker dies and no store fails."""
    settings, dealt = scenario.fleet.config, scenario.deck(repeat)
    parts = dict.fromkeys(TYPES, Part(Expected(), 0.0, 0.0))
    for card, n in dealt.hand():
        parts[card.kind] += part(card.mix, card.kind, n, settings)
    slots = scenario.fleet.processes * scenario.fleet.slots
    work = sum(each.slot_s for each in parts.values())
    last_s, offered = 0.0, None
    if isinstance(scenario.load, Open | Shape | Replay):
        coming = times(scenario.load, scenario.seed + repeat)
        # The drain is counted from the first commit.
        last_s = max(map(add, coming, dealt.delays) if dealt.delays else coming) - coming[0]
        offered = work / slots / last_s if last_s else inf
    chains = (each.chain_s for each in parts.values() if each.counts.tasks)
    return Forecast(parts, Floor(work / slots, max(chains), last_s), offered)


def part(mix: Mix, kind: TaskType, n: int, settings: Settings) -> Part:
    """What becomes of `n` tasks of one type."""
    lease_s = settings.vis_timeout_ms / 1000
    one = fate(mix, kind, max_losses=settings.max_losses, lease_ms=settings.vis_timeout_ms)
    sleep_s = mix.sleep_ms / 1000 if kind == "sleeper" else 0.0
    slot_s = one.runs * (lease_s if one.lost else sleep_s)
    waits_s = sum(least_wait_ms(settings.backoff, i) for i in range(1, one.retries + 1)) / 1000
    return Part(one * n, slot_s * n, slot_s + waits_s)


def least_wait_ms(backoff: Backoff, failures: int) -> float:
    """The shortest wait that the jitter can draw before the retry after `failures` failures.

    >>> least_wait_ms(Backoff(base_ms=500, jitter="added"), 3), least_wait_ms(Backoff(jitter="full"), 3)
    (2000, 0)
    """
    ceiling = backoff.ceiling_ms(failures)
    return {"none": ceiling, "added": ceiling, "equal": ceiling / 2, "full": 0}[backoff.jitter]


@dataclass(frozen=True, slots=True)
class Queue:
    """M/M/c: tasks come at random at `rate` a second and take 1/`service_rate` seconds on average.

    The run times are exponential, too, and one of `servers` takes the task that has waited longest.

    Raises:
        ValueError: more comes than the servers can do, so that the queue has no steady state.
    """

    rate: float
    service_rate: float
    servers: int

    def __post_init__(self) -> None:
        if not 0 < self.rate < self.service_rate * self.servers:
            raise ValueError(f"{self.servers} servers that do {self.service_rate:g}/s each never catch up")

    @property
    def p_wait(self) -> float:
        """The probability that a task finds all servers busy: Erlang's C.

        >>> round(Queue(rate=2, service_rate=3, servers=1).p_wait, 6)  # the load itself
        0.666667
        >>> round(Queue(rate=4, service_rate=3, servers=2).p_wait, 6)  # 8/15
        0.533333
        """
        load = self.rate / self.service_rate
        blocked = 1.0
        for n in range(1, self.servers + 1):  # Erlang's B, server by server
            blocked = load * blocked / (n + load * blocked)
        return blocked / (1 - (load / self.servers) * (1 - blocked))

    @property
    def mean_wait_s(self) -> float:
        """The mean wait, of those that do not wait, too."""
        return self.p_wait / self._spare

    def wait_s(self, percent: float) -> float:
        """The wait that `percent` of 100 tasks do not exceed."""
        return max(
            0.0, log(self.p_wait / (1 - percent / 100)) / (self.service_rate * self.servers - self.rate)
        )

    def p_longer(self, seconds: float) -> float:
        """The probability that a task waits longer than this."""
        return self.p_wait * exp(-self._spare * seconds)

    @property
    def _spare(self) -> float:
        """Tasks a second that all servers together could do beyond what comes."""
        return self.service_rate * self.servers - self.rate


def undecided(scenario: Scenario) -> bool:
    """Whether a sleeper may outlive its lease or not, as it happens.

    A lease counts from the claim, and a run begins later if it has waited in a worker's buffer. There it is
    renewed when half of it has passed, or 5 s, by a heartbeat that beats eight times a lease.
    """
    lease_ms = scenario.fleet.config.vis_timeout_ms
    aged_ms = min(lease_ms / 2, 5000) + min(lease_ms / 8, 2000)
    if isinstance(scenario.load, Replay):
        sleeps_ms = {card.mix.sleep_ms for card in scenario.deck().cards if card.kind == "sleeper"}
    else:
        sleeps_ms = {scenario.mix.sleep_ms} if scenario.mix.sleep else set()
    return any(lease_ms - aged_ms <= sleep_ms <= lease_ms for sleep_ms in sleeps_ms)


def by_type(forecast: Forecast) -> list[tuple[TaskType, Part]]:
    """The types that occur, in the order of TYPES."""
    return [(kind, forecast.parts[kind]) for kind in TYPES if forecast.parts[kind].counts.tasks]
