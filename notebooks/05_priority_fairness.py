# %% [markdown]
# # Priorities
#
# Who is served first when all four lists are full, and can the lowest one starve? The same burst, a quarter
# of each priority, is drained twice: by a fleet that shares by weight (8, 4, 2, 1), which is the default, and
# by one that always takes the highest priority first. In both, a list that was not served for
# PRIORITY_MAX_WAIT_MS is served next; here that is half a second instead of half a minute.
#
# The fleet is small and the tasks are long enough for lists to stay full for a while. With spare slots
# priorities decide nothing: whatever comes is started at once.

# %% tags=["parameters"]
profile = "ci"  # or "full"
seed = 1  # decides the order of the tasks

# %%
import matplotlib.pyplot as plt

from bench import findings, plots, sweeps
from bench.observation import observe
from bench.system import system
from bench.turn import SETTINGS
from bench.workload import Mix

plots.use_style()

# %%
tasks, slots, sleep_ms = {"ci": (600, 4, 15), "full": (6_000, 8, 15)}[profile]
bound_ms = 500

settings = SETTINGS | {
    "WORKER_POOL": str(slots),
    "LEASE_BATCH_SIZE": "8",
    "PRIORITY_MAX_WAIT_MS": str(bound_ms),
}
mix = Mix(sleep=100, sleep_ms=sleep_ms, priorities=(1, 1, 1, 1))

# %%
seen = {}
with system(settings, say=lambda _: None) as running:
    weights = running.settings.priority_weights
    for mode in ("weighted", "strict"):
        with running.with_fleet(1, env={"PRIORITY_MODE": mode}):
            seen[mode] = observe(running, mode, mix, tasks, seed=seed)

# %% [markdown]
# ## Waits
#
# How long tasks waited, by priority: every task is a point of a line. Weights stretch the lines apart but
# keep all of them rising from the beginning. Strict ranks put them one behind the other, but for the picks
# that the bound enforces.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
for ax, (mode, run) in zip(axes, seen.items(), strict=True):
    plots.waits(ax, run.ledger).set_title(mode)
plt.show()

# %% [markdown]
# ## Shares while all lists are full
#
# The share of the claims that each priority got, from the last commit to the batch that emptied the first
# list. The choice by weight is not drawn by lot, so the points must lie on the bars but for the remainder of
# a round of 15 picks, and for the picks that the bound enforced. In the strict mode nearly all claims are
# critical.

# %%
shared = {mode: findings.shares(run.ledger) for mode, run in seen.items()}
figure, ax = plt.subplots(figsize=(7, 3.8))
sweeps.shares(ax, shared, weights)
plt.show()

# %% [markdown]
# ## How long a list goes unserved
#
# Each point is the time between two claims of one list while it had tasks; the first one counts from the last
# commit. With weights no list comes near
# the bound. With strict ranks the lower ones wait until it is over, are served once, and wait again. The
# bound counts from claim to claim inside Redis, and a worker asks only when it has room, so a gap may exceed
# it by a task's length or two.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
for ax, (mode, run) in zip(axes, seen.items(), strict=True):
    sweeps.gaps(ax, findings.gaps(run.ledger), bound_ms / 1000).set_title(mode)
plt.show()

# %% [markdown]
# ## The audit
#
# Of both drains: each accepted task ended once, and every count is the deck's. And with weights, while all
# lists were full, each priority got its share of the claims to within one round of picks.

# %%
for run in seen.values():
    print(f"{run.title}: {'; '.join(run.verdict.lines())}")
claims = shared["weighted"]["claims"]
due = {name: claims.sum() * weight / sum(weights.values()) for name, weight in weights.items()}
assert all(run.verdict.passed for run in seen.values())
assert all(abs(claims[name] - n) <= max(weights.values()) for name, n in due.items())
