"""The kinds of group trimwheel.dev as pydantic models: the one home of their fields and limits.

CRDs, the reference pages and every reader and writer derive from these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trimwheel_api.kinds.adaptive_model import AdaptiveModel
from trimwheel_api.kinds.adaptive_policy import AdaptivePolicy
from trimwheel_api.kinds.common import Condition, Metadata, Resource, dump
from trimwheel_api.kinds.policy_approval import PolicyApproval
from trimwheel_api.kinds.policy_assignment import PolicyAssignment
from trimwheel_api.kinds.policy_journal import PolicyJournal
from trimwheel_api.kinds.policy_rollout import PolicyRollout
from trimwheel_api.kinds.tuning_run import TuningRun


@dataclass(frozen=True, slots=True)
class Kind:
    """How the API server knows a kind."""

    model: type[Resource[Any, Any]]
    plural: str
    singular: str
    short: str
    has_status: bool = True

    @property
    def name(self) -> str:
        """CamelCase kind."""
        return self.model.__name__


KINDS: tuple[Kind, ...] = (
    Kind(AdaptiveModel, "adaptivemodels", "adaptivemodel", "amodel"),
    Kind(AdaptivePolicy, "adaptivepolicies", "adaptivepolicy", "adpolicy"),
    Kind(TuningRun, "tuningruns", "tuningrun", "tuning"),
    Kind(PolicyRollout, "policyrollouts", "policyrollout", "prollout"),
    Kind(PolicyApproval, "policyapprovals", "policyapproval", "papproval", has_status=False),
    Kind(PolicyAssignment, "policyassignments", "policyassignment", "", has_status=False),
    Kind(PolicyJournal, "policyjournals", "policyjournal", ""),
)
PLURALS: dict[str, str] = {kind.name: kind.plural for kind in KINDS}

__all__ = [
    "KINDS",
    "PLURALS",
    "AdaptiveModel",
    "AdaptivePolicy",
    "Condition",
    "Kind",
    "Metadata",
    "PolicyApproval",
    "PolicyAssignment",
    "PolicyJournal",
    "PolicyRollout",
    "Resource",
    "TuningRun",
    "dump",
]
