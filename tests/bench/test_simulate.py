"""The twin does what theory says, what the product's rules say, and the same each time."""

from __future__ import annotations

import csv
import json
import random
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from heapq import heappop, heappush
from math import fsum, isnan, log
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bench.worker
import scheduler.worker
from bench import cli, costs, job, scenario, theory, twin
from bench.costs import FREE, Costs
from bench.history import History
from bench.job import Job
from bench.scenario import Scenario
from bench.simulate import simulate, summary
from bench.stats import spread
from bench.summary import Summary, summarise
from bench.theory import Queue
from bench.twin import Twin
from bench.worker import Worker
from bench.workload import PRIORITIES
from scheduler import clock, heartbeat, slots
from scheduler.config import load
from scheduler.errors import StartError
from scheduler.handlers import Registry
from scheduler.lifecycle import OUTCOMES
from scheduler.metrics import Metrics
from scheduler.slots import Slots
from scheduler.solo import Solo

MIX = {"flaky": 10, "fail": 5}


def made(
    mix: object = MIX, load_: object = None, processes: int = 2, slots: int = 4, **env: object
) -> Scenario:
    fleet = {"processes": processes, "slots": slots, "settings": {k: str(v) for k, v in env.items()}}
    table = {"mix": mix, "load": load_ or {"kind": "bulk", "tasks": 400}, "fleet": fleet}
    return scenario.parse(table, "x", "x")


def figures(planned: Scenario, priced: Costs = FREE) -> Summary:
    return summary(planned, simulate(planned, priced))


def rows(history: History, outcome: str) -> list[int]:
    return [row for row, each in enumerate(history.outcome) if OUTCOMES[each] == outcome]


# Against theory


def quantiles(rate: float, n: int, rng: random.Random) -> list[float]:
    """Exponential values in a random order whose distribution is exact, so that fewer of them say as much."""
    values = [-log((i + 0.5) / n) / rate for i in range(n)]
    rng.shuffle(values)
    return values


