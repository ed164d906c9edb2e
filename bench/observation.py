"""An observation: one load on a running system, and everything that was seen of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from time import monotonic

import pandas as pd

from bench import burst, ledger
from bench.audit import Verdict, audit, deck_expected
from bench.burst import Burst
from bench.company import Company
from bench.ledger import Ledger
from bench.meter import Meter, Tally
from bench.progress import Left, told
from bench.receipts import LoadResult
from bench.report import Snapshot, snapshot
from bench.sampling import Sampler
from bench.scenario import Load
from bench.scrape import Page
from bench.system import Running
from bench.workload import Dealt, Expected, Mix, deck


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known of a load after its end.

    Attributes:
        title: What it was called.
        snapshot: Its row of the table, from Postgres.
        ledger: Its tasks and runs, from Postgres.
        samples: The metrics while it ran: see `Sampler.frame`.
        gained: What the fleet's counters and histograms gained by it.
        expected: What had to become of its tasks, known before it ran.
        verdict: The audit's.
        receipts: What the client was told.
        company: What else the machine did.
        spent: What the servers counted meanwhile, and CPU; None if nobody metered.
        instants: By Postgres' clock: `began`, `sent` and `drained`.
        step_s: By how much that clock and ours have parted.
        gap_s: The longest time between two scrapes.
    """

    title: str
    snapshot: Snapshot
    ledger: Ledger
    samples: pd.DataFrame
    gained: Page
    expected: Expected
    verdict: Verdict
    receipts: LoadResult
    company: Company
    spent: Tally | None
    instants: Mapping[str, datetime]
    step_s: float
    gap_s: float

    def at(self, name: str) -> float:
        """An instant as seconds since the first commit."""
        return float((pd.Timestamp(self.instants[name]) - self.ledger.start).total_seconds())


@dataclass(slots=True)
class _Clock:
    """Postgres' clock, read now and then, beside ours."""

    system: Running
    began: float
    instants: dict[str, datetime]

    def note(self, name: str) -> None:
        """Read it."""
        self.instants[name] = self.system.now()

    def step_s(self) -> float:
        """How much further Postgres' clock went than ours since the first reading."""
        seconds = (self.system.now() - self.instants["began"]).total_seconds()
        return seconds - (monotonic() - self.began)


def observe(system: Running, title: str, mix: Mix, n: int, *, seed: int = 1) -> Observation:
    """Send a burst of `n` tasks of `mix`, wait until all have ended, and gather what there is to know.

    Raises:
        Stalled: tasks were not accepted, or nothing has ended for a minute.
    """
    return observed(system, title, deck(mix, n, seed), seed=seed)


def observed(
    system: Running,
    title: str,
    dealt: Dealt,
    how: Load | None = None,
    *,
    seed: int = 1,
    meter: Meter | None = None,
    left: Left | None = None,
    exact: bool = True,
    harm: AbstractContextManager[object] | None = None,
    patience_s: float = 5.0,
) -> Observation:
    """The same with a load of any kind (`how`; bulk requests if it is not given).

    Args:
        system: The system; its fleet runs.
        title: What progress calls it.
        dealt: The tasks.
        how: See `burst.send`.
        seed: Decides random arrivals.
        meter: Reads what the servers count before and after.
        left: Says how long it will still take.
        exact: Whether the audit holds the counts against the deck's.
        harm: Entered when the load begins, left when everything has ended.
        patience_s: How long the audit lets Redis disagree with Postgres.

    Raises as `observe` does.
    """
    before = burst.metrics(system)
    clock = _Clock(system, monotonic(), {"began": system.now()})
    first = meter.read() if meter else None
    with (
        told(title, left) as tell,
        Sampler(system.endpoints, now=system.now) as sampler,
        Company() as company,
        harm or nullcontext(),
    ):
        sent = burst.send(system, dealt, tell, how, seed=seed)
        clock.note("sent")
        after = burst.drain(system, len(sent.ids), before, tell)
        clock.note("drained")
    spent = meter.read().since(first) if meter and first else None
    settings, workers = system.settings, len(system.fleet)
    limits = {"max_losses": settings.max_losses, "lease_ms": settings.vis_timeout_ms}
    expected = deck_expected(dealt, sent.places, **limits)
    return Observation(
        title=title,
        snapshot=snapshot(system.postgres_url, sent.ids, workers=workers, slots=settings.worker_pool),
        ledger=ledger.read(system.postgres_url, sent.ids),
        samples=sampler.frame(),
        gained=after.since(before),
        expected=expected,
        verdict=_judged(system, sent, expected if exact else None, patience_s),
        receipts=sent.result,
        company=company,
        spent=spent,
        instants=clock.instants,
        step_s=clock.step_s(),
        gap_s=sampler.longest_gap_s,
    )


def _judged(system: Running, sent: Burst, exactly: Expected | None, patience_s: float) -> Verdict:
    settings = system.settings
    return audit(
        system.postgres_url,
        system.redis_url,
        sent.ids,
        prefix=settings.redis_prefix,
        exactly=exactly,
        max_losses=settings.max_losses,
        slack_s=settings.store_timeout_ms / 1000,
        patience_s=patience_s,
    )
