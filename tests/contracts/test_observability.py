"""Metrics, alerts, dashboard and their servers' configuration speak of the same things.

Names are compared without a server; promtool parses and tests the rules; a live Prometheus that scrapes two
real exporters answers every query of the dashboard.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from grafana import dashboard
from scheduler.metrics import BUCKETS, REFUSALS, REPAIRS, Metrics
from scheduler.model import PRIORITIES, Depths

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "alerts.yml"
RULE_TESTS = Path(__file__).with_name("alerts_test.yml")

SEED = {
    "tasks_enqueued_total",
    "tasks_dequeued_total",
    "tasks_succeeded_total",
    "tasks_failed_total",
    "tasks_retried_total",
    "tasks_reaped_total",
    "acks_total",
    "task_run_seconds",
    "enqueue_to_start_seconds",
    "queue_depth",
    "retry_set_depth",
    "dlq_depth",
    "processing_inflight",
}
"""The metrics of the original README."""

SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
KEYWORDS = {"and", "or", "unless", "by"}


def declared() -> dict[str, str]:
    """The series that the processes export → the metric that each belongs to."""
    series = {}
    for family in Metrics().registry.collect():
        metric = f"{family.name}_total" if family.type == "counter" else family.name
        for suffix in SUFFIXES[family.type]:
            series[family.name + suffix] = metric
    return series


def panels() -> list[dict[str, Any]]:
    """The panels with queries, as Grafana reads them from the file."""
    return [p for p in json.loads(dashboard.PATH.read_text())["panels"] if p["type"] != "row"]


def targets() -> list[tuple[str, str, str]]:
    """Each query of the dashboard: the panel's title, the expression at a resolution of 1 s, the legend."""
    return [
        (panel["title"], target["expr"].replace("$__rate_interval", "4s"), target["legendFormat"])
        for panel in panels()
        for target in panel["targets"]
    ]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    """The expressions of the dashboard and of the alerts."""
    return [expr for _, expr, _ in targets()] + [rule["expr"] for rule in rules()]


def series_in(expr: str) -> set[str]:
    """The names of the series that an expression selects."""
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)|\{[^}]*\}|\[[^]]*\]", " ", expr)
    return set(re.findall(r"\b[a-z_][a-z0-9_]*\b(?!\s*\()", bare)) - KEYWORDS


def tool(name: str) -> str:
    """The path of a program of Prometheus. It is missing on some laptops, never on CI."""
    path = shutil.which(name)
    if path is None:
        stop = pytest.fail if os.environ.get("CI") else pytest.skip
        stop(f"{name} is not installed (Debian: apt-get install prometheus)")
    return path


def promtool(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tool("promtool"), *map(str, args)], capture_output=True, text=True, check=False)


# --- names ---


def test_the_names_in_an_expression_are_found():
    expr = "sum by (le, type) (rate(a_bucket{x='y'}[5m])) / max(b) and on (c) d_total > 0.1"

    assert series_in(expr) == {"a_bucket", "b", "d_total"}


@pytest.mark.parametrize("expr", expressions())
def test_every_expression_selects_declared_metrics_only(expr):
    assert series_in(expr)
    assert series_in(expr) <= declared().keys()


def test_the_dashboard_shows_every_metric():
    shown = {declared()[name] for _, expr, _ in targets() for name in series_in(expr)}

    assert shown == set(declared().values())
    assert shown >= SEED


@pytest.mark.parametrize("expr", expressions())
def test_gauges_are_taken_by_max_and_all_else_is_summed(expr):
    for name in series_in(expr):
        if name == declared()[name] and not name.endswith("_total"):
            assert re.search(rf"\bmax(?: by \([a-z, ]+\) )?\({name}\)", expr)
        else:
            assert re.search(rf"\bsum(?: by \([a-z, ]+\))? \((?:rate|increase)\({name}\[\w+\]\)\)", expr)


def test_buckets_are_steps_of_root_two_from_a_millisecond_to_beyond_130_seconds():
    assert BUCKETS[0] == 0.001
    assert BUCKETS[-1] > 130
    assert all(b / a == pytest.approx(2**0.5, rel=1e-3) for a, b in pairwise(BUCKETS))


# --- files ---


def test_the_committed_dashboard_is_the_one_that_its_script_makes():
    assert dashboard.PATH.read_text() == dashboard.text(), "run `python grafana/dashboard.py`"


def test_every_panel_has_an_id_a_unit_and_a_place_of_its_own():
    shown = json.loads(dashboard.PATH.read_text())["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in shown)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len({panel["id"] for panel in shown}) == len(shown)
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in panels())
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23


