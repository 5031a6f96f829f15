"""Waits for audits: those that a search may use, and those that certify.

The two never overlap, and no loss is read while waiting: how long a run waits depends on counts
alone. Called by `tune` and `certifying`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from trimwheel_api.errors import NotEnoughData
from trimwheel_api.times import to_text
from trimwheel_pipelines.audit_window import AuditWindow, Promise, Selection, select_audits
from trimwheel_pipelines.records import AuditRecords, RecordReader
from trimwheel_pipelines.tuning_plan import Plan
from trimwheel_pipelines.tuning_status import Reporter
from trimwheel_pipelines.tuning_world import World

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
TELL_EVERY = 5
"""Polls between two updates of the status while waiting."""


@dataclass(frozen=True)
class SearchData:
    """What a search uses, and when the certifying window opens (Unix seconds)."""

    records: AuditRecords
    opens: float


class Collector:
    """The audit stream of one run."""

    def __init__(self, world: World, reporter: Reporter, plan: Plan) -> None:
        self._world, self._reporter, self._plan = world, reporter, plan
        self._reader = RecordReader(world.records_uri, plan.namespace, plan.model, remembers=True)

    def for_search(self) -> SearchData:
        """Wait for the audits that the search needs; what comes after them may certify.

        Enough from before the run: the newest of them, and the window opens with the run. Else the
        window opens after the last one needed: a moment that depends on counts, not on losses.
        Raises NotEnoughData at the run's deadline.
        """
        plan, need = self._plan, self._plan.search_records
        self._reporter.phase(
            "Collecting",
            f"{need} audits for the search",
            started_at=to_text(self._world.clock()),
            certify_needed=plan.n,
        )
        polls = 0
        while True:
            before = self._usable(self._read(lambda: self._reader.read_last(need, plan.created)))
            if len(before) >= need:
                return self._collected(before.newest(need), plan.opens)
            later = self._usable(self._read(lambda: self._reader.read(plan.created)))
            have = len(before) + len(later)
            if have >= need:
                joined = AuditRecords.joined([before, later]).oldest(need)
                after_last = float(np.nextafter(joined.column("time")[-1], np.inf))
                return self._collected(joined, max(after_last, plan.opens))
            if polls % TELL_EVERY == 0:
                message = f"{have} of {need} audits for the search"
                self._reporter.phase("Collecting", message, search_records=have)
            polls += 1
            self._pause("audits for the search", have, need)

    def fresh(self, opens: float, promise: Promise) -> tuple[AuditRecords, Selection]:
        """Wait until this look's audits are there, and select them.

        Raises NotEnoughData at the run's deadline.
        """
        polls, look = 0, promise.look + 1
        while True:
            now = self._world.clock()
            records = self._read(lambda: self._reader.read(opens)).of_model(self._plan.model_digest)
            selection = select_audits(_window(records, opens, now), promise)
            have = len(selection.rows)
            # Void is final only when all audits of this look are there: few have no share yet.
            complete = have == promise.audits
            if complete or polls % TELL_EVERY == 0:
                testing = f"testing {have} fresh audits"
                waiting = f"{have} of {promise.audits} audits"
                self._reporter.phase(
                    "Certifying",
                    f"look {look}: {testing if complete else waiting}",
                    certify_records=have,
                    certify_needed=promise.audits,
                )
            if complete:
                return records, selection
            polls += 1
            self._pause("fresh audits", have, promise.audits)

    def _usable(self, records: AuditRecords) -> AuditRecords:
        """Of this model; with inputs when a knob needs model runs and inputs are kept."""
        ours = records.of_model(self._plan.model_digest)
        return ours.with_inputs() if self._plan.runs_model else ours

    def _collected(self, records: AuditRecords, opens: float) -> SearchData:
        plan = self._plan
        if plan.knobs.run and not plan.runs_model:
            log.info(
                "Records keep no inputs (audits.inputs: none), so %s stay as they are; "
                "thresholds are searched by replay.",
                " and ".join(plan.knobs.run),
            )
        opening = datetime.fromtimestamp(opens, UTC)
        self._reporter.phase(
            "Searching",
            f"{len(records)} audits; those after {opening:%H:%M:%S} UTC certify",
            search_records=len(records),
        )
        return SearchData(records, opens)

    def _read(self, action: Callable[[], AuditRecords]) -> AuditRecords:
        return self._world.patience.call("Reading records", action)

    def _pause(self, what: str, have: int, need: int) -> None:
        """Wait for more; raises when time is up or nobody wants the result any more."""
        if self._world.clock().timestamp() > self._plan.deadline:
            raise NotEnoughData(f"{what} before the run's deadline", have, need)
        self._reporter.check(self._plan.model)
        self._world.sleep(POLL_SECONDS)


def _window(records: AuditRecords, opens: float, now: datetime) -> AuditWindow:
    return AuditWindow(
        u=records.column("u").astype(np.float64),
        rate=records.column("propensity").astype(np.float64),
        sessions=records.column("session").astype(str),
        opened=datetime.fromtimestamp(opens, UTC),
        closed=now,
        lost=records.lost,
    )
