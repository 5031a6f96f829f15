"""Why workers do not start, as people see it: the real node, scheduler, quota and controllers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.cluster.operator.team import MODEL, MODEL_DIGEST

from trimwheel_api import names
from trimwheel_local.testing import Clients, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
GONE = {"uri": "file:///nowhere/at/all", "digest": MODEL_DIGEST}
QUOTA = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}

CASES: dict[str, tuple[dict[str, str], dict[str, Any], Any, str, str]] = {
    "a model that is nowhere": (
        {"TRIMWHEEL_ALLOWED_PREFIXES": "file:///"},
        {"model": GONE}, None, "PodCannotStart", "/nowhere/at/all",
    ),
    "a prefix that is not allowed": (
        {"TRIMWHEEL_ALLOWED_PREFIXES": "models:/"},
        {"model": GONE}, None, "PodCannotStart", "container fetch ended with exit code",
    ),
    "a quota without pods": (
        {}, {}, QUOTA, "PodsRefused", "exceeded quota: none",
    ),
    "more processors than any node has": (
        {}, {"resources": {"requests": {"cpu": "5000"}}}, None,
        "PodUnschedulable", "Insufficient cpu",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_cause_is_in_a_condition_and_an_event_of_the_model(
    team: Any, operator: Callable[..., Any], admin: Clients, case: str
) -> None:
    environment, spec, quota, reason, words = CASES[case]
    if quota:
        admin.core.create_namespaced_resource_quota(team.namespace, quota)
    operator(**environment)
    team.model(replicas=1, **spec)

    def ready() -> dict[str, Any] | None:
        found: dict[str, Any] = team.condition("AdaptiveModel", MODEL, names.READY)
        return found if found.get("reason") == reason else None

    condition = eventually(ready, f"Ready says {reason}", 60)
    assert condition is not None and condition["status"] == "False"
    assert condition["message"].startswith("0 of 1 workers are ready: ")
    assert words in condition["message"], condition["message"]

    def told() -> bool:
        events = admin.core.list_namespaced_event(team.namespace).items
        about = [one for one in events if one.involved_object.kind == "AdaptiveModel"]
        return any(one.reason == reason and words in one.message for one in about)

    eventually(told, f"an Event says {reason}", 20)


def test_a_quota_that_refuses_the_pod_of_a_job_is_told_in_its_run(
    team: Any, operator: Callable[..., Any], admin: Clients, release: str
) -> None:
    operator()
    team.model()
    admin.core.create_namespaced_resource_quota(release, QUOTA)
    try:
        team.create("TuningRun", "crowded", {"model": MODEL, "requestedBy": "admin"})

        def why() -> bool:
            found: dict[str, Any] = team.condition("TuningRun", "crowded", names.READY)
            return found.get("reason") == "PodsRefused" and "has no pod" in found["message"]

        eventually(why, "the run says that its Job has no pod", 60)
    finally:
        admin.core.delete_namespaced_resource_quota("none", release)


def test_deleting_a_model_stops_the_job_of_a_run_that_somebody_made(
    team: Any, operator: Callable[..., Any], admin: Clients, release: str
) -> None:
    """A run made by hand has no owner that would take it along."""
    operator()
    team.model()
    team.create("TuningRun", "by-hand", {"model": MODEL, "requestedBy": "admin"})
    selector = f"{names.LABEL_MODEL_NAMESPACE}={team.namespace}"

    def jobs() -> list[Any]:
        found: list[Any] = admin.batch.list_namespaced_job(release, label_selector=selector).items
        return [one for one in found if not one.metadata.deletion_timestamp]

    eventually(jobs, "its Job", 30)

    admin.custom.delete_namespaced_custom_object(
        names.GROUP, names.VERSION, team.namespace, "adaptivemodels", MODEL
    )
    eventually(lambda: not jobs(), "its Job is deleted", 30)
    stalled = team.becomes("TuningRun", "by-hand", names.STALLED)
    assert (stalled["reason"], team.get("TuningRun", "by-hand")["status"]["outcome"]) == (
        "ModelDeleted", "Stopped",
    )  # fmt: skip
