"""What a worker holds: its leases from the claim until their outcome is recorded or they are lost.

A handler that blocks the loop may do so while a claim is on its way. What Postgres grants then is unknown to
the loop until the handler returns, and would be lost, were it not renewed: so claims are noted, too.

The worker's loop adds and drops; the heartbeat's thread reads from a copy, which one dict operation makes and
so at one instant.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scheduler.model import Lease


@dataclass(slots=True, eq=False)
class Claim:
    """A claim that was sent and whose answer was not read yet. Some of its tasks may be ours already.

    `sent` and `renewed` are readings of clock.monotonic: when it was sent last, and since when whatever was
    granted has had its full time.
    """

    ids: Sequence[str]
    token: str
    sent: float
    renewed: float


class Held:
    """Leases by task id."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}
        self._claims: dict[str, Claim] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def add(self, leases: Iterable[Lease]) -> None:
        """Hold these leases. A newer lease of the same task takes the older one's place."""
        self._leases.update({lease.id: lease for lease in leases})

    def drop(self, lease: Lease) -> None:
        """Hold this lease no longer. A newer lease of the same task stays."""
        if self._leases.get(lease.id) is lease:
            self._leases.pop(lease.id, None)

    def all(self) -> list[Lease]:
        """A copy of what is held now."""
        return list(self._leases.copy().values())

    def due(self, now: float, age_s: float) -> list[Lease]:
        """Leases that ought to be renewed: renewable, and last renewed `age_s` or more before `now`."""
        return [
            lease for lease in self.all() if lease.renews and not lease.lost and now - lease.renewed >= age_s
        ]

    def asked(self, claim: Claim) -> None:
        """Note a claim that is about to be sent."""
        self._claims[claim.token] = claim

    def answered(self, claim: Claim) -> None:
        """Forget a claim whose answer was read, or is not waited for any more."""
        self._claims.pop(claim.token, None)

    def unanswered(self, now: float, age_s: float) -> list[Claim]:
        """Claims whose leases, if there are any, ought to be renewed."""
        return [claim for claim in self._claims.copy().values() if now - claim.renewed >= age_s]
