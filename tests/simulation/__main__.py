"""Replays one seed and prints all that happened: PYTHONPATH=tests python -m simulation SEED"""

from __future__ import annotations

import sys

from simulation.run import simulate

report = simulate(int(sys.argv[1]), verbose=True)
sys.stdout.write("\n".join(map(str, (report.plan, *report.log, report, ""))))
sys.exit(bool(report.broken))
