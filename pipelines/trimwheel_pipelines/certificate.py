"""Certificates: "with probability at least 1 - delta this policy's mean loss against the dense
model is at most epsilon on this traffic".

Called by the tuning run after its search, and by `bench certificate`. Two steps, both pure:
`audit_window.select_audits` decides *which* audits may certify (before any loss is read), then
`certify` walks each finalist's chain on exactly those and releases the last point that passed, or
full depth. Between the two the caller evaluates finalists that need model runs on those audits.

Audits in clusters (`clustering`) are worth less than their number, and too few independent ones
certify nothing; lost audits are taken off epsilon. The loss is 0 or 1 (binomial test), or graded
(betting). Leaves out: expiry and revocation (the operator's), and where records come from.
Source: fixed-sequence testing as in Angelopoulos et al. (2021), "Learn then Test".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trimwheel_pipelines.audit_window import Outcome, Promise, Selection
from trimwheel_pipelines.chain import Chain
from trimwheel_pipelines.clustering import Clusters
from trimwheel_pipelines.loss_tests import BETTING, BINOMIAL, LossTest
from trimwheel_pipelines.replay import ReplayRecords, exits_taken, losses_at

ASKED_CLUSTERS: Final = 1.5
"""Times the least number of clusters that a refusal asks for: with just enough of them, one error
in the first point of the chain would end the walk."""


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

    @property
    def test(self) -> LossTest:
        """The test that fits the loss."""
        return BINOMIAL if self.certification.graded is None else BETTING


@dataclass(frozen=True)
class ClusterReport:
    """What clustering a certificate assumed before it read a loss, and whether it could carry it.

    `effective` is the number of independent observations that the audits are worth, `needed` the
    least that can certify epsilon, `asked` the audits to wait for where they are too few.
    """

    sessions: int
    session_keys: str
    session_effect: float
    copies_effect: float
    assumed_effect: float
    effective: float
    needed: int
    asked: int

    @property
    def too_few(self) -> bool:
        """Whether even audits without any loss could not certify."""
        return self.effective < self.needed


@dataclass(frozen=True)
class FinalistResult:
    """How far one finalist's walk came; `point` is None when not even its first point passed."""

    name: str
    tested: int
    point: int | None
    thresholds: tuple[str, ...]
    errors: int  # audits with a loss
    loss_sum: float
    p_value: float
    design_effect: float
    cost: float
    upper: float
    test: str


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
    test: str
    errors: int
    loss_sum: float
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
    clusters: ClusterReport | None = None  # None where the window was refused before

    @property
    def mean_loss(self) -> float:
        """Of the released point on the certifying audits."""
        return self.loss_sum / self.n if self.n else 0.0

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
    if not finalists:
        reason = "no finalist could be judged on these audits"
        return _certificate(Outcome.FULL_DEPTH, reason, (), None, selection, promise)
    clusters = [Clusters.of(each.certification.scores, selection.sessions) for each in finalists]
    reports = [
        _report(finalist, own, selection, promise)
        for finalist, own in zip(finalists, clusters, strict=True)
    ]
    widest = max(reports, key=lambda report: report.effective)
    if widest.too_few:
        # Of so few audits nothing certifies even if all were independent: that is no clustering.
        few = len(selection.rows) < widest.needed
        outcome = Outcome.FULL_DEPTH if few else Outcome.TOO_FEW_CLUSTERS
        reason = _too_few(widest, selection)
        return _certificate(outcome, reason, (), None, selection, promise, widest)
    results = tuple(
        _walk(finalist, own, selection, promise)
        for finalist, own, report in zip(finalists, clusters, reports, strict=True)
        if not report.too_few
    )
    dense = {finalist.name: finalist.dense_cost for finalist in finalists}
    # The dense model needs no certificate: only a point cheaper than full depth is a gain.
    passed = [
        (result.cost, index)
        for index, result in enumerate(results)
        if result.point is not None and result.cost < dense[result.name]
    ]
    if not passed:
        reason = "no point cheaper than the dense model passed"
        return _certificate(Outcome.FULL_DEPTH, reason, results, None, selection, promise, widest)
    best = results[min(passed)[1]]
    chosen = next(each for each in finalists if each.name == best.name)
    best = replace(best, upper=_upper(chosen, best, selection, promise.level))
    reason = f"{_counted(best)} in {promise.audits} audits, p = {best.p_value:.2g}"
    return _certificate(Outcome.CERTIFIED, reason, results, best, selection, promise, widest)


