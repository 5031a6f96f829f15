"""Stage 4, the control: the same behaviour under another digest must show no Fail."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from trimwheel_api import names
from trimwheel_api.policy import parse_policy
from trimwheel_api.times import instant
from trimwheel_api.values import seconds
from trimwheel_demo.evidence import Evidence, condition_path, object_evidence
from trimwheel_demo.kube import status
from trimwheel_demo.places import MODEL, WAIVER
from trimwheel_demo.stages.following import (
    Item,
    StepLog,
    StoryFailed,
    decision,
    follow_rollout,
    guards_line,
    is_awaiting,
    is_rolled_back,
    steps_report,
)
from trimwheel_demo.world import World

NAME = "control"
SESSION_REQUESTS = 3
"""The errors guard counts sessions, which are at most this many requests long."""
_TICK = Decimal("0.0000001")


def same_behaviour(document: dict[str, Any]) -> dict[str, Any]:
    """A document with another digest and the same decisions.

    A threshold moves by less than scores are told apart; above 1 nothing changes at all.
    """
    twin = copy.deepcopy(document)
    thresholds = [Decimal(text) for text in twin["exit"]["thresholds"]]
    index = max(range(len(thresholds)), key=lambda i: thresholds[i])
    step = -_TICK if thresholds[index] + _TICK >= 2 else _TICK
    twin["exit"]["thresholds"][index] = format(thresholds[index] + step, "f")
    return twin


def through_every_step(item: Item) -> bool:
    """Whether every step was held and seen by enough requests.

    It need not pass: without a certificate a guard passes only below epsilon itself, and a policy
    whose true disagreement lies at epsilon is neither passed nor failed, however long one waits.
    """
    seen = status(item)
    if is_awaiting(item):
        return True
    steps = seen.get("effective", {}).get("rollout", {}).get("steps", [])
    if not steps or seen.get("step", 0) < len(steps) - 1:
        return False
    held = (datetime.now(UTC) - instant(seen["stepStartedAt"])).total_seconds()
    last = steps[-1]
    served = max(guard.get("samples", 0) for guard in seen["guards"] if guard["name"] == "errors")
    return held >= 2 * seconds(last["hold"]) and served >= last["minRequests"] / SESSION_REQUESTS


def control(world: World, found: list[Evidence]) -> None:
    """Roll the twin out with a waiver's allowUncertified, through every step, then abort it."""
    model = world.admin.get("AdaptiveModel", MODEL)
    stable = world.admin.get("AdaptivePolicy", status(model)["stable"]["policy"])
    assert stable is not None, "the stable policy of a promoted model exists"
    document = same_behaviour(stable["spec"]["policy"])
    digest = parse_policy(document).digest
    carol = world.people[WAIVER]
    carol.create("AdaptivePolicy", NAME, {"model": MODEL, "policy": document})
    spec = {
        "model": MODEL, "policy": NAME, "policyDigest": digest, "type": "Canary",
        "requestedBy": WAIVER, "allowUncertified": True,
        "reason": "control: the same behaviour under another digest",
    }  # fmt: skip
    carol.create("PolicyRollout", NAME, spec)
    log = StepLog()
    try:
        item = follow_rollout(world, NAME, through_every_step, log)
        if any(guard["verdict"] == names.VERDICT_FAIL for guard in status(item).get("guards", [])):
            raise StoryFailed(f"the control failed a guard: {guards_line(item)}")
        world.teller.good(f"no Fail at any step: {guards_line(item)}")
        carol.patch_spec("PolicyRollout", NAME, {"abort": True})
        item = follow_rollout(world, NAME, is_rolled_back, log)
    finally:  # a control that failed is what the report is for
        world.report["control"] = control_section(world.admin.get("PolicyRollout", NAME) or {}, log)
    section = world.report["control"]
    if section["rolled_back"]:
        raise StoryFailed(f"the control was rolled back: {section['ended']}")
    world.teller.good(f"{section['ended']}; workers are back on stable")
    found.append(
        object_evidence(item, "prollout", condition_path(names.STALLED, "reason"),
                        decision(item, names.Action.ABORT)["reason"])
    )  # fmt: skip


def control_section(item: Item, log: StepLog) -> dict[str, Any]:
    """What the report says of the control, from what the operator decided."""
    last = decision(item, names.Action.ROLL_BACK, names.Action.ABORT, names.Action.PROMOTE)
    return {
        "name": NAME,
        "rolled_back": last.get("action") == names.Action.ROLL_BACK,
        "ended": f"{last['action']}: {last['reason']}" if last else "",
        "steps": steps_report(item, log),
    }
