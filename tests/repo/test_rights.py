"""Least privilege: each right that the chart grants has the line of code that needs it.

A right without an entry is one to take away; an entry whose code is gone is one as well. Rules of
people's roles have the sentence or the verb that they are for.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import yaml
from tests.repo.repository import ROOT

TEMPLATES = ROOT / "charts" / "trimwheel" / "templates"
CALLS = {
    "get": r"\.(find|get)\(",
    "list": r"\.list\(",
    "watch": r"\.watch\(",
    "create": r"\.(create|apply|_create)\(|\b_create\(",
    "patch": r"\.(merge|apply|write_status|_merge)\(",
    "update": r"\.replace\(",
    "delete": r"\.delete\b",
}
"""How a call looks in our clients, by the verb that the authorizer is asked for."""

Right = tuple[str, str, str]
"""(role, resource, verb)."""


@dataclass(frozen=True)
class Use:
    """Where a right is used: a function that names the object, and the one that calls."""

    named: str
    """`path::function` in whose source `word` stands."""
    word: str
    called: str = ""
    """`path::function` with the call itself; empty: the same function."""
    grant: bool = False
    """Held to be granted on: RBAC lets nobody grant what they lack."""


OPERATOR = "operator/trimwheel_operator/"
PIPELINES = "pipelines/trimwheel_pipelines/"
WATCHED, LISTED = f"{OPERATOR}informers.py::watched", f"{OPERATOR}informers.py::Informer"
CONFIRMED = f"{OPERATOR}gather.py::Gatherer._confirm"
FRESH, AGAIN = f"{OPERATOR}gather.py::Gatherer", f"{OPERATOR}apply.py::Writer._read_again"
DO, APPLY = f"{OPERATOR}apply.py::Writer._do", f"{OPERATOR}apply.py::Writer._do"
WORKERS = f"{OPERATOR}manifests.py::worker_objects"
LEADER = f"{OPERATOR}leader.py::Leader"
LOOP = f"{PIPELINES}loop.py::Loop"
REPORTER = f"{PIPELINES}tuning_status.py::Reporter"


def _watched() -> dict[Right, Use]:
    kinds = {
        "adaptivemodels": "AdaptiveModel", "policyassignments": "PolicyAssignment",
        "policyrollouts": "PolicyRollout", "policyapprovals": "PolicyApproval",
        "tuningruns": "TuningRun", "adaptivepolicies": "AdaptivePolicy",
        "deployments": "Deployment", "pods": "Pod", "leases": "Lease", "jobs": "Job",
    }  # fmt: skip
    return {
        ("trimwheel-operator", resource, verb): Use(WATCHED, f'Watched("{kind}"', LISTED)
        for resource, kind in kinds.items()
        for verb in ("list", "watch")
    }


NEEDED: dict[Right, Use] = {
    **_watched(),
    # What a decision rests on is read once more before it is taken.
    ("trimwheel-operator", "adaptivemodels", "get"): Use(FRESH, "state.model,", CONFIRMED),
    ("trimwheel-operator", "policyrollouts", "get"): Use(FRESH, "*open_ones,", CONFIRMED),
    ("trimwheel-operator", "policyapprovals", "get"): Use(FRESH, "*state.approvals,", CONFIRMED),
    ("trimwheel-operator", "adaptivepolicies", "get"): Use(FRESH, "state.policies", CONFIRMED),
    # A write that lost a race reads what won.
    ("trimwheel-operator", "tuningruns", "get"): Use(DO, "PatchStatus()", AGAIN),
    ("trimwheel-operator", "policyassignments", "get"): Use(
        f"{OPERATOR}apply.py::Writer._write_assignment", '_read_again("PolicyAssignment"', AGAIN
    ),
    ("trimwheel-operator", "jobs", "get"): Use(
        f"{OPERATOR}apply.py::Writer._create_job", '_read_again("Job"', AGAIN
    ),
    **{
        ("trimwheel-operator", f"{plural}/status", "patch"): Use(
            DO, '"status"', f"{OPERATOR}apply.py::Writer._merge"
        )
        for plural in ("adaptivemodels", "adaptivepolicies", "tuningruns", "policyrollouts")
    },
    ("trimwheel-operator", "policyassignments", "create"): Use(
        f"{OPERATOR}apply.py::Writer._write_assignment", '"PolicyAssignment"'
    ),
    ("trimwheel-operator", "policyassignments", "patch"): Use(
        f"{OPERATOR}apply.py::Writer._write_assignment", '_merge("PolicyAssignment"'
    ),
    # Forgeries under reserved names, as dry runs: applied, which creates or patches.
    **{
        ("trimwheel-operator", plural, verb): Use(
            f"{OPERATOR}probes.py::PROBES",
            f'"{kind}"',
            f"{OPERATOR}admission.py::AdmissionTest._refusal",
        )
        for plural, kind in {
            "adaptivemodels": "AdaptiveModel",
            "adaptivepolicies": "AdaptivePolicy",
            "tuningruns": "TuningRun",
            "policyrollouts": "PolicyRollout",
            "policyapprovals": "PolicyApproval",
        }.items()
        for verb in ("create", "patch")
    },
    # Worker objects: applied, which creates or patches.
    **{
        ("trimwheel-operator", resource, verb): Use(WORKERS, function, APPLY)
        for resource, function in {
            "serviceaccounts": "_service_account(",
            "roles": "_role(",
            "rolebindings": "_role_binding(",
            "services": "_service(",
            "deployments": "_deployment(",
        }.items()
        for verb in ("create", "patch")
    },
    ("trimwheel-operator", "services", "get"): Use(f"{FRESH}._child", '"Service"'),
    ("trimwheel-operator", "deployments", "get"): Use(f"{FRESH}._child", "Deployment"),
    ("trimwheel-operator", "events", "create"): Use(f"{OPERATOR}apply.py::Writer._post", '"Event"'),
    ("trimwheel-operator", "jobs", "create"): Use(
        f"{OPERATOR}apply.py::Writer._create_job", '"Job"'
    ),
    ("trimwheel-operator", "jobs", "delete"): Use(DO, "DeleteJob()"),
    # A worker's Role: what is granted must be held.
    **{
        ("trimwheel-operator", "leases", verb): Use(
            f"{OPERATOR}manifests.py::_role", f'"{verb}"', grant=True
        )
        for verb in ("create", "patch")
    },
    ("trimwheel-operator", "leases", "get"): Use(LEADER, "self._path"),
    ("trimwheel-operator", "leases", "update"): Use(LEADER, "self._path"),
    **{
        ("trimwheel-operator", plural, "list"): Use(
            f"{OPERATOR}admission.py::AdmissionTest._installed",
            word,
            f"{OPERATOR}admission.py::AdmissionTest._by_name",
        )
        for plural, word in {
            "validatingadmissionpolicies": "_by_name(POLICY)",
            "validatingadmissionpolicybindings": "_by_name(BINDING)",
        }.items()
    },
    # The loop.
    **{
        ("trimwheel-pipelines", plural, "list"): Use(f"{LOOP}._views", f"list({kind})")
        for plural, kind in {
            "adaptivemodels": "AdaptiveModel",
            "adaptivepolicies": "AdaptivePolicy",
            "tuningruns": "TuningRun",
            "policyrollouts": "PolicyRollout",
        }.items()
    },
    ("trimwheel-pipelines", "policyapprovals", "list"): Use(
        f"{LOOP}._drop_approvals", "list(PolicyApproval)"
    ),
    ("trimwheel-pipelines", "policyapprovals", "delete"): Use(
        f"{LOOP}._drop_approvals", "without_rollout("
    ),
    **{
        ("trimwheel-pipelines", plural, "delete"): Use(
            f"{PIPELINES}housekeeping.py::prunable", word, f"{LOOP}._prune"
        )
        for plural, word in {
            "policyrollouts": "*old_rollouts",
            "tuningruns": "*old_runs",
            "adaptivepolicies": "*ours",
        }.items()
    },
    ("trimwheel-pipelines", "tuningruns", "create"): Use(f"{LOOP}._start_run", "TuningRun,"),
    ("trimwheel-pipelines", "tuningruns/status", "patch"): Use(f"{LOOP}._write_drift", "drift"),
    # The Jobs.
    ("trimwheel-tuning", "adaptivemodels", "get"): Use(
        f"{PIPELINES}tune.py::Tuning._incumbent", "AdaptiveModel"
    ),
    ("trimwheel-tuning", "adaptivemodels", "certify"): Use(
        f"{PIPELINES}publishing.py::publish_policy", "certificate=certificate", grant=True
    ),
    ("trimwheel-tuning", "tuningruns", "get"): Use(f"{REPORTER}._read", "TuningRun"),
    ("trimwheel-tuning", "tuningruns", "list"): Use(f"{REPORTER}.check", "TuningRun"),
    ("trimwheel-tuning", "tuningruns/status", "patch"): Use(f"{REPORTER}._write", "observed"),
    ("trimwheel-tuning", "adaptivepolicies", "list"): Use(
        f"{PIPELINES}tune.py::Tuning._incumbent", "AdaptivePolicy"
    ),
    ("trimwheel-tuning", "adaptivepolicies", "create"): Use(
        f"{PIPELINES}publishing.py::publish_policy", "AdaptivePolicy"
    ),
    ("trimwheel-tuning", "policyrollouts", "create"): Use(
        f"{PIPELINES}publishing.py::request_rollout", "PolicyRollout"
    ),
}

PEOPLE = {
    "trimwheel-view": "docs/how-to/authority.md: `trimwheel-view` and `trimwheel-edit` join",
    "trimwheel-edit": "docs/how-to/authority.md: an editor of a namespace declares models,",
    "trimwheel-approver": "docs/how-to/authority.md: decide on a rollout (approve or reject)",
    "trimwheel-waiver": "docs/how-to/authority.md: roll out without a certificate",
    "trimwheel-rollback": "docs/how-to/authority.md: go back at once, and break-glass",
}
"""What each role for people is for."""

ELSEWHERE = frozenset({"policyjournals", "policyjournals/status"})
"""Internal objects of the release's namespace, whose rights their own tests count."""


