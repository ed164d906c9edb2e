"""The world of a protocol: every state, and everything that may happen in it.

Parts of a state (a row, a Redis, a process, ...) are kept once each and compared by identity. What a process
may do about a row and a Redis is worked out once; it is met again in thousands of states.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import count
from typing import Any, NamedTuple

from model.monitor import broken_step
from model.protocol import CLIENT, WORKER, Protocol, home
from model.stores import EMPTY, READS, Command, Redis, Row, Token

CLIENTS = frozenset({"cancel", "redrive"})
"""What people do: nothing that the system may wait for."""

SPENT = "spent"
REMEMBERED = (
    *("_call", "_moves", "_unanswered", "_mishaps", "_damages"),
    *("_with", "_each", "_order", "_renamed", "_forgotten"),
)
"""Methods whose answers are kept: they depend on their arguments alone."""

What = tuple[Any, ...]


class Part:
    """A part of a state, the only one of its value."""

    __slots__ = ("number", "shape", "tokens", "value")

    def __init__(self, value: Any, number: int) -> None:
        self.value = value
        self.number = number
        self.tokens = tuple(dict.fromkeys(tokens(value)))
        """The leases that it knows of, as a reader meets them."""
        self.shape = repr(renamed(value, dict.fromkeys(self.tokens, "?")))
        """What it is but for their names."""


class Bag(tuple[Part, ...]):
    """Parts in no order of their own."""

    __slots__ = ()


class State(NamedTuple):
    """Everything at one moment."""

    row: Part
    redis: Part
    crowd: Part
    """A bag of all processes."""
    flight: Part
    """A bag of the calls whose callers have given up on them, and which may still be carried out."""
    late: int
    """How many more calls may go unanswered."""
    memory: Part
    """The Redis that may come back; None if it was not saved yet, SPENT if it has come."""


class Edge(NamedTuple):
    """Something that may happen: `own` if the system does it by itself, `flaw` if it must not."""

    what: What
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
        for name in REMEMBERED:
            setattr(self, name, cache(getattr(self, name)))

    def start(self) -> State:
        """Nothing has happened yet."""
        crowd = self._bag(self.part(process) for process in self.protocol.processes())
        nothing = self.part(None)
        return State(nothing, self.part(EMPTY), crowd, self._bag([]), self.config.late, nothing)

    def edges(self, state: State) -> Iterator[Edge]:
        """Everything that may happen next."""
        yield from self._steps(state)
        yield from self._faults(state)
        if state.late:
            yield from self._silences(state)
        if state.flight.value:
            yield from self._landings(state)

    def at_rest(self, state: State) -> bool:
        """Has the client been served, and is nobody in the middle of something, people excepted?"""
        calls = [call.value[0] for call in state.flight.value]
        values = [process.value for process in state.crowd.value]
        return CLIENTS.issuperset(calls) and all(home(value) == value != CLIENT for value in values)

    def _bag(self, parts: Iterable[Part]) -> Part:
        return self.part(Bag(sorted(parts, key=lambda part: part.number)))

    # What the processes do

    def _steps(self, state: State) -> Iterator[Edge]:
        row, redis, crowd, flight, late, memory = state
        for i, process, fresh in self._everybody(state):
            for what, process2, row2, redis2, own, flaw in self._moves(process, row, redis, fresh):
                after = State(row2, redis2, self._with(crowd, i, process2), flight, late, memory)
                yield Edge(what, after, own, flaw)

    def _everybody(self, state: State) -> Iterator[tuple[int, Part, Token]]:
        """Each process, with a token that nobody has for the one that may need it."""
        for i, process in self._each(state.crowd):
            yield i, process, fresh_token(state) if process.value == WORKER else ""

    def _each(self, crowd: Part) -> list[tuple[int, Part]]:
        """Who is in the crowd and where; of twins only one."""
        places = {process: i for i, process in enumerate(crowd.value)}
        return [(i, process) for process, i in places.items()]

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

    def _with(self, bag: Part, i: int, *new: Part) -> Part:
        """The bag, with these in place of the part at `i`."""
        return self._bag((*bag.value[:i], *bag.value[i + 1 :], *new))

    # What goes wrong

    def _faults(self, state: State) -> Iterator[Edge]:
        row, redis, crowd, flight, late, memory = state
        for what, crowd2 in self._mishaps(crowd):
            yield Edge(what, State(row, redis, crowd2, flight, late, memory))
        for what, redis2 in self._damages(redis):
            yield Edge(what, State(row, redis2, crowd, flight, late, memory))
        if self.config.old_state:
            if isinstance(memory.value, Redis):
                back = State(row, memory, crowd, flight, late, self.part(SPENT))
                yield Edge(("Redis comes back with its old state",), back)
            elif memory.value != SPENT and redis.value != EMPTY and not redis.value.damaged:
                yield Edge(("Redis saves its state",), State(row, redis, crowd, flight, late, redis))

    def _mishaps(self, crowd: Part) -> list[tuple[What, Part]]:
        """What may befall the processes."""
        found: list[tuple[What, Part]] = []
        for i, process in self._each(crowd):
            value = process.value
            if home(value) != value and value[0] in self.config.crash:
                found.append(((value, "dies"), self._with(crowd, i, self.part(home(value)))))
            if self.config.cut_off and value[1] in {"running", "ended"}:
                cut = self.part(("worker", "cut off", value[2]))
                found.append(((value, "loses Postgres for good"), self._with(crowd, i, cut)))
        return found

    def _damages(self, redis: Part) -> list[tuple[What, Part]]:
        """What may befall Redis."""
        found: list[tuple[What, Part]] = []
        if self.config.flush and redis.value != EMPTY:
            found.append((("FLUSHALL",), self.part(EMPTY)))
        for key, left in evictions(redis.value, self.config.evict):
            found.append(((f"{key} is evicted",), self.part(left)))
        return found

    # Calls that go unanswered

    def _silences(self, state: State) -> Iterator[Edge]:
        row, redis, crowd, flight, late, memory = state
        for i, process, fresh in self._everybody(state):
            for what, command, process2 in self._unanswered(process, fresh):
                flight2 = flight if command is None else self._bag((*flight.value, command))
                yield Edge(what, State(row, redis, self._with(crowd, i, process2), flight2, late - 1, memory))

    def _unanswered(self, process: Part, fresh: Token) -> list[tuple[What, Part | None, Part]]:
        found: list[tuple[What, Part | None, Part]] = []
        for step in self.protocol.steps(process.value, fresh):
            command = None if step.command[0] in READS else self.part(step.command)
            for then in step.unanswered:
                what = (process.value, step.command, f"no answer: {then[1]}")
                found.append((what, command, self.part(then)))
        return found

    def _landings(self, state: State) -> Iterator[Edge]:
        row, redis, crowd, flight, late, memory = state
        for i, command in enumerate(flight.value):
            rest = self._with(flight, i)
            row2, redis2, answer, flaw = self._call(command.value, row, redis)
            landed = State(row2, redis2, crowd, rest, late, memory)
            yield Edge(("a late call", command.value, answer), landed, command.value[0] not in CLIENTS, flaw)
            yield Edge(("a call is lost", command.value), State(row, redis, crowd, rest, late, memory))

    # What makes no difference

    def canonical(self, state: State) -> State:
        """The state that stands for all that differ from it in names and forgotten history only.

        Workers are all alike, and so are reapers, reconcilers and tokens. What happened to an attempt is of
        no consequence when nobody may ask about it any more.
        """
        row, redis, crowd, flight, late, memory = state
        if row.value is not None and row.value.runs:
            row = self._forgotten(row, crowd, flight)
        met = row.tokens + redis.tokens + flight.tokens + memory.tokens
        order = self._order(met, crowd)
        if order:
            new = self._renamed
            row, redis, crowd = new(row, order), new(redis, order), new(crowd, order)
            flight, memory = new(flight, order), new(memory, order)
        return State(row, redis, crowd, flight, late, memory)

    def _order(self, met: tuple[Token, ...], crowd: Part) -> tuple[Token, ...]:
        """The tokens in the order in which they are met; () if that is how they are named already."""

        def place(part: Part) -> tuple[str, list[int]]:
            return part.shape, [met.index(token) if token in met else len(met) for token in part.tokens]

        crowded = (token for part in sorted(crowd.value, key=place) for token in part.tokens)
        order = tuple(dict.fromkeys((*met, *crowded)))
        return () if order == tuple(f"t{n}" for n, _ in enumerate(order, 1)) else order

    def _renamed(self, part: Part, order: tuple[Token, ...]) -> Part:
        if isinstance(part.value, Bag):
            return self._bag(self._renamed(each, order) for each in part.value)
        return self.part(renamed(part.value, {token: f"t{n}" for n, token in enumerate(order, 1)}))

    def _forgotten(self, row: Part, crowd: Part, flight: Part) -> Part:
        asking = {part.value[3] for part in crowd.value if part.value[1] == "ended"}
        asking |= {part.value[1] for part in flight.value if part.value[0] == "settle"}
        value: Row = row.value
        return self.part(value._replace(runs=tuple(run for run in value.runs if run[0] in asking)))


def fresh_token(state: State) -> Token:
    """A token that nobody has."""
    used = {token for part in state if isinstance(part, Part) for token in part.tokens}
    return next(token for n in count(1) if (token := f"t{n}") not in used)


def evictions(redis: Redis, most: int) -> Iterator[tuple[str, Redis]]:
    """Redis without one of its keys. Dead letters are not counted, so their loss is no damage."""
    if redis.dlq and most:
        yield "dlq", redis._replace(dlq=0)
    if redis.damaged < most:
        for key in ("q", "leases", "retry"):
            if getattr(redis, key):
                yield key, redis._replace(**{key: 0}, damaged=redis.damaged + 1)
        if redis.live is not None:
            yield "live", redis._replace(live=None, damaged=redis.damaged + 1)


def renamed(value: Any, names: dict[Token, Token]) -> Any:
    """A value with its tokens renamed."""
    match value:
        case str():
            return names.get(value, value)
        case tuple():
            each = (renamed(each, names) for each in value)
            return type(value)(*each) if hasattr(value, "_fields") else tuple(each)
    return value


def tokens(value: Any) -> Iterator[Token]:
    """Every token in a value, as often as it occurs."""
    match value:
        case str() if value[:1] == "t" and value[1:].isdigit():
            yield value
        case Part():
            yield from value.tokens
        case tuple():
            for each in value:
                yield from tokens(each)
