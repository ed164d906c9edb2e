"""Steered: a system whose fleet and load follow a wish that may change at any time while it runs.

    steered = Steered(SETTINGS)
    steered.start()                             # returns at once; everything happens in threads
    steered.wish = Wish(workers=3, rate=200)    # more workers, and more tasks a second
    steered.looks[-1].per_s                     # what the processes tell, twice a second
    steered.close()                             # stops everything, and raises what went wrong

It is for watching, not for measuring: the load comes from this process, whatever else that does. It ends by
itself after a while, with the interpreter, and with whatever ends that: no part of the system outlives us.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import cycle
from math import nan
from typing import Final

from bench import load, scrape
from bench.sampling import GAUGES
from bench.scrape import Page
from bench.system import System, system
from bench.workload import Body, Mix, deck

LONGEST_S: Final = 900.0
"""After so long it ends by itself: nobody may be looking any more."""

_EVERY_S: Final = 0.5
_PIECE_S: Final = 0.5
_DECK: Final = 1000
_KEPT: Final = 600
_END_S: Final = 30.0
_ENDED: Final = ("tasks_succeeded_total", "tasks_dead_total")
_WAITS: Final = "enqueue_to_start_seconds"
_NAMES: Final = (*GAUGES, *_ENDED, f"{_WAITS}_bucket")


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be: worker processes, slots in each, tasks a second, and what they are."""

    workers: int = 2
    slots: int = 12
    rate: float = 50.0
    mix: Mix = field(default_factory=Mix)


@dataclass(frozen=True, slots=True)
class Look:
    """What the processes told at one moment.

    Attributes:
        t_s: Seconds since the first look.
        ready, waiting, in_flight: Tasks in the lists, in the retry set, and claimed.
        per_s: Tasks that ended a second, since the look before.
        p95_wait_s: Of tasks that were started since then, from the time at which they were due; nan if none.
        workers: Worker processes.
        slots: Slots of the newest of them.
    """

    t_s: float
    ready: int
    waiting: int
    in_flight: int
    per_s: float
    p95_wait_s: float
    workers: int
    slots: int


