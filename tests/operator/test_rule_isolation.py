"""A rule that raises stops no other: least of all those that end a canary or answer harm."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from trimwheel_api import names
from trimwheel_api.names import Reason
from trimwheel_api.policy import DENSE
from trimwheel_operator.plan import isolation, plan, stops

World = Any
Document = dict[str, Any]

PLAN = "trimwheel_operator.plan"
RULES = (
    ".first_mistake", "models.mirror_drift", "models.worker_manifests", "models.begin_assignment",
    "models.choose_stable", "models.set_audit_rate", "models.set_lease", "models.renew",
    "models._report_policies", "models.is_decision_on", "models.beyond",
    "rollouts.acknowledge", "rollouts._settle_canary", "rollouts.abandon", "rollouts.admit",
    "rollouts.queue", "rollouts.report_limits", "canary.judge", "canary.watch_admission",
    "canary.hold", "canary.pause", "canary.take_step", "canary.span", "policies.status_of",
    "tuning._create", "tuning._follow", "tuning.beyond", "._next_look",
    "._report", "witness.take_notes", "memory.close_pass", "memory.forget",
)  # fmt: skip
"""What a plan asks, and helpers that these rules lean on."""


def overflow(*_: Any, **__: Any) -> Any:
    raise OverflowError("date value out of range")


READS_GUARDS = "canary.judge"


@pytest.fixture(params=RULES)
def broken(request: Any) -> str:
    return str(request.param)


def break_rule(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    module, name = rule.rsplit(".", 1)
    owner = importlib.import_module(f"{PLAN}.{module}" if module else PLAN)
    overflow.__name__ = name
    monkeypatch.setattr(owner, name, overflow)


def settle(world: World, passes: int = 6) -> None:
    """Passes as long as a broken rule lets them do something."""
    for _ in range(passes):
        world.after(0.001).look()
        world.acknowledge()


def harmful(world: World) -> None:
    world.tuning("alarm", reason="Harmful")
    world.report_drift("alarm", "Harmful")


def test_harm_leads_to_full_depth_whatever_else_raises(
    promoted: World, other: Document, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted.policy("next", other)
    promoted.rollout("next", "next")
    promoted.guards("NotEnoughEvidence")
    promoted.settle()
    break_rule(monkeypatch, broken)
    harmful(promoted.after(5))
    settle(promoted)
    assert promoted.assignment["stable"]["digest"] == DENSE.digest


def test_a_failed_guard_ends_the_canary_whatever_else_raises(
    world: World, good: Document, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ramp(world, good)
    if broken == READS_GUARDS:  # then a person has to: nothing else reads them
        world.change("ramp", abort=True)
    break_rule(monkeypatch, broken)
    world.guards("Pass", disagreement="Fail")
    settle(world.after(1))
    assert world.assignment["candidate"] is None
    assert world.assignment["weightBasisPoints"] == 0


def _ramp(world: World, good: Document) -> None:
    world.policy("good", good)
    world.rollout("ramp", "good")
    world.guards("Pass")
    world.settle().after(16).settle()
    assert world.assignment["weightBasisPoints"] == 1000


@pytest.mark.parametrize("rule", [rule.__name__ for rule in stops.STOPS])
def test_a_stop_that_raises_stops_no_other_stop_and_nothing_moves_on(
    world: World, good: Document, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ramp(world, good)
    chain = [overflow if one.__name__ == rule else one for one in stops.STOPS]
    overflow.__name__ = rule
    monkeypatch.setattr(stops, "STOPS", tuple(chain))
    settle(world.after(60))
    assert world.assignment["weightBasisPoints"] == 1000, "nothing moves on"
    stalled = world.of_rollout("ramp").condition(names.STALLED)
    assert (stalled.status, stalled.reason) == ("True", Reason.RULE_FAILED)
    assert f"rule {rule} raised OverflowError" in stalled.message
    if rule == "aborted":
        world.guards("Pass", errors="Fail")
    else:
        world.change("ramp", abort=True)
    settle(world.after(1))
    assert world.assignment["candidate"] is None


def test_the_candidate_goes_even_if_its_end_cannot_be_recorded(
    world: World, good: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ramp(world, good)
    monkeypatch.setattr(importlib.import_module(f"{PLAN}.outcomes"), "record_rollback", overflow)
    world.change("ramp", abort=True)
    settle(world)
    assert world.assignment["candidate"] is None and world.assignment["weightBasisPoints"] == 0


def test_a_failure_is_named_counted_and_rests(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_rule(monkeypatch, "models.set_lease")
    settle(world)
    stalled = world.of_model.condition(names.STALLED)
    assert (stalled.status, stalled.reason) == ("True", Reason.RULE_FAILED)
    assert "rule set_lease raised OverflowError: date value out of range" in stalled.message
    made = plan(world.observe(), world.after(1).now)
    assert [one.rule for one in made.failures] == ["set_lease"]
    assert made.actions == (), "the same failure is not written again and again"
    monkeypatch.undo()
    settle(world)
    assert not world.of_model.is_true(names.STALLED)


def test_what_a_rule_drafted_before_it_raised_is_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = importlib.import_module(f"{PLAN}.models")

    def half_done(draft: Any, model: Any) -> None:
        draft.assign(lease_seconds=99)
        raise ValueError("halfway")

    monkeypatch.setattr(models, "set_lease", half_done)
    settle(world)
    assert world.assignment["leaseSeconds"] != 99


def test_one_broken_tuning_run_does_not_stop_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = importlib.import_module(f"{PLAN}.tuning")
    create: Callable[..., Any] = tuning._create

    def picky(draft: Any, run: Any, model: Any) -> Any:
        if run.name == "a-broken":
            raise KeyError("a field that nobody thought of")
        return create(draft, run, model)

    monkeypatch.setattr(tuning, "_create", picky)
    world.tuning("a-broken")
    world.tuning("b-healthy")
    settle(world)
    [job] = world.jobs.values()
    assert job.run_uid == world.objects["TuningRun", "b-healthy"]["metadata"]["uid"]


def test_every_step_of_the_plan_runs_in_isolation() -> None:
    """Whoever adds a rule to these tables of contents has to isolate it."""
    for module, function in (
        (PLAN, "_model"), (f"{PLAN}.rollouts", "story"), (f"{PLAN}.canary", "drive"),
        (f"{PLAN}.policies", "patches"), (f"{PLAN}.tuning", "story"),
    ):  # fmt: skip
        source = inspect.getsource(getattr(importlib.import_module(module), function))
        assert "attempt(" in source, (module, function)
    assert isolation.attempt.__doc__
