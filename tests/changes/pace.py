"""How often the background work is done, how much of it at once, and how long things are kept."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial

from changes.world import World, change
from waiting import eventually

from scheduler.loop import Loop
from scheduler.model import new_id
from scheduler.store import WorkerIdentity

CADENCE = {
    "RETRY_SCAN_INTERVAL_MS": "pump",
    "REAPER_SCAN_INTERVAL_MS": "reaper",
    "RECONCILE_INTERVAL_MS": "reconcile",
    "METRICS_SAMPLE_MS": "sampler",
    "HOUSEKEEPING_INTERVAL_MS": "housekeeping",
}
"""Variable → the loop of a worker whose pause it is."""


async def a_loop_steps_so_often(variable: str, world: World) -> None:
    """While another loop steps every 400 ms, this one does so every 50 ms, and the rest rest."""
    other = next(each for each in CADENCE if each != variable)
    pace = dict.fromkeys(CADENCE, 3_600_000) | {other: 400, variable: 50}
    worker = await world.worker(world.settings(**pace))
    steps = {loop.name: counted(loop) for loop in worker._loops}
    for loop in worker._loops:
        loop.start()
    await eventually(lambda: len(steps[CADENCE[other]]) >= 3)
    await asyncio.gather(*(loop.stop() for loop in worker._loops))
    assert len(steps.pop(CADENCE[variable])) >= 6
    assert len(steps.pop(CADENCE[other])) == 3
    assert [len(rest) for rest in steps.values()] == [1, 1, 1]  # each steps once at the start


def counted(loop: Loop) -> list[None]:
    """Grows by one whenever the loop steps."""
    steps: list[None] = []
    step = loop._step

    async def counting() -> bool | None:
        steps.append(None)
        return await step()

    loop._step = counting
    return steps


for each in CADENCE:
    change(each)(partial(a_loop_steps_so_often, each))


@change("RETRY_BATCH_SIZE")
async def the_pump_moves_so_many_at_once(world: World) -> None:
    shard = (await world.index(world.settings())).shard("default")
    left = []
    for batch in (1, 100):
        await shard.push([(f"id-{i}", "high", 1) for i in range(3)])
        await world.passed(2)  # all are due
        pump = await world.loop(world.settings(RETRY_BATCH_SIZE=batch), "pump")
        await pump._step()
        left.append((await shard.depths()).retry[1])
        await world.forget()
    assert left == [2, 0]


@change("REAPER_BATCH_SIZE")
async def the_reaper_settles_so_many_at_once(world: World) -> None:
    await world.leased(world.settings(VIS_TIMEOUT_MS=100), 3)
    await world.lapsed(3)
    reaped = []
    for batch in (1, 100):
        reaper = await world.loop(world.settings(REAPER_BATCH_SIZE=batch), "reaper")
        await reaper._step()
        reaped.append(world.db.value("SELECT count(*) FROM task_runs WHERE outcome = 'lost'"))
    assert reaped == [1, 3]


def old_id(age_ms: int) -> str:
    """An id of a task that was accepted so long ago."""
    now = new_id()
    ms = int(now[:8] + now[9:13], 16) - age_ms
    return f"{ms >> 16:08x}-{ms & 0xFFFF:04x}{now[13:]}"


@change("RECONCILE_BATCH_SIZE")
async def reconcile_shows_so_many_dead_letters_in_a_pass(world: World) -> None:
    index = await world.index(world.settings())
    shown = {}
    for batch in (1, 1000):
        world.db.rows("INSERT INTO queues (name) VALUES ('default') ON CONFLICT DO NOTHING")
        reconcile = await world.loop(world.settings(RECONCILE_BATCH_SIZE=batch), "reconcile")
        await reconcile._step()  # the first pass of a queue; it gives the index its epoch
        for _ in range(3):
            world.db.put("dead", id=old_id(3_600_000))
        await reconcile._step()
        shown[batch] = sum((await index.shard("default").depths()).dead)
        await world.forget()
    assert shown == {1: 1, 1000: 3}


@change("RETENTION_MS")
async def finished_tasks_are_kept_so_long(world: World) -> None:
    hour = timedelta(hours=1)
    world.db.put("succeeded", id=old_id(3_600_000), finished_at=world.db.value("SELECT now()") - hour)
    kept = []
    for ms in (7_200_000, 1_800_000):
        settings = world.settings(RETENTION_MS=ms, IDEMPOTENCY_TTL_MS=1000)
        housekeeping = await world.loop(settings, "housekeeping")
        await housekeeping._step()
        kept.append(world.db.count("tasks"))
        world.db.rows("DELETE FROM leaders")
    assert kept == [1, 0]


@change("IDEMPOTENCY_TTL_MS")
async def keys_are_remembered_so_long(world: World) -> None:
    for ms in (5_000, 60_000):
        key = {"idempotency_key": f"key {ms}", "fingerprint": "same"}
        [id_] = await world.enqueued(world.settings(IDEMPOTENCY_TTL_MS=ms), **key)
        kept = world.db.value(
            "SELECT expires_at - (SELECT created_at FROM tasks WHERE id = task_id)"
            " FROM idempotency_keys WHERE task_id = %s",
            id_,
        )
        assert kept == timedelta(milliseconds=ms)


@change("MAX_LOSSES")
async def so_many_losses_make_a_dead_letter(world: World) -> None:
    me = WorkerIdentity("host:1:test", "host", 1, ("default",), ("noop",), 1)
    store = await world.store(world.settings())
    for most, status in ((1, "queued"), (0, "dead")):
        await store.beat(me, running=1, polled_ms=0, alive_ms=60_000)  # it lives, so it is the task's fault
        [lease] = await world.leased(world.settings(VIS_TIMEOUT_MS=100))
        await world.lapsed(1)
        reaper = await world.loop(world.settings(MAX_LOSSES=most), "reaper")
        await reaper._step()
        assert world.db.task(lease.id)["status"] == status
        await world.forget()