def test_panels_ask_the_provisioned_data_source():
    provisioned = yaml.safe_load((ROOT / "grafana/provisioning/datasources/prometheus.yml").read_text())
    uids = {panel["datasource"]["uid"] for panel in panels()} | {
        target["datasource"]["uid"] for panel in panels() for target in panel["targets"]
    }

    assert uids == {source["uid"] for source in provisioned["datasources"]}


def test_the_data_source_knows_the_scrape_interval():
    [source] = yaml.safe_load((ROOT / "grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    scraped = yaml.safe_load((ROOT / "prometheus.yml").read_text())["global"]["scrape_interval"]

    assert source["jsonData"]["timeInterval"] == scraped


def test_every_alert_says_what_to_look_at_and_what_to_do():
    page = (ROOT / "docs/observability.md").read_text()
    titles = [panel["title"] for panel in panels()]

    for rule in rules():
        named = re.findall(r'"([^"]+)"', rule["annotations"]["description"])
        assert rule["annotations"]["summary"]
        assert named
        assert set(named) <= set(titles)
        assert f"### {rule['alert']}\n" in page
        assert rule["annotations"]["runbook"] == f"docs/observability.md#{rule['alert'].lower()}"


def test_the_page_explains_every_metric_and_every_panel():
    page = (ROOT / "docs/observability.md").read_text()

    assert [name for name in sorted(set(declared().values())) if f"`{name}`" not in page] == []
    assert [panel["title"] for panel in panels() if f"**{panel['title']}**" not in page] == []


# --- promtool ---


def test_prometheus_accepts_its_configuration_and_the_rules():
    checked = promtool("check", "config", ROOT / "prometheus.yml")

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(rules())} rules found" in checked.stdout


def test_the_alerts_fire_on_planted_cases_and_stay_silent_on_healthy_ones():
    tested = promtool("test", "rules", RULE_TESTS)

    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        pytest.param("max by (priority) (queue_depth)", "sum by (priority) (queue_depth)", id="gauge summed"),
        pytest.param(
            "sum by (priority) (rate(", "max by (priority) (rate(", id="counter not summed over workers"
        ),
        pytest.param("> 60\n", "> 600\n", id="queue threshold"),
        pytest.param("> 0.10\n", "> 0.50\n", id="failure threshold"),
        pytest.param(">= 10\n", ">= 0\n", id="too few failures to tell"),
        pytest.param("> 1\n", "> 2\n", id="latency threshold"),
        pytest.param(">= 20\n", ">= 0\n", id="too few runs to tell"),
        pytest.param("for: 1m", "for: 0s", id="no patience"),
    ],
)
def test_the_rule_tests_notice_a_wrong_rule(tmp_path, right, wrong):
    text = ALERTS.read_text()
    assert right in text
    (tmp_path / "alerts.yml").write_text(text.replace(right, wrong))
    (tmp_path / "test.yml").write_text(RULE_TESTS.read_text().replace("../../alerts.yml", "alerts.yml"))

    assert promtool("check", "rules", tmp_path / "alerts.yml").returncode == 0
    assert promtool("test", "rules", tmp_path / "test.yml").returncode == 1


def test_every_expression_parses(tmp_path):
    exported = tmp_path / "rules.yml"

    def check(exprs: list[str]) -> subprocess.CompletedProcess[str]:
        recorded = [{"record": f"expression_{i}", "expr": expr} for i, expr in enumerate(exprs)]
        exported.write_text(yaml.safe_dump({"groups": [{"name": "exported", "rules": recorded}]}))
        return promtool("check", "rules", exported)

    checked = check(expressions())

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(expressions())} rules found" in checked.stdout
    assert check(["sum by (type (rate(tasks_failed_total[4s]))"]).returncode == 1


# --- a live Prometheus ---


class Prometheus:
    """The HTTP API of a running Prometheus."""

    def __init__(self, address: str) -> None:
        self.client = httpx.Client(base_url=f"http://{address}/api/v1", timeout=5)

    def answer(self, expr: str) -> dict[str, Any]:
        return self.client.get("/query", params={"query": expr}).json()

    def problem(self, expr: str, legend: str) -> str | None:
        """What is wrong with a query's present answer: an error, no data, or a legend without its label."""
        answer = self.answer(expr)
        if answer["status"] != "success":
            return answer["error"]
        result = answer["data"]["result"]
        if not any(math.isfinite(float(series["value"][1])) for series in result):
            return "no data"
        missing = {
            label
            for label in re.findall(r"\{\{(\w+)\}\}", legend)
            for series in result
            if label not in series["metric"]
        }
        return f"no label {', '.join(sorted(missing))}" if missing else None

    def values(self, title: str) -> dict[str, float]:
        """What the first query of a panel shows at present, by the first label of each series."""
        expr = next(expr for name, expr, _ in targets() if name == title)
        result = self.answer(expr)["data"]["result"]
        return {next(iter(series["metric"].values()), ""): float(series["value"][1]) for series in result}


