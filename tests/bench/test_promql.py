"""Rates are Prometheus' own, worked out without one; and a real Prometheus, where there is one, agrees."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from math import isnan
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pandas as pd
import pytest
import yaml
from fix_servers import missing
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.exposition import start_http_server

from bench import load, promql
from bench.latency import await_ended
from bench.promql import rate
from bench.sampling import Sampler
from bench.system import system
from bench.workload import Mix, deck

# By hand


def steps(*values: float, every: float = 1.0, start: float = 0.0) -> list[tuple[float, float]]:
    return [(start + i * every, value) for i, value in enumerate(values)]


def test_samples_at_both_ends_need_no_extension():
    assert rate(steps(100, 110, 120, 130, 140), 4.0, 4.0) == pytest.approx(10)


def test_a_gain_is_extended_to_ends_that_are_near():
    """From 0.5 to 9.5 are 9 s with 90; the window has 10 s."""
    assert rate(steps(*range(1000, 1100, 10), start=0.5), 10.0, 10.0) == pytest.approx(100 / 10)


def test_a_gain_is_extended_by_half_a_distance_to_ends_that_are_far():
    """The counter is known from 5 to 9: 4 s and half a second on each side, over 20 s."""
    assert rate(steps(1000, 1010, 1020, 1030, 1040, start=5), 20.0, 20.0) == pytest.approx(50 / 20)


def test_a_counter_is_not_extended_to_before_it_was_nothing():
    """At 0.5 it is 2 and gains 10 a second, so it was 0 at 0.3: 0.2 s before the first sample, not 0.5."""
    assert rate(steps(2, 12, 22, start=0.5), 2.5, 2.5) == pytest.approx(22 / 2.5)


def test_a_fall_is_a_new_start_from_nothing():
    assert rate(steps(100, 110, 4, 14, 24), 4.0, 4.0) == pytest.approx((10 + 4 + 10 + 10) / 4)


def test_a_counter_that_stands_still_gains_nothing():
    assert rate(steps(7, 7, 7), 2.0, 2.0) == 0


@pytest.mark.parametrize("points", [[], steps(1), steps(1, 2, start=90)])
def test_fewer_than_two_samples_in_the_window_have_no_rate(points):
    assert isnan(rate(points, 10.0, 10.0))


def frame(metric: str, labels: str, points: list[tuple[float, float]]) -> pd.DataFrame:
    rows = [(datetime.fromtimestamp(t, UTC), metric, labels, value) for t, value in points]
    return pd.DataFrame(rows, columns=["at", "metric", "labels", "value"])


def test_a_restart_of_one_endpoint_is_none_of_the_others():
    scraped = [
        frame("a_total", 'type="noop"', steps(100, 110, 120)),
        frame("a_total", 'type="noop"', steps(1000, 5, 15)),
        frame("b_total", "", steps(0, 1, 2)),
    ]
    found = promql.rates(scraped, ["a_total"], datetime.fromtimestamp(2, UTC), 2.0)
    assert found.total("a_total", type="noop") == pytest.approx(10 + 7.5)
    assert found.total("b_total") == 0


def test_a_quantile_is_that_of_the_rates_of_buckets():
    scraped = [
        frame("run_bucket", f'le="{le}"', steps(0, n, 2 * n))
        for le, n in (("1.0", 90), ("2.0", 100), ("+Inf", 100))
    ]
    found = promql.rates(scraped, ["run_bucket"], datetime.fromtimestamp(2, UTC), 2.0)
    assert found.quantile("run", 0.95) == pytest.approx(1.5)


# Against the real one


EVERY_S = 0.25
WINDOW_S = 10
RATE = 120
COUNTERS = ("tasks_enqueued_total", "tasks_dequeued_total", "tasks_succeeded_total")
BUCKETS = "enqueue_to_start_seconds_bucket"


class Prometheus:
    """A real one's answers."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def asked(self, expr: str, at: datetime) -> list[dict[str, Any]]:
        answer = self._client.get("/query", params={"query": expr, "time": f"{at.timestamp():.3f}"}).json()
        assert answer["status"] == "success", answer
        return answer["data"]["result"]

    def value(self, expr: str, at: datetime) -> float:
        [series] = self.asked(expr, at)
        return float(series["value"][1])

    def samples(self, metric: str, at: datetime) -> dict[str, list[tuple[float, float]]]:
        """What it has scraped itself in the window, by its labels."""
        return {
            str(series["metric"]): [(t, float(value)) for t, value in series["values"]]
            for series in self.asked(f"{metric}[{WINDOW_S}s]", at)
        }


