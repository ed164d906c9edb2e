"""Writes the parts of the documents that the code and the records know better.

    python docs/generate.py            rewrite them in place
    python docs/generate.py --check    exit with 1 if one of them is out of date

In README.md these are settings, metrics, commands, notebooks and modules; in docs/reliability.md,
docs/performance.md and docs/benchmarks.md the figures, from the records under docs/records/. Each part lies
between two comments, `<!-- settings -->` and `<!-- /settings -->`, and is replaced whole. But for the
promises of docs/reliability.md: of that table only the last column is written, where a comment names the
figures: `<!-- whole again: flush.whole; soak -->`.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from prometheus_client.metrics import MetricWrapperBase

from bench import cli as bench_cli
from bench import company, record
from bench import cost as bench_cost
from bench import growth as bench_growth
from bench import power as bench_power
from bench import validation as bench_validation
from bench.proof import COMMANDS, Proofs
from bench.record import read
from bench.rows import table as rows_of
from bench.standings import Standings
from scheduler import cli
from scheduler.config import VARS
from scheduler.metrics import Metrics

ROOT: Final = Path(__file__).parents[1]
README: Final = ROOT / "README.md"
RELIABILITY: Final = ROOT / "docs" / "reliability.md"
PERFORMANCE: Final = ROOT / "docs" / "performance.md"
BENCHMARKS: Final = ROOT / "docs" / "benchmarks.md"
RECORDS: Final = ROOT / "docs" / "records"

GROUPS: Final[dict[str, dict[str, str]]] = {
    "scheduler": {
        "Words": "errors clock lifecycle model backoff fairness",
        "Instruments": "log config metrics failpoints loop handlers held table",
        "Storage": "keys shard queue arrays connections migrate store",
        "Flow": "enqueue lease run settle",
        "Loops": "heartbeat pump reaper reconcile sampler housekeeping",
        "Desk": "dlq cancel",
        "Worker": "solo slots worker",
        "HTTP API": (
            "api api.server api.transport api.app api.access api.backend api.submissions api.body api.spec"
            " api.tasks api.queues api.health api.views api.problems api.openapi"
        ),
        "Machine": "child fleet supervisor embedded stack",
        "Command": "commands local cli",
    },
    "bench": {
        "Inputs": "options workload work builds schema trace tape scenario arrivals",
        "Acting": "system stand proxy arena faults schedule http hammer delivery load swarm burst parking"
        " traffic trial amnesia recovery strain filling side churn",
        "Observing": "scrape meter steps vitals fingerprint sampling promql receipts ledger journal index"
        " watch checks audit drift agreement leaks observation validity capture findings alarms",
        "Telling": "record figure proof report laws bursts plots document progress timelines sweeps"
        " live steered panel",
        "Predicting": "theory costs job history summary repeats measured agenda worker twin outlook cells"
        " validation evidence advice sizing planner",
        "Measuring": "stats power turn rows aims rounds company noop_api yardsticks rates latency occupancy"
        " footprint startup crowd scaling offered peer_apps.program peer_apps.arq_app peer_apps.celery_app"
        " peer_apps.dramatiq_app peer_apps.pgqueuer_app peer_apps.procrastinate_app peer_apps.rq_app"
        " peer_apps.saq_app peer_apps.scheduler_app peer_apps.streaq_app peer_apps.taskiq_app"
        " peer marks contest peer_stores known_peers ours lineup standings",
        "Commands": "demo load_cli plan run report_cli compare capture_cli simulate calibrate validate_cli"
        " advise_cli audit_cli chaos amnesia_cli reliability soak limits ratios peers cost growth notebooks"
        " cli",
    },
}
"""Every module of a package by group, each group using the ones before it: the layers in pyproject.toml."""


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in the source, too."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (headers, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def settings() -> str:
    """The original README's variables first, then ours, each with its default and meaning."""
    in_order = sorted(VARS.values(), key=lambda declared: not declared.seed)
    return table(
        ("Variable", "Default", "Description"),
        [(f"`{d.name}`", f"`{d.default}`" if d.default else "_(empty)_", d.doc) for d in in_order],
    )


def metrics() -> str:
    """Every metric with its labels, by kind, in the order of their declaration."""
    declared = [m for m in vars(Metrics()).values() if isinstance(m, MetricWrapperBase)]
    rows: list[tuple[str, str, str]] = []
    for metric in declared:
        [family] = metric.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ",".join(metric._labelnames)  # noqa: SLF001 - a metric does not tell its labels otherwise
        rows.append((f"`{name}{{{labels}}}`" if labels else f"`{name}`", family.type, family.documentation))
    return table(("Metric", "Kind", "Meaning"), rows)


