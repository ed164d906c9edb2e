"""The command `compare`: is B faster or slower than A, or can nobody tell?

A and B are records of `bench run`, at best of one command, which repeats them in turns; or, with `--commits`,
two commits, and the scenario is run on both now. Blocks are compared in pairs: the ratio B / A of each, their
geometric mean, and an interval by a bootstrap over blocks (see `stats.py`). A claim is made only if

    the interval does not hold 1, and the signed-rank test agrees;
    the change is larger than the floor: what A against itself came to, with controls (`run --control`), else
    from one block to the next.

Beside it stands the least change that so many blocks would have found. Times and CPU of a run that was
disturbed are left out with their block. Each figure is judged alone: of twenty that are equal one is told
apart.

`compare A --planted 10` asks instead whether all this works: it resamples the controls of A, at least 60, and
says how often equal things are told apart, and how often a change of 10 % is found (see `power.py`).
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bench import power, record, repeats, scenario
from bench.builds import committed
from bench.costs import Costs
from bench.figure import lined_up
from bench.options import count, percent
from bench.repeats import COSTS, TIMES, Measure, Record
from bench.stats import Effect, compared, spread
from bench.turn import Arm, records
from scheduler.errors import ConfigError, StartError

SAME_MACHINE: Final = 0.15
"""So far the machine's scores may differ between records that were not made in turns."""

CANNOT_TELL: Final = "cannot tell"

