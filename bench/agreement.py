"""Agreement: one burst as Postgres tells it and as the scraped metrics tell it, and the client what it sent.

Counts must agree to the unit. A quantile of a histogram is known to its bucket only, so the two p95 agree
if Postgres' value lies in the bucket, give or take the observations at its edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isnan
from typing import Any

import pandas as pd

from bench import sampling
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

    @property
    def inside(self) -> bool:
        """Whether Postgres' value lies in the bucket that the metrics name."""
        return self.low_s <= self.postgres_s <= self.high_s

    def content(self) -> dict[str, Any]:
        """As JSON has it; a bucket without an upper bound has null."""
        high = self.high_s if self.high_s < inf else None
        return {
            "of": self.name,
            "postgres_s": self.postgres_s,
            "scraped_s": self.scraped_s,
            "bucket_s": [self.low_s, high],
            "inside": self.inside,
        }


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


def content(ledger: Ledger, gained: Page, samples: pd.DataFrame, accepted: int) -> dict[str, Any]:
    """A run's three sides as JSON has them.

    Args:
        ledger: What Postgres has.
        gained: What the fleet's metrics gained.
        samples: The metrics while it ran, those of the API with them.
        accepted: What the client has receipts for.

    Returns:
        accepted: By `client`, `Postgres` and `scraped`.
        counts: Of `counts`, each by `Postgres` and `scraped`.
        p95_wait, p95_run: See `P95`. Of waits there are none where a task was started twice: the metric
            counts all starts.
        agree: Whether every count is the same on all sides.
    """
    enqueued = sampling.total(samples, "tasks_enqueued_total")
    sides = {
        "client": accepted,
        "Postgres": len(ledger.tasks),
        "scraped": round(float(enqueued.iloc[-1] - enqueued.iloc[0])) if len(enqueued) else 0,
    }
    counted = counts(ledger, gained)[["Postgres", "scraped"]]
    both = {str(what): {"Postgres": int(a), "scraped": int(b)} for what, a, b in counted.itertuples()}
    once = not len(ledger.retried) and not both["lost runs"]["Postgres"]
    return {
        "accepted": sides,
        "counts": both,
        "p95_wait": _contents(waits(ledger, gained)) if once else [],
        "p95_run": _contents(run_times(ledger, gained)),
        "agree": all(len(set(each.values())) == 1 for each in (sides, *both.values())),
    }


def _contents(found: list[P95]) -> list[dict[str, Any]]:
    return [p95.content() for p95 in found if not isnan(p95.scraped_s)]


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
