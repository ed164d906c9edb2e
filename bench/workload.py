"""What a load consists of: the mix of task types, the deck that deals it, and what must become of it.

A mix says how often each of the four built-in types occurs and how it behaves:

    noop         succeeds at once
    flaky        fails while it has failed fewer than `flaky_attempts` times, then succeeds
    always_fail  fails each time and ends in the DLQ
    sleeper      sleeps for `sleep_ms`; longer than its lease, it is lost each time and ends in the DLQ

A deck is a mix of n tasks in a shuffled order. Its proportions are exact and the seed decides the order, so
what must come out of it is known in closed form before anything runs: `expected`.

Pure: no input or output, and the same arguments give the same deck on every machine.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Any, Final, Literal, NamedTuple, overload

TaskType = Literal["noop", "flaky", "always_fail", "sleeper"]
Body = dict[str, Any]
"""What `POST /v1/tasks` takes."""

TYPES: Final[tuple[TaskType, ...]] = ("noop", "flaky", "always_fail", "sleeper")
PRIORITIES: Final = ("critical", "high", "default", "low")


@dataclass(frozen=True, slots=True)
class Mix:
    """How often each type occurs, in percent, and how it behaves.

    Attributes:
        noop: Percent of noops. They also take whatever the four leave of 100, so it may be left out.
        flaky: Percent of flaky tasks.
        fail: Percent of tasks that always fail.
        sleep: Percent of sleepers.
        sleep_ms: How long a sleeper sleeps, in milliseconds. The seed's demo sleeps past its lease.
        flaky_attempts: How often a flaky task fails before it succeeds.
        max_retries: Sent with every task, so that the closed form does not hang on the server's default.
        priorities: Shares of critical, high, default and low. Equal by default: under a burst all four
            lists are then full at once, and who is served first is the scheduler's choice alone.

    Raises:
        ValueError: a number is out of range, or the percentages add up to more than 100.
    """

    noop: float | None = None
    flaky: float = 0
    fail: float = 0
    sleep: float = 0
    sleep_ms: int = 80_000
    flaky_attempts: int = 2
    max_retries: int = 3
    priorities: tuple[float, float, float, float] = (1, 1, 1, 1)

    def __post_init__(self) -> None:
        given = {"noop": self.noop or 0, "flaky": self.flaky, "fail": self.fail, "sleep": self.sleep}
        for name, percent in given.items():
            if not 0 <= percent <= 100:
                raise ValueError(f"{name} is {percent:g} percent; it must be from 0 to 100")
        total = sum(map(_exact, given.values()))
        if total > 100:
            parts = " + ".join(f"{name} {percent:g}" for name, percent in given.items())
            raise ValueError(f"the percentages add up to {float(total):g} ({parts}), which is more than 100")
        for name in ("sleep_ms", "flaky_attempts", "max_retries"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if min(self.priorities) < 0 or not any(self.priorities):
            raise ValueError(f"priorities are {self.priorities}; shares are 0 or more, and one is above 0")

    @property
    def shares(self) -> tuple[Fraction, ...]:
        """Percent by type, in the order of TYPES; they add up to 100."""
        flaky, fail, sleep = map(_exact, (self.flaky, self.fail, self.sleep))
        return (100 - flaky - fail - sleep, flaky, fail, sleep)

    def body(self, kind: TaskType, priority: str) -> Body:
        """One task of this mix, as `POST /v1/tasks` takes it."""
        payload: Body = {}
        if kind == "flaky":
            payload = {"fail_times": self.flaky_attempts}
        elif kind == "sleeper":
            payload = {"sleep_ms": self.sleep_ms}
        return {"type": kind, "priority": priority, "payload": payload, "max_retries": self.max_retries}


class Card(NamedTuple):
    """What one task is: its type, and the mix that says how this type behaves."""

    mix: Mix
    kind: TaskType


class Dealt(Sequence[Body]):
    """Task bodies in the order of sending: `dealt[i]` builds body i, and a slice is a list of bodies.

    Bodies are made when asked for. What is kept of a task are the places of its card and of its priority.

    Args:
        cards: The different tasks that there are.
        numbers: Of each task: its card's place in `cards`.
        priorities: Of each task: its priority's place in PRIORITIES.
        seed: What decided the order, if anything did.
        delays: Of each task: how many seconds after its coming it is due; empty if all are at once.
    """

    def __init__(
        self,
        cards: Sequence[Card],
        numbers: Sequence[int],
        priorities: bytes,
        *,
        seed: int,
        delays: Sequence[float] = (),
    ) -> None:
        self.cards = cards
        self.numbers = numbers
        self.seed = seed
        self.delays = delays
        self._priorities = priorities

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Body: ...
    @overload
    def __getitem__(self, index: slice) -> list[Body]: ...
    def __getitem__(self, index: int | slice) -> Body | list[Body]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._body(index)

    def _body(self, index: int) -> Body:
        card = self.cards[self.numbers[index]]
        return card.mix.body(card.kind, PRIORITIES[self._priorities[index]])

    def type_of(self, index: int) -> TaskType:
        """The type of body `index`, without building it."""
        return self.cards[self.numbers[index]].kind

    @property
    def columns(self) -> tuple[bytes, bytes]:
        """A byte a task, twice: its type's place in TYPES, and its priority's in PRIORITIES."""
        types = [TYPES.index(card.kind) for card in self.cards]
        return bytes(map(types.__getitem__, self.numbers)), self._priorities

    @property
    def counts(self) -> dict[TaskType, int]:
        """How many tasks of each type there are; all four types are named."""
        counts: dict[TaskType, int] = dict.fromkeys(TYPES, 0)
        for card, n in self.hand():
            counts[card.kind] += n
        return counts

    def hand(self, indexes: Iterable[int] | None = None) -> list[tuple[Card, int]]:
        """Each card that occurs, and how often: in all, or among the bodies in `indexes`."""
        numbers = self.numbers if indexes is None else map(self.numbers.__getitem__, indexes)
        return [(self.cards[number], n) for number, n in Counter(numbers).items()]


class Deck(Dealt):
    """n tasks of a mix in a shuffled order. Two bytes a task are kept, so a million tasks cost 2 MB."""

    def __init__(self, mix: Mix, n: int, seed: int = 1) -> None:
        if n < 1:
            raise ValueError(f"n is {n}; a deck has at least one task")
        rng = random.Random(seed)
        types = _shuffled(apportion(mix.shares, n), rng)
        priorities = _shuffled(apportion(tuple(map(_exact, mix.priorities)), n), rng)
        super().__init__([Card(mix, kind) for kind in TYPES], types, priorities, seed=seed)


def deck(mix: Mix, n: int, seed: int = 1) -> Deck:
    """Tasks of `mix`, n of them, in the order that `seed` shuffles, with exact proportions."""
    return Deck(mix, n, seed)


def apportion(shares: Sequence[Fraction], n: int) -> tuple[int, ...]:
    """Split n in proportion to `shares` by the largest remainder; of equal remainders the earlier wins."""
    total = sum(shares)
    quotas = [share * n / total for share in shares]
    counts = [floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: counts[i] - quotas[i])
    for i in by_remainder[: n - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


@dataclass(frozen=True, slots=True)
class Expected:
    """What must have happened once every task is terminal. Counts of tasks and of runs.

    Attributes:
        tasks: Tasks in all; each ends succeeded or dead.
        succeeded: Tasks that succeed, with one succeeded run each.
        dead_failed: Tasks that are dead because their failures exceed `max_retries`.
        dead_lost: Tasks that are dead because their losses exceed MAX_LOSSES.
        runs: Rows of the history of runs.
        failed: Runs that failed.
        retries: Failed runs after which the task was tried again (`tasks_retried_total`).
        lost: Runs whose lease was reaped (`tasks_reaped_total`).
    """

    tasks: int = 0
    succeeded: int = 0
    dead_failed: int = 0
    dead_lost: int = 0
    runs: int = 0
    failed: int = 0
    retries: int = 0
    lost: int = 0

    @property
    def dead(self) -> int:
        """Tasks in the DLQ."""
        return self.dead_failed + self.dead_lost

    def __add__(self, other: Expected) -> Expected:
        return Expected(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def __mul__(self, times: int) -> Expected:
        return Expected(*(getattr(self, name) * times for name in self.__slots__))


def fate(mix: Mix, kind: TaskType, *, max_losses: int = 3, lease_ms: int = 60_000) -> Expected:
    """What becomes of one task of `kind` when no worker dies and no store fails.

    A sleeper whose sleep ends within about one scan of the reaper after its lease may go either way;
    a scenario that counts to the unit keeps `sleep_ms` clear of that band. Runs are taken to be shorter
    than the task's timeout.
    """
    failures = {"flaky": mix.flaky_attempts, "always_fail": mix.max_retries + 1}.get(kind, 0)
    if kind == "sleeper" and mix.sleep_ms > lease_ms:
        runs = max_losses + 1
        return Expected(tasks=1, dead_lost=1, runs=runs, lost=runs)
    if failures > mix.max_retries:
        runs = mix.max_retries + 1
        return Expected(tasks=1, dead_failed=1, runs=runs, failed=runs, retries=mix.max_retries)
    return Expected(tasks=1, succeeded=1, runs=failures + 1, failed=failures, retries=failures)


def expected(
    dealt: Dealt, *, indexes: Iterable[int] | None = None, max_losses: int = 3, lease_ms: int = 60_000
) -> Expected:
    """What must become of a deck, or of the bodies in `indexes` where not all were accepted.

    `max_losses` and `lease_ms` are the fleet's MAX_LOSSES and VIS_TIMEOUT_MS.
    """
    return sum(
        (
            fate(card.mix, card.kind, max_losses=max_losses, lease_ms=lease_ms) * n
            for card, n in dealt.hand(indexes)
        ),
        Expected(),
    )


def _exact(number: float) -> Fraction:
    """The decimal number that was written, not its binary neighbour: 33.3 is 333/10."""
    return Fraction(str(number))


def _shuffled(counts: Sequence[int], rng: random.Random) -> bytes:
    dealt = bytearray(b"".join(bytes([number]) * count for number, count in enumerate(counts)))
    rng.shuffle(dealt)
    return bytes(dealt)
