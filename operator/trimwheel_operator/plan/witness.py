"""Notes which certificates and requests were written while admission was in force.

Called by `plan` before anything is judged. An object counts when it is younger than the moment
since which every admission policy is as it is and refuses (`SelfTest`), or older than the notes
themselves (`Upgrade`, accepted once, with an Event). What is neither was written in a gap. Pure.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from trimwheel_api.kinds import AdaptiveModel, AdaptivePolicy, PolicyRollout
from trimwheel_api.kinds.policy_journal import (
    MAX_CERTIFICATES,
    MAX_REQUESTS,
    PolicyJournalSpec,
    SeenCertificate,
    SeenPromise,
    SeenRequest,
    Witness,
)
from trimwheel_api.loosening import guarded_values
from trimwheel_api.names import Reason
from trimwheel_api.times import parse, to_micro
from trimwheel_operator.plan.draft import Draft
from trimwheel_operator.plan.observed import ObservedState
from trimwheel_operator.plan.remembered import certificate_digest, loosened_fields, unnoted

SETTLING = timedelta(seconds=5)
"""A new or changed admission policy bites only after a second or so."""


def take_notes(draft: Draft) -> None:
    """Bring the journal's notes up to date with the objects that are there."""
    _forget_what_ended(draft)
    state = draft.state
    if state.notes_since is None:
        return
    _note_promise(draft)
    accepted: list[str] = []
    for item in unnoted(draft.journal, state.policies, state.rollouts):
        witness = witness_of(state, item)
        if witness is None or not _note(draft, item, witness):
            continue
        if witness == "Upgrade":
            accepted.append(f"{item.kind} {item.name}")
    if accepted and state.model is not None:
        message = (
            f"accepted once, as older than the notes on admission: {', '.join(accepted[:10])}"
            + (f" and {len(accepted) - 10} more" if len(accepted) > 10 else "")
        )
        draft.tell(
            state.model.kind, state.model.metadata, Reason.ACCEPTED_BY_UPGRADE, message,
            key="accepted-by-upgrade",
        )  # fmt: skip


def witness_of(state: ObservedState, item: AdaptivePolicy | PolicyRollout) -> Witness | None:
    """Why an object counts; None for one that was written in a gap, or cannot be told yet."""
    created = parse(item.metadata.creation_timestamp)
    if created is None or state.notes_since is None:
        return None
    if created <= state.notes_since + SETTLING:
        return "Upgrade"
    admission = state.admission
    if not admission.armed or admission.armed_since is None:
        return None
    return "SelfTest" if created >= admission.armed_since + SETTLING else None


def _note_promise(draft: Draft) -> None:
    """Keep the guarded fields as they are, unless they were loosened in a gap.

    What is no looser than before needs no verb and no witness; what is, has to have been written
    since the last note, all the while under one admission.
    """
    model, known = draft.state.model, draft.journal.promise
    if model is None:
        return
    values = guarded_values(model.spec)
    since = draft.state.admission.armed_since if draft.state.admission.armed else None
    settled = since is not None and draft.now >= since + SETTLING
    renewed = known and since and settled and _before(known.time, since)
    if known is not None and known.values == values and not renewed:
        return
    witness: Witness = "SelfTest"
    if loosened_fields(draft.journal, model):
        created = parse(model.metadata.creation_timestamp)
        notes = draft.state.notes_since
        if known is None and created and notes and created <= notes + SETTLING:
            witness = "Upgrade"
        elif since is None or not promise_may_count(draft.journal, model, since):
            return
    seen = SeenPromise(values=values, time=to_micro(draft.now), witness=witness)
    draft.journal = draft.journal.model_copy(update={"promise": seen})


def promise_may_count(
    spec: PolicyJournalSpec, model: AdaptiveModel, held_since: datetime | None
) -> bool:
    """Whether a self-test can vouch for what was loosened: one admission since the last note."""
    if held_since is None:
        return True
    since = spec.promise.time if spec.promise else model.metadata.creation_timestamp
    return not _before(since, held_since)


def _before(moment: str, held_since: datetime) -> bool:
    found = parse(moment)
    return found is None or found < held_since + SETTLING


def may_count(item: AdaptivePolicy | PolicyRollout, held_since: datetime | None) -> bool:
    """Whether a self-test could still vouch for it: what is older than it never will."""
    created = parse(item.metadata.creation_timestamp)
    return created is not None and (held_since is None or created >= held_since + SETTLING)


def _note(draft: Draft, item: AdaptivePolicy | PolicyRollout, witness: Witness) -> bool:
    spec, moment = draft.journal, to_micro(draft.now)
    if isinstance(item, AdaptivePolicy):
        if len(spec.certificates) >= MAX_CERTIFICATES:
            return False
        seen = SeenCertificate(
            policy=item.name, uid=item.metadata.uid, digest=certificate_digest(item), time=moment,
            witness=witness,
        )  # fmt: skip
        draft.journal = spec.model_copy(update={"certificates": [*spec.certificates, seen]})
        return True
    if len(spec.requests) >= MAX_REQUESTS:
        return False
    request = SeenRequest(
        rollout=item.name, uid=item.metadata.uid, policy_digest=item.spec.policy_digest,
        waiver=item.spec.allow_uncertified, time=moment, witness=witness,
    )  # fmt: skip
    draft.journal = spec.model_copy(update={"requests": [*spec.requests, request]})
    return True


def _forget_what_ended(draft: Draft) -> None:
    """Notes of what has ended are not needed, and of what is gone prove nothing any more.

    The latter stay while there is room: an object that was merely not seen would be distrusted.
    """
    spec, state = draft.journal, draft.state
    served = {one.digest for one in (draft.model.intended, draft.model.stable) if one}
    ended = {one.metadata.uid for one in state.rollouts if one.status.finished_at}
    requests = [
        one
        for one in spec.requests
        if one.uid not in ended or (one.waiver and one.policy_digest in served)
    ]
    certificates = spec.certificates
    if len(certificates) > MAX_CERTIFICATES // 2:
        there = {one.metadata.uid for one in state.policies}
        certificates = [one for one in certificates if one.uid in there]
    if len(requests) > MAX_REQUESTS // 2:
        there = {one.metadata.uid for one in state.rollouts}
        requests = [one for one in requests if one.uid in there or one.policy_digest in served]
    if (len(certificates), len(requests)) != (len(spec.certificates), len(spec.requests)):
        draft.journal = spec.model_copy(update={"certificates": certificates, "requests": requests})
