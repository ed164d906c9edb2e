"""Every arrow of the lifecycle fails in every way, with real processes, and nothing is lost: see scenes.py.

And each guard is needed: a build without it does not get through the scene that is about it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
from fix_stage import SHORT_QUIET_S, Red, Stage
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
    assert stage.happened == ([crash] if crash.endswith(":late") else [])


def test_a_refused_task_leaves_its_neighbours_alone(stage):
    refused_tasks(stage)


def test_a_refused_outcome_is_settled_without_its_text(stage):
    refused_outcomes(stage)


class Proof(NamedTuple):
    """The scene that a broken build must not get through, and the offence that it must show there."""

    scene: str | Callable[[Stage], None]
    offence: str

    def play(self, stage: Stage) -> None:
        play(stage, self.scene) if isinstance(self.scene, str) else self.scene(stage)


PROOFS = {
    "fence-off": Proof("settle.commit:late", "succeeded twice"),
    "reap-early": Proof("heartbeat.renew:lost", r"^\d+ runs were lost and not 0"),
    "reaper-off": Proof("lease.pop:kill", r"^\d+ tasks do not end"),
    "reconcile-off": Proof("enqueue.push:exception", r"^\d+ tasks do not end"),
    "push-twice": Proof("reconcile.push:late", "in 2 places"),
    "settle-gives-up": Proof("settle.commit:exception", r"^\d+ runs were lost and not 0"),
    "enqueue-gives-up": Proof("enqueue.commit:lost", "a client saw the error.*503"),
    "settle-whole": Proof(refused_outcomes, r"^\d+ runs were lost and not 0"),
    "enqueue-whole": Proof(refused_tasks, "of 80 tasks were accepted.*422"),
}
"""By broken build."""


@pytest.mark.slow
@pytest.mark.parametrize("build", BUILDS)
def test_a_build_without_a_guard_does_not_get_through(build, stage, broken):
    proof = PROOFS[build]
    stage.quiet_s = SHORT_QUIET_S
    proof.play(stage)  # the product does, with no more patience: it is not the machine that is slow
    with pytest.raises(Red, match=proof.offence):
        proof.play(broken(build))
