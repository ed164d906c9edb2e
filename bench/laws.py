"""Laws: what any row of the snapshot table must obey, whatever made it.

They are the operational laws: they follow from counting alone and know nothing of how a scheduler works.

    flow        tasks that ended a second × drain = tasks
    in flight   = tasks a second × the time for which one is claimed (Little)
    slots       tasks a second × the time for which one is run ≤ slots
    wait        of a burst: who starts last of 95 % has waited from the end of the arrival on, or longer
    dead        each dead letter has used up its retries, or its losses
    leases      a lost run holds a slot until its lease is over, which is not before the drain's end
    deck        retries, dead letters and lost runs are those of the tasks that were sent
    work        the slots have time for all lost runs that these tasks make

A row says little of itself, so a law may have a conclusion instead of a verdict: what must have been so for
the row to be true. What is only known of our own runs (`Inside`) makes a law sharp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench.report import Snapshot, seconds
from bench.workload import Expected, Mix, deck, expected

_ROUNDED: Final = 0.05
"""A row is rounded: a product of its figures may be off by so much."""

_LEEWAY: Final = 1e-6
"""And ours is not: it may be off by the last digit only."""

_FINE_S: Final = 1e-5
"""Instants are kept to the microsecond."""

_SHARE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it is told. `fail_percent` is of tasks, times are seconds."""

    tasks: int
    workers: int
    slots: int
    in_flight: float
    drain_s: float
    per_s: float
    p95_run_s: float | None
    p95_wait_s: float
    fail_percent: float
    retries: int
    reaped: int

    @property
    def places(self) -> int:
        """Slots of the whole fleet."""
        return self.workers * self.slots


SEED: Final = Row(10_000, 3, 12, 36, 22, 450, 0.025, 0.8, 2, 180, 12)
"""The row that the original README shows as an example."""

SEED_MIX: Final = Mix(noop=80, flaky=10, fail=5, sleep=5, sleep_ms=80_000, flaky_attempts=2, max_retries=3)
"""The only mix that it shows, in another example."""


def seed_deck() -> Expected:
    """What 10,000 tasks of that mix come to, with leases of 60 s as by default."""
    return expected(deck(SEED_MIX, SEED.tasks))