@cache
def granted() -> dict[str, list[tuple[Right, str]]]:
    """Rights by role, as the templates grant them, and where each holds."""
    found: dict[str, list[tuple[Right, str]]] = {}
    for path in sorted(TEMPLATES.rglob("*.yaml")):
        text = re.sub(r"^\s*\{\{-?.*?-?\}\}\s*$", "", path.read_text(), flags=re.MULTILINE)
        if not re.search(r"^kind: (Cluster)?Role$", text, flags=re.MULTILINE):
            continue
        text = re.sub(r"^  (labels|annotations): \{\{.*$", "", text, flags=re.MULTILINE)
        for document in yaml.safe_load_all(re.sub(r"\{\{.*?\}\}", "x", text)):
            if document and document["kind"] in ("Role", "ClusterRole"):
                name = document["metadata"]["name"]
                found.setdefault(name, []).extend(
                    ((name, resource, verb), f"{document['kind']} {rule.get('resourceNames')}")
                    for rule in document["rules"]
                    for resource in rule["resources"]
                    for verb in rule["verbs"]
                )
    return found


def rights() -> list[tuple[Right, str]]:
    """Those of the release's own accounts."""
    return [
        (right, where)
        for name, held in sorted(granted().items())
        if name not in PEOPLE
        for right, where in held
        if right[1] not in ELSEWHERE
    ]


