"""Who writes the operator's memory: it alone the spec, pipelines alone the cursor, nobody else."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from trimwheel_api import names
from trimwheel_api.names import RELEASE_NAMESPACE

pytestmark = pytest.mark.cluster

GUARD = "trimwheel-operator-only"
DIGEST = "sha256:" + "a" * 64


def there(actor: Any) -> Any:
    """The same actor, working in the release's namespace."""
    return replace(actor, namespace=RELEASE_NAMESPACE)


def journal(model: str, **spec: Any) -> dict[str, Any]:
    name = names.journal_name("shop", model)
    body = {"namespace": "shop", "model": model, "sequence": 1, **spec}
    return {
        "apiVersion": names.API_VERSION, "kind": "PolicyJournal",
        "metadata": {"name": name}, "spec": body,
    }  # fmt: skip


@pytest.fixture
def kept(stage: Any) -> Any:
    """A journal that the operator wrote; taken away at the end."""
    model = f"m-{uuid.uuid4().hex[:8]}"
    rejected = [{"digest": DIGEST, "time": "2026-01-01T00:00:00Z", "reason": "Rejected"}]
    made = there(stage.operator).create(journal(model, rejected=rejected))
    assert made.allowed, made.message
    yield made.body
    there(stage.operator).delete("PolicyJournal", made.body["metadata"]["name"])


def everything_here(stage: Any) -> Any:
    """Somebody with every verb on every resource of the release's namespace."""
    rule = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
    name = f"everything-{uuid.uuid4().hex[:6]}"
    release = replace(stage, namespace=RELEASE_NAMESPACE)
    release.role(name, [rule])
    return release.person("nadia", f"Role/{name}")


PEOPLE: dict[str, Callable[[Any], Any]] = {
    "holder of every verb in the release's namespace": everything_here,
    "cluster administrator": lambda stage: there(stage.root),
}


@pytest.mark.parametrize("who", PEOPLE)
def test_no_journal_is_made_changed_or_forgotten_by_the(stage: Any, kept: Any, who: str) -> None:
    actor, name = PEOPLE[who](stage), kept["metadata"]["name"]
    answers = {
        "create": actor.create(journal("forged")),
        "forget": actor.patch("PolicyJournal", name, {"spec": {"rejected": []}}),
        "label": actor.patch("PolicyJournal", name, {"metadata": {"labels": {"a": "b"}}}),
        "own": actor.patch("PolicyJournal", name, {"metadata": {"finalizers": ["a.b/c"]}}),
        "replace": actor.put({**kept, "spec": {**kept["spec"], "sequence": 9}}),
        "cursor": actor.patch("PolicyJournal", name, {"status": {"cursor": 1}}, "status"),
        "delete": actor.delete("PolicyJournal", name),
    }
    assert {what: answer.policy for what, answer in answers.items()} == dict.fromkeys(
        answers, GUARD
    )
    after = there(stage.root).get("PolicyJournal", name).body
    assert after["spec"]["rejected"][0]["digest"] == DIGEST


def test_a_deletion_of_all_journals_is_refused_as_well(stage: Any, kept: Any) -> None:
    path = f"/apis/{names.API_VERSION}/namespaces/{RELEASE_NAMESPACE}/policyjournals"
    assert stage.root.call("DELETE", path).policy == GUARD
    assert there(stage.root).get("PolicyJournal", kept["metadata"]["name"]).allowed


@pytest.mark.parametrize("role", ["edit", "admin", "trimwheel-rollback", "trimwheel-waiver"])
def test_roles_of_a_models_namespace_do_not_even_see_a_journal(
    stage: Any, kept: Any, role: str
) -> None:
    person = there(stage.person("eve", role))
    assert person.get("PolicyJournal", kept["metadata"]["name"]).rbac
    assert person.delete("PolicyJournal", kept["metadata"]["name"]).rbac


def test_the_operator_writes_what_it_remembers_and_not_the_cursor(stage: Any, kept: Any) -> None:
    operator, name = there(stage.operator), kept["metadata"]["name"]
    wrote = operator.patch("PolicyJournal", name, {"spec": {"sequence": 2}})
    assert wrote.allowed and wrote.body["spec"]["sequence"] == 2, wrote.message
    assert operator.patch("PolicyJournal", name, {"status": {"cursor": 1}}, "status").rbac
    assert not operator.patch("PolicyJournal", name, {"spec": {"sequence": 1}}).allowed
    other = operator.patch("PolicyJournal", name, {"spec": {"model": "another"}})
    assert "spec.namespace and spec.model are immutable" in other.message


def test_pipelines_move_the_cursor_forwards_and_nothing_else(stage: Any, kept: Any) -> None:
    pipelines, name = there(stage.pipelines), kept["metadata"]["name"]

    def move(cursor: int) -> Any:
        return pipelines.patch("PolicyJournal", name, {"status": {"cursor": cursor}}, "status")

    assert "status.cursor must be at most spec.sequence" in move(2).message
    moved = move(1)
    assert moved.allowed and moved.body["status"]["cursor"] == 1, moved.message
    assert "status.cursor must not shrink" in move(0).message
    assert pipelines.patch("PolicyJournal", name, {"spec": {"rejected": []}}).rbac
    assert pipelines.delete("PolicyJournal", name).rbac


def test_only_the_operator_may_drop_a_journal(stage: Any, kept: Any) -> None:
    assert there(stage.operator).delete("PolicyJournal", kept["metadata"]["name"]).allowed
