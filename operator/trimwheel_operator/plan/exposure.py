"""Does a plan put a policy before more people than now? Asked by `reconcile` before it is written.

What takes a policy away (a rollback, a harm fallback, an abort) must never wait; what shows it to
more people may rest on nothing older than a moment. Pure.
"""

from __future__ import annotations

from trimwheel_api.policy import DENSE
from trimwheel_operator.plan.actions import Plan, WriteAssignment
from trimwheel_operator.plan.observed import ObservedState


def exposes(plan: Plan, state: ObservedState) -> bool:
    """Whether the assignment that it writes has a new candidate, more weight or another stable."""
    if state.assignment is None:
        return False
    before = state.assignment.spec
    for action in plan.actions:
        if not isinstance(action, WriteAssignment):
            continue
        stable, candidate = action.spec.get("stable"), action.spec.get("candidate")
        if stable and stable.get("digest", DENSE.digest) != DENSE.digest:
            return True
        if candidate or action.spec.get("weightBasisPoints", 0) > before.weight_basis_points:
            return True
    return False