def commands() -> str:
    """The commands of both programs with their line of help."""
    rows = [
        (f"`{parser.prog} {name}`", sentence(help_))
        for parser in (cli.parser(with_load=False), bench_cli.parser())
        for name, help_ in subcommands(parser)
    ]
    return table(("Command", "What it does"), rows)


def subcommands(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """The commands below a parser and their help, in the order in which `--help` shows them."""
    # argparse does not tell them otherwise than by its insides.
    [action] = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]  # noqa: SLF001
    return [(choice.dest, choice.help or "") for choice in action._choices_actions]  # noqa: SLF001


def notebooks() -> str:
    """Every notebook: its name, its title, and the first sentence that it says of itself."""
    rows = []
    for path in sorted((ROOT / "notebooks").glob("*.py")):
        text = path.read_text(encoding="utf-8").partition("\n# %%")[0]
        title, about = re.split(r"\n#\n", text, maxsplit=2)[:2]
        words = re.sub(r"\s*\n# ", " ", about.removeprefix("# "))
        name = f"[`{path.stem}`](notebooks/{path.name})"
        rows.append((name, title.rpartition("# ")[2], re.split(r"(?<=[.!?]) (?=[A-Z`])", words)[0]))
    return table(("Notebook", "About", "What it answers"), rows)


def modules() -> str:
    """Every module by group, with the first sentence of what it says about itself."""
    return "\n\n".join(package(name) for name in GROUPS)


def package(name: str) -> str:
    """The table of one package. What is in no group yet comes last."""
    files = paths(name)
    listed = [(group, module) for group, names in GROUPS[name].items() for module in names.split()]
    listed = [(group, module) for group, module in listed if module in files]
    listed += [("?", module) for module in sorted(files.keys() - {module for _, module in listed})]
    rows: list[tuple[str, str, str]] = []
    for group, module in listed:
        shown = group if group not in {row[0] for row in rows} else ""
        rows.append((shown, f"`{name}.{module}`", summary(files[module])))
    return table((f"`{name}/`", "Module", "What it is for"), rows)


def paths(name: str) -> dict[str, Path]:
    """The modules of a package, by their names below it, without its own `__init__` and `__main__`."""
    found = {}
    for path in (ROOT / name).rglob("*.py"):
        parts = path.relative_to(ROOT / name).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        if module not in {"", "__main__"}:
            found[module] = path
    return found


