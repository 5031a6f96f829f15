"""Whatever happens in whatever order, with crashes in between, some things never do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trimwheel_api import names
from trimwheel_api.policy import DENSE

World = Any
GOOD = {"exit": {"enabled": True, "thresholds": ["0.9", "0.95"]}}
OTHER = {"exit": {"enabled": True, "thresholds": ["0.8", "0.9"]}}

HAPPENINGS = (
    "wait", "wait long", "pass", "fail", "not enough", "prometheus away", "approve", "reject",
    "abort", "pause", "resume", "second rollout", "roll back", "harm", "hold", "admission gone",
    "admission back", "other weights", "acknowledge",
)  # fmt: skip


def happen(world: World, what: str) -> None:
    """One thing that people, workers or pipelines do."""
    rollouts = [name for kind, name in world.objects if kind == "PolicyRollout"]
    simple: dict[str, Callable[[], Any]] = {
        "wait": lambda: world.after(5),
        "wait long": lambda: world.after(20),
        "pass": lambda: world.guards("Pass"),
        "fail": lambda: world.guards("Pass", errors="Fail"),
        "not enough": lambda: world.guards("NotEnoughEvidence"),
        "prometheus away": world.prometheus_away,
        "approve": lambda: [world.approve(name, by="ann") for name in rollouts],
        "reject": lambda: world.approve(rollouts[0], by="bob", decision="Reject"),
        "abort": lambda: world.change(rollouts[-1], abort=True),
        "pause": lambda: world.change(rollouts[0], paused=True),
        "resume": lambda: world.change(rollouts[0], paused=False),
        "acknowledge": world.acknowledge,
    }
    if what in simple:
        simple[what]()
    elif what == "second rollout" and "other" not in rollouts:
        world.rollout("other", "other")
    elif what == "roll back" and "back" not in rollouts:
        world.rollout("back", policyDigest=DENSE.digest, type="Rollback", requestedBy="ann")
    elif what == "harm" and ("TuningRun", "alarm") not in world.objects:
        world.tuning("alarm", reason="Harmful")
        world.report_drift("alarm", "Harmful")
    elif what == "hold":
        world.break_glass()
    elif what == "other weights":
        world.model(model={"digest": "sha256:" + "b" * 64})
    elif what.startswith("admission"):
        armed = what.endswith("back")
        world.admission = type(world.admission)(armed, "", world.admission.armed_since)


STORIES = st.lists(
    st.tuples(st.sampled_from(HAPPENINGS), st.one_of(st.none(), st.integers(0, 4))),
    min_size=3,
    max_size=30,
)


def check(world: World, was: dict[str, Any]) -> None:
    """What holds after every pass."""
    writes = world.writes
    pairs = list(zip(writes, writes[1:], strict=False))
    assert all(a["epoch"] <= b["epoch"] for a, b in pairs), "epochs only grow"
    failed = {name for name, status in was.items() if status.verdict == "Fail"}
    active = []
    for (kind, name), _ in list(world.objects.items()):
        if kind != "PolicyRollout":
            continue
        status = world.of_rollout(name)
        if status.effective and not status.finished_at and status.phase != "RollingBack":
            active.append(name)
        if name in failed:
            assert status.weight_basis_points == 0, "no weight after a Fail"
        seqs = [one.seq for one in status.decisions]
        assert seqs == sorted(set(seqs)), "no decision twice"
        ends = [one.action for one in status.decisions if one.action in ("Promote", "RollBack")]
        assert len(ends) <= 1, "a rollout ends once"
        promoted = [one for one in status.decisions if one.action == "Promote"]
        if promoted:
            assert status.verdict == "Pass", "nothing is promoted unless every guard passes"
            assert promoted[0].actor == "ann", "nor without a person"
        if status.is_true(names.ROLLED_BACK):
            assert status.actuation is not None
    assert len(active) <= 1, "one canary at a time"
    spec = writes[-1]
    assert spec["weightBasisPoints"] == 0 or spec.get("candidate")
    assert not (spec.get("hold") and spec["weightBasisPoints"]), "a hold is honoured"


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(story=STORIES)
def test_invariants_hold_through_any_story_with_crashes(
    new_world: Callable[[], World], story: list[tuple[str, int | None]]
) -> None:
    world = new_world()
    world.policy("good", GOOD)
    world.policy("other", OTHER)
    world.rollout("ramp", "good")
    for what, crash_after in story:
        happen(world, what)
        was = {
            name: world.of_rollout(name) for kind, name in world.objects if kind == "PolicyRollout"
        }
        world.after(0.5).look(crash_after=crash_after)
        check(world, was)
    world.acknowledge()
    world.after(31).settle(limit=20)
    check(world, {})


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(crashes=st.lists(st.integers(0, 6), max_size=12), ending=st.sampled_from(["Pass", "Fail"]))
@example(crashes=[1, 1, 3, 1], ending="Pass")  # the record of a step is lost, and that of the next
@example(crashes=[1, 1, 1, 1], ending="Pass")  # those of the start and of two steps are
def test_crashes_change_neither_the_outcome_nor_the_decisions(
    new_world: Callable[[], World], crashes: list[int], ending: str
) -> None:
    world = new_world()
    world.policy("good", GOOD)
    world.rollout("ramp", "good")
    world.guards("Pass")
    pending = list(crashes)
    for _ in range(30):
        world.after(16)
        if world.of_rollout("ramp").phase == "AwaitingApproval":
            break
        world.look(crash_after=pending.pop() if pending else None)
        world.acknowledge()
    world.settle()
    world.after(2)
    if ending == "Pass":
        world.approve("ramp")
    else:
        world.guards("Fail")
    while pending:
        world.after(1).look(crash_after=pending.pop())
    world.settle()
    taken = [action for action, _ in world.actions_of("ramp")]
    last = "Promote" if ending == "Pass" else "RollBack"
    assert taken == ["Start", "Advance", "Advance", "Await", last]
    epochs = [spec["epoch"] for spec in world.writes if not spec.get("renewals")]
    assert len(epochs) == len(set(epochs)), "each decision is written once"
