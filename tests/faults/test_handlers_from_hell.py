"""Whatever a handler does, the worker lives or is started again, and its neighbours never pay for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fix_process import Process
from fix_system import Site

TESTS = Path(__file__).parents[1]

SETTINGS = {
    "WORKER_POOL": 4,
    "VIS_TIMEOUT_MS": 2000,
    "REAPER_SCAN_INTERVAL_MS": 100,
    "RETRY_BASE_MS": 10,
    "RETRY_JITTER": "none",
    "RETRY_SCAN_INTERVAL_MS": 50,
}

FAILURES = {
    "exits": "SystemExit: 3",
    "exits_in_a_thread": "SystemExit: 3",
    "interrupts": "KeyboardInterrupt: ",
    "interrupts_in_a_thread": "KeyboardInterrupt: ",
    "is_cancelled": "CancelledError: ",
    "is_cancelled_in_a_thread": "CancelledError: ",
    "recurses": "RecursionError: maximum recursion depth exceeded",
    "hogs_memory": "MemoryError: ",
    "says_nul": "ValueError: before\N{REPLACEMENT CHARACTER}after",
    "says_surrogates": "ValueError: before?after",
    "says_ten_megabytes": "ValueError: " + "x" * 2000,
    "says_nothing": "Unprintable: (its text could not be read)",
    "exits_when_asked": "Unutterable: (its text could not be read)",
}
"""What each handler that fails leaves in `last_error`, at its beginning."""

SUCCESSES = ["cancels_itself", "returns_what_cannot_be_sent"]


LOST = "SELECT task_id, worker, claimed_at, finished_at, error FROM task_runs WHERE outcome = 'lost'"


class Hell:
    """A fleet of two workers that serve the handlers of hell.py, and 200 innocent tasks."""

    def __init__(self, site: Site, fleet: Process) -> None:
        self.site = site
        self.fleet = fleet

    def run(self, culprits: list[dict[str, Any]], innocents: int = 200) -> dict[str, dict[str, Any]]:
        """Run culprits amid innocents; the rows of the culprits by type, with the outcomes of their runs."""
        bodies: list[dict[str, Any]] = [{"type": "innocent"}] * innocents
        for i, culprit in enumerate(culprits):
            bodies.insert((2 * i + 1) * innocents // (2 * len(culprits)) + i, {"max_retries": 1} | culprit)
        ids = self.site.send(bodies)
        self.site.drained()
        self.site.prove(ids)
        assert self.site.system.query(
            "SELECT status, sum(failures), count(*) FROM tasks"
            " WHERE type = 'innocent' AND id = ANY (%(ids)s::uuid[]) GROUP BY status",
            {"ids": ids},
        ) == [("succeeded", 0, innocents)]
        rows = self.site.system.query(
            "SELECT type, status, dead_reason, failures, losses, last_error,"
            " (SELECT array_agg(outcome ORDER BY attempt) FROM task_runs WHERE task_id = id)"
            " FROM tasks WHERE type <> 'innocent'"
        )
        names = ("type", "status", "dead_reason", "failures", "losses", "last_error", "outcomes")
        return {str(row[0]): dict(zip(names, row, strict=True)) for row in rows}

    def codes(self) -> list[int]:
        """The exit codes of workers that had to be started again."""
        said = "worker ended; starting it again"
        return [
            int(line.partition('"code": ')[2].partition(",")[0]) for line in self.fleet.err if said in line
        ]


@pytest.fixture
def hell(site, start) -> Hell:
    here = site(workers=0, **SETTINGS)
    env = {name: value for name, value in here.system.stack.env.items() if name.isupper()}
    fleet = start("worker", "--processes", "2", "--app", "hell", cwd=TESTS, **env)
    fleet.says(r"ready fleet workers=2 pid=\d+")
    return Hell(here, fleet)


def test_what_a_handler_raises_is_the_failure_of_its_task_alone(hell):
    """And one that blocks its worker for longer than its lease keeps it: the heartbeat has its own thread."""
    names = [*(FAILURES.keys() - {"hogs_memory"}), *SUCCESSES]
    blocks, hangs = {"type": "blocks", "payload": {"s": 3}}, {"type": "hangs", "timeout_ms": 300}
    found = hell.run([blocks, *({"type": name} for name in sorted(names)), hangs])
    found |= hell.run([{"type": "hogs_memory"}])  # apart from the others: it leaves no memory for their texts
    for name, text in FAILURES.items():
        task = found[name]
        assert (task["status"], task["dead_reason"]) == ("dead", "failed"), task
        assert [o for o in task["outcomes"] if o != "released"] == ["failed", "failed"], task
        assert task["last_error"].startswith(text), task
        assert len(task["last_error"]) < 2200
    for name in SUCCESSES:
        assert (found[name]["status"], found[name]["outcomes"][-1]) == ("succeeded", "succeeded")
    assert [o for o in found["hangs"]["outcomes"] if o != "released"] == ["timed_out", "timed_out"]
    assert found["hangs"]["last_error"] == "hangs ran longer than its timeout of 0.300 s"
    assert found["blocks"]["outcomes"][-1] == "succeeded"
    assert hell.codes() == [], "".join(hell.fleet.err)
    assert not hell.site.system.query(LOST), "".join(hell.fleet.err)


# A run that nobody can end: the worker settles it as timed out, gives back the rest, and exits with 70.


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        {"type": "blocks", "payload": {"s": 60}},
        {"type": "hangs_in_a_thread"},
        {"type": "refuses_to_be_cancelled"},
    ],
    ids=lambda body: body["type"],
)
def test_a_handler_that_cannot_be_ended_is_ended_with_its_worker(hell, body):
    found = hell.run([body | {"timeout_ms": 500}])
    [task] = found.values()
    assert (task["status"], task["dead_reason"]) == ("dead", "timed_out"), task
    assert task["outcomes"] == ["timed_out", "timed_out"]
    assert "timeout" in task["last_error"]
    assert hell.codes() == [70, 70]
    assert set(hell.site.column("SELECT outcome FROM task_runs")) <= {"succeeded", "timed_out", "released"}


# A run that takes its process with it: one loss in company, then it runs alone until its losses are spent.


@pytest.mark.parametrize(
    ("type_", "code", "death"),
    [
        ("ends_the_process", 3, "ended with exit code 3"),
        *(
            pytest.param(*values, marks=[pytest.mark.slow])
            for values in [
                ("ends_the_process_from_a_thread", 3, "ended with exit code 3"),
                ("segfaults", -11, "was killed by SIGSEGV"),
                ("is_killed", -9, "was killed by SIGKILL"),
                ("stops_the_loop", 70, "ended with exit code 1"),
            ]
        ),
    ],
)
def test_a_handler_that_ends_its_process_pays_alone(hell, type_, code, death):
    found = hell.run([{"type": type_}])
    assert found[type_]["status"] == "dead", found
    assert found[type_]["dead_reason"] == "lost"
    assert found[type_]["outcomes"] == ["lost"] * 4
    assert found[type_]["last_error"] == f"the process that ran the task alone {death}"
    assert hell.codes() == [code]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("type_", "outcomes"),
    [("cancels_everything", ["lost", "failed", "failed"]), ("cancels_the_others", ["lost", "succeeded"])],
)
def test_a_worker_that_was_broken_leaves(hell, type_, outcomes):
    """It must not live on as a heartbeat that keeps leases which nobody serves."""
    found = hell.run([{"type": type_}])
    assert found[type_]["outcomes"] == outcomes
    assert hell.codes() == [70]
    assert any('"the worker is broken; leaving"' in line for line in hell.fleet.err)
