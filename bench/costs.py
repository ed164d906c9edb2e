"""Costs: what the machine adds to the work itself, as the simulator knows it.

    worker_us    CPU of a worker's loop for each run: its share of leasing and settling, and a handler's call
    failure_us   the same of a run that fails, beside it: the exception, and what is written of it
    postgres_us  CPU of Postgres for each run
    redis_us     CPU of Redis for each run
    bulk_us      time from one task to the next as a bulk load comes in
    bulk_ms      from a bulk request's commit, by its stamp, to its tasks' being in their lists
    request_ms   the answer to a request with one task
    lease_ms     from asking for a batch to having it: a script and a claim
    settle_ms    from a run's end to the commit of its outcome
    wake_ms      from a push to an idle worker's asking
    call_us      how long a handler that does nothing is measured to run
    cores        how many cores share this CPU time, less what others use of them
    inflation    by what CPU costs more than its price when the machine is busy; 1 if it does not

They are read from and kept as JSON, one object of these names; what is missing has its default.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from bench import schema
from scheduler.errors import StartError


@dataclass(frozen=True, slots=True)
class Costs:
    """See the module. The defaults are one measurement on two busy cores: an order of magnitude.

    Raises:
        ValueError: one is below 0, or there are no cores.
    """

    worker_us: float = 56.0
    failure_us: float = 45.0
    postgres_us: float = 60.0
    redis_us: float = 13.0
    bulk_us: float = 116.0
    bulk_ms: float = 55.0
    request_ms: float = 1.7
    lease_ms: float = 6.7
    settle_ms: float = 1.0
    wake_ms: float = 2.6
    call_us: float = 5.0
    cores: float = 2.0
    inflation: float = 1.0

    def __post_init__(self) -> None:
        for each in fields(self):
            number = getattr(self, each.name)
            if number < 0 or (number == 0 and each.name in {"cores", "inflation"}):
                raise ValueError(f"{each.name} is {number:g}; a cost is 0 or more, and cores are above 0")

    @property
    def loop_s(self) -> float:
        """Seconds of a worker's loop for each run."""
        return self.worker_us * self.inflation / 1e6

    @property
    def failure_s(self) -> float:
        """Seconds of a worker's loop that a run takes besides if it fails."""
        return self.failure_us * self.inflation / 1e6

    @property
    def cpu_s(self) -> float:
        """Seconds of CPU for each run that succeeds, all parts together."""
        return (self.worker_us + self.postgres_us + self.redis_us) * self.inflation / 1e6

    def content(self) -> dict[str, Any]:
        """The costs as JSON has them."""
        return asdict(self)


FREE: Final = Costs(
    worker_us=0,
    failure_us=0,
    postgres_us=0,
    redis_us=0,
    bulk_us=0,
    bulk_ms=0,
    request_ms=0,
    lease_ms=0,
    settle_ms=0,
    wake_ms=0,
    call_us=0,
)
"""Nothing but the work costs anything."""


def read(path: Path) -> Costs:
    """The costs in a JSON file: alone, or as the result of a record.

    Raises:
        StartError: one line: what is wrong with it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise StartError(f"{path} is not JSON: {error}") from None
    if isinstance(found, dict) and isinstance(found.get("result"), dict):
        found = found["result"].get("costs", found)
    return schema.read(Costs, found, f"{path}:")
