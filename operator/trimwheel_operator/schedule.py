"""Which model is looked at next: what is urgent first, and within that each namespace in its turn.

A namespace may hold thousands of models, or only claim to. So nobody waits in one long row: each
lane keeps a queue a namespace and serves them in turn, a namespace has a bounded share of the
workers, and the lower lanes leave some of them free for what is urgent. A key waits once however
often it is marked, and is never with two workers. Used by `reconcile`; knows no objects.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

Key = tuple[str, str]
"""(namespace, model name)."""

MAX_COOL_DOWN = 2.0
"""Seconds that marks of a model wait at most because its last pass was long."""


class Lane(IntEnum):
    """How soon a model is looked at; the smaller, the sooner."""

    URGENT = 0
    """Somebody goes back, a policy does harm, a candidate has to end."""
    ACTIVE = 1
    """A candidate is served: its lease has to be renewed, its guards judged."""
    NORMAL = 2
    """Anything else of a model that is there."""
    ORPHAN = 3
    """The model is not there; what names it is told so, or brought to an end."""


@dataclass(slots=True)
class _Row:
    """The keys that wait in one lane, by namespace; the namespace to serve next comes first."""

    namespaces: OrderedDict[str, OrderedDict[Key, None]] = field(default_factory=OrderedDict)

    def add(self, key: Key) -> None:
        self.namespaces.setdefault(key[0], OrderedDict())[key] = None

    def discard(self, key: Key) -> None:
        keys = self.namespaces.get(key[0])
        if keys is not None:
            keys.pop(key, None)
            if not keys:
                del self.namespaces[key[0]]

    def take(self, may: Callable[[str], bool]) -> Key | None:
        for namespace, keys in self.namespaces.items():
            if may(namespace):
                key, _ = keys.popitem(last=False)
                del self.namespaces[namespace]
                if keys:  # behind all others
                    self.namespaces[namespace] = keys
                return key
        return None


class FairQueue:
    """Keys that wait for one of `workers`. Thread-safe."""

    def __init__(self, workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.workers = workers
        self._clock = clock
        self._rows = {lane: _Row() for lane in Lane}
        self._waiting: dict[Key, Lane] = {}
        self._running: dict[Key, Lane] = {}
        self._marked: dict[Key, Lane] = {}
        """Keys that were marked while a worker had them."""
        self._timers: list[tuple[float, int, Key, Lane]] = []
        self._due: dict[Key, float] = {}
        self._cool: dict[Key, float] = {}
        self._count = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        quarter = max(1, workers // 4)
        self._room = {
            Lane.URGENT: workers,
            Lane.ACTIVE: max(1, workers - quarter),
            Lane.NORMAL: max(1, workers - 2 * quarter),
            Lane.ORPHAN: 1,
        }
        """Workers that a lane and those below it may have together."""
        self._share = {lane: max(1, workers // 2) if lane is Lane.URGENT else quarter
                       for lane in Lane}  # fmt: skip
        """Workers that one namespace may have in a lane and those below it."""

    def mark(self, key: Key, lane: Lane = Lane.NORMAL) -> None:
        """Look at this model soon; only what is urgent does not wait for it to cool down."""
        with self._changed:
            if key in self._running:
                self._marked[key] = min(lane, self._marked.get(key, lane))
                return
            until = self._cool.get(key, 0.0)
            if lane is not Lane.URGENT and until > self._clock():
                self._set_timer(key, lane, until)
            else:
                self._enqueue(key, lane)
            self._changed.notify()

    def take(self, timeout: float) -> tuple[Key, Lane] | None:
        """The next key, which is the caller's until `done`; None when there is none in time."""
        deadline = self._clock() + timeout
        with self._changed:
            while not self._closed:
                now = self._clock()
                self._ring(now)
                taken = self._pick()
                if taken is not None:
                    return taken
                wait = min([deadline, *(timer[0] for timer in self._timers[:1])]) - now
                if deadline <= now:
                    return None
                self._changed.wait(max(wait, 0.001))
        return None

    def done(
        self, key: Key, again: float | None, lane: Lane = Lane.NORMAL, spent: float = 0.0
    ) -> None:
        """A pass of `spent` seconds is over; the next is due in `again` seconds, or on a mark."""
        with self._changed:
            now = self._clock()
            self._running.pop(key, None)
            marked = self._marked.pop(key, None)
            until = now + min(spent, MAX_COOL_DOWN)
            self._cool[key] = until
            if marked is Lane.URGENT:
                self._enqueue(key, marked)
            elif marked is not None:
                self._set_timer(key, marked, until)
            elif again is not None:
                self._set_timer(key, lane, now + again)
            else:
                self._cool.pop(key, None)
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody gets anything any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _enqueue(self, key: Key, lane: Lane) -> None:
        self._due.pop(key, None)
        known = self._waiting.get(key)
        if known is not None and known <= lane:
            return
        if known is not None:
            self._rows[known].discard(key)
        self._waiting[key] = lane
        self._rows[lane].add(key)

    def _set_timer(self, key: Key, lane: Lane, due: float) -> None:
        """The earliest timer of a key counts; a later one is left in the heap and passed over."""
        if key in self._waiting or self._due.get(key, float("inf")) <= due:
            return
        self._due[key] = due
        heapq.heappush(self._timers, (due, next(self._count), key, lane))

    def _ring(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            due, _, key, lane = heapq.heappop(self._timers)
            if self._due.get(key) == due and key not in self._running:
                self._enqueue(key, lane)

    def _pick(self) -> tuple[Key, Lane] | None:
        for lane, row in self._rows.items():
            below = [key for key, running in self._running.items() if running >= lane]
            if len(below) >= self._room[lane]:
                break
            busy = Counter(namespace for namespace, _ in below)
            share = self._share[lane]
            key = row.take(lambda namespace, busy=busy, share=share: busy[namespace] < share)  # type: ignore[misc]
            if key is not None:
                del self._waiting[key]
                self._running[key] = lane
                return key, lane
        return None
