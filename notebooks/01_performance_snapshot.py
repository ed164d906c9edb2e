# %% [markdown]
# # Performance snapshot
#
# This notebook measures the table that Scheduler's first README showed as an example. It starts Postgres,
# Redis, the API and a fleet of worker processes on this machine, sends two bursts of tasks, and asks
# Postgres what became of each of them:
#
# 1. **noops**: tasks that succeed at once, so all that takes time is the scheduler itself
# 2. **demo mix**: 80 % noop, 10 % flaky (fail twice, then succeed), 5 % always_fail (end as dead letters)
#    and 5 % sleepers that outlive their lease, so that the reaper takes them back.
#
# The profile `ci` is small enough for a test; `full` is what is published. Everything below was measured
# when the notebook ran, once for each burst. Times vary from run to run, and more so on a machine that is
# shared or busy; the counts must not vary at all.

# %% tags=["parameters"]
profile = "ci"  # or "full"
seed = 1  # decides the order of the tasks

# %%
import os
import platform

import matplotlib.pyplot as plt
from IPython.display import Markdown

from bench import agreement, plots, report
from bench.observation import observe
from bench.system import system
from bench.workload import Mix

plots.use_style()

# %% [markdown]
# ## The runs
#
# All times that a person would have to wait for are scaled down alike: a lease of a second or two instead
# of a minute, and sleepers that sleep twice as long. Gauges are refreshed ten times a second, so that what
# is scraped is hardly older than the scrape.

# %%
tasks, workers, lease_ms = {"ci": (600, 2, 1000), "full": (10_000, 3, 2000)}[profile]

settings = {
    "HTTP_ADDR": "127.0.0.1:0",
    "METRICS_ADDR": "127.0.0.1:0",
    "METRICS_SAMPLE_MS": "100",
    "WORKER_POOL": "12",
    "VIS_TIMEOUT_MS": str(lease_ms),
    "MAX_LOSSES": "1",
    "REAPER_SCAN_INTERVAL_MS": "250",
    "RETRY_BASE_MS": "200",
    "RETRY_MAX_MS": "2000",
    "RETRY_JITTER_MS": "200",
    "RETRY_SCAN_INTERVAL_MS": "100",
    "LOG_LEVEL": "warning",
}
noop_mix = Mix(noop=100)
demo_mix = Mix(noop=80, flaky=10, fail=5, sleep=5, sleep_ms=2 * lease_ms)

# %%
load = os.getloadavg()[0]
with system(settings, say=lambda _: None) as running:
    running.start_fleet(workers)
    version = running.query("SELECT current_setting('server_version')")[0][0]
    noops = observe(running, "noops", noop_mix, tasks, seed=seed)
    mixed = observe(running, "demo mix", demo_mix, tasks, seed=seed)

print(f"{os.cpu_count()} cores, load average {load:.1f} before the start")
print(f"Python {platform.python_version()}, Postgres {version}, seed {seed}")
print(f"{len(running.pids)} processes were started, and all have ended: {sorted(running.pids)}")

# %% [markdown]
# ## The table

# %%
Markdown(report.markdown([noops.snapshot, mixed.snapshot]))

# %% [markdown]
# The first row is the noops, the second the demo mix. The columns are those of the first README, and this is
# what they mean here:

# %%
print(report.meanings())

# %% [markdown]
# ## Drain
#
# The line is Postgres' record: it rises with each commit of the API and falls with each commit of a worker.
# The dots are the gauges as they were scraped meanwhile, every 250 ms.
#
# Tasks are run as soon as they arrive. As long as the drain takes hardly longer than the arrival, which is
# how noops go, the throughput above is that of the API, the workers, both servers and this notebook's client
# together, on the cores that they share. The demo mix is another matter: each sleeper keeps a slot busy
# until its lease runs out, so its drain is about *lost runs × lease / slots*, whatever the scheduler does.

# %%
for seen in (noops, mixed):
    arrival, drain = seen.ledger.arrival_s, seen.snapshot.drain_s
    print(f"{seen.title}: arrived within {report.seconds(arrival)}, drained after {report.seconds(drain)}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
for ax, seen in zip(axes, (noops, mixed), strict=True):
    plots.drain(ax, seen.ledger, seen.samples).set_title(seen.title)
plt.show()

# %% [markdown]
# ## Throughput
#
# The bars are what Postgres recorded, the dots what the workers' counters gained from one scrape to the next,
# and each tick on the axis is a commit that ended one task or many.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
for ax, seen in zip(axes, (noops, mixed), strict=True):
    plots.throughput(ax, seen.ledger, seen.samples).set_title(seen.title)
plt.show()

# %% [markdown]
# ## Waits
#
# How long tasks waited for their first start, by priority: every task is a point of a line. While all four
# lists are full, the fleet serves them by their weights (8, 4, 2, 1), so that `critical` is served most and
# `low` least, but none starves.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
for ax, seen in zip(axes, (noops, mixed), strict=True):
    plots.waits(ax, seen.ledger).set_title(seen.title)
plt.show()

# %% [markdown]
# ## Run times
#
# A lost run has no run time, as its handler's end was not recorded: it is drawn with the time for which
# it held its lease.

# %%
figure, ax = plt.subplots(figsize=(8, 3.8))
plots.run_times(ax, mixed.ledger)
plt.show()

# %% [markdown]
# ## Retries and reaped runs
#
# The dashed lines are not measured. The deck of tasks is fixed by the seed, so the number of retries and of
# lost runs is known before anything runs, and both sources must arrive at it to the unit.

# %%
figure, ax = plt.subplots(figsize=(8, 3.8))
plots.again(ax, mixed.ledger, mixed.samples, mixed.expected)
plt.show()

# %% [markdown]
# ## Postgres and Prometheus
#
# The same demo mix by two sources: what the tables say, and what the counters of the worker processes gained.

# %%
agreement.counts(mixed.ledger, mixed.gained)

# %% [markdown]
# A p95 from a histogram is known to its bucket only, and `histogram_quantile` places it inside as if the
# values were spread evenly there. So the scraped p95 stands beside the bucket that it comes from; Postgres'
# p95 is exact and must lie in that bucket, or next to its edge. Waits are those of the noops, of which each
# was started once. Most run times are far below the first bucket's bound of 1 ms: all that the histogram
# can say of them is that they are.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
plots.p95s(axes[0], agreement.waits(noops.ledger, noops.gained))
plots.p95s(axes[1], agreement.run_times(mixed.ledger, mixed.gained))
axes[0].set_ylabel("wait of the noops")
axes[1].set_ylabel("run time in the demo mix")
plt.show()

# %% [markdown]
# ## The audit
#
# It starts from the list of ids that the API gave to the client, and asks Postgres and Redis with queries of
# its own: is each task there, in one final status, with every attempt on record and no more than one
# success; and is every count what the deck says?

# %%
for seen in (noops, mixed):
    print(f"{seen.title}: {'; '.join(seen.verdict.lines())}")
assert noops.verdict.passed
assert mixed.verdict.passed
