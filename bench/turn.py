"""A turn: one repeat of a scenario on a system of its own, from the start of its servers to its end.

Servers, API and fleet are new each time, so no turn finds what another one has left. A little work warms the
servers and the API; the fleet that is measured has run nothing before. A scenario with faults runs on an
arena, where the first worker and the API reach the stores through proxies, so that wires can be harmed, too.

Several arms are repeated in blocks: in each block every arm has its turn, in an order that is drawn, with the
same seed. Two turns of one block are close in time, and what the machine does to one it does to the other.
"""

from __future__ import annotations

import random
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench import agreement, burst, fingerprint, meter, record, repeats, sampling, theory, validity
from bench.arena import Arena
from bench.burst import Stalled
from bench.costs import Costs
from bench.measured import history_of, prices
from bench.meter import Meter
from bench.observation import Observation, observed
from bench.outlook import Outlook
from bench.progress import Left
from bench.receipts import LoadResult
from bench.scenario import Bulk, Open, Scenario, Shape
from bench.schedule import Schedule
from bench.simulate import summary
from bench.system import OWN_SERVERS, Running, System, system
from bench.tape import Replay
from bench.validity import Conduct
from bench.watch import Watch
from bench.workload import Mix, deck
from scheduler.errors import StartError

SETTINGS: Final = OWN_SERVERS | {
    "HTTP_ADDR": "127.0.0.1:0",
    "METRICS_ADDR": "127.0.0.1:0",
    "LOG_LEVEL": "warning",
}
WARM_UP: Final = 300
_PATIENCE_S: Final = 15.0
"""How long Redis may disagree with a system that was harmed: a dead leader's lease is part of it."""

_PERCENTS: Final = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Arm:
    """What is repeated.

    Attributes:
        planned: The scenario.
        env: Variables with which the product is run, beside its settings: see `builds.py`.
        build: The commit that they name; None for the tree as it is.
        control: It is the first arm once more, to show how far apart equal things come out.
    """

    planned: Scenario
    env: Mapping[str, str] = field(default_factory=dict)
    build: str | None = None
    control: bool = False

    @property
    def title(self) -> str:
        """What progress calls it."""
        name = self.planned.name if self.build is None else f"{self.planned.name} on {self.build}"
        return f"{name}, control" if self.control else name


@dataclass(frozen=True, slots=True)
class Turn:
    """What came of one: the arm's number, what a record keeps, and what the servers were."""

    arm: int
    run: repeats.Run
    environment: dict[str, Any]


def records(arms: Sequence[Arm], n: int, priced: Costs, command: Sequence[str]) -> list[dict[str, Any]]:
    """`n` blocks of the arms: a record of each, its control in it.

    Raises:
        StartError: a part of the system did not start, or nothing happened for too long.
    """
    runs: dict[int, list[repeats.Run]] = {number: [] for number in range(len(arms))}
    environments: dict[int, dict[str, Any]] = {}
    try:
        for turn in blocks(arms, n, priced, seed=arms[0].planned.seed):
            runs[turn.arm].append(turn.run)
            environments[turn.arm] = turn.environment
    except Stalled as error:
        raise StartError(f"the run has stalled: {error}") from None
    session, found = uuid.uuid4().hex[:12], []
    for number, arm in enumerate(arms):
        if arm.control:
            continue
        twice = [each for k, other in enumerate(arms) if other.control and number == 0 for each in runs[k]]
        kept = repeats.result(
            "measured",
            arm.planned,
            sorted([*runs[number], *twice], key=lambda run: (run["block"], run["control"])),
            session=session,
            build=arm.build,
            environment=environments[number],
            costs=priced.content(),
        )
        found.append(record.make(command, kept))
    return found


def blocks(arms: Sequence[Arm], n: int, priced: Costs, *, seed: int) -> Iterator[Turn]:
    """Every arm once in each of `n` blocks, one after the other, as they end.

    Raises:
        StartError: a part of the system did not start.
        Stalled: nothing happened for too long.
    """
    rng = random.Random(seed)
    for block in range(n):
        for number in rng.sample(range(len(arms)), len(arms)):
            run, environment = take(arms[number], block, priced)
            yield Turn(number, run, environment)


def take(arm: Arm, block: int, priced: Costs) -> tuple[repeats.Run, dict[str, Any]]:
    """One repeat, counted from 0: what a record keeps of it, and what the servers were."""
    planned = arm.planned
    outlook = Outlook(planned, priced, block)
    taken = (_harmed if planned.faults else _calm)(arm, block, outlook.left_s)
    seen = taken.seen
    history = history_of(seen.ledger)
    figures = summary(planned, history)
    live = _live(planned, taken) | {
        "control": arm.control,
        "scores": taken.scores,
        "prices": prices(history, seen.spent.cpu_s) if seen.spent else {},
        "predicted": outlook.prediction,
    }
    run = repeats.content(planned, block, history, figures, expected=seen.expected, live=live)
    return run, taken.environment


@dataclass(frozen=True, slots=True)
class _Taken:
    """What was seen of a repeat, how many parts ended by themselves, and the faults with what missed."""

    seen: Observation
    environment: dict[str, Any]
    scores: dict[str, float]
    ended: int
    faults: list[dict[str, Any]] = field(default_factory=list)
    missed: Sequence[str] = ()


