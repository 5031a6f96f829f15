"""Who may ask for what: rollouts, certificates, alarms, and the approval rule of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trimwheel_api import names
from trimwheel_api.kinds.tuning_run import ALARM_REASONS
from trimwheel_api.names import RELEASE_NAMESPACE

pytestmark = pytest.mark.cluster

Case = Callable[[Any], Any]
PIPELINES = names.service_account_user(RELEASE_NAMESPACE, names.PIPELINES_ACCOUNT)
TUNING = names.service_account_user(RELEASE_NAMESPACE, names.TUNING_ACCOUNT)
OPERATOR = names.service_account_user(RELEASE_NAMESPACE, names.OPERATOR_ACCOUNT)


def asks(who: tuple[str, ...], requested_by: str | None = None, **spec: Any) -> Case:
    """A person with roles creates a rollout."""

    def attempt(stage: Any) -> Any:
        person = stage.person(*who)
        return person.create(stage.rollout("r", requested_by or who[0], **spec))

    return attempt


def asks_with_rollback_on_another_model(stage: Any) -> Any:
    rule = {"apiGroups": [names.GROUP], "resources": ["adaptivemodels"], "verbs": ["rollback"]}
    stage.role("other", [{**rule, "resourceNames": ["other"]}])
    person = stage.person("rita", "edit", "Role/other")
    return person.create(stage.rollout("r", "rita", type="Rollback"))


def a_job_asks(**spec: Any) -> Case:
    return lambda stage: stage.tuning_job.create(stage.rollout("r", TUNING, **spec))


EDITOR = ("eve", "edit")
ROLLOUTS_REFUSED: dict[str, tuple[Case, str]] = {
    "in another person's name": (asks(EDITOR, "anna"), "spec.requestedBy is anna but you are eve"),
    "in the Jobs' name": (asks(EDITOR, TUNING), "but you are eve"),
    "as Rollback without verb rollback": (
        asks(EDITOR, type="Rollback"), "eve lacks verb rollback on adaptivemodels/m",
    ),
    "as Rollback with the verb on another model": (
        asks_with_rollback_on_another_model, "rita lacks verb rollback on adaptivemodels/m",
    ),
    "uncertified without verb waive": (
        asks(EDITOR, allowUncertified=True), "eve lacks verb waive on adaptivemodels/m",
    ),
    "uncertified, by a holder of rollback": (
        asks(("rita", "edit", "trimwheel-rollback"), allowUncertified=True), "lacks verb waive",
    ),
    "uncertified, by a Job": (a_job_asks(allowUncertified=True), "lacks verb waive"),
    "as Rollback by a Job": (a_job_asks(type="Rollback"), "lacks verb rollback"),
}  # fmt: skip

ROLLOUTS_ALLOWED: dict[str, Case] = {
    "by an editor in the editor's name": asks(EDITOR),
    "by a Job": a_job_asks(),
    "as Rollback by a holder of the verb, without edit": asks(
        ("rita", "trimwheel-rollback"), type="Rollback", policy=""
    ),
    "uncertified by an editor who holds waive": asks(
        ("walt", "edit", "trimwheel-waiver"), allowUncertified=True
    ),
}


@pytest.mark.parametrize("name", ROLLOUTS_REFUSED)
def test_the_api_server_refuses_a_rollout(stage: Any, name: str) -> None:
    attempt, words = ROLLOUTS_REFUSED[name]
    answer = attempt(stage)
    assert answer.policy == "trimwheel-rollouts", answer
    assert words in answer.message


@pytest.mark.parametrize("name", ROLLOUTS_ALLOWED)
def test_the_api_server_accepts_a_rollout(stage: Any, name: str) -> None:
    answer = ROLLOUTS_ALLOWED[name](stage)
    assert answer.allowed, answer.message


def test_operator_and_loop_cannot_ask_for_a_rollout(stage: Any) -> None:
    assert stage.operator.create(stage.rollout("r", OPERATOR)).rbac
    assert stage.pipelines.create(stage.rollout("r", PIPELINES)).rbac


@pytest.mark.parametrize("who", ["eve", "nadia"])
def test_who_asked_cannot_be_rewritten_later(stage: Any, who: str) -> None:
    """Four eyes would be worth nothing if the requester could be changed afterwards."""
    editor = stage.person("eve", "edit") if who == "eve" else stage.wildcard()
    assert editor.create(stage.rollout("r", who)).allowed
    answer = editor.patch("PolicyRollout", "r", {"spec": {"requestedBy": "somebody"}})
    assert answer.code == 422
    assert "spec.requestedBy is immutable" in answer.message


def test_an_editor_pauses_and_aborts_a_rollout_of_others(stage: Any) -> None:
    stage.requested()
    editor = stage.person("eve", "edit")
    assert editor.patch("PolicyRollout", "r", {"spec": {"paused": True}}).allowed
    assert editor.patch("PolicyRollout", "r", {"spec": {"abort": True}}).allowed
    taken_back = editor.patch("PolicyRollout", "r", {"spec": {"abort": False}})
    assert "spec.abort cannot be taken back" in taken_back.message


# --- certificates -----------------------------------------------------------------------------
def test_a_certificate_without_verb_certify_is_refused(stage: Any) -> None:
    editor = stage.person("eve", "edit")
    answer = editor.create(stage.policy(certificate=stage.certificate()))
    assert answer.policy == "trimwheel-certificates", answer
    assert "eve lacks verb certify on adaptivemodels/m" in answer.message


def test_no_shipped_role_for_people_certifies(stage: Any) -> None:
    roles = ("edit", "admin", "trimwheel-approver", "trimwheel-waiver", "trimwheel-rollback")
    everything_shipped = stage.person("eve", *roles)
    answer = everything_shipped.create(stage.policy(certificate=stage.certificate()))
    assert answer.policy == "trimwheel-certificates"


def test_a_job_certifies_and_anybody_may_write_a_policy_without_certificate(stage: Any) -> None:
    certified = stage.policy(certificate=stage.certificate())
    assert stage.pipelines.create(certified).rbac
    answer = stage.tuning_job.create(certified)
    assert answer.allowed, answer.message
    assert stage.person("eve", "edit").create(stage.policy("by-hand")).allowed


def test_a_certificate_cannot_be_added_later(stage: Any) -> None:
    editor = stage.person("eve", "edit")
    assert editor.create(stage.policy()).allowed
    added = editor.patch("AdaptivePolicy", "p", {"spec": {"certificate": stage.certificate()}})
    assert added.code == 422
    assert "spec is immutable" in added.message


# --- alarms -----------------------------------------------------------------------------------
@pytest.mark.parametrize("reason", ALARM_REASONS)
@pytest.mark.parametrize("who", ["editor", "administrator"])
def test_an_alarm_by_a_person_is_refused(stage: Any, who: str, reason: str) -> None:
    person = stage.person("eve", "edit") if who == "editor" else stage.root
    answer = person.create(stage.tuning(reason=reason))
    assert answer.policy == "trimwheel-alarms", answer
    assert f"spec.reason {reason} is given by the pipelines alone" in answer.message


@pytest.mark.parametrize("reason", ALARM_REASONS)
def test_an_alarm_by_the_loop_alone_passes(stage: Any, reason: str) -> None:
    run = stage.tuning(reason=reason, requestedBy=PIPELINES)
    assert stage.pipelines.create(run).allowed
    assert stage.tuning_job.create(stage.tuning("by-a-job", reason=reason)).rbac


def test_a_person_tunes_by_hand_and_cannot_turn_it_into_an_alarm(stage: Any) -> None:
    editor = stage.person("eve", "edit")
    made = editor.create(stage.tuning(requestedBy="eve"))
    assert made.body["spec"]["reason"] == "Manual"
    turned = editor.patch("TuningRun", "t", {"spec": {"reason": "Harmful"}})
    assert "spec is immutable" in turned.message


@pytest.mark.parametrize("given", [{"requestedBy": "anna"}, {"requestedBy": None}])
@pytest.mark.parametrize("who", ["editor", "administrator"])
def test_nobody_asks_for_a_run_in_anothers_name_or_in_none(
    stage: Any, who: str, given: dict[str, str | None]
) -> None:
    person = stage.person("eve", "edit") if who == "editor" else stage.root
    body = stage.tuning(**given)
    body["spec"] = {key: value for key, value in body["spec"].items() if value is not None}
    answer = person.create(body)
    assert answer.policy == "trimwheel-alarms", answer
    name = "eve" if who == "editor" else "admin"
    assert f"but you are {name}: set it to that name" in answer.message
    assert person.create(stage.tuning(requestedBy=name)).allowed
    rewritten = person.patch("TuningRun", "t", {"spec": {"requestedBy": "anna"}})
    assert "spec is immutable" in rewritten.message


@pytest.mark.parametrize("who", ["editor", "administrator"])
def test_on_behalf_of_is_the_jobs_to_set(stage: Any, who: str) -> None:
    person = stage.person("eve", "edit") if who == "editor" else stage.root
    name = "eve" if who == "editor" else "admin"
    answer = person.create(stage.rollout("r", name, onBehalfOf="anna"))
    assert answer.policy == "trimwheel-rollouts", answer
    assert "spec.onBehalfOf is set by TuningRun Jobs alone" in answer.message
    assert stage.tuning_job.create(stage.rollout("r", TUNING, onBehalfOf="anna")).allowed
    for changed in ("somebody", None):
        rewritten = person.patch("PolicyRollout", "r", {"spec": {"onBehalfOf": changed}})
        assert "spec.onBehalfOf is immutable" in rewritten.message


# --- the approval rule ------------------------------------------------------------------------
def test_a_model_without_approval_needs_waive_from_the_start(stage: Any) -> None:
    editor = stage.person("eve", "edit")
    answer = editor.create(stage.model(approval="Automatic"))
    assert answer.policy == "trimwheel-models", answer
    assert "eve lacks verb waive on adaptivemodels/m" in answer.message
    walt = stage.person("walt", "edit", "trimwheel-waiver")
    assert walt.create(stage.model(approval="Automatic")).allowed


def test_weakening_the_rule_later_needs_waive(stage: Any) -> None:
    editor = stage.person("eve", "edit")
    assert editor.create(stage.model()).allowed
    weaker = {"spec": {"rollout": {"approval": "Automatic"}}}
    answer = editor.patch("AdaptiveModel", "m", weaker)
    assert answer.policy == "trimwheel-models", answer
    walt = stage.person("walt", "edit", "trimwheel-waiver")
    assert walt.patch("AdaptiveModel", "m", weaker).allowed
    # Whoever edits something else afterwards keeps the rule, and may strengthen it.
    assert editor.patch("AdaptiveModel", "m", {"spec": {"replicas": 2}}).allowed
    assert editor.patch("AdaptiveModel", "m", {"spec": {"rollout": None}}).allowed
    assert editor.patch("AdaptiveModel", "m", weaker).policy == "trimwheel-models"


def test_deleting_and_creating_a_model_again_is_no_way_around_the_rule(stage: Any) -> None:
    editor = stage.person("eve", "edit")
    assert editor.create(stage.model()).allowed
    assert editor.delete("AdaptiveModel", "m").allowed
    assert editor.create(stage.model(approval="Automatic")).policy == "trimwheel-models"


# --- the release's namespace ------------------------------------------------------------------
def test_an_editor_of_a_models_namespace_does_not_reach_the_release(stage: Any) -> None:
    editor = stage.person("eve", "edit")
    release = f"/api/v1/namespaces/{RELEASE_NAMESPACE}"
    assert editor.call("GET", f"{release}/secrets").rbac
    for account in (names.PIPELINES_ACCOUNT, names.TUNING_ACCOUNT, names.OPERATOR_ACCOUNT):
        token = f"{release}/serviceaccounts/{account}/token"
        assert editor.call("POST", token, {"spec": {}}).rbac
        editor.http.headers["Impersonate-User"] = names.service_account_user(
            RELEASE_NAMESPACE, account
        )
        answer = editor.create(stage.tuning(reason="Harmful"))
        assert answer.rbac and "impersonate" in answer.message


def test_an_editor_is_any_account_of_the_models_namespace(stage: Any) -> None:
    """The boundary that the design states: why nothing that decides may live there."""
    editor = stage.person("eve", "edit")
    stage.account("m-trimwheel-worker")
    accounts = f"/api/v1/namespaces/{stage.namespace}/serviceaccounts/m-trimwheel-worker"
    assert editor.call("POST", f"{accounts}/token", {"spec": {}}).allowed