@contextmanager
def prometheus(folder: Path, endpoints: list[str]) -> Iterator[Prometheus]:
    """A real one that scrapes these endpoints at EVERY_S."""
    targets = [re.sub(r"^http://|/metrics$", "", each) for each in endpoints]
    every = f"{EVERY_S * 1000:.0f}ms"
    jobs = [{"job_name": "fleet", "static_configs": [{"targets": targets}]}]
    config = {"global": {"scrape_interval": every, "scrape_timeout": every}, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    log = folder / "prometheus.log"
    command = [
        shutil.which("prometheus") or missing("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    ]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        listening = re.compile(r'msg="Listening on".* address=([\d.]+:\d+)')
        until(lambda: bool(listening.search(log.read_text())), log.read_text)
        with httpx.Client(base_url=f"http://{listening.search(log.read_text())[1]}/api/v1") as client:
            yield Prometheus(client)
    finally:
        process.terminate()
        process.wait(10)


def until(condition: Callable[[], bool], told: Callable[[], str] = lambda: "") -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)


@contextmanager
def restarting() -> Iterator[tuple[str, Callable[[], None]]]:
    """An endpoint whose counter gains 1 a call, and begins at 0 again after 30."""
    registry = CollectorRegistry()
    counter = Counter("restarting", "-", registry=registry)
    calls = 0

    def more() -> None:
        nonlocal calls
        calls += 1
        counter.inc()
        if calls % 30 == 0:
            counter.reset()

    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics", more
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - what Prometheus stamps its samples with


@pytest.fixture
def live(monkeypatch, postgres_url, redis_url, tmp_path):
    """A small fleet at a steady load; what a real Prometheus and our own scraper have seen of it."""
    if shutil.which("prometheus") is None:
        missing("prometheus")
    monkeypatch.setenv("POSTGRES_URL", postgres_url)
    monkeypatch.setenv("REDIS_ADDR", redis_url)
    own = {"HTTP_ADDR": "127.0.0.1:0", "METRICS_ADDR": "127.0.0.1:0", "LOG_LEVEL": "warning"}
    names = (*COUNTERS, BUCKETS, "restarting_total")
    with ExitStack() as stack:
        me = stack.enter_context(system(own, say=lambda _: None))
        me.start_fleet(2)
        endpoint, more = stack.enter_context(restarting())
        endpoints = [*me.endpoints, endpoint]
        server = stack.enter_context(prometheus(tmp_path, endpoints))
        until(lambda: len(server.asked("up == 1", now())) == len(endpoints))
        samplers = [
            stack.enter_context(Sampler([each], now=now, names=names, every_s=EVERY_S)) for each in endpoints
        ]
        dealt = deck(Mix(noop=100), round(RATE * (WINDOW_S + 4)))
        instants: list[datetime] = []
        with ThreadPoolExecutor(1) as thread:
            sent = thread.submit(load.run, load.open_loop(dealt, host=me.host, rate=RATE))
            began = time.monotonic()
            while not sent.done():
                more()
                time.sleep(0.05)
                if time.monotonic() - began > WINDOW_S + 2 and len(instants) < 5:
                    instants.append(now())
        await_ended(me)
        accepted = sent.result().accepted
        until(lambda: server.value("sum(tasks_succeeded_total)", now()) >= accepted)
        rows = me.query("SELECT count(*) FROM tasks WHERE status = 'succeeded'")[0][0]
        end = now()
        scraped = [sampler.frame() for sampler in samplers]
        yield server, scraped, instants, {"client": accepted, "Postgres": rows, "at": end}


@pytest.mark.slow
def test_client_postgres_the_embedded_scraper_and_a_real_prometheus_agree(live):
    server, scraped, instants, sides = live
    assert len(instants) == 5

    # Of its own samples our rates are its to the last digits, that of a counter that starts anew with them.
    for metric in (*COUNTERS, "restarting_total"):
        for at in instants:
            end = round(at.timestamp(), 3)
            ours = [rate(each, end, WINDOW_S) for each in server.samples(metric, at).values()]
            theirs = server.value(f"sum(rate({metric}[{WINDOW_S}s]))", at)
            assert sum(v for v in ours if not isnan(v)) == pytest.approx(theirs, rel=1e-6), metric

    # Of samples that we have scraped ourselves, at other moments, they are within 1 %.
    for metric in COUNTERS:
        off = [
            promql.rates(scraped, [metric], at, WINDOW_S).total(metric)
            / server.value(f"sum(rate({metric}[{WINDOW_S}s]))", at)
            - 1
            for at in instants
        ]
        assert abs(median(off)) < 0.01, (metric, off)

    # And the p95 is within a bucket.
    expr = f"histogram_quantile(0.95, sum by (le) (rate({BUCKETS}[{WINDOW_S}s])))"
    for at in instants:
        found = promql.rates(scraped, [BUCKETS], at, WINDOW_S)
        low, high = found.bracket("enqueue_to_start_seconds", 0.95)
        p95 = found.quantile("enqueue_to_start_seconds", 0.95)
        assert abs(p95 - server.value(expr, at)) <= high - low

    # In the end all have counted the same.
    counted = {name: server.value(f"sum({name})", sides["at"]) for name in COUNTERS}
    assert set(counted.values()) == {sides["client"]} == {sides["Postgres"]}
