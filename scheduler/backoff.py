"""How long a failed task waits before it is tried again.

The wait before retry number n (n = 1 after the first failure) is a curve of n, capped, then jittered:

    exponential  base · 2^(n-1)        none   the wait itself
    linear       base · n              added  the wait + U(0, jitter_ms): the seed's form, and the default
    constant     base                  equal  U(wait/2, wait)
                                       full   U(0, wait)

`equal` and `full` are named after the AWS Architecture Blog, "Exponential Backoff And Jitter" (2015).
The cap is applied before the jitter, so tasks at the cap do not fall into step.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, Literal

from scheduler.errors import ConfigError

Strategy = Literal["exponential", "linear", "constant"]
Jitter = Literal["none", "added", "equal", "full"]

STRATEGIES: Final[tuple[Strategy, ...]] = ("exponential", "linear", "constant")
JITTERS: Final[tuple[Jitter, ...]] = ("none", "added", "equal", "full")


@dataclass(frozen=True, slots=True)
class Backoff:
    """A retry policy. All times are milliseconds.

    Attributes:
        strategy: The curve of the wait over the number of failures.
        base_ms: The wait after the first failure, before jitter.
        max_ms: The longest wait before jitter.
        jitter: How the wait is spread.
        jitter_ms: The width of `added`; the other jitters do not read it.

    Raises:
        ConfigError: no such curve or jitter, or a time that is no whole number from 0.
    """

    strategy: Strategy = "exponential"
    base_ms: int = 500
    max_ms: int = 30_000
    jitter: Jitter = "added"
    jitter_ms: int = 500

    def __post_init__(self) -> None:
        # Here, where whoever wrote it is told, and not with the first failure of a task.
        if self.strategy not in STRATEGIES:
            raise ConfigError(f"Backoff: strategy is {self.strategy!r}; it must be one of {STRATEGIES}")
        if self.jitter not in JITTERS:
            raise ConfigError(f"Backoff: jitter is {self.jitter!r}; it must be one of {JITTERS}")
        for name in ("base_ms", "max_ms", "jitter_ms"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ConfigError(f"Backoff: {name} is {value!r}; it must be a whole number from 0")

    def ceiling_ms(self, failures: int) -> int:
        """The wait after `failures` failures (1 or more), capped, before jitter."""
        n = max(failures, 1)
        if self.strategy == "constant":
            wait = self.base_ms
        elif self.strategy == "linear":
            wait = self.base_ms * n
        else:
            # 2^62 ms is past any cap; the shift must not grow with a hostile count.
            wait = self.base_ms << min(n - 1, 62)
        return min(wait, self.max_ms)

    def delay_ms(self, failures: int, rng: random.Random) -> int:
        """The wait after `failures` failures (1 or more), with jitter drawn from `rng`."""
        wait = self.ceiling_ms(failures)
        if self.jitter == "added":
            return wait + round(rng.uniform(0, self.jitter_ms))
        if self.jitter == "equal":
            return round(rng.uniform(wait / 2, wait))
        if self.jitter == "full":
            return round(rng.uniform(0, wait))
        return wait
