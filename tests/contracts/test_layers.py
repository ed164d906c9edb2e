"""Imports go one way. The contracts are in pyproject.toml; here they are kept, and shown to notice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = Path(sys.executable).with_name("lint-imports")

WRONG = {
    "the flow imports sideways": ("scheduler/lease.py", "from scheduler import settle", "reads downwards"),
    "a rule imports a store": ("scheduler/lifecycle.py", "from scheduler import store", "reads downwards"),
    "a module has no place": ("scheduler/extra.py", "", "reads downwards"),
    "an import hides in a function": (
        "scheduler/model.py",
        "def f():\n    import scheduler.worker",
        "reads downwards",
    ),
    "Redis is used elsewhere": ("scheduler/pump.py", "import redis", "Redis has one door"),
    "Postgres is used elsewhere": ("scheduler/store.py", "import psycopg", "Postgres has one door"),
    "the workbench looks inside": ("bench/audit.py", "from scheduler import store", "from outside"),
    "the product needs its workbench": ("scheduler/commands.py", "import bench.load", "does not know"),
    "the workbench imports upwards": ("bench/http.py", "import bench.burst", "the workbench reads downwards"),
}


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINT, "--no-cache"],
        cwd=directory,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_imports_go_one_way():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("wrong", WRONG)
def test_an_import_the_other_way_is_noticed(wrong, tmp_path):
    file, line, contract = WRONG[wrong]
    for part in ("scheduler", "bench"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / file).open("a") as module:
        module.write(f"\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    broken = [text for text in done.stdout.splitlines() if "BROKEN" in text]
    assert any(contract in text for text in broken), done.stdout
