"""Who may decide on a rollout, and on what: every hole in the way of an approval, tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trimwheel_api import names
from trimwheel_api.names import RELEASE_NAMESPACE

pytestmark = pytest.mark.cluster

CLERK = [{"apiGroups": [names.GROUP], "resources": ["policyapprovals"], "verbs": ["create"]}]
OTHER_DIGEST = "sha256:" + "b" * 64

Case = Callable[[Any], Any]
"""Sets the stage; returns who tries, and the approval."""


def by_approver(approver: str = "anna", **wrong: str) -> Case:
    def attempt(stage: Any) -> Any:
        anna = stage.person("anna", "trimwheel-approver")
        return anna, stage.approval(stage.waiting(), approver, **wrong)

    return attempt


def without_the_verb(stage: Any) -> Any:
    stage.role("clerk", CLERK)
    clerk = stage.person("carl", "Role/clerk")
    return clerk, stage.approval(stage.waiting(), "carl")


def with_the_verb_on_another_rollout(stage: Any) -> Any:
    one = {"apiGroups": [names.GROUP], "resources": ["policyrollouts"], "resourceNames": ["other"]}
    stage.role("clerk", [*CLERK, {**one, "verbs": ["approve"]}])
    clerk = stage.person("carl", "Role/clerk")
    return clerk, stage.approval(stage.waiting(), "carl")


def by_the_operator(stage: Any) -> Any:
    operator = names.service_account_user(RELEASE_NAMESPACE, names.OPERATOR_ACCOUNT)
    return stage.operator, stage.approval(stage.waiting(), operator)


def by_an_account_with_the_verb(stage: Any) -> Any:
    robot = stage.account("robot", "trimwheel-approver")
    user = names.service_account_user(stage.namespace, "robot")
    return robot, stage.approval(stage.waiting(), user)


def of_ones_own_rollout(stage: Any) -> Any:
    anna = stage.person("anna", "trimwheel-approver", "edit")
    asked = anna.create(stage.rollout("r", "anna")).body
    stage.await_approval(asked)
    return anna, stage.approval(asked, "anna")


def of_a_run_that_one_asked_for(stage: Any) -> Any:
    anna = stage.person("anna", "trimwheel-approver", "edit")
    return anna, stage.approval(stage.await_approval(stage.requested(onBehalfOf="anna")), "anna")


def of_ones_own_as_administrator(stage: Any) -> Any:
    asked = stage.root.create(stage.rollout("r", "admin")).body
    stage.await_approval(asked)
    return stage.root, stage.approval(asked, "admin")


def before_anybody_asks(stage: Any) -> Any:
    anna = stage.person("anna", "trimwheel-approver")
    return anna, stage.approval(stage.requested(), "anna")


def after_the_question_was_withdrawn(stage: Any) -> Any:
    anna = stage.person("anna", "trimwheel-approver")
    asked = stage.waiting()
    condition = {**asked["status"]["conditions"][0], "status": "False"}
    withdrawn = {"status": {"conditions": [condition]}}
    assert stage.operator.patch("PolicyRollout", "r", withdrawn, "status").allowed
    return anna, stage.approval(asked, "anna")


def of_a_namesake(stage: Any) -> Any:
    """Deleted and created again under the same name, with the uid of the first."""
    anna = stage.person("anna", "trimwheel-approver")
    first = stage.waiting()
    assert stage.pipelines.delete("PolicyRollout", "r").allowed
    stage.waiting()
    return anna, stage.approval(first, "anna")


def where_nothing_is_rolled_out(stage: Any) -> Any:
    anna = stage.person("anna", "trimwheel-approver")
    ghost = stage.rollout("r", "somebody")
    ghost["metadata"]["uid"] = "none"
    return anna, stage.approval(ghost, "anna")


REFUSED: dict[str, tuple[Case, str, str]] = {
    "without verb approve": (without_the_verb, "trimwheel-approvers", "carl lacks verb approve"),
    "with verb approve on another rollout alone": (
        with_the_verb_on_another_rollout, "trimwheel-approvers", "carl lacks verb approve",
    ),
    "by the operator's own account": (
        by_the_operator, "", "cannot create resource",
    ),
    "by a service account that holds approve": (
        by_an_account_with_the_verb, "trimwheel-approvers", "robot is a service account",
    ),
    "in another person's name": (
        by_approver(approver="boss"), "trimwheel-approvers", "is boss but you are anna",
    ),
    "of another digest": (
        by_approver(policyDigest=OTHER_DIGEST), "trimwheel-approvals", "spec.policyDigest is",
    ),
    "of another uid": (
        by_approver(rolloutUID="1234"), "trimwheel-approvals", "spec.rolloutUID is 1234",
    ),
    "of a deleted rollout's namesake": (of_a_namesake, "trimwheel-approvals", "rolloutUID"),
    "of one's own rollout": (
        of_ones_own_rollout, "trimwheel-approvals", "must differ from the rollout's",
    ),
    "of what a TuningRun that one asked for found": (
        of_a_run_that_one_asked_for, "trimwheel-approvals", "rollout's spec.onBehalfOf",
    ),
    "of one's own rollout as cluster administrator": (
        of_ones_own_as_administrator, "trimwheel-approvals", "must differ from the rollout's",
    ),
    "before the operator asks": (
        before_anybody_asks, "trimwheel-approvals", "is not AwaitingApproval",
    ),
    "after the operator stopped asking": (
        after_the_question_was_withdrawn, "trimwheel-approvals", "is not AwaitingApproval",
    ),
    "where there is no rollout at all": (
        where_nothing_is_rolled_out, "trimwheel-approvals", "no params found",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_the_api_server_refuses_an_approval(stage: Any, name: str) -> None:
    attempt, policy, words = REFUSED[name]
    actor, approval = attempt(stage)

    def refused(answer: Any) -> bool:
        return answer.policy == policy and words in answer.message

    tried = stage.settle(lambda: actor.create(approval, dryRun="All"), refused)
    assert refused(tried), tried
    assert refused(actor.create(approval)), f"an approval {name} went through"


def test_a_holder_of_approve_approves_what_awaits_it(stage: Any) -> None:
    anna = stage.person("anna", "trimwheel-approver")
    approval = stage.approval(stage.waiting(), "anna", reason="all guards pass")
    answer = stage.approve(anna, approval)
    assert answer.allowed, answer.message
    assert answer.body["spec"]["approver"] == "anna"


def test_the_right_approval_passes_beside_many_other_rollouts(stage: Any) -> None:
    for number in range(5):
        stage.requested(f"finished-{number}", policyDigest=OTHER_DIGEST)
    anna = stage.person("anna", "trimwheel-approver")
    assert stage.approve(anna, stage.approval(stage.waiting(), "anna")).allowed


@pytest.mark.parametrize("asked_by", ["pipelines", "herself"])
def test_rejecting_needs_the_verb_but_no_question_and_no_second_person(
    stage: Any, asked_by: str
) -> None:
    anna = stage.person("anna", "trimwheel-approver", "edit")
    asked = stage.requested() if asked_by == "pipelines" else None
    asked = asked or anna.create(stage.rollout("r", "anna")).body
    rejected = stage.approve(anna, stage.approval(asked, "anna", decision="Reject"))
    assert rejected.allowed, rejected.message
    stage.role("clerk", CLERK)
    refused = stage.person("carl", "Role/clerk").create(
        stage.approval(asked, "carl", decision="Reject")
    )
    assert refused.policy == "trimwheel-approvers"


@pytest.mark.parametrize("role", ["view", "edit", "admin", "trimwheel-rollback"])
def test_no_other_role_can_even_create_an_approval(stage: Any, role: str) -> None:
    someone = stage.person("someone", role)
    assert someone.create(stage.approval(stage.waiting(), "someone")).rbac


def test_an_editor_as_a_service_account_of_the_namespace_is_still_no_person(stage: Any) -> None:
    """`edit` may impersonate the namespace's accounts: they can do no more than their owner."""
    stage.account("robot", "trimwheel-approver")
    editor = stage.person("eve", "edit")
    robot = names.service_account_user(stage.namespace, "robot")
    body = stage.approval(stage.waiting(), robot)
    editor.http.headers["Impersonate-User"] = robot
    answer = editor.create(body)
    assert answer.policy == "trimwheel-approvers", answer.message
    assert "is a service account" in answer.message


