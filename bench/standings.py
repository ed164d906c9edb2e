"""Standings: the tables in which our figures and those of the peers stand side by side."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from bench import ours
from bench.contest import RATE, TASK_MS
from bench.known_peers import PEERS
from bench.lineup import Entries, Entry
from bench.rounds import Round
from bench.rows import Limit, Row, markdown
from bench.stats import spread

BOUNDS: Final = {"pgqueuer": (1.5, 3.0), "dramatiq": (2.0, 4.0)}
"""By peer: what our rate must be of its, and what it should be."""
BOUND_TO: Final = {"pgqueuer": ("pgqueuer-3x100", "pgqueuer-2x100")}
"""The setups that the bound of a peer was set for, where they are not all."""
JUST: Final = 0.8
"""What a peer's rate by pgbench's must come to of what it was when first measured, or its setup is unfair."""

CAVEATS: Final = """\
Noops measure what a queue adds to a task and nothing else. With handlers that work, the difference shrinks
to what is left of it beside the work.

A task of ours is sent over HTTP and answered after a commit; a peer's client speaks to its server itself.
Our wait at a low rate has that in it.

The Redis of the peers writes no file, which is the fastest it can be; that of ours does.

A slow peer is given fewer noops to drain. The rate in the middle of a drain does not depend on that.

A killed worker is to be noticed after 5 s. Some peers have no other way than a limit on how long a task may
take, which would be longer in earnest; ours and those with a heartbeat need no such limit.

