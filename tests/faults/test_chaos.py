"""The whole system under faults that a seed draws: nothing is lost, and a build without a guard is found out.

`bench chaos --seeds 1-40` runs more of them.
"""

from __future__ import annotations

import pytest

from bench.chaos import line, run_and_keep

SECONDS = 25.0
TRIES = 6
"""Within so many seeds a broken build must fail. Which task a fault hits is the machine's affair."""

OFFENCES = {
    "fence-off": {"succeeded twice", "moved against the rules"},
    "reaper-off": {"not ended"},
    "reconcile-off": {"not ended"},
    "push-twice": {"two places meanwhile"},
}
"""By broken build: what its guard is there to prevent. Any other offence proves nothing about the guard."""


def found_out(record, build: str) -> bool:
    """Whether a run that counts has shown what the build lacks."""
    failed = {check["name"] for check in record["verdict"]["checks"] if check["offenders"]}
    return record["counts"] and bool(failed & OFFENCES[build])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_nothing_is_lost_under_seed(seed, tmp_path):
    record = run_and_keep(seed, SECONDS, build=None, out=tmp_path / "chaos.jsonl")
    assert record["passed"], line(record)
    assert record["counts"], line(record)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("build", OFFENCES)
def test_chaos_finds_out_a_build_without_a_guard(build, tmp_path):
    out = tmp_path / "chaos.jsonl"
    told = []
    for seed in range(1, TRIES + 1):
        record = run_and_keep(seed, SECONDS, build=build, out=out)
        told.append(line(record))
        if found_out(record, build):
            return
    pytest.fail("\n".join(told))


@pytest.mark.parametrize(
    ("offence", "counts", "found"),
    [
        ("not ended", True, True),
        ("not ended", False, False),
        ("ended by itself", True, False),
        ("left in Redis", True, False),
    ],
)
def test_only_the_offence_of_a_guard_in_a_run_that_counts_finds_a_build_out(offence, counts, found):
    checks = [{"name": offence, "offenders": 1}, {"name": "not ended", "offenders": 0}]
    record = {"passed": False, "counts": counts, "verdict": {"checks": checks}}
    assert found_out(record, "reaper-off") is found
