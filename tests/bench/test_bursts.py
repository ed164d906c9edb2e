"""The bursts of the snapshot are repeated on new servers, obey the laws, and say what limits them."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest

from bench import bursts, laws
from bench.bursts import Bursts
from bench.laws import Rules
from bench.ledger import Ledger
from bench.report import Snapshot
from bench.turn import SETTINGS
from bench.workload import Mix

QUICK = SETTINGS | {
    "WORKER_POOL": "4",
    "VIS_TIMEOUT_MS": "1000",
    "MAX_LOSSES": "0",
    "REAPER_SCAN_INTERVAL_MS": "200",
    "RETRY_BASE_MS": "50",
    "RETRY_MAX_MS": "100",
    "RETRY_JITTER_MS": "20",
    "RETRY_SCAN_INTERVAL_MS": "50",
}
MIXES = {"noops": Mix(), "slow": Mix(flaky=10, fail=5, sleep=5, sleep_ms=2000)}


@pytest.fixture(scope="module")
def seen() -> Bursts:
    return bursts.repeated(QUICK, MIXES, 80, workers=1, n=2, seed=3)


@pytest.mark.slow
def test_every_repeat_is_on_record_and_passes_its_audit(seen):
    assert {title: len(every) for title, every in seen.seen.items()} == {"noops": 2, "slow": 2}
    assert all(one.verdict.passed for every in seen.seen.values() for one in every)
    assert len(seen.pids) == 2 * 4  # Postgres, Redis, API and a worker, new each time
    assert seen.about.endswith("seeds 3 to 4")


@pytest.mark.slow
def test_every_repeat_obeys_the_laws(seen):
    assert seen.rules == Rules(max_retries=3, max_losses=0, lease_s=1.0)
    for every in seen.judged().values():
        for judged in every:
            assert {law.name: law.holds for law in judged if law.holds is not True} == {}
            assert {"in flight", "slots", "wait", "deck", "work"} <= {law.name for law in judged}


@pytest.mark.slow
def test_the_table_has_a_row_a_burst_and_says_what_its_ranges_mean(seen):
    rows = seen.table().splitlines()[2:]
    assert len(rows) == 2
    assert all(line.partition(": ")[0] in MIXES for line in seen.sure())


@pytest.mark.parametrize(
    ("disturbed", "shown", "words"),
    [
        (
            [0, 0],
            "5.0 s (4.0 s to 6.0 s)",
            "n = 2; the range holds the median of all runs like these with 50%",
        ),
        ([0, 1], "4.0 s", "n = 1, as other work has disturbed 1 of 2; one run has no interval"),
        (
            [1, 1],
            "5.0 s (4.0 s to 6.0 s)",
            "n = 2, and other work has disturbed every one;"  # noqa: ISC004 - one text
            " the range holds the median of all runs like these with 50%",
        ),
    ],
)
def test_repeats_that_were_disturbed_are_left_out_unless_all_were(disturbed, shown, words):
    row = Snapshot(80, 1, 4, 80, 4.0, 2.0, 0.1, 1.0, 0, 0, 0)
    repeats = [
        SimpleNamespace(snapshot=replace(row, drain_s=drain_s), company=SimpleNamespace(disturbed=bool(was)))
        for drain_s, was in zip((4.0, 6.0), disturbed, strict=True)
    ]
    seen = Bursts({"noops": repeats}, Rules())
    assert seen.table().splitlines()[2].split("|")[4].strip() == shown
    assert seen.sure() == [f"noops: {words}"]


@pytest.mark.slow
def test_what_limits_is_what_was_used_most(seen):
    table = seen.limits()
    assert list(table.index) == ["noops", "slow"]
    for title, every in seen.seen.items():
        shares = [seen.shares(one) for one in every]
        assert all(0 <= share <= 1 for each in shares for share in each.values())
        limiting = sorted({max(each, key=each.__getitem__) for each in shares})
        assert table.loc[title, "limited by"] == ", ".join(limiting)
    [slots, *_] = [seen.shares(one)["slots"] for one in seen.seen["slow"]]
    assert slots > 0.3  # four leases of a second each, on four slots


@pytest.mark.slow
def test_the_figures_are_kept(seen, tmp_path):
    paths = seen.write(tmp_path / "new", ["bench notebooks 01"])
    assert [path.name for path in paths] == ["snapshot.json", "snapshot.md"]
    made = json.loads(paths[0].read_text())
    assert made["command"] == "bench notebooks 01"
    assert made["result"]["rows"]["slow"][0]["reaped"] == 4
    assert paths[1].read_text().startswith(seen.table())
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["snapshot.json", "snapshot.md"]


def test_the_inside_of_a_history_is_counted():
    start = pd.Timestamp("2030-01-01T12:00:00Z")

    def at(*times: float | None) -> pd.Series:
        return pd.Series(
            [pd.NaT if t is None else start + pd.Timedelta(seconds=t) for t in times], dtype=start_type
        )

    start_type = "datetime64[us, UTC]"
    tasks = pd.DataFrame({"created_at": at(0, 2)})
    runs = pd.DataFrame(
        {
            "task_id": ["a", "b"],
            "attempt": [1, 1],
            "outcome": ["succeeded", "lost"],
            "claimed_at": at(1, 3),
            "started_at": at(2, None),
            "finished_at": at(5, 10),
            "run_s": [3.0, float("nan")],
        }
    )
    found = bursts.inside(Ledger(tasks, runs), lease_s=6.0)
    assert found == laws.Inside(arrival_s=2.0, p95_start_s=pytest.approx(2.95), held_s=11.0, ran_s=9.0)
