# %% [markdown]
# # Quickstart
#
# What does Scheduler do, and how do I see it? This notebook starts everything on this machine (Postgres,
# Redis, the API and two worker processes), sends one task by hand and then a burst, and draws the queue while
# the burst is worked off. At the end everything is stopped, and an audit says whether each task was done.
#
# It shows how things go together. Its figures are of one small run, so they say nothing about how fast
# Scheduler is: notebook 01 measures that.

# %% tags=["parameters"]
profile = "ci"  # or "full"
seed = 1  # decides the order of the tasks

# %%
import matplotlib.pyplot as plt
from IPython.display import display

from bench import live, load, panel, plots, watch
from bench.observation import observe
from bench.system import system
from bench.turn import SETTINGS
from bench.workload import Mix

plots.use_style()

# %% [markdown]
# ## Start, send, watch, stop
#
# A system lives as long as the `with` block below. All its parts are the product's own commands, on free
# ports of this machine, and none of them can outlive the block: if one did, leaving it would raise an error.
#
# A task is a JSON object that is sent to `POST /v1/tasks`. Postgres keeps it, and what became of it, so that
# is where its end is looked up. The burst is sent in requests of up to 1,000 tasks.
#
# The left plot shows where open tasks are: ready to be taken, waiting for a retry, or in the hands of a
# worker. The right one shows how many end a second. Both are drawn anew twice a second from what the
# processes tell at their metrics endpoints, so they may lag behind by a fraction of a second.

# %%
tasks = {"ci": 2_000, "full": 20_000}[profile]

settings = SETTINGS | {
    "METRICS_SAMPLE_MS": "100",
    "WORKER_POOL": "12",
    "RETRY_BASE_MS": "200",
    "RETRY_MAX_MS": "1000",
    "RETRY_JITTER_MS": "200",
    "RETRY_SCAN_INTERVAL_MS": "100",
}
mix = Mix(noop=70, flaky=15, fail=5, sleep=10, sleep_ms=50)
ONE_TASK = """
SELECT t.type, t.priority, t.status, t.attempts, r.outcome, r.finished_at - t.created_at
FROM tasks AS t JOIN task_runs AS r ON r.task_id = t.id
WHERE t.id = %(id)s AND t.finished_at IS NOT NULL
"""

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
handle = display(figure, display_id=True)
plt.close(figure)
with system(settings, say=print) as running:
    running.start_fleet(2)
    sent = load.run(load.closed([{"type": "noop", "priority": "high", "payload": {}}], host=running.host))
    by_hand = {"id": sent.receipts[0].id}
    watch.until(lambda: running.query(ONE_TASK, by_hand), "the task's end")
    one = running.query(ONE_TASK, by_hand)[0]
    seen = live.alongside(
        lambda: observe(running, "burst", mix, tasks, seed=seed),
        running,
        lambda samples: handle.update(live.drawn(figure, axes, samples)),
    )

# %% [markdown]
# ## The task that was sent by hand
#
# Its type, priority, status and number of attempts, the outcome of its run, and the time from its commit to
# its end.

# %%
print(by_hand["id"], *one)

# %% [markdown]
# ## The burst, by Postgres
#
# The plot above was made of samples. This one is made of Postgres' own history, to the microsecond: the line
# rises with each commit of the API and falls with each end of a task. The dots are the scraped gauges.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
plots.drain(axes[0], seen.ledger, seen.samples)
plots.throughput(axes[1], seen.ledger, seen.samples)
plt.show()

# %% [markdown]
# ## Turn the knobs
#
# A panel starts a system of its own and lets you turn its knobs: how many workers, how many slots in each,
# how many tasks a second, and which. Press *Start*, then move a slider: a rate that the slots cannot work
# off lets the lists grow, and the waits with them; more workers let them shrink again. How many slots a
# worker has is decided when it starts, so turning that knob replaces the fleet. *Stop* stops everything; so
# does the end of the notebook's kernel, and a quarter of an hour.
#
# For this page, the next cell turns the knobs itself.

# %%
knobs = panel.Panel(settings)
display(knobs.widget)

# %%
knobs.start.click()
watch.until(lambda: any(look.per_s and look.in_flight for look in knobs.looks), "tasks ended", within_s=60)
before = knobs.looks[-1]
knobs.workers.value, knobs.slots.value, knobs.rate.value, knobs.sleep.value = 1, 4, 100, 60
watch.until(lambda: (knobs.looks[-1].workers, knobs.looks[-1].slots) == (1, 4), "it is another fleet")
watch.until(lambda: knobs.looks[-1].ready > 50, "more comes than four slots can do")
after = knobs.looks[-1]
knobs.close()
print(
    panel.told("before", knobs.steered.sent, [before]),
    panel.told("after", knobs.steered.sent, [after]),
    sep="\n",
)
display(panel.drawn(knobs.figure, list(knobs.looks)))

# %% [markdown]
# ## What is left
#
# Nothing. Leaving the first block above has stopped every process that was ever part of the system, and has
# looked whether they are gone. So has the panel.

# %%
print(f"{len(running.pids)} processes were started, and all have ended: {sorted(running.pids)}")
print(f"the panel had {len(knobs.steered.pids)}, which have ended, too")

# %% [markdown]
# ## The audit
#
# It starts from the ids that the API gave to the client. Is each task there, in one final status, with every
# attempt on record and no more than one success? Is every count what the deck of tasks says?

# %%
print("\n".join(seen.verdict.lines()))
assert seen.verdict.passed
assert one[2] == "succeeded"
