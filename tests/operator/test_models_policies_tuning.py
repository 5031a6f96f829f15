"""Statuses of models and policies, the Jobs of TuningRuns, and what a bad spec gets."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trimwheel_api import names, worker_config
from trimwheel_api.errors import SetupFailed, SpecInvalid
from trimwheel_api.kinds import AdaptiveModel, TuningRun
from trimwheel_api.kinds.adaptive_model import Access
from trimwheel_api.names import Reason
from trimwheel_api.policy import DENSE
from trimwheel_api.times import to_text
from trimwheel_local.node.environment import expand
from trimwheel_operator import manifests
from trimwheel_operator.jobs import tuning_job
from trimwheel_operator.plan.actions import Ensure, WriteAssignment, WriteJournal
from trimwheel_operator.plan.observed import Cause, TuningJob
from trimwheel_operator.plan.validation import first_mistake, mistakes
from trimwheel_operator.raw import is_ours
from trimwheel_operator.settings import Settings, from_environment

World = Any
Document = dict[str, Any]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("spec.engine.deadline", {"engine": {"deadline": "1ms"}}),
        ("spec.objectives.maxDisagreement", {"objectives": {"maxDisagreement": "0"}}),
        ("spec.objectives.maxDisagreement", {"objectives": {"maxDisagreement": "0.2"}}),
        ("spec.objectives.confidence", {"objectives": {"confidence": "1"}}),
        ("spec.objectives.errorBudget", {"objectives": {"errorBudget": "0"}}),
        ("spec.objectives.latency.slo", {"objectives": {"latency": {"slo": "0s"}}}),
        ("spec.objectives.latency.budget", {"objectives": {"latency": {"budget": "1"}}}),
        ("spec.audits.alarmRate", {"audits": {"rate": "0.5", "alarmRate": "0.2"}}),
        ("spec.drift.block", {"drift": {"block": "10ms"}}),
        ("spec.rollout.alpha", {"rollout": {"alpha": "0"}}),
        ("spec.rollout.passMargin", {"rollout": {"passMargin": "0.5"}}),
        (
            "spec.rollout.steps[1].weight",
            {"rollout": {"steps": [{"weight": "5%"}, {"weight": "1%"}]}},
        ),
        (
            "spec.rollout.steps[0].maxDuration",
            {"rollout": {"steps": [{"weight": "0%", "hold": "1h", "maxDuration": "30m"}]}},
        ),
    ],
)
def test_a_bad_field_is_named_with_its_rule_and_value(
    world: World, field: str, change: Document
) -> None:
    before = dict(world.ensured), world.assignment
    world.model(replicas=7, **change)
    world.after(1).settle()
    stalled = world.of_model.condition(names.STALLED)
    assert (stalled.status, stalled.reason) == ("True", Reason.INVALID_SPEC)
    assert stalled.message.startswith(field + ": ") and ", but got " in stalled.message
    assert (dict(world.ensured), world.assignment) == before, "what was applied goes on"
    assert world.of_model.condition(names.READY).status == "False"


@pytest.mark.parametrize("name", ["Router", "1router", "my.router", "r" * 64])
def test_a_name_that_no_service_can_have_is_refused(world: World, name: str) -> None:
    model = world.observe().model
    bad = model.model_copy(update={"metadata": model.metadata.model_copy(update={"name": name})})
    found = first_mistake(bad)
    assert found is not None and found.field == "metadata.name"


def test_every_mistake_comes_with_a_remedy(world: World) -> None:
    world.model(
        engine={"deadline": "1ms"},
        objectives={"maxDisagreement": "0.2", "latency": {"slo": "0s"}},
        audits={"rate": "0.5", "alarmRate": "0.2"},
        drift={"block": "10ms"},
        rollout={
            "alpha": "0",
            "passMargin": "0.5",
            "steps": [{"weight": "5%", "hold": "1h", "maxDuration": "1h"}, {"weight": "1%"}],
        },
    )
    found = list(mistakes(world.observe().model))
    assert len(found) == 9
    assert all(one.remedy for one in found), [one.sentence() for one in found if not one.remedy]


def test_events_of_a_run_follow_the_writes_that_they_tell_of(world: World) -> None:
    world.tuning("t")
    kinds = [type(action).__name__ for action in world.look().actions]
    assert kinds[-3:] == ["CreateJob", "PatchStatus", "PostEvent"]


def test_the_defaults_of_the_kind_are_valid() -> None:
    model = AdaptiveModel.model_validate(
        {
            "metadata": {"name": "m", "namespace": "n"},
            "spec": {"model": {"uri": "models:/m/1", "digest": "sha256:" + "a" * 64}},
        }
    )
    assert list(mistakes(model)) == []


def test_readiness_does_not_flap_at_a_change_but_a_worker_left_behind_shows(world: World) -> None:
    world.silent.add("router-1")
    world.model(audits={"rate": "0.1"})
    world.after(1).settle()
    assert world.of_model.is_true(names.READY), "its lease has not run out"
    world.after(31).settle()
    ready = world.of_model.condition(names.READY)
    assert ready.status == "False" and "router-1" in ready.message


def test_a_refused_worker_object_stalls_the_model_and_holds_up_no_decision(
    promoted: World,
) -> None:
    """A policy engine refuses the new pods while audits show harm of what the old ones serve."""
    promoted.refusing["Deployment"] = "403 admission webhook denied the request"
    promoted.model(engine={"threads": 4})
    promoted.after(5).tuning("drift", reason="Harmful")
    promoted.report_drift("drift", "Harmful")
    first = promoted.look().actions
    assert isinstance(first[0], WriteJournal) and isinstance(first[1], WriteAssignment)
    assert promoted.assignment["stable"]["digest"] == DENSE.digest
    promoted.after(1).look()
    stalled = promoted.of_model.condition("Stalled")
    assert (stalled.status, stalled.reason) == ("True", Reason.APPLY_REFUSED)
    assert "Deployment router" in stalled.message and "webhook denied" in stalled.message
    assert promoted.of_model.condition("Ready").status == "False"
    promoted.refusing.clear()
    promoted.after(1).settle()
    assert promoted.of_model.condition("Stalled").status == "False"
    assert promoted.of_model.condition("Ready").status == "True"


@pytest.mark.parametrize(
    ("metadata", "ours"),
    [
        ({}, False),
        ({"labels": {"app.kubernetes.io/managed-by": "Helm"}}, False),
        ({"ownerReferences": [{"uid": "uid-of-another-model"}]}, False),
        ({"ownerReferences": [{"uid": "uid-AdaptiveModel-router"}]}, True),
        ({"labels": {"app.kubernetes.io/managed-by": "trimwheel-operator"}}, True),
    ],
)
def test_an_object_is_ours_when_the_model_owns_it_or_we_made_it(
    world: World, metadata: Document, ours: bool
) -> None:
    assert is_ours({"metadata": metadata}, world.observe().model) is ours


def test_somebody_elses_object_of_the_models_name_is_left_alone_and_stalls_the_model(
    new_world: Any,
) -> None:
    world = new_world()
    world.taken = {("Service", "router")}
    world.model(engine={"threads": 4})
    world.after(60)
    asked = {action.place for action in world.look().actions if isinstance(action, Ensure)}
    assert ("Service", "router") not in asked and ("Deployment", "router") in asked
    stalled = world.settle().of_model.condition("Stalled")
    assert (stalled.status, stalled.reason) == ("True", Reason.NAME_TAKEN)
    assert "there is a Service router" in stalled.message


def test_missing_workers_make_it_not_ready_and_not_reconciling(world: World) -> None:
    world.pods.remove("router-1")
    world.after(1).settle()
    ready = world.of_model.condition(names.READY)
    assert (ready.status, ready.reason) == ("False", Reason.WORKERS_NOT_READY)
    assert "1 of 2 workers" in ready.message
    assert not world.of_model.is_true(names.RECONCILING)


def test_transition_times_move_only_on_a_flip(world: World) -> None:
    before = world.of_model.condition(names.READY)
    world.model(replicas=2, audits={"rate": "0.03"})
    world.after(100).settle()
    after = world.of_model.condition(names.READY)
    assert after.last_transition_time == before.last_transition_time
    assert after.observed_generation == before.observed_generation + 1


def test_a_settled_model_is_left_alone(promoted: World) -> None:
    for seconds in (1, 30, 3600):
        assert promoted.after(seconds).look().actions == ()


# --- policies ----------------------------------------------------------------------------------


def test_a_policy_says_its_digest_and_where_it_serves(promoted: World) -> None:
    status = promoted.status("AdaptivePolicy", "good")
    assert status.digest == promoted.assignment["stable"]["digest"]
    assert [(one.model, one.arm) for one in status.active] == [("router", "stable")]
    for kind in (names.READY, names.CERTIFIED, names.ACTIVE):
        assert status.is_true(kind)


def test_an_invalid_policy_says_which_field(world: World) -> None:
    world.put(
        "AdaptivePolicy", "odd", {"model": "router", "policy": {"exit": {"thresholds": [0.5]}}}
    )
    world.after(1).settle()
    stalled = world.status("AdaptivePolicy", "odd").condition(names.STALLED)
    assert stalled.reason == Reason.POLICY_INVALID
    assert stalled.message.startswith("policy.exit.thresholds.0: ")


def test_thousands_of_policies_are_written_in_parts_and_hold_up_no_decision(world: World) -> None:
    for number in range(250):
        world.put("AdaptivePolicy", f"p{number}", {"model": "router", "policy": {}})
    written = []
    for _ in range(4):
        made = world.after(1).look()
        written.append(sum(getattr(one, "kind", "") == "AdaptivePolicy" for one in made.actions))
    assert written == [100, 100, 50, 0]
    assert world.after(1).look().next_look == world.settings.resync


# --- tuning ------------------------------------------------------------------------------------


def test_runs_of_a_model_become_jobs_one_after_another(world: World) -> None:
    world.tuning("first")
    world.after(1).tuning("second")
    world.after(1).settle()
    assert [job.run_uid for job in world.jobs.values()] == ["uid-TuningRun-first"]
    waiting = world.status("TuningRun", "second").condition(names.READY)
    assert waiting.message == "TuningRun first runs first"
    finish(world, "first", "Certified")
    world.after(1).settle()
    assert len(world.jobs) == 2


def finish(world: World, run: str, outcome: str) -> None:
    """Pipelines report, and the Job ends."""
    item = world.objects["TuningRun", run]
    item["status"] = {**item["status"], "outcome": outcome}
    world.touch(item)


def end_job(world: World, failed: bool, message: str = "") -> None:
    [(name, job)] = world.jobs.items()
    world.jobs[name] = TuningJob(name, job.uid, job.run_uid, True, failed, message)


@pytest.mark.parametrize(
    ("failed", "message", "said"),
    [
        (True, "DeadlineExceeded: too long", "DeadlineExceeded: too long"),
        (False, "", "its Job ended without an outcome"),
    ],
)
def test_a_job_that_ends_without_a_word_fails_its_run(
    world: World, failed: bool, message: str, said: str
) -> None:
    world.tuning("t")
    world.after(1).settle()
    end_job(world, failed, message)
    world.after(1).settle()
    status = world.status("TuningRun", "t")
    assert status.outcome == "Failed" and status.finished_at
    stalled = status.condition(names.STALLED)
    assert stalled.reason == Reason.JOB_FAILED and said in stalled.message
    assert "incumbent policy stays" in stalled.message


def test_what_pipelines_reported_is_not_overwritten(world: World) -> None:
    world.tuning("t")
    world.after(1).settle()
    finish(world, "t", "NothingCertified")
    end_job(world, failed=False)
    world.after(1).settle()
    assert world.status("TuningRun", "t").outcome == "NothingCertified"


def test_a_job_that_vanished_is_not_run_again(world: World) -> None:
    world.tuning("t")
    world.after(1).settle()
    world.jobs.clear()
    world.after(1).settle()
    assert world.jobs == {}
    assert "Job is gone" in world.status("TuningRun", "t").condition(names.STALLED).message


def test_a_crash_between_job_and_status_adopts_the_job(world: World) -> None:
    world.tuning("t")
    made = world.after(1).look(crash_after=None)
    creations = [action for action in made.actions if type(action).__name__ == "CreateJob"]
    assert len(creations) == 1
    world.objects["TuningRun", "t"]["status"] = {}
    world.after(1).settle()
    assert len(world.jobs) == 1 and world.status("TuningRun", "t").outcome == ""


def test_a_job_whose_run_was_deleted_is_deleted(world: World) -> None:
    world.tuning("t")
    world.after(1).settle()
    del world.objects["TuningRun", "t"]
    world.after(1).settle()
    assert world.jobs == {}


def run_in_progress(world: World, phase: str = "Searching") -> World:
    """A TuningRun whose Job has reported, as pipelines do."""
    world.tuning("t")
    world.after(1).settle()
    item = world.objects["TuningRun", "t"]
    condition = {
        "type": "Ready", "status": "False", "reason": "Running", "message": "12 trials",
        "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1,
    }  # fmt: skip
    item["status"] = {**item["status"], "phase": phase, "conditions": [condition]}
    world.touch(item)
    return world


@pytest.mark.parametrize("terminating", [True, False], ids=["being deleted", "deleted"])
def test_deleting_a_model_stops_its_jobs_and_the_runs_say_so(
    world: World, terminating: bool
) -> None:
    run_in_progress(world)
    if terminating:
        world.objects["AdaptiveModel", "router"]["metadata"]["deletionTimestamp"] = "2026-01-01"
    else:
        world.delete("AdaptiveModel", "router")
    world.after(1).settle()
    assert world.jobs == {}
    status = world.status("TuningRun", "t")
    assert (status.outcome, bool(status.finished_at)) == ("Stopped", True)
    stalled = status.condition(names.STALLED)
    assert stalled.reason == Reason.MODEL_DELETED
    assert stalled.message.startswith("AdaptiveModel router was deleted; Job tuning-")
    assert world.after(1).look().actions == ()


def test_a_model_made_again_under_its_name_does_not_inherit_a_job(world: World) -> None:
    run_in_progress(world)
    [(name, job)] = world.jobs.items()
    world.jobs[name] = replace(job, model_uid="uid-of-the-former")
    world.after(1).settle()
    assert world.jobs == {} and world.status("TuningRun", "t").outcome == "Stopped"


def test_a_run_of_a_model_that_is_not_there_yet_waits_for_it(world: World) -> None:
    world.delete("AdaptiveModel", "router")
    world.tuning("t")
    world.after(1).settle()
    status = world.status("TuningRun", "t")
    assert (status.outcome, status.condition(names.STALLED).reason) == ("", "ModelNotFound")
    world.model(model={"uri": "u", "digest": "sha256:" + "a" * 64})
    world.after(1).settle()
    assert len(world.jobs) == 1


def test_what_a_job_reported_is_the_jobs_while_it_runs(world: World) -> None:
    """Whatever its pod looks like meanwhile: the operator has nothing to add."""
    run_in_progress(world)
    before = world.status("TuningRun", "t")
    [(name, job)] = world.jobs.items()
    world.jobs[name] = replace(job, cause=Cause(Reason.POD_CANNOT_START, "pod x: OOMKilled"))
    world.after(30).settle()
    assert world.status("TuningRun", "t") == before


def test_a_job_whose_pod_cannot_start_says_why_in_its_run(world: World) -> None:
    world.tuning("t")
    world.after(1).settle()
    [(name, job)] = world.jobs.items()
    why = "pod tuning-x: container tune: ImagePullBackOff: Back-off pulling image"
    world.jobs[name] = replace(job, cause=Cause(Reason.POD_CANNOT_START, why))
    world.after(1).settle()
    ready = world.status("TuningRun", "t").condition(names.READY)
    assert (ready.reason, ready.message) == (Reason.POD_CANNOT_START, why)
    assert [one.message for one in world.events].count(why) == 1
    world.jobs[name] = job
    world.after(1).settle()
    assert world.status("TuningRun", "t").condition(names.READY).reason == Reason.RUNNING


@pytest.mark.parametrize(("seconds", "reason"), [(5, "Running"), (40, "PodsRefused")])
def test_a_job_without_a_pod_says_so_after_a_while(world: World, seconds: int, reason: str) -> None:
    world.tuning("t")
    world.after(1).settle()
    [(name, job)] = world.jobs.items()
    world.jobs[name] = replace(job, created=to_text(world.now), has_pod=False)
    world.after(seconds).settle()
    ready = world.status("TuningRun", "t").condition(names.READY)
    assert ready.reason == reason
    world.jobs.clear()
    world.after(1).settle()
    assert world.status("TuningRun", "t").outcome == "Failed", "that there was a Job is known"


# --- manifests ---------------------------------------------------------------------------------


def test_secrets_of_clients_and_tls_are_mounted_where_the_worker_looks(promoted: World) -> None:
    promoted.model(access={"tokensSecret": "trimwheel-clients", "tlsSecret": "trimwheel-tls"})
    state = promoted.observe()
    deployment = manifests.worker_objects(state.model, {"uid": "u"}, Settings())[-1]
    pod = deployment["spec"]["template"]["spec"]
    mounted = [one for one in pod["volumes"] if "secret" in one]
    secrets = {one["name"]: one["secret"]["secretName"] for one in mounted}
    assert secrets == {"tokens": "trimwheel-clients", "tls": "trimwheel-tls"}
    (worker,) = pod["containers"]
    paths = {mount["name"]: mount["mountPath"] for mount in worker["volumeMounts"]}
    env = {one["name"]: one.get("value") for one in worker["env"]}
    config = worker_config.from_environment({worker_config.ENVIRONMENT: env["TRIMWHEEL_WORKER"]})
    assert (config.tokens_path, config.tls_path) == (paths["tokens"], paths["tls"])
    assert [mount["name"] for mount in pod["initContainers"][0]["volumeMounts"]] == ["model"]


def test_probes_and_scrapes_go_to_a_port_that_clients_do_not_use(promoted: World) -> None:
    deployment = manifests.worker_objects(promoted.observe().model, {"uid": "u"}, Settings())[-1]
    template = deployment["spec"]["template"]
    (worker,) = template["spec"]["containers"]
    probes = {worker[name]["httpGet"]["port"] for name in ("startupProbe", "readinessProbe",
                                                            "livenessProbe")}  # fmt: skip
    scraped = int(template["metadata"]["annotations"]["prometheus.io/port"])
    service = manifests.worker_objects(promoted.observe().model, {"uid": "u"}, Settings())[3]
    assert probes == {scraped} == {names.WORKER_PROBES_PORT}
    assert [port["targetPort"] for port in service["spec"]["ports"]] == [names.WORKER_PORT]


@pytest.mark.parametrize("name", ["clients", "trimwheel-", "trimwheel-A", "x/trimwheel-a", ""])
def test_only_secrets_that_are_meant_for_workers_are_mounted(name: str) -> None:
    for field in ("tokensSecret", "tlsSecret"):
        with pytest.raises(ValidationError, match=field):
            Access.model_validate({field: name})


@pytest.mark.parametrize(
    ("told", "named"),
    [("", None), ("registry", [{"name": "registry"}]), ("a, b", [{"name": "a"}, {"name": "b"}])],
)
def test_workers_and_jobs_fetch_images_with_the_releases_secrets(
    promoted: World, told: str, named: Any
) -> None:
    settings = from_environment({"TRIMWHEEL_IMAGE_PULL_SECRETS": told})
    promoted.tuning("t")
    state = promoted.observe()
    deployment = manifests.worker_objects(state.model, {"uid": "u"}, settings)[-1]
    job = tuning_job(state.runs[0], "1h", settings)
    for one in (deployment, job):
        assert one["spec"]["template"]["spec"].get("imagePullSecrets") == named


def made(world: World, **settings: Any) -> dict[str, Document]:
    state = world.observe()
    objects = manifests.worker_objects(state.model, {"uid": "u"}, Settings(**settings))
    return {item["kind"]: item for item in objects}


def test_a_worker_is_told_everything_in_one_variable(world: World) -> None:
    pod = made(world, records_uri="s3://records")["Deployment"]["spec"]["template"]["spec"]
    [worker] = pod["containers"]
    env = {one["name"]: one.get("value") for one in worker["env"]}
    config = worker_config.from_environment({worker_config.ENVIRONMENT: env["TRIMWHEEL_WORKER"]})
    assert (config.model, config.namespace) == ("router", "team")
    assert config.records_uri == "s3://records"
    assert env["OMP_NUM_THREADS"] == "1"
    [fetch] = pod["initContainers"]
    assert fetch["args"][:2] == ["--uri", "models:/router/1"]


def test_credentials_of_stores_reach_workers_and_jobs_by_reference(promoted: World) -> None:
    """As the chart hands them on: an entry of `env` whose `valueFrom` names a Secret."""
    secret = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "records", "key": "secret"}}}
    told = {
        "TRIMWHEEL_WORKER_ENV": json.dumps([secret]),
        "TRIMWHEEL_JOB_ENV": json.dumps([secret | {"name": "RAY_AUTH_TOKEN"}]),
        "TRIMWHEEL_WORKER_ACCOUNT_ANNOTATIONS": json.dumps({"cloud.example/role": "reader"}),
    }
    promoted.tuning("t")
    state, settings = promoted.observe(), from_environment(told)
    objects = manifests.worker_objects(state.model, {"uid": "u"}, settings)
    account, pod = objects[0], objects[-1]["spec"]["template"]["spec"]
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["env"][-1] == secret
    assert account["metadata"]["annotations"]["cloud.example/role"] == "reader"
    [tune] = tuning_job(state.runs[0], "1h", settings)["spec"]["template"]["spec"]["containers"]
    assert tune["env"][-1] == secret | {"name": "RAY_AUTH_TOKEN"}


def test_a_job_gets_the_pod_that_the_chart_promises(promoted: World) -> None:
    pod = {"nodeSelector": {"pool": "batch"}, "priorityClassName": "batch"}
    resources = {"requests": {"cpu": "4"}, "limits": {"memory": "8Gi"}}
    told = {
        "TRIMWHEEL_JOB_POD": json.dumps(pod),
        "TRIMWHEEL_JOB_RESOURCES": json.dumps(resources),
        "TRIMWHEEL_MODEL_CACHE_CLAIM": "models",
    }
    promoted.tuning("t")
    [run] = promoted.observe().runs
    spec = tuning_job(run, "1h", from_environment(told))["spec"]["template"]["spec"]
    [tune] = spec["containers"]
    assert spec.items() >= pod.items() and tune["resources"] == resources
    cache = next(one["value"] for one in tune["env"] if one["name"] == "TRIMWHEEL_MODEL_CACHE")
    [mount] = [one for one in tune["volumeMounts"] if one["mountPath"] == cache]
    [volume] = [one for one in spec["volumes"] if one["name"] == mount["name"]]
    assert volume["persistentVolumeClaim"] == {"claimName": "models"}


def test_without_a_volume_no_job_is_told_of_a_folder_for_models(promoted: World) -> None:
    promoted.tuning("t")
    [run] = promoted.observe().runs
    spec = tuning_job(run, "1h", from_environment({}))["spec"]["template"]["spec"]
    assert [one["name"] for one in spec["volumes"]] == ["scratch"]
    assert "TRIMWHEEL_MODEL_CACHE" not in json.dumps(spec)


def test_variables_for_workers_that_are_no_json_are_named() -> None:
    with pytest.raises(SpecInvalid, match="TRIMWHEEL_WORKER_ENV: must be JSON"):
        from_environment({"TRIMWHEEL_WORKER_ENV": "- name: x"})


@pytest.mark.parametrize(
    ("field", "change", "restarts"),
    [
        ("rollout", {"approval": "Required", "alpha": "0.01"}, False),
        ("audits", {"rate": "0.3", "alarmRate": "0.4"}, False),
        ("drift", {"onHarm": "alert"}, False),
        ("tuning", {"trials": 3}, False),
        ("engine", {"threads": 2}, True),
        ("model", {"digest": "sha256:" + "c" * 64}, True),
        ("objectives", {"latency": {"slo": "1s"}}, True),
    ],
)
def test_pods_restart_only_for_what_a_process_must_be_started_with(
    world: World, field: str, change: Document, restarts: bool
) -> None:
    before = made(world)["Deployment"]["spec"]["template"]
    world.model(**{field: change})
    after = made(world)["Deployment"]["spec"]["template"]
    assert (before != after) is restarts


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": "a"}'])
def test_a_broken_configuration_of_a_worker_is_a_failed_setup(text: str) -> None:
    with pytest.raises(SetupFailed, match="TRIMWHEEL_WORKER"):
        worker_config.from_environment({worker_config.ENVIRONMENT: text})


def test_workers_may_read_their_own_assignment_and_no_other(world: World) -> None:
    [assignments, _] = made(world)["Role"]["rules"]
    assert assignments["resourceNames"] == ["router"]
    assert sorted(assignments["verbs"]) == ["get", "watch"]


def test_a_job_lives_in_the_release_and_points_back_by_labels() -> None:
    run = TuningRun.model_validate(
        {
            "metadata": {"name": "n" * 200, "namespace": "team", "uid": "0123456789ab"},
            "spec": {"model": "router"},
        }
    )
    settings = Settings(model_cache_claim="models")
    job = tuning_job(run, "1h", settings)
    labels = job["metadata"]["labels"]
    assert job["metadata"]["namespace"] == "trimwheel-system"
    assert "ownerReferences" not in job["metadata"]
    assert len(job["metadata"]["name"]) <= 63 and job["metadata"]["name"].startswith(
        "tuning-01234567-"
    )
    assert labels[names.LABEL_MODEL_NAMESPACE] == "team"
    assert all(len(value) <= 63 for value in labels.values())
    assert job["spec"]["activeDeadlineSeconds"] > 3600
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"configMapRef": {"name": "trimwheel-tuning"}}]
    assert {"name": "TRIMWHEEL_MODEL_CACHE", "value": "/var/run/trimwheel/models"} in container[
        "env"
    ]
    assert json.dumps(job)


@pytest.mark.parametrize("timeout", ["1h", "999999d", "999999999d999999999d"])
def test_no_deadline_overflows_in_a_job(promoted: World, timeout: str) -> None:
    """The Job controller counts nanoseconds in 64 bits: 292 years are "exceeded" at once."""
    promoted.tuning("t")
    job = tuning_job(promoted.observe().runs[0], timeout, Settings())
    deadline = job["spec"]["activeDeadlineSeconds"]
    assert 3600 < deadline < 2**31 and deadline * 10**9 < 2**63


@given(st.text(alphabet="$(){}AB_ /:", max_size=40))
def test_what_a_user_writes_is_never_expanded_by_the_kubelet(text: str) -> None:
    """`$(AWS_SECRET_ACCESS_KEY)` in a model's address would end in a request or a log."""
    assert expand(manifests.literal(text), {"A": "secret", "AB_": "secret", "B": "x"}) == text


def test_every_text_of_a_model_in_its_pods_is_literal(world: World) -> None:
    world.model(model={"uri": "models:/$(A)", "digest": "sha256:" + "a" * 64})
    pod = made(world)["Deployment"]["spec"]["template"]["spec"]
    variables = [one.get("value", "") for one in pod["containers"][0]["env"]]
    texts = [*pod["initContainers"][0]["args"], *variables]
    assert "models:/$$(A)" in texts
    assert not any("secret" in expand(text, {"A": "secret"}) for text in texts)
