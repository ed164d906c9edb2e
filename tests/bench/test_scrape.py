"""Metrics pages are read as Prometheus reads them, from several endpoints and over time."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from math import inf, isnan

import pandas as pd
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import start_http_server

from bench import sampling, scrape
from bench.sampling import UP, Sampler
from bench.scrape import bracket, page, quantile


class Exporter:
    """A process's metrics on a port of its own; each test gives it new ones."""

    def __init__(self) -> None:
        self.renew()
        self._server, self._thread = start_http_server(0, "127.0.0.1", self)
        self.url = f"http://127.0.0.1:{self._server.server_port}/metrics"

    def renew(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.done = Counter("tasks_succeeded", "-", ["type"], registry=registry)
        self.depth = Gauge("queue_depth", "-", ["priority"], registry=registry)
        self.cold = Gauge("cold", "-", registry=registry)
        self.run = Histogram("task_run_seconds", "-", ["type"], buckets=(1, 2, 4), registry=registry)

    # What the server asks a registry.

    def collect(self):
        return self.registry.collect()

    def restricted_registry(self, names):
        return self.registry.restricted_registry(names)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def two_exporters():
    two = [Exporter(), Exporter()]
    yield two
    for exporter in two:
        exporter.close()


@pytest.fixture
def exporters(two_exporters):
    for exporter in two_exporters:
        exporter.renew()
    return two_exporters


# Pages.


def test_counters_of_several_processes_are_summed(exporters):
    for exporter, n in zip(exporters, (3, 4), strict=True):
        exporter.done.labels("noop").inc(n)
    exporters[0].done.labels("flaky").inc(10)
    seen = page(each.url for each in exporters)
    assert seen.total("tasks_succeeded_total", type="noop") == 7
    assert seen.total("tasks_succeeded_total") == 17
    assert seen.total("tasks_succeeded_total", type="sleeper") == 0
    assert seen.answered == 2


def test_of_gauges_the_largest_stands_for_all(exporters):
    for exporter, n in zip(exporters, (5, 2), strict=True):
        exporter.depth.labels("high").set(n)
        exporter.depth.labels("low").set(1)
        exporter.cold.set(-n)
    seen = page(each.url for each in exporters)
    assert seen.total("queue_depth", priority="high") == 5
    assert seen.total("queue_depth") == 6
    assert seen.total("cold") == -2


def test_histograms_of_several_processes_are_summed(exporters):
    exporters[0].run.labels("noop").observe(0.5)
    exporters[1].run.labels("noop").observe(1.5)
    exporters[1].run.labels("flaky").observe(9)
    seen = page(each.url for each in exporters)
    assert seen.buckets("task_run_seconds", type="noop") == [(1, 1), (2, 2), (4, 2), (inf, 2)]
    assert seen.buckets("task_run_seconds") == [(1, 1), (2, 2), (4, 2), (inf, 3)]
    assert seen.quantile("task_run_seconds", 0.75, type="noop") == 1.5
    assert seen.bracket("task_run_seconds", 0.75, type="noop") == (1, 2)
    assert isnan(seen.quantile("task_run_seconds", 0.75, type="sleeper"))


def test_an_endpoint_that_does_not_answer_is_left_out(exporters):
    for exporter in exporters:
        exporter.done.labels("noop").inc()
    silent = Exporter()
    silent.close()
    seen = page([exporters[0].url, silent.url, exporters[1].url])
    assert seen.total("tasks_succeeded_total") == 2
    assert seen.answered == 2


def test_only_the_samples_that_were_asked_for_are_scraped(exporters):
    exporters[0].done.labels("noop").inc()
    exporters[0].depth.labels("high").set(1)
    seen = page([exporters[0].url], ["tasks_succeeded_total"])
    assert {name for name, _ in seen.samples} == {"tasks_succeeded_total"}


def test_a_gain_is_what_came_between_two_pages(exporters):
    exporter = exporters[0]
    exporter.done.labels("noop").inc(5)
    exporter.run.labels("noop").observe(0.5)
    before = page([exporter.url])
    exporter.done.labels("noop").inc(2)
    exporter.done.labels("flaky").inc(1)
    exporter.run.labels("noop").observe(3)
    exporter.depth.labels("high").set(8)
    gained = page([exporter.url]).since(before)
    assert gained.total("tasks_succeeded_total", type="noop") == 2
    assert gained.total("tasks_succeeded_total", type="flaky") == 1
    assert gained.buckets("task_run_seconds") == [(1, 0), (2, 0), (4, 1), (inf, 1)]
    assert "queue_depth" not in {name for name, _ in gained.samples}


# Quantiles. The expected values are worked out by hand from Prometheus' definition of histogram_quantile.


@pytest.mark.parametrize(
    ("buckets", "q", "expected"),
    [
        pytest.param([(1, 10), (2, 20), (inf, 20)], 0.5, 1.0, id="at a bound"),
        pytest.param([(1, 10), (2, 20), (inf, 20)], 0.75, 1.5, id="linear inside a bucket"),
        pytest.param([(1, 10), (2, 20), (inf, 20)], 0.25, 0.5, id="the first bucket begins at 0"),
        pytest.param([(1, 10), (2, 10), (4, 20), (inf, 20)], 0.75, 3.0, id="past an empty bucket"),
        pytest.param([(1, 10), (2, 20), (inf, 40)], 0.95, 2.0, id="beyond the last bound: that bound"),
        pytest.param([(1, 0), (2, 0), (inf, 5)], 0.5, 2.0, id="all beyond the last bound"),
        pytest.param([(1, 4), (2, 8), (inf, 8)], 1.0, 2.0, id="the maximum"),
        pytest.param([(1, 4), (2, 8), (inf, 8)], 0.0, 0.0, id="the minimum"),
        pytest.param([(-1, 4), (1, 8), (inf, 8)], 0.25, -1.0, id="no lower bound below zero"),
        pytest.param([(-1, 4), (1, 8), (inf, 8)], 0.75, 0.0, id="across zero"),
        pytest.param([(0, 0), (2, 8), (inf, 8)], 0.5, 1.0, id="a bound of zero"),
    ],
)
def test_a_quantile_is_that_of_prometheus(buckets, q, expected):
    assert quantile(buckets, q) == pytest.approx(expected)
    low, high = bracket(buckets, q)
    assert low <= expected <= high


@pytest.mark.parametrize(
    "buckets",
    [
        pytest.param([], id="no buckets"),
        pytest.param([(inf, 5)], id="fewer than two"),
        pytest.param([(1, 5), (2, 9)], id="no bucket for all"),
        pytest.param([(1, 0), (inf, 0)], id="no observations"),
    ],
)
def test_where_prometheus_has_no_quantile_there_is_none(buckets):
    assert isnan(quantile(buckets, 0.95))
    assert all(map(isnan, bracket(buckets, 0.95)))


def test_the_minimum_of_a_histogram_with_an_empty_first_bucket_is_unknown():
    assert isnan(quantile([(1, 0), (2, 8), (inf, 8)], 0))


@pytest.mark.parametrize("q", [-0.1, 1.1, float("nan")])
def test_a_quantile_beyond_0_and_1_is_refused(q):
    with pytest.raises(ValueError, match="a quantile is from 0 to 1"):
        quantile([(1, 5), (inf, 9)], q)


# Samples over time.

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def _sampler(exporters, **options) -> Sampler:
    names = ("tasks_succeeded_total", "queue_depth")
    return Sampler([each.url for each in exporters], now=lambda: NOON, names=names, **options)


def test_samples_are_a_long_frame_in_the_clock_that_was_given(exporters):
    exporters[0].done.labels("noop").inc(2)
    with _sampler(exporters) as sampler:
        pass
    frame = sampler.frame()
    assert list(frame.columns) == ["t_s", "at", "metric", "labels", "value"]
    assert str(frame["at"].dtype) == "datetime64[us, UTC]"
    assert [str(frame[name].dtype) for name in ("t_s", "metric", "labels", "value")] == [
        "float64",
        "category",
        "category",
        "float64",
    ]
    first = frame[frame["metric"] == "tasks_succeeded_total"].iloc[0]
    assert first["labels"] == 'type="noop"'
    assert first["value"] == 2
    assert (frame["at"] - NOON).dt.total_seconds().to_numpy() == pytest.approx(
        frame["t_s"].to_numpy(), abs=1e-6
    )


def test_the_end_is_always_sampled(exporters):
    with _sampler(exporters, every_s=3600) as sampler:
        exporters[0].done.labels("noop").inc(7)
    assert sampling.total(sampler.frame(), "tasks_succeeded_total").iloc[-1] == 7


def test_samples_are_taken_while_the_block_runs(exporters, monkeypatch):
    enough = threading.Event()
    real, taken = scrape.page, []

    def counted(*args):
        taken.append(real(*args))
        if len(taken) == 4:
            enough.set()
        return taken[-1]

    monkeypatch.setattr(scrape, "page", counted)
    with _sampler(exporters, every_s=0.02) as sampler:
        assert enough.wait(10)
    frame = sampler.frame()
    up = sampling.total(frame, UP)
    assert len(up) == len(taken) >= 4
    assert (up == 2).all()
    assert up.index.is_monotonic_increasing
    assert 0 < sampler.longest_gap_s <= frame["t_s"].max()


def _samples(*rows) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["t_s", "metric", "labels", "value"])
    return frame.assign(at=NOON + pd.to_timedelta(frame["t_s"], unit="s"))


