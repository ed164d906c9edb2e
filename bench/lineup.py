"""The line-up: who takes part in the contest, on which servers, and what is measured of whom.

What cannot be installed, or fails, is named with the reason, and the others go on.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import psycopg
import redis

from bench import contest, ours
from bench.burst import Stalled
from bench.peer import Entrant, Peer, install
from bench.rates import server_pids
from bench.rounds import SETTINGS, SLOTS, Arm, Round
from bench.system import System, system
from bench.yardsticks import TABLES, pgbench
from scheduler.embedded import Redis
from scheduler.errors import StartError

_KEPT: Final = "Postgres, fsync; the row and one of history a run are kept; Redis, AOF everysec, is an index"
_FAILURES: Final = (
    *(StartError, Stalled, ValueError, OSError),
    *(subprocess.SubprocessError, redis.RedisError, psycopg.Error),
)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Attributes:
        tasks: Noops of a burst.
        rounds: Rounds of bursts and paces.
        paced: Tasks of a pace.
        killed: Tasks of a kill.
        patience_s: How long is waited for what a killed worker held.
        pgbench_s: How long pgbench runs.
        setups: How many setups of each are measured, ours included; None: all.
    """

    tasks: int = 20_000
    rounds: int = 5
    paced: int = 500
    killed: int = 600
    patience_s: float = 90.0
    pgbench_s: int = 5
    setups: int | None = None


FULL: Final = Effort()
QUICK: Final = Effort(2000, 1, 100, 300, 20.0, 1, 1)


@dataclass(frozen=True, slots=True)
class Entry:
    """One arm: of whom, what it is and what survives, for a reader, and how it is measured."""

    name: str
    told: str
    kept: str
    arm: Arm


Entries = dict[str, Entry]
"""By the name of the arm."""


@dataclass(slots=True)
class Lineup:
    """Who takes part: our system, the peers that could be installed, and why the others could not."""

    me: System
    marks: Path
    entrants: list[Entrant] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    def bursts(self, effort: Effort) -> Entries:
        """The drains, with pgbench."""
        sixteen = "pgbench, 16 clients, one INSERT a commit"
        rate = partial(pgbench, self.me.postgres_url, effort.pgbench_s)
        burst = partial(ours.burst, self.me, effort.tasks)
        fast = self._ours(_told(ours.FAST), partial(burst, ours.FAST_WORKERS, ours.FAST), ours.FAST_WORKERS)
        entries = {
            ours.NAME: self._ours("its defaults", partial(burst, ours.WORKERS, {})),
            **({f"{ours.NAME}-fast": fast} if effort.setups is None else {}),
            "pgbench": Entry("pgbench", sixteen, "Postgres, fsync", lambda: {"rate": rate()}),
        }
        for entrant in self.entrants:
            for setup in entrant.peer.setups[: effort.setups]:
                arm = partial(contest.burst, entrant, setup, effort.tasks)
                entries[setup.name] = self._entry(entrant.peer, setup.told, arm)
        return entries

    def paces(self, effort: Effort) -> Entries:
        """The waits at a low rate."""
        n = effort.paced
        entries = {
            f"{ours.NAME}-pace": self._ours("its defaults", partial(ours.pace, self.me, self.marks, n))
        }
        for entrant in self.entrants:
            setup = entrant.peer.setups[0]
            arm = partial(contest.pace, entrant, setup, n)
            entries[f"{entrant.peer.name}-pace"] = self._entry(entrant.peer, setup.told, arm)
        return entries

    def kills(self, effort: Effort) -> Entries:
        """The deaths of workers."""
        n, patience_s = effort.killed, effort.patience_s
        arm: Arm = partial(ours.kill, self.me, self.marks, n, patience_s)
        entries = {f"{ours.NAME}-kill": self._ours(_told(ours.SAFE), arm)}
        for entrant in self.entrants:
            arm = partial(contest.kill, entrant, n, patience_s)
            entries[f"{entrant.peer.name}-kill"] = self._entry(entrant.peer, entrant.peer.safe.told, arm)
        return entries

    def _ours(self, settings: str, arm: Arm, workers: int = ours.WORKERS) -> Entry:
        return Entry(ours.NAME, f"Scheduler, {workers} × {SLOTS}, {settings}", _KEPT, arm)

    def _entry(self, peer: Peer, told: str, arm: Arm) -> Entry:
        return Entry(peer.name, f"{peer.title}, {told}", peer.durability, self.attempt(peer.name, arm))

    def attempt(self, name: str, arm: Arm) -> Arm:
        """The same arm, but one that fails takes its peer out of the contest, and measures nothing."""

        def attempted() -> Mapping[str, float]:
            if name in self.absent:
                return {}
            try:
                return arm()
            except _FAILURES as error:
                self.absent[name] = " ".join(str(error).split()) or type(error).__name__
                return {}

        return attempted


def _told(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def present(entries: Entries, rounds: Sequence[Round]) -> Entries:
    """The entries that every round has measured."""
    arms = [{measure.partition(".")[0] for measure in each} for each in rounds]
    return {name: entry for name, entry in entries.items() if all(name in each for each in arms)}


@contextmanager
def gathered(chosen: Sequence[Peer]) -> Iterator[Lineup]:
    """Our system, and the chosen peers on servers as each likes them best."""
    with ExitStack() as stack:
        me = stack.enter_context(system(SETTINGS, say=print))
        me.statement(TABLES)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scheduler-peers-")))
        memory = stack.enter_context(Redis(folder / "redis", settings={"appendonly": "no"}))
        lineup = Lineup(me, folder / "marks")
        for peer in chosen:
            try:
                install(peer)
                lineup.entrants.append(_entered(peer, lineup, memory))
            except StartError as error:
                lineup.absent[peer.name] = str(error)
        yield lineup


def _entered(peer: Peer, lineup: Lineup, memory: Redis) -> Entrant:
    """A peer on its server: all that use Redis share one, in turns; on Postgres each has its database."""
    if peer.server == "redis":
        return Entrant(peer, memory.url, memory.pid, lineup.marks)
    me = lineup.me
    me.statement(f"CREATE DATABASE {peer.name}")
    url = me.postgres_url.replace("/app?", f"/{peer.name}?").replace("postgres://", "postgresql://", 1)
    entrant = Entrant(peer, url, server_pids(me)[0], lineup.marks)
    entrant.ask(peer.setups[0], "install")
    return entrant
