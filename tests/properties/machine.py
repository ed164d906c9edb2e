"""The steps of the protocol, in any order that Hypothesis can think of, on real servers and the reference.

Whatever a worker holds it may use again much later: leases stay in their bundle when they have ended.
After each step both sides hold the same, and the invariants hold; at the end everything comes to rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from itertools import count
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)
from pair import Pair, Side
from reference import Contents
from reference_index import KEYS
from reference_tables import Row, id_at

from scheduler import config, dlq
from scheduler.cancel import cancel
from scheduler.lease import policy
from scheduler.lifecycle import TERMINAL, most_losses
from scheduler.model import PRIORITIES, Lease, NewTask, Priority, Result, Settlement
from scheduler.settle import decide, move
from scheduler.store import Filter, WorkerIdentity

VIS_MS = 6500
LATER_MS = 2500
DAY_MS = 86_400_000
ME, YOU = "host:1:me", "host:2:you"
FORGED = ["", "null", "*", "no id of ours", "00000000-0000-7000-8000-00000000000f"]
KINDS = ["succeeded", "retry", "rejected", "timed_out", "unknown_type", "died", "interrupted"]
SETTINGS, _ = config.load(
    {
        "VIS_TIMEOUT_MS": f"{VIS_MS}",
        "MAX_LOSSES": "1",
        "MAX_REFUSALS": "1",
        "UNKNOWN_TYPE_DELAY_MS": f"{LATER_MS}",
        "RETRY_BASE_MS": f"{LATER_MS}",
        "RETRY_JITTER": "none",
        "PRIORITY_MAX_WAIT_MS": "0",
        "RECONCILE_INTERVAL_MS": "2125",  # twice that ends neither at a whole second nor at a half
        "RECONCILE_BATCH_SIZE": "2",
    }
)
POLICY = policy(SETTINGS)


class Machine(RuleBasedStateMachine):
    """One example. Before each step a second passes."""

    tasks = Bundle("tasks")
    leases = Bundle("leases")
    popped = Bundle("popped")
    settled = Bundle("settled")
    copies = Bundle("copies")

    def __init__(self) -> None:
        super().__init__()
        self.pair = self.make()
        self.sent: dict[str, NewTask] = {}
        self.numbers = count(1)
        self.damaged: Contents | None = None
        self.agrees = True

    def make(self) -> Pair:
        """The pair to work on."""
        raise NotImplementedError

    def step(self, what: Callable[[Side], Any]) -> Any:
        """A second passes, and then the same is done on both sides."""
        self.agrees = False
        self.pair.tick()
        return self.pair.do(what)

    # tasks come

    @initialize(target=tasks)
    def some_tasks(self) -> Any:
        """Two of each priority, so that order shows."""
        return multiple(*(self.enqueue(p, 1, None, None, True, True) for p in (*PRIORITIES, *PRIORITIES)))

    @rule(
        target=tasks,
        priority=st.sampled_from(PRIORITIES),
        max_retries=st.integers(0, 2),
        delay_ms=st.sampled_from([None, LATER_MS, 9 * LATER_MS]),
        key=st.sampled_from([None, "a", "b"]),
        recent=st.booleans(),
        pushed=st.booleans(),
    )
    def enqueue(
        self,
        priority: Priority,
        max_retries: int,
        delay_ms: int | None,
        key: str | None,
        recent: bool,
        pushed: bool,
    ) -> str:
        """A task is accepted; whoever accepts it may die before it pushes the id."""
        # No clock judges these ids: they are far from any bound.
        at_ms = self.pair.now_ms + (DAY_MS if recent else -DAY_MS)
        task = NewTask(
            f"{id_at(at_ms)[:-6]}{next(self.numbers):06}",
            "noop",
            priority,
            max_retries=max_retries,
            delay_ms=delay_ms,
            idempotency_key=key,
            fingerprint=key and f"{priority} {max_retries}",
        )
        (accepted,) = self.step(lambda side: side.store.enqueue([task]))
        self.sent[task.id] = task
        if pushed and accepted.result == "created":
            self.pair.do(lambda side: side.shard.push([(task.id, priority, accepted.delay_ms)]))
        return str(accepted.task.id)

    @rule(id_=tasks)
    def enqueue_again(self, id_: str) -> None:
        """The answer was lost, and the same is sent once more."""
        task = self.sent[id_]
        (accepted,) = self.step(lambda side: side.store.enqueue([task]))
        assert accepted.task.id == id_
        assert accepted.result == "created"

    # a worker's steps

    @rule(target=leases, n=st.integers(1, 4))
    def take(self, n: int) -> Any:
        return multiple(*self.step(lambda side: side.lessor.take(n)))

    @rule(target=popped, n=st.integers(1, 4))
    def pop(self, n: int) -> tuple[str, list[str]]:
        """Ids are leased; their claim may come at any time, or never."""
        token = f"pop:{next(self.numbers)}"
        return token, self.step(lambda side: side.shard.lease(n, token, VIS_MS, POLICY))

    @rule(target=leases, got=popped, worker=st.sampled_from([ME, YOU]))
    def claim(self, got: tuple[str, list[str]], worker: str) -> Any:
        token, ids = got
        return self._claim(ids, token, worker)

    @rule(target=leases, ids=st.lists(st.one_of(tasks, st.sampled_from(FORGED)), max_size=3, unique=True))
    def claim_what_was_not_leased(self, ids: list[str]) -> Any:
        return self._claim(ids, f"forged:{next(self.numbers)}", YOU)

    def _claim(self, ids: list[str], token: str, worker: str) -> Any:
        leases, refusals = self.step(
            lambda side: side.store.claim(ids, token=token, worker=worker, vis_ms=VIS_MS)
        )
        self.pair.do(lambda side: side.lessor._put_right(side.shard, refusals, token))
        return multiple(*leases)

    @rule(target=settled, lease=leases, kind=st.sampled_from(KINDS), placed=st.booleans())
    def settle(self, lease: Lease, kind: Any, placed: bool) -> Any:
        """An outcome is recorded, or comes too late; Redis may hear of it later."""
        return self._settle([lease], kind, placed=placed)

    @rule(
        target=settled,
        batch=st.lists(leases, min_size=2, max_size=5, unique_by=lambda lease: lease.id),
        kind=st.sampled_from(KINDS),
    )
    def settle_many(self, batch: list[Lease], kind: Any) -> Any:
        return self._settle(batch, kind, placed=True)

    def _settle(self, batch: list[Lease], kind: Any, *, placed: bool) -> Any:
        after_ms = LATER_MS if kind == "retry" else 0  # what is interrupted goes to the head of its list
        outcomes = [
            decide(lease, Result(kind, "why", after_ms, 0, 500_000), None, SETTINGS) for lease in batch
        ]
        settled = self.step(lambda side: side.store.settle(outcomes, worker=ME))
        stand = [s for s in outcomes if s.lease.id in settled]
        if placed and stand:
            self.pair.do(lambda side: side.shard.place([move(s) for s in stand]))
        return multiple(*stand)

    @rule(outcome=settled)
    def settle_again(self, outcome: Settlement) -> None:
        """The answer was lost, and the same is sent once more."""
        assert self.step(lambda side: side.store.settle([outcome], worker=ME)) == {outcome.lease.id}

    # what takes several steps in a row, and would hardly ever come about by chance

    @rule(target=leases)
    def lose_and_take_again(self) -> Any:
        """All leases run out, and whoever comes next takes the tasks."""
        self.pair.tick(7)
        self.pair.do(lambda side: side.reaper.step())
        return multiple(*self.step(lambda side: side.lessor.take(10)))

    @rule(target=leases, lease=leases, kind=st.sampled_from(KINDS))
    def settle_what_was_lost(self, lease: Lease, kind: Any) -> Any:
        """The outcome comes when somebody else has taken the task."""
        taken = self.lose_and_take_again()
        self._settle([lease], kind, placed=True)
        return taken

    @rule(target=leases, lease=leases)
    def renew_what_was_lost(self, lease: Lease) -> Any:
        taken = self.lose_and_take_again()
        self.renew([lease])
        return taken

    @rule(target=leases, priority=st.sampled_from(PRIORITIES))
    def take_too_early(self, priority: Priority) -> Any:
        """An id is ready before its row is due."""
        self.push_late(self.enqueue(priority, 1, 9 * LATER_MS, None, True, False), 0)
        return multiple(*self.step(lambda side: side.lessor.take(10)))

    @rule()
    def take_and_give_back(self) -> None:
        """A worker stops."""
        if held := self.step(lambda side: side.lessor.take(10)):
            self._settle(held, "interrupted", placed=True)

    @rule()
    def die_and_come_back(self) -> None:
        """Dead letters are redriven as soon as they are shown."""
        if held := self.step(lambda side: side.lessor.take(2)):
            self._settle(held, "rejected", placed=True)
            self.redrive(None)

    @rule(target=leases)
    def lose_all_owners(self) -> Any:
        """The reaper meets entries that nobody owns before a census sees that a key is missing."""
        taken = self.step(lambda side: side.lessor.take(2))
        self.evict("live")
        self.pair.tick(7)
        self.reap()
        return multiple(*taken)

    # what nobody has sent

    @rule(id_=st.sampled_from(FORGED), priority=st.sampled_from(PRIORITIES))
    def push_what_is_forged(self, id_: str, priority: Priority) -> None:
        """Somebody makes an id known that no row has; whoever comes upon it must drop it."""
        self.step(lambda side: side.shard.push([(id_, priority, 0)]))

    @rule(target=leases, id_=st.sampled_from(FORGED), priority=st.sampled_from(PRIORITIES))
    def take_what_is_forged(self, id_: str, priority: Priority) -> Any:
        """Somebody writes into a list past our scripts, and a worker takes all that there is."""
        self._change(lambda held: held.q[priority].insert(0, id_))
        taken = self.step(lambda side: side.lessor.take(100))
        held = self.pair.held
        where = {*held.live, *held.leases, *(each for ids in held.q.values() for each in ids)}
        assert id_ not in where, f"{id_!r} was not dropped"
        if not held.broken():
            self.damaged = None
        return multiple(*taken)

    # commands that are carried out when nobody expects them any more

    @rule(outcome=settled)
    def place_late(self, outcome: Settlement) -> None:
        self.step(lambda side: side.shard.place([move(outcome)]))

    @rule(id_=tasks, delay_ms=st.sampled_from([0, LATER_MS]))
    def push_late(self, id_: str, delay_ms: int) -> None:
        self.step(lambda side: side.shard.push([(id_, self.sent[id_].priority, delay_ms)]))

    @rule(lease=leases)
    def adopt_late(self, lease: Lease) -> None:
        self.step(lambda side: side.shard.adopt([(lease.id, lease.priority, lease.token, LATER_MS)]))

    @rule(id_=tasks)
    def show_dead_late(self, id_: str) -> None:
        self.step(lambda side: side.shard.dlq_add([(id_, self.sent[id_].priority, 0)]))

    # the heartbeat

    @rule(batch=st.lists(leases, min_size=1, max_size=4, unique_by=lambda lease: lease.id))
    def renew(self, batch: list[Lease]) -> None:
        self.step(lambda side: side.store.renew(batch, vis_ms=VIS_MS))

    @rule(target=leases)
    def renew_before_the_reaper_looks(self) -> Any:
        """Redis is not told of a renewal: its deadline passes, and the lease goes on."""
        taken = self.step(lambda side: side.lessor.take(2))
        self.pair.tick(3)
        self.pair.do(lambda side: side.store.renew(taken, vis_ms=VIS_MS))
        self.pair.tick(4)
        self.step(lambda side: side.reaper.step())
        return multiple(*taken)

    @rule(id_=st.sampled_from([ME, YOU]))
    def beat(self, id_: str) -> None:
        worker = WorkerIdentity(id_, "host", 1, ("default",), ("noop",), 4)
        self.step(lambda side: side.store.beat(worker, running=1, polled_ms=None, alive_ms=4500))

    @rule(id_=st.sampled_from([ME, YOU]))
    def leave(self, id_: str) -> None:
        self.step(lambda side: side.store.leave(id_))

    # the loops

    @rule(seconds=st.integers(1, 7))
    def wait(self, seconds: int) -> None:
        self.pair.tick(seconds)

    @rule()
    def reap(self) -> None:
        self.step(lambda side: side.reaper.step())

    @rule()
    def pump(self) -> None:
        self.step(lambda side: side.pump.step())

    @rule(everything=st.booleans())
    def reconcile(self, everything: bool) -> None:
        self.step(lambda side: side.reconciler.reconcile(everything=everything))

    # people

    @rule(id_=tasks)
    def cancel(self, id_: str) -> None:
        self.step(lambda side: cancel(side.store, side.index, id_))

    @rule(ids=st.one_of(st.none(), st.lists(tasks, max_size=2)))
    def redrive(self, ids: list[str] | None) -> None:
        self.step(lambda side: dlq.redrive(side.store, side.index, Filter(ids), lambda _: None))

    @rule(ids=st.one_of(st.none(), st.lists(tasks, max_size=2)))
    def purge(self, ids: list[str] | None) -> None:
        self.step(lambda side: dlq.purge(side.store, side.index, Filter(ids), lambda _: None))

    # what happens to Redis

    @rule()
    def forget_the_scripts(self) -> None:
        self.pair.real_only(lambda side: side.index.call("SCRIPT", "FLUSH"))

    @rule()
    def flush(self) -> None:
        self.pair.put(Contents())

    @rule(target=copies)
    def copy(self) -> Contents:
        return deepcopy(self.pair.held)

    @rule(copy=copies)
    def put_back(self, copy: Contents) -> None:
        self._change(lambda held: vars(held).update(vars(deepcopy(copy))))

    @rule(priority=st.sampled_from(PRIORITIES))
    def drop_a_message(self, priority: Priority) -> None:
        self._change(lambda held: held.q[priority][:1] and held.q[priority].pop())

    @rule(priority=st.sampled_from(PRIORITIES))
    def duplicate_a_message(self, priority: Priority) -> None:
        self._change(lambda held: held.q[priority].extend(held.q[priority][:1]))

    @rule(key=st.sampled_from(KEYS))
    def evict(self, key: str) -> None:
        self.pair.memory.evict("default", key)
        self._change(lambda held: None)

    def _change(self, change: Callable[[Contents], Any]) -> None:
        """Both hold the changed contents now; if I1 is broken by it, it stays so until a census."""
        held = deepcopy(self.pair.held)
        change(held)
        self.pair.put(held)
        if held.broken():
            self.damaged = self.pair.held

    # what holds after every step

    @invariant()
    def both_hold_the_same(self) -> None:
        self.pair.compare()
        self.agrees = True

    @invariant()
    def each_id_is_in_one_place(self) -> None:
        assert self.pair.held is self.damaged or not self.pair.held.broken()

    @invariant()
    def runs_bear_out_the_rows(self) -> None:
        for row in self.pair.tables.held.tasks.values():
            history = self.pair.tables.held.history(row.id)
            outcomes = Counter(run.outcome for run in history)
            assert [run.attempt for run in history] == list(
                range(1, row.attempts + (row.status != "running"))
            )
            assert outcomes["succeeded"] == (row.status == "succeeded")
            assert outcomes["cancelled"] <= (row.status == "cancelled")
            assert row.failures <= row.max_retries + 1
            most = most_losses(SETTINGS.max_losses) if row.suspect else SETTINGS.max_losses
            assert row.losses <= most + 1
            if row.redrives == 0:
                assert row.failures == outcomes["failed"] + outcomes["timed_out"]
                assert row.losses == outcomes["lost"]

    @invariant()
    def a_key_names_one_task(self) -> None:
        rows = self.pair.tables.held.tasks.values()
        keys = Counter(row.idempotency_key for row in rows if row.idempotency_key)
        assert all(n == 1 for n in keys.values())

    def teardown(self) -> None:
        """From wherever the steps have led, the loops and one worker bring everything to its end."""
        if not self.agrees:
            return
        for _ in range(20):
            self.pair.tick(7)
            self.pair.do(lambda side: side.reconciler.reconcile(everything=True))
            self.pair.do(lambda side: side.reaper.step())
            self.pair.do(lambda side: side.pump.step())
            for lease in self.step(lambda side: side.lessor.take(10)):
                self._settle([lease], "succeeded", placed=True)
            if self._at_rest():
                break
        self.pair.compare()
        assert self._at_rest()
        dead = {row.id for row in self._rows() if row.dead_at is not None}
        assert {id_ for ids in self.pair.held.dlq.values() for id_ in ids} == dead

    def _rows(self) -> list[Row]:
        return list(self.pair.tables.held.tasks.values())

    def _at_rest(self) -> bool:
        return all(row.status in TERMINAL for row in self._rows()) and not self.pair.held.live