All of it shares the cores of one machine: workers, servers and the observer."""

_FAST: Final = """\
Bursts are told of the faster of our two setups; waits and kills are those of three workers with their default
batches. A worker of ours-fast holds up to a thousand tasks more, and takes them with it when it dies."""


@dataclass(frozen=True, slots=True)
class Standings:
    """What was found.

    Attributes:
        versions: Of the peers that took part.
        absent: Why a peer was not measured, or not to the end.
        bursts, paces, kills: The arms that every round of theirs has measured.
        rounds: The measures of bursts and paces.
        deaths: The measures of kills.
        patience_s: How long was waited for what a killed worker held.
    """

    versions: Mapping[str, str]
    absent: Mapping[str, str]
    bursts: Entries
    paces: Entries
    kills: Entries
    rounds: Sequence[Round]
    deaths: Sequence[Round]
    patience_s: float

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        """From what `data` made; the arms measure nothing any more."""
        entries: dict[str, Entries] = {"burst": {}, "pace": {}, "kill": {}}
        for name, arm in data["arms"].items():
            entries[arm["work"]][name] = Entry(arm["of"], arm["setup"], arm["durability"], dict)
        return cls(
            versions=data["versions"],
            absent=data["absent"],
            bursts=entries["burst"],
            paces=entries["pace"],
            kills=entries["kill"],
            rounds=data["rounds"],
            deaths=data["kills"],
            patience_s=data["patience_s"],
        )

    @property
    def rows(self) -> list[Row]:
        """The judgement of the bursts. A peer that has a bound and failed keeps none."""
        peer_of = {name: entry.name for name, entry in self.bursts.items()}
        return judged(self.rounds, peer_of, self.absent) if self.bursts else []

    @property
    def caveats(self) -> list[str]:
        """What a reader must know."""
        known = [f"{peer.title}: {peer.caveat}" for peer in PEERS if peer.name in self.versions]
        general = [*CAVEATS.split("\n\n"), *([_FAST] if f"{ours.NAME}-fast" in self.bursts else [])]
        return [*(" ".join(caveat.split()) for caveat in general), *known]

    def text(self) -> str:
        """All of it, for a reader."""
        return "\n\n".join(self._parts())

    def _parts(self) -> Iterator[str]:
        if self.bursts:
            yield drained(self.rounds, self.bursts)
            yield markdown(self.rows)
        if self.paces:
            yield f"{RATE} tasks a second, from when one was due until it began, medians of the rounds:"
            yield waited(self.rounds, self.paces)
        if self.kills:
            yield f"`kill -9` of the busiest third of the workers, once, amid tasks of {TASK_MS} ms:"
            yield lost(self.deaths, self.kills, self.patience_s)
        yield from (f"Not measured: {name}. {why}" for name, why in self.absent.items())
        yield from self.caveats

    def data(self) -> dict[str, Any]:
        """The same as JSON."""
        works = {"burst": self.bursts, "pace": self.paces, "kill": self.kills}
        return {
            "versions": dict(self.versions),
            "absent": dict(self.absent),
            "arms": {
                name: {"work": work, "of": entry.name, "setup": entry.told, "durability": entry.kept}
                for work, entries in works.items()
                for name, entry in entries.items()
            },
            "rounds": list(self.rounds),
            "kills": list(self.deaths),
            "patience_s": self.patience_s,
            "rows": [row.data() for row in self.rows],
            "caveats": self.caveats,
        }


def judged(rounds: Sequence[Round], peer_of: Mapping[str, str], absent: Collection[str] = ()) -> list[Row]:
    """Ours at its best against the hardest setup of each peer, and that one against pgbench.

    Where a peer's bound was set for some of its setups, the hardest of these comes first.

    Args:
        rounds: The rates of our setups, `pgbench.rate` and the rates of the peers' setups.
        peer_of: Whose each setup is.
        absent: Peers that were asked for and could not be measured.
    """
    us = best_of(rounds, [setup for setup in peer_of if peer_of[setup] == ours.NAME])
    rows = []
    for peer in PEERS:
        setups = [setup for setup in peer_of if peer_of[setup] == peer.name]
        must, aim = BOUNDS.get(peer.name, (None, None))
        if peer.name in absent and must is not None:
            # Whoever lacks one of its setups may lack its best.
            what = f"noops drained, against {peer.title}, which was not measured whole"
            limit = Limit(peer.name, "peers", what, "/s", f"{us}.rate", peer.name, must, aim)
            rows.append(Row.missing(limit))
            continue
        if not setups:
            continue
        meant = [setup for setup in setups if setup in BOUND_TO.get(peer.name, ())] or setups
        best, just = _hardest(rounds, us, meant), round(JUST * peer.before, 3)
        limits = [
            _against(us, best, peer.name, must, aim),
            Limit(
                f"{peer.name}-itself",
                "peers",
                f"{best} against pgbench; {peer.before:.2f} when first measured",
                "/s",
                f"{best}.rate",
                "pgbench.rate",
                must=just if must is not None else None,
                aim=just,
            ),
        ]
        if (fastest := _hardest(rounds, us, setups)) != best:
            limits.append(_against(us, fastest, f"{peer.name}-fastest"))
        rows += [Row.of(limit, rounds) for limit in limits]
    return rows


def _against(us: str, setup: str, name: str, must: float | None = None, aim: float | None = None) -> Limit:
    what = f"noops drained by {us}, against {setup}"
    return Limit(name, "peers", what, "/s", f"{us}.rate", f"{setup}.rate", must, aim)


def _hardest(rounds: Sequence[Round], us: str, setups: Sequence[str]) -> str:
    """The setup against which we look worst, by the same ratio that is judged."""
    return min(setups, key=lambda setup: Row.of(_against(us, setup, setup), rounds).figure)


def best_of(rounds: Sequence[Round], names: Sequence[str]) -> str:
    """The setup with the best median."""
    return max(names, key=lambda name: _median(rounds, f"{name}.rate"))


def drained(rounds: Sequence[Round], entries: Entries) -> str:
    """The bursts: the rate, what that is of pgbench's, the CPU, and what is kept of a task."""
    rows, reference = [], _median(rounds, "pgbench.rate")
    for name, entry in entries.items():
        middle, low, high = spread([each[f"{name}.rate"] for each in rounds])
        cpu = [each[f"{name}.cpu_us"] for each in rounds if f"{name}.cpu_us" in each]
        used = f"{spread(cpu).median:.0f} µs" if cpu else ""
        rate = f"{middle:,.0f} ({low:,.0f}..{high:,.0f})"
        rows.append((entry.told, rate, f"{middle / reference:.2f}×", used, entry.kept))
    return _table(("What", "Tasks/s", "Of pgbench", "CPU a task", "What survives"), rows)


def waited(rounds: Sequence[Round], entries: Entries) -> str:
    """The paces, each the median of the rounds."""
    rows = []
    for name, entry in entries.items():
        waits = (f"{_median(rounds, f'{name}.{p}'):,.1f} ms" for p in ("p50", "p95", "p99"))
        rows.append((entry.told, *waits, entry.kept))
    return _table(("What", "p50", "p95", "p99", "What survives"), rows)


def lost(deaths: Sequence[Round], entries: Entries, patience_s: float) -> str:
    """The kills: sums of the rounds, and the longest time."""
    rows = []
    for name, entry in entries.items():
        held, again, never, twice = (
            f"{sum(each[f'{name}.{measure}'] for each in deaths):.0f}"
            for measure in ("held", "again", "lost", "twice")
        )
        last = f"{max(each[f'{name}.last_s'] for each in deaths):.1f} s"
        rows.append((entry.told, held, again, never, twice, last, entry.kept))
    never = f"Not done within {patience_s:.0f} s"
    heads = ("What", "Ran there", "of these done again", never, "Done twice", "Last one done after")
    return _table((*heads, "What survives"), rows)


def _median(rounds: Sequence[Round], measure: str) -> float:
    return spread([each[measure] for each in rounds]).median


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first, *others = (f"| {' | '.join(cells)} |" for cells in (heads, *rows))
    return "\n".join((first, "|" + " --- |" * len(heads), *others))
