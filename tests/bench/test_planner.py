"""The planner asks the simulator over a grid, and its counts are the closed form's."""

from __future__ import annotations

from math import isnan

import pandas as pd
import pytest

from bench import planner, scenario
from bench.costs import FREE
from bench.theory import Queue


def planned(**parts: object) -> scenario.Scenario:
    table = {
        "mix": {"sleep": 100, "sleep_ms": 100},
        "load": {"kind": "open", "rate": 20, "seconds": 5, "spacing": "random"},
        "fleet": {"processes": 2},
    } | parts
    return scenario.parse(table, "x", "x")


def test_a_grid_has_every_seed_of_every_cell_with_exact_counts():
    found = planner.grid(planned(), [20, 40], [1, 3], FREE, seeds=2)
    assert len(found) == 2 * 2 * 2
    assert sorted(set(found["slots"])) == [2, 6]  # of two workers
    assert found["exact"].all()
    fewer, more = (found[found["slots"] == slots]["p95_wait_s"].median() for slots in (2, 6))
    assert more < fewer


def test_a_grid_needs_a_rate_to_vary():
    with pytest.raises(TypeError, match="the load of x has no rate to vary"):
        planner.grid(planned(load={"kind": "bulk", "tasks": 10}), [20], [1], FREE)


def test_what_is_needed_keeps_the_target_from_there_on_for_every_seed():
    rows = [(10, 2, 0.9), (10, 4, 0.05), (10, 6, 0.2), (10, 8, 0.1), (10, 8, 0.05), (20, 8, 3.0)]
    found = planner.needed(pd.DataFrame(rows, columns=["rate", "slots", "p95_wait_s"]), 0.1)
    assert found[10] == 8  # 4 slots were lucky: 6 were not enough
    assert isnan(found[20])


def test_erlang_gives_the_fewest_servers():
    (servers,) = planner.erlang([40], 0.1, 0.1).values()
    assert Queue(40, 10, servers).wait_s(95) <= 0.1
    assert servers == 5 or Queue(40, 10, servers - 1).wait_s(95) > 0.1


def test_a_setting_is_judged_against_the_same_seed_unchanged():
    burst = planned(
        mix={"flaky": 50},
        load={"kind": "bulk", "tasks": 40},
        fleet={"processes": 1, "settings": {"RETRY_BASE_MS": 400, "RETRY_JITTER": "none"}},
    )
    changes, base = planner.sensitivity(burst, ["RETRY_BASE_MS"], FREE, seeds=1)
    change = dict(zip(changes["how"], changes["change_s"], strict=True))
    assert change["halved"] < 0 < change["doubled"]
    assert changes["exact"].all()
    assert base["exact"].all()
    assert (changes["drain_s"] - changes["change_s"]).tolist() == pytest.approx([base["drain_s"][0]] * 2)
