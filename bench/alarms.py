"""Alarms: what the three expressions of alerts.yml come to over scraped samples, without a Prometheus.

The windows are the caller's: what Prometheus looks at for one minute or five can be looked at for seconds
where everything else is scaled down, too. Least numbers of events, which the rules also ask for, and `for`
are not applied: a level above 1 means that the comparison with the threshold holds, not that anybody is
woken. The rules themselves are tested with promtool.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import inf, isnan, nan
from pathlib import Path
from typing import Final

import pandas as pd

from bench import sampling
from bench.scrape import Labels, Page

RULES: Final = Path(__file__).parents[1] / "alerts.yml"

SAMPLES: Final = (
    "queue_depth",
    "tasks_dequeued_total",
    "tasks_failed_total",
    "tasks_succeeded_total",
    "task_run_seconds_bucket",
)
"""What must have been sampled."""

_PRIORITIES: Final = ("critical", "high", "default", "low")
_RULE: Final = re.compile(r"- alert: (\w+)\n\s+expr: \|\n(?:.*\n)*?\s+> ([\d.]+)\n")


def thresholds(path: Path = RULES) -> dict[str, float]:
    """The threshold of each alert, by its name, as the rules have it."""
    return {name: float(bound) for name, bound in _RULE.findall(path.read_text(encoding="utf-8"))}


def levels(samples: pd.DataFrame, window_s: float) -> pd.DataFrame:
    """Each alert's value over its threshold at every scrape that has a whole window before it.

    Args:
        samples: Of a sampler that was told to ask for SAMPLES.
        window_s: How far back rates look, in seconds.

    Returns:
        Columns: `t_s` (float), `alert` (string), `level` (float; nan where there is nothing to judge).
    """
    bounds = thresholds()
    pages = {float(str(t)): _page(own) for t, own in samples.groupby("t_s")}
    rows = []
    for now, page in pages.items():
        before = max((t for t in pages if t <= now - window_s), default=None)
        if before is None:
            continue
        found = values(page, page.since(pages[before]), now - before)
        rows += [(now, name, value / bounds[name]) for name, value in found.items()]
    return pd.DataFrame(rows, columns=["t_s", "alert", "level"])


def values(now: Page, gained: Page, seconds: float) -> Mapping[str, float]:
    """What each expression comes to: the largest of its labels' values; nan where there is none.

    Args:
        now: The page at the end of the window.
        gained: What was gained over it.
        seconds: How long it is.
    """
    types = {value for _, labels in gained.samples for name, value in labels if name == "type"}
    backlogs = (
        _over(now.total("queue_depth", priority=name), gained.total("tasks_dequeued_total", priority=name))
        for name in _PRIORITIES
    )
    failed = {name: gained.total("tasks_failed_total", type=name) for name in types}
    ended = {name: n + gained.total("tasks_succeeded_total", type=name) for name, n in failed.items()}
    return {
        "QueueSaturated": _largest(backlog * seconds for backlog in backlogs),
        "FailureRateHigh": _largest(_over(failed[name], ended[name]) for name in types),
        "HandlerSlow": _largest(gained.quantile("task_run_seconds", 0.95, type=name) for name in types),
    }


def _over(above: float, below: float) -> float:
    """As PromQL divides: infinite over nothing, and nothing over nothing is no number."""
    return above / below if below else inf if above else nan


def _largest(found: Iterable[float]) -> float:
    return max((value for value in found if not isnan(value)), default=nan)


def _page(samples: pd.DataFrame) -> Page:
    """One scrape as a page again; its gauge is told apart by its name."""
    found: dict[tuple[str, Labels], float] = {}
    for name, labels, value in zip(samples["metric"], samples["labels"], samples["value"], strict=True):
        found[str(name), sampling.labels_of(str(labels))] = float(value)
    return Page(found, frozenset({"queue_depth"}))
