"""Peers are measured at their best, judged as promised, and run in environments of their own."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from fix_process import alive, until

from bench import contest, marks, peer, peers, record
from bench import standings as tables
from bench.cli import main
from bench.known_peers import PEERS
from bench.lineup import Entry, Lineup, gathered, present
from bench.marks import Mark
from bench.peer import APPS, Entrant, Peer, Setup
from bench.peer_stores import Counted, total
from bench.rows import AIM_MISSED, MUST_MISSED, OK
from bench.standings import BOUND_TO, Standings, best_of, drained, judged, lost, waited
from bench.stats import middle_rate
from scheduler.embedded import Redis
from scheduler.errors import StartError

ROOT = Path(__file__).parents[2]
COMMAND = """
import signal, sys
from bench import peer

worker = [sys.executable, "-c", f"import time; print({peer.READY!r}, flush=True); time.sleep(60)"]
with peer.running("stub", [worker], 1, {"PATH": "/usr/bin:/bin"}) as fleet:
    peer.send(fleet, signal.SIGSTOP)
    print(fleet[0].pid, flush=True)
    signal.pause()
"""
"""A command that has frozen the workers of a peer and then does nothing more."""

TOY = """
import os, signal, sys
from contextlib import asynccontextmanager
import program, redis

client_ = redis.Redis.from_url(os.environ["PEER_URL"], decode_responses=True)


def noops(n):
    client_.rpush("toy", *["noop"] * n)


def send(place, due, ms):
    client_.rpush("toy", f"{place} {due} {ms}")


@asynccontextmanager
async def client():
    yield noops, send


async def serve():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    program.ready()
    while True:
        _, task = client_.blpop("toy")
        if task != "noop":
            place, due, ms = task.split()
            program.work(int(place), float(due), int(ms))


program.main(client, serve=serve)
"""
"""A queue that forgets what it has popped."""

PEER_OF = {"ours": "ours", "fast": "pgqueuer", "slow": "pgqueuer", "threads": "dramatiq"}


def rounds(ours: float, fast: float, threads: float) -> list[dict[str, float]]:
    """Two rounds, in which the slow setup was faster once."""
    return [
        {
            "ours.rate": ours * pace,
            "ours.cpu_us": 50.0,
            "fast.rate": fast * pace,
            "slow.rate": slow,
            "threads.rate": threads * pace,
            "pgbench.rate": 10_000.0 * pace,
        }
        for pace, slow in ((1.0, 1.01 * fast), (2.0, 1.0))
    ]


def entry(told: str, kept: str) -> Entry:
    return Entry(told.lower(), told, kept, dict)


def standings(ours: float, absent: Mapping[str, str] | None = None) -> Standings:
    """A contest of ours, pgbench, and those of PEER_OF who are not absent."""
    absent = absent or {}
    here = {setup: name for setup, name in PEER_OF.items() if name not in absent}
    entries = {name: Entry(here.get(name, name), name, "a log", dict) for name in ("pgbench", *here)}
    waits = {f"{name}-pace.{p}": 2.5 for name in here for p in ("p50", "p95", "p99")}
    toll = dict.fromkeys(("held", "again", "lost", "twice", "last_s"), 1.0)
    return Standings(
        versions=dict.fromkeys({*here.values()}, "1.0"),
        absent=absent,
        bursts=entries,
        paces={f"{name}-pace": entry for name, entry in entries.items() if name != "pgbench"},
        kills={"ours-kill": entries["ours"]},
        rounds=[each | waits for each in rounds(ours, 9_000, 6_000)],
        deaths=[{f"ours-kill.{name}": value for name, value in toll.items()}],
        patience_s=90.0,
    )


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The toy with workers of one process each, as an installed peer on a Redis of its own."""
    monkeypatch.setattr(peer, "PLACE", tmp_path / "peers")
    monkeypatch.setenv("PYTHONPATH", str(APPS))
    program = tmp_path / "toy_app.py"
    program.write_text(TOY)
    python = tmp_path / "peers" / "toy" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    setup = Setup("toy", "as it is", "python {app} serve")
    store = Counted(total("LLEN toy"))
    told = Peer("toy", "Toy", str(program), (), "nothing", "It forgets.", "redis", store, (setup,), setup)
    with Redis(tmp_path / "redis", settings={"appendonly": "no"}) as server:
        yield Entrant(told, server.url, server.pid, tmp_path / "marks")


