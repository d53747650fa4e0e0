"""Who gets which slot of llama.cpp: chats (all plain requests) and the steps of searches share them.

A chat gets the free slot that holds most of its prompt, so a conversation goes on where its cache is; one that shares
with each slot less than half of either (how every chat begins) gets the one that was used longest ago instead of
overwriting another's conversation. What a slot holds is known here, not guessed by llama.cpp's similarity.

A search asks for many sequences at once. All searches together have at most all slots but one, so a chat need not wait
for their steps; where both wait for a slot, the side that has fewer gets it. Searches keep to the slots that they have
used before and take others by when those were used, the longest ago first, so the conversation of the last chat keeps
its cache; once no search runs, new chats take what searches left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from engine.llamaslots import COPY_FROM, common_prefix, place


@dataclass(eq=False)
class Job:
    """A chat, or a step of a search."""

    handle: int
    ids: np.ndarray
    """Of the prompt, by which a slot is chosen: none of a job that opts out of the cache."""
    step: bool = False
    slot: int | None = None
    """While it runs."""
    cancelled: bool = False


@dataclass
class Grant:
    """Jobs that may start, each with its slot: one chat, or steps."""

    jobs: list[Job]
    lent: int | None = None
    """A slot that steps may copy from, and must give back then."""


@dataclass
class Shares:
    """Not for several threads at once."""

    held: list[np.ndarray]
    """The ids in each slot's cache; kept by others."""
    searching: Callable[[], bool]
    """Whether a search runs."""
    free: list[int] = field(init=False)
    """By when they were used, the longest ago first."""
    waiting: dict[bool, deque[Job]] = field(init=False)
    """Steps, and not steps."""

    def __post_init__(self) -> None:
        self.free = list(range(len(self.held)))
        self.waiting = {False: deque(), True: deque()}
        self._running = {False: 0, True: 0}
        self._left: set[int] = set()  # slots that a search used last
        self._stepped = True  # whether the last slot went to a step

    def drop(self, job: Job) -> None:
        """Forget a job, if it waits."""
        if job in self.waiting[job.step]:
            self.waiting[job.step].remove(job)

    def grant(self) -> list[Grant]:
        """Give free slots to those that wait."""
        chats, steps = self._counts()
        granted = [Grant([self._place_chat()]) for _ in range(chats)]
        return [*granted, self._place_steps(steps)] if steps else granted

    def give_back(self, job: Job) -> None:
        assert job.slot is not None
        self._running[job.step] -= 1
        self.free.append(job.slot)
        job.slot = None

    def return_lent(self, slot: int) -> None:
        self.free.append(slot)

    def _counts(self) -> tuple[int, int]:
        """How many chats and how many steps begin now."""
        begun = {False: 0, True: 0}
        most = max(1, len(self.held) - 1) - self._running[True]
        wanted = {False: len(self.waiting[False]), True: min(len(self.waiting[True]), most)}
        for _ in self.free:
            sides = [side for side in (False, True) if begun[side] < wanted[side]]
            if not sides:
                break
            fewest = min(sides, key=lambda side: (self._running[side] + begun[side], side == self._stepped))
            begun[fewest] += 1
            self._stepped = fewest
        return begun[False], begun[True]

    def _place_chat(self) -> Job:
        job = self.waiting[False].popleft()
        shared = {slot: common_prefix(job.ids, self.held[slot]) for slot in self.free}
        own = [slot for slot, n in shared.items() if n and 2 * n >= min(len(job.ids), len(self.held[slot]))]
        searching = self.searching()
        slot = max(own, key=shared.__getitem__) if own else min(self.free, key=lambda s: (s in self._left) == searching)
        self._left.discard(slot)
        return self._start(job, slot)

    def _place_steps(self, count: int) -> Grant:
        """Those steps that share most with what searches hold, each where it does."""
        used = [slot for slot in self.free if slot in self._left]
        others = [slot for slot in self.free if slot not in self._left]
        slots = used + others[: max(0, count - len(used))]
        waiting = list(self.waiting[True])
        pairs = place([job.ids for job in waiting], [self.held[slot] for slot in slots])
        chosen = sorted(list(pairs.items())[:count])
        jobs = [self._start(waiting[at], slots[where]) for at, where in chosen]
        for job in jobs:
            self.waiting[True].remove(job)
        self._left.update(job.slot for job in jobs if job.slot is not None)
        return Grant(jobs, self._lend(jobs))

    def _lend(self, jobs: list[Job]) -> int | None:
        """A free slot that holds more of the first job's prompt than those of all jobs do."""
        prompt = jobs[0].ids
        shared = {slot: common_prefix(prompt, self.held[slot]) for slot in self.free}
        best = max(self.free, key=shared.__getitem__, default=None)
        mine = max(common_prefix(prompt, self.held[job.slot]) for job in jobs if job.slot is not None)
        if best is None or shared[best] - mine < COPY_FROM:
            return None
        self.free.remove(best)
        return best

    def _start(self, job: Job, slot: int) -> Job:
        job.slot = slot
        self.free.remove(slot)
        self._running[job.step] += 1
        return job
