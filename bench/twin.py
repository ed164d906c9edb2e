"""The twin: a fleet, its queue and its servers in virtual time, with the product's own rules.

Which list is next is `scheduler.fairness`, how long a retry waits `scheduler.backoff`, and what an outcome
means `scheduler.lifecycle`: the very code that workers run. What is around them is modelled:

    feeder    asks for as many tasks as there is room for (the rule of `scheduler/slots.py`), gets them after
              a round trip, and waits for a wake-up when there are none; who leaves something wakes the next
    loop      each process begins its runs one after the other. A run costs CPU time there and at the servers,
              and all of it shares the cores: what n busy processes need at once takes as long as it must
    slots     a run that sleeps keeps its slot; one that outlives its lease is ended then, and found later
    loops     pump and reaper of each process look at instants of their own, page by page

No clock is read: the seed decides everything, and the same arguments give the same history to the bit.
Two things are left out: servers that fail, and CPU time of what polls while nothing is to be done.
"""

from __future__ import annotations

import random
from array import array
from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf, nan
from typing import Final

from bench.agenda import Agenda, Patrol, Ticks
from bench.costs import Costs
from bench.history import History
from bench.job import Job
from scheduler.config import Settings
from scheduler.fairness import Policy, State, choose
from scheduler.lifecycle import SUCCEEDED, RunOutcome, Verdict, after_failure, after_loss

_WEIGHT: Final = 0.02
_GUESS_S: Final = 0.001
_SHORTEST_S: Final = 1e-5
_STUCK_S: Final = 0.2
_UNWEIGHED: Final = 8
"""As in scheduler/slots.py; the last is how much it leases ahead before it has seen a payload."""

_WATCH_S: Final = 0.025
"""What is found by looking every 50 ms is found after half of that on average."""

_LONGEST_BEAT_S: Final = 2.0
_LONGEST_UNSEEN_S: Final = 5.0
"""As in scheduler/heartbeat.py."""

_AT_ONCE_S: Final = 1e-9


@dataclass(slots=True, eq=False)
class _Process:
    """A worker process.

    Attributes:
        beats: When its heartbeat renews leases.
        buffer: What it has leased and not begun.
        running, sum_began, last_began: Runs that keep a slot: how many, and when they began.
        mean_s: The moving average of run times.
        weighed: It has seen a payload; those of all types are small.
        in_hand, began: The run that the loop is at, and since when; -1 = none.
        turning: The loop is at work.
        parked: The feeder waits for room.
        watched: It is planned to look whether the slots are stuck.
    """

    number: int
    beats: Ticks
    buffer: deque[int] = field(default_factory=deque)
    running: int = 0
    sum_began: float = 0.0
    last_began: float = 0.0
    mean_s: float = _GUESS_S
    weighed: bool = False
    in_hand: int = -1
    began: float = 0.0
    turning: bool = False
    parked: bool = False
    watched: bool = False


