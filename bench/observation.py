"""An observation: one burst on a running system, and everything that was seen of it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from bench import burst, ledger
from bench.audit import Verdict, audit, deck_expected
from bench.ledger import Ledger
from bench.progress import told
from bench.report import Snapshot, snapshot
from bench.sampling import Sampler
from bench.scrape import Page
from bench.system import System
from bench.workload import Expected, Mix, deck


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known of a burst after its end.

    Attributes:
        title: What it was called.
        snapshot: Its row of the table, from Postgres.
        ledger: Its tasks and runs, from Postgres.
        samples: The metrics while it ran: see `Sampler.frame`.
        gained: What the fleet's counters and histograms gained by it.
        expected: What had to become of its tasks, known before it ran.
        verdict: The audit's.
    """

    title: str
    snapshot: Snapshot
    ledger: Ledger
    samples: pd.DataFrame
    gained: Page
    expected: Expected
    verdict: Verdict


def observe(system: System, title: str, mix: Mix, n: int, *, seed: int = 1) -> Observation:
    """Send a burst of `n` tasks of `mix`, wait until all have ended, and gather what there is to know.

    Raises:
        Stalled: tasks were not accepted, or nothing has ended for a minute.
    """
    settings = system.settings
    before = burst.metrics(system)
    with told(title) as tell, Sampler(system.endpoints, now=system.now) as sampler:
        sent = burst.send(system, deck(mix, n, seed), tell)
        after = burst.drain(system, n, before, tell)
    expected = deck_expected(
        sent.dealt, sent.places, max_losses=settings.max_losses, lease_ms=settings.vis_timeout_ms
    )
    return Observation(
        title=title,
        snapshot=snapshot(
            system.postgres_url, sent.ids, workers=len(system.fleet), slots=settings.worker_pool
        ),
        ledger=ledger.read(system.postgres_url, sent.ids),
        samples=sampler.frame(),
        gained=after.since(before),
        expected=expected,
        verdict=audit(
            system.postgres_url,
            system.redis_url,
            sent.ids,
            prefix=settings.redis_prefix,
            exactly=expected,
            max_losses=settings.max_losses,
            slack_s=settings.store_timeout_ms / 1000,
        ),
    )
