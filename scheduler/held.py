"""What a worker holds: its leases from the claim until their outcome is recorded or they are lost.

The worker's loop adds and drops; the heartbeat's thread reads. Each operation is one dict operation, which
the interpreter makes atomic, and the reader works on a copy.
"""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.model import Lease


class Held:
    """Leases by task id."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}

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
