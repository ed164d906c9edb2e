"""Footprint: what the system takes: CPU while it is idle, memory while tasks stream through and pile up.

idle       a worker, the API and both servers with nothing to do
stream     memory of the workers and the API while many tasks are enqueued and worked off
queued     bytes of Redis for a task that waits
payloads   memory of a worker that has run noops, and then meets 40 MB of large payloads
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from string import ascii_letters
from typing import Any, Final, Self, cast

from bench import load
from bench.burst import open_tasks, ran_once
from bench.hammer import hammer
from bench.index import connected
from bench.latency import await_ended
from bench.parking import emptied, noops
from bench.rates import api_pid, frozen, server_pids
from bench.rounds import Arms, Size
from bench.stand import Stand
from bench.system import System
from bench.vitals import cpu_s, vitals
from bench.workload import Body
from scheduler.errors import StartError

MIB: Final = 2**20
BACKLOG_BYTES: Final = 40_000_000
PAYLOAD_BYTES: Final = 250_000
PAYLOAD_MS: Final = 300

_SETTLED_S: Final = 2.0
_USED_TO: Final = 5_000
_SAMPLE_S: Final = 0.2
_CHUNK: Final = 5_000
_MOST_OPEN: Final = 10_000
_LOOK_S: Final = 0.05


@contextmanager
def arms(me: System, size: Size) -> Iterator[Arms]:
    """The arms; each starts workers of its own. Large payloads come through an API of their own."""
    with tempfile.TemporaryDirectory() as folder, Stand(me.stack.env, Path(folder)) as stand:
        large = stand.api("api-payloads").start().url
        yield {
            "idle": partial(_idle, me, size.idle_s),
            "stream": partial(_stream, me, size.workers, size.stream),
            "queued": partial(_queued, me, size.queued),
            "payloads": partial(_payloads, me, large),
        }


def _idle(me: System, seconds: float) -> dict[str, float]:
    """Percent of one core that each part uses."""
    with me.with_fleet(1) as [worker]:
        time.sleep(_SETTLED_S)
        parts = {"worker": [worker.pid], "api": [api_pid(me)], "servers": server_pids(me)}
        used = {part: cpu_s(pids) for part, pids in parts.items()}
        began = time.monotonic()
        time.sleep(seconds)
        elapsed = time.monotonic() - began
        return {part: 100 * (cpu_s(pids) - used[part]) / elapsed for part, pids in parts.items()}


def _stream(me: System, workers: int, n: int) -> dict[str, float]:
    """MiB of the largest worker and of the API at their peak, and by how much each has grown.

    Growth is from the second fifth of the time to the last one, by medians: the first fifth warms up.
    """
    ids: list[str] = []
    with (
        me.with_fleet(workers) as fleet,
        Memory({"worker": [member.pid for member in fleet], "api": [api_pid(me)]}) as memory,
    ):
        for start in range(0, n, _CHUNK):
            bodies: list[Body] = [{"type": "noop"}] * min(_CHUNK, n - start)
            ids += load.run(load.bulk(bodies, host=me.host, keys=False)).all_ids()
            while open_tasks(me) > _MOST_OPEN:
                time.sleep(_LOOK_S)
        await_ended(me)
    ran_once(me, ids)
    return {
        f"{part}_{what}": value for part in ("worker", "api") for what, value in memory.told(part).items()
    }


def _queued(me: System, n: int) -> dict[str, float]:
    """Bytes of Redis a task that waits in a list."""
    batch = 1000
    with emptied(me), connected(me.redis_url) as client:
        before = _used_memory(client)
        answers = load.run(hammer(me.host, noops(batch), 1, requests=n // batch))
        if answers.accepted < n // batch:
            raise StartError(f"not all was accepted: answers {dict(answers.statuses)}")
        return {"bytes": (_used_memory(client) - before) / n}


def _payloads(me: System, host: str) -> dict[str, float]:
    """MiB by which the worker grows while it works the backlog off, which is there all at once.

    It takes noops by the hundred before, and so it would take these.
    """
    text = "".join(
        random.Random(1).choices(ascii_letters, k=PAYLOAD_BYTES)
    )  # Postgres cannot compress it much
    payload = {"sleep_ms": PAYLOAD_MS, "text": text}
    bodies: list[Body] = [{"type": "sleeper", "payload": payload}] * (BACKLOG_BYTES // PAYLOAD_BYTES)
    with me.with_fleet(1) as [worker]:
        load.run(load.bulk([{"type": "noop"}] * _USED_TO, host=me.host, keys=False)).all_ids()
        await_ended(me)
        before = vitals(worker.pid).rss
        with Memory({"worker": [worker.pid]}) as memory:
            with frozen([worker]):
                ids = load.run(load.bulk(bodies, host=host, size=10, keys=False)).all_ids()
            await_ended(me)
        ran_once(me, ids)
    return {"growth": memory.told("worker")["peak"] - before / MIB}


class Memory:
    """Samples the resident memory of processes in the background, from entering until leaving.

    Args:
        parts: Process ids by the name of the part; of several the largest counts.
    """

    def __init__(self, parts: Mapping[str, Sequence[int]]) -> None:
        self._parts = parts
        self._samples: dict[str, list[float]] = {part: [] for part in parts}
        self._stopping = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="memory")

    def __enter__(self) -> Self:
        self._done = self._thread.submit(self._sample)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.shutdown()
        self._done.result()

    def told(self, part: str) -> dict[str, float]:
        """`peak` and `growth` in MiB: see `growth`."""
        samples = self._samples[part]
        return {"peak": max(samples), "growth": growth(samples)}

    def _sample(self) -> None:
        while True:
            for part, pids in self._parts.items():
                self._samples[part].append(max(vitals(pid).rss for pid in pids) / MIB)
            if self._stopping.wait(_SAMPLE_S):
                return


def growth(samples: Sequence[float]) -> float:
    """From the median of the second fifth of some samples to that of the last one; 0 if there are too few."""
    fifth = len(samples) // 5
    return median(samples[-fifth:]) - median(samples[fifth : 2 * fifth]) if fifth else 0.0


def _used_memory(client: Any) -> int:
    return int(cast("dict[str, Any]", client.info("memory"))["used_memory"])
