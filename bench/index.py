"""The index: all that Redis holds of the tasks, in one atomic look, and what is true of it at any moment.

Every script of the product is atomic, so whatever a look finds is what some script has left. An id that is
in two places then is in two places, and not on its way from one to the other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

import redis

from bench.workload import PRIORITIES

_LONGEST_WAIT_S: Final = 5.0


@dataclass(slots=True)
class Index:
    """What Redis holds.

    Attributes:
        queued: Ids of the lists, each as often as it is there.
        retrying: Ids of the retry sets, each as often as it is there.
        leased: Leased ids → milliseconds until the deadline; negative once it has passed.
        live: Known ids → the token of their lease, "" if there is none.
        letters: Ids of the dead-letter sets, each as often as it is there.
    """

    queued: list[str] = field(default_factory=list)
    retrying: list[str] = field(default_factory=list)
    leased: dict[str, float] = field(default_factory=dict)
    live: dict[str, str] = field(default_factory=dict)
    letters: list[str] = field(default_factory=list)

    @property
    def held(self) -> set[str]:
        """Every id that is in some collection but the dead letters."""
        return {*self.queued, *self.retrying, *self.leased, *self.live}

    @property
    def tended(self) -> set[str]:
        """Every id that is in a retry set or in a lease: its time will come, and something will be done.

        Not so in a list: the id of a cancelled task may wait there for a worker that refuses it.
        """
        return {*self.retrying, *self.leased}


@contextmanager
def connected(url: str) -> Iterator[redis.Redis]:
    """A client of the observer's own, which gives up after some seconds."""
    client = redis.Redis.from_url(
        url,
        decode_responses=True,
        encoding_errors="surrogateescape",  # somebody else's bytes are an offence, not an error
        socket_timeout=_LONGEST_WAIT_S,
        socket_connect_timeout=_LONGEST_WAIT_S,
    )
    try:
        yield client
    finally:
        client.close()


def look(client: redis.Redis, prefix: str) -> Index:
    """Everything under `prefix`; atomic for each shard.

    Raises:
        redis.RedisError: Redis did not answer, or holds a key of another type.
    """
    index = Index()
    for shard in _shards(client, prefix):
        _add(index, shard, client)
    return index


def depth(client: redis.Redis, prefix: str) -> int:
    """How many ids wait in the lists, at one moment for each shard.

    Raises:
        redis.RedisError: Redis did not answer.
    """
    waiting = 0
    for shard in _shards(client, prefix):
        pipe: Any = client.pipeline(transaction=True)
        for priority in PRIORITIES:
            pipe.llen(f"{shard}q:{priority}")
        waiting += sum(pipe.execute())
    return waiting


def flush(client: redis.Redis, prefix: str) -> int:
    """FLUSHALL; how many ids were leased at that moment.

    Raises:
        redis.RedisError: Redis did not answer.
    """
    pipe: Any = client.pipeline(transaction=True)
    for shard in _shards(client, prefix):
        pipe.zcard(f"{shard}leases")
    *leased, _ = pipe.flushall().execute()
    return int(sum(leased))


def disorder(index: Index) -> dict[str, str]:
    """Ids that are not in exactly one place, each with what is wrong; a sound system has none, ever."""
    wrong: dict[str, str] = {}
    places = Counter([*index.queued, *index.retrying, *index.leased])
    for id_, n in places.items():
        if n > 1:
            wrong[id_] = f"in {n} places"
        elif id_ not in index.live:
            wrong[id_] = "in a place and not in `live`"
    for id_, token in index.live.items():
        if id_ not in places:
            wrong[id_] = "in `live` and in no place"
        elif bool(token) != (id_ in index.leased):
            wrong[id_] = "`live` and `leases` disagree"
    for id_, n in Counter(index.letters).items():
        if n > 1:
            wrong[id_] = f"a dead letter {n} times"
        elif id_ in index.live:
            wrong[id_] = "a dead letter and in `live`"
    return wrong


def _shards(client: redis.Redis, prefix: str) -> list[str]:
    """What the names of each shard's keys begin with."""
    names = (re.match(r".*?\{[^}]*\}:", key) for key in client.scan_iter(f"{prefix}:*", count=1000))
    return sorted({name[0] for name in names if name is not None})


def _add(index: Index, shard: str, client: redis.Redis) -> None:
    pipe: Any = client.pipeline(transaction=True)
    for kind in ("q", "retry", "dlq"):
        for priority in PRIORITIES:
            command = pipe.lrange if kind == "q" else pipe.zrange
            command(f"{shard}{kind}:{priority}", 0, -1)
    pipe.zrange(f"{shard}leases", 0, -1, withscores=True)
    pipe.hgetall(f"{shard}live")
    pipe.time()
    *lists, leases, live, (seconds, microseconds) = pipe.execute()
    groups = cast("list[list[str]]", lists)
    index.queued += [id_ for group in groups[:4] for id_ in group]
    index.retrying += [id_ for group in groups[4:8] for id_ in group]
    index.letters += [id_ for group in groups[8:12] for id_ in group]
    now = seconds * 1000 + microseconds / 1000
    index.leased |= {id_: score - now for id_, score in leases}
    index.live |= live
