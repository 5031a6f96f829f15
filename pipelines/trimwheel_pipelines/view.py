"""One model with all that belongs to it, at one moment: what the watch loop decides from.

Made by `loop` on every pass, read by `decisions` (what to start), `housekeeping` (what to write
down and what to remove) and `promotion` (MLflow aliases). Pure; the clock is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from trimwheel_api.kinds import AdaptiveModel, AdaptivePolicy, PolicyRollout, TuningRun
from trimwheel_api.policy import DENSE, parse_policy
from trimwheel_pipelines.drift import DriftVerdict


@dataclass(frozen=True)
class View:
    """One model and what belongs to it, oldest first, at one moment."""

    model: AdaptiveModel
    policies: Sequence[AdaptivePolicy]
    runs: Sequence[TuningRun]
    rollouts: Sequence[PolicyRollout]
    now: datetime
    audits: int = 0
    """Audits on record, by what segments say of themselves."""
    verdict: DriftVerdict | None = None
    """None: full depth is served, which cannot drift, or the records could not be read."""

    @property
    def subject(self) -> str:
        """The model as the ledger names it."""
        return f"{self.model.metadata.namespace}/{self.model.name}"

    @property
    def stable_since(self) -> str:
        """When the stable policy became stable; empty before any."""
        return self.model.status.stable.since if self.model.status.stable else ""


def promoted(view: View) -> AdaptivePolicy | None:
    """The policy that was promoted last: what alias `stable` should point at."""
    intended = view.model.status.intended
    if intended is None or intended.digest == DENSE.digest:
        return None
    return next((one for one in view.policies if one.name == intended.policy), None)


def rolled_out(view: View) -> AdaptivePolicy | None:
    """The policy of the rollout under way: what alias `candidate` should point at."""
    candidate = view.model.status.candidate
    if candidate is None:
        return None
    return next((one for one in view.policies if one.name == candidate.policy), None)


def digest_of_object(policy: AdaptivePolicy) -> str:
    """Digest of an object's document."""
    return parse_policy(policy.spec.policy).digest
