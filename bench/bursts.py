"""Bursts: those of the performance snapshot, repeated, each time on new servers; and what limits them.

A burst's limit is what was used most of: the time in which it arrived, of the drain; slots in use, of all
slots; the machine's cores, ours and other work together. It is the same choice that a record makes.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

from bench import laws, record, report
from bench.laws import Inside, Law, Rules
from bench.ledger import Ledger
from bench.observation import Observation, observe
from bench.stats import coverage, spread
from bench.system import system
from bench.workload import Mix


@dataclass(slots=True)
class Bursts:
    """What was seen.

    Attributes:
        seen: Of each burst every repeat, in order.
        rules: Those of the fleet.
        pids: Every process that was started for them.
        about: What they ran on, in words.
    """

    seen: dict[str, list[Observation]]
    rules: Rules
    pids: set[int] = field(default_factory=set)
    about: str = ""

    @property
    def n(self) -> int:
        """How often each was repeated."""
        return len(next(iter(self.seen.values())))

    def table(self) -> str:
        """The snapshot table: a row a burst, medians with their ranges, of what stands."""
        return report.markdown([[one.snapshot for one in standing(every)] for every in self.seen.values()])

    def sure(self) -> list[str]:
        """Of each burst: which repeats the table tells of, and what a range in it means."""
        return [f"{title}: {_sure(every)}" for title, every in self.seen.items()]

    def values(self, name: str) -> list[tuple[str, list[tuple[float, bool]]]]:
        """A figure of every repeat as `plots.repeats` takes it; one that was disturbed does not stand."""
        return [
            (title, [(getattr(one.snapshot, name), not one.company.disturbed) for one in every])
            for title, every in self.seen.items()
        ]

    def limits(self) -> pd.DataFrame:
        """A row a burst: the median of each share, and what limits, of what stands."""
        rows = {}
        for title, every in self.seen.items():
            each = [self.shares(one) for one in standing(every)]
            middle = {name: spread([one[name] for one in each]).median for name in each[0]}
            limiting = sorted({max(one, key=one.__getitem__) for one in each})
            rows[title] = {name: f"{share:.0%}" for name, share in middle.items()}
            rows[title]["limited by"] = ", ".join(limiting)
        return pd.DataFrame.from_dict(rows, orient="index")

    def judged(self) -> dict[str, list[list[Law]]]:
        """What the laws say of each repeat."""
        return {
            title: [
                laws.judge(laws.row_of(one.snapshot), self.rules, inside=self._inside(one), due=one.expected)
                for one in every
            ]
            for title, every in self.seen.items()
        }

    def shares(self, seen: Observation) -> dict[str, float]:
        """What was used of what there is, and the arrival's share of the drain."""
        snapshot, company = seen.snapshot, seen.company
        slots_s = snapshot.workers * snapshot.slots * snapshot.drain_s
        return {
            "arrival": seen.ledger.arrival_s / snapshot.drain_s,
            "slots": self._inside(seen).ran_s / slots_s,
            "cores": min(1.0, (company.own_percent + company.busy_percent) / 100),
        }

    def _inside(self, seen: Observation) -> Inside:
        return inside(seen.ledger, self.rules.lease_s)

    def write(self, folder: Path, command: Sequence[str]) -> list[Path]:
        """The table as `snapshot.md`, and every repeat's figures as the record `snapshot.json`."""
        rows = {
            title: [
                {**asdict(one.snapshot), "shares": self.shares(one), "disturbed": one.company.disturbed}
                for one in every
            ]
            for title, every in self.seen.items()
        }
        made = record.make(command, {"n": self.n, "about": self.about, "rows": rows})
        paths = [folder / "snapshot.json", folder / "snapshot.md"]
        record.write(paths[0], made)
        text = "\n\n".join([self.table(), *self.sure(), report.meanings(), record.told(made)])
        record.write_text(paths[1], text + "\n")
        return paths


def repeated(
    settings: Mapping[str, str], mixes: Mapping[str, Mix], tasks: int, *, workers: int, n: int, seed: int = 1
) -> Bursts:
    """Each mix as a burst, one after the other on one system, `n` times; repeat k has the seed `seed` + k."""
    found = Bursts({title: [] for title in mixes}, Rules())
    for k in range(n):
        with system(settings, say=_silent) as running:
            running.start_fleet(workers)
            for title, mix in mixes.items():
                found.seen[title].append(observe(running, title, mix, tasks, seed=seed + k))
            [(version,)] = running.query("SELECT current_setting('server_version')")
            config = running.settings
        found.pids |= running.pids
    found.rules = Rules(
        max_retries=next(iter(mixes.values())).max_retries,
        max_losses=config.max_losses,
        lease_s=config.vis_timeout_ms / 1000,
    )
    found.about = (
        f"{os.cpu_count()} cores, Python {platform.python_version()}, Postgres {version}, seeds {seed} to"
        f" {seed + n - 1}"
    )
    return found


def standing(repeats: Sequence[Observation]) -> Sequence[Observation]:
    """Those that other work on the machine has not disturbed; all of them if none is."""
    return [one for one in repeats if not one.company.disturbed] or repeats


def _sure(repeats: Sequence[Observation]) -> str:
    n, all_ = len(standing(repeats)), len(repeats)
    if all(one.company.disturbed for one in repeats):
        which = f"n = {n}, and other work has disturbed every one"
    else:
        which = f"n = {n}" if n == all_ else f"n = {n}, as other work has disturbed {all_ - n} of {all_}"
    if n < 2:
        return f"{which}; one run has no interval"
    return f"{which}; the range holds the median of all runs like these with {coverage(n):.0%}"


def inside(ledger: Ledger, lease_s: float) -> Inside:
    """What the laws need of a history; a lost run counts up to its lease."""
    runs = ledger.executions
    lost = runs["outcome"] == "lost"
    held = (runs["finished_at"] - runs["claimed_at"]).dt.total_seconds()
    first = ledger.first_starts
    began = first["started_at"].mask(first["outcome"] == "lost", first["claimed_at"])
    return Inside(
        arrival_s=ledger.arrival_s,
        p95_start_s=float(ledger.seconds(began).quantile(0.95)),
        held_s=float(held.sum()),
        ran_s=float(runs["run_s"].sum() + held[lost].clip(upper=lease_s).sum()),
    )


def _silent(_: str) -> None:
    """Tell nobody."""
