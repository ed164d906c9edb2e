"""Tape: a trace as something to send: each task as the demo task that comes nearest to it.

    noop         it succeeded at once
    sleeper      it succeeded at its first attempt, after a while; or it died because every lease ran out
    flaky        it succeeded after attempts that did not
    always_fail  it died after as many attempts

The number of attempts is kept, then how the last one ended, then the time of that if it is the only one: a
run that fails does so at once. What is not kept is counted, and `notes` says it. A noop stays one, however
long it took, and no timeout strikes: each is a minute longer than the run at least.

The first task comes at second 0. A speed above 1 brings tasks closer together and shortens the delays that
they came with. It does not touch what runs take, nor the waits between retries, which are the fleet's own.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final, Self

from bench import trace
from bench.trace import Traced
from bench.workload import PRIORITIES, Body, Card, Dealt, Mix, TaskType
from scheduler.errors import StartError
from scheduler.lifecycle import TERMINAL

_FAILING: Final = frozenset({"failed", "timed_out", "lost"})
_BEYOND: Final = 2
"""What is to outlive its lease sleeps so many times as long as its longest lease was."""

_AMPLE_MS: Final = 60_000
_DAY_MS: Final = 86_400_000
"""The longest timeout that the API takes."""

_WORDS: Final = {
    "untimed": "runs that end at once and took a while, as there is another attempt beside them",
    "timed_out": "runs that fail and had timed out",
    "lost": "runs that fail and were lost, of tasks that did not die of it",
    "cancelled": "tasks that run to their end and were cancelled",
    "open": "tasks that succeed at their next attempt and had not ended",
    "unrecorded": "tasks that run once, for no time, and had ended with no attempt on record",
}


class Tape(Dealt):
    """The tasks of a trace in the order of their coming. No seed decides anything about them.

    Args:
        tasks: Those of the trace.
        speed: By what gaps and delays are divided.

    Attributes:
        coming: When each is to be sent, in seconds after the first.
        queues: How many queues the tasks were in; they are sent to one.
        missed: What is not kept, by the names of `unkept`.
        kept_ms, doomed_ms: The longest sleep that must fit a lease, the shortest that must not; 0 if none.
    """

    def __init__(self, tasks: Iterable[Traced], speed: float = 1.0) -> None:
        ordered = sorted(tasks, key=lambda task: task.at_ms)
        places: dict[Card, int] = {}
        numbers, kept, doomed = array("I"), {0}, {0}
        self.missed: Counter[str] = Counter()
        for task in ordered:
            card = card_of(task)
            numbers.append(places.setdefault(card, len(places)))
            self.missed.update(unkept(task, card))
            (doomed if task.status == "dead" else kept).add(card.mix.sleep_ms)
        priorities = bytes(PRIORITIES.index(task.priority) for task in ordered)
        delays = array("d", (task.delay_ms / 1000 / speed for task in ordered))
        super().__init__(
            list(places), numbers, priorities, seed=0, delays=delays if any(delays) else array("d")
        )
        begin = ordered[0].at_ms
        self.coming = array("d", ((task.at_ms - begin) / 1000 / speed for task in ordered))
        self.queues = len({task.queue for task in ordered})
        self.kept_ms, self.doomed_ms = max(kept), min(doomed - {0}, default=0)
        self._timeouts = array("q", (task.timeout_ms or 0 for task in ordered))

    def _body(self, index: int) -> Body:
        body, card = super()._body(index), self.cards[self.numbers[index]]
        if self._timeouts[index] or card.kind == "sleeper":
            ample_ms = max(self._timeouts[index], card.mix.sleep_ms + _AMPLE_MS)
            body["timeout_ms"] = min(ample_ms, _DAY_MS)
        if self.delays and (delay_ms := round(self.delays[index] * 1000)):
            body["delay_ms"] = delay_ms
        return body


@dataclass(frozen=True, slots=True)
class Replay:
    """The load of a trace: its tasks at their times, `speed` times as fast.

    `tasks` and `digest` are the trace's own. A file of a scenario may leave them out: see `found`.
    """

    trace: str
    speed: float = 1.0
    tasks: int = 0
    digest: str = ""

    def __post_init__(self) -> None:
        if self.speed <= 0:
            raise ValueError(f"speed is {self.speed:g}; it must be above 0")

    def found(self, folder: Path) -> Self:
        """The same with what the trace itself says; its path counts from `folder`.

        Raises:
            StartError: it cannot be read, or has no tasks.
        """
        if self.digest:
            return self
        path = folder / self.trace
        tasks = trace.header(path).tasks
        if not tasks:
            raise StartError(f"the trace {path} has no tasks: capture a window in which some came")
        return replace(self, trace=str(path), tasks=tasks, digest=trace.digest(path))

    def tape(self) -> Tape:
        """What is to be sent.

        Raises:
            StartError: the trace cannot be read, or is not the one that it was.
        """
        return _tape(self.trace, self.speed, self.digest)


@lru_cache(maxsize=2)
def _tape(path: str, speed: float, digest: str) -> Tape:
    if trace.digest(Path(path)) != digest:
        raise StartError(f"{path} is not the trace that was planned with (its digest is not {digest})")
    return Tape(trace.read(Path(path)), speed)


def notes(load: object, lease_ms: int) -> list[str]:
    """What a replay does not keep, a line each, on a fleet with such leases; nothing of other loads."""
    if not isinstance(load, Replay):
        return []
    tape = load.tape()
    lines = misses(tape.missed)
    if tape.queues > 1:
        lines.append(f"queues that are one: {tape.queues:,}")
    if load.speed != 1:
        lines.append(f"gaps and delays are divided by {load.speed:g}; run times and retry waits are not")
    if tape.kept_ms > lease_ms:
        lines.append(
            f"a run of {tape.kept_ms:,} ms kept its lease and will lose it, as a sleeper does not renew it:"
            f" raise VIS_TIMEOUT_MS above that (it is {lease_ms:,})"
        )
    if 0 < tape.doomed_ms <= lease_ms:
        lines.append(
            f"tasks that died of losses will succeed, as their sleep of {tape.doomed_ms:,} ms fits the lease:"
            f" lower VIS_TIMEOUT_MS (it is {lease_ms:,})"
        )
    return lines


def misses(counts: Counter[str]) -> list[str]:
    """What `unkept` has counted, a line each."""
    return [f"{_WORDS[name]}: {n:,}" for name, n in sorted(counts.items())]


def told(load: object, lease_ms: int) -> list[str]:
    """`notes` for a reader."""
    return [f"not as in the trace: {note}" for note in notes(load, lease_ms)]


def card_of(task: Traced) -> Card:
    """The demo task that comes nearest."""
    failing = sum(outcome in _FAILING for outcome, _ in task.runs)
    if task.status == "dead":
        leases = [ms or 0.0 for outcome, ms in task.runs if outcome == "lost"]
        if leases and len(leases) == len(task.runs):
            return _card("sleeper", task.max_retries, sleep_ms=_BEYOND * max(1, round(max(leases))))
        return _card("always_fail", max(failing, 1) - 1)
    if failing:
        return _card("flaky", max(task.max_retries, failing), fails=failing)
    lasted_ms = round(sum(ms or 0.0 for _, ms in task.runs))
    if task.type == "noop" or not lasted_ms:
        return _card("noop", task.max_retries)
    return _card("sleeper", task.max_retries, sleep_ms=lasted_ms)


def unkept(task: Traced, card: Card) -> Counter[str]:
    """What of a task is not as it was: how often, by name; only what occurs."""
    counts = Counter[str](outcome for outcome, _ in task.runs if outcome in {"timed_out", "lost"})
    if card.kind == "sleeper":
        counts.clear()
    if card.kind in {"flaky", "always_fail"}:
        counts["untimed"] = sum(round(ms or 0.0) > 0 for _, ms in task.runs)
    counts["cancelled"] = int(task.status == "cancelled")
    counts["open"] = int(task.status not in TERMINAL)
    counts["unrecorded"] = int(task.status in {"succeeded", "dead"} and not task.runs)
    return +counts


@lru_cache(maxsize=10_000)
def _card(kind: TaskType, retries: int, *, fails: int = 0, sleep_ms: int = 0) -> Card:
    return Card(Mix(max_retries=retries, flaky_attempts=fails, sleep_ms=sleep_ms), kind)