def _calm(arm: Arm, block: int, left: Left) -> _Taken:
    """On a system that nobody harms."""
    planned = arm.planned
    with system({**SETTINGS, **planned.fleet.env, **arm.env}, say=print, postgres=meter.SETTINGS) as me:
        about = _about(me)
        _warm(me)
        with me.with_fleet(planned.fleet.processes), _metered(me) as counters:
            exact = not theory.undecided(planned)
            seen = _observed(arm, block, me, left, meter=counters, exact=exact)
            ended = sum(member.child.returncode is not None for member in me.fleet)
    return _Taken(seen, *about, ended)


def _harmed(arm: Arm, block: int, left: Left) -> _Taken:
    """On an arena, while the scenario's faults strike. What a task costs is not metered there."""
    planned = arm.planned
    with tempfile.TemporaryDirectory(prefix="scheduler-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # where root cannot be mapped, Postgres passes through as another user
        settings = {"LOG_LEVEL": "warning", **planned.fleet.env}
        with Arena(
            folder, arm.env, settings=settings, apis=1, workers=planned.fleet.processes, postgres={}
        ) as arena:
            about = _about(arena)
            with Watch(arena.connect, arena.redis_url, arena.settings.redis_prefix) as watch:
                harm = Schedule(arena, planned.faults, planned.seed + block, lambda: watch.busy)
                seen = _observed(arm, block, arena, left, exact=False, harm=harm, patience_s=_PATIENCE_S)
            return _Taken(seen, *about, len(arena.deaths), harm.content(), harm.missed)


def _about(running: Running) -> tuple[dict[str, Any], dict[str, float]]:
    urls = running.postgres_url, running.redis_url
    return fingerprint.environment(*urls), fingerprint.scores(*urls)


def _observed(arm: Arm, block: int, running: Running, left: Left, **more: Any) -> Observation:
    planned = arm.planned
    title, seed = f"{arm.title}, block {block}", planned.seed + block
    return observed(running, title, planned.deck(block), planned.load, seed=seed, left=left, **more)


def _warm(me: System) -> None:
    with me.with_fleet(1):
        before = burst.metrics(me)
        burst.send(me, deck(Mix(noop=100), WARM_UP), _silent)
        burst.drain(me, WARM_UP, before, _silent)


def _silent(_what: str, _n: int, _of: int) -> None:
    """Tell nobody."""


def _metered(me: System) -> Meter:
    postgres, redis = me.stack.postgres, me.stack.redis
    assert postgres is not None
    assert redis is not None
    api = [child.pid for child in me.stack.children if child.args[0] == "api"]
    parts = {
        "workers": [member.pid for member in me.fleet],
        "api": api,
        "postgres": [postgres.pid],
        "redis": [redis.pid],
    }
    return Meter(postgres.admin_url, redis.url, parts)


def _live(planned: Scenario, taken: _Taken) -> dict[str, Any]:
    """What only a real run has."""
    seen = taken.seen
    receipts, company = seen.receipts, seen.company
    timed = isinstance(planned.load, Open | Shape | Replay)
    drained = seen.snapshot.drain_s
    against = validity.flags(
        Conduct(
            busy_percent=company.busy_percent,
            steal_percent=company.steal_percent,
            step_s=seen.step_s,
            gap_s=seen.gap_s,
            ended=taken.ended,
            missed=taken.missed,
            offences=[check.name for check in seen.verdict.offences],
            skipped=receipts.asked - receipts.accepted,
            lag_s=receipts.lag_s if timed else 0.0,
            span=seen.ledger.arrival_s / drained if isinstance(planned.load, Bulk) else 0.0,
        )
    )
    return {
        "timeline": {
            "at": seen.ledger.start.isoformat(),
            "load_began_s": seen.at("began"),
            "load_ended_s": seen.at("sent"),
            "drained_s": seen.at("drained"),
            "faults": taken.faults,
        },
        "shares": {"cores": min(1.0, (company.own_percent + company.busy_percent) / 100)},
        "samples": sampling.content(seen.samples),
        "load": _client(receipts),
        "cost": seen.spent.per(receipts.accepted) if seen.spent else {},
        "company": {
            "busy_percent": round(company.busy_percent, 1),
            "steal_percent": round(company.steal_percent, 1),
            "own_percent": round(company.own_percent, 1),
        },
        "verdict": seen.verdict.record(),
        "sources": _sources(seen) if not planned.faults else None,
        "flags": [flag.content() for flag in against],
        "valid": validity.valid(against),
    }


def _sources(seen: Observation) -> dict[str, Any]:
    """What each of the three sides has seen; where parts are killed, their metrics die with them."""
    return agreement.content(seen.ledger, seen.gained, seen.samples, seen.receipts.accepted)


def _client(receipts: LoadResult) -> dict[str, Any]:
    """What the client has seen: latencies count from the time at which a request was to be sent."""
    return {
        "asked": receipts.asked,
        "accepted": receipts.accepted,
        "refused": receipts.refused,
        "unanswered": receipts.unanswered,
        "late": receipts.late,
        "skipped": receipts.skipped,
        "seconds": receipts.seconds,
        "lag_s": receipts.lag_s,
        "latency_s": {f"p{percent}": receipts.latency_s(percent) for percent in _PERCENTS},
        "statuses": {str(status): n for status, n in sorted(receipts.statuses.items())},
        "locust": receipts.statistics,
    }
