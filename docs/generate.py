"""Writes the parts of README.md that the code knows better: settings, metrics, commands, modules.

    python docs/generate.py            rewrite them in place
    python docs/generate.py --check    exit with 1 if one of them is out of date

Each part lies between two comments, `<!-- settings -->` and `<!-- /settings -->`, and is replaced whole.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from prometheus_client.metrics import MetricWrapperBase

from bench import cli as bench_cli
from scheduler import cli
from scheduler.config import VARS
from scheduler.metrics import Metrics

ROOT: Final = Path(__file__).parents[1]
README: Final = ROOT / "README.md"

GROUPS: Final[dict[str, dict[str, str]]] = {
    "scheduler": {
        "Words": "errors clock lifecycle model backoff fairness",
        "Instruments": "log config metrics failpoints loop handlers held table",
        "Storage": "keys shard queue connections migrate store",
        "Flow": "enqueue lease run settle",
        "Loops": "heartbeat pump reaper reconcile sampler housekeeping",
        "Desk": "dlq cancel",
        "Worker": "solo slots worker",
        "HTTP API": (
            "api api.server api.app api.access api.backend api.submissions api.body api.spec api.tasks"
            " api.queues api.health api.views api.problems api.openapi"
        ),
        "Machine": "child fleet supervisor embedded stack",
        "Command": "commands cli",
    },
    "bench": {
        "Inputs": "workload work builds",
        "Acting": "system stand proxy arena faults http delivery load burst traffic trial",
        "Observing": "scrape sampling receipts ledger journal index watch checks audit drift agreement"
        " observation",
        "Telling": "report plots progress",
        "Commands": "demo load_cli audit_cli chaos ratios notebooks cli",
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
    "modules": modules,
}


def renewed(text: str) -> str:
    """The README with every block as the code has it now.

    Raises:
        ValueError: the two comments around a block are not there exactly once.
    """
    for name, make in BLOCKS.items():
        head, tail = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(head) != 1 or text.count(tail) != 1 or text.index(head) > text.index(tail):
            raise ValueError(f"README.md must have {head} and after it {tail} once")
        before, _, rest = text.partition(head)
        text = f"{before}{head}\n\n{make()}\n\n{tail}{rest.partition(tail)[2]}"
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite README.md, or with --check say whether that would change it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if it is out of date"
    )
    check = parser.parse_args(argv).check
    text = README.read_text(encoding="utf-8")
    try:
        new = renewed(text)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if check:
        if new != text:
            sys.stderr.write("README.md is out of date: run `python docs/generate.py`\n")
        return int(new != text)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
