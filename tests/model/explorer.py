"""Explores a world completely, breadth first, and watches the invariants.

    report = explore(Protocol(Config(workers=2, crash=True)))
    assert report.violation is None, report
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from model.monitor import broken_index, broken_row, clean
from model.protocol import Protocol, Redis, Row
from model.world import Edge, State, World, home_of

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
    """The graph of a world: its states in the order of discovery, and the steps that the system does by itself."""

    def __init__(self, protocol: Protocol) -> None:
        self.world = World(protocol)
        self.states = [self.world.start()]
        self._parents = array("L", [0])
        self._steps = array("L")
        self._first_step = array("L", [0])

    def explore(self) -> tuple[str, int, Edge | None] | None:
        """Find every state. The first violation: what it is, the last state that is sound, the step from there."""
        number = {self.states[0]: 0}
        sound: set[tuple[Any, Any]] = set()
        config = self.world.config
        for at, state in enumerate(self.states):  # grows meanwhile
            for edge in self.world.edges(state):
                if edge.flaw is not None:
                    return edge.flaw, at, edge
                after = edge.state
                to = number.get(after)
                if to is None:
                    number[after] = to = len(self.states)
                    self.states.append(after)
                    self._parents.append(at)
                    if (after.row, after.redis) not in sound:
                        flaw = broken_index(after.redis.value) or broken_row(after.row.value, config)
                        if flaw is not None:
                            return flaw, at, edge
                        sound.add((after.row, after.redis))
                if edge.own:
                    self._steps.append(to)
            self._first_step.append(len(self._steps))
            if len(self.states) > LIMIT:
                raise RuntimeError(f"more than {LIMIT:,} states")
        hopeless = self._hopeless()
        if hopeless is not None:
            return "L1: by no steps of its own does the system come to a clean end", hopeless, None
        return None

    def _hopeless(self) -> int | None:
        """The first state from which no steps of the system's own lead to a clean end."""
        hopeful = bytearray(len(self.states))
        for at, state in enumerate(self.states):
            processes = [process.value for process in state.crowd.value]
            hopeful[at] = not state.flight.value and clean(state.row.value, state.redis.value, processes)
        waiting = [at for at in range(len(self.states)) if not hopeful[at]]
        while True:
            still = []
            for at in reversed(waiting):
                for to in self._steps[self._first_step[at] : self._first_step[at + 1]]:
                    if hopeful[to]:
                        hopeful[at] = True
                        break
                else:
                    still.append(at)
            if len(still) == len(waiting):
                return still[-1] if still else None
            waiting = still[::-1]

    def trace(self, at: int, last: Edge | None) -> list[str]:
        """A shortest way to a state, and from there over one edge, told step by step."""
        way = [at]
        while way[-1]:
            way.append(self._parents[way[-1]])
        way.reverse()
        edges = [
            next(edge for edge in self.world.edges(self.states[a]) if edge.state == self.states[b])
            for a, b in zip(way, way[1:])
        ]
        edges += [last] if last else []
        return [f"{n:2}. {tell(edge):64} {show(edge.state)}" for n, edge in enumerate(edges, 1)]


def explore(protocol: Protocol) -> Report:
    """Explore a protocol: all states, or up to the first violation."""
    started = perf_counter()
    explorer = Explorer(protocol)
    found = explorer.explore()
    report = Report(len(explorer.states), 0.0, explorer.world.moves)
    if found is not None:
        report.violation, at, last = found
        report.trace = explorer.trace(at, last)
    report.seconds = perf_counter() - started
    return report


def tell(edge: Edge) -> str:
    """An edge in words: who calls what, and the answer."""
    who, *rest = edge.what
    text = who if isinstance(who, str) else f"{home_of(who)[0]} ({' '.join(map(str, who))})"
    return f"{text}: {', '.join(map(str, rest))}"


def show(state: State) -> str:
    """The row and Redis at one glance."""
    row: Row | None = state.row.value
    redis: Redis = state.redis.value
    places = [f"{name}×{n}" if n > 1 else name for name in ("q", "leases", "retry", "dlq") if (n := getattr(redis, name))]
    live = "" if redis.live is None else f" live={redis.live!r}"
    told = "no row" if row is None else f"{row.status}" + (f" by {row.token}" if row.token else "")
    return f"{told} | {' '.join(places) or 'nothing'}{live}"
