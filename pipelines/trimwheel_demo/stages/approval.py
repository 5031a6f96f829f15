"""Approving a rollout: who is refused by the API server, and who may."""

from __future__ import annotations

from typing import Any

from trimwheel_api import names
from trimwheel_api.errors import Refused
from trimwheel_demo.evidence import Evidence, object_evidence, refusal_evidence
from trimwheel_demo.kube import Answer
from trimwheel_demo.places import APPROVER, EDITOR, NAMESPACE
from trimwheel_demo.stages.following import Item, StoryFailed
from trimwheel_demo.world import World


def approval_spec(rollout: Item, approver: str, decision: str = "Approve") -> dict[str, Any]:
    """What a PolicyApproval says."""
    return {
        "rollout": rollout["metadata"]["name"],
        "rolloutUID": rollout["metadata"]["uid"],
        "policyDigest": rollout["spec"]["policyDigest"],
        "decision": decision,
        "approver": approver,
        "reason": "reviewed in the demo",
    }


def show_refusals(world: World, rollout: Item) -> list[Evidence]:
    """An editor without the verb and the operator's own account try, and are refused."""
    operator = names.service_account_user(names.RELEASE_NAMESPACE, names.OPERATOR_ACCOUNT)
    denied = [
        {"user": EDITOR, "message": _refused_words(world, rollout, EDITOR)},
        {"user": operator, "message": _refused_account(world, rollout, operator)},
    ]
    world.report["approval"]["denied"] += denied
    for row in denied:
        world.teller.good(
            f"refused by the API server: {row['user']}: {refusal_words(row['message'])}"
        )
    # Whoever may not approve may not reject either, and that is refused at any time: an approval
    # is also refused because nobody is asked any more, and of two reasons one is told.
    return [
        refusal_evidence(
            row["user"],
            "PolicyApproval",
            NAMESPACE,
            approval_spec(rollout, row["user"], "Reject"),
            refusal_words(row["message"]),
        )
        for row in denied
    ]


def _refused_words(world: World, rollout: Item, person: str) -> str:
    try:
        world.people[person].create(
            "PolicyApproval", f"{rollout['metadata']['name']}-by-{person}",
            approval_spec(rollout, person),
        )  # fmt: skip
    except Refused as error:
        return str(error)
    raise StoryFailed(f"{person} may not approve, yet the API server accepted it")


def _refused_account(world: World, rollout: Item, user: str) -> str:
    token = world.account_token(names.OPERATOR_ACCOUNT)
    answer = as_account(
        world, token, "PolicyApproval", f"{rollout['metadata']['name']}-by-operator",
        approval_spec(rollout, user),
    )  # fmt: skip
    if answer.ok:
        raise StoryFailed("the operator may not approve, yet the API server accepted it")
    return answer.error


def as_account(world: World, token: str, kind: str, name: str, spec: dict[str, Any]) -> Answer:
    """Create an object with a service account's own token, without our certificate."""
    import json

    body = {
        "apiVersion": names.API_VERSION, "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
    }  # fmt: skip
    # An empty kubeconfig user: with a client certificate the token would not be looked at.
    return world.admin.kubectl(
        "--kubeconfig=/dev/null", f"--server={world.server}", "--insecure-skip-tls-verify",
        f"--token={token}", "create", "-f", "-", stdin=json.dumps(body),
    )  # fmt: skip


def approve(world: World, rollout: Item, person: str = APPROVER) -> Evidence:
    """Approve as a person who may, after asking whoever sits at the terminal."""
    name = rollout["metadata"]["name"]
    if not world.teller.ask(f"approve {name} as {person}?"):
        raise StoryFailed("the approval was declined at the terminal")
    world.teller.command(f"kubectl trimwheel approve {name} --reason 'reviewed in the demo'")
    made = world.people[person].create(
        "PolicyApproval", f"{name}-by-{person}", approval_spec(rollout, person)
    )
    world.report["approval"]["by"] = person
    world.teller.good(f"approved by {person}")
    return object_evidence(made, "papproval", ".spec.approver", person)


def refusal_words(message: str) -> str:
    """The admission policy's own sentence, without what the API server puts before it."""
    return message.rsplit("denied request: ", 1)[-1]
