"""The audit finds what is planted: budgets, overlaps, places, keys, strangers and moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import redis
from history import History, Run

from bench import journal
from bench.audit import audit
from scheduler import keys

STRANGER = "00000000-0000-7000-8000-00000000ffff"
NAMES = dict(zip(keys.NAMES, keys.shard_keys("sched1", "default"), strict=True))
SUCCESS = Run("succeeded", 1, 1, 2)

Found = dict[str, tuple[int, tuple[str, ...]]]


@dataclass
class Stores:
    """Two empty stores to plant something in, and the audit of them."""

    history: History
    redis: redis.Redis
    postgres_url: str
    redis_url: str

    def judge(self, *accepted: str, **list_: Any) -> Found:
        """The failed checks by name: how many offenders, and the examples."""
        verdict = audit(self.postgres_url, self.redis_url, accepted, patience_s=0.0, **list_)
        return {check.name: (check.offenders, check.examples) for check in verdict.offences}

    def put(self, id_: str, *places: str) -> None:
        """Add an id to collections."""
        for place in places:
            if place.startswith("q:"):
                self.redis.rpush(NAMES[place], id_)
            else:
                self.redis.zadd(NAMES[place], {id_: 1})


@pytest.fixture(scope="module")
def database(servers):
    with servers.database() as url:
        yield url


@pytest.fixture
def stores(database, redis_url):
    with redis.Redis.from_url(redis_url) as client:
        yield Stores(History(database), client, database, redis_url)


def one(name: str, offender: str) -> Found:
    """What `judge` finds if one check finds one offender."""
    return {name: (1, (offender,))}


# --- budgets and runs ---


def test_failures_beyond_the_budget_are_found_in_the_history_too(stores):
    runs = [Run("failed", i, i, i + 0.5) for i in range(3)]
    hidden = stores.history.task("cancelled", *runs, max_retries=1, failures=0)
    assert stores.judge(hidden) == one("budget exceeded", hidden) | one("counts and history disagree", hidden)


def test_a_redrive_gives_a_new_budget(stores):
    runs = [Run("failed", i, i, i + 0.5) for i in range(4)]
    assert stores.judge(stores.history.task("cancelled", *runs, max_retries=1, failures=2, redrives=1)) == {}


@pytest.mark.parametrize(
    ("suspect", "error", "allowed"),
    [(False, None, 3), (True, None, 3), (False, "the worker died", 3), (True, "the worker died", 31)],
)
def test_losses_beyond_the_budget_are_found(stores, suspect, error, allowed):
    def lost(n: int) -> str:
        runs = [Run("lost", i, None, i + 0.5, error=error) for i in range(n)]
        return stores.history.task("cancelled", *runs, suspect=suspect)

    within, beyond = lost(allowed), lost(allowed + 1)
    assert stores.judge(within, beyond, max_losses=2) == one("budget exceeded", beyond)


@pytest.mark.parametrize("column", ["failures", "losses"])
def test_a_count_that_the_history_does_not_bear_out_is_found(stores, column):
    wrong = stores.history.task("cancelled", Run("released", 1, None, 2), **{column: 1})
    assert stores.judge(wrong) == one("counts and history disagree", wrong)


def test_runs_that_overlap_and_count_are_found(stores):
    def two(outcome: str, end: float) -> str:
        return stores.history.task("succeeded", Run(outcome, 1, 1, end), Run("succeeded", 3, 3, 9))

    overlapping = two("failed", 5)
    sound = two("failed", 2), two("failed", 3.5), two("lost", 5)  # apart; measured late; not counted
    assert stores.judge(overlapping, *sound, slack_s=1.0) == one("accepted runs overlap", overlapping)


# --- one place ---


def test_an_open_task_that_is_in_one_place_passes_but_for_being_open(stores):
    open_ = stores.history.task("queued")
    stores.put(open_, "retry:low")
    stores.redis.hset(NAMES["live"], open_, "")
    assert stores.judge(open_) == one("not ended", open_)


@pytest.mark.parametrize(
    ("places", "live"),
    [
        ([], None),
        (["q:low"], None),
        ([], ""),
        (["leases"], ""),
        (["q:low"], "token"),
        (["retry:low"], "token"),
        (["q:low", "q:low"], ""),
        (["q:low", "retry:high"], ""),
        (["q:low", "leases"], "token"),
    ],
)
def test_an_open_task_that_is_not_in_one_place_is_found(stores, places, live):
    open_ = stores.history.task("queued")
    stores.put(open_, *places)
    if live is not None:
        stores.redis.hset(NAMES["live"], open_, live)
    assert stores.judge(open_) == one("not ended", open_) | one("not in one place", open_)


def test_an_open_task_among_the_dead_letters_is_found(stores):
    open_ = stores.history.task("queued")
    stores.put(open_, "q:low", "dlq:low")
    stores.redis.hset(NAMES["live"], open_, "")
    found = stores.judge(open_)
    assert found.pop("dead letters disagree") == (1, (open_,))
    assert found == one("not ended", open_) | one("not in one place", open_)


# --- keys ---


@pytest.fixture
def keyed(stores):
    """A task with an idempotency key."""
    id_ = stores.history.task("succeeded", SUCCESS, idempotency_key="k")
    remember(stores, id_)
    return id_


def remember(stores, id_: str) -> None:
    stores.history.execute("DELETE FROM idempotency_keys")
    stores.history.execute(
        "INSERT INTO idempotency_keys (key, fingerprint, task_id, expires_at) VALUES ('k', '', %s, now())",
        id_,
    )


def test_a_key_with_one_task_passes(stores, keyed):
    assert stores.judge(keyed, keys={"k": {keyed}, "never answered": set()}) == {}


def test_a_key_that_has_expired_passes(stores, keyed):
    stores.history.execute("DELETE FROM idempotency_keys")
    assert stores.judge(keyed, keys={"k": {keyed}}) == {}


def test_a_key_with_two_tasks_is_found_though_only_one_was_named(stores, keyed):
    stores.history.task("succeeded", SUCCESS, idempotency_key="k")
    assert stores.judge(keyed, keys={"k": {keyed}}) == one("key with two rows", "k")
    assert stores.judge(keyed, keys={"k": set()}) == one("key with two rows", "k")


def test_two_answers_to_a_key_are_found(stores, keyed):
    other = stores.history.task("succeeded", SUCCESS)
    found = stores.judge(keyed, other, keys={"k": {keyed, other}})
    assert found == one("key with two answers", "k") | one("key of another task", "k")


def test_an_answer_with_a_task_that_does_not_carry_the_key_is_found(stores, keyed):
    other = stores.history.task("succeeded", SUCCESS)
    assert stores.judge(other, keys={"k": {other}}) == one("key of another task", "k")


def test_a_key_that_is_remembered_for_another_task_is_found(stores, keyed):
    remember(stores, stores.history.task("succeeded", SUCCESS))
    assert stores.judge(keyed, keys={"k": {keyed}}) == one("key of another task", "k")


# --- everything there is ---


def test_a_task_that_nobody_sent_is_found(stores):
    ids = [stores.history.task("succeeded", SUCCESS) for _ in range(2)]
    assert stores.judge(doubtful=2) == {}
    assert stores.judge(ids[0], doubtful=0) == one("unexpected", ids[1])
    assert stores.judge(doubtful=1)["unexpected"][0] == 1


def test_a_key_explains_its_task(stores, keyed):
    assert stores.judge(doubtful=0, keys={"k": set()}) == {}
    assert stores.judge(doubtful=0, keys={}) == one("unexpected", keyed)


def test_a_task_that_no_answer_named_is_judged_with_the_others(stores):
    open_ = stores.history.task("queued")
    assert stores.judge() == {}
    assert stores.judge(doubtful=1) == one("not ended", open_) | one("not in one place", open_)


def test_what_no_row_knows_in_redis_is_found(stores):
    stores.put(STRANGER, "q:low")
    assert stores.judge() == {}
    assert stores.judge(doubtful=0) == one("left in Redis", STRANGER)


# --- moves ---


@pytest.fixture
def journalled(postgres_url, redis_url):
    """Stores whose Postgres writes down every move."""
    journal.install(postgres_url)
    with redis.Redis.from_url(redis_url) as client:
        yield Stores(History(postgres_url), client, postgres_url, redis_url)


MOVE = "UPDATE tasks SET status = %s, finished_at = finished_at + interval '1 s' WHERE id = %s"
REVIVE = (
    "UPDATE tasks SET status = 'queued', finished_at = NULL, dead_at = NULL, dead_reason = NULL,"
    " redrives = %s WHERE id = %s"
)


def test_a_move_that_no_rule_allows_is_found(journalled):
    id_ = journalled.history.task("succeeded", SUCCESS)
    assert journalled.judge(id_) == {}
    journalled.history.execute(MOVE, "cancelled", id_)
    journalled.history.execute(MOVE, "succeeded", id_)
    assert journalled.judge(id_) == one("moved against the rules", id_)


def test_a_second_end_is_found_though_the_row_does_not_show_it(journalled):
    id_ = journalled.history.task("succeeded", SUCCESS)
    journalled.history.execute(MOVE, "succeeded", id_)
    assert journalled.judge(id_) == one("moved against the rules", id_)


@pytest.mark.parametrize(("redrives", "found"), [(1, False), (0, True)])
def test_a_dead_task_comes_back_by_a_redrive_alone(journalled, redrives, found):
    id_ = journalled.history.task("dead", Run("failed", 1, 1, 2), reason="failed", max_retries=0)
    journalled.history.execute(REVIVE, redrives, id_)
    assert ("moved against the rules" in journalled.judge(id_)) is found


def test_attempts_rise_by_one_with_each_claim(journalled):
    id_ = journalled.history.task("succeeded", SUCCESS)
    journalled.history.execute("UPDATE tasks SET attempts = attempts + 1 WHERE id = %s", id_)
    assert journalled.judge(id_)["moved against the rules"] == (1, (id_,))


def test_the_journal_may_be_installed_twice(journalled):
    journal.install(journalled.postgres_url)
    journalled.history.execute(MOVE, "succeeded", journalled.history.task("succeeded", SUCCESS))