def eventually(condition: Callable[[], bool], deadline_s: float = 15) -> bool:
    """Whether `condition` becomes true within the deadline; asked ten times a second."""
    end = time.monotonic() + deadline_s
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return met


@contextmanager
def exporter() -> Iterator[tuple[Metrics, str]]:
    """The metrics of a process, and the address at which they are served."""
    metrics = Metrics()
    metrics.know_types({"noop"})
    server, thread = metrics.serve(("127.0.0.1", 0))
    try:
        yield metrics, f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@contextmanager
def prometheus(folder: Path, **addresses: str) -> Iterator[Prometheus]:
    """A Prometheus with our configuration, whose jobs scrape these addresses instead."""
    config = yaml.safe_load((ROOT / "prometheus.yml").read_text())
    config["rule_files"] = [str(ALERTS)]
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [addresses[job["job_name"]]]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        tool("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    ]
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        listening = re.compile(r'msg="Listening on".* address=([\d.]+:\d+)')
        assert eventually(lambda: bool(listening.search(log.read_text()))), log.read_text()
        server = Prometheus(listening.search(log.read_text())[1])
        try:
            yield server
        finally:
            server.client.close()
    finally:
        process.terminate()
        process.wait(10)


def work(metrics: Metrics) -> None:
    """Move every counter and histogram as a working process does."""
    metrics.enqueued.inc()
    metrics.retried.inc()
    metrics.reaped.inc()
    metrics.acks.inc()
    metrics.released.inc()
    metrics.fenced.inc()
    metrics.loop_errors.labels("pump").inc()
    metrics.run_seconds.labels("noop").observe(0.2)
    for priority in PRIORITIES:
        metrics.dequeued.labels(priority).inc()
        metrics.succeeded.labels("noop", priority).inc(3)
        metrics.failed.labels("noop", priority).inc()
        metrics.dead.labels("noop", priority, "failed").inc()
        metrics.start_seconds.labels(priority).observe(0.2)
    for reason in REFUSALS:
        metrics.refused.labels(reason).inc()
    for kind in REPAIRS:
        metrics.repairs.labels(kind).inc()


def test_a_live_prometheus_answers_every_query_of_the_dashboard(tmp_path):
    tool("prometheus")
    depths = Depths(queued=(1, 2, 3, 4), retry=(5, 6, 7, 8), dead=(9, 10, 11, 12), leased=13)
    with exporter() as (api, at_api), exporter() as (worker, at_worker):
        for metrics in (api, worker):
            metrics.show(depths)
            metrics.last_poll.labels("postgres").set(0.5)
        problems: dict[tuple[str, str], str] = {}

        with prometheus(tmp_path, api=at_api, worker=at_worker) as server:

            def answered() -> bool:
                work(api)
                work(worker)
                for title, expr, legend in targets():
                    if problem := server.problem(expr, legend):
                        problems[title, expr] = problem
                    else:
                        problems.pop((title, expr), None)
                return not problems

            assert eventually(answered), problems

            # Two processes that show the same are one system.
            both = f"count(queue_depth) == {2 * len(PRIORITIES)}"
            assert eventually(lambda: server.problem(both, "") is None)
            assert server.values("Queue depth by priority") == {
                "critical": 1,
                "high": 2,
                "default": 3,
                "low": 4,
            }
            assert server.values("In-flight processing") == {"": 13}
            # A quarter of the runs failed (a scrape may fall amid them); all took 0.2 s (to within a bucket).
            assert server.values("Failed share by type")["noop"] == pytest.approx(0.25, rel=0.3)
            assert server.values("Handler latency by type")["noop"] == pytest.approx(0.2, rel=0.3)
            # The check sees what it is for.
            assert server.problem("max(queue_dept)", "") == "no data"
            assert server.problem("vector(NaN)", "") == "no data"
            assert server.problem("max(queue_depth)", "{{priority}}") == "no label priority"
            assert "parse error" in server.problem("max(queue_depth", "")

            groups = server.client.get("/rules").json()["data"]["groups"]
            loaded = {rule["name"] for group in groups for rule in group["rules"]}
            assert loaded == {rule["alert"] for rule in rules()}