# --- the judgement ---


def test_the_setup_with_the_best_median_stands_for_a_peer():
    assert best_of(rounds(30_000, 9_000, 6_000), ["slow", "fast"]) == "fast"


@pytest.mark.parametrize(
    ("ours", "verdicts"),
    [(30_000, [OK, OK, OK, OK]), (20_000, [AIM_MISSED, OK, AIM_MISSED, OK]), (9_000, [MUST_MISSED, OK] * 2)],
)
def test_we_are_judged_by_the_pairs_of_each_round(ours, verdicts):
    rows = judged(rounds(ours, 9_000, 6_000), PEER_OF)
    assert [row.verdict for row in rows] == verdicts
    assert rows[0].figure == pytest.approx(ours / 9_000)


def test_our_best_setup_stands_for_us():
    found = [each | {"ours-fast.rate": 1.5 * each["ours.rate"]} for each in rounds(20_000, 9_000, 6_000)]
    rows = judged(found, PEER_OF | {"ours-fast": "ours"})
    assert [row.verdict for row in rows] == [OK] * 4
    assert rows[0].limit.title == "noops drained by ours-fast, against fast"
    assert rows[0].figure == pytest.approx(30_000 / 9_000)


def test_a_bound_is_judged_by_the_setups_it_was_set_for_and_the_fastest_is_told(monkeypatch):
    monkeypatch.setattr(tables, "BOUND_TO", {"pgqueuer": ("slow",)})
    rows = {row.limit.name: row for row in judged(rounds(9_000, 9_000, 3_000), PEER_OF)}
    assert rows["pgqueuer"].limit.against == rows["pgqueuer-itself"].limit.of == "slow.rate"
    assert rows["pgqueuer-fastest"].limit.against == "fast.rate"
    assert (rows["pgqueuer-fastest"].figure, rows["pgqueuer-fastest"].limit.must) == (1.0, None)
    assert "dramatiq-fastest" not in rows


def test_every_setup_that_a_bound_was_set_for_is_measured():
    setups = {peer.name: {setup.name for setup in peer.setups} for peer in PEERS}
    assert all(setups[name].issuperset(meant) for name, meant in BOUND_TO.items())


def test_a_setup_that_does_a_peer_no_justice_is_seen():
    rows = {row.limit.name: row for row in judged(rounds(30_000, 6_000, 6_000), PEER_OF)}
    assert rows["pgqueuer-itself"].verdict == MUST_MISSED  # or the bound of the row before it means nothing
    assert rows["dramatiq-itself"].verdict == OK


def test_a_peer_with_a_bound_that_could_not_be_measured_is_a_bound_missed():
    found = standings(30_000, {"dramatiq": "no network", "rq": "no network"})
    rows = {row.limit.name: row for row in found.rows}
    assert rows["pgqueuer"].verdict == OK
    assert rows["dramatiq"].verdict == MUST_MISSED
    assert rows.keys() == {"pgqueuer", "pgqueuer-itself", "dramatiq"}  # of rq nothing is promised
    assert "Dramatiq, which was not measured" in found.text()
    assert "Not measured: dramatiq. no network" in found.text()


@pytest.mark.parametrize(
    ("options", "ours", "absent", "code"),
    [
        ((), 30_000, {}, 0),
        ((), 9_000, {}, 1),
        ((), 30_000, {"pgqueuer": "its workers did not start"}, 1),
        ((), 30_000, {"rq": "no network"}, 0),
        (("--quick",), 30_000, {"pgqueuer": "its workers did not start"}, 0),
    ],
)
def test_the_command_ends_with_the_verdict(options, ours, absent, code, monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "_found", lambda args, effort: standings(ours, absent))
    out = tmp_path / "peers.json"
    assert main(["peers", *options, "--out", str(out)]) == code
    result = record.read(out)["result"]
    assert result["quick"] is bool(options)
    assert {"seconds", "busy_percent", "disturbed"} < result.keys()


