"""What counts of the past: revocations, rejections, and which certificates and requests to believe.

One question for one model, asked by gates, certificates and the stable-policy rule. The journal
answers; while there are no notes on admission yet (before the first self-test of this version that
held) everything is believed, as earlier versions did. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from trimwheel_api.kinds import AdaptiveModel, AdaptivePolicy, PolicyRollout, dump
from trimwheel_api.kinds.adaptive_model import AdaptiveModelSpec, AdaptiveModelStatus
from trimwheel_api.kinds.policy_journal import PolicyJournalSpec, RevokedDigest
from trimwheel_api.loosening import guarded_values, loosened
from trimwheel_api.policy import canonical_json, digest_of
from trimwheel_api.times import parse, to_micro
from trimwheel_operator.plan import journal

WHAT_TO_DO = {
    "certificate": "delete the policy and start a TuningRun, which certifies anew",
    "rollout": "delete the rollout and ask again",
    "promise": "a holder of verb waive sets these fields back and loosens them again",
}


@dataclass(frozen=True, slots=True)
class Remembered:
    """What is known of one model's past."""

    status: AdaptiveModelStatus
    journal: PolicyJournalSpec
    believe_all: bool = True
    """There are no notes on admission yet."""

    def with_revocation(self, digest: str, moment: datetime | None) -> Remembered:
        """The same, and that harm revoked this digest at that moment."""
        if moment is None:
            return self
        entry = RevokedDigest(digest=digest, time=to_micro(moment))
        return replace(self, journal=journal.revoke(self.journal, entry))

    def revocation(self, digest: str) -> datetime | None:
        """When harm last revoked this digest."""
        status = self.status
        times = [parse(one.revoked_at) for one in status.history if one.digest == digest]
        current = status.certificate
        if current and current.digest == digest:
            times.append(parse(current.revoked_at))
        times.append(journal.revoked_at(self.journal, digest))
        return max((time for time in times if time is not None), default=None)

    def is_rejected(self, digest: str) -> bool:
        """Whether it was rolled back or rejected, and not brought back since."""
        return journal.is_rejected(self.journal, digest)

    def was_taken_back(self, digest: str) -> bool:
        """Whether it was rejected, rolled back or revoked."""
        return self.is_rejected(digest) or self.revocation(digest) is not None

    def believes_certificate(self, policy: AdaptivePolicy) -> bool:
        """Whether its certificate was written while admission was in force."""
        if self.believe_all or policy.spec.certificate is None:
            return True
        digest = certificate_digest(policy)
        return any(
            (one.uid, one.digest) == (policy.metadata.uid, digest)
            for one in self.journal.certificates
        )

    def believes_request(self, rollout: PolicyRollout) -> bool:
        """Whether a Canary, with its waiver, was asked for while admission was in force."""
        if self.believe_all:
            return True
        return any(one.uid == rollout.metadata.uid for one in self.journal.requests)

    def unbelieved_fields(self, model: AdaptiveModel) -> list[str]:
        """Fields of the model that were loosened while admission was not in force."""
        if self.believe_all:
            return []
        return loosened_fields(self.journal, model)

    def believes_waiver(self, digest: str) -> bool:
        """Whether a believed request waived the certificate of this policy."""
        if self.believe_all:
            return True
        return any(one.waiver and one.policy_digest == digest for one in self.journal.requests)


def loosened_fields(spec: PolicyJournalSpec, model: AdaptiveModel) -> list[str]:
    """What is looser than was last seen by right; than the schema's defaults before that."""
    than = spec.promise.values if spec.promise else None
    usual = AdaptiveModelSpec(model=model.spec.model)
    return loosened(guarded_values(model.spec), than or guarded_values(usual))


def certificate_digest(policy: AdaptivePolicy) -> str:
    """Digest of a policy's certificate as it stands in the object."""
    certificate = policy.spec.certificate
    return digest_of(canonical_json(dump(certificate) if certificate else {}))


def gap(what: str, name: str) -> str:
    """The sentence about something that is not believed."""
    return (
        f"the {what} of {name} was written while an admission policy was not in force, so anybody "
        f"could have written it: {WHAT_TO_DO[what]}"
    )


def unnoted(
    spec: PolicyJournalSpec,
    policies: Iterable[AdaptivePolicy],
    rollouts: Iterable[PolicyRollout],
) -> list[AdaptivePolicy | PolicyRollout]:
    """Certified policies and unfinished Canaries that the journal says nothing of."""
    remembered = Remembered(AdaptiveModelStatus(), spec, believe_all=False)
    found: list[AdaptivePolicy | PolicyRollout] = [
        one for one in policies if not remembered.believes_certificate(one)
    ]
    found += [
        one
        for one in rollouts
        if one.spec.type != "Rollback"
        and not one.status.finished_at
        and not remembered.believes_request(one)
    ]
    return found