def _defined(node: ast.AST) -> tuple[str, ...]:
    """The name of a class, a function or an annotated constant."""
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return (node.target.id,)
    return (str(getattr(node, "name", "")),)


@cache
def source(where: str) -> str:
    """The source of `path::qualified.name`. Raises LookupError when there is none."""
    path, _, qualified = where.partition("::")
    text = (ROOT / path).read_text()
    node: ast.AST = ast.parse(text)
    for part in qualified.split("."):
        node = next(
            (one for one in ast.iter_child_nodes(node) if part in _defined(one)), ast.Pass()
        )
        if isinstance(node, ast.Pass):
            raise LookupError(f"{where}: there is no such function")
    return ast.get_source_segment(text, node) or ""


def test_the_roles_are_those_that_the_tables_know() -> None:
    accounts = {role for role, *_ in NEEDED}
    assert set(granted()) == accounts | PEOPLE.keys()


@pytest.mark.parametrize("right", sorted({right for right, _ in rights()}), ids=" ".join)
def test_each_right_is_needed_by_a_line_of_code(right: Right) -> None:
    assert right in NEEDED, f"{right}: no code is named that needs it; take it away"
    use = NEEDED[right]
    assert use.word in source(use.named), f"{use.named} does not name {use.word}"
    if not use.grant:
        called = source(use.called or use.named)
        assert re.search(CALLS[right[2]], called), f"{use.called or use.named}: no {right[2]}"


def test_no_entry_is_of_a_right_that_nobody_holds() -> None:
    assert NEEDED.keys() - {right for right, _ in rights()} == set()


def test_the_table_would_notice_code_that_is_gone() -> None:
    with pytest.raises(LookupError):
        source(f"{OPERATOR}apply.py::Writer._no_such_function")


def test_no_right_is_granted_twice() -> None:
    held = rights()
    assert sorted(held) == sorted(set(held))


@pytest.mark.parametrize("role", PEOPLE)
def test_each_role_for_people_is_documented_for_what_it_does(role: str) -> None:
    path, _, words = PEOPLE[role].partition(": ")
    assert words in (ROOT / Path(path)).read_text()
