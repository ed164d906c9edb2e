"""The queue in dicts and lists: the second statement of the protocol, and what the scripts are held to.

`Reference` has the interface of `scheduler.queue.Shard`. It is one shard without a server: each method does
at once, for each id by itself, what the script of that name does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from scheduler import fairness
from scheduler.fairness import Policy, State
from scheduler.model import PRIORITIES, Depths, Move, Priority
from scheduler.queue import Census

SHORTEST_MS = 50


@dataclass
class Contents:
    """All that a shard holds. Times are milliseconds of the shard's clock."""

    q: dict[Priority, list[str]] = field(default_factory=lambda: {p: [] for p in PRIORITIES})
    retry: dict[Priority, dict[str, int]] = field(default_factory=lambda: {p: {} for p in PRIORITIES})
    dlq: dict[Priority, dict[str, int]] = field(default_factory=lambda: {p: {} for p in PRIORITIES})
    leases: dict[str, int] = field(default_factory=dict)
    live: dict[str, str] = field(default_factory=dict)
    credit: State = field(default_factory=State)
    wake: int = 0
    paused: set[str] = field(default_factory=set)
    epoch: str | None = None

    def places(self) -> Iterator[str]:
        """Every id, once for each place in `q`, `leases` and `retry` that it is in."""
        for p in PRIORITIES:
            yield from self.q[p]
            yield from self.retry[p]
        yield from self.leases

    def broken(self) -> list[str]:
        """What breaks invariant I1, in words; [] if it holds."""
        places = list(self.places())
        dead = {id_ for p in PRIORITIES for id_ in self.dlq[p]}
        leased = {id_ for id_, token in self.live.items() if token}
        found = []
        if len(places) != len(self.live) or set(places) != self.live.keys():
            found.append(f"`live` has {sorted(self.live)}, but the ids are at {sorted(places)}")
        if leased != set(self.leases):
            found.append(f"tokens name {sorted(leased)}, but `leases` has {sorted(self.leases)}")
        if both := dead & self.live.keys():
            found.append(f"both dead and alive: {sorted(both)}")
        return found


