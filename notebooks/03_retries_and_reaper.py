# %% [markdown]
# # Retries and the reaper
#
# When does a task that failed run again, and how soon is a run noticed whose lease has run out? A burst of
# noops, flaky tasks (they fail twice, then succeed), tasks that always fail, and sleepers that outlive their
# lease. The first two questions have exact answers beforehand: how often each task is retried or lost is
# known from the deck, and between which bounds a retry waits follows from the settings.
#
# All times are scaled down alike: leases of a second instead of a minute. How late the reaper is grows with
# its scan interval, not with the lease, so with the defaults (a scan every 2 s) bars are longer than here.

# %% tags=["parameters"]
profile = "ci"  # or "full"
seed = 1  # decides the order of the tasks

# %%
import matplotlib.pyplot as plt
import pandas as pd

from bench import agreement, findings, plots, sweeps, theory, timelines
from bench.observation import observe
from bench.system import system
from bench.turn import SETTINGS
from bench.workload import Mix

plots.use_style()

# %%
tasks, workers = {"ci": (400, 2), "full": (5_000, 3)}[profile]
lease_ms, reaper_ms, pump_ms = 1000, 250, 100

settings = SETTINGS | {
    "METRICS_SAMPLE_MS": "100",
    "WORKER_POOL": "12",
    "VIS_TIMEOUT_MS": str(lease_ms),
    "MAX_LOSSES": "1",
    "REAPER_SCAN_INTERVAL_MS": str(reaper_ms),
    "RETRY_BASE_MS": "250",
    "RETRY_MAX_MS": "1000",
    "RETRY_JITTER_MS": "200",
    "RETRY_SCAN_INTERVAL_MS": str(pump_ms),
}
mix = Mix(noop=55, flaky=30, fail=10, sleep=5, sleep_ms=2 * lease_ms)

# %%
with system(settings, say=lambda _: None) as running:
    running.start_fleet(workers)
    backoff = running.settings.backoff
    seen = observe(running, "retries", mix, tasks, seed=seed)

# %% [markdown]
# ## Measured and expected counts
#
# The first column is what the deck and the settings say before anything runs; the second is what Postgres
# has on record afterwards; the third is what the workers' counters gained. They must be equal to the unit.

# %%
expected = {
    "claims": seen.expected.runs,
    "failed runs": seen.expected.failed,
    "retries": seen.expected.retries,
    "lost runs": seen.expected.lost,
    "dead letters": seen.expected.dead,
}
counted = agreement.counts(seen.ledger, seen.gained)
pd.DataFrame({"expected": expected}).join(counted[["Postgres", "scraped"]])

# %% [markdown]
# (Claims may exceed what is expected: a worker claims a little ahead of its slots and gives back what it
# could not start soon enough. Such a claim costs a task nothing.)
#
# ## How long retries waited
#
# Each point is one retry: the time from the end of the failed run until the task was claimed again. The
# orange band is what the settings allow: the backoff, its jitter, and one scan of the pump that moves due
# retries to the ready lists. Points above the band waited for a free slot, which no retry policy can promise;
# no point may lie below it.

# %%
waits = findings.retry_waits(seen.ledger)
bounds = {
    n: (
        theory.least_wait_ms(backoff, n) / 1000,
        (backoff.ceiling_ms(n) + backoff.jitter_ms + pump_ms) / 1000,
    )
    for n in range(1, mix.max_retries + 1)
}
figure, ax = plt.subplots(figsize=(8, 4))
sweeps.retry_waits(ax, waits, bounds)
plt.show()

# %% [markdown]
# ## Retries and lost runs over time
#
# Retries come in waves, one for each failure of the tasks that came together; jitter is what blurs them. The
# dashed lines are the expected totals.

# %%
figure, ax = plt.subplots(figsize=(8, 3.8))
plots.again(ax, seen.ledger, seen.samples, seen.expected)
plt.show()

# %% [markdown]
# ## Leases
#
# Each bar is a run that outlived its lease. The blue part is the lease. The red part is how long the task
# still counted as taken although nobody was allowed to work on it: at most one scan of the reaper and the
# time to write it down. A lease counts from when it was asked for, a claim from its commit a little later, so
# the blue part is drawn that much too long. A task that is lost twice appears twice, the second time as a bar
# further right.

# %%
lapses = findings.lapses(seen.ledger)
late = lapses["held_s"] - lease_ms / 1000
print(f"found {late.min():.3f} to {late.max():.3f} s after the lease's end, scans every {reaper_ms} ms")
figure, ax = plt.subplots(figsize=(8, 4.2))
timelines.leases(ax, lapses, lease_ms / 1000)
plt.show()

# %% [markdown]
# ## The audit
#
# Beside its own checks: no retry came before its backoff was over. (A millisecond is granted, as delays are
# rounded to milliseconds.)

# %%
print("\n".join(seen.verdict.lines()))
least = waits["failures"].map(lambda n: bounds[n][0])
assert seen.verdict.passed
assert (waits["wait_s"] >= least - 0.001).all()
