"""Where a rollback goes, and how it ended: what verb `rollback` asks, apart from its options.

`aim` is pure. `follow` polls one PolicyRollout until the operator has said its last word; it
judges nothing, the words are the operator's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from trimwheel_api import names, phases
from trimwheel_api.errors import SpecInvalid, Unavailable
from trimwheel_api.kinds import PolicyRollout
from trimwheel_api.kinds.adaptive_model import AdaptiveModelStatus
from trimwheel_api.kinds.policy_rollout import Actuation
from trimwheel_api.policy import DENSE
from trimwheel_cli.kube import Kube
from trimwheel_cli.snapshot import is_finished

DIGEST_PREFIX = 8
"""Fewest hex digits of a digest that `--to` accepts."""
POLL_SECONDS = 0.3
Outcome = Literal["Acknowledged", "LeaseRanOut", "Refused"]


@dataclass(frozen=True)
class Ending:
    """How a Rollback ended; only Acknowledged is a success."""

    outcome: Outcome
    message: str
    actuation: Actuation | None = None


def aim(status: AdaptiveModelStatus, to: str | None, *, canary: bool = False) -> tuple[str, str]:
    """(digest, policy name) that a rollback goes to; `canary`: a candidate is under way.

    Raises SpecInvalid when `to` names none, or when there is nothing to go back from.
    """
    if to is None:
        return _back_from_now(status, canary)
    if to == "dense":
        return DENSE.digest, ""
    known = {one.digest: one.policy for one in status.history} | {DENSE.digest: ""}
    if status.intended:
        known |= {status.intended.digest: status.intended.policy}
    wanted = to.removeprefix("sha256:")
    found = [one for one in known if one.removeprefix("sha256:").startswith(wanted)]
    if len(wanted) < DIGEST_PREFIX or len(found) != 1:
        raise SpecInvalid(
            "--to",
            f"must be dense or the start ({DIGEST_PREFIX} hex digits at least) of one formerly "
            "stable digest",
            to,
            "trimwheel history lists them",
        )
    return found[0], known[found[0]]


def _back_from_now(status: AdaptiveModelStatus, canary: bool) -> tuple[str, str]:
    """Away from the candidate, else from what is meant to be served; dense when nothing is left.

    What harm revoked, or what somebody went back from, is nothing to go back to.
    """
    served = (status.stable.digest, status.stable.policy) if status.stable else (DENSE.digest, "")
    if canary:
        return served
    meant = status.intended.digest if status.intended else served[0]
    if served[0] == meant == DENSE.digest:
        raise SpecInvalid(
            "MODEL",
            "must have something to go back from: another policy than dense, or a rollout",
            "dense",
        )
    left = {served[0], meant, *status.rejected_digests}
    former = [one for one in status.history if one.digest not in left and not one.revoked_at]
    return (former[-1].digest, former[-1].policy) if former else (DENSE.digest, "")


def follow(kube: Kube, name: str, timeout: float) -> Ending:
    """Wait until a Rollback has ended, or is refused still when the time is over.

    Raises Unavailable when nobody carries it out.
    """
    deadline = time.monotonic() + timeout
    refused: Ending | None = None
    while True:
        try:
            rollback = kube.get(PolicyRollout, name)
            ending, refused = ending_of(rollback), refusal_of(rollback)
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            ending = None  # the request was accepted: an API server that is away comes back
        if ending is not None:
            return ending
        if time.monotonic() > deadline and refused is not None:
            return refused
        if time.monotonic() > deadline:
            raise Unavailable(
                f"policyrollout/{name} exists, but was not carried out within {timeout:g} s: is "
                "the operator running (trimwheel doctor)? With it down, break-glass stops a "
                "candidate: docs/how-to/authority.md"
            )
        time.sleep(POLL_SECONDS)


def ending_of(rollback: PolicyRollout) -> Ending | None:
    """The operator's last word on a Rollback; None while it is still at it."""
    status = rollback.status
    if not is_finished(rollback):
        return None
    if status.phase == phases.STALLED:
        return Ending("Refused", _why(rollback))
    reached = status.condition(names.ROLLED_BACK)
    silent = status.actuation is not None and bool(status.actuation.pending)
    message = reached.message if reached else ""
    return Ending("LeaseRanOut" if silent else "Acknowledged", message, status.actuation)


def refusal_of(rollback: PolicyRollout) -> Ending | None:
    """Why the operator does not carry it out for now, though it will ask again."""
    if not phases.is_retried(rollback.status):
        return None
    return Ending("Refused", f"{_why(rollback)}; the operator asks again at every look")


def _why(rollback: PolicyRollout) -> str:
    told = rollback.status.condition(names.STALLED)
    return f"{told.reason}: {told.message}" if told else "refused"
