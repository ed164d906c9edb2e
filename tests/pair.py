"""Two of everything: real servers, and the reference; what is done to one is done to the other.

    pair.tick()                                              # a second passes for both,
    leases = pair.do(lambda side: side.lessor.take(3))       # each does the same; the answers must agree,
    pair.compare()                                           # and then all that they hold

The reference's clock moves by whole seconds at each `tick` and stands still between. On the servers every
stored instant is moved by what that clock has gained on theirs, so that to both it is the same moment.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import postgres_tables
from comparison import moved_tables, plain, plain_contents
from fix_shards import ServerInspector, moved
from fix_store import Database
from reference import Contents
from reference_index import ReferenceIndex
from reference_store import ReferenceStore

from scheduler.config import Settings
from scheduler.held import Held
from scheduler.lease import Lessor
from scheduler.metrics import Metrics
from scheduler.pump import Pump
from scheduler.reaper import Reaper
from scheduler.reconcile import Reconciler
from scheduler.store import Store

METRICS = Metrics()
QUEUE = "default"

LATEST_MS = 400
"""How long after a tick an answer still counts: what is half a second away must not have come meanwhile."""

_STEP_MS = 500
"""The reference's instants are whole multiples of it apart, but for what a script makes of "at once"."""

_SHIFT = """
local ms, since, step = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
for _, key in ipairs(KEYS) do
  if redis.call('TYPE', key).ok == 'zset' then
    local found = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    for i = 1, #found, 2 do
      -- Two calls of one moment are some milliseconds apart here. Where the reference has a tie, which goes
      -- by the id, they must tie here, too. (The server's own milliseconds are cut off: hence the margin.)
      local steps = math.floor((found[i + 1] - since + 20) / step)
      redis.call('ZADD', key, 'XX', since + steps * step + ms, found[i])
    end
  end
end
for _, field in ipairs({'s1', 's2', 's3', 's4'}) do
  local unserved = tonumber(redis.call('HGET', KEYS[15], field) or 0)
  if unserved > 0 then
    redis.call('HSET', KEYS[15], field, unserved + ms)
  end
end
"""

_SHIFT_SQL = """
UPDATE tasks SET created_at = created_at + d, due_at = due_at + d, claimed_at = claimed_at + d,
    lease_expires_at = lease_expires_at + d, finished_at = finished_at + d, dead_at = dead_at + d,
    redriven_at = redriven_at + d
FROM (SELECT interval '{ms} ms') AS by (d);
UPDATE task_runs SET claimed_at = claimed_at + d, started_at = started_at + d, finished_at = finished_at + d,
    late_at = late_at + d
FROM (SELECT interval '{ms} ms') AS by (d);
UPDATE idempotency_keys SET expires_at = expires_at + interval '{ms} ms';
UPDATE workers SET started_at = started_at + d, seen_at = seen_at + d, polled_at = polled_at + d,
    alive_until = alive_until + d
FROM (SELECT interval '{ms} ms') AS by (d);
UPDATE leaders SET expires_at = expires_at + interval '{ms} ms'
"""


@dataclass(eq=False)
class Side:
    """One of the two: its stores, and the product's own parts over them."""

    store: Any
    index: Any
    lessor: Lessor
    reaper: Reaper
    pump: Pump
    reconciler: Reconciler

    @classmethod
    def over(cls, store: Any, index: Any, settings: Settings, worker: str) -> Side:
        reaper = Reaper(store, index, METRICS, [QUEUE], batch=100, max_losses=settings.max_losses)
        return cls(
            store,
            index,
            Lessor(store, index, settings, METRICS, worker=worker, held=Held()),
            reaper,
            Pump(index, [QUEUE], batch=100),
            Reconciler(store, index, settings, METRICS, holder=worker),
        )

    @property
    def shard(self) -> Any:
        return self.index.shard(QUEUE)


