"""The commands that look, steer and put right: migrate, task, dlq, queue, workers, reconcile, config."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import structlog
from fix_process import COMMAND, environment
from fix_servers import missing
from fix_store import Database

from scheduler import cli, migrate
from scheduler.supervisor import HOST, free_port

NOWHERE = "01890000-0000-7000-8000-000000000000"


@pytest.fixture
def database(here):
    """The test's own look into its database."""
    opened = Database(here["POSTGRES_URL"])
    yield opened
    opened.close()


@pytest.fixture
def run(here, capsys, monkeypatch):
    """Run a command in this process, which is quicker; its exit code and what it printed."""

    def run(*words: str, **variables: str) -> tuple[int, str, str]:
        monkeypatch.setattr(os, "environ", environment(**here | variables))
        code = cli.main(words)
        return code, *capsys.readouterr()

    yield run
    structlog.reset_defaults()  # or others would log to where this test was read


@pytest.fixture
def ask(run):
    """Run a command that succeeds and logs nothing; what it printed."""

    def ask(*words: str) -> str:
        code, out, err = run(*words)
        assert (code, err) == (0, "")
        return out

    return ask


@pytest.fixture
def refuse(run):
    """Run a command that is refused; its one line on standard error."""

    def refuse(*words: str) -> str:
        code, out, err = run(*words)
        assert (code, out) == (2, "")
        [line] = err.splitlines()
        return line

    return refuse


@pytest.fixture
def dead(database) -> dict[str, str]:
    """Four dead letters by a short name; Redis does not know them yet."""
    return {
        "mail": database.put("dead", type="mail", last_error="no such address", priority="high"),
        "bill": database.put("dead", type="bill", dead_reason="rejected"),
        "lost": database.put("dead", type="bill", dead_reason="lost", failures=0, losses=1, queue="slow"),
        "old": database.put("dead", type="old", priority="low"),
    }


def lines(text: str) -> list[list[str]]:
    """The rows of the first printed table, cut at blanks, without its head."""
    return [line.split() for line in text.partition("\n\n")[0].splitlines()[2:]]


@pytest.mark.parametrize(
    "words",
    [
        ("task", "show"),
        ("task", "cancel"),
        ("dlq", "list"),
        ("dlq", "purge"),
        ("queue", "list"),
        ("workers",),
        ("reconcile",),
    ],
    ids=" ".join,
)
def test_a_command_answers_as_a_process_of_its_own(scheduler, here, database, words):
    """The other tests of this file call the same code without starting a process."""
    ids = {"cancel": [database.put()], "purge": [database.put("dead")], "show": [database.put("succeeded")]}
    done = scheduler(*words, *ids.get(words[-1], ()), **here)
    assert done.returncode == 0
    assert done.stdout
    assert "Traceback" not in done.stderr


# --- migrate ---


def test_migrate_brings_an_empty_database_up_to_date_and_says_so(scheduler, make_empty_database):
    env = {"POSTGRES_URL": make_empty_database()}
    before = scheduler("migrate", "status", **env)
    assert before.returncode == 1
    assert [row[2] for row in lines(before.stdout)] == ["pending"] * len(migrate.migrations())
    applied = ", ".join(f"{m.version:03d}_{m.name}" for m in migrate.migrations())
    assert scheduler("migrate", **env).stdout == f"applied {applied}\n"
    assert scheduler("migrate", "up", **env).stdout == "nothing to do: the schema is up to date\n"
    after = scheduler("migrate", "status", **env)
    assert after.returncode == 0
    assert [row[:3] for row in lines(after.stdout)] == [
        [str(m.version), m.name, "applied"] for m in migrate.migrations()
    ]


def test_migrations_that_psql_applied_are_known(scheduler, make_empty_database):
    url = make_empty_database()
    for file in sorted(migrate.directory().glob("*.sql")):
        try:
            subprocess.run(["psql", url, "-v", "ON_ERROR_STOP=1", "-qXf", file], check=True)
        except FileNotFoundError:
            missing("psql")
    done = scheduler("migrate", "status", POSTGRES_URL=url)
    assert done.returncode == 0
    assert [row[2] for row in lines(done.stdout)] == ["applied"] * len(migrate.migrations())


