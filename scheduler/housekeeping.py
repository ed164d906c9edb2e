"""Housekeeping: history partitions made ahead, expired keys forgotten, finished tasks pruned."""

from __future__ import annotations

from typing import Final

from scheduler import log
from scheduler.config import Settings
from scheduler.store import FIRST_ID, Store

DAYS_AHEAD: Final = 7
_PAGE: Final = 1000
_PAGES_A_PASS: Final = 200
_WORKERS_KEPT_MS: Final = 3_600_000


class Housekeeper:
    """Led by one process at a time, so that the work is done once; correct with any number."""

    def __init__(self, store: Store, settings: Settings, *, holder: str) -> None:
        self._store = store
        self._settings = settings
        self._holder = holder
        self._log = log.get("housekeeping")

    async def step(self) -> None:
        """One pass, in pages: no statement holds locks on more than a page of rows."""
        ttl_ms = max(2 * self._settings.housekeeping_interval_ms, 60_000)
        if not await self._store.lead("housekeeping", self._holder, ttl_ms=ttl_ms):
            return
        made = await self._store.make_partitions(DAYS_AHEAD)
        expired = await self._expire_keys()
        pruned = await self._prune()
        dropped = await self._store.drop_old_partitions(keep_ms=self._settings.retention_ms)
        await self._store.prune_workers(keep_ms=_WORKERS_KEPT_MS)
        if made or expired or pruned or dropped:
            self._log.info("kept house", days_made=made, keys=expired, tasks=pruned, days_dropped=dropped)

    async def _expire_keys(self) -> int:
        total = 0
        for _ in range(_PAGES_A_PASS):
            expired = await self._store.expire_keys(page=_PAGE)
            total += expired
            if expired < _PAGE:
                break
        return total

    async def _prune(self) -> int:
        total = 0
        after = FIRST_ID
        for _ in range(_PAGES_A_PASS):
            last, pruned = await self._store.prune_tasks(
                after, keep_ms=self._settings.retention_ms, page=_PAGE
            )
            total += pruned
            if last is None:
                break
            after = last
        return total
