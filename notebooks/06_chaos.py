# %% [markdown]
# # Chaos
#
# What happens to tasks when parts of the system are harmed while it works? Tasks come at a steady rate. One
# worker is killed with all that it holds, another one stands still for longer than its leases and then goes
# on as if nothing had happened, and Redis loses everything that it knows. What each of these costs is time:
# no task may be lost, and none may succeed twice.
#
# This is one short run with three kinds of fault. `bench chaos` harms the system in many more ways and for
# as many seeds as wanted; docs/reliability.md has what it found. Faults strike by the clock, so which tasks
# they hit differs from run to run, and counts of runs are not fixed beforehand.

# %% tags=["parameters"]
profile = "ci"  # or "full"
seed = 1  # decides the order of the tasks, and how long the faults last

# %%
import matplotlib.pyplot as plt
import pandas as pd

from bench import findings, plots, sampling, scenario, timelines
from bench.costs import Costs
from bench.history import History
from bench.measured import ledger_of
from bench.turn import Arm, take

plots.use_style()

# %%
seconds, rate, lease_ms = {"ci": (6, 80, 2500), "full": (40, 150, 2500)}[profile]
scan_ms = 250

planned = scenario.parse(
    {
        "seed": seed,
        "mix": {"sleep": 100, "sleep_ms": 60},
        "load": {"kind": "open", "rate": rate, "seconds": seconds},
        "fleet": {
            "processes": 3,
            "slots": 6,
            "settings": {
                "VIS_TIMEOUT_MS": lease_ms,
                "MAX_LOSSES": 5,
                "STORE_TIMEOUT_MS": 1000,
                "REAPER_SCAN_INTERVAL_MS": scan_ms,
                "RECONCILE_INTERVAL_MS": scan_ms,
                "METRICS_SAMPLE_MS": 100,
            },
        },
        "faults": [
            {"at_s": 0.15 * seconds, "kind": "worker_killed", "target": "worker 2"},
            {"at_s": 0.4 * seconds, "kind": "worker_frozen", "target": "worker 3"},
            {"at_s": 0.8 * seconds, "kind": "redis_flushed"},
        ],
    },
    "this notebook",
    "chaos",
)

# %%
run, environment = take(Arm(planned), 0, Costs())
ledger = ledger_of(History.of(run["history"]), pd.Timestamp(run["timeline"]["at"]))
samples = sampling.frame_of(run["samples"])
pd.DataFrame(run["timeline"]["faults"])

# %% [markdown]
# ## Recovery
#
# Open tasks over time, and how many ended a second; the dashed red lines are the faults. A fault leaves a
# step in the left plot, which is what could not be worked off, and the way down from it is the recovery. A
# killed worker's runs are found when their leases are over. After Redis has lost everything, the API and the
# workers write its index anew from Postgres.

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 4))
began_s = run["timeline"]["load_began_s"]
timelines.faults(plots.drain(axes[0], ledger, samples), run["timeline"]["faults"], began_s)
timelines.faults(plots.throughput(axes[1], ledger, samples), run["timeline"]["faults"], began_s)
plt.show()

# %% [markdown]
# ## Leases that ran out
#
# Each bar is a run whose worker did not live, or was not awake, to end it. Its task waits for the lease's
# end and for a scan of the reaper, and is then run again.

# %%
lapses = findings.lapses(ledger)
figure, ax = plt.subplots(figsize=(8, 4))
timelines.leases(ax, lapses, lease_ms / 1000)
plt.show()

# %% [markdown]
# ## The account
#
# What the client knows, and what Postgres has on record. A lost run may have done its work before it was
# lost, so a handler may see a task more than once: that is what *at least once* means. Whatever a frozen
# worker reported after its lease was over was refused, so no task has succeeded twice.
#
# A task that loses a run is run alone in a process of its own from then on, in case it is what kills workers.
# Such a process takes a moment to start, and these tasks' leases are not renewed: on a very busy machine one
# may lose run after run, and end dead after the sixth. It is not gone, and the audit counts it, but leases
# should be long beside what a process takes to start.

# %%
twice = findings.again(ledger)
account = {
    "sent by the client": run["load"]["asked"],
    "accepted, by the client's own list": run["load"]["accepted"],
    "on record": len(ledger.tasks),
    "succeeded": int((ledger.tasks["status"] == "succeeded").sum()),
    "dead": int((ledger.tasks["status"] == "dead").sum()),
    "runs": len(ledger.executions),
    "runs that were lost": len(lapses),
    "tasks that lost a run and succeeded later": int((twice["status"] == "succeeded").sum()),
}
pd.Series(account, name="n").to_frame()

# %% [markdown]
# ## The audit
#
# It starts from the client's list of accepted ids, and asks Postgres and Redis. What speaks against the run
# as a measurement of time (other work on the machine, say) is told, too; that a worker was killed is no
# surprise here.

# %%
for flag in run["flags"]:
    print(f"{flag['name']}: {flag['why']}")
checks = run["verdict"]["checks"]
wrong = [check["name"] for check in checks if check["offenders"]]
print(f"{len(checks)} checks; failed: {', '.join(wrong) or 'none'}")
assert run["verdict"]["passed"], wrong
assert account["succeeded"] + account["dead"] == account["accepted, by the client's own list"]
