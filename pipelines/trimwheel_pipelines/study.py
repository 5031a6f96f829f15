"""The search: Optuna proposes what needs model runs, each trial replays the rest.

One process owns the study and only it talks to Optuna (ask/tell); trials are plain data. The
incumbent is always the first trial, the dense signature the second, so that neither can be lost to
chance. Proposals come in batches of a fixed size, so a seed gives the same study on every executor.

Each trial yields a whole (risk, cost) front; Optuna sees it at two risks, the one that a first look
can be expected to certify and epsilon, which the last look can approach. Signatures whose own full
depth already disagrees on more than epsilon are marked infeasible.

Called by `tune`. Leaves out certification: no certifying audit comes here.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.trial import Trial, TrialState

from trimwheel_api.errors import TrimwheelError
from trimwheel_api.policy import DENSE, Policy
from trimwheel_pipelines.chain import Chain
from trimwheel_pipelines.executors import Executor, Failure
from trimwheel_pipelines.knobs import Params, params_of, signature_of, space_size
from trimwheel_pipelines.loss_tests import p_value
from trimwheel_pipelines.trials import Search, TrialResult, insurance
from trimwheel_workers.model.config import Signature

log = logging.getLogger(__name__)
optuna.logging.set_verbosity(optuna.logging.WARNING)

BATCH = 4
"""Proposals asked for together. Fixed rather than the executor's width: see above."""
CONSTRAINT = "full depth within epsilon"


@dataclass(frozen=True)
class TrialRecord:
    """One trial as it is told, logged and plotted; `result` is None when it failed."""

    number: int
    params: Params
    result: TrialResult | None
    failure: str = ""
    repeated: bool = False
    """The signature was judged before in this study; nothing ran."""


@dataclass
class Study:
    """All trials of one search."""

    trials: list[TrialRecord] = field(default_factory=list)

    @property
    def results(self) -> list[TrialResult]:
        """Distinct signatures, cheapest certifiable first; ties go to the lower risk."""
        distinct = [t.result for t in self.trials if t.result is not None and not t.repeated]
        return sorted(distinct, key=lambda result: (result.cost, result.cost_at_limit))

    @property
    def model_runs(self) -> int:
        """Trials that ran the model."""
        return sum(result.ran_model for result in self.results)


@dataclass(frozen=True)
class Proposal:
    """What goes on to certification: one chain under one signature."""

    name: str
    result: TrialResult
    chain: Chain


Told = Callable[[TrialRecord], None]


def run_study(
    search: Search,
    space: dict[str, BaseDistribution],
    incumbent: Policy,
    trials: int,
    executor: Executor,
    told: Told | None = None,
    until: float = math.inf,
) -> Study:
    """Search `space` for at most `trials` trials, or until every point of it was judged.

    `told` hears of each trial in order, as soon as it has ended. Raises TrimwheelError when no
    trial succeeded, and Unavailable when the executor has no answer by `until` (Unix seconds).
    """
    sampler = TPESampler(seed=search.seed)
    optuna_study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    for policy in (incumbent, DENSE):
        point = params_of(policy, space, search.config)
        optuna_study.enqueue_trial(point, skip_if_exists=True)
    study, known = Study(), dict[Signature, TrialResult]()
    points = space_size(space)
    while len(study.trials) < trials and len(known) < points:
        wanted = min(BATCH, trials - len(study.trials), points - len(known))
        asked = [optuna_study.ask(space) for _ in range(wanted)]
        for record, trial in zip(_judge(search, asked, known, executor, until), asked, strict=True):
            _tell(optuna_study, trial, record, search)
            study.trials.append(record)
            if told:
                told(record)
    if not study.results:
        reasons = {trial.failure for trial in study.trials}
        raise TrimwheelError(f"all {len(study.trials)} trials failed: {'; '.join(sorted(reasons))}")
    return study


def _judge(
    search: Search,
    asked: Sequence[Trial],
    known: dict[Signature, TrialResult],
    executor: Executor,
    until: float,
) -> Iterator[TrialRecord]:
    """Run the new signatures of a batch; fill `known`; one record for each trial asked, as it
    ends."""
    signatures = [signature_of(trial.params, search.config) for trial in asked]
    fresh = [one for one in dict.fromkeys(signatures) if one not in known]
    failures: dict[Signature, str] = {}
    outcomes = iter(executor.run(search, fresh, until))
    for trial, signature in zip(asked, signatures, strict=True):
        unseen = signature not in known and signature not in failures
        if unseen:  # outcomes come in the order in which signatures are first asked for
            outcome = next(outcomes)
            if isinstance(outcome, Failure):
                failures[signature] = outcome.reason
            else:
                known[signature] = outcome
        result = known.get(signature)
        yield TrialRecord(
            number=trial.number,
            params=dict(trial.params),
            result=result,
            failure=failures.get(signature, ""),
            repeated=result is not None and not unseen,
        )


def _tell(study: optuna.Study, trial: Trial, record: TrialRecord, search: Search) -> None:
    if record.result is None:
        study.tell(trial, state=TrialState.FAIL)
        return
    trial.set_constraint(CONSTRAINT, record.result.floor - search.epsilon)
    study.tell(trial, (record.result.cost, record.result.cost_at_limit))


def finalists_of(study: Study, epsilon: float, wanted: int, dense: Signature) -> list[Proposal]:
    """At most `wanted` chains for certification: the best, an insurance, then the next best.

    The insurance is what needs the least luck: the searched chain of the dense signature, whose
    full depth never disagrees, or, where that is the best already, one threshold for all exits.
    """
    best, *others = study.results
    chosen = [_proposal(best)]
    plain = next((result for result in others if result.signature == dense), None)
    if plain is not None:
        chosen.append(_proposal(plain))
        others.remove(plain)
    elif best.chain.name == "searched":
        chain = insurance(best, epsilon)
        chosen.append(Proposal(_name(best.signature, chain), best, chain))
    chosen += [_proposal(result) for result in others if result.floor <= epsilon]
    return chosen[:wanted]


def certifiable_risk(n: int, level: float, epsilon: float) -> float:
    """The highest observed risk at which `n` independent audits certify `epsilon` at `level`.

    0 when even no disagreement at all would not be enough.
    """
    errors = 0
    while p_value(errors + 1, n, 1.0, epsilon) <= level:
        errors += 1
    return errors / n


def _proposal(result: TrialResult) -> Proposal:
    return Proposal(_name(result.signature, result.chain), result, result.chain)


def _name(signature: Signature, chain: Chain) -> str:
    return f"topK={signature.top_k} blend={signature.router_blend:g} {chain.name}"
