"""A schedule: the faults of a scenario, carried out on an arena while its load runs."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Self

from bench.arena import Arena
from bench.faults import Blow, Fault, carry_out
from bench.scenario import Harm

_MEND_S: Final = 30.0
_SHARE: Final = 0.5
"""A fault lasts half as long as its kind may."""


class Schedule:
    """From entering on, each fault strikes at its time; leaving undoes all, and starts none any more.

    Args:
        arena: Whom it is done to.
        harms: What is done, and when.
        seed: Draws what the scenario leaves open.
        busy: Whether tasks run now.
    """

    def __init__(self, arena: Arena, harms: Sequence[Harm], seed: int, busy: Callable[[], bool]) -> None:
        rng = random.Random(seed)
        self._arena = arena
        self._busy = busy
        self._faults = [Fault(h.at_s, h.kind, _SHARE, rng.getrandbits(32), h.target) for h in harms]
        self._over = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="schedule")
        self._blows: list[Blow] = []

    def __enter__(self) -> Self:
        self._done: Future[list[Blow]] = self._thread.submit(
            carry_out, self._faults, self._arena, self._busy, self._over
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.shutdown()
        self._arena.mend(_MEND_S)
        self._blows = self._done.result()

    @property
    def missed(self) -> list[str]:
        """The faults that did not land while tasks ran."""
        return [blow.fault.kind for blow in self._blows if not blow.landed]

    def content(self) -> list[dict[str, Any]]:
        """What became of each fault, as JSON has it."""
        return [
            {
                "kind": blow.fault.kind,
                "at_s": blow.fault.at_s,
                "struck_s": blow.struck_s,
                "landed": blow.landed,
                "what": blow.what,
            }
            for blow in self._blows
        ]
