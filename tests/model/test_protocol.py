"""The protocol holds in every world, and each of its guards is needed.

pytest tests/model -s        shows what each exploration came to, and the broken variants' shortest traces
"""

from __future__ import annotations

from functools import cache

import pytest
from model.explorer import Report, explore
from model.protocol import EVERYBODY, Config, Protocol
from model.variants import LATE_ONLY, VARIANTS, Variant

from scheduler import lifecycle

ENDS = ("succeeded", "failed", "rejected", "released", "died", "unknown_type")
CALM = ("succeeded", "failed", "released")

WORLDS = {
    "calm": Config(workers=2),
    "crash": Config(workers=2, max_losses=1, crash=EVERYBODY),
    "crash, all budgets": Config(max_retries=1, max_losses=1, crash=EVERYBODY),
    "every end, delays, crash": Config(
        ends=ENDS, releases=1, max_losses=1, max_refusals=1, delays=True, crash=EVERYBODY
    ),
    "release": Config(workers=2, ends=CALM, releases=1),
    "flush": Config(workers=2, flush=True),
    "flush, crash, two reconcilers": Config(reconcilers=2, flush=True, crash=EVERYBODY),
    "old state, crash": Config(old_state=True, crash=EVERYBODY),
    "eviction": Config(evict=1),
    "cut off": Config(workers=2, cut_off=True),
    "late call": Config(late=1),
    "redrive": Config(redrives=1),
    "cancel, retries, crash": Config(max_retries=1, cancel=True, crash=EVERYBODY),
    "cancel, redrive, crash": Config(redrives=1, cancel=True, crash=EVERYBODY),
}

LARGE_WORLDS = {
    "two redrives": Config(redrives=2),
    "late call, crash": Config(late=1, crash=EVERYBODY),
    "eviction, crash": Config(evict=1, crash=EVERYBODY),
    "flush, two reapers": Config(reapers=2, flush=True),
    "calm, all budgets": Config(workers=2, max_retries=1, max_losses=1),
    "calm, two reapers": Config(workers=2, reapers=2),
    "calm, two reconcilers": Config(workers=2, reconcilers=2),
    "crash, flush, two reconcilers": Config(
        reconcilers=2, max_retries=1, max_losses=1, flush=True, crash=EVERYBODY
    ),
    "flush, all budgets": Config(workers=2, max_retries=1, max_losses=1, flush=True),
    "flush, two reapers and reconcilers": Config(reapers=2, reconcilers=2, flush=True),
    "old state": Config(workers=2, old_state=True),
    "old state, retries": Config(max_retries=1, old_state=True),
    "eviction, crash, all budgets": Config(max_retries=1, max_losses=1, evict=1, crash=EVERYBODY),
    "eviction, two workers": Config(workers=2, evict=1),
    "evictions of two keys, crash": Config(evict=2, crash=EVERYBODY),
    "evictions of two keys, two workers": Config(workers=2, evict=2),
    "evictions of two keys, late call": Config(evict=2, late=1),
    "cut off, all budgets": Config(workers=2, max_retries=1, max_losses=1, cut_off=True),
    "redrive, all budgets": Config(max_retries=1, max_losses=1, redrives=1),
    "redrive, two workers": Config(workers=2, redrives=1),
    "redrive, flush, crash": Config(redrives=1, flush=True, crash=EVERYBODY),
    "redrive, two reapers": Config(reapers=2, redrives=1),
    "cancel, flush, crash, all budgets": Config(
        max_retries=1, max_losses=1, cancel=True, flush=True, crash=EVERYBODY
    ),
    "every end, delays, cancel, flush": Config(
        ends=ENDS, releases=1, max_losses=1, max_refusals=1, delays=True, cancel=True, flush=True
    ),
    "late call, all budgets": Config(max_retries=1, max_losses=1, late=1),
    "late call, two workers": Config(workers=2, late=1),
    "late call, flush": Config(max_losses=1, late=1, flush=True),
    "late call, old state": Config(late=1, old_state=True),
    "late call, redrive": Config(late=1, redrives=1),
    "late call, cancel, release": Config(late=1, cancel=True, ends=CALM, releases=1),
    "two late calls": Config(late=2),
}


@cache
def proved(config: Config) -> Report:
    """The protocol explored in one world, and found sound."""
    report = explore(Protocol(config))
    assert report.violation is None, report
    return report


@pytest.mark.parametrize("name", WORLDS)
def test_the_protocol_holds(name: str) -> None:
    print(f"\n{name}: {proved(WORLDS[name])}")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", LARGE_WORLDS)
def test_the_protocol_holds_in_a_large_world(name: str) -> None:
    print(f"\n{name}: {proved(LARGE_WORLDS[name])}")


def test_the_statuses_change_as_lifecycle_says_and_in_all_these_ways() -> None:
    names = ("every end, delays, crash", "cancel, retries, crash", "cancel, redrive, crash")
    met = set().union(*(proved(WORLDS[name]).moves for name in names))
    assert met == {(before, after) for before, afters in lifecycle.MOVES.items() for after in afters}


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_a_guard_something_goes_wrong(variant: type[Variant]) -> None:
    proved(variant.world)
    report = explore(variant())
    print(f"\n{variant.__doc__}\n{len(report.trace)} steps to {report}")
    assert report.violation is not None
    assert report.violation.startswith(variant.breaks)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [2, 3])
def test_keys_lost_between_two_censuses_do_not_hide_each_other_for_ever(keys: int) -> None:
    """The sizes may agree again; then the reaper takes out what nobody owns, and they do not."""
    print(f"\n{proved(Config(evict=keys))}")


@pytest.mark.parametrize("variant", LATE_ONLY)
def test_a_guard_that_saves_time_only_is_not_needed(variant: type[Variant]) -> None:
    report = explore(variant())
    print(f"\n{variant.__doc__}\n{report}")
    assert report.violation is None, report
