"""Certificates: "with probability at least 1 - delta this policy differs from the dense model on at
most epsilon of this traffic".

Called by the tuning run after its search, and by `bench certificate`. Two steps, both pure:
`audit_window.select_audits` decides *which* audits may certify (before any loss is read), then
`certify` walks each finalist's chain on exactly those and releases the last point that passed, or
full depth. Between the two the caller evaluates finalists that need model runs on those audits.

Clustered sessions shrink the counts by their design effect, and lost audits are taken off epsilon.
Leaves out: expiry and revocation (the operator's), and where records come from.
Sources: fixed-sequence testing as in Angelopoulos et al. (2021), "Learn then Test"; the design
effect is Kish's, by linearisation of the ratio mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import betaincc, betainccinv

from trimwheel_pipelines.audit_window import Outcome, Promise, Selection
from trimwheel_pipelines.chain import Chain
from trimwheel_pipelines.replay import ReplayRecords, exits_taken, wrong_at


@dataclass(frozen=True)
class Finalist:
    """One chain with its records: what was searched on, and the selected audits in their order."""

    name: str
    chain: Chain
    costs: tuple[float, ...]  # [E + 1], what leaving at each exit costs
    dense_cost: float  # what the dense model costs, in the same unit
    search: ReplayRecords
    search_sessions: npt.NDArray[Any]
    certification: ReplayRecords  # row i belongs to Selection.rows[i]


@dataclass(frozen=True)
class FinalistResult:
    """How far one finalist's walk came; `point` is None when not even its first point passed."""

    name: str
    tested: int
    point: int | None
    thresholds: tuple[str, ...]
    errors: int
    p_value: float
    design_effect: float
    cost: float
    upper: float


@dataclass(frozen=True)
class Certificate:
    """The decision with every number that led to it."""

    outcome: Outcome
    reason: str
    epsilon: float
    delta: float
    level: float
    look: int
    n: int
    missing: float
    finalist: str | None
    thresholds: tuple[str, ...]
    errors: int
    p_value: float | None
    design_effect: float | None
    upper: float | None  # upper confidence limit of the disagreement, at `level`
    cost: float | None
    sessions: int
    first_audit_share: float
    lowest_rate: float
    opened: datetime
    closed: datetime
    short: bool
    warnings: tuple[str, ...]
    finalists: tuple[FinalistResult, ...]

    @property
    def certified(self) -> bool:
        """Whether a policy cheaper than the dense one was released."""
        return self.outcome is Outcome.CERTIFIED

    def document(self) -> dict[str, Any]:
        """The certificate as plain JSON values (times in RFC 3339)."""
        plain = asdict(self)
        plain["outcome"] = str(self.outcome)
        for name in ("opened", "closed"):
            plain[name] = plain[name].isoformat()
        return plain


def certify(finalists: Sequence[Finalist], selection: Selection, promise: Promise) -> Certificate:
    """Walk each finalist's chain on the selected audits; release the cheapest last-passed point.

    Choosing among finalists afterwards is free, since each was tested at delta / finalists.
    Raises ValueError when there are more finalists than `promise.finalists`, or a finalist's
    records are not the selected audits.
    """
    if selection.refusal is not None:
        return _certificate(selection.refusal, selection.reason, (), None, selection, promise)
    if len(finalists) > promise.finalists:
        raise ValueError(
            f"finalists: delta was split over {promise.finalists}, got {len(finalists)}"
        )
    for finalist in finalists:
        if len(finalist.certification) != len(selection.rows):
            raise ValueError(
                f"finalist {finalist.name!r}: has {len(finalist.certification)} certification "
                f"records for {len(selection.rows)} selected audits"
            )
    results = tuple(_walk(finalist, selection, promise) for finalist in finalists)
    # The dense model needs no certificate: only a point cheaper than full depth is a gain.
    passed = [
        (result.cost, index)
        for index, result in enumerate(results)
        if result.point is not None and result.cost < finalists[index].dense_cost
    ]
    if not passed:
        reason = "no point cheaper than the dense model passed"
        if promise_needs_more(promise, selection):
            reason += f"; {promise.audits} audits cannot certify even a policy without errors"
        return _certificate(Outcome.FULL_DEPTH, reason, results, None, selection, promise)
    best = results[min(passed)[1]]
    reason = f"{best.errors} disagreements in {promise.audits} audits, p = {best.p_value:.2g}"
    return _certificate(Outcome.CERTIFIED, reason, results, best, selection, promise)


