"""Takes the finalists of a search to fresh audits, and measures what they are to replace.

At most three looks, at n, 2n and 4n audits that the search never saw; a finalist whose signature
needs it runs the model over a look's inputs once. Called by `tune`; the statistics are
`audit_window` and `certificate`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from trimwheel_api.errors import NotEnoughData
from trimwheel_api.policy import DENSE, Policy
from trimwheel_pipelines.audit_window import LOOK_SHARES, Outcome, Promise
from trimwheel_pipelines.certificate import Certificate, Finalist, certify
from trimwheel_pipelines.collecting import Collector, SearchData
from trimwheel_pipelines.evidence import look_lines
from trimwheel_pipelines.knobs import exit_costs, policy_of, policy_signature
from trimwheel_pipelines.replay import ReplayRecords, replay_reference
from trimwheel_pipelines.study import Proposal
from trimwheel_pipelines.trials import Audits, ModelRef, evaluated
from trimwheel_pipelines.tuning_plan import DENSE_COST, Measured, Plan
from trimwheel_workers.model.artifact import LoadedModel
from trimwheel_workers.model.config import Signature

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """The model of a run: in this process, and by reference for workers."""

    loaded: LoadedModel
    reference: ModelRef

    @property
    def dense(self) -> Signature:
        """The signature of the full model."""
        return self.loaded.config.dense_signature

    def under(self, window: Audits, signature: Signature) -> ReplayRecords:
        """Audits under a signature: as recorded for the dense one, else by running the model.

        Raises NotEnoughData when it has to run and the audits kept no inputs.
        """
        if signature == self.dense:
            return window.reference()
        return evaluated(self.reference, window, signature)


@dataclass(frozen=True)
class Winner:
    """A certified policy with the audits that certified it."""

    policy: Policy
    certificate: Certificate
    window: Audits


def certify_proposals(
    collector: Collector, data: SearchData, proposals: list[Proposal], model: Model, plan: Plan
) -> tuple[Winner | None, Certificate]:
    """The first look that certifies ends it; the certificate is that of the last look taken.

    Raises NotEnoughData when not even the first look's audits came in time.
    """
    log.info("Finalists: %s.", "; ".join(one.name for one in proposals))
    sessions = Audits.of(data.records).sessions
    certificate: Certificate | None = None
    for look in range(len(LOOK_SHARES)):
        promise = Promise(plan.epsilon, plan.delta, plan.n, plan.finalists, look)
        try:
            records, selection = collector.fresh(data.opens, promise)
        except NotEnoughData:
            if certificate is None:
                raise
            log.warning("Look %d did not get its audits in time.", look + 1)
            break
        window = Audits.of(records).take(selection.rows)
        void = selection.refusal is not None
        finalists = [] if void else [_finalist(one, window, sessions, model) for one in proposals]
        certificate = certify([one for one in finalists if one], selection, promise)
        for line in look_lines(certificate):
            log.info("%s", line)
        if certificate.certified:
            chosen = next(one for one in proposals if one.name == certificate.finalist)
            signature, config = chosen.result.signature, model.loaded.config
            policy = policy_of(signature, certificate.thresholds, config)
            return Winner(policy, certificate, window), certificate
        if certificate.outcome is Outcome.VOID:
            break
    assert certificate is not None, "the first look raises or leaves a certificate"
    return None, certificate


def measure(served: Policy, winner: Winner | None, model: Model) -> Measured:
    """What the served policy costs and risks on the same audits as the winner."""
    if winner is None or served == DENSE:
        return Measured(DENSE_COST, 0.0)
    config = model.loaded.config
    signature = policy_signature(served, config)
    try:
        records = model.under(winner.window, signature)
    except NotEnoughData:
        log.warning("Without inputs the stable policy cannot be measured; full depth stands in.")
        return Measured(DENSE_COST, 0.0)
    thresholds = served.thresholds(records.exits)
    cost, risk = replay_reference(records, [thresholds], exit_costs(config, signature))
    return Measured(float(cost[0]), float(risk[0]))


def _finalist(one: Proposal, window: Audits, sessions: object, model: Model) -> Finalist | None:
    """A proposal on the fresh audits; None when it needs inputs and some kept none."""
    try:
        certification = model.under(window, one.result.signature)
    except NotEnoughData as error:
        log.warning("Finalist %s is left out: %s.", one.name, error)
        return None
    return Finalist(
        name=one.name,
        chain=one.chain,
        costs=one.result.costs,
        dense_cost=DENSE_COST,
        search=one.result.records,
        search_sessions=sessions,  # type: ignore[arg-type]
        certification=certification,
    )
