"""What counts on all tasks of a load is no figure if some of them were not accepted."""

from __future__ import annotations

import pytest

from bench.receipts import LoadResult, Receipt
from scheduler.errors import StartError

ONE = Receipt("a", 0, 0.0, 0.0, 0.1)


def test_all_ids_are_those_of_all_bodies_or_none():
    assert LoadResult(1, 0.0, receipts=[ONE]).all_ids() == ["a"]
    with pytest.raises(StartError, match="only 1 of 2 tasks were accepted: it was refused"):
        LoadResult(2, 0.0, receipts=[ONE], gave_up="it was refused").all_ids()
