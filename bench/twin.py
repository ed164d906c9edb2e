"""The twin: a fleet, its queue and its servers in virtual time, with the product's own rules.

Which list is next is `scheduler.fairness`, how long a retry waits `scheduler.backoff`, and what an outcome
means `scheduler.lifecycle`: the very code that workers run. What is around them is modelled:

    feeder    asks for as many tasks as there is room for (the rule of `scheduler/slots.py`), gets them after
              a round trip, and waits for a wake-up when there are none; who leaves something wakes the next
    loop      each process does one thing at a time: it takes a batch, begins a run, sees that one is over. A
              run costs CPU time there and at the servers, more if it fails, and all of it shares the cores:
              what n busy processes need at once takes as long as it must
    slots     a run that sleeps keeps its slot; one that outlives its lease is ended then, and found later
    loops     pump and reaper of each process look at instants of their own, page by page

No clock is read: the seed decides everything, and the same arguments give the same history to the bit.
Two things are left out: servers that fail, and CPU time of what polls while nothing is to be done.
"""

from __future__ import annotations

import random
from array import array
from collections import deque
from heapq import heappop, heappush
from math import inf, nan
from typing import Final

from bench.agenda import Agenda, Patrol, Ticks
from bench.costs import Costs
from bench.history import History
from bench.job import Job
from bench.worker import WATCH_S, Worker
from bench.workload import PRIORITIES
from scheduler.config import Settings
from scheduler.fairness import Policy, State, choose
from scheduler.lifecycle import SUCCEEDED, RunOutcome, Verdict, after_failure, after_loss

_IDLE_S: Final = 1.0
"""As in scheduler/worker.py."""

_IN_BATCHES: Final = 0.5
"""The share of its CPU that a loop spends on whole batches, during which nothing else is seen to."""

_AT_ONCE_S: Final = 1e-9


