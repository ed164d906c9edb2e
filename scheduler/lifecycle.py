"""What may happen to a task: its statuses, the outcomes of a run, and what each outcome leads to.

    queued ──claim──▶ running ──┬─ succeeded ─▶ succeeded
      ▲  ▲               │      ├─ failed, timed_out ─▶ retrying (budget left) │ dead (budget spent)
      │  └───release─────┘      ├─ lost ─▶ queued (budget left) │ dead (budget spent)
      │                         └─ cancelled ─▶ cancelled
      ├──redrive── dead         retrying ──claim──▶ running
      └──────────────────────── queued, retrying ──cancel──▶ cancelled

Pure rules, no input or output: `settle` applies them, the SQL repeats those that must be decided inside a
statement, and the simulator runs them in virtual time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Status = Literal["queued", "running", "retrying", "succeeded", "dead", "cancelled"]
RunOutcome = Literal["succeeded", "failed", "timed_out", "lost", "released", "cancelled"]
DeadReason = Literal["failed", "timed_out", "rejected", "lost", "unknown_type"]

STATUSES: Final[tuple[Status, ...]] = ("queued", "running", "retrying", "succeeded", "dead", "cancelled")
OPEN: Final[frozenset[Status]] = frozenset({"queued", "running", "retrying"})
TERMINAL: Final[frozenset[Status]] = frozenset({"succeeded", "dead", "cancelled"})
CLAIMABLE: Final[frozenset[Status]] = frozenset({"queued", "retrying"})
OUTCOMES: Final[tuple[RunOutcome, ...]] = (
    "succeeded",
    "failed",
    "timed_out",
    "lost",
    "released",
    "cancelled",
)
DEAD_REASONS: Final[tuple[DeadReason, ...]] = ("failed", "timed_out", "rejected", "lost", "unknown_type")

MOVES: Final[dict[Status, frozenset[Status]]] = {
    "queued": frozenset({"running", "cancelled"}),
    "running": frozenset({"queued", "retrying", "succeeded", "dead", "cancelled"}),
    "retrying": frozenset({"running", "cancelled"}),
    "succeeded": frozenset(),
    "dead": frozenset({"queued"}),  # redrive, and nothing else
    "cancelled": frozenset(),
}
"""From each status, the statuses that a task may go to next."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one ended run makes of its task: the next status and, if dead, why."""

    status: Status
    reason: DeadReason | None = None


IN_COMPANY: Final = 10
"""How many times its budget of losses a task may be lost in company before it is dead."""

SUCCEEDED: Final = Verdict("succeeded")
RETRYING: Final = Verdict("retrying")
QUEUED: Final = Verdict("queued")


def after_failure(
    failures: int, max_retries: int, outcome: Literal["failed", "timed_out"] = "failed"
) -> Verdict:
    """A run failed. `failures` counts those before it; the task is dead when they exceed `max_retries`."""
    return RETRYING if failures + 1 <= max_retries else Verdict("dead", outcome)


def after_rejection() -> Verdict:
    """The handler said that the task can never succeed."""
    return Verdict("dead", "rejected")


def after_loss(losses: int, max_losses: int, *, in_company: bool) -> Verdict:
    """A lease ended without an outcome. `losses` counts those before it.

    A loss in company (the worker died, and whatever it held was lost, guilty or not) counts and does not
    kill: the task goes back as a suspect that runs alone, and if it dies then, its worker lives to tell. What
    takes its worker with it even so ends all the same, far beyond its budget: see `most_losses`.
    """
    if losses + 1 <= (most_losses(max_losses) if in_company else max_losses):
        return QUEUED
    return Verdict("dead", "lost")


def most_losses(max_losses: int) -> int:
    """The losses that a task may have in company and live. One that kills every worker must end some day."""
    return IN_COMPANY * (max_losses + 1)


def after_unknown_type(refusals: int, max_refusals: int) -> Verdict:
    """No handler here knows the type. `refusals` counts the workers' earlier answers of that kind."""
    return QUEUED if refusals + 1 <= max_refusals else Verdict("dead", "unknown_type")