# --- task ---


def test_a_task_is_shown_with_its_attempts(ask, database):
    id_ = database.put("retrying", type="mail", payload='{"to": "ann"}', last_error="busy\nline")
    database.rows(
        "INSERT INTO task_runs (task_id, attempt, outcome, worker, claimed_at, finished_at, error)"
        " VALUES (%s, 1, 'failed', 'w', now(), now(), 'busy')",
        id_,
    )
    shown = ask("task", "show", id_)
    field = dict(line.split(maxsplit=1) for line in shown.splitlines()[2:] if line.count(" ") > 1)
    assert (field["type"], field["status"], field["last_error"]) == ("mail", "retrying", "busy line")
    assert shown.splitlines()[-1].split()[:3] == ["1", "failed", "w"]
    told = json.loads(ask("task", "show", id_, "--json"))
    assert (told["task"]["id"], told["task"]["failures"]) == (id_, 1)
    assert [run["outcome"] for run in told["runs"]] == ["failed"]


def test_a_task_that_never_ran_is_shown(ask, database):
    assert ask("task", "show", database.put()).endswith("no attempt has ended\n")


def test_a_task_is_cancelled_once_and_not_when_it_has_ended(ask, refuse, database):
    waiting, done = database.put(), database.put("succeeded")
    for _ in range(2):
        assert ask("task", "cancel", waiting) == f"task {waiting} is cancelled\n"
    assert database.task(waiting)["status"] == "cancelled"
    assert "succeeded already and cannot be cancelled" in refuse("task", "cancel", done)


@pytest.mark.parametrize("action", ["show", "cancel"])
def test_a_task_that_is_not_there_is_named(refuse, action):
    assert refuse("task", action, NOWHERE.upper()) == f"scheduler: there is no task {NOWHERE}"


# --- dlq ---


def test_dead_letters_are_listed_by_what_is_asked_for(ask, dead):
    def listed(*words: str) -> list[str]:
        return [row[0] for row in lines(ask("dlq", "list", *words))]

    assert listed() == list(reversed(dead.values()))  # the newest first
    assert listed("--limit", "1") == [dead["old"]]
    assert listed("--type", "bill") == [dead["lost"], dead["bill"]]
    assert listed("--type", "bill", "--queue", "slow") == [dead["lost"]]
    assert listed("--priority", "high") == [dead["mail"]]
    [told] = json.loads(ask("dlq", "list", "--priority", "high", "--json"))
    assert (told["id"], told["dead_reason"], told["last_error"]) == (
        dead["mail"],
        "failed",
        "no such address",
    )
    assert ask("dlq", "list", "--type", "none") == "no dead letters\n"


@pytest.mark.parametrize("action", ["redrive", "purge"])
def test_nothing_is_done_to_dead_letters_unless_one_says_to_which(refuse, database, dead, action):
    assert f"or --all to {action} every one" in refuse("dlq", action)
    assert database.value("SELECT count(*) FROM tasks WHERE dead_at IS NOT NULL") == len(dead)


def test_dead_letters_are_redriven_by_what_is_asked_for(ask, database, dead):
    def queued() -> set[str]:
        found = database.rows("SELECT id::text FROM tasks WHERE status = 'queued' AND redrives = 1")
        return {name for name, id_ in dead.items() if {"id": id_} in found}

    assert ask("dlq", "redrive", NOWHERE) == "0 dead letters redriven\n"
    assert ask("dlq", "redrive", dead["mail"]) == "1 dead letter redriven\n"
    assert queued() == {"mail"}
    assert ask("dlq", "redrive", "--type", "bill", "--reason", "lost") == "1 dead letter redriven\n"
    assert queued() == {"mail", "lost"}
    assert ask("dlq", "redrive", "--queue", "default", "--priority", "low") == "1 dead letter redriven\n"
    assert ask("dlq", "redrive", "--all") == "1 dead letter redriven\n"
    assert queued() == set(dead)
    ready = {(row[0], row[1]): row[2] for row in lines(ask("queue", "list"))}
    assert ready[("default", "high")] == ready[("default", "low")] == "1"