class Twin(Agenda):
    """One job on one fleet. `run` carries it out and returns its history."""

    def __init__(self, job: Job, processes: int, settings: Settings, costs: Costs, seed: int) -> None:
        super().__init__()
        self._job = job
        self._settings = settings
        self._rng = rng = random.Random(seed)
        self._policy = Policy(
            "strict" if settings.priority_mode == "strict" else "weighted",
            tuple(settings.priority_weights.values()),
            settings.priority_max_wait_ms,
        )
        self._backoff = settings.backoff
        self._vis_s = settings.vis_timeout_ms / 1000
        self._ahead_s = settings.lease_ahead_ms / 1000
        self._unseen_s = min(self._vis_s / 2, _LONGEST_UNSEEN_S)
        self._loop_s, self._share_s = costs.loop_s, costs.cpu_s / costs.cores
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
        beat_s = min(self._vis_s / 8, _LONGEST_BEAT_S)
        self._idle = deque(_Process(i, Ticks(beat_s, [rng.random()])) for i in n)
        self._busy = 0

        n_tasks = len(job.types)
        self._failures, self._losses = array("H", [0]) * n_tasks, array("H", [0]) * n_tasks
        self._attempts, self._holder = array("I", [0]) * n_tasks, array("I", [0]) * n_tasks
        self._ready, self._claimed = array("d", job.coming), array("d", [0.0]) * n_tasks
        self._history = History(job.types, job.priorities, job.coming)

    def run(self) -> History:
        """Everything, until each task has ended."""
        self.at(self._job.coming[0], self._arrive, 0)
        self.play()
        return self._history

    # Tasks become ready

    def _arrive(self, task: int) -> None:
        coming, priorities, queues = self._job.coming, self._job.priorities, self._queues
        while task < len(coming) and coming[task] <= self.now:
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
        """One idle process is told, if there is one; it tells the next if it leaves something."""
        if self._idle:
            self.at(self.now + self._wake_s, self._feed, self._idle.popleft())

    # A process leases

    def _feed(self, process: _Process) -> None:
        process.parked = False
        room = self._room(process)
        if not room:
            process.parked = True
            return
        queues = self._queues
        if not any(queues):
            self._idle.append(process)
            return
        depths = [len(queue) for queue in queues]
        picks, self._state = choose(room, depths, self._state, self._policy, int(self.now * 1000) + 1)
        batch = [queues[i].popleft() for i in picks]
        self.at(self.now + self._lease_s, self._leased, (process, batch))
        if self._idle and len(picks) < sum(depths):
            self._wake()

    def _room(self, process: _Process) -> int:
        """How many more tasks are worth leasing now: `Slots.room`."""
        slots, running, waiting = self._settings.worker_pool, process.running, len(process.buffer)
        free = slots - running
        if not free and self.now - process.last_began > _STUCK_S:
            return 0
        expected_s = process.mean_s + _WEIGHT * (running * self.now - process.sum_began)
        most = self._settings.lease_batch_size
        ahead = min(int(slots * self._ahead_s / expected_s), most)
        target = free + (ahead if process.weighed else min(ahead, _UNWEIGHED))
        wanted = target - waiting
        if wanted < target / 2 and not (free and not waiting):
            return 0
        return max(0, min(wanted, most))

    def _leased(self, leased: tuple[_Process, list[int]]) -> None:
        process, batch = leased
        for task in batch:
            self._claimed[task] = self.now
            self._attempts[task] += 1
            self._holder[task] = process.number
        process.buffer.extend(batch)
        process.weighed = True
        if not process.turning:
            process.turning = True
            self._busy += 1
            self._turn(process)
        self._feed(process)

    # A process runs

    def _turn(self, process: _Process) -> None:
        """The loop is free: end the run in hand, begin the next ones."""
        job, now = self._job, self.now
        if process.in_hand >= 0:
            task, process.in_hand = process.in_hand, -1
            self._settle(process, task, process.began, process.began + self._call_s)
        while process.buffer and process.running < self._settings.worker_pool:
            task = process.buffer.popleft()
            busy = self._busy if now >= self._bulky_until else self._busy + 1
            cost = max(busy * self._share_s, self._loop_s)
            duration = job.duration(job.types[task])
            if duration:
                self._begin(process, task, cost + duration)
            elif cost:
                process.in_hand, process.began = task, now
            else:
                self._settle(process, task, now, now + self._call_s)
            if cost:
                self.at(now + cost, self._turn, process)
                return
        process.turning = False
        self._busy -= 1
        if process.buffer and not process.watched:
            process.watched = True
            self.at(max(now, process.last_began + _STUCK_S + _WATCH_S), self._watch, process)

    def _begin(self, process: _Process, task: int, lasts: float) -> None:
        """A run that keeps its slot for a while."""
        now = self.now
        process.running += 1
        process.sum_began += now
        process.last_began = now
        if not self._job.renewed[self._job.types[task]]:
            over = self._lease_end(process, task)
            if over < now + lasts:
                heappush(self._lapsed, (over, task))
                self._reapers.plan(over)
                self.at(max(over, now) + _WATCH_S, self._free, (process, -1, now))
                return
        self.at(now + lasts, self._free, (process, task, now))

    def _lease_end(self, process: _Process, task: int) -> float:
        """When the lease of a task that begins now runs out: until now the heartbeat has renewed it."""
        renewed = self._claimed[task]
        while (beat := process.beats.after(renewed + self._unseen_s)) <= self.now:
            renewed = beat
        return renewed + self._vis_s

    def _free(self, run: tuple[_Process, int, float]) -> None:
        """A slot comes free; the task is -1 if the run was lost."""
        process, task, began = run
        process.running -= 1
        process.sum_began = process.sum_began - began if process.running else 0.0
        if task >= 0:
            self._settle(process, task, began, self.now)
        else:
            self._ran(process, self.now - began)
        if process.buffer and not process.turning:
            process.turning = True
            self._busy += 1
            self._turn(process)

    def _ran(self, process: _Process, seconds: float) -> None:
        process.mean_s += _WEIGHT * (max(seconds, _SHORTEST_S) - process.mean_s)
        if process.parked:
            self._feed(process)

    def _watch(self, process: _Process) -> None:
        """Give back what waits in the buffer if no slot has come free for a while."""
        process.watched = False
        if not process.buffer or process.running < self._settings.worker_pool:
            return
        if self.now - process.last_began < _STUCK_S:
            process.watched = True
            self.at(process.last_began + _STUCK_S + _WATCH_S, self._watch, process)
            return
        back = list(process.buffer)
        process.buffer.clear()
        for task in back:
            self._log(task, "released", nan, self._claimed[task])
        self.at(self.now + self._settle_s, self._return, back)

    def _return(self, tasks: list[int]) -> None:
        for task in reversed(tasks):
            self._queues[self._job.priorities[task]].appendleft(task)
        self._wake()

    # Outcomes

    def _settle(self, process: _Process, task: int, began: float, ended: float) -> None:
        """A handler has returned: lifecycle says what that means, backoff when it is tried again."""
        known = self.now + self._settle_s
        failures = self._failures[task]
        if failures >= self._job.fails[self._job.types[task]]:
            self._log(task, "succeeded", began, ended)
            self._end(task, SUCCEEDED, known)
        else:
            verdict = after_failure(failures, self._job.max_retries)
            self._failures[task] = failures + 1
            self._log(task, "failed", began, ended)
            if verdict.status == "retrying":
                self._retry(task, known + self._backoff.delay_ms(failures + 1, self._rng) / 1000)
            else:
                self._end(task, verdict, known)
        self._ran(process, ended - began)

    def _end(self, task: int, verdict: Verdict, at: float) -> None:
        self._history.end(task, verdict.status, at)

    def _log(self, task: int, outcome: RunOutcome, began: float, ended: float) -> None:
        attempt, holder = self._attempts[task], self._holder[task]
        due, claimed = self._ready[task], self._claimed[task]
        self._history.add(task, attempt, outcome, holder, due, claimed, began, ended)
