"""Objects of 0.1.0, as its API server stored them: read, served on, and never deleted."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from trimwheel_api import names
from trimwheel_api.kinds import KINDS
from trimwheel_api.limits import beyond
from trimwheel_api.names import Reason
from trimwheel_api.policy import DENSE
from trimwheel_operator.plan import plan
from trimwheel_operator.plan.actions import DeleteJob, PatchStatus, Plan, WriteAssignment
from trimwheel_operator.plan.observed import AdmissionCheck, ObservedState
from trimwheel_operator.plan.outcomes import salt_of
from trimwheel_operator.plan.stable import DENSE_ASSIGNED
from trimwheel_operator.settings import Settings

STORED = Path(__file__).parent / "stored"
NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
MODELS = {kind.name: kind.model for kind in KINDS}


def stored(name: str) -> Any:
    body = json.loads((STORED / f"{name}.json").read_text())
    return MODELS[body["kind"]].model_validate(body)


def observed(model: str = "adaptivemodel", **change: Any) -> ObservedState:
    state = ObservedState(
        namespace="shop",
        name="router",
        settings=Settings(),
        model=stored(model),
        assignment=stored("policyassignment"),
        policies=(stored("adaptivepolicy"),),
        rollouts=(stored("policyrollout"),),
        approvals=(stored("policyapproval"),),
        runs=(stored("tuningrun"),),
        admission=AdmissionCheck(True, "", datetime(2026, 11, 1, tzinfo=UTC)),
    )
    return replace(state, **change)


def conditions(made: Plan, kind: str, name: str) -> dict[str, dict[str, Any]]:
    """The conditions that a plan writes of an object."""
    found = [one.patch.get("conditions", []) for one in made.actions
             if isinstance(one, PatchStatus) and (one.kind, one.name) == (kind, name)]  # fmt: skip
    return {one["type"]: one for one in (found[0] if found else [])}


def written(made: Plan) -> dict[str, Any]:
    """What a plan writes into the assignment."""
    return next((one.spec for one in made.actions if isinstance(one, WriteAssignment)), {})


def test_there_is_a_stored_object_of_each_kind_of_0_1_0() -> None:
    kinds = {json.loads(path.read_text())["kind"] for path in STORED.glob("*.json")}
    assert kinds == {
        "AdaptiveModel", "AdaptivePolicy", "TuningRun", "PolicyRollout", "PolicyApproval",
        "PolicyAssignment",
    }  # fmt: skip


@pytest.mark.parametrize("path", sorted(STORED.glob("*.json")), ids=lambda path: path.stem)
def test_a_stored_object_is_read_and_keeps_what_it_says(path: Path) -> None:
    body = json.loads(path.read_text())
    read = MODELS[body["kind"]].model_validate(body)
    kept = read.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert _missing(body["spec"], kept) == []


def _missing(before: Any, after: Any, where: str = "spec") -> list[str]:
    """Fields and values of `before` that `after` lacks; what `after` adds is a new default."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            entry
            for key, value in before.items()
            for entry in _missing(value, after.get(key), f"{where}.{key}")
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [entry for n, (b, a) in pairs for entry in _missing(b, a, f"{where}[{n}]")]
    return [] if before == after else [where]


@pytest.mark.parametrize("model", ["adaptivemodel", "adaptivemodel-beyond-limits"])
def test_what_was_promoted_goes_on_serving(model: str) -> None:
    made = plan(observed(model), NOW)
    assert made.failures == ()
    assert "stable" not in written(made)
    assert not [one for one in made.actions if isinstance(one, DeleteJob)]


def test_values_beyond_the_limits_are_named_in_a_condition() -> None:
    state = observed("adaptivemodel-beyond-limits")
    said = conditions(plan(state, NOW), "AdaptiveModel", "router")[names.OUTSIDE_LIMITS]
    assert (said["status"], said["reason"]) == ("True", Reason.LIMIT_EXCEEDED)
    broken = [one.sentence() for one in beyond(state.model.spec)]  # type: ignore[union-attr]
    assert len(broken) == 8
    for sentence in broken:
        assert sentence in said["message"]


def test_within_the_limits_no_condition_speaks_of_them() -> None:
    assert names.OUTSIDE_LIMITS not in conditions(plan(observed(), NOW), "AdaptiveModel", "router")


def harmful(run: str = "alarm") -> Any:
    body = json.loads((STORED / "tuningrun.json").read_text())
    body["metadata"] = {**body["metadata"], "name": run, "uid": run}
    drift = {"verdict": "Harmful", "signal": "disagreement", "value": "0.05", "bound": "0.02",
             "audits": 900, "time": "2026-11-28T11:59:00.000000Z"}  # fmt: skip
    body["spec"]["reason"] = "Harmful"
    body["status"] = {"drift": drift, "phase": "Collecting"}
    return MODELS["TuningRun"].model_validate(body)


@pytest.mark.parametrize("model", ["adaptivemodel", "adaptivemodel-beyond-limits"])
def test_harm_leads_to_full_depth_whatever_was_stored(model: str) -> None:
    """A hold of 9999999d raised OverflowError in every pass, and nobody answered the harm."""
    under_way = stored("policyrollout-beyond-limits")
    state = observed(model, runs=(harmful(),), rollouts=(under_way,))
    made = plan(state, NOW)
    assert made.failures == ()
    assert written(made)["stable"]["digest"] == DENSE.digest


def test_a_rollout_under_way_at_full_weight_is_cut_to_half_and_named() -> None:
    rollout = stored("policyrollout-beyond-limits")
    assignment = stored("policyassignment")
    serving = {
        "rollout": rollout.name,
        "salt": salt_of(rollout),
        "candidate": assignment.spec.stable,
        "stable": DENSE_ASSIGNED,
        "weight_basis_points": 10_000,
    }
    assignment = assignment.model_copy(update={"spec": assignment.spec.model_copy(update=serving)})
    state = observed("adaptivemodel-beyond-limits", rollouts=(rollout,), assignment=assignment)
    made = plan(state, datetime(2026, 11, 20, 11, 0, tzinfo=UTC))  # an hour into the step
    assert written(made)["weightBasisPoints"] == 5000
    said = conditions(made, "PolicyRollout", "all-at-once")[names.OUTSIDE_LIMITS]
    assert said["status"] == "True"
    assert "spec.steps[1].weight: must be at most 50%, but got '100%'" in said["message"]
    unapproved = plan(state, NOW)  # eight days later
    assert written(unapproved)["weightBasisPoints"] == 0


def test_an_impossible_run_ends_before_it_has_a_job() -> None:
    """`risk.epsilon: "0"` failed after two minutes of search."""
    state = observed(runs=(stored("tuningrun-beyond-limits"),))
    said = conditions(plan(state, NOW), "TuningRun", "impossible")[names.STALLED]
    assert (said["status"], said["reason"]) == ("True", Reason.INVALID_SPEC)
    assert "spec.budget.timeout: must be at most 366d, but got '999999d'" in said["message"]
