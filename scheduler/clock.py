"""The only clock in the code, and it measures durations.

Instants are judged by the stores: `now()` in Postgres, `TIME` in Redis. A process's wall clock decides
nothing; it only names new ids (`model.new_id`), where an error of hours costs order, never correctness.
"""

from __future__ import annotations

import time

monotonic = time.monotonic
"""Seconds since some fixed moment; the difference of two readings is a duration."""


def wall_ms() -> int:
    """Milliseconds since 1970, for naming ids and log lines only."""
    return time.time_ns() // 1_000_000
