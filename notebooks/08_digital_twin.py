# %% [markdown]
# # The digital twin
#
# How well does the simulator foresee a run that it has not seen? Two runs of noops are measured: a burst, to
# tell what a task costs on this machine, and a few tasks a second, to tell how long a lease or a commit takes
# where nothing queues. With these costs the simulator predicts another run: other tasks, and another fleet.
# Only then is that run carried out, and the prediction's error is printed.
#
# The simulator runs the product's own rules (which list is next, how long a retry waits, what an outcome
# means) in virtual time. Counts must come out to the unit. Times are another matter: where slots or waits
# limit, they follow from the settings; where CPU limits, they depend on what else the machine does.
#
# **One run is one run**: with n = 1 an error of a few percent may be luck, and one of many percent the
# machine's fault. The profile `ci` is so short that starting up weighs as much as working; its errors say
# nothing about the simulator. Whether it is accurate is for many runs on a quiet machine to say.

# %% tags=["parameters"]
profile = "ci"  # or "full"
seed = 1  # decides the order of the tasks

# %%
import matplotlib.pyplot as plt
import pandas as pd

from bench import calibrate, plots, record, scenario, sweeps, timelines
from bench.costs import Costs
from bench.history import History
from bench.measured import ledger_of
from bench.simulate import simulate, summary
from bench.turn import Arm, take

plots.use_style()

# %%
learned_from, calm_s, tasks, seeds = {"ci": (1_500, 2, 400, 10), "full": (10_000, 20, 5_000, 40)}[profile]

noops = scenario.parse(
    {
        "seed": seed,
        "mix": {"noop": 100},
        "load": {"kind": "bulk", "tasks": learned_from},
        "fleet": {"processes": 2, "slots": 12},
    },
    "this notebook",
    "noops",
)
calm = scenario.parse(
    {
        "seed": seed,
        "mix": {"noop": 100},
        "load": {"kind": "open", "rate": 100, "seconds": calm_s, "spacing": "random"},
        "fleet": {"processes": 2, "slots": 12},
    },
    "this notebook",
    "calm",
)
held_out = scenario.parse(
    {
        "seed": seed,
        "mix": {"noop": 80, "flaky": 10, "fail": 5, "sleep": 5, "sleep_ms": 2000},
        "load": {"kind": "bulk", "tasks": tasks},
        "fleet": {
            "processes": 3,
            "slots": 4,
            "settings": {
                "VIS_TIMEOUT_MS": 1000,
                "MAX_LOSSES": 1,
                "REAPER_SCAN_INTERVAL_MS": 250,
                "RETRY_BASE_MS": 200,
                "RETRY_MAX_MS": 1000,
                "RETRY_JITTER_MS": 200,
                "RETRY_SCAN_INTERVAL_MS": 100,
            },
        },
    },
    "this notebook",
    "demo mix",
)

# %% [markdown]
# ## Calibrate
#
# The costs that the two runs told: of each the least, since CPU is dearer where there is little to do, and
# latency is longer where there is much. `inflation` is the one number that is fitted: by what CPU costs more
# than its price while the machine is busy.

# %%
cores = {"cores": float(record.machine()["cores"])}
learned, seen = [], []
for each in (noops, calm):
    made, environment = take(Arm(each), 0, Costs())
    prices = made["prices"] | cores
    learned.append(
        calibrate.Measured(each, 0, made["drain_s"], made["wait"]["p95_s"], prices, made["scores"])
    )
    seen.append(made)
costs = calibrate.fit(learned)
pd.Series(costs.content(), name="cost").round(2).to_frame()

# %% [markdown]
# ## Predict
#
# Before the run: one simulation for each seed. The first one has the run's own deck.

# %%
simulated = [simulate(held_out, costs, k) for k in range(seeds)]
foreseen = [summary(held_out, each) for each in simulated]
print(f"drain {foreseen[0].drain_s:.2f} s, p95 wait {foreseen[0].wait.p95_s:.2f} s")
print(
    f"of {seeds} seeds: drain {min(f.drain_s for f in foreseen):.2f}"
    f" to {max(f.drain_s for f in foreseen):.2f} s"
)

# %% [markdown]
# ## Run

# %%
run, environment = take(Arm(held_out), 0, costs)

# %% [markdown]
# ## Errors
#
# What was predicted for this very deck, beside what was measured. What speaks against the run is told with
# it: a run that was disturbed says nothing about the simulator.

# %%
rows = {
    "drain (s)": (run["drain_s"], foreseen[0].drain_s),
    "p95 wait (s)": (run["wait"]["p95_s"], foreseen[0].wait.p95_s),
    "runs": (run["counts"]["runs"], foreseen[0].counts.runs),
    "retries": (run["counts"]["retries"], foreseen[0].counts.retries),
    "lost runs": (run["counts"]["lost"], foreseen[0].counts.lost),
}
for made in (*seen, run):
    for flag in made["flags"]:
        print(f"{flag['name']}: {flag['why']}")
errors = pd.DataFrame.from_dict(rows, orient="index", columns=["measured", "predicted"])
errors.assign(error=(errors["predicted"] / errors["measured"] - 1).map("{:+.1%}".format)).round(2)

# %% [markdown]
# The left plot shows open tasks as they were, over the simulations; the right one each seed's drain and p95
# wait as a point, beside the one measurement. The spread of the points is that of decks and jitter only: the
# simulated machine is always the same, the real one is not.

# %%
begin = pd.Timestamp(run["timeline"]["at"])
measured = ledger_of(History.of(run["history"]), begin)
figure, axes = plt.subplots(1, 2, figsize=(12, 4))
timelines.forecast(axes[0], measured, [ledger_of(each, begin) for each in simulated[:10]])
sweeps.predictions(
    axes[1],
    [
        ("drain", run["drain_s"], [each.drain_s for each in foreseen]),
        ("p95 wait", run["wait"]["p95_s"], [each.wait.p95_s for each in foreseen]),
    ],
)
plt.show()

# %% [markdown]
# ## The audit
#
# Of all three runs, by Postgres and Redis. And every count, measured and simulated, is that of the closed
# form.

# %%
for made in (*seen, run):
    assert made["verdict"]["passed"]
    assert made["exact"]
assert {name: getattr(foreseen[0].counts, name) for name in run["expected"]} == run["expected"]
print(f"audit passed: {sum(made['counts']['tasks'] for made in (*seen, run)):,} tasks, counts to the unit")