def test_dead_letters_are_purged_and_stay_as_history(ask, database, dead):
    assert ask("dlq", "purge", dead["old"], dead["mail"]) == "2 dead letters purged\n"
    assert ask("dlq", "purge", "--all") == "2 dead letters purged\n"
    assert ask("dlq", "list") == "no dead letters\n"
    assert {row["status"] for row in database.rows("SELECT status FROM tasks")} == {"dead"}


def test_dead_letters_are_redriven_while_redis_is_away(run, database, dead):
    code, out, err = run("dlq", "redrive", "--all", REDIS_ADDR=f"{HOST}:{free_port()}")
    assert (code, out) == (0, "4 dead letters redriven\n")
    assert "reconcile will push" in err
    assert database.value("SELECT count(*) FROM tasks WHERE status = 'queued'") == len(dead)


# --- queues, workers, reconcile ---


def test_redis_is_put_right_and_the_queues_show_it(ask, run, database, dead):
    database.rows("INSERT INTO queues (name) VALUES ('slow')")
    database.put(priority="critical")
    database.put("retrying", due_ms=60_000)
    database.put("running")
    for said in ("2 pushed, 1 adopted, 4 dlq_added\n", "Redis agrees with Postgres\n"):
        assert run("reconcile")[:2] == (0, said)
    depths, flight = ask("queue", "list").split("\n\n")
    assert depths.splitlines()[0].split() == ["queue", "priority", "ready", "waiting", "dead"]
    assert lines(depths) == [
        ["default", "critical", "1", "0", "0"],
        ["default", "high", "0", "0", "1"],
        ["default", "default", "0", "1", "1"],
        ["default", "low", "0", "0", "1"],
        ["slow", "critical", "0", "0", "0"],
        ["slow", "high", "0", "0", "0"],
        ["slow", "default", "0", "0", "1"],
        ["slow", "low", "0", "0", "0"],
    ]
    assert lines(flight) == [["default", "1"], ["slow", "0"]]


def test_workers_are_listed_and_the_silent_told_from_the_living(ask, database):
    assert ask("workers") == "no workers are known\n"
    database.worker("host:1:living")
    database.worker("host:2:silent", alive_ms=-1)
    assert {row[0]: row[-1] for row in lines(ask("workers"))} == {
        "host:1:living": "yes",
        "host:2:silent": "no",
    }


# --- config ---


def test_config_shows_every_setting_its_source_and_no_secret(scheduler):
    secret = {
        "POSTGRES_URL": "postgres://app:hunter2@db/app?sslpassword=hunter2",
        "REDIS_ADDR": "redis://:hunter2@cache:1",
        "REDIS_PASS": "hunter2",
    }
    done = scheduler("config", WORKER_POOL="24", **secret)
    assert (done.returncode, done.stderr) == (0, "")
    assert "hunter2" not in done.stdout
    shown = {row[0]: row[1:3] for row in lines(done.stdout)}
    assert shown["WORKER_POOL"] == ["24", "environment"]
    assert shown["RETRY_BATCH_SIZE"] == ["100", "default"]
    assert shown["REDIS_PASS"] == ["***", "environment"]
    assert shown["POSTGRES_URL"][0] == "postgres://app:***@db/app?sslpassword=***"
    assert shown["REDIS_ADDR"][0] == "redis://:***@cache:1"


def test_the_package_runs_as_a_module_and_as_a_program(scheduler):
    program = sys.executable.rpartition("/")[0] + "/scheduler"
    done = subprocess.run([program, "config"], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == scheduler("config").stdout
    assert COMMAND[1:] == ["-m", "scheduler"]
