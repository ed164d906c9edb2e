"""Scenario: an experiment as data, read from a TOML file. A run and a simulation take the same one.

    seed = 1                        # decides the deck's order, random arrivals, and a simulation
    repeats = 3                     # how often it is run; repeat k has the seed `seed` + k

    [mix]                           # see bench/workload.py
    flaky = 10
    sleep = 5
    sleep_ms = 4000

    [load]                          # one of
    kind = "bulk"                   #   tasks, as bulk requests
    tasks = 10000                   # kind = "open"    rate, seconds, spacing = "even" or "random"
                                    # kind = "shape"   steps = [[seconds, rate], ...]
                                    # kind = "closed"  tasks, senders
                                    # kind = "locust"  tasks, users, processes: closed, by Locust
                                    # kind = "replay"  trace = "file", speed = 10: see bench/tape.py; no mix

    [fleet]
    processes = 3
    slots = 12

    [fleet.settings]                # variables of the product; the API gets them, too
    VIS_TIMEOUT_MS = 2000

    [[faults]]                      # see bench/faults.py
    at_s = 2.5
    kind = "worker_killed"
    target = "worker 1"             # may be left out: the seed draws one

A file that says anything else is refused in one line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

from bench import schema
from bench.tape import Replay
from bench.workload import Dealt, Mix, deck
from scheduler.config import VARS, Settings
from scheduler.config import load as load_settings
from scheduler.errors import ConfigError, StartError

MOST_TASKS: Final = 10_000_000
_BULK_MAX: Final = 1000

FaultKind = Literal[
    "worker_killed",
    "worker_frozen",
    "api_killed",
    "api_frozen",
    "redis_flushed",
    "scripts_flushed",
    "redis_killed",
    "redis_frozen",
    "redis_restored",
    "postgres_restarted",
    "backends_terminated",
    "links_reset",
    "redis_swallowed",
    "postgres_swallowed",
    "link_delayed",
    "commits_cut",
]

_PLACES: Final = frozenset({"POSTGRES_URL", "REDIS_ADDR", "REDIS_PASS", "METRICS_ADDR", "HTTP_ADDR"})
"""Variables that say where something is: the run's business, not the scenario's."""


def _within(name: str, number: float, low: float, high: float) -> None:
    if not low <= number <= high:
        raise ValueError(f"{name} is {number:,}; it must be from {low:,} to {high:,}")


def _above_0(name: str, number: float) -> None:
    if number <= 0:
        raise ValueError(f"{name} is {number:,}; it must be above 0")


@dataclass(frozen=True, slots=True)
class Bulk:
    """All at once: requests of `size` tasks, `senders` at a time."""

    tasks: int
    size: int = _BULK_MAX
    senders: int = 4

    def __post_init__(self) -> None:
        _within("tasks", self.tasks, 1, MOST_TASKS)
        _within("size", self.size, 1, _BULK_MAX)
        _within("senders", self.senders, 1, 1000)


@dataclass(frozen=True, slots=True)
class Closed:
    """One by one: each of `senders` sends its next task when the last one is answered."""

    tasks: int
    senders: int

    def __post_init__(self) -> None:
        _within("tasks", self.tasks, 1, MOST_TASKS)
        _within("senders", self.senders, 1, 1000)


@dataclass(frozen=True, slots=True)
class Locust:
    """The same by Locust, a tool that people know: `users` in so many processes. It uses more of the CPU.

    So many tasks are `followed` to their end, so that Locust's statistics have end-to-end latencies, too.
    """

    tasks: int
    users: int = 16
    processes: int = 1
    followed: int = 200

    def __post_init__(self) -> None:
        _within("tasks", self.tasks, 1, MOST_TASKS)
        _within("processes", self.processes, 1, 64)
        _within("users", self.users, self.processes, 1000)
        _within("followed", self.followed, 0, MOST_TASKS)


@dataclass(frozen=True, slots=True)
class Open:
    """`rate` tasks a second for `seconds`, whatever the system does.

    With even spacing they are 1/rate apart; with random spacing the gaps are exponential, and as many tasks
    come, in about as many seconds.
    """

    rate: float
    seconds: float
    spacing: Literal["even", "random"] = "even"

    def __post_init__(self) -> None:
        _above_0("rate", self.rate)
        _above_0("seconds", self.seconds)
        _within("rate × seconds", self.tasks, 1, MOST_TASKS)

    @property
    def tasks(self) -> int:
        """How many are sent."""
        return round(self.rate * self.seconds)


@dataclass(frozen=True, slots=True)
class Shape:
    """An open loop whose rate changes: steps of (seconds, tasks a second), evenly spaced within each."""

    steps: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        for seconds, rate in self.steps:
            _above_0("the length of a step", seconds)
            _within("the rate of a step", rate, 0, MOST_TASKS)
        _within("the number of tasks in all steps", self.tasks, 1, MOST_TASKS)

    @property
    def tasks(self) -> int:
        """How many are sent."""
        return round(sum(seconds * rate for seconds, rate in self.steps))


Load = Bulk | Closed | Locust | Open | Shape | Replay
LOADS: Final[dict[str, type[Load]]] = {
    kind.__name__.lower(): kind for kind in (Bulk, Open, Shape, Closed, Locust, Replay)
}


@dataclass(frozen=True, slots=True)
class Fleet:
    """Worker processes, the slots of each, and what they and the API are started with."""

    processes: int
    slots: int = 12
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _within("processes", self.processes, 1, 1000)
        names = {declared.name for declared in VARS.values()}
        for name in self.settings:
            if name not in names:
                raise ValueError(f"settings has {name}, which is no variable of the product")
            if name in _PLACES:
                raise ValueError(f"settings has {name}; where things are is not the scenario's to say")
        if "WORKER_POOL" in self.settings:
            raise ValueError("settings has WORKER_POOL; write it as slots")
        try:
            _ = self.config
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @property
    def env(self) -> dict[str, str]:
        """The variables that the fleet and the API are started with."""
        return {"WORKER_POOL": str(self.slots), **self.settings}

    @property
    def config(self) -> Settings:
        """The settings that `env` amounts to."""
        return load_settings(self.env)[0]


@dataclass(frozen=True, slots=True)
class Harm:
    """A fault on the schedule: its kind strikes `at_s` seconds after the load began, at `target` if named."""

    at_s: float
    kind: FaultKind
    target: str | None = None

    def __post_init__(self) -> None:
        _within("at_s", self.at_s, 0, 86_400)


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is to be done, in which order, on what. The name is for people; all else decides the outcome.

    Raises:
        ValueError: its parts do not go together.
    """

    name: str
    mix: Mix
    load: Load
    fleet: Fleet
    faults: tuple[Harm, ...] = ()
    seed: int = 1
    repeats: int = 1

    def __post_init__(self) -> None:
        _within("seed", self.seed, 0, 2**31)
        _within("repeats", self.repeats, 1, 1000)
        if isinstance(self.load, Replay) and self.mix != Mix():
            raise ValueError("a replay takes its tasks from the trace: leave mix out")
        timeout_ms = self.fleet.config.task_timeout_ms
        if self.mix.sleep and self.mix.sleep_ms >= timeout_ms:
            raise ValueError(
                f"mix.sleep_ms is {self.mix.sleep_ms} and TASK_TIMEOUT_MS {timeout_ms}; a sleeper must not"
                " time out: raise TASK_TIMEOUT_MS in fleet.settings"
            )
        for harm in self.faults:
            known = self._targets(harm.kind)
            if harm.target is not None and harm.target not in known:
                those = f"one of {', '.join(known)}" if known else "left out"
                raise ValueError(f"target of {harm.kind} is {harm.target!r}; it must be {those}")

    def _targets(self, kind: FaultKind) -> list[str]:
        """Whom a fault may name: a run has one API, and two wires to its stores."""
        if kind.startswith("worker_"):
            return [f"worker {i + 1}" for i in range(self.fleet.processes)]
        if kind.startswith("api_"):
            return ["api 1"]
        return ["postgres wire", "redis wire"] if kind.startswith("link") else []

    @property
    def heading(self) -> str:
        """The scenario in a line."""
        times = "once" if self.repeats == 1 else f"{self.repeats} times"
        on = f"{self.fleet.processes} × {self.fleet.slots}"
        return f"{self.name} ({self.hash}): {self.load.tasks:,} tasks on {on}, {times}, seed {self.seed}"

    def deck(self, repeat: int = 0) -> Dealt:
        """The tasks of one repeat, counted from 0, in the order of sending."""
        if isinstance(self.load, Replay):
            return self.load.tape()
        return deck(self.mix, self.load.tasks, self.seed + repeat)

    def content(self) -> dict[str, Any]:
        """The scenario as JSON has it, without its name: what a file like it would say, defaults included."""
        kinds = {cls: kind for kind, cls in LOADS.items()}
        parts = asdict(self)
        del parts["name"]
        parts["load"] = {"kind": kinds[type(self.load)]} | parts["load"]
        return {name: _canonical(part) for name, part in parts.items()}

    @property
    def hash(self) -> str:
        """Two scenarios that ask for the same have the same one: 12 hexadecimal digits."""
        parts = self.content()
        parts["load"].pop("trace", None)  # its digest says which one it is, wherever it lies
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _canonical(part: Any) -> Any:
    """One way to write each value: whole numbers without a point, lists for tuples."""
    if isinstance(part, Mapping):
        return {name: _canonical(each) for name, each in part.items()}
    if isinstance(part, tuple):
        return [_canonical(each) for each in part]
    return int(part) if isinstance(part, float) and part.is_integer() else part


