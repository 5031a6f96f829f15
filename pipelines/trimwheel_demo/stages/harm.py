"""Stage 8: a harmful policy; refused without a certificate, waived by a holder, rolled back."""

from __future__ import annotations

import time
from typing import Any

from trimwheel_api import names
from trimwheel_api.errors import Refused
from trimwheel_api.policy import parse_policy
from trimwheel_api.times import instant
from trimwheel_demo import load
from trimwheel_demo.evidence import (
    Evidence,
    condition_path,
    metric_evidence,
    object_evidence,
    refusal_evidence,
)
from trimwheel_demo.kube import condition, status
from trimwheel_demo.places import EDITOR, MODEL, NAMESPACE, WAIVER
from trimwheel_demo.stages.approval import as_account, refusal_words
from trimwheel_demo.stages.following import (
    Item,
    StoryFailed,
    decision,
    follow_rollout,
    is_rolled_back,
)
from trimwheel_demo.world import World

POLICY = "harmful"
STEPS = [{"weight": "25%", "minRequests": 250, "hold": "15s", "maxDuration": "2m"},
         {"weight": "50%", "minRequests": 500, "hold": "15s", "maxDuration": "2m"}]  # fmt: skip
"""No shadow: the story wants the harm to be served, and stopped."""


def harmful_document(exits: int) -> dict[str, Any]:
    """Answer at the first exit, whatever it thinks."""
    return {"exit": {"enabled": True, "thresholds": ["0"] + ["1.01"] * (exits - 1)}}


def harm(world: World, found: list[Evidence]) -> None:
    """All three gates, then the automatic rollback, then no retry by itself."""
    document = _document(world)
    digest = parse_policy(document).digest
    world.people[EDITOR].create("AdaptivePolicy", POLICY, {"model": MODEL, "policy": document})
    found.append(_refused_by_operator(world, digest))
    found.append(_refused_by_api_server(world, digest))
    started = time.time()
    name = "harmful-waived"
    spec = _spec(digest, WAIVER) | {"allowUncertified": True, "steps": STEPS}
    world.people[WAIVER].create("PolicyRollout", name, spec)
    first = STEPS[0]["weight"]
    world.teller.say(f"{WAIVER} holds verb waive: it starts at {first}, without shadow")
    item = follow_rollout(world, name, is_rolled_back)
    section = rollback_section(item) | {"exposed_requests": _exposed(world, digest, started)}
    world.report["rollback"] = section
    found += _evidence(item)
    if section["reason"] != names.Reason.GUARD_FAILED:
        raise StoryFailed(f"{name} ended for another reason than its guards: {section['message']}")
    world.teller.good(
        f"rolled back by itself: {section['message']}; {section['detect_seconds']} s and "
        f"{section['exposed_requests']} exposed requests after its start; last worker acknowledged "
        f"after {section['actuation_ms']} ms"
    )
    again = _ask_again(world, digest)
    section["retried"] = condition(again, names.STALLED)["reason"] != names.Reason.REJECTED_DIGEST
    if section["retried"]:
        raise StoryFailed("a rejected digest was rolled out again by a service account")
    world.teller.good("the rejected digest is not rolled out again without a person")
    found.append(_stalled_evidence(again))


def rollback_section(item: Item) -> dict[str, Any]:
    """What the report says of a rollback, from the rollout's own status.

    A worker may leave a policy by itself, and a rollout may end for another reason: then no guard
    has failed, and the reason tells.
    """
    ended = decision(item, names.Action.ROLL_BACK, names.Action.ABORT)
    failed = [g for g in status(item)["guards"] if g["verdict"] == names.VERDICT_FAIL]
    guard = failed[0] if failed else {}
    actuation = status(item).get("actuation") or {}
    begun = decision(item, names.Action.START)
    span = instant(ended["time"]) - instant(begun["time"]) if begun and ended else None
    return {
        "name": item["metadata"]["name"],
        "digest": item["spec"]["policyDigest"],
        "reason": ended.get("reason", ""),
        "message": ended.get("message", ""),
        "guard": guard.get("name", ""),
        "value": guard.get("value", ""),
        "bound": guard.get("bound", ""),
        "detect_seconds": round(span.total_seconds(), 1) if span is not None else None,
        "actuation_ms": actuation.get("milliseconds"),
        "workers": actuation.get("workers", 0),
        "retried": None,
    }


