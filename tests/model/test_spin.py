"""The protocol under weak fairness, by Spin: an accepted task ends, and what has succeeded stays so."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fix_servers import missing

MODEL = Path(__file__).with_name("protocol.pml")
CLAIMS = ("ends", "stays")


def output(*command: str, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("without", "broken"),
    [
        ("", set()),
        pytest.param("NO_REAPER", {"ends"}, marks=[pytest.mark.slow]),
        pytest.param("NO_RECONCILER", {"ends"}, marks=[pytest.mark.slow]),
        pytest.param("NO_FENCE", {"stays"}, marks=[pytest.mark.slow]),
    ],
    ids=["the protocol", "no reaper", "no reconciler", "no fence"],
)
def test_spin_agrees(tmp_path: Path, without: str, broken: set[str]) -> None:
    for program in ("spin", "gcc"):
        if shutil.which(program) is None:
            missing(program)
    shutil.copy(MODEL, tmp_path)
    output("spin", *([f"-D{without}"] if without else []), "-a", MODEL.name, folder=tmp_path)
    # Spin's own C warns under a newer compiler; the fairness algorithm needs room for nine processes.
    output("gcc", "-O2", "-w", "-DNFAIR=3", "-o", "pan", "pan.c", folder=tmp_path)
    found = set()
    for claim in CLAIMS:
        told = output("./pan", "-a", "-f", "-N", claim, "-m200000", folder=tmp_path)
        assert "max search depth too small" not in told
        report = re.search(r"errors: (\d+)\s+(\d+) states, stored", told)
        assert report is not None, told
        errors, states = map(int, report.groups())
        print(f"\n{without or 'whole'}: {claim}: {states:,} states, {errors} errors")
        if errors:
            found.add(claim)
    assert found == broken
