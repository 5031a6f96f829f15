"""Writes a TuningRun's status while it runs, and tells the same story in the Job's log.

Called by `tune` alone. The status is re-read before each write and written with the version that
was read: the watch loop (drift) writes another field of it. From its first report on the conditions
are this Job's, and after an outcome nobody's: a run that was deleted, that the operator ended (its
model was deleted), or that a newer alarm has overtaken, is found out here and ends the Job.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from trimwheel_api import names
from trimwheel_api.conditions import Row, with_conditions
from trimwheel_api.errors import Conflict, TrimwheelError
from trimwheel_api.kinds import TuningRun
from trimwheel_api.kinds.tuning_run import TuningRunStatus
from trimwheel_api.names import Reason
from trimwheel_api.times import to_text
from trimwheel_pipelines.kube import Objects
from trimwheel_pipelines.patience import Patience

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 2.0
"""Progress is written no more often than this."""
_TRIES = 8
_AS_INTENDED = frozenset({Reason.SUCCEEDED, Reason.NO_IMPROVEMENT, Reason.SUPERSEDED})
"""Reasons with which a run ends that did what it was for, or gave way to a newer one."""


class Gone(TrimwheelError):
    """The TuningRun was deleted, or ended by the operator; nobody waits for a result."""


class Superseded(TrimwheelError):
    """A Harmful alarm came after this run: its window holds traffic from before the change."""


@dataclass
class Reporter:
    """One run's status. `clock` gives the time in UTC."""

    objects: Objects
    namespace: str
    name: str
    uid: str
    clock: Callable[[], datetime]
    patience: Patience
    _progressed: datetime | None = None

    def phase(self, phase: str, message: str, **fields: Any) -> None:
        """Running: the phase, what it waits for, and fields of the status that changed."""
        log.info("%s: %s", phase, message)
        self._write(
            {"phase": phase, **fields},
            (names.READY, False, Reason.RUNNING, message),
            (names.RECONCILING, True, Reason.RUNNING, f"{phase}: {message}"),
            (names.STALLED, False, Reason.RUNNING, ""),
        )

    def progress(self, phase: str, message: str, **fields: Any) -> None:
        """`phase` for counts that move faster than people read: some of the calls are skipped."""
        now = self.clock()
        if self._progressed and (now - self._progressed).total_seconds() < PROGRESS_SECONDS:
            return
        self._progressed = now
        self.phase(phase, message, **fields)

    def finish(self, outcome: str, reason: str, message: str, **fields: Any) -> None:
        """The end: what went as intended is Ready, everything else Stalled with its reason."""
        log.info("%s: %s", outcome, message)
        good = reason in _AS_INTENDED
        done = {"outcome": outcome, "phase": "Finished", "finished_at": to_text(self.clock())}
        self._write(
            done | fields,
            (names.READY, good, reason, message),
            (names.RECONCILING, False, reason, ""),
            (names.STALLED, not good, reason, "" if good else message),
        )

    def check(self, model: str) -> None:
        """Raise Gone or Superseded when there is no point in going on."""
        runs = self.patience.call(
            "Reading TuningRuns", lambda: self.objects.list(TuningRun, self.namespace)
        )
        mine = next((run for run in runs if run.metadata.uid == self.uid), None)
        if mine is None:
            raise Gone(f"TuningRun {self.namespace}/{self.name} was deleted")
        if mine.status.outcome:
            raise Gone(f"{_subject(mine)} was ended: {mine.status.outcome}")
        later = [
            run.name
            for run in runs
            if run.spec.model == model
            and run.spec.reason == Reason.HARMFUL
            and _order(run) > _order(mine)
        ]
        if later and mine.spec.reason != Reason.HARMFUL:
            raise Superseded(f"TuningRun {later[0]} was started by harm after this one")

    def _write(self, fields: dict[str, Any], *rows: Row) -> None:
        for _ in range(_TRIES):
            observed = self._read()
            if observed.status.outcome:
                raise Gone(f"{_subject(observed)} was ended: {observed.status.outcome}")
            status = status_with(
                observed.status, fields, rows, observed.metadata.generation, self.clock()
            )
            if status == observed.status:
                return
            try:
                self.patience.call(
                    "Writing status",
                    lambda observed=observed, status=status: self.objects.write_status(  # type: ignore[misc]
                        observed, status
                    ),
                )
                return
            except Conflict:
                log.debug("The status changed meanwhile; reading it again.")
        raise Conflict(f"TuningRun {self.name}: its status changed {_TRIES} times while writing")

    def _read(self) -> TuningRun:
        found = self.patience.call(
            "Reading the TuningRun",
            lambda: self.objects.get(TuningRun, self.namespace, self.name),
        )
        if found is None or found.metadata.uid != self.uid:
            raise Gone(f"TuningRun {self.namespace}/{self.name} was deleted")
        return found


def status_with(
    status: TuningRunStatus,
    fields: dict[str, Any],
    rows: Sequence[Row],
    generation: int,
    now: datetime,
) -> TuningRunStatus:
    """The status with these fields and conditions; transition times move only on a flip."""
    conditions = with_conditions(status.conditions, rows, now=now, generation=generation)
    return status.model_copy(
        update=fields | {"conditions": conditions, "observed_generation": generation}
    )


def _subject(run: TuningRun) -> str:
    return f"TuningRun {run.metadata.namespace}/{run.name}"


def _order(run: TuningRun) -> tuple[str, str]:
    return run.metadata.creation_timestamp, run.name