def _evidence(item: Item) -> list[Evidence]:
    ended = decision(item, names.Action.ROLL_BACK, names.Action.ABORT)
    actuation = status(item).get("actuation") or {}
    fields = [name for name in ("milliseconds", "workers") if name in actuation]
    return [
        _stalled_evidence(item),
        object_evidence(item, "prollout", f".status.decisions[?(@.seq=={ended['seq']})].action",
                        ended["action"]),
        *(object_evidence(item, "prollout", f".status.actuation.{name}", actuation[name])
          for name in fields),
        metric_evidence("trimwheel_rollback_seconds_count > 0"),
    ]  # fmt: skip


def _stalled_evidence(item: Item) -> Evidence:
    why = condition(item, names.STALLED)["reason"]
    return object_evidence(item, "prollout", condition_path(names.STALLED, "reason"), why)


def _document(world: World) -> dict[str, Any]:
    if world.options.bad_policy is not None:
        return world.options.bad_policy
    model = world.admin.get("AdaptiveModel", MODEL)
    stable = world.admin.get("AdaptivePolicy", status(model)["stable"]["policy"])
    assert stable is not None, "the stable policy of a promoted model exists"
    return harmful_document(len(stable["spec"]["policy"]["exit"]["thresholds"]))


def _spec(digest: str, person: str) -> dict[str, Any]:
    return {
        "model": MODEL, "policy": POLICY, "policyDigest": digest, "type": "Canary",
        "requestedBy": person, "reason": "the demo's harmful policy",
    }  # fmt: skip


def _refused_by_operator(world: World, digest: str) -> Evidence:
    name = "harmful-uncertified"
    world.people[EDITOR].create("PolicyRollout", name, _spec(digest, EDITOR))
    item = _judged(world, name)
    why = condition(item, names.STALLED)
    if why["reason"] != names.Reason.UNCERTIFIED:
        raise StoryFailed(f"{name} stalled for {why['reason']}: {why['message']}")
    world.teller.good(f"refused by the operator: {why['reason']}: {why['message']}")
    return _stalled_evidence(item)


def _refused_by_api_server(world: World, digest: str) -> Evidence:
    spec = _spec(digest, EDITOR) | {"allowUncertified": True}
    try:
        world.people[EDITOR].create("PolicyRollout", "harmful-unwaived", spec)
    except Refused as error:
        words = refusal_words(str(error))
        world.teller.good(f"refused by the API server: {words}")
        world.report["approval"]["denied"].append({"user": EDITOR, "message": str(error)})
        return refusal_evidence(EDITOR, "PolicyRollout", NAMESPACE, spec, words)
    raise StoryFailed(f"{EDITOR} lacks verb waive, yet the API server accepted allowUncertified")


def _ask_again(world: World, digest: str) -> Item:
    """The Jobs' own account asks for the same digest again; the operator must refuse."""
    account = names.TUNING_ACCOUNT
    user = names.service_account_user(names.RELEASE_NAMESPACE, account)
    name = "harmful-again"
    answer = as_account(
        world, world.account_token(account), "PolicyRollout", name, _spec(digest, user)
    )
    if not answer.ok:
        raise StoryFailed(f"the Jobs' account could not ask for a rollout: {answer.error}")
    return _judged(world, name)


def _judged(world: World, name: str) -> Item:
    """A rollout that was refused before it began."""

    def stalled() -> Item | None:
        item = world.admin.get("PolicyRollout", name)
        return item if condition(item, names.STALLED).get("status") == "True" else None

    return world.teller.wait(f"PolicyRollout {name} to be judged", stalled, 60)


def _exposed(world: World, digest: str, since: float) -> int:
    time.sleep(1.2)  # the generator writes a window a second
    seen = load.summary(load.windows(world.load, since - 1))
    return int(seen["digests"].get(digest, 0))
