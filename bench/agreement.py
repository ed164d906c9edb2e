"""Agreement: one burst as Postgres tells it and as the scraped metrics tell it.

Counts must agree to the unit. A quantile of a histogram is known to its bucket only, so the two p95 agree
if Postgres' value lies in the bucket, give or take the observations at its edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from bench.ledger import Ledger
from bench.scrape import Page


@dataclass(frozen=True, slots=True)
class P95:
    """A 95th percentile from both sources, in seconds.

    `observed` is what Postgres' one is of. The scraped one lies between `low_s` and `high_s`, its bucket's
    bounds; `scraped_s` is where `histogram_quantile` puts it.
    """

    name: str
    observed: pd.Series[float]
    scraped_s: float
    low_s: float
    high_s: float

    @property
    def postgres_s(self) -> float:
        """The value by linear interpolation, as `percentile_cont` does it."""
        return float(self.observed.quantile(0.95))


def counts(ledger: Ledger, gained: Page) -> pd.DataFrame:
    """What was counted: a row a counter, with the columns `Postgres` and `scraped`.

    Args:
        ledger: The burst's history.
        gained: What the fleet's metrics gained during the burst (`Page.since`).
    """
    runs = ledger.executions
    outcome = runs["outcome"].value_counts()
    rows = {
        "claims": (len(runs), "tasks_dequeued_total"),
        "successes": (outcome["succeeded"], "tasks_succeeded_total"),
        "failed runs": (outcome["failed"] + outcome["timed_out"], "tasks_failed_total"),
        "retries": (len(ledger.retried), "tasks_retried_total"),
        "lost runs": (outcome["lost"], "tasks_reaped_total"),
        "dead letters": (int((ledger.tasks["status"] == "dead").sum()), "tasks_dead_total"),
        "runs with a run time": (int(runs["run_s"].notna().sum()), "task_run_seconds_count"),
    }
    return pd.DataFrame(
        [(what, int(n), round(gained.total(metric)), metric) for what, (n, metric) in rows.items()],
        columns=["what", "Postgres", "scraped", "metric"],
    ).set_index("what")


def waits(ledger: Ledger, gained: Page) -> list[P95]:
    """The p95 wait by priority; comparable where every task started once, as the metric counts all starts."""
    return _p95s(ledger.first_starts, "wait_s", "priority", gained, "enqueue_to_start_seconds")


def run_times(ledger: Ledger, gained: Page) -> list[P95]:
    """The p95 run time by type, of runs that came to an end."""
    return _p95s(ledger.executions, "run_s", "type", gained, "task_run_seconds")


def _p95s(runs: pd.DataFrame, column: str, label: str, gained: Page, metric: str) -> list[P95]:
    measured = runs.dropna(subset=[column])
    return [
        P95(
            str(name),
            group[column],
            gained.quantile(metric, 0.95, **{label: str(name)}),
            *gained.bracket(metric, 0.95, **{label: str(name)}),
        )
        for name, group in measured.groupby(label, observed=True)
    ]
