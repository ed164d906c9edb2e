"""Findings: what a ledger tells beside its series: waits of retries, leases that ran out, who was served.

Each takes a ledger, a real run's or a simulated one's, and returns a frame with a row for each thing that
happened. Nothing is summed up here, so that a plot can show all of it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import pandas as pd

from bench.ledger import Ledger

_FAILED: Final = ("failed", "timed_out")


def retry_waits(ledger: Ledger) -> pd.DataFrame:
    """How long each retry waited: from the end of the failed run to the next claim of its task.

    Columns:
        failures (int): how many failures the task had then, from 1.
        wait_s (float): the wait.
        at_s (float): the claim, in seconds since the start.
    """
    ran = ledger.executions[ledger.executions["outcome"] != "released"]
    runs = ran.sort_values(["task_id", "attempt"], kind="stable")
    failed = runs["outcome"].isin(_FAILED)
    claimed = runs.groupby("task_id", sort=False)["claimed_at"].shift(-1)
    waits = pd.DataFrame(
        {
            "failures": failed.astype(int).groupby(runs["task_id"], sort=False).cumsum(),
            "wait_s": (claimed - runs["finished_at"]).dt.total_seconds(),
            "at_s": ledger.seconds(claimed),
        }
    )
    return waits[failed & claimed.notna()].sort_values("at_s", kind="stable", ignore_index=True)


def lapses(ledger: Ledger) -> pd.DataFrame:
    """The runs whose lease ran out, in the order of their claims.

    Columns:
        task_id (string), worker (category), attempt (int)
        claimed_s, found_s (float): the claim, and when the run was found to be lost, in seconds since the
            start.
        held_s (float): the time between the two.
    """
    lost = ledger.reaped.sort_values("claimed_at", kind="stable", ignore_index=True)
    claimed, found = ledger.seconds(lost["claimed_at"]), ledger.seconds(lost["finished_at"])
    times = {"claimed_s": claimed, "found_s": found, "held_s": found - claimed}
    return lost[["task_id", "worker", "attempt"]].assign(**times)


def shares(ledger: Ledger) -> pd.DataFrame:
    """Who was served while every list had tasks: from the last commit to the batch that empties a list.

    Index: priority, of those that occur. Columns: `claims` (int) in that time, and their `share` (float).
    """
    runs = ledger.executions
    last = runs[runs["attempt"] == 1].groupby("priority", observed=True)["claimed_at"].max()
    full = (runs["claimed_at"] > ledger.tasks["created_at"].max()) & (runs["claimed_at"] < last.min())
    claims = runs["priority"][full].value_counts().reindex(last.index, fill_value=0)
    return pd.DataFrame({"claims": claims, "share": claims / max(int(claims.sum()), 1)})


def gaps(ledger: Ledger) -> pd.DataFrame:
    """How long each list went unserved while it had tasks: from the last commit on, claim to claim.

    Columns: `priority` (category); `at_s` (float), the claim that ended the gap, in seconds since the start;
    `gap_s` (float).
    """
    runs = ledger.executions
    rows = []
    for priority, own in runs.groupby("priority", observed=True):
        at = ledger.seconds(own["claimed_at"]).drop_duplicates()
        served = [ledger.arrival_s, *sorted(at[at > ledger.arrival_s])]
        rows += [(priority, b, b - a) for a, b in pairwise(served)]
    frame = pd.DataFrame(rows, columns=["priority", "at_s", "gap_s"])
    return frame.astype({"priority": runs["priority"].dtype})


def again(ledger: Ledger) -> pd.DataFrame:
    """What became of tasks that lost a run: of each, its lost runs and how it ended.

    Columns: `task_id` (string), `lost` (int), `status` (category).
    """
    lost = ledger.reaped.groupby("task_id").size().rename("lost")
    ended = ledger.tasks[["task_id", "status"]]
    return ended.merge(lost, left_on="task_id", right_index=True).reset_index(drop=True)
