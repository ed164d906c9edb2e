"""Cells: scenarios in one file, a table each, with which the simulator is held against real runs.

    [sleepers-2x6]                  # the name of the cell; what is below it is a scenario
    mix = { sleep = 100, sleep_ms = 300 }
    load = { kind = "bulk", tasks = 240 }
    fleet = { processes = 2, slots = 6 }

A file that is a scenario itself is one cell.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench import scenario, theory
from bench.scenario import Scenario
from scheduler.errors import StartError

SHIPPED: Final = Path(__file__).with_name("cells.toml")
"""The cells that come with the workbench."""


def identity(planned: Scenario) -> str:
    """The hash of what makes a cell: another seed, or more repeats, make no other one of it."""
    return replace(planned, seed=0, repeats=1).hash


def read(path: Path) -> list[Scenario]:
    """The cells of a file, in its order.

    Raises:
        StartError: one line: what is wrong, where, and what it must be.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartError(f"{path} cannot be read: {error.strerror}; name a TOML file of cells") from None
    except ValueError as error:
        raise StartError(f"{path} is not TOML: {error}") from None
    if "load" in table:
        return [_cell(table, str(path), path.stem, path.parent)]
    if not table:
        raise StartError(f"{path} holds no cells: a cell is a table like [NAME] with mix, load and fleet")
    return [_cell(parts, f"{path}, {name}", name, path.parent) for name, parts in table.items()]


def _cell(parts: object, where: str, name: str, folder: Path) -> Scenario:
    if not isinstance(parts, Mapping):
        raise StartError(f"{where} is {parts!r}; a cell is a table with mix, load and fleet")
    return _certain(scenario.parse(parts, where, name, folder=folder), where)


def _certain(planned: Scenario, where: str) -> Scenario:
    """The cell, if its counts are fixed beforehand."""
    if planned.faults:
        raise StartError(f"{where} has faults, which cannot be simulated: leave them out")
    if theory.undecided(planned):
        raise StartError(f"{where}: sleep_ms is close to the lease, so counts hang on chance: move it away")
    return planned
