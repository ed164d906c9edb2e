"""The keys of a shard, and every script of `lua/` that changes them, each behind one method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from scheduler import keys
from scheduler.fairness import Policy
from scheduler.keys import RANK
from scheduler.model import Depths, Move, Priority

PAGE: Final = 1000
"""Most ids that one script call carries: the server is busy with it for some milliseconds at most, and the
stack of its Lua holds the arguments."""

_Entry = TypeVar("_Entry")


class Link(Protocol):
    """What a shard needs of the connections to Redis."""

    async def call(self, *args: Any) -> Any:
        """Send one command, once, and return its answer."""

    async def run(self, name: str, shard: tuple[Any, ...], args: Iterable[Any]) -> Any:
        """Run the script of that name; `shard` is the number of its keys and the keys."""


class Census(NamedTuple):
    """What a census found: is the shard whole, and its epoch (None: absent). A damaged shard is empty now."""

    whole: bool
    epoch: str | None


class Shard:
    """One set of keys that live together. Each method is one script of the protocol.

    Ids beyond 1,000 are sent in several calls. All counts are of ids for which the call made a difference.
    """

    def __init__(self, link: Link, names: tuple[str, ...]) -> None:
        self._link = link
        self.names = names
        self._keys = (len(names), *(name.encode() for name in names))

    def key(self, kind: str, priority: Priority | None = None) -> str:
        """The name of one of the keys."""
        return self.names[keys.position(kind, priority)]

    async def push(self, entries: Sequence[tuple[str, Priority, int]]) -> int:
        """Make (id, priority, delay_ms) known and ready, or due after its delay."""
        return await self._count("push", entries, lambda e: (RANK[e[1]], e[2], e[0]))

    async def adopt(self, entries: Sequence[tuple[str, Priority, str, int]]) -> int:
        """Make (id, priority, token, remaining_ms) known as leased."""
        return await self._count("adopt", entries, lambda e: (RANK[e[1]], e[2], e[3], e[0]))

    async def lease(self, n: int, token: str, vis_ms: int, policy: Policy) -> list[str]:
        """Up to `n` ready ids, never more than 1,000, in the order of the fair choice.

        0 takes none: whoever was woken and has no room lets another worker be woken in its place.
        """
        args = (min(n, PAGE), token, vis_ms, policy.mode, policy.max_wait_ms, *policy.weights)
        ids: list[str] = await self._run("lease", args)
        return ids

    async def place(self, moves: Sequence[Move]) -> int:
        """Take ids from the leases that their tokens hold to where they belong."""
        moved = 0
        for page in _pages(moves):
            groups: dict[tuple[Any, ...], list[str]] = {}
            for move in page:
                groups.setdefault(_group(move), []).append(move.id)
            args: list[Any] = []
            for (where, token, priority, ms, new_token), ids in groups.items():
                args += where, token, RANK[priority], ms, new_token, len(ids)
                args += ids
            moved += await self._run("place", args)
        return moved

    async def expired(self, n: int) -> list[tuple[str, str]]:
        """Up to `n` (never more than 1,000) leased ids whose deadline has passed, with their tokens."""
        found: list[str] = await self._run("expired", (min(n, PAGE),))
        return list(zip(found[::2], found[1::2], strict=True))

    async def pump(self, n: int) -> int:
        """Make ready what is due in `retry`, up to `n` (never more than 1,000) of each priority."""
        moved: int = await self._run("pump", (min(n, PAGE),))
        return moved

    async def forget(self, entries: Sequence[tuple[str, Priority]]) -> int:
        """Drop cancelled (id, priority) that wait in `retry`."""
        return await self._count("forget", entries, _ranked)

    async def dlq_add(self, entries: Sequence[tuple[str, Priority, int]]) -> int:
        """Show (id, priority, age_ms since its death) as dead letters, unless they are on their way again."""
        return await self._count("dlq_add", entries, lambda e: (RANK[e[1]], e[2], e[0]))

    async def dlq_del(self, entries: Sequence[tuple[str, Priority]]) -> int:
        """Take (id, priority) out of the dead letters."""
        return await self._count("dlq_del", entries, _ranked)

    async def dlq_page(self, priority: Priority, start: int, n: int) -> list[str]:
        """The dead letters of a priority from rank `start` on, at most `n`, oldest first."""
        if n <= 0:
            return []
        ids: list[str] = await self._link.call("ZRANGE", self.key("dlq", priority), start, start + n - 1)
        return ids

    async def known(self, ids: Sequence[str]) -> list[str | None]:
        """For each id: None if unknown, the token of its lease, or "" if nobody holds it."""
        tokens: list[str | None] = []
        for page in _pages(ids):
            tokens += await self._link.call("HMGET", self.key("live"), *page)
        return tokens

    async def census(self) -> Census:
        """Is the shard whole? If not, all its keys are deleted."""
        whole, *epoch = await self._run("census")
        return Census(bool(whole), epoch[0] if epoch else None)

    async def set_epoch(self, expected: str | None, new: str) -> bool:
        """Set the epoch if it is the expected one (None: absent). True if it was set."""
        return bool(await self._run("set_epoch", (expected or "", new)))

    async def nudge(self, entries: Sequence[tuple[str, Priority]]) -> int:
        """Make (id, priority) due now where it waits in `retry` or `leases`."""
        return await self._count("nudge", entries, _ranked)

    async def depths(self) -> Depths:
        """How many ids the shard holds."""
        sizes = await self._run("depths")
        return Depths(tuple(sizes[:4]), tuple(sizes[4:8]), tuple(sizes[8:12]), sizes[12])

    async def _run(self, name: str, args: Iterable[Any] = ()) -> Any:
        return await self._link.run(name, self._keys, args)

    async def _count(
        self, name: str, entries: Sequence[_Entry], flat: Callable[[_Entry], tuple[Any, ...]]
    ) -> int:
        """Run a script on pages of entries, each flattened to its arguments, and add up the answers."""
        total = 0
        for page in _pages(entries):
            total += await self._run(name, [arg for entry in page for arg in flat(entry)])
        return total


_group = attrgetter("where", "token", "priority", "delay_ms", "new_token")


def _ranked(entry: tuple[str, Priority]) -> tuple[Any, ...]:
    return RANK[entry[1]], entry[0]


def _pages(entries: Sequence[_Entry]) -> Iterator[Sequence[_Entry]]:
    for start in range(0, len(entries), PAGE):
        yield entries[start : start + PAGE]