def random_queue(servers: int, rate: float, n: int, processes: int) -> tuple[list[float], list[float]]:
    """Waits of an M/M/c queue whose runs take 1 s on average: from the twin, and from the textbook's loop."""
    rng = random.Random(1)
    coming, at = array("d"), 0.0
    for gap in quantiles(rate, n, rng):
        coming.append(at := at + gap)
    takes = quantiles(1.0, n, rng)
    drawn = iter(takes)
    work = Job(bytes(n), bytes(n), coming, lambda _: next(drawn), [0], [True], 0)
    env = load({"WORKER_POOL": str(servers // processes), "LEASE_AHEAD_MS": "0"})[0]
    history = Twin(work, processes, env, FREE, 1).run()
    begun = dict(zip(history.task, history.started, strict=True))
    free, waits = [0.0] * servers, []
    for came, lasts in zip(coming, takes, strict=True):
        begins = max(came, heappop(free))
        waits.append(begins - came)
        heappush(free, begins + lasts)
    return [begun[i] - came for i, came in enumerate(coming)], waits


@pytest.mark.parametrize(("servers", "rate", "processes"), [(1, 0.8, 1), (4, 3.4, 2), (12, 11.0, 3)])
def test_a_queue_without_costs_is_the_textbooks_to_the_bit(servers, rate, processes):
    simulated, textbook = random_queue(servers, rate, 5000, processes)
    assert simulated == textbook


@pytest.mark.parametrize(("servers", "rate"), [(1, 0.5), (2, 0.8)])
def test_a_queue_without_costs_waits_as_erlang_says(servers, rate):
    waits, _ = random_queue(servers, rate, 100_000, 1)
    law = Queue(rate, 1.0, servers)
    assert fsum(waits) / len(waits) == pytest.approx(law.mean_wait_s, rel=0.025)
    assert sum(wait > 1e-9 for wait in waits) / len(waits) == pytest.approx(law.p_wait, rel=0.025)
    assert sum(wait > 1.0 for wait in waits) / len(waits) == pytest.approx(law.p_longer(1.0), rel=0.025)


@st.composite
def plans(draw: st.DrawFn) -> Scenario:
    """Any small scenario whose sleepers stay clear of their lease's end."""
    lease_ms = draw(st.sampled_from([400, 2000]))
    flaky, fail, sleep = draw(st.tuples(*[st.integers(0, 33)] * 3))
    mix = {
        "flaky": flaky,
        "fail": fail,
        "sleep": sleep,
        "sleep_ms": draw(st.sampled_from([1, lease_ms // 4, lease_ms + 1, lease_ms * 2])),
        "flaky_attempts": draw(st.integers(0, 5)),
        "max_retries": draw(st.integers(0, 4)),
        "priorities": [1, *draw(st.tuples(*[st.integers(0, 3)] * 3))],
    }
    small = st.integers(1, 20)
    env = {
        "VIS_TIMEOUT_MS": lease_ms,
        "MAX_LOSSES": draw(st.integers(0, 3)),
        "LEASE_AHEAD_MS": draw(st.sampled_from([0, 50, 500])),
        "LEASE_BATCH_SIZE": draw(small),
        "RETRY_BATCH_SIZE": draw(small),
        "REAPER_BATCH_SIZE": draw(small),
        "REAPER_SCAN_INTERVAL_MS": draw(st.sampled_from([50, 700])),
        "RETRY_BASE_MS": draw(st.integers(0, 300)),
        "RETRY_MAX_MS": 500,
        "RETRY_JITTER_MS": draw(st.integers(0, 300)),
        "RETRY_JITTER": draw(st.sampled_from(["none", "added", "equal", "full"])),
        "RETRY_STRATEGY": draw(st.sampled_from(["exponential", "linear", "constant"])),
        "PRIORITY_MODE": draw(st.sampled_from(["weighted", "strict"])),
        "PRIORITY_MAX_WAIT_MS": draw(st.sampled_from([0, 200, 30_000])),
    }
    n = draw(st.integers(1, 150))
    sent = draw(
        st.sampled_from(
            [
                {"kind": "bulk", "tasks": n, "size": 20},
                {"kind": "closed", "tasks": n, "senders": 3},
                {"kind": "open", "rate": 100, "seconds": n / 100, "spacing": "random"},
            ]
        )
    )
    return made(mix, sent, draw(st.integers(1, 4)), draw(st.integers(1, 6)), **env)


PRICES = st.sampled_from([FREE, Costs(), Costs(worker_us=900, postgres_us=900, lease_ms=30, settle_ms=20)])


@settings(max_examples=100, deadline=None)
@given(planned=plans(), priced=PRICES)
def test_counts_are_those_of_theory_and_no_drain_beats_its_floor(planned, priced):
    history = simulate(planned, priced)
    found, known = summary(planned, history), theory.forecast(planned)
    assert found.counts == known.counts
    assert not any(map(isnan, history.ended))
    if not planned.fleet.config.lease_ahead_ms or not known.counts.lost:
        # A lease counts from before the claim, so a run that is lost has its slot for a little less.
        short = priced.lease_ms / planned.fleet.config.vis_timeout_ms if known.counts.lost else 0.0
        assert found.drain_s > known.floor.drain_s * (1 - short) - 1e-6
        assert found.utilisation < 1 / (1 - short) + 1e-6


# Against the product's rules


@settings(max_examples=200, deadline=None)
@given(
    env=st.tuples(st.integers(1, 20), st.integers(0, 500), st.integers(1, 100)),
    mean_s=st.floats(1e-5, 10),
    began=st.lists(st.floats(0, 10), max_size=20),
    waiting=st.integers(0, 40),
    weighed=st.booleans(),
)
def test_the_room_in_a_worker_is_the_products(env, mean_s, began, waiting, weighed):
    names = ("WORKER_POOL", "LEASE_AHEAD_MS", "LEASE_BATCH_SIZE")
    config = load(dict(zip(names, map(str, env), strict=True)))[0]
    began = began[: env[0]]
    real = Slots(Registry(), config, Metrics(), lambda *_: None, lambda *_: None, lambda: Solo(None))
    real._mean_s = mean_s
    real._payload_bytes = 20.0 if weighed else None
    real._running = {i: SimpleNamespace(started=at) for i, at in enumerate(began)}
    real._buffer = deque([None] * waiting)
    ours = Worker(0, config, 0.5)
    ours.buffer.extend([0] * waiting)
    ours.weighed, ours._mean_s = weighed, mean_s
    for at in sorted(began):
        ours.begin(at)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "monotonic", lambda: 10.25)
        assert ours.room(10.25) == real.room()


def test_the_constants_are_the_products():
    ours = (bench.worker.WEIGHT, bench.worker.GUESS_S, bench.worker.STUCK_S, 2 * bench.worker.WATCH_S)
    assert ours == (slots._WEIGHT, slots._SLOWEST_GUESS_S, slots._STUCK_S, slots._WATCH_S)
    assert slots._AHEAD_BYTES // slots._LARGEST_GUESS == bench.worker.UNWEIGHED
    assert twin._IDLE_S == scheduler.worker._IDLE_WAIT_S
    assert bench.worker.LONGEST_BEAT_S == heartbeat._LONGEST_BEAT_S
    assert bench.worker.LONGEST_UNSEEN_S == heartbeat._LONGEST_UNSEEN_S


def test_one_seed_gives_one_history_and_reads_no_clock(monkeypatch):
    planned = scenario.parse(scenario_table("demo"), "x", "x")
    for name in ("time", "monotonic", "perf_counter", "time_ns", "monotonic_ns"):
        monkeypatch.setattr(time, name, lambda: pytest.fail("the twin reads a clock"))
    first, second, other = (
        simulate(planned, Costs()),
        simulate(planned, Costs()),
        simulate(planned, Costs(), 1),
    )
    monkeypatch.undo()
    assert first.digest() == second.digest() != other.digest()


def scenario_table(name: str) -> dict[str, object]:
    content = scenario.read(Path(name)).content()
    return json.loads(json.dumps(content))


def test_retries_begin_at_a_pump_tick_after_their_wait():
    planned = made({"fail": 100, "max_retries": 2}, None, 1, RETRY_JITTER="none", RETRY_SCAN_INTERVAL_MS=1000)
    history = simulate(planned, FREE)
    waits = [(history.attempt[row], history.due[row], history.started[row]) for row in range(len(history))]
    first, second, third = ({(due, began) for n, due, began in waits if n == i} for i in (1, 2, 3))
    assert first == {(0.0, 0.0)}
    [(due, began)] = second
    assert due == 0.5
    assert 0.5 <= began < 1.5
    assert {due for due, _ in third} == {began + 1.0}
    assert [third_began for _, third_began in third] == [pytest.approx(began + 1.0, abs=1e-6)]


def test_a_lost_run_ends_with_its_lease_and_is_found_by_the_next_scan():
    env = {"VIS_TIMEOUT_MS": 2000, "MAX_LOSSES": 1, "REAPER_SCAN_INTERVAL_MS": 300}
    history = simulate(made({"sleep": 100, "sleep_ms": 9000}, {"kind": "bulk", "tasks": 4}, 1, **env), FREE)
    assert len(rows(history, "lost")) == len(history) == 8
    assert all(map(isnan, history.started))
    for row in range(8):
        assert 2.0 <= history.finished[row] - history.claimed[row] < 2.3
    # The slot is free at the lease's end, so the second runs begin before anything else could have ended.
    assert sorted(history.attempt) == [1] * 4 + [2] * 4


def test_strict_serves_by_rank_and_weighted_gives_each_its_share():
    load_ = {"kind": "bulk", "tasks": 4000}
    begun = {}
    for mode in ("strict", "weighted"):
        history = simulate(
            made({"sleep": 100, "sleep_ms": 10}, load_, PRIORITY_MODE=mode, LEASE_AHEAD_MS=0), FREE
        )
        in_order = sorted(zip(history.started, history.task, strict=True))
        begun[mode] = [PRIORITIES[history.priorities[task]] for _, task in in_order]
    assert begun["strict"] == [name for name in PRIORITIES for _ in range(1000)]
    shares = Counter(begun["weighted"][:1500])
    assert [shares[name] for name in PRIORITIES] == pytest.approx([800, 400, 200, 100], abs=8)


def test_long_tasks_are_not_hoarded_by_one_worker():
    mix = {"sleep": 100, "sleep_ms": 1000}
    planned = made(mix, {"kind": "bulk", "tasks": 24}, 2, 12, LEASE_AHEAD_MS=0)
    assert figures(planned, Costs()).drain_s < 1.1


def test_what_waits_behind_long_tasks_is_given_back():
    # Ten slow ones fill a worker that expects quick ones; another is free to take what it has leased.
    mix = {"sleep": 5, "sleep_ms": 3000}
    history = simulate(made(mix, {"kind": "bulk", "tasks": 2000}, 2, 12, LEASE_AHEAD_MS=500), Costs())
    back = rows(history, "released")
    assert back
    assert all(isnan(history.started[row]) for row in back)
    ended = Counter(history.task)
    assert all(ended[history.task[row]] > 1 for row in back)


def test_noops_share_the_cores():
    bulk = {"kind": "bulk", "tasks": 20_000}
    priced = Costs(worker_us=100, postgres_us=60, redis_us=40, bulk_us=0, bulk_ms=0, lease_ms=1, cores=2)
    rates = [figures(made({}, bulk, processes, 12), priced).throughput for processes in (1, 2, 4, 8)]
    # One process has its loop as a bound, 10,000/s; more have the cores: 2 / 200 µs.
    assert rates == pytest.approx([10_000] * 4, rel=0.05)
    roomy = replace(priced, cores=6)
    rates = [figures(made({}, bulk, processes, 12), roomy).throughput for processes in (1, 2, 3, 6)]
    assert rates == pytest.approx([10_000, 20_000, 30_000, 30_000], rel=0.05)
    dear = replace(roomy, inflation=2)
    assert figures(made({}, bulk, 1, 12), dear).throughput == pytest.approx(5000, rel=0.05)


def test_an_idle_fleet_answers_within_a_wake_up_and_a_lease():
    planned = made({}, {"kind": "open", "rate": 50, "seconds": 4}, 3)
    found = figures(planned, Costs(worker_us=0, postgres_us=0, redis_us=0, wake_ms=2, lease_ms=5))
    assert (found.wait.p50_s, found.wait.p95_s) == pytest.approx((0.007, 0.007), abs=1e-6)


def test_faults_are_refused():
    planned = scenario.parse(
        scenario_table("demo") | {"faults": [{"at_s": 1, "kind": "worker_killed"}]}, "x", "x"
    )
    with pytest.raises(StartError, match="x has faults, which cannot be simulated"):
        simulate(planned, FREE)


def test_what_has_not_ended_has_no_figures():
    with pytest.raises(ValueError, match="2 tasks have not ended"):
        summarise(History(bytes(2), bytes(2), array("d", [0, 0])), slots=1, lease_s=1.0)


# The command


def test_the_record_has_what_went_in_and_what_came_out(tmp_path, capsys):
    prices, out, runs = tmp_path / "costs.json", tmp_path / "out.json", tmp_path / "runs.csv"
    prices.write_text(json.dumps({"worker_us": 300, "cores": 4}))
    words = ["simulate", "retries", "--costs", str(prices), "--out", str(out), "--runs", str(runs)]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("5,000 tasks on 2 × 12, 3 times, seed 1")
    assert "counts: as theory says, to the unit" in printed
    record = json.loads(out.read_text())
    result = record["result"]
    assert record["command"] == f"bench simulate retries --costs {prices}"
    assert (result["source"], result["name"]) == ("simulated", "retries")
    planned = scenario.parse(result["scenario"], "x", "x")
    assert planned.hash == result["hash"]
    assert costs.read(out) == Costs(worker_us=300, cores=4)
    assert [run["seed"] for run in result["runs"]] == [1, 2, 3]
    again = figures(scenario.parse(result["scenario"], "x", "x"), costs.read(out))
    content = json.loads(json.dumps(again.content()))
    assert {name: result["runs"][0][name] for name in content} == content
    with runs.open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == result["runs"][0]["counts"]["runs"]
    assert Counter(row["outcome"] for row in table)["failed"] == result["runs"][0]["runs"]["failed"]
    assert all(float(row["started_s"]) >= float(row["due_s"]) for row in table)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"cpu": 1}', "has no field 'cpu'"),
        ('{"cores": 0}', "cores is 0; a cost is 0 or more, and cores are above 0"),
        ('{"worker_us": -1}', "worker_us is -1"),
        ("{", "is not JSON"),
    ],
)
def test_costs_that_are_none_are_said_in_one_line(tmp_path, capsys, text, error):
    path = tmp_path / "costs.json"
    path.write_text(text)
    assert cli.main(["simulate", "noops", "--costs", str(path)]) == 2
    err = capsys.readouterr().err
    assert error in err
    assert err.count("\n") == 1


# Its pace


def inlined(work: Job, processes: int, priced: Costs, seed: int) -> Counter[str]:
    """The twin's loop for tasks that do not wait, with the product's rules written out where they are used.

    The settings are the defaults, and nothing is kept but counts.
    """
    rng, counts, batch, cut = random.Random(seed), Counter(), 100, 30_000
    queues, credit, weights = [deque[int]() for _ in range(4)], [0] * 4, (8, 4, 2, 1)
    events: list[tuple[float, int, Callable[..., None], object]] = []
    retries: list[tuple[float, int]] = []
    failures, arrived, busy, number = bytearray(len(work.types)), 0, 0, 0
    idle = deque(
        SimpleNamespace(buffer=deque(), task=-1, turning=False, parked=False) for _ in range(processes)
    )

    def at(when: float, call: Callable[..., None], whom: object) -> None:
        nonlocal number
        number += 1
        heappush(events, (when, number, call, whom))

    def arrive(_: object) -> None:
        nonlocal arrived
        while arrived < len(work.coming) and work.coming[arrived] <= now:
            queues[work.priorities[arrived]].append(arrived)
            arrived += 1
        if arrived < len(work.coming):
            at(work.coming[arrived], arrive, None)
        if idle:
            at(now + 0.0005, feed, idle.popleft())

    def pump(_: object) -> None:
        while retries and retries[0][0] <= now:
            task = heappop(retries)[1]
            queues[work.priorities[task]].append(task)
        if idle:
            at(now + 0.0005, feed, idle.popleft())

    def feed(process: SimpleNamespace) -> None:
        process.parked = len(process.buffer) * 2 > batch
        if process.parked:
            return
        picked: list[int] = []
        while len(picked) < batch - len(process.buffer) and any(queues):
            total, top = 0, -1
            for i in range(4):
                if queues[i]:
                    credit[i] += weights[i]
                    total += weights[i]
                    if top < 0 or credit[i] > credit[top]:
                        top = i
            credit[top] -= total
            picked.append(queues[top].popleft())
            if not queues[top]:
                credit[top] = 0
        if picked:
            at(now + priced.lease_ms / 1000, leased, (process, picked))
        else:
            idle.append(process)

    def leased(what: tuple[SimpleNamespace, list[int]]) -> None:
        nonlocal busy
        process, picked = what
        process.buffer.extend(picked)
        if not process.turning:
            process.turning = True
            busy += 1
            turn(process)
        feed(process)

    def turn(process: SimpleNamespace) -> None:
        nonlocal busy
        task, process.task = process.task, -1
        if task >= 0:
            if failures[task] >= work.fails[work.types[task]]:
                counts["succeeded"] += 1
            else:
                counts["failed"] += 1
                failures[task] += 1
                if failures[task] <= work.max_retries:
                    wait = min(500 << (failures[task] - 1), cut) + round(rng.uniform(0, 500))
                    due = now + (priced.settle_ms + wait) / 1000
                    heappush(retries, (due, task))
                    at(due // 0.5 * 0.5 + 0.5, pump, None)
                else:
                    counts["dead"] += 1
            if process.parked:
                feed(process)
        if process.buffer:
            process.task = process.buffer.popleft()
            at(now + max(priced.loop_s, busy * priced.cpu_s / priced.cores), turn, process)
        else:
            process.turning = False
            busy -= 1

    at(work.coming[0], arrive, None)
    while events:
        now, _, call, whom = heappop(events)
        call(whom)
    return counts


def test_the_rules_as_they_are_cost_less_than_two_thirds_of_the_pace():
    planned = made(MIX, {"kind": "bulk", "tasks": 20_000}, 3, 12)
    work, priced = job.of(planned, Costs()), Costs()
    paces: dict[str, list[float]] = {"twin": [], "inlined": []}
    for seed in range(5):
        began = time.process_time()
        counts = inlined(work, 3, priced, seed)
        between = time.process_time()
        history = Twin(work, 3, planned.fleet.config, priced, seed).run()
        paces["twin"].append(1 / (time.process_time() - between))
        paces["inlined"].append(1 / (between - began))
    assert counts["succeeded"] == len(rows(history, "succeeded"))
    assert counts["failed"] == len(rows(history, "failed"))
    ratio = spread(paces["twin"]).median / spread(paces["inlined"]).median
    print(f"the twin's pace is {ratio:.2f} of that of the same loop with the rules inlined")
    assert ratio >= 0.3


def test_a_run_that_fails_costs_more():
    """On one process, whose loop decides how long it takes."""
    load_ = {"kind": "bulk", "tasks": 300}
    planned = made({"fail": 100, "max_retries": 0}, load_, 1, 4)
    priced = replace(FREE, worker_us=1000, cores=64.0)
    dearer = replace(priced, failure_us=500)
    plain, costly = figures(planned, priced), figures(planned, dearer)
    assert costly.counts == plain.counts
    assert costly.drain_s - plain.drain_s == pytest.approx(300 * 0.0005, rel=0.02)
    noops = made({}, load_, 1, 4)
    assert figures(noops, dearer).drain_s == figures(noops, priced).drain_s


PATIENCE_S = 300.0
"""What somebody who has asked a notebook waits for the answer; two quiet cores need a tenth of it."""


@pytest.mark.slow
def test_a_million_tasks_are_simulated_within_a_notebooks_patience():
    planned = made(MIX, {"kind": "bulk", "tasks": 1_000_000}, 3, 12)
    began = time.process_time()
    found = figures(planned, Costs())
    took = time.process_time() - began
    print(f"{found.counts.tasks:,} tasks, {found.counts.runs:,} runs in {took:.0f} s")
    assert found.counts == theory.forecast(planned).counts
    assert took < PATIENCE_S