_HEADERS: Final = ("Figure", "A", "B", "B / A", "95 %", "n", "p", "A / A", "Detectable", "")
_KEYS: Final = ("drain_s", "wait/p50_s", "wait/p95_s", "p95_run_s")
JUDGED: Final = (*(m for m in TIMES if m.key in _KEYS), *(m for m in COSTS if not m.title.startswith(" ")))
"""The figures that are judged; of all less is better."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What is said of one figure.

    Attributes:
        measure: The figure.
        values: The medians of A and B, of the blocks that count.
        effect: B against A.
        floor: A against itself; None if nothing tells it.
        against: Why nothing may be claimed, whatever the figures say; "" if nothing speaks against it.
    """

    measure: Measure
    values: tuple[float, float]
    effect: Effect
    floor: Effect | None
    against: str = ""

    @property
    def word(self) -> str:
        """`faster` or `slower` of times, `cheaper` or `dearer` of costs, or CANNOT_TELL."""
        if self.against or self.floor is None or not self.effect.beyond(self.floor.floor):
            return CANNOT_TELL
        better, worse = ("faster", "slower") if self.measure.unit == "s" else ("cheaper", "dearer")
        return better if self.effect.ratio.value < 1 else worse

    @property
    def worse(self) -> bool:
        """Whether B has lost."""
        return self.word in {"slower", "dearer"}

    def cells(self) -> tuple[str, ...]:
        """The claim as a row under the headers."""
        effect, floor = self.effect, self.floor
        return (
            self.measure.title,
            *map(self.measure.words, self.values),
            f"{effect.ratio.value:.3f}",
            f"{effect.ratio.low:.3f} to {effect.ratio.high:.3f}",
            str(effect.rounds),
            f"{effect.p:.3f}",
            "-" if floor is None else f"{floor.ratio.low:.3f} to {floor.ratio.high:.3f}",
            "-" if effect.rounds < 2 else f"{effect.detectable:.1%}",
            f"{self.word} ({self.against})" if self.against else self.word,
        )

    def content(self) -> dict[str, Any]:
        """The claim as JSON has it."""
        return {
            "figure": self.measure.key,
            "a": self.values[0],
            "b": self.values[1],
            "ratio": self.effect.ratio._asdict(),
            "blocks": self.effect.rounds,
            "p": self.effect.p,
            "floor": None if self.floor is None else self.floor.ratio._asdict(),
            "detectable": None if self.effect.rounds < 2 else self.effect.detectable,
            "word": self.word,
            "against": self.against,
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `compare` to `parser`."""
    parser.add_argument("a", metavar="A", help="a record, or a commit with --commits")
    parser.add_argument("b", metavar="B", nargs="?", help="what is compared with it")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--commits",
        type=Path,
        metavar="SCENARIO.toml",
        help="A and B are commits: run this on both, in turns",
    )
    what.add_argument(
        "--planted", type=percent, metavar="PERCENT", help="how surely would A's controls tell such a change?"
    )
    parser.add_argument("--repeats", type=count, default=24, help="blocks of --commits and --planted (24)")
    parser.add_argument("--out", type=Path, help="write a record of the comparison here")


def main(args: argparse.Namespace) -> int:
    """Compare and tell; 1 if B is clearly slower or dearer, or if --planted finds too little, else 0."""
    if (args.planted is None) == (args.b is None):
        raise ConfigError("compare takes two records, two commits, or one record with --planted")
    if args.planted is not None:
        return _planted(args)
    a, b = _commits(args) if args.commits else (repeats.read(Path(args.a)), repeats.read(Path(args.b)))
    claims = judge(a, b)
    print("\n".join(told(a, b, claims)))
    if args.out is not None:
        result = {"a": _named(a), "b": _named(b), "claims": [claim.content() for claim in claims]}
        record.write(args.out, record.make(_command(args), result))
    return int(any(claim.worse for claim in claims))


def judge(a: Record, b: Record) -> list[Claim]:
    """A claim for every figure that both records have.

    Raises:
        StartError: there is none, as no block of the two stands.
    """
    apart = _apart(a, b)
    found = [claim for measure in JUDGED if (claim := _claim(measure, a, b, apart)) is not None]
    if not found:
        raise StartError(f"{a.path} and {b.path} have no block in common that was not disturbed")
    return found


def _claim(measure: Measure, a: Record, b: Record, apart: str) -> Claim | None:
    ours, theirs = repeats.pairs(measure, b.runs, a.runs)
    if not ours:
        return None
    again, first = repeats.pairs(measure, a.controls, a.runs)
    if not again:
        values = repeats.standing(measure, a.runs)
        again, first = values[1::2], values[: len(values) // 2 * 2 : 2]
    floor = compared(again, first) if again and min(*again, *first) > 0 else None
    middles = spread(theirs).median, spread(ours).median
    return Claim(measure, middles, compared(ours, theirs), floor, apart if measure.spoiled else "")


def _apart(a: Record, b: Record) -> str:
    """Why the times of two records do not compare; "" if they do."""
    if a.result["source"] != b.result["source"]:
        return f"{a.result['source']} against {b.result['source']}"
    if _in_turns(a, b) or a.result["source"] == "simulated":
        return ""
    if a.made["machine"]["cpu"] != b.made["machine"]["cpu"]:
        return "other machine"
    for name in a.runs[0]["scores"]:
        mine, other = (spread([run["scores"][name] for run in each.runs]).median for each in (a, b))
        if abs(mine / other - 1) > SAME_MACHINE:
            return f"score {name} {other / mine - 1:+.0%}"
    return ""


def _in_turns(a: Record, b: Record) -> bool:
    return a.result["session"] is not None and a.result["session"] == b.result["session"]


def told(a: Record, b: Record, claims: Sequence[Claim]) -> list[str]:
    """The comparison for a reader."""
    lines = [f"A: {_line(a)}", f"B: {_line(b)}"]
    if not _in_turns(a, b):
        lines.append("not made in turns: what the machine did between the two is in every ratio of times")
    if a.planned.hash != b.planned.hash:
        lines.append(
            f"the scenarios differ: {', '.join(_differences(a.planned.content(), b.planned.content()))}"
        )
    lines += ["", lined_up(_HEADERS, [claim.cells() for claim in claims]), ""]
    if not a.controls:
        lines.append(
            "A / A is from one block of A to the next; `bench run --control` measures it within blocks"
        )
    for name, each in (("A", a), ("B", b)):
        disturbed = [str(run["block"]) for run in each.runs if not run["valid"]]
        if disturbed:
            lines.append(
                f"left out of times and CPU, as they were disturbed: blocks {', '.join(disturbed)} of {name}"
            )
    words = {claim.word: [c.measure.title for c in claims if c.word == claim.word] for claim in claims}
    return [*lines, *(f"{word}: {', '.join(titles)}" for word, titles in words.items())]


def _line(found: Record) -> str:
    build = found.result["build"]
    return f"{found.planned.heading}{f', commit {build}' if build else ''}"


def _differences(a: Mapping[str, Any], b: Mapping[str, Any], path: str = "") -> list[str]:
    """Where two scenarios differ, by path."""
    lines: list[str] = []
    for name in sorted(a.keys() | b.keys()):
        mine, other = a.get(name), b.get(name)
        if isinstance(mine, Mapping) and isinstance(other, Mapping):
            lines += _differences(mine, other, f"{path}{name}.")
        elif mine != other:
            lines.append(f"{path}{name} {mine} and {other}")
    return lines


def _commits(args: argparse.Namespace) -> tuple[Record, Record]:
    """Run the scenario on both commits, A twice in each block, and keep the records."""
    planned = replace(scenario.read(args.commits), repeats=args.repeats)
    with ExitStack() as stack:
        arms = []
        for name in (args.a, args.b):
            env = stack.enter_context(committed(name))
            arms.append(Arm(planned, env, build=record.short(name) or name))
        arms.insert(1, replace(arms[0], control=True))
        made = records(arms, args.repeats, Costs(), _command(args))
    paths = []
    for number, each in enumerate(made):
        path = record.default_path(f"{planned.name}-{each['result']['build']}", each, number)
        record.write(path, each)
        print(f"record: {path}")
        paths.append(path)
    a, b = map(repeats.read, paths)
    return a, b


def _planted(args: argparse.Namespace) -> int:
    """Tell how surely a change is found; 0 if that of CPU is, and equal things are seldom told apart."""
    found, change, blocks = repeats.read(Path(args.a)), args.planted / 100, args.repeats
    rows = power.measured(found, JUDGED, change, blocks)
    cells = [row.cells() for row in rows]
    print(f"resampled to comparisons of {blocks} blocks:\n\n{lined_up(power.headers(change), cells)}")
    if args.out is not None:
        kept = power.content(found, JUDGED, rows, change, blocks)
        record.write(args.out, record.make(_command(args), kept))
        print(f"record: {args.out}")
    return 0 if power.passed(rows) else 1


def _named(found: Record) -> dict[str, Any]:
    return {"name": found.planned.name, "hash": found.planned.hash, "build": found.result["build"]}


def _command(args: argparse.Namespace) -> list[str]:
    """What a reader types to compare again."""
    if args.planted is not None:
        return ["bench compare", args.a, f"--planted {args.planted:g}", f"--repeats {args.repeats}"]
    commits = ["--commits", shlex.quote(str(args.commits)), f"--repeats {args.repeats}"]
    return ["bench compare", args.a, args.b, *(commits if args.commits else [])]