class Reference:
    """One shard. `now_ms` is its clock."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.now_ms = now_ms
        self.held = Contents()

    def _ready(self, id_: str, priority: Priority, *, first: bool = False) -> None:
        self.held.q[priority].insert(0 if first else len(self.held.q[priority]), id_)
        self.held.wake = 1

    async def push(self, entries: Sequence[tuple[str, Priority, int]]) -> int:
        added = 0
        for id_, priority, delay_ms in entries:
            self.held.dlq[priority].pop(id_, None)
            if id_ in self.held.live:
                continue
            added += 1
            self.held.live[id_] = ""
            if delay_ms > 0:
                self.held.retry[priority][id_] = self.now_ms() + delay_ms
            else:
                self._ready(id_, priority)
        return added

    async def adopt(self, entries: Sequence[tuple[str, Priority, str, int]]) -> int:
        adopted = 0
        for id_, priority, token, remaining_ms in entries:
            if id_ not in self.held.live and token:
                adopted += 1
                self.held.live[id_] = token
                self.held.leases[id_] = self.now_ms() + max(remaining_ms, 0)
                self.held.dlq[priority].pop(id_, None)
        return adopted

    async def lease(self, n: int, token: str, vis_ms: int, policy: Policy) -> list[str]:
        depths = [0 if p in self.held.paused else len(self.held.q[p]) for p in PRIORITIES]
        picks, self.held.credit = fairness.choose(n, depths, self.held.credit, policy, self.now_ms())
        ids = [self.held.q[PRIORITIES[pick]].pop(0) for pick in picks]
        for id_ in ids:
            self.held.live[id_] = token
            self.held.leases[id_] = self.now_ms() + vis_ms
        if len(ids) < sum(depths):
            self.held.wake = 1
        return ids

    async def place(self, moves: Sequence[Move]) -> int:
        return sum(self._place(move) for move in _in_order(moves))

    def _place(self, move: Move) -> bool:
        ownerless = not move.token or (move.where == "held" and not move.new_token)
        if ownerless or self.held.live.get(move.id) != move.token:
            return False
        later = self.now_ms() + max(move.delay_ms, SHORTEST_MS)
        self.held.leases.pop(move.id, None)
        match move.where:
            case "gone":
                del self.held.live[move.id]
            case "dead":
                del self.held.live[move.id]
                self.held.dlq[move.priority][move.id] = self.now_ms()
            case "retry":
                self.held.live[move.id] = ""
                self.held.retry[move.priority][move.id] = later
            case "held":
                self.held.live[move.id] = move.new_token
                self.held.leases[move.id] = later
            case "head" | "tail":
                self.held.live[move.id] = ""
                self._ready(move.id, move.priority, first=move.where == "head")
        return True

    async def expired(self, n: int) -> list[tuple[str, str]]:
        due = _due(self.held.leases, self.now_ms())[:n]
        owned = [(id_, token) for id_ in due if (token := self.held.live.get(id_))]
        for id_ in set(due) - dict(owned).keys():
            del self.held.leases[id_]
        return owned

    async def pump(self, n: int) -> int:
        moved = 0
        for priority in PRIORITIES:
            for id_ in _due(self.held.retry[priority], self.now_ms())[:n]:
                del self.held.retry[priority][id_]
                self._ready(id_, priority)
                moved += 1
        return moved

    async def forget(self, entries: Sequence[tuple[str, Priority]]) -> int:
        waiting = [(id_, p) for id_, p in dict.fromkeys(entries) if id_ in self.held.retry[p]]
        for id_, priority in waiting:
            del self.held.retry[priority][id_]
            self.held.live.pop(id_, None)
        return len(waiting)

    async def dlq_add(self, entries: Sequence[tuple[str, Priority, int]]) -> int:
        added = 0
        for id_, priority, age_ms in entries:
            if id_ not in self.held.live and id_ not in self.held.dlq[priority]:
                self.held.dlq[priority][id_] = self.now_ms() - max(age_ms, 0)
                added += 1
        return added

    async def dlq_del(self, entries: Sequence[tuple[str, Priority]]) -> int:
        return sum(self.held.dlq[priority].pop(id_, None) is not None for id_, priority in entries)

    async def dlq_page(self, priority: Priority, start: int, n: int) -> list[str]:
        dead = self.held.dlq[priority]
        return sorted(dead, key=lambda id_: (dead[id_], id_))[start : start + max(n, 0)]

    async def known(self, ids: Sequence[str]) -> list[str | None]:
        return [self.held.live.get(id_) for id_ in ids]

    async def census(self) -> Census:
        if len(self.held.live) == sum(1 for _ in self.held.places()):
            return Census(whole=True, epoch=self.held.epoch)
        self.held = Contents()
        return Census(whole=False, epoch=None)

    async def set_epoch(self, expected: str | None, new: str) -> bool:
        if self.held.epoch != expected:
            return False
        self.held.epoch = new
        return True

    async def nudge(self, entries: Sequence[tuple[str, Priority]]) -> int:
        nudged = 0
        for id_, priority in entries:
            for waiting in (self.held.retry[priority], self.held.leases):
                if waiting.get(id_, 0) > self.now_ms():
                    waiting[id_] = self.now_ms()
                    nudged += 1
        return nudged

    async def depths(self) -> Depths:
        return Depths(
            tuple(len(self.held.q[p]) for p in PRIORITIES),
            tuple(len(self.held.retry[p]) for p in PRIORITIES),
            tuple(len(self.held.dlq[p]) for p in PRIORITIES),
            len(self.held.leases),
        )


def _due(scores: dict[str, int], now_ms: int) -> list[str]:
    """The ids whose time has come, the earliest first; among equals in the order of their bytes."""
    return sorted((id_ for id_, ms in scores.items() if ms <= now_ms), key=lambda id_: (scores[id_], id_))


def _in_order(moves: Sequence[Move]) -> Iterator[Move]:
    """As `place` takes them: kind after kind; those to the head from the last to the first."""
    kinds: dict[tuple[object, ...], dict[str, Move]] = {}
    for move in moves:
        kind = (move.where, move.token, move.priority, move.delay_ms, move.new_token)
        kinds.setdefault(kind, {})[move.id] = move
    for kind, group in kinds.items():
        yield from reversed(group.values()) if kind[0] == "head" else group.values()
