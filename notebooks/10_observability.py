# %% [markdown]
# # Observability
#
# Can the metrics be trusted, and do the alerts see what goes wrong? First a steady load: what the client was
# told, what Postgres has on record, and what the metrics endpoints counted must be the same numbers. Then two
# things go wrong at once: far too few slots for what comes, and handlers that are slow or fail. The three
# expressions of alerts.yml are worked out over the scraped samples, as multiples of their thresholds.
#
# Times are scaled down. Prometheus looks back one minute or five and waits for another one before it wakes
# anybody; here the window is two seconds, and nothing is waited for. So this shows that the expressions rise
# when they should. When an alert fires, to the second, is tested with promtool on the rules themselves.

# %% tags=["parameters"]
profile = "ci"  # or "full"
seed = 1  # decides the order of the tasks

# %%
import time

import matplotlib.pyplot as plt
import pandas as pd

from bench import agreement, alarms, burst, plots, sampling, timelines
from bench.audit import audit, deck_expected
from bench.observation import observed
from bench.sampling import Sampler
from bench.scenario import Open
from bench.system import system
from bench.turn import SETTINGS
from bench.workload import Mix, deck

plots.use_style()

# %%
steady, trouble_s, too_many = {
    "ci": (Open(100, 3.5), 5, 400),
    "full": (Open(200, 20), 20, 2_000),
}[profile]
window_s, relief = 2.0, 2

settings = SETTINGS | {
    "METRICS_SAMPLE_MS": "100",
    "RETRY_BASE_MS": "200",
    "RETRY_MAX_MS": "1000",
    "RETRY_JITTER_MS": "200",
    "RETRY_SCAN_INTERVAL_MS": "100",
}
bad_mix = Mix(noop=50, fail=20, sleep=30, sleep_ms=1200)

# %% [markdown]
# One worker with one slot is enough for the steady noops and far too few for the burst of slow and failing
# tasks. After the samples are taken, two more workers come to its relief, so that all tasks end.

# %%
with system(settings, say=lambda _: None) as running:
    running.start_fleet(1, env={"WORKER_POOL": "1"})
    with Sampler(running.endpoints, now=running.now, names=alarms.SAMPLES) as sampler:
        healthy = observed(running, "steady noops", deck(Mix(noop=100), steady.tasks, seed), steady)
        before = burst.metrics(running)
        sent = burst.send(running, deck(bad_mix, too_many, seed), lambda *_: None)
        time.sleep(trouble_s)
    running.start_fleet(relief, env={"WORKER_POOL": "36"})
    burst.drain(running, too_many, before, lambda *_: None)
    limits = running.settings
    verdict = audit(
        running.postgres_url,
        running.redis_url,
        sent.ids,
        exactly=deck_expected(
            sent.dealt, sent.places, max_losses=limits.max_losses, lease_ms=limits.vis_timeout_ms
        ),
    )

# %% [markdown]
# ## Three sources, one count
#
# Of the steady load: what the client has a receipt for, what is in Postgres, what the API counted; then what
# Postgres has of its runs beside what the worker counted.

# %%
enqueued = sampling.total(healthy.samples, "tasks_enqueued_total")
accepted = {
    "client": healthy.receipts.accepted,
    "Postgres": len(healthy.ledger.tasks),
    "scraped": int(enqueued.iloc[-1] - enqueued.iloc[0]),
}
counted = agreement.counts(healthy.ledger, healthy.gained)
print("accepted tasks:", accepted)
counted

# %% [markdown]
# ## What a histogram knows of a p95
#
# Postgres keeps every instant, so its p95 is exact. A histogram knows in which bucket it lies, and
# `histogram_quantile` guesses a place in there. The shaded bar is that bucket: the width of what Prometheus
# cannot know. Buckets grow by the square root of two, so the guess is off by less than that factor.

# %%
p95s = agreement.waits(healthy.ledger, healthy.gained)
figure, ax = plt.subplots(figsize=(8, 3.6))
plots.p95s(ax, p95s)
ax.set_ylabel("wait by priority")
plt.show()

# %%
bounds = [(row.name, row.postgres_s, row.scraped_s, row.low_s, row.high_s) for row in p95s]
columns = ["priority", "p95 in Postgres (s)", "scraped (s)", "bucket from (s)", "to (s)"]
pd.DataFrame(bounds, columns=columns).round(4)

# %% [markdown]
# ## The alerts
#
# The steady load keeps all three far below 1, and of a quiet queue there may be nothing to judge at all. Then
# the burst comes. The queue would take minutes at the present pace; nearly every run of one type fails; and
# the p95 of another type is beyond a second. What is above 12 is drawn there.

# %%
levels = alarms.levels(sampler.frame(), window_s)
figure, ax = plt.subplots(figsize=(8, 4))
timelines.alarms(ax, levels)
plt.show()
peaks = levels.groupby("alert")["level"].agg(["median", "max"]).round(2)
peaks

# %% [markdown]
# ## The audit
#
# Of the steady load and of the burst: each accepted task ended once, and every count is the deck's. The three
# sources agree, and each alert's expression passed its threshold while things went wrong.

# %%
print(f"steady noops: {'; '.join(healthy.verdict.lines())}")
print(f"burst: {'; '.join(verdict.lines())}")
assert healthy.verdict.passed
assert verdict.passed
assert len(set(accepted.values())) == 1
assert (counted["Postgres"] == counted["scraped"]).all()
assert (peaks["max"] > 1).all()
