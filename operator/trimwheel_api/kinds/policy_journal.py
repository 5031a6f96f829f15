"""PolicyJournal: what the operator must not forget about one model; internal.

Lives in the release's namespace under `names.journal_name(namespace, model)` and outlives the model
and its policies. The operator alone writes the spec, in the pass that decides and before what was
decided takes effect; pipelines alone write the status: what is in the ledger, up to its cursor.
The release's own journal, named `names.RELEASE_JOURNAL`, holds since when admission is in force.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trimwheel_api.kinds.common import Resource, Spec, Status, ruled
from trimwheel_api.kinds.policy_rollout import Decision
from trimwheel_api.values import Digest

MAX_DECISIONS = 128
"""Decisions that wait for the ledger; the oldest is dropped, and counted, beyond."""
MAX_DIGESTS = 256
"""Rejected, and revoked, digests."""
MAX_CERTIFICATES = 256
MAX_REQUESTS = 128
RESERVED = 32
"""Places of each list that only what ends a canary may take."""

Witness = Literal["SelfTest", "Upgrade"]


class RejectedDigest(Spec):
    """A policy that was rolled back or rejected."""

    digest: Digest = Field(description="Of the policy document.")
    time: str = Field(description="When (RFC 3339).", max_length=40)
    reason: str = Field(default="", description="CamelCase reason.", max_length=64)
    by: str = Field(default="", description="User, where a person decided.", max_length=512)
    rollout: str = Field(default="", description="PolicyRollout that ended so.", max_length=253)


class RevokedDigest(Spec):
    """A policy whose certificates ended early: those issued until then are worth nothing."""

    digest: Digest = Field(description="Of the policy document.")
    time: str = Field(description="Certificates issued until then are void.", max_length=40)
    reason: str = Field(default="", description="CamelCase reason.", max_length=64)
    by: str = Field(default="", description="TuningRun that showed it.", max_length=253)


class SeenCertificate(Spec):
    """A certificate that was written while admission was in force."""

    policy: str = Field(description="AdaptivePolicy that carries it.", max_length=253)
    uid: str = Field(description="Its metadata.uid.", max_length=64)
    digest: Digest = Field(description="Of the certificate's canonical JSON.")
    time: str = Field(description="When it was noted.", max_length=40)
    witness: Witness = Field(
        description="SelfTest: every admission policy was shown to refuse; Upgrade: older than "
        "these notes."
    )


class SeenRequest(Spec):
    """A Canary that was asked for while admission was in force; it may carry a waiver."""

    rollout: str = Field(description="PolicyRollout.", max_length=253)
    uid: str = Field(description="Its metadata.uid.", max_length=64)
    policy_digest: Digest = Field(description="What it rolls out.")
    waiver: bool = Field(default=False, description="spec.allowUncertified.")
    time: str = Field(description="When it was noted.", max_length=40)
    witness: Witness = Field(description="As of a certificate.")


class SeenPromise(Spec):
    """The fields of the model that only a holder of waive may loosen, as they were last seen."""

    values: dict[str, str] = Field(
        description="By path below spec.", json_schema_extra={"maxProperties": 64}
    )
    time: str = Field(description="When they were seen to be so, by right.", max_length=40)
    witness: Witness = Field(description="As of a certificate.")


class JournalDecision(Decision):
    """A decision with what the ledger needs to know of its rollout, which may be gone by then."""

    sequence: int = Field(description="Counts entries of this journal from 1.", ge=1)
    rollout: str = Field(default="", description="PolicyRollout; empty: about the model itself.")
    rollout_uid: str = Field(default="", description="Its metadata.uid.")
    type: str = Field(default="", description="Canary or Rollback.")
    policy: str = Field(default="", description="AdaptivePolicy.")
    policy_digest: str = Field(default="", description="Digest of the policy.")
    requested_by: str = Field(default="", description="User who asked.")
    on_behalf_of: str = Field(default="", description="Who asked for its TuningRun, if a person.")
    epoch: int = Field(
        default=0, description="Of the assignment with which it takes effect; 0: of none.", ge=0
    )


class UnderWay(Spec):
    """The canary that workers have resident."""

    rollout: str = Field(description="PolicyRollout.", max_length=253)
    uid: str = Field(description="Its metadata.uid.", max_length=64)
    policy: str = Field(default="", description="AdaptivePolicy.", max_length=253)
    policy_digest: Digest = Field(description="Of the policy.")
    requested_by: str = Field(default="", description="User who asked.", max_length=512)
    on_behalf_of: str = Field(default="", description="As of a decision.", max_length=512)
    seq: int = Field(description="Number of its last decision.", ge=0)


class Truncation(Spec):
    """Decisions that were dropped because the ledger was away for too long."""

    count: int = Field(description="How many, ever.", ge=0)
    last_sequence: int = Field(description="Sequence of the last one.", ge=0)
    time: str = Field(description="When that was dropped.", max_length=40)


class GuardingPolicy(Spec):
    """One admission policy and its binding, as they were when they were shown to refuse."""

    name: str = Field(description="Of policy and binding.", max_length=253)
    uid: str = Field(description="metadata.uid of the policy.", max_length=64)
    generation: int = Field(description="metadata.generation of the policy.", ge=0)
    binding_uid: str = Field(description="metadata.uid of its bindings.", max_length=512)
    binding_generation: int = Field(description="Sum of their metadata.generation.", ge=0)


class AdmissionRecord(Spec):
    """Since when every admission policy of the release is as it is, and was shown to refuse."""

    held_since: str = Field(description="What is older was guarded by others.", max_length=40)
    policies: list[GuardingPolicy] = Field(
        default_factory=list, description="As they were shown to refuse.", max_length=64
    )


class PolicyJournalSpec(Spec):
    """What the operator remembers."""

    model_config = ruled(
        {
            "rule": "self.__namespace__ == oldSelf.__namespace__ && self.model == oldSelf.model",
            "message": "spec.namespace and spec.model are immutable: a journal is one model's",
        },
        {
            "rule": "self.sequence >= oldSelf.sequence",
            "message": "spec.sequence must not shrink: the ledger copies by it",
        },
    )
    namespace: str = Field(description="Namespace of the model.", max_length=63)
    model: str = Field(
        default="", description="AdaptiveModel; empty in the release's journal.", max_length=63
    )
    sequence: int = Field(default=0, description="Of the newest decision ever written.", ge=0)
    decisions: list[JournalDecision] = Field(
        default_factory=list,
        description="Decisions that may not be in the ledger yet, oldest first.",
        max_length=MAX_DECISIONS,
    )
    truncated: Truncation | None = Field(
        default=None, description="Decisions that the ledger will never have."
    )
    under_way: UnderWay | None = Field(default=None, description="The canary being served.")
    rejected: list[RejectedDigest] = Field(
        default_factory=list,
        description="Not rolled out again but by a waived Canary with an approval.",
        max_length=MAX_DIGESTS,
    )
    revoked: list[RevokedDigest] = Field(
        default_factory=list, description="Whose certificates harm ended.", max_length=MAX_DIGESTS
    )
    forgotten: int = Field(
        default=0,
        description="Rejected and revoked digests dropped for room; no object named them.",
        ge=0,
    )
    certificates: list[SeenCertificate] = Field(
        default_factory=list,
        description="Certificates that count; others were written in a gap of admission.",
        max_length=MAX_CERTIFICATES,
    )
    requests: list[SeenRequest] = Field(
        default_factory=list,
        description="Canaries that count, and the waivers that were used.",
        max_length=MAX_REQUESTS,
    )
    promise: SeenPromise | None = Field(
        default=None, description="What was promised; looser fields need a witness again."
    )
    admission: AdmissionRecord | None = Field(
        default=None, description="In the release's journal: since when admission is in force."
    )


class PolicyJournalStatus(Status):
    """What pipelines report."""

    model_config = ruled(
        {
            "rule": "!has(self.cursor) || !has(oldSelf.cursor) || self.cursor >= oldSelf.cursor",
            "message": "status.cursor must not shrink: what is in the ledger stays there",
        }
    )
    cursor: int = Field(
        default=0, description="Decisions up to this sequence are in the ledger.", ge=0
    )
    copied_at: str = Field(default="", description="When the cursor last moved.", max_length=40)


class PolicyJournal(Resource[PolicyJournalSpec, PolicyJournalStatus]):
    """What is remembered of one model, whatever is deleted; internal, the operator's memory."""

    model_config = ruled(
        {
            "rule": "!has(self.status) || !has(self.status.cursor) || "
            "self.status.cursor <= self.spec.sequence",
            "message": "status.cursor must be at most spec.sequence",
        }
    )
    kind: str = "PolicyJournal"
    status: PolicyJournalStatus = Field(default_factory=PolicyJournalStatus)
