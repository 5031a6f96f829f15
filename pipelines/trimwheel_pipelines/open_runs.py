"""Ends MLflow runs that nobody else will: their Job was killed, or their TuningRun is gone.

Called by the watch loop for each model, every few minutes. A Job ends its own run on every way out
that it can take; a deadline, a lost node and a deleted TuningRun leave none. Decided from what
MLflow shows as running against the TuningRuns that there are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from trimwheel_api.kinds import TuningRun
from trimwheel_pipelines.registry import OpenRun, Registry
from trimwheel_pipelines.view import View

log = logging.getLogger(__name__)

ASK_EVERY = 300.0
GRACE = 120.0
"""A run that began this shortly before the objects were listed may be younger than the list."""
GONE = "Gone"
"""Outcome of a run whose TuningRun was deleted."""


class OpenRuns:
    """The runs of all models on one MLflow."""

    def __init__(self, registry: Registry, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry, self._clock = registry, clock
        self._asked: dict[str, float] = {}

    def end_stale(self, view: View) -> None:
        """End what should not be running. Raises Unavailable while MLflow is away."""
        now = self._clock()
        if now - self._asked.get(view.subject, float("-inf")) < ASK_EVERY:
            return
        self._asked[view.subject] = now
        namespace, model = view.model.metadata.namespace, view.model.name
        before = view.now.timestamp() - GRACE
        shown = self._registry.open_runs(namespace, model)
        for run, outcome in stale_runs(shown, view.runs, before):
            note = f"Its TuningRun ended without closing it: {outcome}."
            self._registry.abandon_run(run.run_id, "KILLED", outcome, note)
            log.info("%s: MLflow run %s was ended, %s.", view.subject, run.run_id, outcome)

    def keep_only(self, subjects: set[str]) -> None:
        """Forget models that are gone."""
        self._asked = {key: value for key, value in self._asked.items() if key in subjects}


def stale_runs(
    shown: Sequence[OpenRun], runs: Sequence[TuningRun], before: float
) -> list[tuple[OpenRun, str]]:
    """Which running runs nobody works on any more, and why; those begun after `before` are left.

    Runs that carry no uid of a TuningRun, and are nested under none of ours, are somebody else's.
    """
    outcomes = {run.metadata.uid: run.status.outcome for run in runs}
    parents = {run.run_id: run for run in shown if run.uid}
    stale = []
    for run in shown:
        parent = run if run.uid else parents.get(run.parent)
        if parent is None or run.started >= before:
            continue
        outcome = outcomes.get(parent.uid, GONE)
        if outcome:
            stale.append((run, outcome))
    return stale
