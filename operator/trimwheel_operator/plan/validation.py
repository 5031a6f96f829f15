"""Rules of an AdaptiveModel that a schema cannot state: numbers in range, and how they relate.

Called by the models story before a spec is turned into objects. Each rule names the field, the
value and the remedy; the last good objects keep serving. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from trimwheel_api.errors import SpecInvalid
from trimwheel_api.kinds import AdaptiveModel
from trimwheel_api.kinds.adaptive_model import AdaptiveModelSpec
from trimwheel_api.values import (
    LARGEST_DRIFT_RATIO,
    MAX_MODEL_NAME,
    MODEL_NAME_PATTERN,
    basis_points,
    seconds,
)

SHORTEST_BLOCK: Final = 1


def first_mistake(model: AdaptiveModel) -> SpecInvalid | None:
    """The first rule that the model breaks, or None."""
    return next(mistakes(model), None)


def mistakes(model: AdaptiveModel) -> Iterator[SpecInvalid]:
    """Every rule that the model breaks, in the order of the spec."""
    yield from _name(model.name)
    for rule in _RULES:
        yield from rule(model.spec)


def _name(name: str) -> Iterator[SpecInvalid]:
    if not re.match(MODEL_NAME_PATTERN, name):
        yield SpecInvalid(
            "metadata.name",
            f"must be at most {MAX_MODEL_NAME} of a-z, 0-9 and '-', starting with a letter: the "
            "Service takes this name",
            name,
            "Create the model under another name",
        )


def _engine(spec: AdaptiveModelSpec) -> Iterator[SpecInvalid]:
    if seconds(spec.engine.deadline) <= seconds(spec.engine.max_wait):
        yield SpecInvalid(
            "spec.engine.deadline",
            f"must be longer than spec.engine.maxWait ({spec.engine.max_wait})",
            spec.engine.deadline,
            "Raise it, or lower maxWait",
        )


def _objectives(spec: AdaptiveModelSpec) -> Iterator[SpecInvalid]:
    promise = spec.objectives
    inside = {
        "maxDisagreement": promise.max_disagreement,
        "confidence": promise.confidence,
        "errorBudget": promise.error_budget,
        "latency.budget": promise.latency.budget,
        "capacityTarget": promise.capacity_target,
    }
    yield from _between_zero_and_one("spec.objectives", inside)
    if float(promise.max_disagreement) * LARGEST_DRIFT_RATIO >= 1:
        yield SpecInvalid(
            "spec.objectives.maxDisagreement",
            f"must be below {1 / LARGEST_DRIFT_RATIO:g}: drift is watched up to "
            f"{LARGEST_DRIFT_RATIO} times as far",
            promise.max_disagreement,
            "Promise less disagreement, such as 0.02",
        )
    if seconds(promise.latency.slo) <= 0:
        yield SpecInvalid(
            "spec.objectives.latency.slo",
            "must be above 0",
            promise.latency.slo,
            "Give the slowest answer that is still in time, such as 250ms",
        )


def _drift(spec: AdaptiveModelSpec) -> Iterator[SpecInvalid]:
    if seconds(spec.drift.block) < SHORTEST_BLOCK:
        yield SpecInvalid(
            "spec.drift.block",
            f"must be at least {SHORTEST_BLOCK} s: shorter ones hold too little traffic to compare",
            spec.drift.block,
            "Minutes suit production, seconds a demonstration",
        )


def _audits(spec: AdaptiveModelSpec) -> Iterator[SpecInvalid]:
    if float(spec.audits.alarm_rate) < float(spec.audits.rate):
        yield SpecInvalid(
            "spec.audits.alarmRate",
            f"must be at least spec.audits.rate ({spec.audits.rate})",
            spec.audits.alarm_rate,
            "Raise it, or lower the rate",
        )


def _levels(spec: AdaptiveModelSpec) -> Iterator[SpecInvalid]:
    rollout = spec.rollout
    inside = {
        "alpha": rollout.alpha,
        "beta": rollout.beta,
        "parityBudget": rollout.parity_budget,
    }
    yield from _between_zero_and_one("spec.rollout", inside)
    margin = float(rollout.pass_margin)
    if margin < 1 or margin * float(spec.objectives.max_disagreement) >= 1:
        yield SpecInvalid(
            "spec.rollout.passMargin",
            "must be at least 1, and its product with spec.objectives.maxDisagreement below 1",
            rollout.pass_margin,
            "1.5 suits most models",
        )


def _steps(spec: AdaptiveModelSpec) -> Iterator[SpecInvalid]:
    before = -1
    for index, step in enumerate(spec.rollout.steps):
        where = f"spec.rollout.steps[{index}]"
        weight = basis_points(step.weight)
        if weight < before:
            yield SpecInvalid(
                f"{where}.weight",
                "must not be below the step before: a ramp only grows",
                step.weight,
                "Put the steps in the order of their weights",
            )
        before = max(before, weight)
        if seconds(step.max_duration) <= seconds(step.hold):
            yield SpecInvalid(
                f"{where}.maxDuration",
                f"must be longer than hold ({step.hold})",
                step.max_duration,
                "Raise it, or shorten hold",
            )


def _between_zero_and_one(where: str, fields: dict[str, str]) -> Iterator[SpecInvalid]:
    for field, value in fields.items():
        if not 0.0 < float(value) < 1.0:
            yield SpecInvalid(
                f"{where}.{field}",
                "must lie above 0 and below 1",
                value,
                "Give a share such as 0.01",
            )


_RULES: tuple[Callable[[AdaptiveModelSpec], Iterator[SpecInvalid]], ...] = (
    _engine,
    _objectives,
    _audits,
    _drift,
    _levels,
    _steps,
)