class Pair:
    """The real side and the reference. Both begin empty, at the present moment."""

    def __init__(
        self,
        run: Callable[[Awaitable[Any]], Any],
        store: Store,
        inspector: ServerInspector,
        db: Database,
        settings: Settings,
        worker: str,
    ) -> None:
        self._run = run
        self._inspector = inspector
        self._db = db
        store._known_queues.clear()
        db.clear()
        run(inspector.write(Contents()))
        self.now_ms = int(postgres_tables.now_ms(db))
        self._postgres_ms, self._redis_ms = float(self.now_ms), run(inspector.now_ms())
        self.tables = ReferenceStore(lambda: self.now_ms)
        self.memory = ReferenceIndex(lambda: self.now_ms)
        self.memory.shard(QUEUE)
        self.real = Side.over(store, inspector.index, settings, worker)
        self.twin = Side.over(self.tables, self.memory, settings, worker)
        self.steps = self.compared = 0
        self._run_id = run(inspector.index.run_id())
        self.memory.run_id = self._same_run_id  # type: ignore[method-assign] # a server's name is its own

    async def _same_run_id(self) -> str:
        return self._run_id

    @property
    def held(self) -> Contents:
        """What the reference's shard holds."""
        return self.memory.shard(QUEUE).held

    def tick(self, seconds: int = 1) -> None:
        """Let time pass."""
        self.now_ms += 1000 * seconds
        now_ms = postgres_tables.now_ms(self._db)
        passed, self._postgres_ms = now_ms - self._postgres_ms, now_ms
        self._db.rows(_SHIFT_SQL.format(ms=passed - 1000 * seconds))
        now_ms = self._run(self._inspector.now_ms())
        passed, since, self._redis_ms = now_ms - self._redis_ms, self._redis_ms, now_ms
        names = self.real.shard.names
        values = (passed - 1000 * seconds, since, _STEP_MS)
        self._run(self._inspector.client.eval(_SHIFT, len(names), *names, *values))

    def do(self, what: Callable[[Side], Awaitable[Any]]) -> Any:
        """One operation on both sides; the reference's answer, which the other must agree with.

        If the machine was too busy for the answer to come in time, it says nothing, and the servers are made
        to hold what the reference holds.
        """
        expected = self._run(what(self.twin))
        answer = self._run(what(self.real))
        self.steps += 1
        if postgres_tables.now_ms(self._db) - self._postgres_ms > LATEST_MS:
            self._catch_up()
        else:
            self.compared += 1
            _same(plain(answer, self._postgres_ms), plain(expected, self.now_ms))
        return expected

    def _catch_up(self) -> None:
        tables = moved_tables(deepcopy(self.tables.held), self._postgres_ms - self.now_ms)
        postgres_tables.write(self._db, tables)
        self.put(self.held)

    def put(self, held: Contents) -> None:
        """Make both shards hold this, whatever they held."""
        self.memory.shard(QUEUE).held = deepcopy(held)
        self._run(self._inspector.write(moved(held, self._redis_ms - self.now_ms)))

    def real_only(self, what: Callable[[Side], Awaitable[Any]]) -> None:
        """Something that only a server can be told."""
        self._run(what(self.real))

    def compare(self) -> None:
        """Both sides hold the same rows and the same ids."""
        found = self._run(self._inspector.read())
        _same(plain_contents(found, self._redis_ms), plain_contents(self.held, self.now_ms))
        tables = postgres_tables.read(self._db)
        _same(plain(tables, self._postgres_ms), plain(self.tables.held, self.now_ms))


def _same(real: Any, reference: Any, where: str = "") -> None:
    """Fail, naming the first place in which the two differ."""
    if isinstance(real, dict) and isinstance(reference, dict):
        for key in sorted({*real, *reference}, key=str):
            _same(real.get(key, "nothing"), reference.get(key, "nothing"), f"{where} {key}")
    elif real != reference:
        raise AssertionError(f"{where}: the server says {real!r}, the reference {reference!r}")