class Steered:
    """One system at a time; it may be started again after its end.

    Args:
        settings: What its parts are started with; servers that they do not name are started, too.
        wish: What is to be at first.
        told: Called in a thread of ours after each look and when `state` has changed.
        longest_s: After so long it ends by itself.

    Attributes:
        wish: What is to be. Whoever changes it replaces it.
        looks: The newest ones, in order.
        running: Whether it was started and has not ended.
        state: For people.
        sent: Tasks that the API has accepted.
        pids: Every process that was ever part of it.
    """

    def __init__(
        self,
        settings: Mapping[str, str],
        wish: Wish | None = None,
        *,
        told: Callable[[], object] = lambda: None,
        longest_s: float = LONGEST_S,
    ) -> None:
        self.wish = wish or Wish()
        self.looks: deque[Look] = deque(maxlen=_KEPT)
        self.running = False
        self.state = "not started"
        self.sent = 0
        self.pids: set[int] = set()
        self._settings = dict(settings)
        self._told = told
        self._longest_s = longest_s
        self._slots = 0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self) -> None:
        """Begin to start everything; nothing happens if it runs."""
        if self.running:
            return
        self.running = True
        self._stopping.clear()
        self.looks.clear()
        self.sent, self._error = 0, None
        # Daemons, so that an interpreter that ends does not wait for them: it is told to end them below.
        self._thread = threading.Thread(target=self._run, name="steered", daemon=True)
        atexit.register(self._ended)
        self._thread.start()

    def stop(self) -> None:
        """Begin to stop everything."""
        self._stopping.set()

    def close(self) -> None:
        """Stop everything and wait for it; raises what went wrong."""
        self._ended()
        if self._error is not None:
            raise self._error

    def _ended(self) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join(_END_S)

    def _run(self) -> None:
        try:
            self._tell("starting servers and the API")
            with system(self._settings, say=lambda _: None) as me:
                self._steer(me)
        except BaseException as error:  # noqa: BLE001 - raised by `close`, in the caller's thread
            self._error = self._error or error
        atexit.unregister(self._ended)
        self.running = False
        self._tell(f"failed: {self._error}" if self._error else "stopped")

    def _steer(self, me: System) -> None:
        """The fleet follows the wish; so does the load, in a thread of its own, and another one looks."""
        helpers = [
            threading.Thread(target=self._beside, args=(work, me), name=work.__name__, daemon=True)
            for work in (self._send, self._look)
        ]
        until_s = time.monotonic() + self._longest_s
        try:
            self._fit(me)
            for helper in helpers:
                helper.start()
            self._tell("running")
            while not self._stopping.wait(0.1):
                self._fit(me)
                me.stack.check()
                if time.monotonic() > until_s:
                    break
        finally:
            self.stop()
            self._tell("stopping")
            for helper in helpers:
                if helper.ident is not None:
                    helper.join()
            me.note()
            self.pids |= me.pids

    def _beside(self, work: Callable[[System], None], me: System) -> None:
        try:
            work(me)
        except BaseException as error:  # noqa: BLE001 - raised by `close`, in the caller's thread
            self._error = self._error or error
            self.stop()

    def _tell(self, state: str) -> None:
        self.state = state
        self._told()

    def _fit(self, me: System) -> None:
        """Make the fleet what is wished. How many slots a worker has is decided when it starts."""
        wish, old = self.wish, len(me.fleet)
        other = wish.slots != self._slots
        missing = wish.workers if other else wish.workers - old
        if missing > 0:
            me.start_fleet(missing, env={"WORKER_POOL": str(wish.slots)})
            self._slots = wish.slots
        if len(me.fleet) > wish.workers:
            me.note()
            self.pids |= me.pids
            me.shrink(wish.workers)

    def _send(self, me: System) -> None:
        """An open loop in short pieces, each at the rate and of the mix that is wished at its beginning."""
        mix: Mix | None = None
        bodies: Iterator[Body] = iter(())
        owed, due = 0.0, time.monotonic()
        while not self._stopping.is_set():
            wish = self.wish
            if wish.mix != mix:
                mix, bodies = wish.mix, cycle(deck(wish.mix, _DECK))
            owed += wish.rate * _PIECE_S
            piece = [next(bodies) for _ in range(int(owed))]
            owed -= len(piece)
            if piece:
                sent = load.run(load.open_loop(piece, host=me.host, rate=wish.rate, skip_after_s=_PIECE_S))
                self.sent += sent.accepted
            due = max(due + _PIECE_S, time.monotonic())
            self._stopping.wait(due - time.monotonic())

    def _look(self, me: System) -> None:
        """Ask every process. Counters are compared one by one: a process may come or go between two looks."""
        began = last = time.monotonic()
        before: dict[str, Page] = {}
        while True:
            now = time.monotonic()
            pages = {url: scrape.page([url], _NAMES) for url in list(me.endpoints)}
            pages = {url: page for url, page in pages.items() if page.answered}
            gained = [page.since(before[url]) for url, page in pages.items() if url in before]
            gained += [page.since(Page({})) for url, page in pages.items() if before and url not in before]
            if before:
                times = now - began, now - last
                self.looks.append(_look_of(*times, list(pages.values()), gained, me, self._slots))
                self._told()
            # Who misses a look has not begun anew: the next one counts from the last that there was.
            before, last = before | pages, now
            if self._stopping.wait(_EVERY_S):
                return


def _look_of(
    t_s: float, since_s: float, pages: list[Page], gained: list[Page], me: System, slots: int
) -> Look:
    depths = [max((page.total(name) for page in pages), default=0.0) for name in GAUGES[:3]]
    ended = sum(page.total(name) for page in gained for name in _ENDED)
    buckets: dict[float, float] = {}
    for page in gained:
        for bound, count in page.buckets(_WAITS):
            buckets[bound] = buckets.get(bound, 0.0) + count
    waited = scrape.quantile(sorted(buckets.items()), 0.95) if buckets else nan
    ready, waiting, in_flight = map(round, depths)
    return Look(t_s, ready, waiting, in_flight, ended / since_s, waited, len(me.fleet), slots)
