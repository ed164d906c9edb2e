# %% [markdown]
# # Scaling
#
# How much more does a fleet do with more workers, and with more slots in each? Tasks here wait (they sleep,
# as a call to another service would) rather than compute, so what there is too few of at first is slots. A
# fleet of each size drains the same tasks, one size after the other, on the same servers.
#
# Two bounds say what to expect. No fleet ends more tasks a second than *slots / run time*; and no machine
# ends more than *cores / CPU time a task*. The lower one limits. The second bound is measured in the run
# itself and counts everything that is ours: workers, API, both servers, and this notebook's own client.
#
# The limit of what this can show is the machine. With two cores the second bound comes early, and adding
# workers beyond it cannot help. How Scheduler scales over several machines is not measured here.

# %% tags=["parameters"]
profile = "ci"  # or "full"

# %%
import os

import matplotlib.pyplot as plt

from bench import plots, scaling, sweeps
from bench.system import system
from bench.turn import SETTINGS

plots.use_style()

# %%
workers, slots, tasks, repeats = {
    "ci": ((1, 2), (4, 16), 300, 1),
    "full": ((1, 2, 3), (4, 12, 36, 100), 3_000, 3),
}[profile]
sleep_ms = 20

# %%
with system(SETTINGS, say=lambda _: None) as running:
    cells, seen = scaling.grid(running, workers, slots, tasks=tasks, sleep_ms=sleep_ms, repeats=repeats)
print(f"{os.cpu_count()} cores; tasks of {sleep_ms} ms; {tasks:,} tasks and {repeats} run(s) a cell")
print(f"{cells['disturbed'].sum()} of {len(cells)} runs were disturbed by other work and count in no median")
cells.round(2)

# %% [markdown]
# ## Throughput
#
# Each point is one run; the lines go through the medians. Where the points lie on the dashed bound, slots
# are what is missing and more of them help. Where they leave it, something else limits: near the dotted line
# it is CPU. A drain also has a beginning and an end in which not all slots are busy, and with few tasks that
# weighs more: in the profile `ci` every cell drains within seconds, so all points lie below the bound.

# %%
figure, ax = plt.subplots(figsize=(8, 4.2))
sweeps.scaling(ax, cells)
plt.show()

# %% [markdown]
# ## Efficiency
#
# The share of the slots' bound that was reached. What is missing to 100 % is the beginning and the end of
# the drain, the time that a slot is empty between two tasks, and, where slots abound, CPU.

# %%
figure, ax = plt.subplots(figsize=(6, 3.4))
sweeps.efficiency(ax, cells)
plt.show()

# %% [markdown]
# ## The audit
#
# Of every run: each accepted task ended once, and every count is the deck's.

# %%
for run in seen:
    print(f"{run.title}: {'; '.join(run.verdict.lines())}")
assert all(run.verdict.passed for run in seen)
