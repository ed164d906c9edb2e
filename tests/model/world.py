"""The world of a protocol: every state, and everything that may happen in it.

Parts of a state (a row, a Redis, a process, ...) are kept once each and compared by identity. What a process
may do about a row and a Redis is worked out once; it is met again in thousands of states.

Workers are all alike, so states that differ only in who is who are one; so are reapers and reconcilers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import count
from typing import Any, NamedTuple

from model.monitor import broken_step
from model.protocol import (
    CANCELLER,
    DONE,
    EMPTY,
    READS,
    REAPER,
    RECONCILER,
    WORKER,
    Command,
    Process,
    Protocol,
    Redis,
    Row,
    Token,
)

HOMES = {
    **dict.fromkeys(["leased", "refused", "reclaiming", "misplaced", "running", "ended", "settled"], WORKER),
    "cut off": WORKER,
    **dict.fromkeys(["expired", "reaped", "moving"], REAPER),
    **dict.fromkeys(["open", "dead", "listed", "not dead"], RECONCILER),
    **dict.fromkeys(["accepted", "cancelled"], DONE),
}
CLIENTS = frozenset({"cancel", "redrive"})
"""What people do: nothing that the system may wait for."""

SPENT = "spent"


class Part:
    """A part of a state, the only one of its value."""

    __slots__ = ("number", "tokens", "value")

    def __init__(self, value: Any, number: int) -> None:
        self.value = value
        self.number = number
        self.tokens = frozenset(tokens(value))
        """The leases that it knows of."""

    def __repr__(self) -> str:
        return repr(self.value)


class State(NamedTuple):
    """Everything at one moment."""

    row: Part
    redis: Part
    crowd: Part
    """The parts of all processes."""
    flight: Part
    """Calls whose callers have given up on them, and which may still be carried out."""
    late: int
    """How many more calls may go unanswered."""
    memory: Part
    """The Redis that may come back, None if it was not saved yet, SPENT if it has come."""


class Edge(NamedTuple):
    """Something that may happen: `own` if the system does it by itself, `flaw` if it must not."""

    what: tuple[Any, ...]
    state: State
    own: bool = False
    flaw: str | None = None


class World:
    """What may happen under a protocol."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.config = protocol.config
        self.moves: set[tuple[str, str]] = set()
        """The changes of status that were met."""
        numbers = count()
        self.part = cache(lambda value: Part(value, next(numbers)))
        self._moves = cache(self._moves)  # type: ignore[method-assign]
        self._call = cache(self._call)  # type: ignore[method-assign]
        self._with = cache(self._with)  # type: ignore[method-assign]
        self._mishaps = cache(self._mishaps)  # type: ignore[method-assign]
        self._damages = cache(self._damages)  # type: ignore[method-assign]
        self._unanswered = cache(self._unanswered)  # type: ignore[method-assign]
        self._known = cache(self._known)  # type: ignore[method-assign]

    def start(self) -> State:
        """Nothing has happened yet."""
        part = self.part
        everybody = sorted((part(p) for p in self.protocol.processes()), key=_number)
        return State(part(None), part(EMPTY), part(tuple(everybody)), part(()), self.config.late, part(None))

    def edges(self, state: State) -> Iterator[Edge]:
        """Everything that may happen next."""
        yield from self._steps(state)
        yield from self._faults(state)
        if state.late:
            yield from self._silences(state)
        if state.flight.value:
            yield from self._landings(state)

    # What the processes do

    def _steps(self, state: State) -> Iterator[Edge]:
        row, redis, crowd, flight, late, memory = state
        for i, process, fresh in self._everybody(state):
            for what, process2, row2, redis2, own, flaw in self._moves(process, row, redis, fresh):
                crowd2 = self._with(crowd, i, process2)
                if row2.value is not None and row2.value.runs:
                    row2 = self._known(row2, crowd2, flight)
                yield Edge(what, State(row2, redis2, crowd2, flight, late, memory), own, flaw)

    def _everybody(self, state: State) -> Iterator[tuple[int, Part, Token]]:
        """Each process, twins once, with a token that nobody has for the one that may need it."""
        twin = None
        for i, process in enumerate(state.crowd.value):
            if process is not twin:
                yield i, process, self._fresh(state) if process.value == WORKER else ""
            twin = process

    def _moves(self, process: Part, row: Part, redis: Part, fresh: Token) -> list[tuple[Any, ...]]:
        moves = []
        for step in self.protocol.steps(process.value, fresh):
            row2, redis2, answer, flaw = self._call(step.command, row, redis)
            process2 = self.part(step.then(answer))
            if (process2, row2, redis2) != (process, row, redis):
                own = step.command[0] not in CLIENTS
                moves.append(((process.value, step.command, answer), process2, row2, redis2, own, flaw))
        return moves

    def _call(self, command: Command, row: Part, redis: Part) -> tuple[Part, Part, Any, str | None]:
        row2, redis2, answer = self.protocol.call(command, row.value, redis.value)
        if row.value is not None and row.value.status != row2.status:
            self.moves.add((row.value.status, row2.status))
        flaw = broken_step(command, row.value, redis.value, row2, redis2)
        return self.part(row2), self.part(redis2), answer, flaw

    def _with(self, crowd: Part, i: int, process: Part) -> Part:
        """The crowd, with this process in place of the one at `i`."""
        others = crowd.value[:i] + crowd.value[i + 1 :]
        return self.part(tuple(sorted((*others, process), key=_number)))

    # What goes wrong

    def _faults(self, state: State) -> Iterator[Edge]:
        row, redis, crowd, flight, late, memory = state
        for what, crowd2 in self._mishaps(crowd):
            yield self._edge(what, State(row, redis, crowd2, flight, late, memory))
        for what, redis2 in self._damages(redis):
            yield Edge(what, State(row, redis2, crowd, flight, late, memory))
        if self.config.old_state and memory.value is None and redis.value not in {EMPTY}:
            if not redis.value.damaged:
                yield Edge(("Redis saves its state",), State(row, redis, crowd, flight, late, redis))
        elif self.config.old_state and memory.value != SPENT and memory.value is not None:
            back = State(row, memory, crowd, flight, late, self.part(SPENT))
            yield Edge(("Redis comes back with its old state",), back)

    def _mishaps(self, crowd: Part) -> list[tuple[tuple[Any, ...], Part]]:
        """What may befall the processes."""
        found = []
        for i, process in enumerate(crowd.value):
            value = process.value
            if self.config.crash and (home := home_of(value)) != value:
                found.append(((value, "dies"), self._with(crowd, i, self.part(home))))
            if self.config.cut_off and value[0] in {"running", "ended"}:
                cut = self.part(("cut off", value[1]))
                found.append(((value, "loses Postgres for good"), self._with(crowd, i, cut)))
        return found

    def _damages(self, redis: Part) -> list[tuple[tuple[Any, ...], Part]]:
        """What may befall Redis."""
        said: Redis = redis.value
        found = []
        if self.config.flush and said != EMPTY:
            found.append((("FLUSHALL",), self.part(EMPTY)))
        if self.config.evict:
            for key, left in evictions(said):
                found.append(((f"{key} is evicted",), self.part(left)))
        return found

    # Calls that go unanswered

    def _silences(self, state: State) -> Iterator[Edge]:
        row, redis, crowd, flight, late, memory = state
        for i, process, fresh in self._everybody(state):
            for what, command, process2 in self._unanswered(process, fresh):
                flying = flight.value if command[0] in READS else tuple(sorted((*flight.value, command)))
                crowd2 = self._with(crowd, i, process2)
                yield self._edge(what, State(row, redis, crowd2, self.part(flying), late - 1, memory))

    def _unanswered(self, process: Part, fresh: Token) -> list[tuple[tuple[Any, ...], Command, Part]]:
        return [
            ((process.value, step.command, "no answer, goes on as", then), step.command, self.part(then))
            for step in self.protocol.steps(process.value, fresh)
            for then in step.unanswered
        ]

    def _landings(self, state: State) -> Iterator[Edge]:
        row, redis, crowd, flight, late, memory = state
        for i, command in enumerate(flight.value):
            flight2 = self.part(flight.value[:i] + flight.value[i + 1 :])
            row2, redis2, answer, flaw = self._call(command, row, redis)
            own = command[0] not in CLIENTS
            landed = State(row2, redis2, crowd, flight2, late, memory)
            yield self._edge(("late call", command, answer), landed, own=own, flaw=flaw)
            yield self._edge(("lost call", command), State(row, redis, crowd, flight2, late, memory))

    # What nobody knows any more is forgotten

    def _edge(self, what: tuple[Any, ...], state: State, *, own: bool = False, flaw: str | None = None) -> Edge:
        if state.row.value is not None and state.row.value.runs:
            state = state._replace(row=self._known(state.row, state.crowd, state.flight))
        return Edge(what, state, own, flaw)

    def _known(self, row: Part, crowd: Part, flight: Part) -> Part:
        """The row with that part of its history only which somebody may still ask about."""
        asking = {p.value[2] for p in crowd.value if p.value[0] == "ended"}
        asking |= {command[1] for command in flight.value if command[0] == "settle"}
        value: Row = row.value
        return self.part(value._replace(runs=tuple(run for run in value.runs if run[0] in asking)))

    def _fresh(self, state: State) -> Token:
        used = state.row.tokens | state.redis.tokens | state.crowd.tokens | state.flight.tokens | state.memory.tokens
        return next(token for n in count(1) if (token := f"t{n}") not in used)


def home_of(process: Process) -> Process:
    """What a process is after it was killed and started again."""
    return ("operator", process[1]) if process[0] == "redriven" else HOMES.get(process[0], process)


def evictions(redis: Redis) -> Iterator[tuple[str, Redis]]:
    """Redis without one of its keys; only the dead letters can be missed by no count."""
    for key in ("q", "leases", "retry", "dlq"):
        if getattr(redis, key):
            yield key, redis._replace(**{key: 0}, damaged=redis.damaged or key != "dlq")
    if redis.live is not None:
        yield "live", redis._replace(live=None, damaged=True)


def tokens(value: Any) -> Iterator[Token]:
    """Every token in a value."""
    if isinstance(value, str) and value[:1] == "t" and value[1:].isdigit():
        yield value
    elif isinstance(value, Part):
        yield from value.tokens
    elif isinstance(value, tuple):
        for each in value:
            yield from tokens(each)


def _number(part: Part) -> int:
    return part.number
