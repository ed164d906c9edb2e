# %% [markdown]
# # Open and closed loops
#
# What does a load test hide, and how much can this API take? First the API stands still for a moment, and two
# clients look at it. A *closed* client sends its next request when the last one is answered. While the server
# stands still it sends nothing, so one stall is one slow request to it, whatever would have come meanwhile.
# An *open* client sends at fixed times, as many independent users would, and its latency counts from the
# time at which a request was to be sent. Then the API is offered rate after rate, by an open client.
#
# The client shares the cores with everything else here, so what is found at the end is the limit of this
# machine with the client on it, not the API's alone. Steps are short: of a rate near the limit a longer one
# might show that it cannot be kept up.

# %% tags=["parameters"]
profile = "ci"  # or "full"
seed = 1  # decides the order of the tasks

# %%
import matplotlib.pyplot as plt

from bench import offered, plots, sweeps, timelines
from bench.observation import observed
from bench.scenario import Closed, Open
from bench.system import system
from bench.turn import SETTINGS
from bench.workload import Mix, deck

plots.use_style()

# %%
probe_per_s, probe_s, rates, step_s, repeats = {
    "ci": (200, 3.0, (100, 300, 600), 1.0, 1),
    "full": (200, 10.0, (100, 200, 400, 600, 800, 1000, 1200), 5.0, 3),
}[profile]
stall_at_s, stall_s = 1.0, 1.0
limit_s = 0.050  # what 95 % of the answers must keep
noops = Mix(noop=100)

# %%
with system(SETTINGS, say=lambda _: None) as running:
    running.start_fleet(2)
    steadily = Open(probe_per_s, probe_s)
    one_by_one = Closed(steadily.tasks, senders=2)
    looks = {}
    for name, how in {"open loop": steadily, "closed loop": one_by_one}.items():
        dealt = deck(noops, how.tasks, seed)
        with offered.standstill(running, at_s=stall_at_s if how is steadily else 0.3, for_s=stall_s):
            looks[name] = observed(running, name, dealt, how, seed=seed)
    steps, climbed = offered.ladder(running, rates, seconds=step_s, repeats=repeats)

# %% [markdown]
# ## One stall, seen by two clients
#
# Each point is a request: when it was to be sent, and how long it took from then on. The open loop's points
# fall along a slope, because the longer before the end of the stall a request was due, the longer it waited.
# The closed loop has a point or two up there, one for each of its senders, and its p95 knows of nothing.

# %%
figure, ax = plt.subplots(figsize=(8, 4))
timelines.stalls(ax, {name: seen.receipts for name, seen in looks.items()})
plt.show()

# %% [markdown]
# ## Latency by offered rate
#
# Each point is one step: the p50 and the p95 of its requests' latencies. As long as the API keeps up, latency
# hardly depends on the rate. Beyond its limit, requests wait for those before them, and latency grows for as
# long as the step lasts, so the height of the last points says little more than "too much".

# %%
figure, ax = plt.subplots(figsize=(8, 4))
sweeps.load_curve(ax, steps, limit_s)
plt.show()

# %%
best = offered.sustainable(steps, limit_s)
known = {0: "no rate that was offered", max(rates): f"even the highest rate, {max(rates)}/s"}
print(f"kept the limit of {limit_s * 1000:g} ms: {known.get(best, f'rates up to {best:g}/s')}")
print(f"{steps['disturbed'].sum()} of {len(steps)} steps were disturbed by other work and are not judged")
steps.round(4)

# %% [markdown]
# ## The audit
#
# Of both clients' tasks and of every step: each that was accepted ended once. Nothing was skipped.

# %%
for seen in (*looks.values(), *climbed):
    print(f"{seen.title}: {'; '.join(seen.verdict.lines())}")
assert all(seen.verdict.passed for seen in (*looks.values(), *climbed))