def _counted(result: FinalistResult) -> str:
    if result.test == BINOMIAL.name:
        return f"{result.errors} disagreements"
    return f"a loss of {result.loss_sum:.4g}"


def _report(
    finalist: Finalist, clusters: Clusters, selection: Selection, promise: Promise
) -> ClusterReport:
    needed = finalist.test.least_audits(promise.epsilon - selection.missing, promise.level)
    return ClusterReport(
        sessions=len(clusters.sizes),
        session_keys=str(selection.session_keys),
        session_effect=clusters.session_effect,
        copies_effect=clusters.copies,
        assumed_effect=clusters.assumed_effect,
        effective=clusters.effective,
        needed=needed,
        asked=int(np.ceil(ASKED_CLUSTERS * needed * clusters.assumed_effect)),
    )


def _too_few(report: ClusterReport, selection: Selection) -> str:
    wait = timedelta(seconds=round(selection.seconds_per_audit * report.asked))
    causes = {
        f"sessions (design effect {report.session_effect:.1f})": report.session_effect > 1.0,
        f"copies from different sessions (+{report.copies_effect:.1f})": report.copies_effect > 0,
    }
    why = " and ".join(cause for cause, holds in causes.items() if holds)
    return (
        f"{len(selection.rows)} audits cannot certify even a policy without errors: they are worth "
        f"{report.effective:.0f} independent ones{f' because of {why}' if why else ''}; at least "
        f"{report.needed} certify, "
        f"about {report.asked} audits like these are needed: {wait} at the present rate"
    )


def _walk(
    finalist: Finalist, clusters: Clusters, selection: Selection, promise: Promise
) -> FinalistResult:
    """Fixed-sequence test down one chain: every point at the full level, stop at the first miss."""
    bound, test = promise.epsilon - selection.missing, finalist.test
    price = np.asarray(finalist.costs)
    searched = Clusters.of(finalist.search.scores, finalist.search_sessions)
    last: FinalistResult | None = None
    for index, vector in enumerate(finalist.chain.thresholds()):
        taken = exits_taken(finalist.certification.scores, vector)
        losses = losses_at(finalist.certification, taken)
        before = losses_at(finalist.search, exits_taken(finalist.search.scores, vector))
        # The search may have seen clusters that this window has not; it is worth no more than N.
        effect = max(
            clusters.design_effect(losses),
            min(searched.design_effect(before), float(len(losses))),
        )
        chance = test.p_value(losses, effect, bound)
        passed = chance <= promise.level
        if not passed and last is not None:
            return replace(last, tested=index + 1)
        last = FinalistResult(
            name=finalist.name,
            tested=index + 1,
            point=index if passed else None,
            thresholds=finalist.chain.points[index] if passed else (),
            errors=int(np.count_nonzero(losses)),
            loss_sum=float(losses.sum()),
            p_value=chance,
            design_effect=effect,
            cost=float(price[taken].mean()) if passed else float(price[-1]),
            upper=1.0,
            test=test.name,
        )
        if not passed:
            return last
    if last is None:
        raise ValueError(f"finalist {finalist.name!r}: its chain has no points")
    return last


def _upper(finalist: Finalist, result: FinalistResult, selection: Selection, level: float) -> float:
    """Upper limit of the released point's mean loss; lost audits count as wrong."""
    vector = finalist.chain.thresholds()[result.point or 0]
    taken = exits_taken(finalist.certification.scores, vector)
    losses = losses_at(finalist.certification, taken)
    limit = finalist.test.upper_limit(losses, result.design_effect, level)
    return min(1.0, limit + selection.missing)


def _certificate(
    outcome: Outcome,
    reason: str,
    results: tuple[FinalistResult, ...],
    best: FinalistResult | None,
    selection: Selection,
    promise: Promise,
    clusters: ClusterReport | None = None,
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
        test=best.test if best else BINOMIAL.name,
        errors=best.errors if best else 0,
        loss_sum=best.loss_sum if best else 0.0,
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
        clusters=clusters,
    )
