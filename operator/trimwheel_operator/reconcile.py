"""One task for each model: look, plan, write; again on news, on failure, and every 30 seconds.

`mark` is all that handlers and watches call. A key's task runs one pass at a time; marks that come
in meanwhile make one more pass. Passes run in threads, because the clients are synchronous.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime

from trimwheel_api.errors import Conflict, TrimwheelError, Unavailable
from trimwheel_operator.apply import Writer
from trimwheel_operator.gather import Gatherer, Memory
from trimwheel_operator.leader import Leader, NotLeader
from trimwheel_operator.metrics import OperatorMetrics
from trimwheel_operator.plan import SOONEST, plan
from trimwheel_operator.plan.observed import ObservedState

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""(namespace, model name)."""

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
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._gatherer = gatherer
        self._writer = writer
        self._leader = leader
        self._metrics = metrics
        self._clock = clock
        self._news: dict[Key, asyncio.Event] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Take marks from now on; called inside the event loop."""
        self._loop = asyncio.get_running_loop()

    async def stop(self) -> None:
        """End all tasks; a pass under way finishes its request and goes no further."""
        loop, self._loop = self._loop, None
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if loop is not None:
            await asyncio.gather(*tasks, return_exceptions=True)

    def mark(self, key: Key) -> None:
        """Look at this model soon. May be called from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._mark, key)

    def keys(self) -> list[Key]:
        """The models that are looked after. May be called from the event loop's handlers."""
        return list(self._tasks)

    def alive(self) -> bool:
        """Whether every task still runs."""
        return not any(task.done() for task in self._tasks.values())

    def _mark(self, key: Key) -> None:
        if key not in self._tasks and self._loop is not None:
            self._news[key] = asyncio.Event()
            self._tasks[key] = asyncio.create_task(self._run(key), name="/".join(key))
        self._news[key].set()

    async def _run(self, key: Key) -> None:
        """The life of one key: until nothing of the model is left."""
        memory, failures = Memory(), 0
        while True:
            if not self._leader.held():
                # Another operator may have written since: what we remember is worth nothing.
                memory = Memory()
                await asyncio.sleep(STANDBY_POLL)
                continue
            self._news[key].clear()
            try:
                wait = await asyncio.to_thread(self._pass, key, memory)
                failures = 0
            except Exception as error:  # every failure is retried; the class says how loudly
                failures += 1
                wait = self._back_off(key, error, failures)
            if wait is None and not self._news[key].is_set():
                del self._tasks[key], self._news[key]
                return
            await self._wait(key, wait or 0.0)

    async def _wait(self, key: Key, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._news[key].wait(), seconds)
        except TimeoutError:
            return

    def _pass(self, key: Key, memory: Memory) -> float | None:
        """One look: seconds until the next, or None when nothing is left to look at."""
        began, now = time.perf_counter(), self._clock()
        state = self._gatherer.gather(*key, memory, now)
        if is_gone(state):
            self._metrics.gone(key)
            return None
        made = plan(state, now)
        for failure in made.failures:
            self._metrics.rule_failed(failure.rule)
            about = "/".join((*key, failure.about)) if failure.about else "/".join(key)
            log.error("%s: %s", about, failure.sentence(), exc_info=failure.error)
        refused = self._writer.carry_out(made)
        news = memory.carried_out(made, now, refused)
        self._metrics.passed(key, made, time.perf_counter() - began)
        return SOONEST if news else made.next_look

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


def is_gone(state: ObservedState) -> bool:
    """Whether nothing of a model is left: no object of ours speaks of it, no Job runs for it."""
    objects = (state.model, state.assignment, *state.policies, *state.rollouts, *state.runs)
    there = [one for one in (*objects, *state.unreadable, *state.jobs) if one is not None]
    return not there