class Twin(Agenda):
    """One job on one fleet. `run` carries it out and returns its history."""

    def __init__(self, job: Job, processes: int, settings: Settings, costs: Costs, seed: int) -> None:
        super().__init__()
        self._job = job
        self._cards = job.cards or job.types
        self._budgets = job.budgets or [job.max_retries] * len(job.fails)
        self._settings = settings
        self._rng = rng = random.Random(seed)
        self._policy = Policy(
            "strict" if settings.priority_mode == "strict" else "weighted",
            tuple(settings.priority_weights[name] for name in PRIORITIES),
            settings.priority_max_wait_ms,
        )
        self._backoff = settings.backoff
        self._loop_s, self._share_s = costs.loop_s, costs.cpu_s / costs.cores
        self._failure_s, self._failure_share_s = costs.failure_s, costs.failure_s / costs.cores
        self._lease_s, self._settle_s = costs.lease_ms / 1000, costs.settle_ms / 1000
        self._wake_s, self._call_s = costs.wake_ms / 1000, costs.call_us / 1e6
        self._bulky_until = job.coming[-1] if job.bulky else -1.0

        self._state = State()
        self._queues: tuple[deque[int], ...] = tuple(deque() for _ in range(4))
        self._due: tuple[list[tuple[float, int]], ...] = tuple([] for _ in range(4))
        self._lapsed: list[tuple[float, int]] = []
        n = range(processes)
        self._pumps = Patrol(
            self,
            Ticks(settings.retry_scan_interval_ms / 1000, [rng.random() for _ in n]),
            self._wake_s,
            self._pump,
        )
        self._reapers = Patrol(
            self,
            Ticks(settings.reaper_scan_interval_ms / 1000, [rng.random() for _ in n]),
            self._lease_s,
            self._reap,
        )
        self._idle = deque(Worker(i, settings, rng.random()) for i in n)
        self._busy = 0

        n_tasks = self._open = len(job.types)
        self._failures, self._losses = array("H", [0]) * n_tasks, array("H", [0]) * n_tasks
        self._attempts, self._holder = array("I", [0]) * n_tasks, array("I", [0]) * n_tasks
        stamps = array("d", (at - job.stamped_s for at in job.coming))
        self._ready, self._claimed = array("d", stamps), array("d", [0.0]) * n_tasks
        self._history = History(job.types, job.priorities, stamps)

    def run(self) -> History:
        """Everything, until each task has ended."""
        self.at(self._job.coming[0], self._arrive, 0)
        self.play()
        return self._history

    # Tasks become ready

    def _arrive(self, task: int) -> None:
        coming, priorities, queues = self._job.coming, self._job.priorities, self._queues
        delays = self._job.delays
        while task < len(coming) and coming[task] <= self.now:
            if delays and delays[task]:
                self._retry(task, coming[task] + delays[task])
            else:
                queues[priorities[task]].append(task)
            task += 1
        if task < len(coming):
            self.at(coming[task], self._arrive, task)
        self._wake()

    def _retry(self, task: int, due: float) -> None:
        self._ready[task] = due
        heappush(self._due[self._job.priorities[task]], (due, task))
        self._pumps.plan(due)

    def _pump(self) -> tuple[bool, float]:
        """One page: of each priority so many of those that are due."""
        moved, page, until = 0, self._settings.retry_batch_size, self.now + _AT_ONCE_S
        for due, queue in zip(self._due, self._queues, strict=True):
            most = len(queue) + page
            while due and due[0][0] <= until and len(queue) < most:
                queue.append(heappop(due)[1])
                moved += 1
        if moved:
            self._wake()
        return moved >= page, min((due[0][0] for due in self._due if due), default=inf)

    def _reap(self) -> tuple[bool, float]:
        """One page of leases that have run out."""
        lapsed, page, reaped = self._lapsed, self._settings.reaper_batch_size, 0
        while lapsed and lapsed[0][0] <= self.now + _AT_ONCE_S and reaped < page:
            task = heappop(lapsed)[1]
            reaped += 1
            verdict = after_loss(self._losses[task], self._settings.max_losses, in_company=False)
            self._losses[task] += 1
            self._log(task, "lost", nan, self.now)
            if verdict.status == "queued":
                self._ready[task] = self.now
                self._queues[self._job.priorities[task]].append(task)
            else:
                self._end(task, verdict, self.now)
        self._wake()
        return reaped >= page, lapsed[0][0] if lapsed else inf

    def _wake(self) -> None:
        """One idle worker is told, if there is one; it tells the next if it leaves something."""
        if self._idle:
            self.at(self.now + self._wake_s, self._feed, self._idle.popleft())

    # A worker leases

    def _feed(self, worker: Worker) -> None:
        worker.parked = False
        room = worker.room(self.now)
        queues = self._queues
        if not room:
            worker.parked = True
            if self._idle and any(queues):
                self._wake()  # the call was for somebody with room
            return
        if not any(queues):
            self._wait(worker)
            return
        depths = [len(queue) for queue in queues]
        picks, self._state = choose(room, depths, self._state, self._policy, int(self.now * 1000) + 1)
        batch = [queues[i].popleft() for i in picks]
        self.at(self.now + self._lease_s, self._leased, (worker, batch))
        if self._idle and len(picks) < sum(depths):
            self._wake()

    def _wait(self, worker: Worker) -> None:
        """It waits to be woken, and asks again after a while if it is not."""
        worker.idle_since = self.now
        self._idle.append(worker)
        if not worker.looking:
            worker.looking = True
            self.at(self.now + _IDLE_S, self._look_again, worker)

    def _look_again(self, worker: Worker) -> None:
        worker.looking = False
        if worker not in self._idle or not self._open:
            return
        over = worker.idle_since + _IDLE_S
        if self.now < over:
            worker.looking = True
            self.at(over, self._look_again, worker)
        else:
            self._idle.remove(worker)
            self._feed(worker)

    def _leased(self, leased: tuple[Worker, list[int]]) -> None:
        worker, batch = leased
        claimed = self.now - self._lease_s  # a lease counts from before the claim was sent
        for task in batch:
            self._claimed[task] = claimed
            self._attempts[task] += 1
            self._holder[task] = worker.number
        worker.arrived.append(batch)
        self._go(worker)

    # A worker runs

    def _go(self, worker: Worker) -> None:
        """There is something to do for the loop."""
        if not worker.turning:
            worker.turning = True
            self._busy += 1
            self._turn(worker)

    def _turn(self, worker: Worker) -> None:
        """The loop is free: end what is over, take what has arrived, begin the next run."""
        job, now = self._job, self.now
        if worker.in_hand >= 0:
            task, worker.in_hand = worker.in_hand, -1
            self._settle(worker, task, worker.began, worker.began + self._call_s)
        while worker.over:
            self._vacate(*worker.over.popleft())
        busy = self._busy if now >= self._bulky_until else self._busy + 1
        cost = max(busy * self._share_s, self._loop_s)
        while worker.arrived:
            batch = worker.arrived.popleft()
            worker.put(batch)
            self._feed(worker)
            if cost:
                self.at(now + len(batch) * cost * _IN_BATCHES, self._turn, worker)
                return
        usual = cost * (1 - _IN_BATCHES)
        failing = usual + max(busy * self._failure_share_s, self._failure_s)
        while worker.buffer and not worker.full:
            task = worker.buffer.popleft()
            card = self._cards[task]
            cost = failing if self._failures[task] < job.fails[card] else usual
            duration = job.duration(card)
            if duration:
                self._begin(worker, task, cost + duration)
            elif cost:
                worker.in_hand, worker.began = task, now
            else:
                self._settle(worker, task, now, now + self._call_s)
            if cost:
                self.at(now + cost, self._turn, worker)
                return
        self._rest(worker)

    def _rest(self, worker: Worker) -> None:
        worker.turning = False
        self._busy -= 1
        if worker.buffer and not worker.watched:
            worker.watched = True
            self.at(max(self.now, worker.stuck_from + WATCH_S), self._watch, worker)

    def _begin(self, worker: Worker, task: int, lasts: float) -> None:
        """A run that keeps its slot for a while."""
        now = self.now
        worker.begin(now)
        if not self._job.renewed[self._cards[task]]:
            over = worker.lease_end(self._claimed[task], now)
            if over < now + lasts:
                heappush(self._lapsed, (over, task))
                self._reapers.plan(over)
                self.at(max(over, now) + WATCH_S, self._free, (worker, -1, now))
                return
        self.at(now + lasts, self._free, (worker, task, now))

    def _free(self, run: tuple[Worker, int, float]) -> None:
        """The time of a run is up; the loop sees to it when it is free. Task -1: the run was lost."""
        worker = run[0]
        worker.over.append(run)
        self._go(worker)

    def _vacate(self, worker: Worker, task: int, began: float) -> None:
        worker.free(began)
        if task >= 0:
            self._settle(worker, task, began, self.now)
        else:
            self._ran(worker, self.now - began)

    def _ran(self, worker: Worker, seconds: float) -> None:
        worker.learn(seconds)
        if worker.parked:
            self._feed(worker)

    def _watch(self, worker: Worker) -> None:
        """Give back what waits in the buffer if no slot has come free for a while."""
        worker.watched = False
        if not worker.buffer or not worker.full:
            return
        if self.now < worker.stuck_from:
            worker.watched = True
            self.at(worker.stuck_from + WATCH_S, self._watch, worker)
            return
        back = list(worker.buffer)
        worker.buffer.clear()
        for task in back:
            self._log(task, "released", nan, self._claimed[task])
        self.at(self.now + self._settle_s, self._return, back)

    def _return(self, tasks: list[int]) -> None:
        for task in reversed(tasks):
            self._queues[self._job.priorities[task]].appendleft(task)
        self._wake()

    # Outcomes

    def _settle(self, worker: Worker, task: int, began: float, ended: float) -> None:
        """A handler has returned: lifecycle says what that means, backoff when it is tried again."""
        known = self.now + self._settle_s
        failures = self._failures[task]
        card = self._cards[task]
        if failures >= self._job.fails[card]:
            self._log(task, "succeeded", began, ended)
            self._end(task, SUCCEEDED, known)
        else:
            verdict = after_failure(failures, self._budgets[card])
            self._failures[task] = failures + 1
            self._log(task, "failed", began, ended)
            if verdict.status == "retrying":
                self._retry(task, known + self._backoff.delay_ms(failures + 1, self._rng) / 1000)
            else:
                self._end(task, verdict, known)
        self._ran(worker, ended - began)

    def _end(self, task: int, verdict: Verdict, at: float) -> None:
        self._open -= 1
        self._history.end(task, verdict.status, at)

    def _log(self, task: int, outcome: RunOutcome, began: float, ended: float) -> None:
        attempt, holder = self._attempts[task], self._holder[task]
        due, claimed = self._ready[task], self._claimed[task]
        self._history.add(task, attempt, outcome, holder, due, claimed, began, ended)
