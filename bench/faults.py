"""Faults: what can be done to a system, and the plan that a seed draws.

A nemesis does one kind of harm to an arena and undoes it after a while: it starts what it killed, wakes what
it froze, heals what it cut. Whatever it leaves down the arena's keeper starts again. Faults overlap, but no
two of them harm the same server, wire or process at the same time.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from bench.arena import Arena
from bench.index import connected
from bench.proxy import Proxy, Way
from bench.stand import Part
from scheduler.errors import StartError

_EVERY_S: Final = 2.0
_FIRST_S: Final = 1.5
_LAST_S: Final = 1.0
"""How long after the beginning, and before the end, faults are planned."""

_CONFIRMED: Final = (b"INSERT 0 ", b"UPDATE ", b"SELECT ")
"""How Postgres confirms an enqueue, a claim, a settle: each statement is a commit of its own."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One planned harm.

    Attributes:
        at_s: When, in seconds after the beginning.
        kind: The nemesis.
        share: How long it lasts, between the shortest (0) and the longest (1) that its kind knows.
        dice: Decides whom it hits, and how.
        target: Whom it hits, by name, if the dice are not asked: `worker 2`, `redis wire`.
    """

    at_s: float
    kind: str
    share: float
    dice: int
    target: str | None = None


class Blow:
    """A fault that is being carried out, and what has become of it.

    Attributes:
        struck_s: When it struck, in seconds after the beginning; None if it did not.
        landed: Whether tasks were running then, and there was something to harm.
        what: Whom it hit, and how.
    """

    def __init__(self, fault: Fault, arena: Arena, busy: Callable[[], bool]) -> None:
        self.fault = fault
        self.arena = arena
        self.rng = random.Random(fault.dice)
        self.struck_s: float | None = None
        self.landed = False
        self.what = ""
        self._busy = busy
        self._began = time.monotonic()

    def strike(self, what: str, *, landed: bool = True) -> None:
        """Say that the harm is done now."""
        self.struck_s = round(time.monotonic() - self._began, 2)
        self.what = what
        self.landed = landed and self._busy()

    def rest(self, shortest_s: float, longest_s: float) -> None:
        """Leave things as they are for a while."""
        time.sleep(shortest_s + self.fault.share * (longest_s - shortest_s))

    def one_of(self, parts: Sequence[Part]) -> Part:
        """The part that is its target, or one that the dice choose."""
        return named(parts, self.fault.target) or self.rng.choice(parts)

    @contextmanager
    def wire(self) -> Iterator[tuple[str, Proxy]]:
        """One of the two wires, by name, for this fault alone."""
        drawn = self.rng.choice(("postgres", "redis"))
        name = drawn if self.fault.target is None else self.fault.target.removesuffix(" wire")
        with self.arena.alone(f"{name} wire"):
            yield name, self.arena.postgres_wire if name == "postgres" else self.arena.redis_wire


def named(parts: Sequence[Part], target: str | None) -> Part | None:
    """The part that a target names, as `worker 2` does the second worker; None if it is none of these."""
    return next((part for part in parts if part.name.replace("-", " ") == target), None)


Nemesis = Callable[[Blow], None]
NEMESES: Final[dict[str, Nemesis]] = {}


def nemesis(function: Nemesis) -> Nemesis:
    """Register a kind of fault under its name."""
    NEMESES[function.__name__] = function
    return function


@nemesis
def worker_killed(blow: Blow) -> None:
    """A worker is killed with all that it holds."""
    _kill(blow, blow.one_of(blow.arena.workers))


@nemesis
def api_killed(blow: Blow) -> None:
    """An API is killed with all that it has not answered."""
    _kill(blow, blow.one_of(blow.arena.apis))


def _kill(blow: Blow, part: Part) -> None:
    with blow.arena.alone(part.name):
        blow.strike(part.name, landed=part.ready)
        part.kill()
        blow.rest(0.0, 1.0)
        with suppress(StartError):
            part.start()


@nemesis
def worker_frozen(blow: Blow) -> None:
    """A worker stands still until its leases are over, and goes on as if nothing had happened."""
    lease_s = blow.arena.lease_s
    _freeze(blow, blow.one_of(blow.arena.workers), lease_s + 0.5, lease_s + 1.5)


@nemesis
def api_frozen(blow: Blow) -> None:
    """An API stands still, for longer than its clients wait or not."""
    _freeze(blow, blow.one_of(blow.arena.apis), 1.0, 5.0)


def _freeze(blow: Blow, part: Part, shortest_s: float, longest_s: float) -> None:
    with blow.arena.alone(part.name):
        blow.strike(part.name, landed=part.ready)
        part.signal(signal.SIGSTOP)
        blow.rest(shortest_s, longest_s)
        part.signal(signal.SIGCONT)


@nemesis
def redis_flushed(blow: Blow) -> None:
    """Redis loses everything, and says nothing."""
    with blow.arena.alone("redis"), connected(blow.arena.redis.url) as client:
        blow.strike("FLUSHALL")
        client.flushall()


@nemesis
def scripts_flushed(blow: Blow) -> None:
    """Redis forgets the scripts."""
    with blow.arena.alone("redis"), connected(blow.arena.redis.url) as client:
        blow.strike("SCRIPT FLUSH")
        client.script_flush()


@nemesis
def redis_killed(blow: Blow) -> None:
    """Redis is killed, and comes back with what it had written."""
    with blow.arena.alone("redis"):
        blow.strike("kill -9")
        blow.arena.redis.kill()
        blow.rest(0.2, 2.0)
        blow.arena.redis.start()


@nemesis
def redis_frozen(blow: Blow) -> None:
    """Redis stands still for longer than its clients wait, and then does what they asked meanwhile."""
    with blow.arena.alone("redis"):
        blow.strike("SIGSTOP")
        os.kill(blow.arena.redis.pid, signal.SIGSTOP)
        blow.rest(1.0, 3.0)
        os.kill(blow.arena.redis.pid, signal.SIGCONT)


@nemesis
def redis_restored(blow: Blow) -> None:
    """Redis comes back with an old state."""
    server, kept = blow.arena.redis, blow.arena.redis.data_dir / "kept"
    files = server.data / "appendonlydir"
    with blow.arena.alone("redis"):
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(files, kept)
        blow.rest(1.0, 3.0)
        blow.strike("an old append-only file")
        server.kill()
        shutil.rmtree(files)
        shutil.copytree(kept, files)
        server.start()


@nemesis
def postgres_restarted(blow: Blow) -> None:
    """Postgres is stopped or killed, and comes back."""
    with blow.arena.alone("postgres"):
        stopped = blow.rng.random() < 0.5
        blow.strike("stop" if stopped else "kill -9")
        (blow.arena.postgres.stop if stopped else blow.arena.postgres.kill)()
        blow.rest(0.0, 2.0)
        blow.arena.postgres.start()


@nemesis
def backends_terminated(blow: Blow) -> None:
    """Postgres ends half of the sessions that it has with us."""
    with blow.arena.alone("postgres"), blow.arena.connect() as connection:
        blow.strike("half of the sessions")
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE 'scheduler-%' AND random() < 0.5"
        )


@nemesis
def links_reset(blow: Blow) -> None:
    """Every connection through a proxy is reset."""
    with blow.wire() as (name, wire):
        blow.strike(f"{name}, {wire.links} links", landed=wire.links > 0)
        wire.reset()


@nemesis
def redis_swallowed(blow: Blow) -> None:
    """Nothing comes through to Redis, or nothing back. What was sent arrives late, or never."""
    _swallow(blow, "redis", blow.arena.redis_wire)


@nemesis
def postgres_swallowed(blow: Blow) -> None:
    """Nothing comes through to Postgres, or nothing back."""
    _swallow(blow, "postgres", blow.arena.postgres_wire)


def _swallow(blow: Blow, name: str, wire: Proxy) -> None:
    way: Way = blow.rng.choice(("up", "up", "down"))
    late = blow.rng.random() < 0.75
    with blow.arena.alone(f"{name} wire"):
        blow.strike(f"{way}, {'late' if late else 'never'}", landed=wire.links > 0)
        wire.swallow(way)
        blow.rest(1.5, 3.5)
        if not late:
            wire.reset()
        wire.heal()


@nemesis
def link_delayed(blow: Blow) -> None:
    """Every packet takes its time, up to more than its sender waits."""
    with blow.wire() as (name, wire):
        latency_s = 0.02 * 100 ** blow.rng.random()
        blow.strike(f"{name} by {latency_s * 1000:.0f} ms", landed=wire.links > 0)
        wire.latency_s = latency_s
        blow.rest(1.0, 3.0)
        wire.heal()


@nemesis
def commits_cut(blow: Blow) -> None:
    """Postgres commits, and the link breaks in place of the answer; again and again."""
    wire = blow.arena.postgres_wire
    with blow.arena.alone("postgres wire"):
        blow.strike("")
        before, landed = wire.cuts, blow.landed
        for tag in _CONFIRMED * 2:
            wire.cut_when(tag, "down")
            blow.rest(0.2, 0.4)
        wire.heal()
        blow.what = f"{wire.cuts - before} commits"
        blow.landed = landed and wire.cuts > before


ALWAYS: Final = (
    *("worker_frozen", "worker_frozen"),
    *("redis_swallowed", "redis_swallowed"),
    "worker_killed",
    "redis_flushed",
)
"""What no plan is without."""


def plan(seed: int, seconds: float) -> list[Fault]:
    """The faults of a run, in order: the same for the same seed and length, on every machine.

    Beside those that are always there, the kinds take turns, so that a few seeds in a row have them all.
    """
    rng = random.Random(seed)
    n = max(len(ALWAYS), round((seconds - _FIRST_S - _LAST_S) / _EVERY_S))
    others = [kind for kind in NEMESES if kind not in ALWAYS]
    free = n - len(ALWAYS)
    kinds = [*ALWAYS, *(others[(seed * free + i) % len(others)] for i in range(free))]
    rng.shuffle(kinds)
    step = (seconds - _FIRST_S - _LAST_S) / n
    return [
        Fault(
            round(_FIRST_S + (i + rng.random()) * step, 2), kind, round(rng.random(), 2), rng.getrandbits(32)
        )
        for i, kind in enumerate(kinds)
    ]


def carry_out(
    planned: Sequence[Fault], arena: Arena, busy: Callable[[], bool], over: threading.Event
) -> list[Blow]:
    """Carry out a plan, each fault in a thread of its own; returns when the last one has been undone.

    Args:
        planned: See `plan`.
        arena: Whom it is done to.
        busy: Whether tasks run now.
        over: Set from outside, it keeps what has not begun from beginning.
    """
    blows = [Blow(fault, arena, busy) for fault in planned]

    def one(blow: Blow) -> None:
        if over.wait(blow.fault.at_s):
            return
        try:
            NEMESES[blow.fault.kind](blow)
        except Exception as error:  # noqa: BLE001 - a fault that fails has not landed, and the run goes on
            blow.landed, blow.what = False, f"{blow.what}: {error!r}"

    with ThreadPoolExecutor(len(blows)) as threads:
        list(threads.map(one, blows))
    return blows
