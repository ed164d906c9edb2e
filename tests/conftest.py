"""A list of plugins, nothing else: each file of fixtures has one topic."""

from __future__ import annotations

pytest_plugins = [
    "fix_servers",
    "fix_proxy",
    "fix_api",
    "fix_shards",
    "fix_store",
    "fix_flow",
    "fix_process",
    "fix_system",
    "fix_stage",
    "fix_told",
]
