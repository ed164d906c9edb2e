"""`bench ratios`: three ratios, each with the two medians that it comes from, and a miss is an exit code."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys

import pytest

from bench import ratios
from bench.rounds import Size
from bench.rows import Row

ROUND = {
    "drain.rate": 12_000.0,
    "ones.rate": 1_000.0,
    "pgbench.rate": 8_000.0,
    "bulk-1000.rate": 9_000.0,
    "single.rate": 1_500.0,
}
"""Measures of a round in which every ratio holds."""

LINE = re.compile(
    r"(\S.*\S) +([\d.]+)x  must be +([\d.]+)x  (ok|MISSED)"
    r"   ([\d,]+)/s \([\d,]+\.\.[\d,]+\) against ([\d,]+)/s \([\d,]+\.\.[\d,]+\)"
)


def number(text: str) -> float:
    return float(text.replace(",", ""))


def ended(monkeypatch, rounds: list[dict[str, float]]) -> int:
    """The command's exit code when these are the measures of its rounds."""

    def made_up(size: Size, _n: int) -> list[Row]:
        return [Row.of(limit, rounds) for limit in ratios._limits(size)]

    monkeypatch.setattr(ratios, "measure", made_up)
    options = argparse.ArgumentParser()
    ratios.add_arguments(options)
    return ratios.main(options.parse_args(["--rounds", str(len(rounds))]))


def test_a_line_tells_the_ratio_the_bound_and_both_medians(monkeypatch, capsys):
    assert ended(monkeypatch, [ROUND | {"drain.rate": rate} for rate in (12_000.0, 14_000.0, 13_000.0)]) == 0
    found = [LINE.fullmatch(line) for line in capsys.readouterr().out.splitlines()]
    lines = {line[1]: line.groups()[1:] for line in found if line}
    assert list(lines.values()) == [
        ("13.0", "10.0", "ok", "13,000", "1,000"),
        ("1.6", "1.0", "ok", "13,000", "8,000"),
        ("6.0", "5.0", "ok", "9,000", "1,500"),
    ]
    assert [title.partition(",")[0].split()[0] for title in lines] == ["drain", "drain", "bulk"]


@pytest.mark.parametrize(
    ("missed", "which"),
    [({"ones.rate": 1_201.0}, 0), ({"pgbench.rate": 12_001.0}, 1), ({"single.rate": 1_801.0}, 2)],
)
def test_one_ratio_that_is_missed_is_exit_code_1(monkeypatch, capsys, missed, which):
    assert ended(monkeypatch, [ROUND | missed]) == 1
    verdicts = [found[4] for found in map(LINE.fullmatch, capsys.readouterr().out.splitlines()) if found]
    assert verdicts == ["MISSED" if i == which else "ok" for i in range(3)]


def test_a_ratio_that_could_not_be_measured_is_missed(monkeypatch, capsys):
    assert ended(monkeypatch, [ROUND | {"single.rate": 0.0}]) == 1
    assert "MISSED" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
def test_the_ratios_are_those_of_what_was_measured():
    """So small a run proves no ratio: it proves that whatever it finds is told and judged as it is."""
    sizes = ["--tasks", "4000", "--ones", "400", "--singles", "400", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "bench", "ratios", *sizes],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    rows = [found for found in map(LINE.fullmatch, done.stdout.splitlines()) if found]
    assert len(rows) == 3, done.stdout + done.stderr
    assert done.returncode == int(any(row[4] == "MISSED" for row in rows))
    for row in rows:
        ratio, bound, ours, theirs = (number(row[i]) for i in (2, 3, 5, 6))
        assert ratio == pytest.approx(ours / theirs, abs=0.05 + 0.01 * ratio)  # all are printed rounded
        assert (row[4] == "MISSED") == (ratio < bound) or abs(ratio - bound) <= 0.05
