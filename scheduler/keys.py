"""The names of all Redis keys, made here and nowhere else.

A shard is one tuple of keys in a fixed order, and every script gets all of them in that order, so a key has
the same number in each script: KEYS[1-4] `q`, [5-8] `retry`, [9-12] `dlq` by priority, [13] `leases`,
[14] `live`, [15] `credit`, [16] `wake`, [17] `paused`, [18] `epoch`.

All names of a shard carry the same hash tag, `{queue.number}`: on a cluster they live on one node, and one
script may touch them all.
"""

from __future__ import annotations

from typing import Final

from scheduler.model import PRIORITIES, Priority

NAMES: Final[tuple[str, ...]] = (
    *(f"{kind}:{priority}" for kind in ("q", "retry", "dlq") for priority in PRIORITIES),
    "leases",
    "live",
    "credit",
    "wake",
    "paused",
    "epoch",
)
"""What a key is called inside its shard; the n-th is KEYS[n + 1] of every script."""

RANK: Final[dict[Priority, int]] = {priority: i for i, priority in enumerate(PRIORITIES, start=1)}
"""The number by which scripts know a priority: KEYS[rank] is its `q`, KEYS[4 + rank] its `retry`."""


def shard_keys(prefix: str, queue: str, number: int = 0) -> tuple[str, ...]:
    """The keys of one shard of a queue, in the order of NAMES.

    Args:
        prefix: REDIS_PREFIX; its number is the version of the layout.
        queue: A name that matches model.NAME_PATTERN, so that it holds no braces.
        number: Which shard of the queue.
    """
    return tuple(f"{prefix}:{{{queue}.{number}}}:{name}" for name in NAMES)


def position(kind: str, priority: Priority | None = None) -> int:
    """Where a key stands in that tuple, counted from 0."""
    return NAMES.index(f"{kind}:{priority}" if priority else kind)
