"""One look at a model and all that belongs to it, gathered for the views.

`gather` reads; everything after it is pure. The assignment is the operator's own object, so a
reader who may not see it gets the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trimwheel_api import names, phases
from trimwheel_api.errors import Refused
from trimwheel_api.kinds import (
    AdaptiveModel,
    PolicyApproval,
    PolicyAssignment,
    PolicyRollout,
    TuningRun,
    dump,
)
from trimwheel_cli.kube import Kube


@dataclass(frozen=True)
class Snapshot:
    """What the API server said of a model; lists are oldest first."""

    model: AdaptiveModel
    rollouts: tuple[PolicyRollout, ...] = ()
    approvals: tuple[PolicyApproval, ...] = ()
    tuning_runs: tuple[TuningRun, ...] = ()
    assignment: PolicyAssignment | None = None

    @property
    def active(self) -> PolicyRollout | None:
        """The rollout whose candidate is in the workers, if any."""
        candidate = self.model.status.candidate
        started = [one for one in self.rollouts if not phases.is_waiting(one.status)]
        open_ones = [one for one in started if not is_finished(one)]
        named = [one for one in open_ones if candidate and one.name == candidate.rollout]
        return next(iter(named or open_ones), None)

    def as_json(self) -> dict[str, Any]:
        """The objects, as `status -o json` prints them."""
        return {
            "model": dump(self.model),
            "active": self.active.name if self.active else None,
            "rollouts": [dump(one) for one in self.rollouts],
            "approvals": [dump(one) for one in self.approvals],
            "tuningRuns": [dump(one) for one in self.tuning_runs],
            "assignment": dump(self.assignment) if self.assignment else None,
        }


def gather(kube: Kube, name: str) -> Snapshot:
    """Read a model and what belongs to it. Raises NotFound, Refused or Unavailable."""
    base = gather_rollouts(kube, name)
    known = {one.metadata.uid for one in base.rollouts}
    approvals = [one for one in kube.every(PolicyApproval) if one.spec.rollout_uid in known]
    runs = [one for one in kube.every(TuningRun) if one.spec.model == name]
    try:
        assignment = kube.find(PolicyAssignment, name)
    except Refused:
        assignment = None
    return Snapshot(base.model, base.rollouts, tuple(approvals), tuple(runs), assignment)


def gather_rollouts(kube: Kube, name: str) -> Snapshot:
    """The model and its rollouts alone: no more than ClusterRole trimwheel-rollback may read."""
    model = kube.get(AdaptiveModel, name)
    return Snapshot(
        model, tuple(one for one in kube.every(PolicyRollout) if one.spec.model == name)
    )


def is_finished(rollout: PolicyRollout) -> bool:
    """Whether nothing will happen to it any more."""
    return phases.is_finished(rollout.status)


def is_queued(rollout: PolicyRollout) -> bool:
    """Whether it waits for another rollout of its model."""
    return rollout.status.is_true(names.QUEUED) or rollout.status.phase in ("", phases.QUEUED)
