"""`trimwheel rollback` from the command to the last worker: the role alone, a true exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.cluster.operator.team import MODEL, SETTLED

from trimwheel_api import names
from trimwheel_api.kinds import PLURALS
from trimwheel_cli.main import cli
from trimwheel_console import NEGATIVE, OK, USAGE
from trimwheel_local.testing import Clients, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
REASON = "tickets since noon"
RBAC = "rbac.authorization.k8s.io"


@pytest.fixture
def rolf(team: Any, cluster: Any) -> Callable[..., Result]:
    """The rollback verb as somebody who holds ClusterRole trimwheel-rollback and nothing else."""
    subject = {"kind": "User", "name": "rolf", "apiGroup": RBAC}
    role = {"apiGroup": RBAC, "kind": "ClusterRole", "name": "trimwheel-rollback"}
    body = {"metadata": {"name": "rolf"}, "roleRef": role, "subjects": [subject]}
    team.admin.rbac.create_namespaced_role_binding(team.namespace, body)
    where = ["--kubeconfig", str(cluster.kubeconfig_for("rolf")), "-n", team.namespace]

    def rollback(*options: str) -> Result:
        command = ["rollback", MODEL, "--reason", REASON, "-o", "json", *options, *where]
        return CliRunner().invoke(cli, command)

    return rollback


def test_the_rollback_role_alone_ends_a_canary_and_the_record_says_who_and_why(
    team: Any, operator: Callable[..., Any], rolf: Callable[..., Result], documents: Any, dense: str
) -> None:
    operator()
    team.model()
    team.worker("w-0")
    eventually(lambda: team.epoch_of("w-0"), "w-0 acknowledges", SETTLED)
    digest = team.policy("good", documents["good"], certified=True)
    team.rollout("ramp", "good", digest)
    eventually(lambda: team.assignment.get("candidate"), "the candidate is resident", SETTLED)
    done = rolf()
    assert done.exit_code == OK, done.output
    told = json.loads(done.stdout)
    assert (told["ends"], told["policyDigest"], told["outcome"]) == ("ramp", dense, "Acknowledged")
    assert told["actuation"]["workers"] == 1 and told["actuation"]["milliseconds"] >= 0
    ended = team.reaches("ramp", "RolledBack")["decisions"][-1]
    assert (ended["action"], ended["reason"], ended["actor"]) == ("Abort", "Preempted", "rolf")
    assert REASON in ended["message"]
    assert team.assignment.get("candidate") is None
    again = rolf()
    assert again.exit_code == USAGE
    assert "something to go back from" in again.stderr


def test_what_the_operator_refuses_is_told_and_exits_one(
    team: Any,
    operator: Callable[..., Any],
    rolf: Callable[..., Result],
    as_user: Callable[..., Clients],
    documents: Any,
) -> None:
    operator()
    team.model()
    digest = team.policy("good", documents["good"], certified=False)
    account = names.service_account_user(names.RELEASE_NAMESPACE, names.OPERATOR_ACCOUNT)
    as_user(account).custom.patch_namespaced_custom_object_status(
        names.GROUP, names.VERSION, team.namespace, PLURALS["AdaptiveModel"], MODEL,
        {"status": {"history": [{"digest": digest, "policy": "good"}]}},
    )  # fmt: skip
    refused = rolf("--to", digest)
    assert refused.exit_code == NEGATIVE, refused.output
    told = json.loads(refused.stdout)
    assert told["outcome"] == "Refused"
    assert told["message"].startswith("Uncertified: policy good has no certificate")
