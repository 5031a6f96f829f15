"""Stage 8: a harmful policy; refused without a certificate, waived by a holder, rolled back."""

from __future__ import annotations

import json
import time
from typing import Any

from trimwheel_api import names
from trimwheel_api.errors import Refused
from trimwheel_api.policy import parse_policy
from trimwheel_demo import load
from trimwheel_demo.kube import condition, status
from trimwheel_demo.places import EDITOR, MODEL, WAIVER
from trimwheel_demo.report import metric_evidence, object_evidence
from trimwheel_demo.stages.approval import as_account
from trimwheel_demo.stages.following import (
    Item,
    StoryFailed,
    follow_rollout,
    instant,
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


def harm(world: World, found: list[dict[str, str]]) -> None:
    """All three gates, then the automatic rollback, then no retry by itself."""
    document = _document(world)
    digest = parse_policy(document).digest
    world.people[EDITOR].create("AdaptivePolicy", POLICY, {"model": MODEL, "policy": document})
    _refused_by_operator(world, digest)
    _refused_by_api_server(world, digest)
    started = time.time()
    name = "harmful-waived"
    spec = _spec(digest, WAIVER) | {"allowUncertified": True, "steps": STEPS}
    world.people[WAIVER].create("PolicyRollout", name, spec)
    first = STEPS[0]["weight"]
    world.teller.say(f"{WAIVER} holds verb waive: it starts at {first}, without shadow")
    item = follow_rollout(world, name, is_rolled_back)
    guard = next(g for g in status(item)["guards"] if g["verdict"] == "Fail")
    actuation = status(item).get("actuation") or {}
    section = {
        "name": name,
        "digest": digest,
        "guard": guard["name"],
        "value": guard["value"],
        "bound": guard["bound"],
        "exposed_requests": _exposed(world, digest, started),
        "detect_seconds": _detect_seconds(item),
        "actuation_ms": actuation.get("milliseconds"),
        "workers": actuation.get("workers", 0),
        "retried": not _not_retried(world, digest),
    }
    world.report["rollback"] = section
    world.teller.good(
        f"rolled back by itself: {guard['name']} {guard['value']} against {guard['bound']} after "
        f"{section['detect_seconds']} s and {section['exposed_requests']} exposed requests; last "
        f"worker acknowledged after {section['actuation_ms']} ms"
    )
    if section["retried"]:
        raise StoryFailed("a rejected digest was rolled out again by a service account")
    world.teller.good("the rejected digest is not rolled out again without a person")
    found.append(object_evidence(item, "prollout", ".status.actuation"))
    found.append(metric_evidence("trimwheel_rollback_seconds_count"))


def _document(world: World) -> dict[str, Any]:
    if world.options.bad_policy:
        loaded: dict[str, Any] = json.loads(world.options.bad_policy.read_text())
        return loaded
    model = world.admin.get("AdaptiveModel", MODEL)
    stable = world.admin.get("AdaptivePolicy", status(model)["stable"]["policy"])
    assert stable is not None, "the stable policy of a promoted model exists"
    return harmful_document(len(stable["spec"]["policy"]["exit"]["thresholds"]))


def _spec(digest: str, person: str) -> dict[str, Any]:
    return {
        "model": MODEL, "policy": POLICY, "policyDigest": digest, "type": "Canary",
        "requestedBy": person, "reason": "the demo's harmful policy",
    }  # fmt: skip


def _refused_by_operator(world: World, digest: str) -> None:
    name = "harmful-uncertified"
    world.people[EDITOR].create("PolicyRollout", name, _spec(digest, EDITOR))

    def stalled() -> Item | None:
        item = world.admin.get("PolicyRollout", name)
        return item if condition(item, names.STALLED).get("status") == "True" else None

    item = world.teller.wait(f"PolicyRollout {name} to be judged", stalled, 60)
    why = condition(item, names.STALLED)
    if why["reason"] != names.Reason.UNCERTIFIED:
        raise StoryFailed(f"{name} stalled for {why['reason']}: {why['message']}")
    world.teller.good(f"refused by the operator: {why['reason']}: {why['message']}")


def _refused_by_api_server(world: World, digest: str) -> None:
    spec = _spec(digest, EDITOR) | {"allowUncertified": True}
    try:
        world.people[EDITOR].create("PolicyRollout", "harmful-unwaived", spec)
    except Refused as error:
        world.teller.good(f"refused by the API server: {str(error).rsplit('request: ', 1)[-1]}")
        world.report["approval"]["denied"].append({"user": EDITOR, "message": str(error)})
        return
    raise StoryFailed(f"{EDITOR} lacks verb waive, yet the API server accepted allowUncertified")


def _not_retried(world: World, digest: str) -> bool:
    """The pipelines' own account asks for the same digest again; the operator must refuse."""
    account = names.PIPELINES_ACCOUNT
    user = names.service_account_user(names.RELEASE_NAMESPACE, account)
    name = "harmful-again"
    answer = as_account(
        world, world.account_token(account), "PolicyRollout", name, _spec(digest, user)
    )
    if not answer.ok:
        raise StoryFailed(f"pipelines could not ask for a rollout: {answer.error}")

    def stalled() -> Item | None:
        item = world.admin.get("PolicyRollout", name)
        return item if condition(item, names.STALLED).get("status") == "True" else None

    item = world.teller.wait(f"PolicyRollout {name} to be judged", stalled, 60)
    return bool(condition(item, names.STALLED)["reason"] == names.Reason.REJECTED_DIGEST)


def _exposed(world: World, digest: str, since: float) -> int:
    time.sleep(1.2)  # the generator writes a window a second
    seen = load.summary(load.windows(world.load, since - 1))
    return int(seen["digests"].get(digest, 0))


def _detect_seconds(item: Item) -> float:
    decisions = status(item)["decisions"]
    begun = next(d for d in decisions if d["action"] == "Start")
    ended = next(d for d in decisions if d["action"] == "RollBack")
    span = instant(ended["time"]) - instant(begun["time"])
    return round(span.total_seconds(), 1)
