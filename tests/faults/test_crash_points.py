"""Every arrow of the lifecycle fails in every way, with real processes, and nothing is lost: see scenes.py.

And each guard is needed: a build without it does not get through the scene that is about it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fix_stage import Red, Stage
from scenes import play, refused_outcomes, refused_tasks

from bench.builds import BUILDS
from scheduler import failpoints

QUICK = {
    "enqueue.commit:lost",
    "enqueue.push:late",
    "lease.pop:kill",
    "lease.claim:exception",
    "settle.commit:late",
    "settle.place:lost",
    "release.commit:kill",
    "pump.move:kill",
    "reap.commit:lost",
    "reconcile.push:late",
}
"""What `make test` walks; `make prove` walks the rest."""

WALK = [
    pytest.param(crash, marks=() if crash in QUICK else pytest.mark.slow)
    for crash in (f"{point}:{mode}" for point in failpoints.POINTS for mode in failpoints.MODES)
]


@pytest.mark.parametrize("crash", WALK)
def test_nothing_is_lost_at(crash, stage):
    play(stage, crash)


def test_a_refused_task_leaves_its_neighbours_alone(stage):
    refused_tasks(stage)


def test_a_refused_outcome_is_settled_without_its_text(stage):
    refused_outcomes(stage)


PROOFS: dict[str, str | Callable[[Stage], None]] = {
    "fence-off": "settle.commit:late",
    "reap-early": "heartbeat.renew:lost",
    "reaper-off": "lease.pop:kill",
    "reconcile-off": "enqueue.push:exception",
    "push-twice": "reconcile.push:late",
    "settle-gives-up": "settle.commit:exception",
    "enqueue-gives-up": "enqueue.commit:lost",
    "settle-whole": refused_outcomes,
    "enqueue-whole": refused_tasks,
}
"""By broken build: the scene that it must not get through."""


@pytest.mark.slow
@pytest.mark.parametrize("build", BUILDS)
def test_a_build_without_a_guard_does_not_get_through(build, broken):
    stage, proof = broken(build), PROOFS[build]
    with pytest.raises(Red):
        play(stage, proof) if isinstance(proof, str) else proof(stage)
