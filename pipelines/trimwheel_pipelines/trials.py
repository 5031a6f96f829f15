"""One trial: run the model once under a compute signature, then search thresholds by replay.

The unit of work that an executor places somewhere. It gets plain data and returns plain data, so
that it may run in this process, in a Ray worker or on another machine. The truth is the dense
model's answer as the worker recorded it; certifying data never comes here.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from trimwheel_api.errors import NotEnoughData
from trimwheel_pipelines.chain import Chain, search_chain, single_chain
from trimwheel_pipelines.knobs import exit_costs
from trimwheel_pipelines.records import AuditRecords
from trimwheel_pipelines.replay import ReplayRecords, ReplayTable
from trimwheel_workers.model.config import EncoderConfig, Signature

log = logging.getLogger(__name__)
Dtype = Literal["auto", "float32", "bfloat16"]
Floats = npt.NDArray[np.float64]

BATCH_SIZE = 32


@dataclass(frozen=True)
class ModelRef:
    """A model artifact by folder and digest: what a worker process loads, once."""

    folder: str
    digest: str
    dtype: Dtype = "float32"
    findings: tuple[tuple[Any, Any], ...] = ()
    """Which ways the Job measured to be the fastest: trials go by them, wherever they run."""


@dataclass(frozen=True)
class Audits:
    """N audits as arrays: the reference run's view, and inputs where they were kept. E exits."""

    scores: npt.NDArray[np.float32]  # [N, E]
    predictions: npt.NDArray[np.int64]  # [N, E + 1], last: the dense model's answer
    propensity: Floats  # [N]
    sessions: npt.NDArray[Any]  # [N]
    texts: tuple[str, ...] | None

    @classmethod
    def of(cls, records: AuditRecords) -> Audits:
        """The arrays that tuning needs of a stretch of records."""
        texts = records.texts
        return cls(
            scores=records.matrix("scores").astype(np.float32),
            predictions=records.matrix("predictions").astype(np.int64),
            propensity=records.column("propensity").astype(np.float64),
            sessions=records.column("session").astype(str),
            texts=None if texts is None else tuple(texts),
        )

    def __len__(self) -> int:
        return len(self.propensity)

    def take(self, rows: npt.NDArray[np.int64]) -> Audits:
        """These audits, in that order."""
        texts = None if self.texts is None else tuple(self.texts[row] for row in rows)
        return Audits(
            self.scores[rows],
            self.predictions[rows],
            self.propensity[rows],
            self.sessions[rows],
            texts,
        )

    def reference(self) -> ReplayRecords:
        """Replay records of the dense signature: what the worker recorded."""
        return replay_records(self, self.scores, self.predictions)


@dataclass(frozen=True)
class Search:
    """What all trials of a study share."""

    audits: Audits
    config: EncoderConfig
    model: ModelRef | None
    """None: no inputs were kept, so only the dense signature can be judged."""
    epsilon: float
    aim: float
    """Estimated risk that a first look can be expected to certify; below epsilon."""
    seed: int
    fixed: tuple[str, ...] | None = None
    """Thresholds that may not change; None searches them."""


@dataclass(frozen=True)
class TrialResult:
    """What one signature can do on the search data."""

    signature: Signature
    records: ReplayRecords
    chain: Chain
    costs: tuple[float, ...]  # [E + 1], of leaving at each exit
    front_risk: Floats  # [P], estimated, of each chain point
    front_cost: Floats  # [P]
    cost: float  # of the cheapest point with risk <= aim; dense cost when there is none
    cost_at_limit: float  # the same at epsilon
    risk: float  # of the point behind `cost`
    floor: float  # disagreement at this signature's own full depth
    ran_model: bool
    seconds: float


def run_trial(search: Search, signature: Signature) -> TrialResult:
    """Judge one signature; deterministic in `search` and `signature`.

    Raises NotEnoughData when the signature needs inputs and the records hold none.
    """
    started = time.monotonic()
    dense = signature == search.config.dense_signature
    records = (
        search.audits.reference() if dense else evaluated(search.model, search.audits, signature)
    )
    table = ReplayTable(records)
    costs = exit_costs(search.config, signature)
    chain = _chain(search, table, costs)
    front = table.score_thresholds(chain.thresholds(), costs)
    cost, risk = _cheapest(front.cost, front.risk, search.aim)
    return TrialResult(
        signature=signature,
        records=records,
        chain=chain,
        costs=costs,
        front_risk=front.risk,
        front_cost=front.cost,
        cost=cost,
        cost_at_limit=_cheapest(front.cost, front.risk, search.epsilon)[0],
        risk=risk,
        floor=float(records.weights @ ~records.final_agree / records.weights.sum()),
        ran_model=not dense,
        seconds=time.monotonic() - started,
    )


def evaluated(model: ModelRef | None, audits: Audits, signature: Signature) -> ReplayRecords:
    """Run the model over the audits' inputs under another signature: one row each, in order."""
    if model is None or audits.texts is None:
        raise NotEnoughData("records with inputs (audits.inputs: sampled)", 0, len(audits))
    from trimwheel_workers.offline import evaluate

    found = evaluate(_loaded(model), audits.texts, signature, BATCH_SIZE)
    if not found.finite.all():
        log.warning("%d outputs under %s are not finite.", (~found.finite).sum(), signature)
    # A row that is not made of numbers agrees with nothing and leaves at no exit.
    scores = np.where(found.finite[:, None], found.scores, 0.0)
    predictions = np.where(found.finite[:, None], found.predictions, -1)
    return replay_records(audits, scores, predictions)


def replay_records(
    audits: Audits, scores: npt.NDArray[Any], predictions: npt.NDArray[Any]
) -> ReplayRecords:
    """Scores [N, E] and predictions [N, E + 1] against the recorded dense answers."""
    truth = audits.predictions[:, -1:]
    agree = predictions == truth
    return ReplayRecords.build(
        np.clip(scores, 0.0, 1.0), agree[:, :-1], agree[:, -1], audits.propensity
    )


def insurance(result: TrialResult, epsilon: float) -> Chain:
    """The chain with one threshold for all exits, on the same records."""
    return single_chain(ReplayTable(result.records), result.costs, epsilon)


def _chain(search: Search, table: ReplayTable, costs: tuple[float, ...]) -> Chain:
    if search.fixed is None:
        return search_chain(table, costs, search.epsilon, search.seed)
    from trimwheel_pipelines.chain import decimal_threshold
    from trimwheel_pipelines.replay import NEVER

    never = (decimal_threshold(NEVER),) * table.exits
    return Chain("fixed", (0.0,) * table.exits, (never, search.fixed))


def _cheapest(cost: Floats, risk: Floats, limit: float) -> tuple[float, float]:
    """Cost and risk of the cheapest point within a risk; dense where none is: always legal."""
    within = risk <= limit
    if not within.any():
        return 1.0, 0.0
    best = int(np.flatnonzero(within)[np.argmin(cost[within])])
    return (float(cost[best]), float(risk[best])) if cost[best] < 1.0 else (1.0, 0.0)


@lru_cache(maxsize=1)
def _loaded(model: ModelRef) -> Any:
    """The model of this process: trials of one study share it."""
    from trimwheel_workers.model import measured
    from trimwheel_workers.model.artifact import load

    measured.adopt(model.findings)
    return load(model.folder, model.digest, model.dtype)
