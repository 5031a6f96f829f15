"""The kinds as the API server knows them: rules, defaults, columns, and what `explain` says."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from trimwheel_api import names
from trimwheel_api.kinds import KINDS, AdaptiveModel, Kind
from trimwheel_api.policy import parse_policy

pytestmark = pytest.mark.cluster

DIGEST = "sha256:" + "a" * 64
EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"


# --- rules across fields ----------------------------------------------------------------------
def without(spec: dict[str, Any], field: str) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key != field}


INVALID: dict[str, tuple[Any, str]] = {
    "a model without spec": (
        lambda stage: without(stage.model(), "spec"), "spec: Required value",
    ),
    "a policy without spec": (
        lambda stage: without(stage.policy(), "spec"), "spec: Required value",
    ),
    "a digest that is none": (
        lambda stage: stage.rollout("r", "admin", policyDigest="sha256:12"), "spec.policyDigest",
    ),
    "a fraction as a number": (
        lambda stage: _with(stage.model(), "objectives", {"maxDisagreement": 0.02}),
        "spec.objectives.maxDisagreement",
    ),
    "a fraction above one": (
        lambda stage: _with(stage.model(), "audits", {"rate": "1.5"}), "spec.audits.rate",
    ),
    "a duration without unit": (
        lambda stage: _with(stage.model(), "engine", {"maxWait": "5"}), "spec.engine.maxWait",
    ),
    "a name that no Service can have": (
        lambda stage: {**stage.model(), "metadata": {"name": "m" * 64}},
        "metadata.name must be at most 63",
    ),
    "a policy for such a name": (
        lambda stage: _with(stage.policy(), "model", "m" * 64), "spec.model",
    ),
    "a covariate block of no time": (
        lambda stage: _with(stage.model(), "drift", {"block": "0s"}),
        "spec.drift.block: Invalid value: \"0s\": must be longer than 0s, but got 0s",
    ),
    "a false alarm at every audit": (
        lambda stage: _with(stage.model(), "drift", {"falseAlarmAudits": "0"}),
        "spec.drift.falseAlarmAudits: Invalid value: \"0\": must be at least 1, but got 0",
    ),
    "a search without time": (
        lambda stage: _with(stage.model(), "tuning", {"timeout": "0h0m"}), "spec.tuning.timeout",
    ),
    "a certificate that is born expired": (
        lambda stage: _with(stage.model(), "tuning", {"certificateTTL": "0d"}),
        "spec.tuning.certificateTTL",
    ),
    "a tuning schedule without pause": (
        lambda stage: _with(stage.model(), "tuning", {"schedule": "0s"}), "spec.tuning.schedule",
    ),
    "records that are deleted at once": (
        lambda stage: _with(stage.model(), "audits", {"retention": "0ms"}), "spec.audits.retention",
    ),
    "a run without time": (
        lambda stage: stage.tuning(budget={"timeout": "0s"}), "spec.budget.timeout",
    ),
    "a weight above all": (
        lambda stage: stage.model(steps=[{"weight": "101%"}]), "spec.rollout.steps[0].weight",
    ),
    "a quantity that is none": (
        lambda stage: _with(stage.model(), "resources", {"limits": {"cpu": "many"}}),
        "spec.resources.limits.cpu",
    ),
    "a shadow that waits for requests": (
        lambda stage: stage.model(steps=[{"weight": "0%", "minRequests": 5}]),
        "minRequests must be 0 at weight 0%",
    ),
    "a rollout without steps": (
        lambda stage: stage.model(steps=[]), "spec.rollout.steps in body should have at least 1",
    ),
    "a Rollback with steps": (
        lambda stage: stage.rollout("r", "admin", type="Rollback", steps=[{"weight": "5%"}]),
        "spec.steps must be unset for type Rollback",
    ),
    "a Canary of no policy": (
        lambda stage: stage.rollout("r", "admin", policy=""), "spec.policy must name",
    ),
    "a reason that is none": (lambda stage: stage.tuning(reason="Because"), "spec.reason"),
    "a knob that is none": (lambda stage: stage.tuning(knobs=["moe.colour"]), "spec.knobs[0]"),
    "a weight without candidate": (
        lambda stage: stage.assignment(weightBasisPoints=5), "must be 0 without a candidate",
    ),
    "a document above 64 KiB": (
        lambda stage: stage.assignment(stable={"digest": DIGEST, "document": "x" * 65537}),
        "spec.stable.document",
    ),
}  # fmt: skip


def _with(body: dict[str, Any], section: str, value: Any) -> dict[str, Any]:
    return {**body, "spec": {**body["spec"], section: value}}


@pytest.mark.parametrize("name", INVALID)
def test_the_api_server_refuses_and_names_the_field(stage: Any, name: str) -> None:
    build, words = INVALID[name]
    body = build(stage)
    actor = stage.operator if body["kind"] == "PolicyAssignment" else stage.root
    answer = actor.create(body)
    assert answer.code == 422, answer
    assert words in answer.message


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS if kind.name != "PolicyAssignment"])
def test_a_misspelt_field_is_refused_by_kubectl(stage: Any, kind: str) -> None:
    """kubectl asks for strict validation; a pruned field would be a promise nobody keeps."""
    body = {"apiVersion": names.API_VERSION, "kind": kind, "metadata": {"name": "x"}}
    answer = stage.root.create({**body, "spec": {"speling": 1}}, fieldValidation="Strict")
    assert answer.code in (400, 422)
    assert 'unknown field "spec.speling"' in answer.message


IMMUTABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "another policy document": ("AdaptivePolicy", {"policy": {"moe": {"topK": 2}}}),
    "a policy without its document": ("AdaptivePolicy", {"policy": None}),
    "a policy's parent added": ("AdaptivePolicy", {"parent": DIGEST}),
    "another model of a policy": ("AdaptivePolicy", {"model": "other"}),
    "another seed": ("TuningRun", {"seed": 9}),
    "another promise to certify": ("TuningRun", {"risk": {"epsilon": "0.5"}}),
    "another model of a rollout": ("PolicyRollout", {"model": "other"}),
    "another policy of a rollout": ("PolicyRollout", {"policy": "other"}),
    "other bytes": ("PolicyRollout", {"policyDigest": "sha256:" + "c" * 64}),
    "another type": ("PolicyRollout", {"type": "Rollback"}),
    "a waiver added": ("PolicyRollout", {"allowUncertified": True}),
    "steps added": ("PolicyRollout", {"steps": [{"weight": "50%"}]}),
    "another reason": ("PolicyRollout", {"reason": "none"}),
}


@pytest.mark.parametrize("name", IMMUTABLE)
def test_what_was_asked_for_never_changes(stage: Any, name: str) -> None:
    kind, change = IMMUTABLE[name]
    for body in (stage.policy("x"), stage.tuning("x"), stage.rollout("x", "admin")):
        assert stage.root.create(body).allowed
    answer = stage.root.patch(kind, "x", {"spec": change})
    assert answer.code == 422, answer
    assert "is immutable" in answer.message


def test_removing_and_then_adding_an_optional_field_is_no_way_around(stage: Any) -> None:
    steps = [{"weight": "0%"}, {"weight": "5%"}]
    assert stage.root.create(stage.rollout("r", "admin", steps=steps)).allowed
    removed = stage.root.patch("PolicyRollout", "r", {"spec": {"steps": None}})
    assert "spec.steps is immutable" in removed.message
    whole = stage.root.get("PolicyRollout", "r").body
    assert stage.root.put(without(whole, "spec")).code == 422


# --- assignments ------------------------------------------------------------------------------
EPOCHS: dict[str, tuple[dict[str, Any], str]] = {
    "renewing": ({"renewals": 6}, ""),
    "a new epoch with another weight": ({"epoch": 4, "weightBasisPoints": 500}, ""),
    "a new epoch from renewal 0": ({"epoch": 4, "renewals": 0}, ""),
    "writing down when it was decided": ({"decidedAt": "2026-01-01T00:00:00Z"}, ""),
    "renewing backwards": ({"renewals": 4}, "renewals never shrink"),
    "an older epoch": ({"epoch": 2}, "epoch must grow"),
    "another weight in the same epoch": ({"weightBasisPoints": 500}, "epoch must grow"),
    "another salt in the same epoch": ({"salt": "x"}, "epoch must grow"),
    "another stable in the same epoch": (
        {"stable": {"digest": "sha256:" + "c" * 64}}, "epoch must grow",
    ),
    "no candidate in the same epoch": (
        {"candidate": None, "weightBasisPoints": 0}, "epoch must grow",
    ),
    "another candidate in the same epoch": (
        {"candidate": {"digest": "sha256:" + "c" * 64}}, "epoch must grow",
    ),
    "another audit rate in the same epoch": ({"auditRate": "0.5"}, "epoch must grow"),
    "another lease in the same epoch": ({"leaseSeconds": 60}, "epoch must grow"),
    "holding in the same epoch": ({"hold": True}, "epoch must grow"),
    "a new epoch with weight and no candidate": (
        {"epoch": 4, "candidate": None, "weightBasisPoints": 5}, "must be 0 without a candidate",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EPOCHS)
def test_an_assignment_tells_news_from_a_heartbeat(stage: Any, name: str) -> None:
    change, refusal = EPOCHS[name]
    serving = {"epoch": 3, "renewals": 5, "candidate": {"digest": DIGEST}, "weightBasisPoints": 100}
    assert stage.operator.create(stage.assignment(**serving)).allowed
    answer = stage.operator.patch("PolicyAssignment", "m", {"spec": change})
    assert answer.allowed is not bool(refusal), answer
    assert refusal in answer.message


def test_two_policies_of_64_kib_fit_into_an_assignment(stage: Any) -> None:
    large = {"digest": DIGEST, "document": "x" * 65536}
    made = stage.operator.create(stage.assignment(stable=large, candidate=large))
    assert made.allowed, made.message
    assert stage.operator.patch("PolicyAssignment", "m", {"spec": {"renewals": 1}}).allowed


# --- defaults ---------------------------------------------------------------------------------
def test_a_new_object_has_been_observed_at_no_generation(stage: Any) -> None:
    """Otherwise `kubectl wait` and Helm would take "not yet seen" for "ready"."""
    bodies = (stage.model(), stage.policy(), stage.tuning(), stage.rollout("r", "admin"))
    for body in bodies:
        assert stage.root.create(body).body["status"]["observedGeneration"] == -1, body["kind"]


def test_a_model_shows_every_setting_that_is_in_force(stage: Any) -> None:
    made = stage.root.create(stage.model()).body
    filled = AdaptiveModel.model_validate({**made, "spec": {"model": made["spec"]["model"]}})
    in_force = filled.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    shown = made["spec"]
    assert in_force.pop("access") == {}, "nothing is asked of clients unless it is declared"
    assert shown == {
        **in_force,
        "resources": {},
        "model": {"uri": "models:/m/1", "digest": DIGEST},
    }


def test_a_policy_document_is_stored_as_it_was_written(stage: Any) -> None:
    """Defaults inside it would change the digest of stored objects with an upgrade."""
    document = {"exit": {"enabled": True, "thresholds": ["0.90"]}, "later": {"knob": [1, 2]}}
    made = stage.root.create(stage.policy(policy=document)).body
    assert made["spec"]["policy"] == document


def test_amounts_may_be_plain_numbers_as_in_a_pod(stage: Any) -> None:
    body = _with(stage.model(), "resources", {"limits": {"nvidia.com/gpu": 1, "memory": "2Gi"}})
    made = stage.root.create(body)
    assert made.allowed, made.message
    read = AdaptiveModel.model_validate(made.body)
    assert read.spec.resources.limits == {"nvidia.com/gpu": "1", "memory": "2Gi"}


# --- as people see it -------------------------------------------------------------------------
def test_every_kind_is_known_by_its_names(stage: Any) -> None:
    found = stage.root.call("GET", f"/apis/{names.API_VERSION}").body["resources"]
    by_plural = {one["name"]: one for one in found}
    for kind in KINDS:
        one = by_plural[kind.plural]
        assert one["kind"] == kind.name and one["namespaced"]
        assert one.get("shortNames", []) == ([kind.short] if kind.short else [])
        assert one.get("categories", []) == ([names.CATEGORY] if kind.short else [])
        assert (f"{kind.plural}/status" in by_plural) is kind.has_status


COLUMNS = {
    "amodel": ("m", "NAME READY STABLE CANDIDATE CERTIFICATE DRIFT AGE"),
    "adpolicy": ("p", "NAME MODEL DIGEST CERTIFIED ACTIVE AGE"),
    "tuning": ("t", "NAME MODEL REASON READY PHASE OUTCOME TRIALS AGE"),
    "prollout": ("r", "NAME MODEL TYPE PHASE WEIGHT VERDICT AGE"),
    "papproval": ("a-", "NAME ROLLOUT DECISION APPROVER AGE"),
    "policyassignments": ("m", "NAME EPOCH STABLE WEIGHT HOLD AGE"),
}


def test_kubectl_get_shows_the_columns_a_person_needs(stage: Any) -> None:
    for body in (stage.model(), stage.policy(), stage.tuning()):
        assert stage.root.create(body).allowed
    anna = stage.person("anna", "trimwheel-approver")
    assert stage.approve(anna, stage.approval(stage.waiting(), "anna")).allowed
    assert stage.operator.create(stage.assignment()).allowed
    for word, (name, columns) in COLUMNS.items():
        shown = stage.cluster.kubectl("get", word, "--namespace", stage.namespace)
        header, row = shown.strip().splitlines()
        assert header.split() == columns.split()
        assert row.startswith(name), row


def test_kubectl_get_trimwheel_shows_everything_of_a_namespace(stage: Any) -> None:
    for body in (stage.model(), stage.policy(), stage.tuning(), stage.rollout("r", "admin")):
        assert stage.root.create(body).allowed
    assert stage.operator.create(stage.assignment()).allowed
    shown = stage.cluster.kubectl("get", "trimwheel", "--namespace", stage.namespace, "-o", "name")
    found = {line.split(".")[0] for line in shown.split()}
    assert found == {"adaptivemodel", "adaptivepolicy", "tuningrun", "policyrollout"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_kubectl_explain_describes_every_field(stage: Any, kind: Kind) -> None:
    """Walks what the API server publishes, as `kubectl explain` does."""
    path = f"/openapi/v3/apis/{names.API_VERSION}"
    schemas = stage.root.call("GET", path).body["components"]["schemas"]
    schema = schemas[f"dev.trimwheel.{names.VERSION}.{kind.name}"]
    missing = sorted(_undescribed(schema, kind.name))
    assert not missing, missing


def test_kubectl_explain_prints_range_and_default_beside_the_sentence(stage: Any) -> None:
    shown = " ".join(stage.cluster.kubectl("explain", "adaptivemodel.spec.engine.threads").split())
    assert "Compute threads of the engine. 1 to 256, default 1." in shown


def _undescribed(schema: dict[str, Any], where: str) -> Any:
    for name, part in schema.get("properties", {}).items():
        if name == "metadata":
            continue
        place = f"{where}.{name}"
        if not part.get("description"):
            yield place
        yield from _undescribed(part, place)
        yield from _undescribed(part.get("items", {}), f"{place}[]")


# --- examples ---------------------------------------------------------------------------------
def test_there_is_an_example_of_each_kind_that_a_person_writes() -> None:
    written = {kind.name for kind in KINDS if kind.short}
    assert {document(path)["kind"] for path in EXAMPLES.glob("*.yaml")} == written


def test_every_example_applies(stage: Any) -> None:
    """Each by the person who would write it; the placeholders are what the comments say."""
    editor = stage.person("edith", "edit")
    approver = stage.person("anna", "trimwheel-approver")
    for name in ("adaptivemodel", "adaptivepolicy", "tuningrun"):
        example = document(EXAMPLES / f"{name}.yaml", ME="edith")
        made = editor.create(example, fieldValidation="Strict")
        assert made.allowed, f"{name}: {made.message}"
    rollout = document(EXAMPLES / "policyrollout.yaml", ME="edith")
    asked = editor.create(rollout, fieldValidation="Strict")
    assert asked.allowed, asked.message
    stage.await_approval(asked.body)
    uid = asked.body["metadata"]["uid"]
    approval = document(EXAMPLES / "policyapproval.yaml", ME="anna", UID=uid)
    made = stage.settle(
        lambda: approver.create(approval, fieldValidation="Strict"), lambda answer: answer.allowed
    )
    assert made.allowed, made.message


def test_the_examples_name_the_digest_of_the_example_policy() -> None:
    policy = document(EXAMPLES / "adaptivepolicy.yaml")["spec"]["policy"]
    digest = parse_policy(policy).digest
    for name in ("policyrollout", "policyapproval"):
        assert document(EXAMPLES / f"{name}.yaml")["spec"]["policyDigest"] == digest


def document(path: Path, **words: str) -> dict[str, Any]:
    """The example, with whole values replaced."""
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    spec = {key: words.get(value, value) if isinstance(value, str) else value
            for key, value in found["spec"].items()}  # fmt: skip
    return {**found, "spec": spec}


def test_kubectl_applies_the_crds_of_the_chart_again(stage: Any, chart: Path) -> None:
    """A CEL rule above the cost budget, or a schema that is not structural, fails here."""
    for path in sorted((chart / "templates" / "crds").glob("*.yaml")):
        arguments = ("apply", "--server-side", "--force-conflicts", "--dry-run=server")
        try:
            said = stage.cluster.kubectl(*arguments, "--filename", str(path))
        except subprocess.CalledProcessError as error:
            pytest.fail(f"{path.name}: {error.stderr}")
        assert "serverside-applied" in said
