# %% [markdown]
# # Comparing A and B
#
# Is B faster or dearer than A, or can nobody tell? A is a fleet as it comes. B differs in one setting:
# LEASE_BATCH_SIZE is 4 instead of 500, so that a worker asks for few tasks at a time. Both drain the same
# noops. In each block A, B, and A once more (the control) have their turns in an order that is drawn, with
# the same seed, each on new servers.
#
# Blocks are compared in pairs, so what the machine does to both cancels out, and the control says how far
# apart equal things come out. A claim is made only if the interval of the ratio does not hold 1, a
# signed-rank test agrees, and the change is larger than what the control shows. Everything else is called
# "cannot tell", which does not mean "equal": the column *Detectable* has the smallest change that so many
# blocks would have found.
#
# **The profile `ci` has one block. That is too few for any claim**, however far apart A and B are: it shows
# that the machinery works, and its plot has no intervals. The profile `full` has twelve.

# %% tags=["parameters"]
profile = "ci"  # or "full"

# %%
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt

from bench import compare, plots, repeats, scenario, sweeps, turn
from bench.costs import Costs
from bench.repeats import Record

plots.use_style()

# %%
tasks, blocks = {"ci": (600, 1), "full": (5_000, 24)}[profile]

a = scenario.parse(
    {
        "repeats": blocks,
        "mix": {"noop": 100},
        "load": {"kind": "bulk", "tasks": tasks},
        "fleet": {"processes": 2, "slots": 12},
    },
    "this notebook",
    "as it comes",
)
b = replace(a, name="small batches", fleet=replace(a.fleet, settings={"LEASE_BATCH_SIZE": "4"}))
arms = [turn.Arm(a), turn.Arm(a, control=True), turn.Arm(b)]

# %%
made = turn.records(arms, blocks, Costs(), ["notebook 07"])
found = [
    Record(Path(each["result"]["name"]), each, planned) for each, planned in zip(made, (a, b), strict=True)
]
claims = compare.judge(*found)

# %% [markdown]
# ## The verdict
#
# Times, and CPU, of a run that was disturbed by other work on the machine are left out with their block. Of
# what is counted (commands, statements, commits, log) every run stands.

# %%
print("\n".join(compare.told(*found, claims)))

# %% [markdown]
# ## Ratios
#
# B / A of each figure; less is better for all of them. The bars are the floor: what A came to against itself.
# A ratio inside its bar says nothing, wherever it lies.

# %%
figure, ax = plt.subplots(figsize=(8, 4.4))
sweeps.ratios(ax, [(claim.measure.title, claim.effect, claim.floor) for claim in claims])
plt.show()

# %% [markdown]
# ## Every run
#
# CPU a task and Redis commands a task: each repeat is a point. A hollow one was disturbed.

# %%
runs = {"A": found[0].runs, "A, control": found[0].controls, "B": found[1].runs}
drawn = {"cost/cpu_us.all": "CPU a task", "cost/redis.commands": "Redis commands a task"}
measures = {measure.key: measure for measure in repeats.COSTS}
figure, axes = plt.subplots(1, 2, figsize=(12, 3.2))
for ax, (key, title) in zip(axes, drawn.items(), strict=True):
    measure = measures[key]
    rows = [(name, [(measure.of(run), measure.stands(run)) for run in own]) for name, own in runs.items()]
    plots.repeats(ax, rows, title, measure.unit or "number")
plt.show()

# %% [markdown]
# ## The audit
#
# Of every run, the controls included: each accepted task ended once, and every count is the deck's. And with
# one block nothing may be claimed.

# %%
every = [run for own in runs.values() for run in own]
assert all(run["verdict"]["passed"] and run["exact"] for run in every)
assert blocks > 1 or all(claim.word == compare.CANNOT_TELL for claim in claims)
print(f"audit passed: {len(every)} runs, {sum(run['counts']['tasks'] for run in every):,} tasks")