def read(path: Path) -> Scenario:
    """The scenario in a TOML file; a bare name without a folder may be one of those that `names` lists.

    Raises:
        StartError: one line: what is wrong, where, and what it must be.
    """
    text = _text(path)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StartError(f"{path} is not TOML: {error}") from None
    return parse(table, str(path), path.stem, folder=path.parent)


def parse(table: Mapping[str, Any], where: str, name: str, *, folder: Path = Path()) -> Scenario:
    """The scenario in a table; errors name it as `where`, and a trace is looked for from `folder` on.

    Raises:
        StartError: see `read`.
    """
    parts = {"name": name} | dict(table)
    if "load" in parts:
        load = parts["load"] = _load(parts["load"], f"{where}: load")
        if isinstance(load, Replay):
            parts = {"mix": Mix()} | parts | {"load": load.found(folder)}
    return schema.read(Scenario, parts, f"{where}:")


def add_argument(parser: argparse.ArgumentParser, *, many: bool = False) -> None:
    """Add the argument `scenario` to `parser`; a list of at least one if `many` may be given."""
    parser.add_argument(
        "scenario",
        type=Path,
        metavar="SCENARIO.toml",
        nargs="+" if many else None,
        help=f"a file, or one of {', '.join(names())}",
    )


def names() -> list[str]:
    """The scenarios that come with the workbench."""
    return sorted(file.name.removesuffix(".toml") for file in (files("bench") / "scenarios").iterdir())


def _text(path: Path) -> str:
    shipped = files("bench") / "scenarios" / f"{path}.toml"
    try:
        if path.parent == Path() and not path.exists() and shipped.is_file():
            return shipped.read_text(encoding="utf-8")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise StartError(
            f"{path} cannot be read: {why}; name a TOML file, or one of {', '.join(names())}"
        ) from None


def _load(table: object, where: str) -> Load:
    if not isinstance(table, Mapping):
        raise StartError(f"{where} is {table!r}; it must be a table")
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in LOADS:
        raise StartError(f"{where}.kind is {kind!r}; it must be one of {', '.join(LOADS)}")
    return schema.read(LOADS[kind], {k: v for k, v in table.items() if k != "kind"}, where)
