# %% [markdown]
# # Capacity planner
#
# How many slots does a load need, and which settings matter? Both are asked of the simulator, over a grid.
# Nothing is started here: all of this is virtual time.
#
# In the first part nothing but the work costs time, so the answer is what queueing alone demands, on any
# machine: fewer slots cannot do, however fast everything around them is. In the second part the costs are the
# simulator's defaults, one measurement on two cores; for a machine of your own, `bench calibrate` makes
# them from a run of yours.

# %% tags=["parameters"]
profile = "ci"  # or "full"

# %%
import matplotlib.pyplot as plt
import pandas as pd

from bench import planner, plots, scenario, sweeps
from bench.costs import FREE, Costs

plots.use_style()

# %%
seconds, seeds, tasks = {"ci": (15, 3, 1_000), "full": (120, 10, 10_000)}[profile]
run_ms, target_s = 100, 0.1
rates = (40, 80, 160)
slots = (4, 5, 6, 8, 9, 10, 12, 14, 16, 17, 18, 20, 22, 24)

# %% [markdown]
# ## How many slots for a p95 wait below the target?
#
# Tasks of 100 ms come at random times. Each point is the p95 wait of one simulated stretch of load, each
# line goes through their medians. A line falls steeply where slots stop being the bottleneck: left of that
# the backlog grows for as long as the load lasts, so the height of a point there depends on how long was
# simulated. The logarithmic axis ends at a thousandth of the target; what waits less is drawn there.

# %%
load = scenario.parse(
    {
        "mix": {"sleep": 100, "sleep_ms": run_ms},
        "load": {"kind": "open", "rate": rates[0], "seconds": seconds, "spacing": "random"},
        "fleet": {"processes": 1, "slots": slots[0]},
    },
    "this notebook",
    "steady load",
)
found = planner.grid(load, rates, slots, FREE, seeds=seeds)
figure, ax = plt.subplots(figsize=(8, 4.2))
sweeps.capacity(ax, found, target_s)
plt.show()

# %% [markdown]
# The answers, beside Erlang's: his formula is exact for run times that vary at random. Tasks that all take
# the same time queue less, so they never need more slots than he says, but for the luck of short samples.

# %%
needed = planner.needed(found, target_s).rename("slots, simulated")
erlang = pd.Series(planner.erlang(rates, run_ms / 1000, target_s), name="slots, Erlang")
work = pd.Series({rate: rate * run_ms / 1000 for rate in rates}, name="slots in use on average")
pd.concat([work, needed, erlang], axis=1).rename_axis("tasks/s")

# %% [markdown]
# ## Which settings matter for the drain of a burst?
#
# A burst with retries and lost runs, and what halving or doubling one setting does to its drain. Each point
# is one seed against the same seed unchanged; the bar is their median. A setting whose points scatter around
# zero does not matter for this burst. It may for another one.

# %%
burst = scenario.parse(
    {
        "mix": {"noop": 80, "flaky": 10, "fail": 5, "sleep": 5, "sleep_ms": 6000},
        "load": {"kind": "bulk", "tasks": tasks},
        "fleet": {
            "processes": 3,
            "slots": 12,
            "settings": {
                "VIS_TIMEOUT_MS": 2000,
                "MAX_LOSSES": 1,
                "REAPER_SCAN_INTERVAL_MS": 500,
                "RETRY_BASE_MS": 400,
                "RETRY_MAX_MS": 4000,
                "RETRY_JITTER_MS": 400,
                "RETRY_SCAN_INTERVAL_MS": 200,
            },
        },
    },
    "this notebook",
    "burst",
)
names = (
    "VIS_TIMEOUT_MS",
    "REAPER_SCAN_INTERVAL_MS",
    "RETRY_BASE_MS",
    "RETRY_JITTER_MS",
    "RETRY_SCAN_INTERVAL_MS",
    "RETRY_BATCH_SIZE",
    "LEASE_BATCH_SIZE",
)
changes, base = planner.sensitivity(burst, names, Costs(), seeds=seeds)
print(f"unchanged: drain {base['drain_s'].median():.2f} s (median of {seeds} seeds)")
figure, ax = plt.subplots(figsize=(8, 4.2))
sweeps.tornado(ax, changes)
plt.show()

# %% [markdown]
# ## The audit
#
# Nothing real ran, so nothing can be asked of Postgres. But every simulation above has an exact answer that
# was known before it: how many tasks succeed and die, how many runs fail, are retried, or are lost.

# %%
exact = pd.concat([found["exact"], changes["exact"], base["exact"]])
print(f"{int(exact.sum()):,} of {len(exact):,} simulations have the counts of the closed form, to the unit")
assert exact.all()