@pytest.mark.parametrize("absent", [{}, {"dramatiq": "no network"}])
def test_the_record_makes_the_same_tables(absent):
    found = standings(20_000, absent)
    kept = Standings.read(json.loads(json.dumps(found.data())))
    assert kept.text() == found.text()
    assert kept.data() == found.data()


def test_every_arm_is_told_with_what_it_keeps():
    told = {
        "ours": entry("Scheduler", "all"),
        "pgbench": entry("pgbench", "rows"),
        "fast": entry("P", "a log"),
    }
    lines = drained(rounds(30_000, 9_000, 6_000), told).splitlines()
    assert lines[2] == "| Scheduler | 45,000 (30,000..60,000) | 3.00× | 50 µs | all |"
    assert lines[4] == "| P | 13,500 (9,000..18,000) | 0.90× |  | a log |"
    waits = {"ours.p50": 1.0, "ours.p95": 2.25, "ours.p99": 1234.5}
    assert waited([waits], {"ours": told["ours"]}).endswith(
        "| Scheduler | 1.0 ms | 2.2 ms | 1,234.5 ms | all |"
    )
    toll = {"ours.held": 12, "ours.again": 11, "ours.lost": 1, "ours.twice": 0, "ours.last_s": 6.5}
    table = lost([toll], {"ours": told["ours"]}, 90)
    assert "Not done within 90 s" in table
    assert table.endswith("| Scheduler | 12 | 11 | 1 | 0 | 6.5 s | all |")


def test_the_middle_rate_leaves_out_how_a_run_begins_and_ends():
    steady = [10 + i / 100 for i in range(100)]
    assert middle_rate(steady) == pytest.approx(100)
    assert middle_rate([0, *steady[1:-1], 99]) == pytest.approx(100)
    with pytest.raises(ValueError, match="no rate"):
        middle_rate([1.0] * 50)
    with pytest.raises(ValueError, match="no rate"):
        middle_rate([])


# --- the marks ---


def test_a_wait_lasts_until_a_task_first_begins():
    found = [Mark(False, 0, 10.0, 7, 10.5), Mark(True, 0, 10.0, 7, 10.6), Mark(False, 0, 10.0, 8, 19.0)]
    assert marks.latencies(found) == {"p50": 500, "p95": 500, "p99": 500}
    assert marks.latencies(found, {0: 10.25})["p99"] == 250


def test_the_toll_of_a_kill_tells_what_ran_what_was_done_again_and_what_never_was():
    def run(place, pid, began, ended=None):
        last = [] if ended is None else [Mark(True, place, 0.0, pid, ended)]
        return [Mark(False, place, 0.0, pid, began), *last]

    found = [*run(0, 7, 1.0, 2.0), *run(1, 7, 2.0), *run(2, 7, 2.0), *run(3, 8, 2.0, 3.0)]
    found += [*run(1, 8, 9.0, 9.5), *run(3, 8, 9.0, 10.0)]
    toll = marks.toll(found, 5, {7}, killed_at=2.5)
    assert toll == {"held": 2, "again": 1, "lost": 2, "twice": 1, "last_s": 7.5}


def test_half_a_line_is_not_read(tmp_path):
    path = tmp_path / "marks"
    assert marks.read(path) == []
    path.write_text("began 0 1.5 7 2.5\nended 0 1.5 7 2.")
    assert marks.read(path) == [Mark(False, 0, 1.5, 7, 2.5)]


# --- the contest ---


def test_a_queue_that_forgets_is_found_out(toy):
    toll = contest.kill(toy, 30, patience_s=2)
    assert toll["held"] == toll["lost"] == 1
    assert toll["again"] == toll["twice"] == 0


@pytest.mark.slow
def test_a_burst_and_a_pace_are_measured_by_the_same_means_for_all(toy):
    burst = contest.burst(toy, toy.peer.setups[0], 2000)
    assert burst["rate"] > 100
    assert burst["cpu_us"] > 0
    waits = contest.pace(toy, toy.peer.setups[0], 25)
    assert 0 <= waits["p50"] <= waits["p95"] <= waits["p99"] < 5000


