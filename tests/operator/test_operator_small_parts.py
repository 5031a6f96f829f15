"""Small parts around the plan: patches, conditions, what is read of objects, settings, metrics."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from tests.operator.world import START, merged

from trimwheel_api import names
from trimwheel_api.conditions import with_condition
from trimwheel_api.errors import SpecInvalid
from trimwheel_api.kinds import KINDS
from trimwheel_api.kinds.policy_rollout import GuardStatus
from trimwheel_operator.handlers import registry
from trimwheel_operator.informers import watched
from trimwheel_operator.metrics import OperatorMetrics
from trimwheel_operator.plan.actions import (
    Decided,
    Plan,
    Report,
    merge_patch,
)
from trimwheel_operator.plan.observed import Acknowledgement
from trimwheel_operator.raw import acknowledgement, held_since, of_epochs_until, tuning_job
from trimwheel_operator.settings import from_environment

JSON = st.recursive(
    st.integers() | st.text(max_size=3) | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=4)
    ),
    max_leaves=10,
)
OBJECTS = st.dictionaries(st.sampled_from("abcd"), JSON, max_size=4)


@given(before=OBJECTS, after=OBJECTS)
def test_a_merge_patch_leads_from_one_to_the_other(before: Any, after: Any) -> None:
    patch = merge_patch(before, after)
    assert merged(before, patch) == after
    assert (patch == {}) is (before == after)


@given(states=st.lists(st.sampled_from(["True", "False", "Unknown"]), min_size=1, max_size=8))
def test_a_transition_time_is_that_of_the_last_flip(states: list[Any]) -> None:
    conditions: list[Any] = []
    flipped, before = START, None
    for index, state in enumerate(states):
        now = START + timedelta(seconds=index)
        flipped = now if state != before else flipped
        before = state
        conditions = with_condition(
            conditions, "Ready", state, "Reason", "", now=now, generation=index
        )
    [ready] = conditions
    assert datetime.fromisoformat(ready.last_transition_time) == flipped


def test_a_hold_is_dated_by_whoever_else_wrote_it() -> None:
    fields = {"f:spec": {"f:hold": {}}}
    own = {"manager": names.FIELD_MANAGER, "time": "2026-01-03T00:00:00Z", "fieldsV1": fields}
    assignment = {
        "spec": {"hold": True},
        "metadata": {
            "managedFields": [
                own,
                {"manager": "kubectl", "time": "2026-01-02T00:00:00Z", "fieldsV1": fields},
                {"manager": "x", "time": "2026-01-04T00:00:00Z", "fieldsV1": {"f:spec": {}}},
            ]
        },
    }
    assert held_since(assignment) == datetime(2026, 1, 2, tzinfo=UTC)
    assert held_since({**assignment, "spec": {"hold": False}}) is None


def test_leases_and_jobs_are_read_by_what_they_say() -> None:
    lease = {
        "metadata": {"name": "w-0", "annotations": {names.ANNOTATION_EPOCH: "7"}},
        "spec": {"renewTime": "2026-01-01T00:00:00.5Z"},
    }
    found = acknowledgement(lease)
    assert found is not None and (found.pod, found.epoch) == ("w-0", 7)
    assert acknowledgement({"metadata": {"name": "w-0"}, "spec": {}}) is None
    condition = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}
    labels = {names.LABEL_TUNING_RUN_UID: "u"}
    job = {"metadata": {"name": "j", "uid": "x", "labels": labels},
           "status": {"conditions": [condition]}}  # fmt: skip
    assert tuning_job([], job).failed and tuning_job([], job).message == "BackoffLimitExceeded"


@pytest.mark.parametrize(
    ("kind", "namespace", "component", "model_namespace", "group"),
    [
        ("Lease", "team", "", "", "team"),
        ("Lease", "evil", "", "team", "evil"),
        ("Deployment", "evil", "worker", "team", "evil"),
        ("Pod", "team", "worker", "", "team"),
        ("Pod", "evil", "worker", "team", "evil"),
        ("Pod", "evil", "tuning", "team", "evil"),
        ("Pod", "trimwheel-system", "worker", "team", "trimwheel-system"),
        ("Pod", "trimwheel-system", "tuning", "team", "team"),
        ("Job", "trimwheel-system", "tuning", "team", "team"),
    ],
)
def test_labelled_objects_lead_back_to_a_model_of_their_own_namespace(
    kind: str, namespace: str, component: str, model_namespace: str, group: str
) -> None:
    """Only what a Job of ours is or runs says that its model is elsewhere."""
    labels = {
        names.LABEL_MODEL: "router",
        names.LABEL_COMPONENT: component,
        names.LABEL_MODEL_NAMESPACE: model_namespace,
    }
    [target] = [one for one in watched("trimwheel-system") if one.kind == kind]
    item = {"metadata": {"namespace": namespace, "labels": labels}}
    assert target.group(item) == (group, "router")


def test_who_speaks_of_an_epoch_that_nobody_wrote_says_nothing_of_this_one() -> None:
    said = [Acknowledgement(f"w-{epoch}", epoch, START) for epoch in (6, 7, 8, 9, 2**53)]
    assert [one.epoch for one in of_epochs_until(7, said)] == [6, 7, 8]


def test_settings_come_from_the_environment_and_name_a_bad_variable() -> None:
    found = from_environment({"TRIMWHEEL_SCRAPE_INTERVAL": "2s", "POD_UID": "u", "TRIMWHEEL_LEADER_SECONDS": "5"})  # fmt: skip  # noqa: E501
    assert (found.scrape_interval, found.identity, found.leader_seconds) == (2.0, "u", 5.0)
    with pytest.raises(SpecInvalid, match="TRIMWHEEL_RESYNC: must be a duration"):
        from_environment({"TRIMWHEEL_RESYNC": "soon"})


def test_gauges_end_when_no_rollout_is_left_to_speak_of_and_a_models_with_the_model() -> None:
    made, key = OperatorMetrics(), ("team", "router")
    guard = GuardStatus(name="errors", verdict="Pass", value="0.001", bound="0.002")

    def told() -> set[str]:
        lines = generate_latest(made.registry).decode().splitlines()
        return {line.split("{")[0] for line in lines if 'model="router"' in line}

    made.passed(key, Plan(report=Report(guards=(guard,))), 0.01)
    assert {"trimwheel_guard_verdict", "trimwheel_guard_value"} <= told()
    made.passed(key, Plan(), 0.01)
    assert not any(name.startswith("trimwheel_guard") for name in told())
    assert "trimwheel_rollout_weight_ratio" in told()
    made.gone(key)
    assert told() == set()


def test_no_handler_of_kopf_touches_users_objects_and_informers_watch_every_kind() -> None:
    app: Any = object()
    found: Any = registry(app)
    handled = {handler.selector.any_name for handler in found._watching.get_all_handlers()}
    assert handled == {"adaptivemodels"}
    assert {kind.name for kind in KINDS} <= {target.kind for target in watched("ns")}
    for other in (found._changing, found._spawning):
        assert not other.get_all_handlers()


def test_metrics_are_those_of_the_table() -> None:
    made = OperatorMetrics()
    report = Report(degraded=True, weight=2500)
    made.passed(("team", "router"), Plan((), decided=(Decided("Start", "Shadow"),), actuations=(0.2,), report=report), 0.1)  # fmt: skip  # noqa: E501
    value = made.registry.get_sample_value
    labels = {"model_namespace": "team", "model": "router"}
    assert (
        value("trimwheel_decisions_total", {**labels, "action": "Start", "reason": "Shadow"}) == 1
    )
    assert value("trimwheel_rollback_seconds_count", {}) == 1
    assert value("trimwheel_degraded", labels) == 1
    assert value("trimwheel_rollout_weight_ratio", labels) == 0.25
