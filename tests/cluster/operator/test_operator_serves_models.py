"""A model is declared, and the real API server, controllers and operator do the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trimwheel_api import names
from trimwheel_local.testing import Clients, eventually

pytestmark = pytest.mark.cluster
MODEL = "router"


def test_a_model_becomes_ready_dense_and_gets_its_worker_objects(
    team: Any, operator: Callable[..., Any], admin: Clients, dense: str
) -> None:
    operator()
    team.model()
    team.becomes("AdaptiveModel", MODEL, names.READY)
    status = team.get("AdaptiveModel", MODEL)["status"]
    assert status["stable"]["digest"] == dense
    assert status["endpoint"].startswith("http://127.")
    assert team.assignment["epoch"] == 1
    deployment = admin.apps.read_namespaced_deployment(MODEL, team.namespace)
    strategy = deployment.spec.strategy.rolling_update
    assert (strategy.max_surge, strategy.max_unavailable) == (1, 0)
    assert deployment.metadata.owner_references[0].kind == "AdaptiveModel"


def test_what_somebody_changed_by_hand_is_put_back(
    team: Any, operator: Callable[..., Any], admin: Clients
) -> None:
    operator()
    team.model()
    team.becomes("AdaptiveModel", MODEL, names.READY)
    admin.core.delete_namespaced_service(MODEL, team.namespace)
    patch = {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 77}}}}
    admin.apps.patch_namespaced_deployment(MODEL, team.namespace, patch)

    def restored() -> bool:
        services = admin.core.list_namespaced_service(team.namespace).items
        pod = admin.apps.read_namespaced_deployment(MODEL, team.namespace).spec.template.spec
        return bool(services) and pod.termination_grace_period_seconds == 30

    eventually(restored, "Service and Deployment as declared", 30)


def test_an_invalid_spec_is_named_and_the_last_good_one_keeps_serving(
    team: Any, operator: Callable[..., Any], admin: Clients
) -> None:
    operator()
    team.model()
    team.becomes("AdaptiveModel", MODEL, names.READY)
    before = admin.apps.read_namespaced_deployment(MODEL, team.namespace)
    team.change("AdaptiveModel", MODEL, engine={"deadline": "1ms"})
    stalled = team.becomes("AdaptiveModel", MODEL, names.STALLED)
    assert stalled["reason"] == "InvalidSpec"
    assert "spec.engine.deadline" in stalled["message"] and "'1ms'" in stalled["message"]
    after = admin.apps.read_namespaced_deployment(MODEL, team.namespace)
    # Not the resourceVersion: controllers write the status when they like.
    assert after.metadata.generation == before.metadata.generation
    team.change("AdaptiveModel", MODEL, engine={"deadline": "2s"})
    team.becomes("AdaptiveModel", MODEL, names.STALLED, "False")


def test_somebody_elses_service_of_the_models_name_is_not_taken_over(
    team: Any, operator: Callable[..., Any], admin: Clients
) -> None:
    theirs = {"metadata": {"name": MODEL}, "spec": {"ports": [{"port": 9999}]}}
    before = admin.core.create_namespaced_service(team.namespace, theirs)
    operator()
    team.model()
    stalled = team.becomes("AdaptiveModel", MODEL, names.STALLED)
    assert stalled["reason"] == "NameTaken" and "Service router" in stalled["message"]
    after = admin.core.read_namespaced_service(MODEL, team.namespace)
    assert after.spec == before.spec and after.metadata.labels is None
    admin.core.delete_namespaced_service(MODEL, team.namespace)
    team.becomes("AdaptiveModel", MODEL, names.READY)
    assert admin.core.read_namespaced_service(MODEL, team.namespace).metadata.labels


def test_deleting_the_model_removes_all_that_it_owned(
    team: Any, operator: Callable[..., Any], admin: Clients
) -> None:
    operator()
    team.model()
    team.becomes("AdaptiveModel", MODEL, names.READY)
    admin.custom.delete_namespaced_custom_object(
        names.GROUP, names.VERSION, team.namespace, "adaptivemodels", MODEL
    )

    def gone() -> bool:
        left: list[Any] = admin.apps.list_namespaced_deployment(team.namespace).items
        left += admin.core.list_namespaced_service(team.namespace).items
        left += admin.custom.list_namespaced_custom_object(
            names.GROUP, names.VERSION, team.namespace, "policyassignments"
        )["items"]
        return not left

    eventually(gone, "children are collected", 30)


def test_users_objects_are_left_alone(team: Any, operator: Callable[..., Any]) -> None:
    operator()
    team.model()
    team.becomes("AdaptiveModel", MODEL, names.READY)
    metadata = team.get("AdaptiveModel", MODEL)["metadata"]
    assert metadata["generation"] == 1
    assert "finalizers" not in metadata and "annotations" not in metadata


def test_runs_become_jobs_one_at_a_time_and_a_lost_job_is_reported(
    team: Any, operator: Callable[..., Any], admin: Clients, release: str
) -> None:
    operator(TRIMWHEEL_JOB_POD='{"nodeSelector": {"no": "such-node"}}')
    team.model()
    team.create("TuningRun", "t1", {"model": MODEL, "requestedBy": "admin"})

    def jobs_of(run: str) -> list[Any]:
        uid = team.get("TuningRun", run)["metadata"]["uid"]
        selector = f"{names.LABEL_TUNING_RUN_UID}={uid}"
        found: list[Any] = admin.batch.list_namespaced_job(release, label_selector=selector).items
        return found

    [job] = eventually(lambda: jobs_of("t1"), "the Job of t1", 30)
    assert job.metadata.owner_references is None, "owners in another namespace are collected"
    assert job.spec.template.spec.service_account_name == names.TUNING_ACCOUNT
    team.create("TuningRun", "t2", {"model": MODEL, "requestedBy": "admin"})
    waiting = team.becomes("TuningRun", "t2", names.RECONCILING)
    assert waiting["message"] == "TuningRun t1 runs first" and not jobs_of("t2")
    admin.batch.delete_namespaced_job(job.metadata.name, release, propagation_policy="Background")
    stalled = team.becomes("TuningRun", "t1", names.STALLED)
    assert stalled["reason"] == "JobFailed" and "incumbent policy stays" in stalled["message"]
    assert team.get("TuningRun", "t1")["status"]["outcome"] == "Failed"
    eventually(lambda: jobs_of("t2"), "the Job of t2", 30)
    admin.custom.delete_namespaced_custom_object(
        names.GROUP, names.VERSION, team.namespace, "tuningruns", "t2"
    )
    selector = f"{names.LABEL_MODEL_NAMESPACE}={team.namespace}"
    eventually(
        lambda: all(
            one.metadata.deletion_timestamp
            for one in admin.batch.list_namespaced_job(release, label_selector=selector).items
        ),
        "a Job without its run is deleted",
        30,
    )
