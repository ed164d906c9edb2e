"""Explores a world completely, breadth first, and watches the invariants.

report = explore(Protocol(Config(workers=2, crash=True)))
assert report.violation is None, report
"""

from __future__ import annotations

import gc
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from model.monitor import broken_index, broken_row, clean
from model.protocol import Protocol
from model.stores import Lease, Redis, Row
from model.world import Edge, Part, State, World, tokens

LIMIT = 3_000_000
"""States beyond which an exploration is given up."""


@dataclass
class Report:
    """What an exploration came to; `trace` is a shortest way to the violation."""

    states: int
    seconds: float
    moves: set[tuple[str, str]]
    violation: str | None = None
    trace: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{self.states:,} states in {self.seconds:.1f} s"
        return "\n".join([head if self.violation is None else f"{self.violation} ({head})", *self.trace])


class Explorer:
    """The graph of a world: its states as they were discovered, and the steps that are the system's own."""

    def __init__(self, protocol: Protocol) -> None:
        self.world = World(protocol)
        self.states = [self.world.start()]
        self._parents = array("L", [0])
        self._steps = array("L")
        self._first_step = array("L", [0])
        self._sound: set[tuple[Part, Part]] = set()

    def search(self) -> tuple[str, int, Edge | None] | None:
        """Find every state, or the first violation: what it is, where, and the step from there."""
        edges, canonical = self.world.edges, self.world.canonical
        numbers = {self.states[0]: 0}
        for at, state in enumerate(self.states):  # it grows meanwhile
            for edge in edges(state):
                if edge.flaw:
                    return edge.flaw, at, edge
                after = canonical(edge.state)
                to = numbers.setdefault(after, len(numbers))
                if to == len(self.states):
                    self.states.append(after)
                    self._parents.append(at)
                    if flaw := self._flaw(after):
                        return flaw, at, edge
                if edge.own:
                    self._steps.append(to)
            self._first_step.append(len(self._steps))
            if len(numbers) > LIMIT:
                raise RuntimeError(f"more than {LIMIT:,} states")
        hopeless = self._hopeless()
        return hopeless and ("L1: no steps of its own bring the system to a clean end", hopeless, None)

    def _flaw(self, state: State) -> str | None:
        """What breaks I1 or I4."""
        stores = state.row, state.redis
        if stores in self._sound:
            return None
        self._sound.add(stores)
        config = self.world.config
        return broken_index(state.redis.value, config) or broken_row(state.row.value, config)

    def _hopeless(self) -> int | None:
        """The first state from which no steps of the system's own lead to a clean end."""
        hopeful = bytearray(
            clean(state.row.value, state.redis.value) and self.world.at_rest(state) for state in self.states
        )
        waiting = [at for at, good in enumerate(hopeful) if not good]
        while True:
            still = []
            for at in reversed(waiting):
                first, end = self._first_step[at], self._first_step[at + 1]
                if any(hopeful[to] for to in self._steps[first:end]):
                    hopeful[at] = True
                else:
                    still.append(at)
            if len(still) == len(waiting):
                return min(still, default=None)
            waiting = still[::-1]

    def trace(self, at: int, last: Edge | None) -> Iterator[Edge]:
        """A shortest way to a state, and one edge more. A token keeps its name all the way."""
        way = [at]
        while way[-1]:
            way.append(self._parents[way[-1]])
        canonical = self.world.canonical
        goals = [(self.states[to], False) for to in way[-2::-1]]
        goals += [(canonical(last.state), last.flaw is not None)] if last else []
        state = self.states[0]
        for goal in goals:
            edge = next(
                e for e in self.world.edges(state) if (canonical(e.state), e.flaw is not None) == goal
            )
            yield edge
            state = edge.state


def explore(protocol: Protocol) -> Report:
    """Explore a protocol: all states, or up to the first violation."""
    started = perf_counter()
    explorer = Explorer(protocol)
    with no_collector():
        found = explorer.search()
    report = Report(len(explorer.states), 0.0, explorer.world.moves)
    if found is not None:
        report.violation, *end = found
        lines = map(tell, explorer.trace(*end))
        report.trace = [f"{n:2}. {line}" for n, line in enumerate(lines, 1)]
    report.seconds = perf_counter() - started
    return report


@contextmanager
def no_collector() -> Iterator[None]:
    """Millions of tuples, none in a cycle: the garbage collector would look at them again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def tell(edge: Edge) -> str:
    """An edge in one line: who does what, the answer, and what the two stores say then."""
    who, *what = edge.what
    name = who if isinstance(who, str) else " ".join([who[0], *tokens(who[:3])])
    said = f"{name}: {' → '.join(map(word, what))}" if what else name
    return f"{said:64} {word(edge.state.row.value):20} | {word(edge.state.redis.value)}"


def word(value: Any) -> str:
    """A value as people would write it."""
    match value:
        case None:
            return "no"
        case Lease():
            return f"attempt {value.attempt}"
        case Row():
            late = " lapsed" * value.lapsed + " not due" * (not value.due)
            return f"{value.status} {value.token}".rstrip() + late
        case Redis():
            counts = {key: getattr(value, key) for key in ("q", "leases", "retry", "dlq")}
            places = [key if n == 1 else f"{key}×{n}" for key, n in counts.items() if n]
            return " ".join([*places, *([f"live={value.live!r}"] if value.live is not None else [])])
        case tuple():
            return " ".join(word(each) for each in value if each not in {"", False})
    return str(value)
