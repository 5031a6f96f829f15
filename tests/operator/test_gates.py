"""What stops a rollout from starting, one row a rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trimwheel_api import names
from trimwheel_api.kinds.adaptive_model import Step
from trimwheel_api.loosening import looser_steps
from trimwheel_api.names import Reason
from trimwheel_api.policy import DENSE

World = Any
Document = dict[str, Any]
BOT = "system:serviceaccount:trimwheel-system:trimwheel-tuning"


def request(world: World, document: Document, **spec: Any) -> None:
    world.policy("good", document)
    world.rollout("ramp", "good", **spec)


def absent_policy(world: World, good: Document) -> None:
    request(world, good)
    del world.objects["AdaptivePolicy", "good"]


def other_digest(world: World, good: Document) -> None:
    request(world, good, policyDigest="sha256:" + "9" * 64)


def invalid_document(world: World, good: Document) -> None:
    request(world, good)
    world.objects["AdaptivePolicy", "good"]["spec"]["policy"] = {"exit": {"enabled": True}}


def of_another_model(world: World, good: Document) -> None:
    request(world, good)
    world.objects["AdaptivePolicy", "good"]["spec"]["model"] = "somebody-elses"


def uncertified(world: World, good: Document) -> None:
    world.policy("good", good, certified=False)
    world.rollout("ramp", "good")


def expired(world: World, good: Document) -> None:
    world.policy("good", good, expiresAt="2026-11-22T11:59:59Z")
    world.rollout("ramp", "good")


def certified_for_another_model(world: World, good: Document) -> None:
    world.policy("good", good, modelDigest="sha256:" + "b" * 64)
    world.rollout("ramp", "good")


def promising_too_little(world: World, good: Document) -> None:
    world.policy("good", good, epsilon="0.05")
    world.rollout("ramp", "good")


def too_sure_of_itself(world: World, good: Document) -> None:
    world.policy("good", good, delta="0.2")
    world.rollout("ramp", "good")


def with_lost_audits(world: World, good: Document) -> None:
    world.policy("good", good, missing="0.006")
    world.rollout("ramp", "good")


def made_for_other_weights(world: World, good: Document) -> None:
    request(world, good)
    world.objects["AdaptivePolicy", "good"]["spec"]["modelDigest"] = "sha256:" + "b" * 64


def without_shadow(world: World, good: Document) -> None:
    request(world, good, steps=[{"weight": "10%", "hold": "1h", "minRequests": 9999}])


def shrinking_steps(world: World, good: Document) -> None:
    request(world, good, steps=[{"weight": "50%"}, {"weight": "10%"}], allowUncertified=True)


def already_stable(world: World, good: Document) -> None:
    world.put("AdaptivePolicy", "good", {"model": "router", "policy": {}})
    world.rollout("ramp", "good", policyDigest=DENSE.digest)


def aborted_before_it_began(world: World, good: Document) -> None:
    request(world, good, abort=True)


def back_to_what_never_was(world: World, good: Document) -> None:
    digest = world.policy("good", good)
    world.rollout("ramp", policyDigest=digest, type="Rollback", requestedBy="ann")


@pytest.mark.parametrize(
    ("scenario", "reason", "final"),
    [
        (absent_policy, Reason.POLICY_NOT_FOUND, False),
        (of_another_model, Reason.POLICY_INVALID, True),
        (invalid_document, Reason.POLICY_INVALID, True),
        (other_digest, Reason.DIGEST_MISMATCH, True),
        (made_for_other_weights, Reason.MODEL_DIGEST_CHANGED, True),
        (already_stable, Reason.ALREADY_STABLE, True),
        (uncertified, Reason.UNCERTIFIED, True),
        (expired, Reason.UNCERTIFIED, True),
        (certified_for_another_model, Reason.UNCERTIFIED, True),
        (promising_too_little, Reason.UNCERTIFIED, True),
        (too_sure_of_itself, Reason.UNCERTIFIED, True),
        (with_lost_audits, Reason.UNCERTIFIED, True),
        (shrinking_steps, Reason.INVALID_SPEC, True),
        (without_shadow, Reason.STEPS_LOOSER_THAN_MODEL, True),
        (aborted_before_it_began, Reason.ABORTED, True),
        (back_to_what_never_was, Reason.NOT_FORMERLY_STABLE, True),
    ],
)
def test_a_rollout_is_refused_when_it_is(
    world: World,
    good: Document,
    scenario: Callable[[World, Document], None],
    reason: str,
    final: bool,
) -> None:
    before = world.assignment
    scenario(world, good)
    world.after(1).settle()
    status = world.of_rollout("ramp")
    stalled = status.condition(names.STALLED)
    assert (stalled.status, stalled.reason) == ("True", reason)
    assert status.phase == "Stalled" and bool(status.finished_at) is final
    assert world.assignment == before, "nobody heard of it"
    assert [one.reason for one in world.events if one.name == "ramp"].count(reason) == 1


def test_a_policy_that_comes_later_lets_its_rollout_start(world: World, good: Document) -> None:
    absent_policy(world, good)
    world.after(1).settle()
    world.policy("good", good)
    world.after(1).settle()
    status = world.of_rollout("ramp")
    assert status.phase == "Progressing" and not status.is_true(names.STALLED)


def test_a_waiver_starts_without_certificate_and_shadow(world: World, good: Document) -> None:
    world.policy("good", good, certified=False)
    steps = [{"weight": "25%", "hold": "5s"}]
    world.rollout("ramp", "good", allowUncertified=True, steps=steps, requestedBy="ann")
    world.after(1).settle()
    status = world.of_rollout("ramp")
    assert status.effective.certified is False
    assert world.assignment["weightBasisPoints"] == 2500


@pytest.mark.parametrize(
    ("user", "waiver", "started"),
    [(BOT, False, False), (BOT, True, False), ("ann", False, False), ("ann", True, True)],
)
def test_a_rejected_digest_comes_again_only_when_a_person_who_may_waive_asks(
    world: World, good: Document, user: str, waiver: bool, started: bool
) -> None:
    request(world, good)
    world.guards("Fail")
    world.after(1).settle()
    assert world.of_rollout("ramp").phase == "RolledBack"
    world.guards("NotEnoughEvidence")
    world.rollout("again", "good", requestedBy=user, allowUncertified=waiver)
    world.after(1).settle()
    status = world.of_rollout("again")
    assert (status.phase == "Progressing") is started
    if not started:
        assert status.condition(names.STALLED).reason == Reason.REJECTED_DIGEST


def test_a_rollout_of_no_model_waits_for_it(new_world: Callable[[], World], good: Document) -> None:
    world = new_world()
    model = world.objects.pop(("AdaptiveModel", "router"))
    del world.objects["PolicyAssignment", "router"]
    request(world, good)
    world.settle()
    status = world.of_rollout("ramp")
    assert status.condition(names.STALLED).reason == Reason.MODEL_NOT_FOUND
    world.objects["AdaptiveModel", "router"] = model
    world.after(1).settle()
    assert world.of_rollout("ramp").phase == "Progressing"


def steps(*rows: tuple[str, str, int]) -> list[Step]:
    return [Step(weight=weight, hold=hold, min_requests=count) for weight, hold, count in rows]


MODEL_STEPS = steps(("0%", "10s", 0), ("5%", "10s", 100), ("50%", "10s", 300))


@pytest.mark.parametrize(
    ("scenario", "given", "why"),
    [
        ("the same", MODEL_STEPS, ""),
        (
            "finer",
            steps(("0%", "10s", 0), ("1%", "5s", 50), ("5%", "5s", 50), ("50%", "10s", 300)),
            "",
        ),
        ("slower", steps(("0%", "1h", 0), ("5%", "1h", 500), ("50%", "1h", 500)), ""),
        ("never as wide", steps(("0%", "10s", 0), ("5%", "20s", 400)), ""),
        ("no shadow", steps(("5%", "1h", 900), ("50%", "1h", 900)), "shadow"),
        ("a short shadow", steps(("0%", "5s", 0), ("5%", "1h", 900), ("50%", "1h", 900)), "0%"),
        ("a jump", steps(("0%", "10s", 0), ("50%", "1h", 900)), "5%"),
        ("hasty", steps(("0%", "10s", 0), ("5%", "10s", 100), ("50%", "9s", 300)), "50%"),
        (
            "wider",
            steps(("0%", "10s", 0), ("5%", "10s", 100), ("50%", "10s", 300), ("100%", "1h", 900)),
            "a step at 100%, above the model's largest weight of 50%",
        ),
        ("few requests", steps(("0%", "10s", 0), ("5%", "10s", 99), ("50%", "10s", 900)), "5%"),
    ],
)
def test_own_steps_are_looser_when(scenario: str, given: list[Step], why: str) -> None:
    found = looser_steps(given, MODEL_STEPS)
    assert bool(found) is bool(why), f"{scenario}: {found}"
    assert why in found
