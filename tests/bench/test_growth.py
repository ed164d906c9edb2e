"""Full tables are those of the product, and what is told of them is what was measured."""

from __future__ import annotations

import json

import psycopg
import pytest

from bench import growth, record
from bench.churn import Shape, told_by
from bench.cli import main
from bench.company import told
from bench.filling import fill
from bench.parking import QUEUE
from bench.rows import Row, table


def test_filled_rows_are_such_as_the_product_makes(postgres_url):
    told = []
    fill(postgres_url, finished=1000, open_=200, dead=10, tell=lambda *progress: told.append(progress))
    assert {("runs", 1000, 1000), ("tasks", 1000, 1000), ("open tasks", 200, 200)} <= set(told)
    with psycopg.connect(postgres_url) as connection:
        statuses = connection.execute("SELECT status, queue, count(*) FROM tasks GROUP BY 1, 2").fetchall()
        outcomes = connection.execute("SELECT outcome, count(*) FROM task_runs GROUP BY 1").fetchall()
        [(in_order, a_day, made)] = connection.execute(
            "SELECT bool_and(id >= uuid_at(created_at - interval '1 ms')"
            " AND id < uuid_at(created_at + interval '1 ms')),"
            " max(created_at) - min(created_at) > interval '23 hours', max(created_at) < now() FROM tasks"
        ).fetchall()
        [(elsewhere,)] = connection.execute("SELECT count(*) FROM task_runs_default").fetchall()
        [(lonely,)] = connection.execute(
            "SELECT count(*) FROM tasks AS t LEFT JOIN task_runs ON task_id = id AND attempt = attempts"
            " WHERE (t.finished_at IS NULL) <> (task_id IS NULL)"
        ).fetchall()
    assert sorted(statuses) == [
        ("dead", "default", 10),
        ("queued", QUEUE, 200),
        ("succeeded", "default", 990),
    ]
    assert sorted(outcomes) == [("failed", 10), ("succeeded", 990)]
    assert (in_order, a_day, made, elsewhere, lonely) == (True, True, True, 0, 0)


def test_new_tasks_go_behind_filled_rows_and_not_between_them(postgres_url):
    """Where filled pages had room left, each new row would be alone on a page of its own."""
    fill(postgres_url, finished=20_000, open_=0, dead=10, tell=lambda *_: None)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        block = "(ctid::text::point)[0]"
        [(last,)] = connection.execute(f"SELECT max({block}) FROM tasks").fetchall()
        connection.execute(
            "INSERT INTO tasks (id, type) SELECT gen_random_uuid(), 'new' FROM generate_series(1, 500)"
        )
        [(first,)] = connection.execute(f"SELECT min({block}) FROM tasks WHERE type = 'new'").fetchall()
        [(options,)] = connection.execute(
            "SELECT reloptions FROM pg_class WHERE oid = 'tasks'::regclass"
        ).fetchall()
    assert first >= last
    assert "fillfactor=60" in options


def test_fewer_finished_tasks_than_dead_ones_are_refused(capsys):
    assert main(["growth", "--finished", "5000"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "--finished is 5,000, and 8,000 of these are to be dead" in line


def test_a_table_in_steady_churn_has_not_grown():
    wave = [Shape(1000, dead, n, 500 + dead, 4000) for n, dead in enumerate((0, 100, 200, 0, 100, 200))]
    assert told_by(wave) == {
        "churn.dead": pytest.approx(100 * 200 / 1200),
        "churn.vacuums": 5,
        "churn.dead_growth": 1,
        "churn.open": 1,
        "churn.key": 1,
    }


def test_a_table_that_nobody_vacuums_grows():
    rising = [Shape(1000, dead, 0, 500 + dead, 4000 + 4 * dead) for dead in range(0, 600, 100)]
    found = told_by(rising)
    assert found["churn.vacuums"] == 0
    assert found["churn.dead_growth"] == 2.5
    assert found["churn.open"] == pytest.approx(1000 / 700)


@pytest.mark.parametrize(("found", "code"), [(900.0, 0), (800.0, 1)])
def test_the_record_tells_what_was_compared_and_what_else_the_machine_did(
    found, code, monkeypatch, tmp_path, capsys
):
    [limit] = [limit for limit in growth.LIMITS if limit.name == "drain"]
    rounds = [{"tasks.full.drain": found, "tasks.small.drain": 1000.0}]
    monkeypatch.setattr(growth, "measure", lambda size, seed: ([Row.of(limit, rounds)], rounds))
    monkeypatch.chdir(tmp_path)
    assert main(["growth", "--finished", "10000000", "--minutes", "2"]) == code
    made = record.read(tmp_path / "results" / "growth.json")
    shown = capsys.readouterr().out
    assert made["command"] == "bench growth --finished 10000000 --minutes 2.0 --seed 1"
    assert table(made) in shown
    assert growth.sizes(made).startswith("10,000,000 tasks that have ended and 1,000,000 open ones, against")
    assert told(made) in shown
    assert {"quick", "seconds", "busy_percent", "steal_percent", "disturbed"} < made["result"].keys()
    assert made["result"]["rounds"] == rounds


def test_every_page_of_tasks_has_a_denominator():
    pages = [limit for limit in growth.LIMITS if limit.of.startswith("pages.")]
    assert {limit.against for limit in pages} == {limit.of.replace("full", "small") for limit in pages}
    assert {limit.must for limit in pages} == {0.85}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_growth_is_measured_and_recorded(tmp_path):
    out = tmp_path / "growth.json"
    assert main(["growth", "--quick", "--out", str(out)]) == 0
    result = json.loads(out.read_text(encoding="utf-8"))["result"]
    rows = {row["name"]: row for row in result["rows"]}
    assert result["quick"]
    assert {"enqueue", "drain", "claim", "settle", "reconcile", "lookup", "rebuild", "churn"} <= set(rows)
    assert all(
        value > 0 for name in ("drain", "reconcile", "lookup", "dead") for value in rows[name]["others"]
    )
    assert all(value > 0 for value in rows["rebuild"]["values"])