def test_workers_that_do_not_start_are_told(toy):
    broken = replace(toy.peer.setups[0], command="python {app} nonsense")
    with (
        pytest.raises(StartError, match=r"the workers of toy did not start: see .*toy\.log"),
        toy.running(broken),
    ):
        pass


def test_frozen_workers_of_a_peer_end_with_a_killed_command():
    with subprocess.Popen([sys.executable, "-c", COMMAND], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        worker = int(command.stdout.readline())
        command.kill()
    until(lambda: not alive(worker))


# --- who takes part ---


def test_a_peer_that_fails_is_named_and_the_others_go_on():
    def stalls():
        raise StartError("it does not start")

    contestants = Lineup(me=None, marks=Path())
    arms = {
        name: contestants.attempt(name, arm) for name, arm in (("a", stalls), ("b", lambda: {"rate": 1.0}))
    }
    assert [dict(arm()) for arm in arms.values()] == [{}, {"rate": 1.0}]
    assert contestants.absent == {"a": "it does not start"}
    entries = {"a": entry("A", ""), "b": entry("B", "")}
    assert list(present(entries, [{"a.rate": 1.0, "b.rate": 1.0}, {"b.rate": 1.0}])) == ["b"]


@pytest.mark.slow
def test_what_cannot_be_installed_is_not_measured_and_the_reason_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peer, "PLACE", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(peer.shutil, "which", lambda program, **_: None if program == "npm" else program)
    [bullmq] = [each for each in PEERS if each.name == "bullmq"]
    [rq] = [each for each in PEERS if each.name == "rq"]
    with gathered([rq, bullmq]) as contestants:
        assert contestants.entrants == []
    assert contestants.absent["bullmq"] == "npm is not found"
    assert re.match(r"rq: `.*pip install .*` failed: .*rq", contestants.absent["rq"])


def test_the_extra_names_what_the_command_installs_where_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = {
        line for each in PEERS if each.of_python and each.name != "arq" for line in each.requirements
    }
    ours = {line for line in installed if line in project["dependencies"]}
    assert ours == {"uvloop>=0.21", "psycopg[binary]>=3.2.3"}
    assert set(project["optional-dependencies"]["peers"]) == installed - ours


def test_every_peer_is_told_with_its_durability_its_caveat_and_what_it_was():
    assert len({each.name for each in PEERS}) == len(PEERS) == 10
    names = [setup.name for each in PEERS for setup in (*each.setups, each.safe)]
    assert len(set(names)) == len(names)
    for each in PEERS:
        assert (APPS / each.program).exists()
        assert each.durability.startswith(("Postgres, fsync", "Redis in memory"))
        assert each.caveat.endswith(".")
        assert each.before > 0


PROGRAMS = sorted({*APPS.glob("*.py")} - {APPS / "scheduler_app.py"})


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_a_program_of_a_peer_needs_nothing_of_ours(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in imported if re.match(r"(bench|scheduler)\b", name)]


# --- in earnest ---


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_peers_are_measured_and_recorded(tmp_path):
    """Two of them, for the sake of time. The first time it installs them, which takes a network."""
    out, wanted = tmp_path / "peers.json", {"pgqueuer", "dramatiq"}
    only = [word for name in sorted(wanted) for word in ("--only", name)]
    assert main(["peers", "--quick", *only, "--out", str(out)]) == 0
    result = json.loads(out.read_text(encoding="utf-8"))["result"]
    assert result["versions"].keys() == wanted
    assert not result["absent"]
    [measures], [deaths] = result["rounds"], result["kills"]
    rates = [name for name, value in measures.items() if name.endswith(".rate") and value > 0]
    assert len(rates) == len(wanted) + 2
    assert len([name for name in measures if name.endswith(".p95")]) == len(wanted) + 1
    assert deaths["ours-kill.held"] > 0
    assert all(arm["durability"] for arm in result["arms"].values())
