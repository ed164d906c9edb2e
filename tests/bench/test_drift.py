"""The live audit: what moves is no offence, what stays in the wrong place is, and Prometheus is told."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from fix_process import environment
from history import History, Run

from bench import drift, index
from bench.drift import MEANINGS, Exporter, audit_live
from bench.receipts import LoadResult, Receipt, write_ledger
from scheduler import keys

PREFIX = "sched1"
NAMES = dict(zip(keys.NAMES, keys.shard_keys(PREFIX, "default"), strict=True))
PAST, FUTURE = 1, 4_000_000_000_000
SUCCESS = Run("succeeded", 1, 1, 2)
LONG_AGO = {"finished_at": "2020-01-01"}
STRANGER = "00000000-0000-7000-8000-00000000ffff"
ROOT = Path(__file__).parents[2]
RUNNING = {"worker": "w", "lease_token": "t", "attempts": 1}


@dataclass
class Stores:
    """Two stores to plant something in, and looks at them."""

    history: History
    redis: redis.Redis
    connection: Any

    def look(self) -> drift.Look:
        return drift.look(self.connection, self.redis, PREFIX)

    def queued(self, id_: str) -> None:
        self.redis.rpush(NAMES["q:low"], id_)
        self.redis.hset(NAMES["live"], id_, "")

    def leased(self, id_: str, deadline: int, token: str = "t") -> None:
        self.redis.zadd(NAMES["leases"], {id_: deadline})
        self.redis.hset(NAMES["live"], id_, token)

    def running(self, *, lapsed: bool) -> str:
        id_ = self.history.task(
            "running",
            **RUNNING,
            lease_expires_at="2020-01-01" if lapsed else "2035-01-01",
            claimed_at="2020-01-01",
        )
        self.leased(id_, FUTURE)
        return id_


@pytest.fixture(scope="module")
def database(servers):
    with servers.database() as url:
        yield url


@pytest.fixture
def stores(database, redis_url):
    history = History(database)
    with index.connected(redis_url) as client, psycopg.connect(database, autocommit=True) as connection:
        yield Stores(history, client, connection)


def adrift(first: drift.Look, second: drift.Look) -> dict[str, list[str]]:
    return {kind: ids for kind, ids in drift.drift(first, second).items() if ids}


def test_a_system_in_order_is_not_adrift(stores):
    stores.queued(stores.history.task("queued"))
    stores.running(lapsed=False)
    dead = stores.history.task("dead", Run("failed", 1, 1, 2), reason="failed", max_retries=0)
    stores.redis.zadd(NAMES["dlq:low"], {dead: 1})
    stores.history.task("succeeded", SUCCESS)
    assert adrift(stores.look(), stores.look()) == {}


def test_what_is_missing_at_both_looks_is_adrift(stores):
    id_ = stores.history.task("queued")
    first = stores.look()
    assert adrift(first, stores.look()) == {"missing": [id_]}
    stores.queued(id_)
    assert adrift(first, stores.look()) == {}


def test_what_has_moved_meanwhile_is_on_its_way(stores):
    id_ = stores.history.task("queued")
    first = stores.look()
    stores.history.execute("UPDATE tasks SET attempts = 1 WHERE id = %s", id_)
    assert adrift(first, stores.look()) == {}


def test_a_task_in_two_places_is_adrift_at_one_look(stores):
    id_ = stores.history.task("queued")
    stores.queued(id_)
    sound = stores.look()
    stores.redis.zadd(NAMES["retry:low"], {id_: FUTURE})
    assert adrift(sound, stores.look()) == {"two_places": [id_]}
    assert adrift(stores.look(), sound) == {"two_places": [id_]}


def test_a_lease_that_nobody_reaps_is_adrift(stores):
    id_ = stores.running(lapsed=True)
    first = stores.look()
    assert adrift(first, stores.look()) == {"lapsed": [id_]}
    stores.history.execute("UPDATE tasks SET attempts = 2 WHERE id = %s", id_)
    assert adrift(first, stores.look()) == {}


def test_a_lease_in_redis_that_nobody_looks_after_is_adrift(stores):
    id_ = stores.history.task("succeeded", SUCCESS)
    stores.leased(id_, PAST)
    first = stores.look()
    assert adrift(first, stores.look()) == {"unreaped": [id_]}
    stores.leased(id_, PAST, token="another")
    assert adrift(first, stores.look()) == {}


def test_dead_letters_that_stay_different_are_adrift(stores):
    dead = stores.history.task("dead", Run("failed", 1, 1, 2), reason="failed", max_retries=0)
    alive = stores.history.task("succeeded", SUCCESS)
    stores.redis.zadd(NAMES["dlq:low"], {alive: 1})
    first = stores.look()
    assert adrift(first, stores.look()) == {"dead_letters": sorted([dead, alive])}
    stores.redis.zadd(NAMES["dlq:low"], {dead: 1})
    assert adrift(first, stores.look()) == {"dead_letters": [alive]}


@pytest.mark.parametrize("place", ["retry:low", "leases"])
@pytest.mark.parametrize("whose", ["ended", STRANGER, "no id at all"])
def test_what_is_left_of_a_task_that_is_not_open_is_adrift(stores, place, whose):
    done = stores.history.task("succeeded", SUCCESS, **LONG_AGO)
    id_ = done if whose == "ended" else whose
    first = stores.look()
    stores.redis.zadd(NAMES[place], {id_: FUTURE})
    stores.redis.hset(NAMES["live"], id_, "t" if place == "leases" else "")
    assert adrift(first, stores.look()) == {}
    assert adrift(stores.look(), stores.look()) == {"left": [id_]}


def test_a_cancelled_id_may_wait_in_its_list(stores):
    stores.queued(stores.history.task("cancelled", **LONG_AGO))
    assert adrift(stores.look(), stores.look()) == {}


@pytest.mark.parametrize(("ahead_s", "left"), [(drift.LEASE_S - 1, False), (drift.LEASE_S + 1, True)])
def test_a_lease_may_outlive_its_cancelled_run_and_no_other_may_begin(stores, ahead_s, left):
    id_ = stores.history.task("cancelled", Run("cancelled", 1, 1, 2))
    stores.history.execute("UPDATE tasks SET finished_at = now() WHERE id = %s", id_)
    stores.leased(id_, int(1000 * (stores.redis.time()[0] + ahead_s)))
    assert adrift(stores.look(), stores.look()) == ({"left": [id_]} if left else {})


def test_a_task_that_comes_during_a_look_is_not_left(stores, monkeypatch):
    def late(client: Any, prefix: str) -> index.Index:
        if not stores.history.ids:
            stores.running(lapsed=False)
        return real(client, prefix)

    real = index.look
    monkeypatch.setattr(index, "look", late)
    look = stores.look()
    assert (len(look.index.leased), look.open, look.left) == (1, {}, frozenset())


def test_the_document_tells_every_kind():
    text = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", text.partition("## Drift")[2], re.MULTILINE))
    assert rows == MEANINGS


# --- the command ---


@pytest.fixture
def bench(here):
    """Run `bench audit` on the two stores of the test."""

    def run(*words: str, **variables: str):
        return subprocess.run(
            [sys.executable, "-m", "bench", "audit", *words],
            env=environment(**here | variables),
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    return run


@pytest.fixture
def planted(postgres_url, redis_url):
    """The stores of `bench`, with one task that is open and in its place, and one that ended well."""
    history = History(postgres_url)
    with redis.Redis.from_url(redis_url) as client:
        made = Stores(history, client, None)
        made.queued(history.task("queued"))
        history.task("succeeded", SUCCESS)
        yield made


def given(*answers: tuple[str, str]) -> LoadResult:
    """What a load brought back that was given these ids, each for its key."""
    receipts = [Receipt(id_, n, 0, 0, 0, key=key) for n, (id_, key) in enumerate(answers)]
    return LoadResult(len(answers), 0, receipts)


def test_open_tasks_are_no_offence_on_a_live_system(planted, postgres_url, redis_url):
    assert audit_live(postgres_url, redis_url, planted.history.ids, gap_s=0.1).passed
    verdict = audit_live(postgres_url, redis_url, None, gap_s=0.1)
    assert verdict.passed
    assert verdict.accepted == 2
    planted.history.task("queued")
    verdict = audit_live(postgres_url, redis_url, None, gap_s=0.1)
    assert [c.name for c in verdict.offences] == ["missing"]


def test_the_command_judges_a_ledger_and_a_live_system(planted, bench, tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    receipt = {
        "id": planted.history.ids[0],
        "place": 0,
        "intended": 0,
        "sent": 0,
        "answered": 0,
        "replay": False,
    }
    ledger.write_text(json.dumps(receipt) + "\n")
    done = bench(str(ledger), "--json")
    assert done.returncode == 1, done
    verdict = json.loads(done.stdout)
    assert not verdict["passed"]
    assert [c["name"] for c in verdict["checks"] if c["offenders"]] == ["not ended"]
    done = bench(str(ledger), "--live", "--gap", "0.1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("audit passed: 1 accepted, 1 queued")


def test_the_command_tells_a_key_that_was_answered_with_two_tasks(planted, bench, tmp_path):
    ids = [planted.history.task("succeeded", SUCCESS, idempotency_key="k") for _ in range(2)]
    write_ledger(given((ids[0], "k"), (ids[0], "k"), (ids[1], "k")), tmp_path / "ledger.csv")
    done = bench(str(tmp_path / "ledger.csv"), "--json")
    found = {c["name"]: c["examples"] for c in json.loads(done.stdout)["checks"] if c["offenders"]}
    assert found == {"key with two rows": ["k"], "key with two answers": ["k"]}


def test_the_command_finds_rows_that_no_request_explains(planted, bench, tmp_path):
    planted.history.execute("DELETE FROM tasks WHERE finished_at IS NULL")
    planted.redis.flushdb()
    strangers = [planted.history.task("succeeded", SUCCESS) for _ in range(8)]
    ledger = tmp_path / "ledger.jsonl"
    write_ledger(given((planted.history.ids[1], "")), ledger)
    assert bench(str(ledger), "--doubtful", "8").returncode == 0
    done = bench(str(ledger), "--doubtful", "1")
    assert done.returncode == 1
    assert done.stdout.splitlines()[1].startswith("  unexpected: 7 (a task that nobody sent) ")
    assert done.stdout.splitlines()[1].endswith(" and 2 more")
    done = bench(str(ledger), "--doubtful", "0", "--json")
    [found] = [c for c in json.loads(done.stdout)["checks"] if c["offenders"]]
    assert sorted(found["examples"]) == strangers


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--live", "--doubtful", "1"), "with --live leave it out"),
        ((), "name the ledger"),
        (("--live", "--metrics-addr", ":0"), "--metrics-addr needs --watch"),
        (("no such file",), "the ledger cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(bench, words, said):
    done = bench(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_store_that_is_away_is_said_in_one_line(bench):
    done = bench("--live", POSTGRES_URL="postgres://app:hunter2@127.0.0.1:1/app")
    assert done.returncode == 2
    assert "a store cannot be asked" in done.stderr
    assert "hunter2" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


# --- Prometheus ---


def test_the_exporter_shows_every_kind():
    exporter = Exporter()
    exporter.show({"missing": ["a", "b"], "lapsed": []})
    with exporter.serving("127.0.0.1", 0) as port:
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            page = answer.read().decode()
    assert 'scheduler_drift{kind="missing"} 2.0' in page
    for kind in MEANINGS.keys() - {"missing"}:
        assert f'scheduler_drift{{kind="{kind}"}} 0.0' in page


def test_watching_tells_what_is_adrift_and_shows_it(planted, here):
    missing = planted.history.task("queued")
    words = ["audit", "--live", "--watch", "0.2", "--metrics-addr", "127.0.0.1:0"]
    watching = subprocess.Popen(
        [sys.executable, "-m", "bench", *words],
        env=environment(**here),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        port = watching.stdout.readline().split()[-1]
        assert watching.stdout.readline() == f"missing: 1 ({MEANINGS['missing']}) {missing}\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            assert 'scheduler_drift{kind="missing"} 1.0' in answer.read().decode()
    finally:
        watching.kill()
        watching.communicate()
