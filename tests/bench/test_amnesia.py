"""What a Redis that forgets may cost, and that the command and the documents tell when it has cost more."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from bench import amnesia_cli, index
from bench.amnesia import Scene
from bench.audit import Verdict, check
from bench.cli import main
from bench.proof import Proofs
from bench.record import read
from bench.watch import Overdue


def scene(seed: int = 1, *, lost: int = 0, extra: int = 3, leased: int = 40, deepest: float = 1.0) -> Scene:
    """A scene that passed, unless something is given that is too much."""
    verdict = Verdict(100, {"succeeded": 100}, (check("lost", "gone", ["a"] * lost),))
    return Scene(seed, 100, 30, leased, extra, deepest, 0.5, verdict)


@pytest.mark.parametrize(
    ("found", "passed"),
    [
        ({}, True),
        ({"extra": 40, "deepest": 1.2}, True),
        ({"lost": 1}, False),
        ({"extra": 41}, False),
        ({"extra": -1}, False),
        ({"deepest": 1.21}, False),
    ],
)
def test_nothing_may_be_lost_run_too_often_or_be_queued_twice(found, passed):
    judged = scene(**found)
    assert judged.passed is passed
    assert all(figure.holds for figure in amnesia_cli.figures([scene(), judged])) is passed
    assert judged.line().startswith(f"seed 1: {'passed' if passed else 'FAILED'}; 30 of 100 had ended")


def test_the_worst_seed_is_the_one_with_the_most_extra_runs_by_what_was_in_flight():
    told = amnesia_cli.summary([scene(1, extra=4), scene(2, extra=3, leased=3), scene(3, extra=0)], 3)
    assert told["worst"] == {"extra": 3, "leased": 3}
    assert (told["passed"], told["asked"], told["failed_seeds"]) == (3, 3, [])


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run `bench amnesia --seeds 1-2` with scenes that are made up; (exit code, what a document says)."""

    def call(*scenes: Scene | Exception) -> tuple[int, str]:
        def play(system, n, seed):
            found = scenes[seed - 1]
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(amnesia_cli.amnesia, "play", play)
        monkeypatch.setattr(amnesia_cli.amnesia, "forget", lambda system: None)
        code = main(["amnesia", "--seeds", "1-2", "--out", str(tmp_path / "amnesia.json")])
        return code, Proofs(tmp_path).figure("amnesia")

    monkeypatch.setattr(amnesia_cli, "system", lambda settings, say: nullcontext())
    return call


MOST = "with 40 tasks in flight, 1.00× as many ids as waiting rows, whole after 0.50 s"


def test_what_passed_is_told_with_its_worst(command, tmp_path):
    assert command(scene(1), scene(2)) == (0, f"2 of 2 seeds passed: at worst 3 extra runs {MOST}")
    kept = read(tmp_path / "amnesia.json")
    assert kept["command"] == "bench amnesia --seeds 1-2 --tasks 20000"
    assert [each["passed"] for each in kept["result"]["seeds"]] == [True, True]


def test_a_seed_that_failed_is_told(command):
    told = f"1 of 2 seeds passed, **failed**: 2: at worst 41 extra runs {MOST}"
    assert command(scene(1), scene(2, extra=41)) == (1, told)


def test_a_seed_that_does_not_end_fails_and_is_the_last(command):
    told = f"1 of 2 seeds passed, **failed**: seed 2: not whole: at worst 3 extra runs {MOST}"
    assert command(scene(1), Overdue("not whole")) == (1, told)
    assert command(Overdue("not whole"), scene(2)) == (
        1,
        "0 of 2 seeds passed, **failed**: seed 1: not whole",
    )


def test_what_was_leased_when_everything_was_forgotten_is_counted(servers):
    with index.connected(servers.empty_redis()) as client:
        for queue, ids in (("a", "123"), ("b", "4")):
            client.zadd(f"app:{{{queue}}}:leases", dict.fromkeys(ids, 1))
        client.zadd("other:{a}:leases", {"5": 1})
        assert index.flush(client, "app") == 4
        assert client.dbsize() == 0
