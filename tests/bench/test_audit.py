"""The audit passes a clean history, and each of its checks finds the offence that is planted for it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Any

import pytest
import redis
from history import History, Run

from bench.audit import Verdict, audit
from bench.workload import Expected
from scheduler import keys

STRANGER = "00000000-0000-7000-8000-00000000ffff"
NAMES = dict(zip(keys.NAMES, keys.shard_keys("sched1", "default"), strict=True))

EXACTLY = Expected(tasks=4, succeeded=2, dead_failed=1, dead_lost=1, runs=7, failed=3, retries=2, lost=2)


@dataclass
class Burst:
    """A burst that ended well: a noop, a flaky task, one that always failed, and a sleeper that was lost."""

    history: History
    index: redis.Redis
    postgres_url: str
    redis_url: str
    noop: str
    flaky: str
    failed: str
    lost: str

    def judge(
        self, *more: str, exactly: Expected | None = EXACTLY, patience_s: float = 0.0, **list_: Any
    ) -> Verdict:
        accepted = [self.noop, self.flaky, self.failed, self.lost, *more]
        return audit(
            self.postgres_url, self.redis_url, accepted, exactly=exactly, patience_s=patience_s, **list_
        )


@pytest.fixture(scope="module")
def database(servers):
    with servers.database() as url:
        yield url


@pytest.fixture
def burst(database, redis_url):
    history = History(database)
    with redis.Redis.from_url(redis_url) as index:
        made = Burst(
            history,
            index,
            database,
            redis_url,
            noop=history.task("succeeded", Run("released", 1, None, 2), Run("succeeded", 3, 3, 4)),
            flaky=history.task("succeeded", Run("failed", 1, 1, 2), Run("succeeded", 3, 3, 4), kind="flaky"),
            failed=history.task(
                "dead", Run("failed", 1, 1, 2), Run("failed", 3, 3, 4), reason="failed", max_retries=1
            ),
            lost=history.task("dead", Run("lost", 1, None, 2), Run("lost", 3, None, 4), reason="lost"),
        )
        index.zadd(NAMES["dlq:default"], {made.failed: 1, made.lost: 2})
        yield made


def failed(verdict: Verdict) -> dict[str, tuple[int, tuple[str, ...]]]:
    """The failed checks by name: how many offenders, and the examples."""
    return {check.name: (check.offenders, check.examples) for check in verdict.checks if not check.passed}


def test_a_clean_burst_passes(burst):
    verdict = burst.judge()
    assert verdict.passed
    assert verdict.statuses == {"succeeded": 2, "dead": 2}
    assert verdict.lines() == [f"audit passed: 4 accepted, 2 dead, 2 succeeded; {len(verdict.checks)} checks"]


def test_what_others_have_in_the_stores_is_not_judged(burst):
    burst.history.task("queued")
    burst.index.zadd(NAMES["dlq:low"], {STRANGER: 1})
    burst.index.rpush(NAMES["q:low"], STRANGER)
    assert burst.judge().passed


@pytest.mark.parametrize("place", ["retry:low", "leases"])
def test_what_is_left_of_others_is_found_once_nobody_has_an_open_task(burst, place):
    burst.index.zadd(NAMES[place], {STRANGER: 1})
    assert failed(burst.judge()) == {"left in Redis": (1, (STRANGER,))}
    burst.history.task("queued")
    assert burst.judge().passed


def test_a_person_sees_the_first_offenders_and_json_has_all(burst):
    lost = [f"00000000-0000-7000-8000-00000000fff{n}" for n in range(7)]
    verdict = burst.judge(*lost)
    assert verdict.lines()[1] == f"  lost: 7 (accepted, and no row is there) {' '.join(lost[:5])} and 2 more"
    [found] = [check for check in verdict.record()["checks"] if check["offenders"]]
    assert found["examples"] == tuple(lost)


def test_a_lost_row_is_found(burst):
    verdict = burst.judge(STRANGER)
    assert failed(verdict) == {"lost": (1, (STRANGER,))}
    assert not verdict.passed
    assert verdict.lines() == [
        f"AUDIT FAILED: 5 accepted, 2 dead, 2 succeeded; 1 of {len(verdict.checks)} checks",
        f"  lost: 1 (accepted, and no row is there) {STRANGER}",
    ]


def test_an_id_that_was_given_twice_is_found(burst):
    assert failed(burst.judge(burst.noop)) == {"given twice": (1, (burst.noop,))}


@pytest.mark.parametrize("status", ["queued", "retrying"])
def test_a_task_that_has_not_ended_is_found(burst, status):
    runs = [Run("failed", 1, 1, 2)] if status == "retrying" else []
    open_ = burst.history.task(status, *runs)
    burst.index.hset(NAMES["live"], open_, "")  # which is right, as it has not ended
    burst.index.rpush(NAMES["q:default"], open_)
    assert failed(burst.judge(open_, exactly=None)) == {"not ended": (1, (open_,))}


def test_two_successes_are_found(burst):
    twice = burst.history.task("succeeded", Run("succeeded", 1, 1, 2), Run("succeeded", 3, 3, 4))
    assert failed(burst.judge(twice, exactly=None)) == {"succeeded twice": (1, (twice,))}


def test_a_success_without_a_successful_run_is_found(burst):
    claimed = burst.history.task("succeeded", Run("failed", 1, 1, 2))
    assert failed(burst.judge(claimed, exactly=None)) == {"status and history disagree": (1, (claimed,))}


def test_a_successful_run_of_a_task_that_did_not_succeed_is_found(burst):
    denied = burst.history.task("cancelled", Run("succeeded", 1, 1, 2))
    assert failed(burst.judge(denied, exactly=None)) == {"status and history disagree": (1, (denied,))}


def test_an_attempt_without_a_trace_is_found(burst):
    short = burst.history.task("succeeded", Run("succeeded", 1, 1, 2), attempts=2)
    gap = burst.history.task("succeeded", Run("succeeded", 1, 1, 2), attempts=2)
    burst.history.run(gap, 3, Run("failed", 0, 0, 0.5))
    offenders, examples = failed(burst.judge(short, gap, exactly=None))["attempts without trace"]
    assert offenders == 2
    assert set(examples) == {short, gap}


def test_a_run_that_began_after_the_end_is_found(burst):
    late = burst.history.task("cancelled", Run("failed", 5, 5, 6), finished=4)
    assert failed(burst.judge(late, exactly=None)) == {"started after the end": (1, (late,))}


def test_attempts_out_of_order_are_found(burst):
    swapped = burst.history.task("succeeded", Run("failed", 3, 3, 4), Run("succeeded", 1, 1, 2), finished=9)
    assert failed(burst.judge(swapped, exactly=None)) == {"attempts out of order": (1, (swapped,))}


def test_failures_beyond_the_budget_are_found(burst):
    runs = [Run("failed", i, i, i + 0.5) for i in range(3)]
    spent = burst.history.task("cancelled", *runs, max_retries=1)
    assert failed(burst.judge(spent, exactly=None)) == {"budget exceeded": (1, (spent,))}


@pytest.mark.parametrize("key", ["q:high", "retry:low", "leases"])
def test_what_is_left_in_redis_of_an_ended_task_is_found(burst, key):
    burst.index.hset(NAMES["live"], burst.noop, "token" if key == "leases" else "")
    if key.startswith("q:"):
        burst.index.rpush(NAMES[key], burst.noop)
    else:
        burst.index.zadd(NAMES[key], {burst.noop: 1})
    assert failed(burst.judge()) == {"left in Redis": (1, (burst.noop,))}


def test_an_ended_task_that_redis_only_remembers_is_found(burst):
    burst.index.hset(NAMES["live"], burst.noop, "")
    assert failed(burst.judge())["left in Redis"] == (1, (burst.noop,))


def test_a_dead_row_that_is_missing_from_the_dead_letters_is_found(burst):
    burst.index.zrem(NAMES["dlq:default"], burst.failed)
    assert failed(burst.judge()) == {"dead letters disagree": (1, (burst.failed,))}


def test_a_dead_letter_whose_row_is_not_dead_is_found(burst):
    burst.index.zadd(NAMES["dlq:high"], {burst.noop: 1})
    assert failed(burst.judge()) == {"dead letters disagree": (1, (burst.noop,))}


def test_a_purged_task_is_no_dead_letter(burst):
    burst.history.execute("UPDATE tasks SET dead_at = NULL WHERE id = %s", burst.failed)
    burst.index.zrem(NAMES["dlq:default"], burst.failed)
    assert burst.judge().passed


def test_a_dead_letter_in_two_lists_is_found(burst):
    burst.index.zadd(NAMES["dlq:high"], {burst.lost: 1})
    assert failed(burst.judge())["dead letters disagree"] == (1, (burst.lost,))


@pytest.mark.parametrize(
    ("count", "name"),
    [
        ("succeeded", "succeeded tasks"),
        ("dead_failed", "dead by failures"),
        ("dead_lost", "dead by losses"),
        ("failed", "failed runs"),
        ("lost", "lost runs"),
        ("runs", "runs but for released ones"),
    ],
)
def test_a_count_that_is_off_by_one_is_found(burst, count, name):
    wrong = replace(EXACTLY, **{count: getattr(EXACTLY, count) + 1})
    assert failed(burst.judge(exactly=wrong)) == {name: (1, ())}


def test_redis_may_take_a_moment_to_follow(burst):
    letters = NAMES["dlq:default"]
    burst.index.zrem(letters, burst.failed)
    follow = threading.Timer(0.3, burst.index.zadd, (letters, {burst.failed: 1}))
    follow.start()
    try:
        assert burst.judge(patience_s=30).passed
    finally:
        follow.join()


def test_a_redis_that_does_not_follow_is_found_when_the_patience_ends(burst):
    burst.index.zrem(NAMES["dlq:default"], burst.failed)
    assert failed(burst.judge(patience_s=0.5)) == {"dead letters disagree": (1, (burst.failed,))}
