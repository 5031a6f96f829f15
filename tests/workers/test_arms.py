"""Arms: who is served by what, and which policies a model can serve at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimwheel_api.cohorts import cohort
from trimwheel_api.decide import NEVER
from trimwheel_api.errors import PolicyInvalid
from trimwheel_api.kinds.policy_assignment import AssignedPolicy
from trimwheel_api.policy import DENSE, parse_policy
from trimwheel_workers.arms import (
    RESIDENT_POLICIES,
    STABLE_ONLY,
    ComputeKey,
    ModelShape,
    Residents,
    Snapshot,
    resident,
)

SHAPE = ModelShape("sha256:m", "sha256:s", 4, (1, 2, 3), 4, 2, 2, ("a", "b"))


def exits(*thresholds: str, **fields: Any) -> dict[str, Any]:
    return {"exit": {"enabled": True, "thresholds": list(thresholds), **fields}}


def snapshot(weight: int = 500) -> Snapshot:
    stable = resident(DENSE, SHAPE)
    candidate = resident(parse_policy(exits("0.9", "0.9", "0.9")), SHAPE)
    return Snapshot(1, 1, "salt", weight, 0.5, stable, candidate)


@given(st.text(min_size=1), st.integers(0, 10_000), st.integers(0, 10_000))
def test_nobody_leaves_the_candidate_while_its_weight_grows(key: str, low: int, high: int) -> None:
    low, high = sorted((low, high))
    place = cohort(key, "salt")
    if snapshot(low).arm(place) == "candidate":
        assert snapshot(high).arm(place) == "candidate"


def test_without_weight_or_candidate_everybody_is_on_stable() -> None:
    full = snapshot(10_000)
    assert full.arm(9_999) == "candidate" and full.policy(9_999) is full.candidate
    assert full.arm(STABLE_ONLY) == "stable"
    assert full.on_stable(2).arm(0) == "stable"
    assert replace(full, candidate=None).policy(0) is full.stable


def test_a_snapshot_survives_the_wire() -> None:
    import orjson

    for one in (snapshot(), replace(snapshot(), candidate=None)):
        assert Snapshot.from_wire(orjson.loads(orjson.dumps(one.to_wire()))) == one
    assert ModelShape.from_wire(orjson.loads(orjson.dumps(SHAPE.to_wire()))) == SHAPE


NUMBERS = {
    "dense": ({}, (1.01,) * 3, 3, ComputeKey(2, 0.0, "learned")),
    "thresholds": (exits("0.5", "1", "1.5"), (0.5, 1.0, NEVER), 3, ComputeKey(2, 0.0, "learned")),
    "another score": (exits("1", "1", "1", score="margin"), (1.0,) * 3, 3,
                      ComputeKey(2, 0.0, "margin")),
    "a depth cap": (exits("1", "1", "1", maxDepth=1), (1.0,) * 3, 1, ComputeKey(2, 0.0, "learned")),
    "a cap beyond the model": (exits("1", "1", "1", maxDepth=9), (1.0,) * 3, 3,
                               ComputeKey(2, 0.0, "learned")),
    "exits off: neither score nor cap counts": (
        {"exit": {"score": "margin", "maxDepth": 0}}, (1.01,) * 3, 3,
        ComputeKey(2, 0.0, "learned")),
    "router knobs": ({"moe": {"topK": 1, "routerBlend": "0.75"}}, (1.01,) * 3, 3,
                     ComputeKey(1, 0.75, "learned")),
}  # fmt: skip


@pytest.mark.parametrize(("document", "thresholds", "cap", "compute"), NUMBERS.values(),
                         ids=NUMBERS.keys())  # fmt: skip
def test_a_policy_as_numbers(
    document: dict[str, Any], thresholds: tuple[float, ...], cap: int, compute: ComputeKey
) -> None:
    found = resident(parse_policy(document), SHAPE)
    assert (found.thresholds, found.depth_cap, found.compute) == (thresholds, cap, compute)
    assert found.digest == parse_policy(document).digest


UNSUPPORTED = {
    "thresholds for another model": (exits("1", "1"), "policy.exit.thresholds"),
    "more experts than there are": ({"moe": {"topK": 5}}, "policy.moe.topK"),
}


@pytest.mark.parametrize(("document", "field"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_a_policy_that_does_not_fit_the_model_is_refused(
    document: dict[str, Any], field: str
) -> None:
    with pytest.raises(PolicyInvalid) as caught:
        resident(parse_policy(document), SHAPE)
    assert caught.value.field == field


def assign(document: dict[str, Any]) -> AssignedPolicy:
    policy = parse_policy(document)
    return AssignedPolicy(digest=policy.digest, document=policy.canonical_bytes().decode())


def test_the_last_policies_stay_resident_as_the_same_objects() -> None:
    residents = Residents(SHAPE)
    policies = [assign(exits(f"0.{n}", "1", "1")) for n in range(1, 9)]
    loaded = [residents.load(one) for one in policies]
    assert residents.load(policies[-3]) is loaded[-3]
    assert len(residents.digests()) == RESIDENT_POLICIES
    assert policies[0].digest not in residents.digests()


def test_a_document_under_a_false_digest_is_refused() -> None:
    false = assign({}).model_copy(update={"digest": "sha256:" + "0" * 64})
    with pytest.raises(PolicyInvalid, match="digest"):
        Residents(SHAPE).load(false)


def test_a_knob_that_this_worker_does_not_know_is_refused() -> None:
    unknown = AssignedPolicy(digest=DENSE.digest, document='{"decode": {"draft": 2}}')
    with pytest.raises(PolicyInvalid, match="policy.decode"):
        Residents(SHAPE).load(unknown)
