"""The machine finds no difference between servers and reference, and would find one."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence

import pytest
import redis.asyncio
import structlog
from fix_servers import SYSTEM, WHEEL, Servers
from fix_shards import ServerInspector
from fix_store import Database
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from pair import Pair
from properties.machine import ME, SETTINGS, Machine

from scheduler import config, log, queue, reconcile, store
from scheduler.errors import StoreError
from scheduler.lease import Lessor
from scheduler.model import Refusal
from scheduler.queue import Index, Script, Shard
from scheduler.store import Store


@pytest.fixture
def machine(
    request: pytest.FixtureRequest, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> Iterator[type[Machine]]:
    """The machine on the servers of a kind."""
    # Rows are made at whole seconds, so they must not become old at one.
    monkeypatch.setattr(reconcile, "_GRACE_MS", 1250)
    monkeypatch.setattr(log, "get", lambda *_, **__: structlog.testing.CapturingLogger())
    with servers.database(request.param) as postgres_url, asyncio.Runner() as runner:
        redis_url = servers.empty_redis(request.param)
        used, _ = config.load({"POSTGRES_URL": postgres_url, "REDIS_ADDR": redis_url})
        database = Database(postgres_url)
        store = runner.run(Store.open(used, name="test", max_conns=2))
        index = Index.open(used, name="test")
        client = redis.asyncio.Redis.from_url(redis_url, decode_responses=True, protocol=2)
        inspector = ServerInspector(index, client)
        pairs: list[Pair] = []

        class Bound(Machine):
            def make(self) -> Pair:
                pairs.append(Pair(runner.run, store, inspector, database, SETTINGS, ME))
                return pairs[-1]

        yield Bound
        runner.run(store.close())
        runner.run(index.close())
        runner.run(client.aclose())
        database.close()
    assert sum(pair.compared for pair in pairs) > sum(pair.steps for pair in pairs) / 2


def run(machine: type[Machine], examples: int, phases: tuple[Phase, ...] = tuple(Phase)) -> None:
    """The same examples at each run."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            phases=phases,
            stateful_step_count=40,
            report_multiple_bugs=False,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("machine", [WHEEL], indirect=True)
def test_servers_and_reference_go_the_same_way(machine: type[Machine]):
    run(machine, 12)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("machine", [WHEEL, SYSTEM], indirect=True)
def test_servers_and_reference_go_the_same_way_for_long(machine: type[Machine]):
    run(machine, 80)


FAULTS = {
    "push adds what is known": ("push.lua", "if not known[i] and not seen[id]", "if not seen[id]"),
    "push leaves dead letters": ("push.lua", "redis.call('ZREM', KEYS[8 + p], unpack(revived[p]))", ""),
    "adopt without a look at live": ("adopt.lua", "if not known[i] and not seen[id]", "if not seen[id]"),
    "place without the token": ("place.lua", "if owners[i] == group.token", "if owners[i]"),
    "give back in the wrong order": ("place.lua", "reversed(ids))", "unpack(ids))"),
    "the reaper keeps ownerless entries": (
        "expired.lua",
        "redis.call('ZREM', leases, unpack(ownerless))",
        "",
    ),
    "pump drops ids": ("pump.lua", "redis.call('RPUSH', KEYS[p], unpack(due[p]))", ""),
    "dead letters shown blindly": ("dlq_add.lua", "if not known[i] then", "if true then"),
    "census without a count": (
        "census.lua",
        "redis.call('UNLINK', unpack(KEYS))\nreturn {0}",
        "return {1, current}",
    ),
    "claim before it is due": ("claim.sql", "AND t.due_at <= now()", ""),
    "settle without the attempt": ("settle.sql", "AND t.attempts = d.attempt", ""),
    "renew without the attempt": ("renew.sql", "AND t.attempts = d.attempt", ""),
    "cancel what has ended": ("cancel.sql", "AND finished_at IS NULL", ""),
    "reap a lease that runs": ("reap.sql", "AND t.lease_expires_at <= now()", ""),
}
"""By what it does: the file, a piece of its text that occurs there once, and what stands there instead."""


def plant(patch: pytest.MonkeyPatch, file: str, old: str, new: str) -> None:
    """Let the product use a file with another text."""
    script, statement = queue.script, store.statement

    def changed(text: str) -> str:
        assert text.count(old) == 1, f"{file} does not have {old!r} once"
        return text.replace(old, new)

    def planted_script(name: str) -> Script:
        if f"{name}.lua" != file:
            return script(name)
        text = changed(script(name).text)
        return Script(text, hashlib.sha1(text.encode()).hexdigest())

    def planted_statement(name: str, where: str = "") -> str:
        text = statement(name, where)
        return changed(text) if f"{name}.sql" == file else text

    patch.setattr(queue, "script", planted_script)
    patch.setattr(store, "statement", planted_statement)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("machine", [WHEEL], indirect=True)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_machine_finds_a_planted_fault(
    machine: type[Machine], fault: str, monkeypatch: pytest.MonkeyPatch
):
    plant(monkeypatch, *FAULTS[fault])
    with pytest.raises((AssertionError, StoreError), match=r"the server says|Postgres answered 23") as found:
        run(machine, 300, phases=(Phase.generate,))  # it ends with the first that shows it
    print(f"\n{fault}: {str(found.value).splitlines()[0][:200]}")


@pytest.mark.slow
@pytest.mark.parametrize("machine", [WHEEL], indirect=True)
def test_the_machine_finds_a_worker_that_keeps_what_is_forged(
    machine: type[Machine], monkeypatch: pytest.MonkeyPatch
):
    """On both sides, so that it is not by a difference that it is found."""
    put_right = Lessor._put_right

    async def keep(self: Lessor, shard: Shard, refusals: Sequence[Refusal], token: str) -> None:
        await put_right(self, shard, [r for r in refusals if r.reason != "unknown"], token)

    monkeypatch.setattr(Lessor, "_put_right", keep)
    with pytest.raises(AssertionError, match="was not dropped"):
        run(machine, 60, phases=(Phase.generate,))
