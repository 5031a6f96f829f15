"""What the watch loop has read of one model, and what follows from it in a pass.

Called by `loop`, which keeps one `Watched` for each model and guards each part. Reading is bounded
in a pass; what is kept is bounded altogether (`drift_sums`, `signals`, `records`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trimwheel_api.kinds import AdaptiveModel
from trimwheel_pipelines.block_sums import BlockSums
from trimwheel_pipelines.covariates import newest_z
from trimwheel_pipelines.drift import DriftVerdict
from trimwheel_pipelines.merging import finish, merge_once
from trimwheel_pipelines.records import RecordReader
from trimwheel_pipelines.segment_files import Plan
from trimwheel_pipelines.signals import Telemetry
from trimwheel_pipelines.watch import COLUMNS, AuditWatch, drift_settings, watched_since
from trimwheel_telemetry.client import Prometheus

SEGMENTS_A_PASS = 500
"""Segments read of one model in one pass, of which `records` bounds bytes and time as well: a loop
that starts on a long history catches up."""
SLACK = 3600.0
"""A segment that began this long before a promotion may hold audits from after it."""


@dataclass
class Watched:
    """One model's reader, and the watch over its stable policy; none at full depth."""

    reader: RecordReader
    watch: AuditWatch | None
    telemetry: Telemetry | None
    saved: float = 0.0
    """When its checkpoint was written, Unix seconds."""

    @classmethod
    def of(cls, root: str, model: AdaptiveModel) -> Watched:
        """Nothing read yet."""
        namespace, name = model.metadata.namespace, model.name
        reader = RecordReader(root, namespace, name)
        since = watched_since(model)
        if since is None or model.status.stable is None:
            return cls(reader, None, None)
        settings = drift_settings(model)
        block = settings.covariates.block
        watch = AuditWatch(model.status.stable.digest, since, settings)
        return cls(reader, watch, Telemetry(namespace, name, since, block))

    def fits(self, model: AdaptiveModel) -> bool:
        """Whether this is the watch over what is stable now, under the promise of now."""
        since = watched_since(model)
        if self.watch is None or since is None or model.status.stable is None:
            return self.watch is None and since is None
        settings, held = drift_settings(model), self.watch.settings
        if (self.watch.digest, self.watch.sums.since) != (model.status.stable.digest, since):
            return False
        same = (held.epsilon, held.false_alarm_audits, held.covariates.block) == (
            settings.epsilon, settings.false_alarm_audits, settings.covariates.block
        )  # fmt: skip
        if same:
            # What remains may change under a watch: it counts for what comes.
            self.watch.settings = self.watch.sums.settings = settings
        return same

    def read(self, now: float) -> int:
        """Take the segments that arrived; returns how many audits are on record altogether.

        Raises Unavailable when the store is away.
        """
        days = self.reader.files.days()
        if self.watch is not None:
            since = self.watch.sums.since - SLACK
            found = self.reader.read_new(since, SEGMENTS_A_PASS, days, COLUMNS)
            self.watch.add(found, now)
        return sum(day.audits for day in days)

    def merge(self, now: float, save: Callable[[], None]) -> list[Plan]:
        """Merge a piece of what was read; the plans that may go once `save` was called again.

        Raises Unavailable when the store is away.
        """
        days = self.reader.files.days()
        done = finish(self.reader, days)
        if not done and merge_once(self.reader, days, now, save):
            done = finish(self.reader, self.reader.files.days())
        return done

    def pull(self, prometheus: Prometheus | None, now: float) -> None:
        """Read what telemetry is new. Raises Unavailable when Prometheus is away."""
        if prometheus is not None and self.telemetry is not None:
            self.telemetry.refresh(prometheus, now)

    def judge(self, now: float) -> Judgement | None:
        """The verdict of this pass; None at full depth, which cannot drift."""
        if self.watch is None or self.telemetry is None:
            return None
        sums, signals = self.watch.sums, self.telemetry.signals()
        every: Sequence[BlockSums] = (sums.score, *signals)
        settings = self.watch.settings.covariates
        # Before the verdict, which may make what moved the new normal.
        moved = {one.name: newest_z(one, settings, sums.covariates_since, now) for one in every}
        verdict = sums.verdict(every, now)
        return Judgement(verdict, sums.disagreement(now), moved)


@dataclass(frozen=True)
class Judgement:
    """A verdict with what dashboards show beside it."""

    verdict: DriftVerdict
    disagreement: float | None
    moved: dict[str, float | None]
    """How far each signal is from its reference; None where nobody knows."""
