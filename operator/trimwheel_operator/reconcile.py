"""Looks at models one pass at a time: gather, plan, write; again on news, on failure, in time.

`mark` is all that watches and handlers call. A bounded number of threads take keys from a fair
queue (`schedule`), since the clients are synchronous. A model that is there is looked at again
every 30 seconds at the latest; one that is not, only when something about it changes.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from trimwheel_api.errors import Conflict, TrimwheelError, Unavailable
from trimwheel_operator.apply import Writer
from trimwheel_operator.gather import Gatherer, Memory
from trimwheel_operator.leader import Leader, NotLeader
from trimwheel_operator.metrics import OperatorMetrics
from trimwheel_operator.plan import SOONEST, plan
from trimwheel_operator.plan.exposure import exposes
from trimwheel_operator.plan.journal import is_spent
from trimwheel_operator.plan.observed import ObservedState
from trimwheel_operator.schedule import FairQueue, Key, Lane

log = logging.getLogger(__name__)

WORKERS = 16
"""Passes at a time: they wait for the API server and Prometheus more than they compute."""
FIRST_BACK_OFF = 0.2
MAX_BACK_OFF = 30.0
STANDBY_POLL = 0.5
"""Seconds between looks at the leader lock while another operator holds it."""
CONFLICT_TRIES = 5
"""Passes in a row that may meet a conflict before it counts as a failure."""


class Reconciler:
    """Keeps every marked model as it is declared."""

    def __init__(
        self,
        gatherer: Gatherer,
        writer: Writer,
        leader: Leader,
        metrics: OperatorMetrics,
        queue: FairQueue,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._gatherer = gatherer
        self._writer = writer
        self._leader = leader
        self._metrics = metrics
        self._clock = clock
        self._queue = queue
        self._memories: dict[Key, Memory] = {}
        self._failures: dict[Key, int] = {}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name=f"reconcile-{number}", daemon=True)
            for number in range(queue.workers)
        ]

    def start(self) -> None:
        """Look at what is marked from now on."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float = 20.0) -> None:
        """A pass under way finishes its request and goes no further."""
        self._stop.set()
        self._queue.close()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def mark(self, key: Key, lane: Lane = Lane.NORMAL) -> None:
        """Look at this model soon. May be called from any thread."""
        self._queue.mark(key, lane)

    def keys(self) -> list[Key]:
        """The models that are looked after."""
        return list(self._memories)

    def alive(self) -> bool:
        """Whether every worker still runs."""
        return all(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        """The life of one worker."""
        while not self._stop.is_set():
            if not self._leader.held():
                self._stand_by()
                continue
            taken = self._queue.take(STANDBY_POLL)
            if taken is not None and self._leader.held():
                self._look(*taken)
            elif taken is not None:
                self._queue.done(taken[0], 0.0, taken[1])

    def _stand_by(self) -> None:
        """Another operator may have written since: what we remember, and show, is worth nothing."""
        for key in self.keys():
            self._forget(key)
        self._stop.wait(STANDBY_POLL)

    def _look(self, key: Key, lane: Lane) -> None:
        """One pass of one key, and when the next is due."""
        began = time.monotonic()
        memory = self._memories.setdefault(key, Memory())
        again: float | None = 0.0
        try:
            again, lane = self._pass(key, memory)
            self._failures.pop(key, None)
        except Exception as error:  # every failure is retried; the class says how loudly
            self._failures[key] = self._failures.get(key, 0) + 1
            again = self._back_off(key, error, self._failures[key])
        if again is None:
            self._memories.pop(key, None)
        self._queue.done(key, again, lane, time.monotonic() - began)

    def _forget(self, key: Key) -> None:
        self._memories.pop(key, None)
        self._failures.pop(key, None)
        self._metrics.gone(key)

    def _pass(self, key: Key, memory: Memory) -> tuple[float | None, Lane]:
        """One look: seconds until the next, or None for when something changes; and how soon."""
        began, now = time.perf_counter(), self._clock()
        state = self._gatherer.gather(*key, memory, now)
        if is_gone(state):
            self._metrics.gone(key)
            return None, Lane.ORPHAN
        made = plan(state, now)
        for failure in made.failures:
            self._metrics.rule_failed(failure.rule)
            about = "/".join((*key, failure.about)) if failure.about else "/".join(key)
            log.error("%s: %s", about, failure.sentence(), exc_info=failure.error)
        if exposes(made, state):
            self._gatherer.confirm(state)
        if self._stop.is_set():
            return 0.0, Lane.NORMAL
        refused = self._writer.carry_out(made)
        news = memory.carried_out(made, now, refused)
        if state.model is None:
            self._metrics.gone(key)
            return (SOONEST if made.actions else None), Lane.ORPHAN
        self._metrics.passed(key, made, time.perf_counter() - began)
        return (SOONEST if news else made.next_look), lane_of(state)

    def _back_off(self, key: Key, error: Exception, failures: int) -> float:
        """Seconds until the next try: a conflict is a reason to look again, not to wait."""
        self._metrics.failed(type(error).__name__)
        grown: float = FIRST_BACK_OFF * 2.0 ** min(failures - 1, 16)
        wait = min(MAX_BACK_OFF, grown) * random.uniform(0.8, 1.2)
        name = "/".join(key)
        match error:
            case Conflict() if failures <= CONFLICT_TRIES:
                log.info("%s: changed meanwhile, gathering again: %s", name, error)
                return 0.0
            case NotLeader():
                log.info("%s: %s", name, error)
            case Conflict() | Unavailable():
                log.warning("%s: trying again in %.1f s: %s", name, wait, error)
            case TrimwheelError():
                log.error("%s: trying again in %.1f s: %s", name, wait, error)
            case _:
                log.exception("%s: trying again in %.1f s", name, wait, exc_info=error)
        return wait


def lane_of(state: ObservedState) -> Lane:
    """How soon the next look in time is: a candidate's lease does not wait."""
    spec = state.assignment.spec if state.assignment else None
    return Lane.ACTIVE if spec and spec.candidate else Lane.NORMAL


def is_gone(state: ObservedState) -> bool:
    """Whether nothing of a model is left: no object of ours speaks of it, no Job runs for it."""
    objects = (state.model, state.assignment, *state.policies, *state.rollouts, *state.runs)
    there = [one for one in (*objects, *state.unreadable, *state.jobs) if one is not None]
    return not there and not _has_to_end(state)


def _has_to_end(state: ObservedState) -> bool:
    """Whether a journal is left that speaks of a canary, or holds nothing any more."""
    kept = state.journal
    if kept is None:
        return False
    return kept.spec.under_way is not None or is_spent(kept.spec, kept.status.cursor)