def test_a_total_sums_metrics_and_labels_at_each_sample():
    frame = _samples(
        (0.0, "tasks_succeeded_total", 'type="noop"', 1),
        (0.0, "tasks_dead_total", 'type="noop"', 5),
        (0.0, "queue_depth", "", 99),
        (0.5, "tasks_succeeded_total", 'type="noop"', 4),
        (0.5, "tasks_succeeded_total", 'type="flaky"', 2),
        (0.5, "tasks_dead_total", 'type="noop"', 5),
    )
    seen = sampling.total(frame, "tasks_succeeded_total", "tasks_dead_total")
    assert seen.tolist() == [6, 11]
    assert [(at - NOON).total_seconds() for at in seen.index] == [0, 0.5]


def test_a_rate_is_the_gain_a_second_since_the_sample_before():
    frame = _samples((0.0, "n", "", 1), (0.5, "n", "", 4), (2.5, "n", "", 5))
    seen = sampling.rate(frame, "n")
    assert seen.tolist() == [6, 0.5]
    assert [(at - NOON).total_seconds() for at in seen.index] == [0.5, 2.5]


def _sampling_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("sampler")]


def test_no_thread_outlives_the_block(exporters):
    seen = []

    def failing_burst() -> None:
        with _sampler(exporters):
            seen.extend(_sampling_threads())
            raise RuntimeError("the burst failed")

    with pytest.raises(RuntimeError, match="the burst failed"):
        failing_burst()
    assert len(seen) == 1
    assert not _sampling_threads()


def test_a_failure_while_sampling_is_not_silent(exporters, monkeypatch):
    def broken(*_):
        raise ValueError("not a page")

    monkeypatch.setattr(scrape, "page", broken)
    with pytest.raises(ValueError, match="not a page"), _sampler(exporters):
        pass
