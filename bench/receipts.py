"""What a load brought back: a receipt for each accepted task, the answers by status, the latencies.

The receipts are the client's own list of what was promised to it. An audit starts from this list and asks
the tables; never the other way round.
"""

from __future__ import annotations

import csv
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench.stats import percentile
from scheduler.errors import StartError

LATE_S = 0.01
"""A request sent more than this after its intended time counts as late, in seconds."""


class Receipt(NamedTuple):
    """One accepted task. Instants are seconds since the load began, by the client's monotonic clock.

    `place` is the body's index in the deck. `intended` is when it was to be sent: in an open loop by its
    timetable, else when a sender first took it up. `sent` and `answered` are of the request that was
    accepted. `replay`: the answer was `Idempotent-Replayed`, an earlier request had been accepted already.
    `key` is the idempotency key that the body was sent with, "" if there was none.
    """

    id: str
    place: int
    intended: float
    sent: float
    answered: float
    replay: bool = False
    key: str = ""


@dataclass(slots=True)
class LoadResult:
    """All that a load knows, complete at each moment: a progress callback is given the same object.

    Attributes:
        asked: Bodies that were to be accepted.
        began: Reading of time.monotonic when the load began; on Linux it can be compared across processes.
        receipts: One for each accepted body.
        statuses: Answers by HTTP status, those included that were tried again.
        latencies: Seconds from the intended time to the accepting answer, one for each accepting request.
        refused: Bodies that were answered for good and not accepted.
        unanswered: Requests that met no connection, a broken one, or silence.
        late: Requests of an open loop sent more than LATE_S after their intended time.
        skipped: Bodies of an open loop that were not sent at all, as they were overdue too long.
        seconds: How long it took so far.
        gave_up: Why the load ended early; None if it did not.
        statistics: What another generator tells of itself, as JSON has it: see `swarm.py`.
    """

    asked: int
    began: float
    receipts: list[Receipt] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: array[float] = field(default_factory=lambda: array("d"))
    refused: int = 0
    unanswered: int = 0
    late: int = 0
    skipped: int = 0
    seconds: float = 0.0
    gave_up: str | None = None
    statistics: list[dict[str, Any]] = field(default_factory=list)

    @property
    def accepted(self) -> int:
        """Bodies whose acceptance the client knows of."""
        return len(self.receipts)

    def all_ids(self) -> list[str]:
        """The ids of all bodies. What counts on all of them is no figure if some are missing.

        Raises:
            StartError: not every body was accepted.
        """
        if self.accepted < self.asked:
            why = self.gave_up or f"answers {dict(self.statuses)}, {self.unanswered} unanswered"
            raise StartError(f"only {self.accepted:,} of {self.asked:,} tasks were accepted: {why}")
        return [receipt.id for receipt in self.receipts]

    @property
    def replays(self) -> int:
        """Accepted bodies that an earlier request had placed already."""
        return sum(receipt.replay for receipt in self.receipts)

    @property
    def overloaded(self) -> int:
        """Answers 503 and 429."""
        return self.statuses[503] + self.statuses[429]

    @property
    def rate(self) -> float:
        """Accepted tasks a second."""
        return self.accepted / self.seconds if self.seconds else 0.0

    @property
    def lag_s(self) -> float:
        """p95 of the seconds from the intended time to the sending: how far an open loop fell behind."""
        return percentile(array("d", (receipt.sent - receipt.intended for receipt in self.receipts)), 95)

    def latency_s(self, percent: float) -> float:
        """A percentile of `latencies`, in seconds; nan if nothing was accepted."""
        return percentile(self.latencies, percent)


def write_ledger(result: LoadResult, path: Path) -> None:
    """Write the receipts in the order of acceptance: CSV if the name ends in `.csv`, else JSON lines."""
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".csv":
            rows = csv.writer(file)
            rows.writerow(Receipt._fields)
            rows.writerows(_rounded(receipt) for receipt in result.receipts)
        else:
            file.writelines(map(line_of, result.receipts))


def line_of(receipt: Receipt) -> str:
    """A receipt as a line of a ledger that is no CSV: an object whose names are those of Receipt."""
    return json.dumps(_rounded(receipt)._asdict()) + "\n"


def read_ledger(path: Path) -> Iterator[Receipt]:
    """The receipts of a file that `write_ledger` wrote.

    Raises:
        ValueError: a line is not a receipt; its number is in the text.
    """
    in_csv = path.suffix == ".csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows: Iterable[Any] = csv.DictReader(file) if in_csv else file
        for number, row in enumerate(rows, 2 if in_csv else 1):
            try:
                receipt = receipt_of(row if in_csv else json.loads(row))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: not a receipt ({error!r})") from None
            yield receipt


def promised(receipts: Iterable[Receipt]) -> tuple[list[str], dict[str, set[str]]]:
    """The ids that a client was given, that of a key once, and for each key every id that it was given."""
    ids: list[str] = []
    keys: dict[str, set[str]] = {}
    for receipt in receipts:
        known = keys.setdefault(receipt.key, set()) if receipt.key else set()
        if receipt.id not in known:
            ids.append(receipt.id)
        known.add(receipt.id)
    return ids, keys


def receipt_of(row: Mapping[str, Any]) -> Receipt:
    """The receipt in a row of a ledger. Raises ValueError, KeyError, TypeError if it is none."""
    intended, sent, answered = (float(row[name]) for name in ("intended", "sent", "answered"))
    replay = row["replay"] in {True, "True"}
    key = row.get("key", "")  # a ledger may be older than this column
    return Receipt(str(row["id"]), int(row["place"]), intended, sent, answered, replay, str(key))


def _rounded(receipt: Receipt) -> Receipt:
    """To the microsecond: what a clock between two processes can mean at most."""
    intended, sent, answered = (round(t, 6) for t in (receipt.intended, receipt.sent, receipt.answered))
    return receipt._replace(intended=intended, sent=sent, answered=answered)
