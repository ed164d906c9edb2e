"""Leaks: samples of what a running system holds, and whether it holds more and more.

A series is flat if the line of least squares through its second part rises by no more than the allowance:

    memory of a process         2 % in ten minutes, 5 MiB in all; a rise below 1 MiB is none
    descriptors, threads,       a tenth of its level, or 3 where that is less: pools grow and shrink
    connections

Of descriptors the connections of a process's callers do not count: how many these open is up to them.

The first part is not judged: caches fill, pools grow, the allocator finds its size.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import psycopg
import redis

from bench import index
from bench.stats import slope, spread
from bench.vitals import callers, vitals

MIB: Final = 2**20
JUDGED: Final = 0.6
"""The share of the time, at its end, that is judged."""

_CONNECTIONS: Final = """
SELECT application_name, count(*) FROM pg_stat_activity WHERE application_name LIKE 'scheduler-%' GROUP BY 1
"""

HEADERS: Final = ("What", "Median", "Most", "Rise", "Allowed", "")
"""Of the rows that `Trend.cells` makes."""

Sample = Mapping[str, float]


class Samples:
    """Samples of processes and servers, taken in a thread from entering the block until leaving it.

    Args:
        pids: Process ids by the name of the part.
        postgres_url: Whose connections are counted, by application name.
        redis_url: Whose clients are counted, by name.
        every_s: Seconds from one sample to the next.
        see: Told each sample and its second.
    """

    def __init__(
        self,
        pids: Mapping[str, int],
        *,
        postgres_url: str,
        redis_url: str,
        every_s: float,
        see: Callable[[float, Sample], None] = lambda _s, _sample: None,
    ) -> None:
        self._pids = dict(pids)
        self._postgres_url = postgres_url
        self._redis_url = redis_url
        self._every_s = every_s
        self._see = see
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._take, name="samples")
        self._error: Exception | None = None
        self.times: list[float] = []
        self.samples: list[Sample] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def _take(self) -> None:
        began = time.monotonic()
        try:
            with (
                psycopg.connect(self._postgres_url, autocommit=True) as rows,
                index.connected(self._redis_url) as client,
            ):
                while not self._stopping.wait(self._every_s):
                    self.times.append(time.monotonic() - began)
                    self.samples.append(sample(self._pids, rows, client))
                    self._see(self.times[-1], self.samples[-1])
        except Exception as error:  # noqa: BLE001 - it is raised in the thread that waits for the end
            self._error = error

    def judge(self) -> list[Trend]:
        """Every series, and whether it is flat."""
        return judge(self.times, self.samples)


def sample(pids: Mapping[str, int], rows: psycopg.Connection[Any], client: redis.Redis) -> dict[str, float]:
    """What everything holds now: memory in bytes, all else in numbers."""
    found: dict[str, float] = {}
    for part, pid in pids.items():
        held = vitals(pid)
        found |= {f"{part} memory": held.rss, f"{part} descriptors": held.descriptors - callers(pid)}
        found[f"{part} threads"] = held.threads
    for name, n in rows.execute(_CONNECTIONS).fetchall():
        found[f"Postgres connections of {name}"] = n
    clients: dict[str, float] = defaultdict(float)
    for each in client.client_list():
        if each["name"].startswith("scheduler-"):
            clients[f"Redis clients of {each['name']}"] += 1
    return found | clients


@dataclass(frozen=True, slots=True)
class Trend:
    """One series: its level, the rise of its line over the judged part, and the most that is allowed."""

    name: str
    level: float
    highest: float
    rise: float
    allowed: float

    @property
    def flat(self) -> bool:
        """Whether it does not grow."""
        return self.rise <= self.allowed

    def cells(self) -> tuple[str, str, str, str, str, str]:
        """A row under HEADERS."""
        level, highest, rise, allowed = (
            _shown(self.name, value) for value in (self.level, self.highest, self.rise, self.allowed)
        )
        return self.name, level, highest, rise, allowed, "flat" if self.flat else "GROWS"


def judge(times: Sequence[float], samples: Sequence[Sample]) -> list[Trend]:
    """The trend of every series; a series that is not in a sample is 0 there.

    Raises:
        ValueError: fewer than two samples are in the part that is judged.
    """
    start = times[-1] * (1 - JUDGED) if times else 0.0
    first = next((i for i, t in enumerate(times) if t >= start), 0)
    judged = times[first:]
    names = dict.fromkeys(name for each in samples for name in each)
    trends = []
    for name in names:
        values = [each.get(name, 0.0) for each in samples]
        part = values[first:]
        seconds = judged[-1] - judged[0] if judged else 0.0
        level = spread(part).median
        rise = slope(judged, part) * seconds
        trends.append(Trend(name, level, max(values), rise, _allowed(name, level, seconds)))
    return trends


def _allowed(name: str, level: float, seconds: float) -> float:
    if name.endswith("memory"):
        return min(5 * MIB, max(1 * MIB, 0.02 * level * seconds / 600))
    return max(3.0, level / 10)


def _shown(name: str, value: float) -> str:
    return f"{value / MIB:.2f} MiB" if name.endswith("memory") else f"{value:.1f}"