def test_an_editor_cannot_become_a_person(stage: Any) -> None:
    stage.person("anna", "trimwheel-approver")
    editor = stage.person("eve", "edit")
    body = stage.approval(stage.waiting(), "anna")
    editor.http.headers["Impersonate-User"] = "anna"
    answer = editor.create(body)
    assert answer.rbac and "impersonate" in answer.message


@pytest.mark.parametrize("who", ["anna", "nadia", "admin", "operator", "pipelines", "job"])
def test_nobody_but_the_operator_changes_or_deletes_an_approval(stage: Any, who: str) -> None:
    anna = stage.person("anna", "trimwheel-approver")
    made = stage.approve(anna, stage.approval(stage.waiting(), "anna")).body["metadata"]["name"]
    people = {
        "anna": lambda: anna,
        "nadia": stage.wildcard,
        "admin": lambda: stage.root,
        "operator": lambda: stage.operator,
        "pipelines": lambda: stage.pipelines,
        "job": lambda: stage.tuning_job,
    }
    actor = people[who]()
    changed = actor.patch("PolicyApproval", made, {"spec": {"decision": "Reject"}})
    labelled = actor.patch("PolicyApproval", made, {"metadata": {"labels": {"a": "b"}}})
    deleted = actor.delete("PolicyApproval", made)
    assert changed.rbac or "spec is immutable" in changed.message
    # These hold every verb of the two, so that only admission is left to refuse them.
    strong = who in ("nadia", "admin")
    assert (labelled.policy == "trimwheel-operator-only") if strong else labelled.rbac
    deletes = strong or who in ("anna", "pipelines")
    assert (deleted.policy == "trimwheel-approvals") if deletes else deleted.rbac
    assert "is kept until its rollout is deleted" in deleted.message or deleted.rbac


