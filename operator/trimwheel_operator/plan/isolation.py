"""Runs one rule of the plan so that its failure stays its own.

A rule that raises leaves the draft as it found it, is recorded, and the next one runs: above all
the rules that end a canary and that send a harmful policy back to full depth. What may only happen
while every rule of a rollout could be asked (an advance, a promotion) looks at `Draft.failed`.
Called by the plan around each rule. Pure: `reconcile` logs and counts what failed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from trimwheel_api import names
from trimwheel_api.conditions import with_condition
from trimwheel_api.kinds import Condition
from trimwheel_api.names import Reason
from trimwheel_operator.plan.actions import RuleFailure
from trimwheel_operator.plan.draft import Draft

T = TypeVar("T")
MAX_MESSAGE = 1024


def attempt(
    draft: Draft, rule: Callable[..., T], *arguments: object, otherwise: T, about: str = ""
) -> T:
    """What a rule returns, or `otherwise` when it raises; `about` names the rollout it is for."""
    before = draft.checkpoint()
    try:
        return rule(draft, *arguments)
    except Exception as error:  # whatever it is, the other rules have to run
        draft.restore(before)
        draft.failures.append(RuleFailure(rule.__name__, about, error))
        return otherwise


def report_failures(draft: Draft) -> None:
    """Name the rules that raised about a rollout in its conditions."""
    for rollout in draft.state.rollouts:
        if message := failures(draft, rollout.name):
            observed = rollout.status.condition(names.STALLED)
            status = draft.status(rollout)
            conditions = with_condition(
                _with_observed(status.conditions, observed),
                names.STALLED,
                True,
                Reason.RULE_FAILED,
                message,
                now=draft.now,
                generation=rollout.metadata.generation,
            )
            draft.update(rollout, conditions=conditions)


def failures(draft: Draft, about: str = "") -> str:
    """What raised about a rollout, or about the model, as a sentence; empty when nothing did."""
    failed = [one.sentence() for one in draft.failures if one.about == about]
    if not failed:
        return ""
    text = f"{'; '.join(failed)}. The other rules ran, and it is tried again"
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 3] + "..."


def _with_observed(conditions: list[Condition], observed: Condition | None) -> list[Condition]:
    """The list with a condition as it was observed: passing through another is no transition."""
    if observed is None:
        return conditions
    return [observed if one.type == observed.type else one for one in conditions]