def summary(path: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) (?=[A-Z`])", paragraph)[0]


def sentence(text: str) -> str:
    """A line of help as a sentence."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('?') else '.'}"


BLOCKS: Final[dict[str, Callable[[], str]]] = {
    "settings": settings,
    "metrics": metrics,
    "commands": commands,
    "notebooks": notebooks,
    "modules": modules,
}


def renewed(text: str, blocks: Mapping[str, Callable[[], str]] = BLOCKS, name: str = "README.md") -> str:
    """A document with every block as it must be now.

    Raises:
        ValueError: the two comments around a block are not there exactly once.
    """
    for block, make in blocks.items():
        before, _, after = parts(text, block, name)
        text = f"{before}<!-- {block} -->\n\n{make()}\n\n<!-- /{block} -->{after}"
    return text


def parts(text: str, block: str, name: str) -> tuple[str, str, str]:
    """What is before a block, in it, and behind it.

    Raises:
        ValueError: the two comments around the block are not there exactly once.
    """
    head, tail = f"<!-- {block} -->", f"<!-- /{block} -->"
    if text.count(head) != 1 or text.count(tail) != 1 or text.index(head) > text.index(tail):
        raise ValueError(f"{name} must have {head} and after it {tail} once")
    before, _, rest = text.partition(head)
    inside, _, after = rest.partition(tail)
    return before, inside, after


def proven(text: str, proofs: Proofs) -> str:
    """docs/reliability.md with the figures of the records.

    Raises:
        ValueError: a comment of a block is missing, or a figure that is named does not exist.
    """
    name = "docs/reliability.md"
    promised = parts(text, "promises", name)[1]
    blocks = {f"{record}.json": partial(measured, proofs, record) for record in COMMANDS}
    return renewed(text, {"promises": partial(promises, proofs, promised), **blocks}, name)


def promises(proofs: Proofs, old: str) -> str:
    """The table of the promises, with the figures that each row names."""
    lines = [line for line in old.splitlines() if line.startswith("|")]
    cells = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines)
    headers, _, *rows = ([cell.replace(r"\|", "|") for cell in row] for row in cells)
    return table(headers, [[*row, figures(proofs, cell)] for *row, cell in rows])


def figures(proofs: Proofs, cell: str) -> str:
    """The last cell of a promise, with its figures as they are now."""
    found = re.match(r"<!-- (.+?) -->", cell)
    if found is None:
        return cell
    named = (part.rpartition(": ") for part in found[1].split("; "))
    told = "; ".join(
        f"{words}: {proofs.figure(key)}" if words else proofs.figure(key) for words, _, key in named
    )
    return f"{found[0]} {told}"


def measured(proofs: Proofs, record: str) -> str:
    """Where the figures of a record come from, and all of them."""
    rows = proofs.table(record)
    return proofs.source(record) if rows is None else f"{proofs.source(record)}\n\n{table(*rows)}"


def recorded(name: str, command: str, tell: Callable[[dict[str, Any]], str]) -> str:
    """What is told of a record, and what made it; of a small run, or of a part of one, nothing is told."""
    path = RECORDS / f"{name}.json"
    made = read(path) if path.exists() else None
    if made is None or made["result"].get("quick") or made["result"].get("only"):
        return f"Not measured yet: run `{command} --out docs/records/{name}.json`."
    return f"{tell(made)}\n\n{company.told(made)}"


def growth(made: dict[str, Any]) -> str:
    """What was compared, and the rows."""
    return f"{bench_growth.sizes(made)}\n\n{rows_of(made)}"


def peers(made: dict[str, Any]) -> str:
    """Who took part, and the tables."""
    standings = Standings.read(made["result"])
    versions = ", ".join(f"{name} {version}" for name, version in standings.versions.items())
    return f"{versions}.\n\n{standings.text()}"


def power() -> str:
    """What resampling the recorded blocks of equal things came to."""
    path = RECORDS / "aa.json"
    if not path.exists():
        return f"not measured yet: run `{bench_power.RUN}`, then `{bench_power.COMMAND}`"
    made = read(path)
    result = made["result"]
    origin = f"Comparisons of {result['blocks']} blocks, resampled {result['trials']} times from those of"
    return f"{table(*bench_power.table(result))}\n\n{origin} {record.told(result['from'])}."


def validation() -> str:
    """The last `bench validate` that was recorded: each prediction and its error."""
    path = RECORDS / "validation.json"
    if not path.exists():
        return f"not measured yet: run `{bench_validation.COMMAND}`"
    made = read(path)
    trials = bench_validation.trials(made["result"])
    by_priority = [trial.by_priority() for trial in trials if len(trial.prediction.waits) > 1]
    tables = [table(bench_validation.HEADERS, [trial.cells() for trial in trials])]
    tables += [table(bench_validation.PRIORITY_HEADERS, by_priority)] if by_priority else []
    verdict = "passed" if made["result"]["passed"] else "FAILED"
    return "\n\n".join([*tables, f"It {verdict}: {record.told(made)}."])


FIGURES: Final[dict[str, Callable[[], str]]] = {
    "limits.json": partial(recorded, "limits", "bench limits --tasks 1000000", rows_of),
    "growth.json": partial(recorded, "growth", "bench growth", growth),
    "cost.json": partial(recorded, "cost", "bench cost --steps", bench_cost.tables),
}
"""The parts of docs/performance.md, each by the record that it is made from."""

EXPERIMENTS: Final[dict[str, Callable[[], str]]] = {
    "peers.json": partial(recorded, "peers", "bench peers", peers),
    "aa.json": power,
    "validation.json": validation,
}
"""The parts of docs/benchmarks.md, likewise."""


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the documents, or with --check say whether that would change them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if one is out of date"
    )
    check, stale = parser.parse_args(argv).check, 0
    proofs = Proofs(RECORDS)
    for path, make in (
        (README, renewed),
        (RELIABILITY, partial(proven, proofs=proofs)),
        (PERFORMANCE, partial(renewed, blocks=FIGURES, name="docs/performance.md")),
        (BENCHMARKS, partial(renewed, blocks=EXPERIMENTS, name="docs/benchmarks.md")),
    ):
        text = path.read_text(encoding="utf-8")
        try:
            new = make(text)
        except ValueError as error:
            sys.stderr.write(f"{error}\n")
            return 2
        if check and new != text:
            stale = 1
            sys.stderr.write(f"{path.name} is out of date: run `python docs/generate.py`\n")
        elif new != text:
            path.write_text(new, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
