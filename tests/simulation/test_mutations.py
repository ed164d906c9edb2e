"""The simulation can see: with one guard taken away, some of the first seeds break something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from reference import Reference
from reference_store import ReferenceStore
from reference_tables import Row
from simulation.plan import ALL, CALM, FORGETFUL, plan
from simulation.run import simulate

from scheduler.errors import StoreError
from scheduler.heartbeat import Heartbeat
from scheduler.model import Lease, Move, Priority, Settlement
from scheduler.pump import Pump
from scheduler.reaper import Reaper
from scheduler.reconcile import Reconciler
from scheduler.settle import Settler
from scheduler.shard import Census
from scheduler.store import Epoch

SEEDS = 600
"""The rarest of them, an old state that nobody notices, first shows at seed 474."""
Patch = pytest.MonkeyPatch
Mutation = Callable[[Patch], None]


def settle_without_the_attempt(patch: Patch) -> None:
    """Whoever settles a running task settles it, whatever attempt it is on."""

    def held_row(self: ReferenceStore, lease: Lease) -> Row | None:
        row = self.held.tasks.get(lease.id)
        return row if row and row.status == "running" else None

    patch.setattr(ReferenceStore, "held_row", held_row)


def reap_without_the_lease(patch: Patch) -> None:
    """Whatever runs is reaped as soon as Redis says that it has expired."""
    patch.setattr(ReferenceStore, "lapsed", lambda _, row: row.status == "running")


def no_reconcile(patch: Patch) -> None:
    async def step(self: Reconciler) -> None:
        return None

    patch.setattr(Reconciler, "step", step)


def no_reaper(patch: Patch) -> None:
    async def step(self: Reaper) -> bool:
        return False

    patch.setattr(Reaper, "step", step)


def no_pump(patch: Patch) -> None:
    async def step(self: Pump) -> bool:
        return False

    patch.setattr(Pump, "step", step)


def no_renewal(patch: Patch) -> None:
    async def renew(self: Heartbeat, store: Any) -> None:
        return None

    patch.setattr(Heartbeat, "_renew", renew)


def push_what_is_known(patch: Patch) -> None:
    """A push adds an id that Redis holds already."""
    push = Reference.push

    async def blind(self: Reference, entries: list[tuple[str, Priority, int]]) -> int:
        for id_, _, _ in entries:
            self.held.live.pop(id_, None)
        return await push(self, entries)

    patch.setattr(Reference, "push", blind)


def place_without_the_token(patch: Patch) -> None:
    """An id is moved whoever holds it, or nobody."""
    place = Reference._place

    def blind(self: Reference, move: Move) -> bool:
        self.held.live[move.id] = move.token
        return place(self, move)

    patch.setattr(Reference, "_place", blind)


def settle_once(patch: Patch) -> None:
    """A settle without an answer is not sent again."""

    async def record(self: Settler, batch: list[Settlement]) -> list[Settlement]:
        try:
            settled = await self._store.settle(batch, worker=self._worker)
        except StoreError:
            return []
        return [s for s in batch if s.lease.id in settled]

    patch.setattr(Settler, "_record", record)


def settle_forgetful(patch: Patch) -> None:
    """A settle that is sent again does not know its own work."""
    patch.setattr(ReferenceStore, "_ended_so", lambda *_: False)


def claim_forgetful(patch: Patch) -> None:
    """A claim that is sent again is refused: what it holds already runs nowhere."""
    claim = ReferenceStore.claim

    async def forgetful(self: ReferenceStore, ids: list[str], **options: Any) -> Any:
        mine = [row.id for row in self._rows(ids) if row.lease_token == options["token"]]
        leases, refusals = await claim(self, ids, **options)
        return [lease for lease in leases if lease.id not in mine], refusals

    patch.setattr(ReferenceStore, "claim", forgetful)


def no_census(patch: Patch) -> None:
    """Nobody notices that a key was lost."""

    async def census(self: Reference) -> Census:
        return Census(whole=True, epoch=self.held.epoch)

    patch.setattr(Reference, "census", census)


def no_epoch(patch: Patch) -> None:
    """Nobody notices that Redis has come back with an old state."""

    async def epochs(self: ReferenceStore) -> list[Epoch]:
        return [Epoch(queue, 0, "") for queue in await self.queues()]

    patch.setattr(ReferenceStore, "epochs", epochs)


MUTATIONS = [
    (settle_without_the_attempt, {"stall"}, ALL),
    (reap_without_the_lease, set(), ALL),
    (no_reconcile, {"flush"}, ALL),
    (no_reaper, {"crash"}, ALL),
    (no_pump, set(), ALL),
    (no_renewal, set(), ALL),
    (push_what_is_known, {"late"}, ALL),
    (place_without_the_token, {"stall"}, ALL),
    (settle_once, {"refused"}, CALM),
    (settle_forgetful, {"lost"}, CALM),
    (claim_forgetful, {"lost"}, CALM),
    (no_census, {"evict"}, ALL),
    (no_epoch, {"flush"}, FORGETFUL),
]
"""Each with the trouble that it takes to show, and with what else there may be beside."""


@pytest.mark.parametrize(("mutation", "takes", "beside"), MUTATIONS, ids=[m[0].__name__ for m in MUTATIONS])
def test_a_missing_guard_shows(
    monkeypatch: Patch, mutation: Mutation, takes: set[str], beside: tuple[str, ...]
):
    mutation(monkeypatch)
    seeds = (seed for seed in range(SEEDS) if takes <= plan(seed).kinds <= set(beside))
    assert any(simulate(seed).broken for seed in seeds)
