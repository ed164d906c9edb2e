"""What must hold when all has come to rest, whatever happened before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from reference_tables import Ended, Row
from simulation.plan import Order
from simulation.world import World

from scheduler.lifecycle import TERMINAL, most_losses


def violations(world: World) -> Iterator[str]:
    """Everything that is wrong, in words."""
    tables = world.store.held
    yield from _accepted(world)
    for row in tables.tasks.values():
        history = tables.history(row.id)
        for why in (*_ended(row), *_counted(row, history), *_ran(world, row, history)):
            yield f"{row.id}: {why} ({row}, {[(run.attempt, run.outcome) for run in history]})"
        order = world.accepted.get(row.id)
        if world.plan.calm and order:
            yield from (f"{row.id}: {why}" for why in _calm(world, order, row, history))
    yield from _index(world)
    yield from _workers(world)


def _accepted(world: World) -> Iterator[str]:
    rows = set(world.store.held.tasks)
    if missing := set(world.accepted) - rows:
        yield f"accepted and lost: {sorted(missing)}"
    if more := rows - set(world.accepted) - world.unclear:
        yield f"nobody sent {sorted(more)}"
    for key, ids in world.answered.items():
        if len(ids) > 1:
            yield f"the key {key} named {sorted(ids)}"


def _ended(row: Row) -> Iterator[str]:
    if row.status not in TERMINAL:
        yield "has not ended"
    if (row.status in TERMINAL) != (row.finished_at is not None) or (row.status == "running") != bool(
        row.worker
    ):
        yield "is a row that the schema refuses"
    if row.failures > row.max_retries + 1:
        yield "failed more often than its budget allows"


def _counted(row: Row, history: list[Ended]) -> Iterator[str]:
    """Attempts and runs agree; one success at most, and nothing after it."""
    outcomes = Counter(run.outcome for run in history)
    if [run.attempt for run in history] != list(range(1, row.attempts + 1)):
        yield "has attempts without a run, or runs without an attempt"
    if outcomes["succeeded"] != (row.status == "succeeded") or outcomes["cancelled"] > (
        row.status == "cancelled"
    ):
        yield "has a status that its runs do not bear out"
    if row.status == "succeeded" and history[-1].outcome != "succeeded":
        yield "ran again after its success"
    failures, losses = outcomes["failed"] + outcomes["timed_out"], outcomes["lost"]
    if row.redrives == 0 and (row.failures, row.losses) != (failures, losses):
        yield "counts other failures or losses than it had"
    if row.failures > failures or row.losses > losses:
        yield "counts more failures or losses than it had"


def _ran(world: World, row: Row, history: list[Ended]) -> Iterator[str]:
    """Each attempt called a handler once at most, and each success is one of a call that came to its end."""
    max_losses = world.plan.settings.max_losses
    most = most_losses(max_losses) if row.suspect else max_losses
    paid = sum(run.outcome == "lost" and run.error != "the worker died" for run in history)
    if row.losses > most + 1 or paid > (row.redrives + 1) * (max_losses + 1):
        yield "was lost more often than its budget allows"
    for run in history:
        call = (row.id, run.attempt)
        if world.started[call] > 1:
            yield f"attempt {run.attempt} was started {world.started[call]} times"
        if run.outcome == "succeeded" and call not in world.finished:
            yield f"attempt {run.attempt} succeeded and never finished"


def _calm(world: World, order: Order, row: Row, history: list[Ended]) -> Iterator[str]:
    """Nothing happened by which a run may be lost, so none was, and the task ended as its script says."""
    if row.losses or any(run.outcome == "lost" for run in history):
        yield "a run was lost, and nothing had happened to it"
    if row.id in world.cancelled:
        return
    if any(run.late_outcome for run in history):
        yield "an outcome came late, and nothing had happened to its lease"
    for run in history:
        if (row.id, run.attempt) in world.finished and run.outcome != "succeeded":
            yield f"attempt {run.attempt} did its work and was {run.outcome}"
    if not row.redrives and order.type != "rare" and (row.status, row.dead_reason) != _scripted(order):
        yield f"ended as {row.status} ({row.dead_reason}), and its script says {_scripted(order)}"


def _scripted(order: Order) -> tuple[str, str | None]:
    """How a task ends by its script alone."""
    fails = order.script["fails"]
    if order.timeout_ms and order.script["ms"] > order.timeout_ms:
        return "dead", "timed_out"
    if fails and order.script["how"] == "reject":
        return "dead", "rejected"
    return ("dead", "failed") if fails > order.max_retries else ("succeeded", None)


def _index(world: World) -> Iterator[str]:
    """Redis holds nothing but the dead letters, and these as the rows say."""
    for queue, shard in world.index.shards.items():
        if shard.held.live or any(shard.held.places()):
            yield f"Redis still holds {sorted({*shard.held.live, *shard.held.places()})} in {queue}"
    if world.shown_dead() != world.dead():
        yield f"shown as dead are {sorted(world.shown_dead())}, and dead are {sorted(world.dead())}"


def _workers(world: World) -> Iterator[str]:
    for program in world.workers:
        if not program.dead and program.worker and (len(program.worker._held) or program.worker.leftover):
            yield f"{program.name} has stopped and still holds leases"