def row_of(told: Snapshot) -> Row:
    """A measured row."""
    return Row(
        tasks=told.tasks,
        workers=told.workers,
        slots=told.slots,
        in_flight=told.in_flight,
        drain_s=told.drain_s,
        per_s=told.throughput,
        p95_run_s=told.p95_run_s,
        p95_wait_s=told.p95_wait_s,
        fail_percent=told.fail_percent,
        retries=told.retries,
        reaped=told.reaped,
    )


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that decide how often a task is tried, and how long a lost run has its slot."""

    max_retries: int = 3
    max_losses: int = 3
    lease_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Inside:
    """What the history tells beside the row.

    Attributes:
        arrival_s: From the first task's commit to the last one's.
        p95_start_s: Within it 95 % of the tasks had first started, counted from the first commit.
        held_s: Seconds from claim to end, of all runs together.
        ran_s: Seconds for which handlers ran, of all runs together; a lost run counts up to its lease.
    """

    arrival_s: float
    p95_start_s: float
    held_s: float
    ran_s: float


@dataclass(frozen=True, slots=True)
class Law:
    """A law and what it says of a row.

    Attributes:
        name: Which one.
        must: What must be.
        told: What the row says.
        holds: Whether it does; None if that depends on what the row does not tell.
        then: What follows from it; "" if nothing does.
    """

    name: str
    must: str
    told: str
    holds: bool | None
    then: str = ""


def judge(
    row: Row, rules: Rules = Rules(), *, inside: Inside | None = None, due: Expected | None = None
) -> list[Law]:
    """What the laws say of a row; of a row without a history, or without its deck, as much as they can."""
    laws = [
        _flow(row, _ROUNDED if inside is None else _LEEWAY),
        *(_claimed(row) if inside is None else _counted(row, inside)),
        _wait(row, inside),
        _dead(row, rules),
        _leases(row, rules),
    ]
    return laws if due is None else [*laws, _deck(row, due), _work(row, rules, due)]


def broken(laws: Sequence[Law]) -> list[str]:
    """The names of those that do not hold."""
    return [law.name for law in laws if law.holds is False]


def _flow(row: Row, leeway: float) -> Law:
    came = row.per_s * row.drain_s
    return Law(
        "flow",
        f"{row.per_s:,.0f}/s × {seconds(row.drain_s)} = {came:,.0f}",
        f"{row.tasks:,} tasks",
        abs(came / row.tasks - 1) <= leeway,
    )


def _claimed(row: Row) -> list[Law]:
    """Of a row that tells no means: what its p95 of the run times allows."""
    if row.p95_run_s is None:
        return []
    quick = row.per_s * row.p95_run_s
    rest = (row.in_flight - _SHARE * quick) / ((1 - _SHARE) * row.per_s)
    return [
        Law(
            "in flight",
            f"{row.per_s:,.0f}/s × {seconds(row.p95_run_s)} = {quick:.0f} at the most, if no run took longer",
            f"{row.in_flight:.0f} of {row.places} slots",
            None if rest > row.p95_run_s else True,
            f"either it is the number of slots and no mean, or the slowest 5 % took {seconds(rest)} each"
            if rest > row.p95_run_s
            else "",
        )
    ]


def _counted(row: Row, inside: Inside) -> list[Law]:
    """Of a row with its history: both means are known."""
    held = inside.held_s / row.tasks
    used = inside.ran_s / row.drain_s
    return [
        Law(
            "in flight",
            f"{row.per_s:,.0f}/s × {seconds(held)} claimed = {row.per_s * held:.1f}",
            f"{row.in_flight:.1f}",
            abs(row.per_s * held - row.in_flight) <= _LEEWAY * max(row.in_flight, 1),
        ),
        Law(
            "slots",
            f"{row.per_s:,.0f}/s × {seconds(inside.ran_s / row.tasks)} run = {used:.1f}, at most all",
            f"{row.places} slots",
            used <= row.places * (1 + _LEEWAY),
            f"{used / row.places:.0%} of them are in use on average",
        ),
    ]


def _wait(row: Row, inside: Inside | None) -> Law:
    """A wait is start − commit. No commit is later than the arrival's end, and none before its beginning.

    So the p95 of the waits is at least the p95 of the starts less the arrival, and at most that p95.
    """
    if inside is None:
        last_s = _SHARE * row.drain_s
        arrival_s = last_s - row.p95_wait_s
        sent = arrival_s > row.drain_s / 2
        return Law(
            "wait",
            f"0.95 × {seconds(row.drain_s)} = {seconds(last_s)} if all tasks were there at the beginning",
            seconds(row.p95_wait_s),
            None if sent else True,
            f"the tasks came over {seconds(arrival_s)} at least: the drain is how long the loader sent"
            if sent
            else "",
        )
    least, most = inside.p95_start_s - inside.arrival_s, inside.p95_start_s
    return Law(
        "wait",
        f"95 % started within {seconds(most)}, and came within {seconds(inside.arrival_s)}:"
        f" {seconds(max(least, 0.0))} to {seconds(most)}",
        seconds(row.p95_wait_s),
        least - _FINE_S <= row.p95_wait_s <= most + _FINE_S,
    )


def _dead(row: Row, rules: Rules) -> Law:
    dead = row.fail_percent / 100 * row.tasks
    failed = row.retries / rules.max_retries if rules.max_retries else float(row.tasks)
    lost = row.reaped / (rules.max_losses + 1)
    holds = dead <= (failed + lost) * (1 + _LEEWAY)
    return Law(
        "dead",
        f"{row.retries:,} / {rules.max_retries} + {row.reaped:,} / {rules.max_losses + 1}"
        f" = {failed + lost:,.0f} at the most",
        f"{row.fail_percent:.1f} % = {dead:,.0f} tasks",
        holds,
        "" if holds else f"it is a share of attempts: {row.retries:,} retried, {dead - row.retries:,.0f} not",
    )


def _leases(row: Row, rules: Rules) -> Law:
    if not row.reaped:
        return Law("leases", "no run was lost", f"{row.reaped}", True)
    slots_s = row.reaped * rules.lease_s
    least = max(rules.lease_s, slots_s / row.places)
    holds = least <= row.drain_s
    return Law(
        "leases",
        f"{row.reaped:,} × {seconds(rules.lease_s)} on {row.places} slots, and none is over before"
        f" {seconds(rules.lease_s)}: {seconds(least)} at least",
        f"drained after {seconds(row.drain_s)}",
        holds,
        "" if holds else f"leases were shorter than {seconds(row.drain_s)}",
    )


def _deck(row: Row, due: Expected) -> Law:
    told = (row.retries, round(row.fail_percent / 100 * row.tasks), row.reaped)
    must = (due.retries, due.dead, due.lost)
    return Law(
        "deck",
        "{:,} retries, {:,} dead, {:,} reaped".format(*must),
        "{:,} retries, {:,} dead, {:,} reaped".format(*told),
        must == told,
        "" if must == told else "other tasks were sent",
    )


def _work(row: Row, rules: Rules, due: Expected) -> Law:
    least = due.lost * rules.lease_s / row.places
    return Law(
        "work",
        f"{due.lost:,} lost runs × {seconds(rules.lease_s)} / {row.places} slots = {seconds(least)} at least",
        f"drained after {seconds(row.drain_s)}",
        least <= row.drain_s,
        "" if least <= row.drain_s else "these tasks cannot have ended so soon",
    )


_WORDS: Final[Mapping[bool | None, str]] = {True: "yes", False: "NO", None: "only if"}


def markdown(laws: Sequence[Law]) -> str:
    """The laws as a Markdown table."""
    rows = [("Law", "Must be", "The row says", "Holds", "So")]
    rows += [(law.name, law.must, law.told, _WORDS[law.holds], law.then) for law in laws]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])
