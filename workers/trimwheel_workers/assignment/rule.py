"""Which assignment is in force: epochs only grow, and a candidate lives on a lease. Pure.

The operator renews the assignment while a candidate serves. A worker that has heard no change for
`leaseSeconds` on its own monotonic clock serves stable, so that a dead operator or a partition ends
a canary by itself. `loop` feeds this and asks it; the clock is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from trimwheel_api.kinds.policy_assignment import PolicyAssignmentSpec

CAUSE_HOLD = "Hold"
CAUSE_LEASE = "LeaseExpired"


class News(Enum):
    """What a reading of the object means."""

    NEW = "a new epoch, or another object"
    RENEWED = "the same assignment, and its writer lives"
    SAME = "nothing new"
    OLDER = "an epoch that was left behind: refused"


@dataclass(frozen=True, slots=True)
class Effective:
    """What to serve now. Two are the same when their `key` is."""

    uid: str
    spec: PolicyAssignmentSpec
    weight: int
    """Basis points in force: the assignment's, or 0 on hold or without a lease."""
    cause: str = ""
    """Why the weight is not the assignment's: `CAUSE_HOLD`, `CAUSE_LEASE` or nothing."""

    @property
    def key(self) -> tuple[str, int, int, str]:
        """Identity for "has anything changed"; renewals are not a change."""
        return self.uid, self.spec.epoch, self.weight, self.cause


@dataclass(slots=True)
class Rule:
    """The newest assignment seen, and when it was last heard of."""

    uid: str = ""
    spec: PolicyAssignmentSpec | None = None
    heard_at: float | None = None
    """None after a restart from disk: nothing was heard, so no candidate is served."""

    def see(self, uid: str, spec: PolicyAssignmentSpec, now: float) -> News:
        """Take a reading; what it meant."""
        news = self._judge(uid, spec)
        if news in (News.NEW, News.RENEWED):
            self.uid, self.spec, self.heard_at = uid, spec, now
        return news

    def restore(self, uid: str, spec: PolicyAssignmentSpec) -> None:
        """Take what was on disk, of which nothing was heard since."""
        self.uid, self.spec, self.heard_at = uid, spec, None

    def expires_at(self) -> float | None:
        """When the candidate's lease runs out; None without a candidate in service."""
        if self.spec is None or self.heard_at is None or not self._serves_candidate(self.spec):
            return None
        return self.heard_at + self.spec.lease_seconds

    def effective(self, now: float) -> Effective | None:
        """What to serve at `now`; None before any assignment."""
        if self.spec is None:
            return None
        if self.spec.hold:
            return Effective(self.uid, self.spec, 0, CAUSE_HOLD)
        expires_at = self.expires_at()
        unheard = self.heard_at is None and self._serves_candidate(self.spec)
        if unheard or (expires_at is not None and now >= expires_at):
            return Effective(self.uid, self.spec, 0, CAUSE_LEASE)
        return Effective(self.uid, self.spec, self.spec.weight_basis_points)

    def _judge(self, uid: str, spec: PolicyAssignmentSpec) -> News:
        if self.spec is None or uid != self.uid:
            # A re-created object starts again at a low epoch, and is the truth all the same.
            return News.NEW
        if spec.epoch != self.spec.epoch:
            return News.NEW if spec.epoch > self.spec.epoch else News.OLDER
        return News.RENEWED if spec.renewals > self.spec.renewals else News.SAME

    @staticmethod
    def _serves_candidate(spec: PolicyAssignmentSpec) -> bool:
        return spec.candidate is not None and spec.weight_basis_points > 0 and not spec.hold
