"""The protocol's invariants: I1 and I4 of every state, I2, I3, I5 and I6 of every step, and L1's goal."""

from __future__ import annotations

from model.protocol import Config
from model.stores import Command, Redis, Row

from scheduler.lifecycle import MOVES, TERMINAL


def broken_index(redis: Redis, config: Config) -> str | None:
    """I1: one place, or none; exactly one iff `live` has the id; a token iff leased; never dead and alive.

    It is suspended from an eviction to the next census. A census counts no dead letters, so where keys are
    evicted a stale message may outlive one beside the dead letter; the claim puts it right, and L1 says so.
    Two evictions may make up for each other in the count, so there it is left to L1 altogether.
    """
    if redis.damaged or config.evict > 1:
        return None
    places = redis.q + redis.leases + redis.retry
    if places != (redis.live is not None):
        return f"I1: the id is in {places} places, and live says {redis.live!r}"
    if bool(redis.live) != bool(redis.leases):
        return f"I1: live says {redis.live!r}, and leases has the id {redis.leases} times"
    if redis.dlq and redis.live is not None and not config.evict:
        return "I1: the id is dead and alive"
    return None


def broken_row(row: Row | None, config: Config) -> str | None:
    """I4: no budget is overspent."""
    if row is None:
        return None
    if row.failures > config.max_retries + 1 or row.losses > config.max_losses + 1:
        return f"I4: {row.failures} failures and {row.losses} losses"
    return None


def broken_step(
    command: Command, row: Row | None, redis: Redis, new_row: Row | None, new_redis: Redis
) -> str | None:
    """I2, I3, I5, I6: what a statement or a script must not do."""
    name, *args = command
    if name == "place" and redis.leases and redis.live not in {None, "", args[0]} and new_redis != redis:
        return f"I5: a script by token {args[0] or 'nobody'} takes the entry of {redis.live}"
    if row is None or new_row is None or new_row == row:
        return None
    if row.status in TERMINAL and new_row.status != row.status and name != "redrive":
        return f"I2: {name} turns {row.status} into {new_row.status}"
    if new_row.status != row.status and new_row.status not in MOVES[row.status]:
        return f"I2: {name} turns {row.status} into {new_row.status}, which lifecycle does not know"
    if name == "reap" and not row.lapsed:
        return f"I6: reap ends attempt {row.attempts}, whose lease runs"
    if name == "claim" and row.status == "running":
        return f"I3: attempt {new_row.attempts} starts, and {row.attempts} has no outcome"
    if name == "settle" and (row.status, row.attempts, row.token) != ("running", args[0], args[1]):
        return (
            f"I3: an outcome of attempt {args[0]} under {args[1]} is accepted, and it does not hold the row"
        )
    return None


def clean(row: Row | None, redis: Redis) -> bool:
    """Has the task ended, and does Redis know it at most as a dead letter?"""
    if row is not None and row.status not in TERMINAL:
        return False
    return redis == Redis(dlq=row is not None and row.status == "dead")
