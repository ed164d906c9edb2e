"""The levels of the alerts are those of the expressions in alerts.yml."""

from __future__ import annotations

from math import inf, isnan

import pandas as pd
import pytest
import yaml

from bench import alarms


def _samples(*scrapes: tuple[float, dict[tuple[str, str], float]]) -> pd.DataFrame:
    rows = [(t, metric, labels, value) for t, page in scrapes for (metric, labels), value in page.items()]
    return pd.DataFrame(rows, columns=["t_s", "metric", "labels", "value"])


def _scrape(dequeued: float, failed: float, slow: float) -> dict[tuple[str, str], float]:
    return {
        ("queue_depth", 'priority="low"'): 300,
        ("queue_depth", 'priority="high"'): 0,
        ("tasks_dequeued_total", 'priority="low",type="noop"'): dequeued,
        ("tasks_failed_total", 'priority="low",type="noop"'): failed,
        ("tasks_succeeded_total", 'priority="low",type="noop"'): dequeued - failed,
        ("task_run_seconds_bucket", 'le="1.0",type="noop"'): dequeued - slow,
        ("task_run_seconds_bucket", 'le="2.0",type="noop"'): dequeued,
        ("task_run_seconds_bucket", 'le="+Inf",type="noop"'): dequeued,
    }


def test_the_thresholds_are_those_of_the_rules():
    rules = yaml.safe_load(alarms.RULES.read_text())["groups"][0]["rules"]
    bounds = alarms.thresholds()
    assert bounds.keys() == {rule["alert"] for rule in rules}
    assert all(f"> {bounds[rule['alert']]:g}" in rule["expr"].replace("0.10", "0.1") for rule in rules)


def test_each_level_is_a_value_over_its_threshold():
    found = alarms.levels(_samples((0.0, _scrape(10, 0, 0)), (2.0, _scrape(20, 2, 10))), 2.0)
    levels = dict(zip(found["alert"], found["level"], strict=True))
    assert set(found["t_s"]) == {2.0}
    assert levels["QueueSaturated"] == pytest.approx(300 / (10 / 2) / 60)
    assert levels["FailureRateHigh"] == pytest.approx(2 / 10 / 0.1)
    assert levels["HandlerSlow"] == pytest.approx(1.95)


def test_a_window_that_is_not_whole_has_no_level():
    assert alarms.levels(_samples((0.0, _scrape(10, 0, 0)), (1.0, _scrape(20, 0, 0))), 2.0).empty


def test_a_queue_that_nobody_serves_is_infinitely_late_and_one_at_rest_is_not_judged():
    still = {**_scrape(10, 0, 0)}
    rest = still | {("queue_depth", 'priority="low"'): 0}
    found = alarms.levels(_samples((0.0, still), (2.0, still), (4.0, rest)), 2.0)
    saturated = found[found["alert"] == "QueueSaturated"]["level"].tolist()
    assert saturated[0] == inf
    assert isnan(saturated[1])
