"""Every setting does something: a test changes each variable and sees the behaviour change.

The checks are in tests/changes, by topic; each registers itself for the variables that it changes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import changes.addresses
import changes.flow
import changes.pace  # noqa: F401 - to import the checks is to register them
import pytest
from changes.world import CHECKS, Check, World
from fix_store import Database

from scheduler.config import VARS

BY_CHECK: dict[Check, list[str]] = {}
for variable, check in CHECKS.items():
    BY_CHECK.setdefault(check, []).append(variable)


@pytest.fixture
async def world(make_settings, servers, proxy, server_dir, start, scheduler) -> AsyncIterator[World]:
    database = Database(make_settings().postgres_url)
    async with AsyncExitStack() as stack:
        stack.callback(database.close)
        yield World(make_settings, database, servers, proxy, server_dir, start, scheduler, stack)



import dataclasses

@pytest.mark.parametrize("variable", CHECKS)
async def test_blind(world, variable):
    def settings(**v): 
        v.pop(variable, None)
        return world.settings(**v)
    def start(*a, **v):
        v.pop(variable, None)
        return world.start(*a, **v)
    def scheduler(*a, **v):
        v.pop(variable, None)
        return world.scheduler(*a, **v)
    blind = dataclasses.replace(world, settings=settings, start=start, scheduler=scheduler)
    try:
        await CHECKS[variable](blind)
    except BaseException as e:
        print("SEEN", variable, type(e).__name__, str(e)[:80])
    else:
        pytest.fail("blind check passes: " + variable)
