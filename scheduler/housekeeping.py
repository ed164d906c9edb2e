"""Housekeeping: history partitions made ahead, expired keys forgotten, finished tasks pruned."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from scheduler import log
from scheduler.config import Settings
from scheduler.errors import StoreUnavailable
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
        self._pruned_up_to = FIRST_ID
        self._stopping = False

    def stop(self) -> None:
        """Do no more than the page in hand."""
        self._stopping = True

    async def step(self) -> None:
        """One pass, in pages: no statement holds locks on more than a page of rows."""
        ttl_ms = max(2 * self._settings.housekeeping_interval_ms, 60_000)
        if not await self._store.lead("housekeeping", self._holder, ttl_ms=ttl_ms):
            return
        made = await make_days(self._store)
        expired = await self._expire_keys()
        pruned = await self._prune()
        runs = await self._prune_runs()
        dropped = await self._drop_days()
        await self._store.prune_workers(keep_ms=_WORKERS_KEPT_MS)
        if made or expired or pruned or runs or dropped:
            self._log.info(
                "kept house", days_made=made, keys=expired, tasks=pruned, runs=runs, days_dropped=dropped
            )

    async def _expire_keys(self) -> int:
        return await self._all_pages(lambda: self._store.expire_keys(page=_PAGE))

    async def _prune_runs(self) -> int:
        keep_ms = self._settings.retention_ms
        return await self._all_pages(lambda: self._store.prune_runs(keep_ms=keep_ms, page=_PAGE))

    async def _all_pages(self, one: Callable[[], Awaitable[int]]) -> int:
        """Page after page until one is not full; the sum."""
        total = 0
        for _ in range(_PAGES_A_PASS):
            if self._stopping:
                break
            n = await one()
            total += n
            if n < _PAGE:
                break
        return total

    async def _prune(self) -> int:
        """Go on where the last pass has stopped, or what may not be deleted would fill every pass."""
        total = 0
        for _ in range(_PAGES_A_PASS):
            if self._stopping:
                break
            last, pruned = await self._store.prune_tasks(
                self._pruned_up_to, keep_ms=self._settings.retention_ms, page=_PAGE
            )
            total += pruned
            self._pruned_up_to = last or FIRST_ID
            if last is None:
                break
        return total

    async def _drop_days(self) -> Sequence[str]:
        try:
            return await self._store.drop_old_partitions(keep_ms=self._settings.retention_ms)
        except StoreUnavailable as error:
            self._log.warning("old days of history wait for the next pass", error=str(error))
            return ()


async def make_days(store: Store) -> int:
    """Make the days of history ahead that are missing; how many.

    Whoever reads of the history for long is in the way. Each try makes all settles wait for a second, so the
    next one is the next pass's; there are days enough ahead.
    """
    try:
        return await store.make_partitions(DAYS_AHEAD)
    except StoreUnavailable as error:
        log.get("housekeeping").warning("days of history wait for the next pass", error=str(error))
        return 0