def promise_needs_more(promise: Promise, selection: Selection) -> bool:
    """Whether this look has too few audits even for a policy that never disagrees."""
    return p_value(0, promise.audits, 1.0, promise.epsilon - selection.missing) > promise.level


def _walk(finalist: Finalist, selection: Selection, promise: Promise) -> FinalistResult:
    """Fixed-sequence test down one chain: every point at the full level, stop at the first miss."""
    bound = promise.epsilon - selection.missing
    price = np.asarray(finalist.costs)
    thresholds = finalist.chain.thresholds()
    last: FinalistResult | None = None
    for index, vector in enumerate(thresholds):
        taken = exits_taken(finalist.certification.scores, vector)
        wrong = wrong_at(finalist.certification, taken)
        searched = wrong_at(finalist.search, exits_taken(finalist.search.scores, vector))
        effect = max(
            design_effect(wrong, selection.sessions),
            design_effect(searched, finalist.search_sessions),
        )
        errors = int(wrong.sum())
        chance = p_value(errors, len(wrong), effect, bound)
        if chance > promise.level:
            if last is None:
                return FinalistResult(
                    finalist.name, 1, None, (), errors, chance, effect, float(price[-1]), 1.0
                )
            return replace(last, tested=index + 1)
        last = FinalistResult(
            name=finalist.name,
            tested=index + 1,
            point=index,
            thresholds=finalist.chain.points[index],
            errors=errors,
            p_value=chance,
            design_effect=effect,
            cost=float(price[taken].mean()),
            upper=min(
                1.0, upper_limit(errors, len(wrong), effect, promise.level) + selection.missing
            ),
        )
    if last is None:
        raise ValueError(f"finalist {finalist.name!r}: its chain has no points")
    return last


def design_effect(wrong: npt.ArrayLike, sessions: npt.ArrayLike) -> float:
    """How many times more a disagreement rate varies than if audits were independent; at least 1.

    `wrong` [N] and the session of each, [N]. One session alone is one observation: N.
    """
    events = np.asarray(wrong, dtype=np.float64)
    total = len(events)
    rate = events.mean() if total else 0.0
    if rate in (0.0, 1.0):
        return 1.0
    _, member = np.unique(np.asarray(sessions), return_inverse=True)
    audits = np.bincount(member)
    if len(audits) < 2:
        return float(total)
    residual = np.bincount(member, weights=events) - rate * audits
    spread = len(audits) / (len(audits) - 1) * float(residual @ residual)
    return max(1.0, spread / (total * rate * (1.0 - rate)))


def p_value(errors: int, audits: int, effect: float, bound: float) -> float:
    """Chance of so few errors at a rate of `bound`, with counts shrunk by the design effect.

    For effect 1 this is the exact binomial tail P(Bin(audits, bound) <= errors).
    """
    if errors >= audits or bound <= 0.0:
        return 1.0
    return float(betaincc(errors / effect + 1.0, (audits - errors) / effect, bound))


def upper_limit(errors: int, audits: int, effect: float, level: float) -> float:
    """One-sided upper confidence limit of the rate: the bound at which `p_value` equals `level`."""
    if errors >= audits:
        return 1.0
    return float(betainccinv(errors / effect + 1.0, (audits - errors) / effect, level))


def _certificate(
    outcome: Outcome,
    reason: str,
    results: tuple[FinalistResult, ...],
    best: FinalistResult | None,
    selection: Selection,
    promise: Promise,
) -> Certificate:
    return Certificate(
        outcome=outcome,
        reason=reason,
        epsilon=promise.epsilon,
        delta=promise.delta,
        level=promise.level,
        look=promise.look,
        n=len(selection.rows),
        missing=selection.missing,
        finalist=best.name if best else None,
        thresholds=best.thresholds if best else (),
        errors=best.errors if best else 0,
        p_value=best.p_value if best else None,
        design_effect=best.design_effect if best else None,
        upper=best.upper if best else None,
        cost=best.cost if best else None,
        sessions=len(np.unique(selection.sessions)),
        first_audit_share=selection.first_audit_share,
        lowest_rate=selection.lowest_rate,
        opened=selection.opened,
        closed=selection.closed,
        short=selection.short,
        warnings=selection.warnings,
        finalists=results,
    )
