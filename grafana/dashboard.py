"""Makes grafana/dashboards/observability.json: `python grafana/dashboard.py`.

Plain dicts and the standard library, no dashboard SDK: the part of Grafana's model that we use fits on one
screen, while the SDK writes `"options": null`, gives panels no id, and would be one more dependency to pin.

Two rules for queries. Gauges describe the whole system and every process shows the same value, so they are
taken by `max`. Counters and histograms count what one process did, so they are summed over the processes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

PATH: Final = Path(__file__).with_name("dashboards") / "observability.json"
DATASOURCE: Final = {"type": "prometheus", "uid": "prometheus"}

COUNT: Final = "short"
PER_SECOND: Final = "cps"
SECONDS: Final = "s"
SHARE: Final = "percentunit"

Json = dict[str, Any]


def rate(counter: str, *by: str) -> str:
    """The query for events per second of `counter` over all processes, one series for each `by`."""
    group = f" by ({', '.join(by)})" if by else ""
    return f"sum{group} (rate({counter}[$__rate_interval]))"


def quantile(q: float, histogram: str, by: str) -> str:
    """The query for the `q` quantile, in the histogram's unit, over all processes."""
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', 'le', by)})"


def panel(title: str, description: str, unit: str, *queries: tuple[str, str]) -> Json:
    """A graph over time. `queries` are pairs of an expression and the legend of its series."""
    return {
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": DATASOURCE, "expr": expr, "legendFormat": legend}
            for i, (expr, legend) in enumerate(queries)
        ],
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "min": 0,
                "custom": {"lineWidth": 1, "fillOpacity": 8, "showPoints": "never"},
            },
            "overrides": [],
        },
        "options": {
            "legend": {
                "displayMode": "table",
                "placement": "right",
                "showLegend": True,
                "calcs": ["lastNotNull", "max"],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


FAILED_BY_TYPE: Final = rate("tasks_failed_total", "type")
SUCCEEDED_BY_TYPE: Final = rate("tasks_succeeded_total", "type")

TASKS: Final = (
    panel(
        "Queue depth by priority",
        "How much work waits? Tasks ready to run.",
        COUNT,
        ("max by (priority) (queue_depth)", "{{priority}}"),
    ),
    panel(
        "In-flight processing",
        "How busy is the fleet? Tasks leased by workers: running, or about to.",
        COUNT,
        ("max(processing_inflight)", "leased"),
    ),
    panel(
        "Throughput",
        "Does the fleet keep up? In a steady flow without failures the four lines lie on each other.",
        PER_SECOND,
        (rate("tasks_enqueued_total"), "enqueued"),
        (rate("tasks_dequeued_total"), "dequeued"),
        (rate("tasks_succeeded_total"), "succeeded"),
        (rate("acks_total"), "acknowledged"),
    ),
    panel(
        "Success and failure",
        "How do runs end? A failed run may still be retried; lost runs are in the panel of reaps.",
        PER_SECOND,
        (rate("tasks_succeeded_total"), "succeeded"),
        (rate("tasks_failed_total"), "failed"),
    ),
    panel(
        "Failed share by type",
        "Which handler fails? Failed and timed out runs among those that succeeded or failed.",
        SHARE,
        (f"{FAILED_BY_TYPE} / ({FAILED_BY_TYPE} + {SUCCEEDED_BY_TYPE})", "{{type}}"),
    ),
    panel(
        "Retries and reaps",
        "How much work is done again? Retried after a failure; reaped after a lost lease.",
        PER_SECOND,
        (rate("tasks_retried_total"), "retried"),
        (rate("tasks_reaped_total"), "reaped"),
    ),
    panel(
        "Retry set and DLQ",
        "What waits for its due time, and what has been given up?",
        COUNT,
        ("max by (priority) (retry_set_depth)", "retry {{priority}}"),
        ("max by (priority) (dlq_depth)", "dead {{priority}}"),
    ),
    panel(
        "New dead letters",
        "What is being given up, and why?",
        PER_SECOND,
        (rate("tasks_dead_total", "type", "reason"), "{{type}}: {{reason}}"),
    ),
    panel(
        "Handler latency by type",
        "How long do handlers run?",
        SECONDS,
        (quantile(0.5, "task_run_seconds", "type"), "{{type}} p50"),
        (quantile(0.95, "task_run_seconds", "type"), "{{type}} p95"),
        (quantile(0.99, "task_run_seconds", "type"), "{{type}} p99"),
    ),
    panel(
        "Enqueue to start, p95",
        "How long do tasks wait? From the moment a task is due to the start of its handler.",
        SECONDS,
        (quantile(0.95, "enqueue_to_start_seconds", "priority"), "{{priority}}"),
    ),
)

MACHINERY: Final = (
    panel(
        "Released, fenced and refused",
        "Do workers lose their tasks? Given back unrun, answered too late, or leased and not claimable.",
        PER_SECOND,
        (rate("tasks_released_total"), "released"),
        (rate("outcomes_fenced_total"), "fenced"),
        (rate("messages_refused_total", "reason"), "refused: {{reason}}"),
    ),
    panel(
        "Reconcile repairs",
        "Did Redis disagree with Postgres? Silent in health, busy after Redis lost its memory.",
        PER_SECOND,
        (rate("reconcile_repairs_total", "kind"), "{{kind}}"),
    ),
    panel(
        "Loop errors",
        "Does a background loop fail? The log of that process says why.",
        PER_SECOND,
        (rate("loop_errors_total", "loop"), "{{loop}}"),
    ),
    panel(
        "Age of the last poll",
        "Can each process reach the stores? A line that climbs belongs to one that cannot.",
        SECONDS,
        ("max by (instance, store) (last_poll_age_seconds)", "{{store}} from {{instance}}"),
    ),
)


def arranged(*rows: tuple[str, tuple[Json, ...]]) -> list[Json]:
    """The panels two abreast below the title of their row, with ids and places on Grafana's 24 columns."""
    width, height = 12, 8
    placed: list[Json] = []
    y = 0
    for title, panels in rows:
        placed.append(
            {
                "id": len(placed) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": 2 * width, "h": 1},
            }
        )
        y += 1
        for i, content in enumerate(panels):
            place = {"x": i % 2 * width, "y": y + i // 2 * height, "w": width, "h": height}
            placed.append({"id": len(placed) + 1, **content, "gridPos": place})
        y += (len(panels) + 1) // 2 * height
    return placed


def dashboard() -> Json:
    """The whole dashboard, as Grafana reads it."""
    return {
        "uid": "scheduler-observability",
        "title": "Scheduler / Observability",
        "tags": ["scheduler"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-5m", "to": "now"},
        "timepicker": {"refresh_intervals": ["1s", "5s", "10s", "30s", "1m"]},
        "panels": arranged(("Tasks", TASKS), ("Machinery", MACHINERY)),
    }


def text() -> str:
    """The dashboard as the file holds it: the same for the same source, whoever makes it."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
