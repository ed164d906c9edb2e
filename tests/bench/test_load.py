"""The load generator counts exactly, tries again politely, and does not hide what a server does to it."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stub_api import StubApi

from bench import load_cli
from bench.delivery import RETRY_AFTER_CAP_S, _retry_after
from bench.http import Connection, NoAnswer, Origin, Response
from bench.load import bulk, closed, open_loop, run
from bench.receipts import read_ledger, write_ledger
from bench.workload import Mix, deck

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def api():
    with StubApi() as stub:
        yield stub


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="load")
    load_cli.add_arguments(parser)
    return parser.parse_args(words)


# Exactness.


def test_a_closed_loop_places_each_body_once(api):
    dealt = deck(Mix(flaky=15, fail=5), 1000)
    result = run(closed(dealt, host=api.url, senders=8))
    assert result.accepted == len(api.tasks) == 1000
    assert api.types == {"noop": 800, "flaky": 150, "always_fail": 50}
    assert {receipt.id for receipt in result.receipts} == set(api.tasks)
    for receipt in result.receipts:
        assert dealt[receipt.place].items() <= api.tasks[receipt.id].items()
        assert receipt.intended <= receipt.sent <= receipt.answered <= result.seconds
    assert len(result.latencies) == 1000
    assert result.statuses == {201: 1000}


def test_bulk_places_each_body_once_in_few_requests(api):
    dealt = deck(Mix(flaky=15, fail=5), 2500)
    result = run(bulk(dealt, host=api.url, size=1000))
    assert result.accepted == len(api.tasks) == 2500
    assert api.posts == 3
    assert sorted(receipt.place for receipt in result.receipts) == list(range(2500))
    assert all(api.tasks[receipt.id]["type"] == dealt.type_of(receipt.place) for receipt in result.receipts)


def test_an_open_loop_keeps_its_timetable(api):
    result = run(open_loop(deck(Mix(), 200), host=api.url, rate=400))
    assert result.accepted == len(api.tasks) == 200
    by_place = sorted(result.receipts, key=lambda receipt: receipt.place)
    assert [receipt.intended for receipt in by_place] == [place / 400 for place in range(200)]
    assert all(receipt.sent >= receipt.intended for receipt in by_place)
    assert result.seconds >= 199 / 400


def test_an_open_loop_takes_any_arrivals(api):
    times = [0.0, 0.0, 0.01, 0.2]
    result = run(open_loop(deck(Mix(), 4), host=api.url, times=times))
    assert sorted(receipt.intended for receipt in result.receipts) == times


@pytest.mark.parametrize(
    "arguments", [{}, {"rate": 1.0, "times": [0.0]}, {"rate": 0.0}, {"times": [0.0, 1.0]}]
)
def test_an_open_loop_needs_one_timetable_that_fits(arguments):
    with pytest.raises(ValueError, match=r"rate|times"):
        run(open_loop(deck(Mix(), 1), **arguments))


# Stalls.


def test_an_open_loop_shows_a_stall_that_a_closed_loop_hides():
    def p95_of(loop: Callable[[str], object]) -> float:
        with StubApi() as api:
            api.stall(at=50, seconds=1.0)
            return run(loop(api.url)).latency_s(95)

    bodies = deck(Mix(), 300)
    hidden = p95_of(lambda host: closed(bodies, host=host, senders=4))
    shown = p95_of(lambda host: open_loop(bodies, host=host, rate=200, connections=256))
    assert hidden < 0.1
    assert shown > 0.5  # 200 of 300 arrivals fall into the second of the stall, and wait for its end


def test_requests_that_find_no_free_connection_count_as_late(api):
    api.stall(at=1, seconds=0.3)
    result = run(open_loop(deck(Mix(), 50), host=api.url, rate=200, connections=1))
    assert result.accepted == 50
    assert result.late > 20
    assert result.lag_s > 0.1


def test_requests_that_are_overdue_too_long_are_skipped_and_counted(api):
    api.stall(at=1, seconds=0.5)
    result = run(open_loop(deck(Mix(), 50), host=api.url, rate=200, connections=1, skip_after_s=0.2))
    assert result.skipped > 0
    assert result.accepted + result.skipped == 50
    assert len(api.tasks) == result.accepted


# Trying again.


def test_an_overloaded_api_is_asked_again_after_the_time_it_names(api):
    api.overload(3, retry_after="0.4")
    result = run(closed(deck(Mix(), 20), host=api.url, senders=1))
    assert result.accepted == len(api.tasks) == 20
    assert result.overloaded == 3
    assert result.latencies[0] >= 3 * 0.4
    assert max(result.latencies[1:]) < 0.4


def test_bulk_is_asked_again_as_well(api):
    api.overload(2, retry_after="0.1")
    result = run(bulk(deck(Mix(), 300), host=api.url, size=100, senders=1))
    assert result.accepted == len(api.tasks) == 300
    assert result.overloaded == 2


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("2", 2.0),
        ("3600", RETRY_AFTER_CAP_S),
        ("-1", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.05),
        (None, 0.05),
    ],
)
def test_retry_after_is_honoured_up_to_a_cap(header, seconds):
    headers = {} if header is None else {"retry-after": header}
    assert _retry_after(Response(503, headers, b""), 0.05) == seconds


def test_a_broken_connection_makes_no_second_task(api):
    api.break_connections(5)
    result = run(closed(deck(Mix(), 100), host=api.url))
    assert result.accepted == len(api.tasks) == 100
    assert result.unanswered == result.replays == 5


def test_without_keys_a_body_whose_answer_was_lost_is_not_sent_again(api):
    api.break_connections(5)
    result = run(closed(deck(Mix(), 100), host=api.url, keys=False))
    assert len(api.tasks) == 100
    assert result.accepted == 95
    assert result.unanswered == 5
    assert api.keys == {}


@pytest.mark.parametrize("way", [closed, bulk])
def test_a_refused_body_is_counted_and_not_sent_again(api, way):
    bodies = [{"type": "noop"}, {"type": "invalid"}, {"type": "noop"}]
    result = run(way(bodies, host=api.url))
    assert result.accepted == len(api.tasks) == 2
    assert result.refused == 1
    assert {receipt.place for receipt in result.receipts} == {0, 2}


def test_a_load_gives_up_when_nothing_gets_through():
    host = f"http://127.0.0.1:{_free_port()}"
    result = run(closed(deck(Mix(), 10), host=host, patience_s=0.2))
    assert result.accepted == 0
    assert result.gave_up is not None
    assert "accepted nothing for 0.2 s: cannot connect" in result.gave_up


def test_a_slow_answer_never_meets_the_next_request(api):
    api.stall(at=1, seconds=0.3)

    async def impatient() -> Response:
        connection = Connection(Origin.parse(api.url), timeout_s=0.1)
        with pytest.raises(NoAnswer, match=r"no answer within 0\.1 s"):
            await connection.post("/v1/tasks", b'{"type": "noop"}')
        response = await connection.get("/readyz")
        connection.close()
        return response

    assert run(impatient()).body == b'{"status": "ok"}'


# Running it.


async def test_a_load_runs_where_a_loop_runs_already(api):
    assert run(closed(deck(Mix(), 10), host=api.url)).accepted == 10
    assert (await closed(deck(Mix(), 10), host=api.url)).accepted == 10


def test_progress_grows_to_the_result(api):
    seen: list[int] = []
    result = run(
        open_loop(
            deck(Mix(), 100), host=api.url, rate=200, progress=lambda state: seen.append(state.accepted)
        )
    )
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    assert seen[-1] == result.accepted == 100


def test_an_error_reaches_the_caller():
    async def wrong() -> None:
        raise RuntimeError("wrong")

    with pytest.raises(RuntimeError, match="wrong"):
        run(wrong())


@pytest.mark.parametrize("name", ["ledger.csv", "ledger.jsonl"])
def test_a_ledger_gives_the_receipts_back(api, tmp_path, name):
    result = run(closed(deck(Mix(), 50), host=api.url))
    write_ledger(result, tmp_path / name)
    read = list(read_ledger(tmp_path / name))
    assert [(r.id, r.place, r.replay) for r in read] == [(r.id, r.place, r.replay) for r in result.receipts]
    assert [r.answered for r in read] == pytest.approx([r.answered for r in result.receipts], abs=1e-6)


@pytest.mark.parametrize(("name", "line"), [("ledger.csv", 3), ("ledger.jsonl", 2)])
def test_a_damaged_ledger_names_the_line(api, tmp_path, name, line):
    path = tmp_path / name
    write_ledger(run(closed(deck(Mix(), 1), host=api.url)), path)
    path.write_text(path.read_text() + "nonsense\n")
    with pytest.raises(ValueError, match=rf"{name}, line {line}: not a receipt"):
        list(read_ledger(path))


@pytest.mark.parametrize(
    ("url", "shown", "loopback"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080", True),
        ("localhost:8080", "http://localhost:8080", True),
        ("http://[::1]:8080/", "http://[::1]:8080", True),
        ("https://example.org", "https://example.org:443", False),
        ("http://10.0.0.1:80", "http://10.0.0.1:80", False),
    ],
)
def test_an_origin_is_read_from_a_url(url, shown, loopback):
    origin = Origin.parse(url)
    assert (str(origin), origin.loopback) == (shown, loopback)


@pytest.mark.parametrize("url", ["", "ftp://host", "http://host:port", "http://host/path", "http://a@host"])
def test_what_is_no_origin_is_refused(url):
    with pytest.raises(ValueError, match="is not an address"):
        Origin.parse(url)


# The command.


def test_the_seeds_demo_command_is_taken_verbatim():
    line = (
        "-n 10000 -w 16 -pct-noop 80 -pct-flaky 10 -pct-fail 5 -pct-sleep 5 -sleep-ms 80000 -flaky-attempts 2"
    )
    go = _parse(*line.split())
    assert vars(go) == vars(_parse(*line.replace(" -", " --").replace("-n ", "--n ", 1).split()))
    assert vars(go) == vars(_parse(*line.replace(" 1", "=1").split()))
    assert (go.total, go.senders, go.pct_sleep, go.sleep_ms, go.flaky_attempts) == (10_000, 16, 5, 80_000, 2)


def test_the_short_demo_command_loads_what_it_says(api, capsys):
    args = _parse("-n", "200", "-w", "8", "-pct-flaky", "15", "-pct-fail", "5", "-host", api.url)
    assert load_cli.main(args) == 0
    assert api.types == {"noop": 160, "flaky": 30, "always_fail": 10}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"200 tasks to {api.url}: noop 160, flaky 30, always_fail 10 (seed 1)"
    table = dict(line.split(maxsplit=1) for line in lines[1:])
    assert table["accepted"] == "200 of 200"
    assert table["answers"] == "201: 200"
    assert table["latency"].startswith("p50 ")


@pytest.mark.parametrize("way", [["-bulk", "50"], ["--rate", "500"]])
def test_the_other_ways_are_options(api, capsys, tmp_path, way):
    path = tmp_path / "ledger.jsonl"
    assert load_cli.main(_parse("-n", "100", "-host", api.url, "-ledger", str(path), *way)) == 0
    assert {receipt.id for receipt in read_ledger(path)} == set(api.tasks)
    assert ("lag" in capsys.readouterr().out) == ("--rate" in way)


def test_fewer_than_asked_is_exit_code_1(api):
    api.break_connections(1)
    assert load_cli.main(_parse("-n", "10", "-no-keys", "-host", api.url)) == 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["-pct-flaky", "90", "-pct-fail", "20"], "the percentages add up to 110"),
        (["-n", "0"], "n is 0"),
        (["-w", "0"], "senders is 0"),
        (["-rate", "0"], "the rate is 0"),
        (["-bulk", "1001"], "the bulk size is 1001"),
        (["-rate", "1", "-bulk", "1"], "exclude each other"),
        (["-host", "http://192.0.2.1:8080"], "is not this machine"),
        (["-host", "nonsense://x"], "is not an address"),
        (["-ledger", "/no/such/folder/ledger.csv"], "cannot be written"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(capsys, words, error):
    assert load_cli.main(_parse(*words)) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert error in shown.err
    assert shown.err.count("\n") == 1


def test_an_absent_api_is_one_line_and_exit_code_2(capsys):
    assert load_cli.main(_parse("-host", f"http://127.0.0.1:{_free_port()}")) == 2
    error = capsys.readouterr().err
    assert "no API answers at" in error
    assert error.count("\n") == 1


def test_another_server_is_one_line_and_exit_code_2(capsys, api):
    api.pose_as_another_server()
    assert load_cli.main(_parse("-n", "10", "-host", api.url)) == 2
    assert "answers 404; is this Scheduler's API?" in capsys.readouterr().err


def test_an_interrupt_shows_what_was_accepted_until_then(api):
    api.stall(at=100, seconds=30)
    command = [sys.executable, "-m", "bench.load_cli", "-n", "1000", "-w", "1", "-host", api.url]
    loader = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _until(lambda: api.posts >= 100)
    os.kill(loader.pid, signal.SIGINT)
    out, error = loader.communicate(timeout=10)
    assert loader.returncode == 130
    assert "accepted     99 of 1,000" in out
    assert error == ""


def _until(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, f"not within {within_s} s"
        time.sleep(0.01)