@pytest.mark.parametrize("who", ["anna", "admin", "pipelines"])
@pytest.mark.parametrize("others", ["no other rollout", "beside another rollout"])
def test_an_approval_whose_rollout_is_gone_can_be_deleted(
    stage: Any, who: str, others: str
) -> None:
    if others == "beside another rollout":
        stage.waiting("other")
    anna = stage.person("anna", "trimwheel-approver")
    made = stage.approve(anna, stage.approval(stage.waiting(), "anna")).body["metadata"]["name"]
    actor = {"anna": anna, "admin": stage.root, "pipelines": stage.pipelines}[who]
    assert actor.delete("PolicyApproval", made).policy == "trimwheel-approvals"
    assert stage.root.delete("PolicyRollout", "r").allowed
    gone = stage.settle(lambda: actor.delete("PolicyApproval", made), lambda one: one.allowed)
    assert gone.allowed, gone.message


def test_an_approval_of_a_rollout_that_never_was_can_be_deleted(stage: Any) -> None:
    """Admission cannot see that something is absent: such an approval is stored, and decides
    nothing. It is not stuck any more, and the loop removes it."""
    stage.waiting("other")
    ghost = stage.rollout("ghost", "somebody")
    ghost["metadata"]["uid"] = "none"
    anna = stage.person("anna", "trimwheel-approver")
    made = stage.approve(anna, stage.approval(ghost, "anna", decision="Reject"))
    assert made.allowed, made.message
    assert stage.root.delete("PolicyApproval", made.body["metadata"]["name"]).allowed
