"""The watch-and-arms loop: read the assignment, apply it, acknowledge it, end it when its lease
ends.

The front runs one with its engine behind `apply`; `bench rollback` runs many without a model. Three
threads: one blocks in the source, one applies (woken by news and by the lease's end), one
acknowledges with retries. So neither a silent watch nor an absent API server delays a rollback.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from trimwheel_api.errors import InvalidInput, TrimwheelError
from trimwheel_workers.assignment.latest import Latest
from trimwheel_workers.assignment.rule import CAUSE_LEASE, Effective, News, Rule
from trimwheel_workers.assignment.source import AssignmentSource, Gone, Seen
from trimwheel_workers.assignment.store import Store

_LOG = logging.getLogger(__name__)
_APPLY_RETRY = 1.0
"""Seconds between attempts to apply what could not be applied; `poke` makes the next one sooner."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What is in force after an assignment was applied."""

    epoch: int
    """Its own, or the last good one's when the new stable policy was refused."""
    stable: str
    """Digest that serves outside the candidate's cohorts."""
    candidate: str = ""
    """Digest of the resident candidate, if any."""
    refused: str = ""
    """Why some policy was refused; the last good one serves instead of it."""
    tripped: str = ""
    """Why the candidate is out of service by this worker's own decision."""


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What a worker says of itself after each change."""

    epoch: int
    stable: str
    candidate: str
    refused: str = ""
    tripped: str = ""


Apply = Callable[[Effective], Applied]
"""Puts an assignment in force and returns when it is. Raises Unavailable to be asked again, and
InvalidInput when there is nothing good to keep serving instead."""
Acknowledge = Callable[[Acknowledgement], None]
"""Publishes one; raises TrimwheelError to be asked again."""


class AssignmentLoop:
    """Keeps one worker on its assignment."""

    def __init__(
        self,
        source: AssignmentSource,
        apply: Apply,
        acknowledge: Acknowledge,
        *,
        store: Store | None = None,
        clock: Callable[[], float] = time.monotonic,
        name: str = "assignment",
    ) -> None:
        self._source = source
        self._apply = apply
        self._store = store
        self._clock = clock
        self._rule = Rule()
        self._condition = threading.Condition()
        self._stop = threading.Event()
        self._poked = False
        self._done: tuple[str, int, int, str] | None = None
        self._put_off: tuple[str, int, int, str] | None = None
        self._acknowledged: Acknowledgement | None = None
        self._acknowledger: Latest[Acknowledgement] = Latest(f"{name}-ack", acknowledge)
        self._threads = [
            threading.Thread(target=self._listen, name=f"{name}-watch", daemon=True),
            threading.Thread(target=self._keep, name=f"{name}-apply", daemon=True),
        ]

    def start(self) -> None:
        """Begin watching."""
        self._acknowledger.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; what is in force stays in force."""
        self._stop.set()
        self._source.close()
        self.poke()
        self._acknowledger.stop()
        for thread in self._threads:
            thread.join(2.0)

    def poke(self) -> None:
        """Try again now what could not be applied (the engine came up)."""
        with self._condition:
            self._poked = True
            self._condition.notify()

    def tripped(self, reason: str) -> None:
        """Tell the world that this worker left its candidate by itself."""
        last = self._acknowledged
        if last is not None:
            self._publish(replace(last, tripped=reason))

    @property
    def rule(self) -> Rule:
        """What was seen so far; read it, never write it."""
        return self._rule

    # ------------------------------------------------------------------ watching

    def _listen(self) -> None:
        for event in self._source.events(self._stop):
            if self._stop.is_set():
                return
            if isinstance(event, Seen):
                self._hear(event)
            elif isinstance(event, Gone):
                self._restore("the assignment does not exist")
            else:
                self._restore(event.message)

    def _hear(self, seen: Seen) -> None:
        with self._condition:
            news = self._rule.see(seen.uid, seen.spec, self._clock())
            if news in (News.NEW, News.RENEWED):
                self._poked = True
                self._condition.notify()
        if news is News.OLDER:
            _LOG.warning("epoch %d is older than what is in force; refused", seen.spec.epoch)

    def _restore(self, why: str) -> None:
        """With nothing heard yet, serve what was good before this process started."""
        if self._rule.spec is not None:
            return
        stored = self._store.load() if self._store else None
        if stored is None:
            return
        _LOG.warning("%s; serving epoch %d from disk", why, stored[1].epoch)
        with self._condition:
            self._rule.restore(*stored)
            self._poked = True
            self._condition.notify()

    # ------------------------------------------------------------------ applying

    def _keep(self) -> None:
        while not self._stop.is_set():
            with self._condition:
                self._condition.wait_for(lambda: self._poked, self._patience())
                self._poked = False
                now = self._clock()
                effective = self._rule.effective(now)
            if self._stop.is_set():
                return
            if effective is not None and effective.key != self._done:
                self._put_in_force(effective)

    def _patience(self) -> float | None:
        """Seconds until the lease ends or an attempt is due; None when only news matters."""
        now = self._clock()
        effective = self._rule.effective(now)
        if effective is not None and effective.key != self._done:
            return _APPLY_RETRY
        expires_at = self._rule.expires_at()
        if expires_at is None or (effective is not None and effective.cause == CAUSE_LEASE):
            return None
        return max(0.0, expires_at - now)

    def _put_in_force(self, effective: Effective) -> None:
        try:
            applied = self._apply(effective)
        except InvalidInput as error:
            # Asking again would not help: say so, and wait for another assignment.
            _LOG.error("epoch %d cannot be served: %s", effective.spec.epoch, error)
            applied = Applied(epoch=0, stable="", refused=error.sentence())
        except TrimwheelError as error:
            if effective.key != self._put_off:
                _LOG.info("epoch %d is not in force yet: %s", effective.spec.epoch, error)
            self._put_off = effective.key
            return
        except Exception:
            # A fault of ours must not end the thread that would carry out the next rollback.
            _LOG.exception("epoch %d could not be applied; trying again", effective.spec.epoch)
            return
        if effective.cause:
            _LOG.warning("epoch %d: stable only (%s)", effective.spec.epoch, effective.cause)
        heard = self._rule.heard_at is not None
        if self._store and heard and applied.epoch == effective.spec.epoch:
            self._store.save(effective.uid, effective.spec)
        self._done = effective.key
        tripped = CAUSE_LEASE if effective.cause == CAUSE_LEASE else applied.tripped
        self._publish(
            Acknowledgement(
                applied.epoch, applied.stable, applied.candidate, applied.refused, tripped
            )
        )

    def _publish(self, acknowledgement: Acknowledgement) -> None:
        self._acknowledged = acknowledgement
        self._acknowledger.submit(acknowledgement)
