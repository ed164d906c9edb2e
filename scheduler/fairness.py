"""Which list a worker's next task comes from: the fair choice among the four priorities.

`weighted` is smooth weighted round-robin, as nginx picks its servers: at each pick every list that is not
empty earns credit by its weight, the richest is picked (on a tie the higher priority) and pays what all of
them earned. Nothing is saved up while a list is empty. `strict` always picks the highest that is not empty.

In both modes a list that has waited unserved for longer than `max_wait_ms` is picked first, the longest
wait before the others; such a pick costs no credit, so that it never has to be paid for later.

Integers only, no input or output: `lua/lease.lua` makes the same choices inside Redis and is tested against
this module, and the simulator runs it in virtual time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Mode = Literal["weighted", "strict"]


@dataclass(frozen=True, slots=True)
class Policy:
    """How the lists share the workers.

    Attributes:
        mode: `weighted` shares by weight under saturation, `strict` by rank alone.
        weights: One weight (1 or more) for each list, highest priority first; `strict` does not read them.
        max_wait_ms: The longest time that a waiting list goes unserved while others are; 0 = no bound.
    """

    mode: Mode = "weighted"
    weights: tuple[int, ...] = (8, 4, 2, 1)
    max_wait_ms: int = 30_000


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered from one choice to the next, for each list, highest priority first.

    Attributes:
        credit: What the list has earned and not yet paid; 0 while it is empty.
        served_ms: When it was last served or, since then, first seen waiting; 0 while it is empty. A list
            that was empty starts its wait when it is seen again, however long the pause was.
    """

    credit: tuple[int, ...] = (0, 0, 0, 0)
    served_ms: tuple[int, ...] = (0, 0, 0, 0)


def choose(
    n: int, depths: Sequence[int], state: State, policy: Policy, now_ms: int
) -> tuple[list[int], State]:
    """The next `n` picks, fewer only if fewer wait, as indexes of lists in the order of picking.

    Where nothing is picked the state stays as it is: an idle queue costs no write.

    Args:
        n: Most picks to make.
        depths: How many wait in each list. Each pick takes one away.
        state: What the choice before this one returned.
        policy: The rule.
        now_ms: The time of the choice, of the same clock as `state.served_ms`.
    """
    left = list(depths)
    n = min(n, sum(left))
    if n <= 0:
        return [], state
    credit = [c if d else 0 for c, d in zip(state.credit, left, strict=True)]
    # A clock that was set back must not make a list wait for the old time to come again.
    served = [min(s or now_ms, now_ms) for s in state.served_ms]
    picks = _overdue(n, left, served, policy, now_ms)
    while len(picks) < n:
        waiting = [i for i, d in enumerate(left) if d]
        if policy.mode == "strict" or len(waiting) == 1:
            top = waiting[0]
            taken = min(left[top], n - len(picks))
            picks += [top] * taken
            left[top] -= taken
        else:
            _by_weight(n, picks, waiting, left, credit, policy.weights)
    for i in picks:
        served[i] = now_ms
    return picks, State(
        tuple(c if d else 0 for c, d in zip(credit, left, strict=True)),
        tuple(s if d else 0 for s, d in zip(served, left, strict=True)),
    )


def _overdue(n: int, left: list[int], served: list[int], policy: Policy, now_ms: int) -> list[int]:
    """One pick for each list that has waited beyond the bound, the longest wait first."""
    if not policy.max_wait_ms:
        return []
    late = [i for i, d in enumerate(left) if d and now_ms - served[i] > policy.max_wait_ms]
    picks = sorted(late, key=served.__getitem__)[:n]
    for i in picks:
        left[i] -= 1
    return picks


def _by_weight(
    n: int,
    picks: list[int],
    waiting: list[int],
    left: list[int],
    credit: list[int],
    weights: tuple[int, ...],
) -> None:
    """Pick by credit until there are `n` picks or one of the waiting lists has become empty."""
    total = sum(weights[i] for i in waiting)
    while len(picks) < n:
        for i in waiting:
            credit[i] += weights[i]
        richest = max(waiting, key=credit.__getitem__)
        credit[richest] -= total
        picks.append(richest)
        left[richest] -= 1
        if not left[richest]:
            credit[richest] = 0
            return
