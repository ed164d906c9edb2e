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


def test_every_variable_has_a_check_and_every_check_a_variable():
    assert CHECKS.keys() == {declared.name for declared in VARS.values()}


@pytest.mark.parametrize("check", BY_CHECK, ids=[" ".join(names) for names in BY_CHECK.values()])
async def test_a_change_is_seen(world, check):
    await check(world)
