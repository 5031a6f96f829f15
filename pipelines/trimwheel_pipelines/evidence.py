"""What a TuningRun leaves behind for people: log lines, MLflow numbers, documents and figures.

Called by `tune`; pure but for the figures. One place decides how a trial or a look is worded, so
that the Job's log and MLflow tell the same story.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from matplotlib.figure import Figure

from trimwheel_api.times import to_text
from trimwheel_pipelines import plots
from trimwheel_pipelines.certificate import Certificate
from trimwheel_pipelines.registry import Trial
from trimwheel_pipelines.study import Study, TrialRecord
from trimwheel_pipelines.trials import Search
from trimwheel_pipelines.tuning_plan import LOOKS, Incumbent, Measured, Plan

PARETO_FILE = "pareto.png"
CALIBRATION_FILE = "calibration.png"


@dataclass(frozen=True)
class Evidence:
    """Everything that goes into the parent run."""

    trials: list[Trial]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    figures: Mapping[str, Figure]
    certificate: Mapping[str, Any]


def run_params(plan: Plan, records: int, opens: float, incumbent: Incumbent) -> dict[str, Any]:
    """Parameters of the parent run: what was fixed before anything was measured."""
    return {
        "reason": plan.reason,
        "seed": plan.seed,
        "trials": plan.trials,
        "knobs": ",".join([*plan.knobs.run, *plan.knobs.replay]),
        "epsilon": plan.epsilon,
        "delta": plan.delta,
        "finalists": plan.finalists,
        "search_records": records,
        "certify_records": plan.n,
        "looks": LOOKS,
        "window_opens": to_text(datetime.fromtimestamp(opens, UTC)),
        "model_uri": plan.model_uri,
        "model_digest": plan.model_digest,
        "incumbent": incumbent.served.digest,
    }


def search_lines(search: Search, knobs: list[str], plan: Plan) -> list[str]:
    """What is about to be searched, for the log."""
    return [
        f"Searching {', '.join(knobs) or 'nothing but the incumbent'} over {len(search.audits)} "
        f"audits, {plan.trials} trials at most, seed {plan.seed}.",
        f"Aiming at a risk of {search.aim:.2%}: what {plan.n} audits can just certify as at most "
        f"{plan.epsilon:.2%}.",
    ]


def trial_line(record: TrialRecord, trials: int) -> str:
    """One trial for the log."""
    knobs = " ".join(f"{name}={value:g}" for name, value in record.params.items())
    head = f"trial {record.number + 1:>3}/{trials}  {knobs or 'thresholds only'}"
    if record.result is None:
        return f"{head}  FAILED {record.failure}"
    if record.repeated:
        return f"{head}  as before"
    result = record.result
    return (
        f"{head}  cost {result.cost:.3f} at risk {result.risk:.2%}  "
        f"(own full depth differs {result.floor:.2%})  {result.seconds:.1f} s"
    )


def look_lines(certificate: Certificate) -> list[str]:
    """One look for the log: the verdict, then how far each finalist came."""
    lines = [f"look {certificate.look + 1}: {certificate.outcome}: {certificate.reason}"]
    for one in certificate.finalists:
        reached = "no point passed" if one.point is None else f"point {one.point} at {one.cost:.3f}"
        lines.append(
            f"  {one.name}: {reached}, {one.errors} disagreements, p {one.p_value:.2g}, "
            f"design effect {one.design_effect:.2f}, {one.tested} points tested"
        )
    return lines + [f"  note: {warning}" for warning in certificate.warnings]


def evidence_of(
    plan: Plan, study: Study, certificate: Certificate, incumbent: Measured, message: str
) -> Evidence:
    """All that MLflow keeps of a run."""
    best = study.results[0]
    metrics = {
        "trials": float(len(study.trials)),
        "model_runs": float(study.model_runs),
        "best_cost": best.cost,
        "best_risk": best.risk,
        "incumbent_cost": incumbent.cost,
        "incumbent_risk": incumbent.risk,
        "certify_n": float(certificate.n),
        "looks": float(certificate.look + 1),
        "missing": certificate.missing,
    }
    if certificate.certified:
        assert certificate.cost is not None and certificate.upper is not None
        metrics |= {
            "certified_cost": certificate.cost,
            "certified_risk": certificate.mean_loss,
            "certified_upper": certificate.upper,
        }
    title = f"{plan.namespace}/{plan.model}, {plan.run}"
    return Evidence(
        trials=[_trial(record) for record in study.trials],
        metrics=metrics,
        tags={"outcome": str(certificate.outcome), "message": message[:5000]},
        figures={
            PARETO_FILE: _pareto(plan, study, certificate, incumbent, title),
            CALIBRATION_FILE: plots.calibration(
                _reference(study).records, f"{title}: is the score honest?"
            ),
        },
        certificate=certificate.document(),
    )


def _pareto(
    plan: Plan, study: Study, certificate: Certificate, incumbent: Measured, title: str
) -> Figure:
    certified = None
    if certificate.certified:
        assert certificate.cost is not None
        certified = plots.Point(
            "certified on fresh audits",
            certificate.mean_loss,
            certificate.cost,
            certificate.upper,
        )
    now = plots.Point("served now", incumbent.risk, incumbent.cost)
    return plots.pareto(study.results, plan.epsilon, now, certified, f"{title}: risk and cost")


def _reference(study: Study) -> Any:
    """The dense signature's result when there is one: its scores are those that workers record."""
    plain = [result for result in study.results if not result.ran_model]
    return plain[0] if plain else study.results[0]


def _trial(record: TrialRecord) -> Trial:
    result = record.result
    if result is None:
        return Trial(record.number, record.params, {}, {"failure": record.failure[:5000]}, False)
    metrics = {
        "cost": result.cost,
        "risk": result.risk,
        "cost_at_epsilon": result.cost_at_limit,
        "full_depth_risk": result.floor,
        "seconds": 0.0 if record.repeated else result.seconds,
    }
    offsets = " ".join(f"{offset:g}" for offset in result.chain.offsets)
    tags = {"chain.offsets": offsets, "repeated": str(record.repeated).lower()}
    return Trial(record.number, record.params, metrics, tags, True)
