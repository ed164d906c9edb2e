"""What is imported is declared, and what is declared has its reason in docs/decisions.md."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
OURS = {"scheduler", "bench"}
DECISIONS = (ROOT / "docs" / "decisions.md").read_text().partition("## Departures")[0]
COMES_WITH = {
    "hiredis": "redis",  # as redis[hiredis]
    "ipykernel": "jupyterlab",
    "jupyter-client": "nbclient",
    "nbformat": "nbclient",
    "numpy": "pandas",
    "pillow": "matplotlib",
    "pydantic-core": "pydantic",
    "starlette": "fastapi",
}
"""What is imported, and what it is a part of: the one cannot be used without the other."""


def names(requirements: list[str]) -> set[str]:
    """The distributions that some requirements name, as they are normalised."""
    return {re.split(r"[\[>=<]", one)[0].lower().replace("_", "-") for one in requirements}


RUNTIME = names(PROJECT["project"]["dependencies"])
DEV = names(PROJECT["dependency-groups"]["dev"])
GROUPS = {"runtime": RUNTIME, "dev": DEV, **{name: names(extra) for name, extra in EXTRAS.items()}}


def imported(folder: str) -> Iterator[tuple[str, Path]]:
    """The first word of every absolute import below a folder, and where it is."""
    for path in (ROOT / folder).rglob("*.py"):
        if "peer_apps" in path.parts:  # programs for environments of their own
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((alias.name.partition(".")[0], path) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield str(node.module).partition(".")[0], path


@pytest.mark.parametrize(
    ("folder", "groups"),
    [
        ("scheduler", ["runtime", "embedded"]),
        ("bench", ["runtime", "embedded", "bench", "notebooks"]),
        ("tests", ["runtime", "embedded", "bench", "locust", "notebooks", "dev"]),
    ],
)
def test_what_is_imported_is_declared(folder, groups):
    declared = set().union(*(GROUPS[group] for group in groups))
    packages = packages_distributions()
    undeclared = {
        (path.relative_to(ROOT).as_posix(), module)
        for module, path in imported(folder)
        if module in packages and module not in OURS
        if declared.isdisjoint(COMES_WITH.get(name, name) for name in names(packages[module]))
    }
    assert undeclared == set()


@pytest.mark.parametrize("group", GROUPS)
def test_what_is_declared_has_its_reason(group):
    if group in EXTRAS:
        assert f"`[{group}]`" in DECISIONS
    assert {name for name in GROUPS[group] if f"`{name}`" not in DECISIONS} == set()
