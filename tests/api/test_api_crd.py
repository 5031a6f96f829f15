"""The CRDs: structural, described, limited; and what the flattener refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from trimwheel_api.crd import manifests, structural
from trimwheel_api.kinds import KINDS
from trimwheel_api.kinds.adaptive_policy import AdaptivePolicySpec
from trimwheel_api.kinds.policy_rollout import FROZEN

CRDS = {crd["spec"]["names"]["kind"]: crd for crd in manifests()}
ALLOWED = {
    "type", "description", "default", "enum", "pattern", "format", "minLength", "maxLength",
    "minimum", "maximum", "minItems", "maxItems", "maxProperties", "required",
    "nullable", "properties", "items",
    "additionalProperties", "x-kubernetes-validations", "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys", "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-int-or-string", "anyOf",
}  # fmt: skip


def schema(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = CRDS[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def walk(part: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, part
    for name, inner in part.get("properties", {}).items():
        yield from walk(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(part.get(key), dict):
            yield from walk(part[key], f"{path}[]")


@pytest.mark.parametrize("kind", CRDS)
def test_every_schema_is_structural(kind):
    for path, part in walk(schema(kind), kind):
        assert set(part) <= ALLOWED, (path, set(part) - ALLOWED)
        assert "type" in part or part.get("x-kubernetes-int-or-string"), path
        assert not ("properties" in part and "additionalProperties" in part), path


@pytest.mark.parametrize("kind", CRDS)
def test_no_field_of_a_spec_is_a_float(kind):
    for path, part in walk(schema(kind)["properties"]["spec"], kind):
        assert part.get("type") != "number", path


@pytest.mark.parametrize("kind", CRDS)
def test_every_field_of_a_spec_is_described(kind):
    for path, part in walk(schema(kind)["properties"]["spec"], f"{kind}.spec"):
        if not path.endswith("[]"):
            assert part.get("description"), path


@pytest.mark.parametrize("kind", CRDS)
def test_every_kind_says_what_it_is(kind):
    assert len(schema(kind)["description"]) > 40


@pytest.mark.parametrize("kind", CRDS)
def test_the_spec_is_required(kind):
    """Otherwise removing and adding it again would pass every immutability rule."""
    assert schema(kind)["required"] == ["spec"]


def test_spans_and_counts_that_nothing_could_work_with_are_refused_by_the_api_server():
    parts = dict(walk(schema("AdaptiveModel"), ""))
    for field in ("drift.block", "drift.reference", "tuning.timeout", "tuning.certificateTTL",
                  "tuning.schedule"):  # fmt: skip
        [_, rule] = parts[f".spec.{field}"]["x-kubernetes-validations"]
        assert rule["rule"] == "self.matches('[1-9]')", field
        assert "must be longer than 0s, but got" in rule["messageExpression"]
    [rule, _] = parts[".spec.drift.falseAlarmAudits"]["x-kubernetes-validations"]
    assert rule["rule"] == "double(self) >= 1.0"
    [rule] = parts[""]["x-kubernetes-validations"]
    assert "self.metadata.name.matches" in rule["rule"]


def test_the_policy_document_takes_no_defaults_from_the_api_server():
    """A CRD upgrade that adds a defaulted knob would change the digest of stored objects."""
    part = schema("AdaptivePolicy")["properties"]["spec"]["properties"]["policy"]
    assert part["x-kubernetes-preserve-unknown-fields"] is True
    assert "properties" not in part


def test_statuses_start_unobserved():
    for kind in KINDS:
        if kind.has_status and kind.short:
            status = schema(kind.name)["properties"]["status"]
            assert status["default"] == {"observedGeneration": -1}


def test_conditions_are_those_of_kubernetes():
    for kind in KINDS:
        if kind.has_status and kind.short:
            part = schema(kind.name)["properties"]["status"]["properties"]["conditions"]
            assert part["x-kubernetes-list-type"] == "map"
            assert part["x-kubernetes-list-map-keys"] == ["type"]
            inner = part["items"]
            assert set(inner["required"]) >= {"type", "status", "reason", "lastTransitionTime"}
            assert inner["properties"]["lastTransitionTime"]["format"] == "date-time"
            assert inner["properties"]["observedGeneration"]["format"] == "int64"


def test_short_names_and_category_are_those_of_the_interface():
    spoken = {kind: crd["spec"]["names"] for kind, crd in CRDS.items()}
    short = {kind: names.get("shortNames", []) for kind, names in spoken.items()}
    assert short == {
        "AdaptiveModel": ["amodel"],
        "AdaptivePolicy": ["adpolicy"],
        "TuningRun": ["tuning"],
        "PolicyRollout": ["prollout"],
        "PolicyApproval": ["papproval"],
        "PolicyAssignment": [],
        "PolicyJournal": [],
    }
    assert "categories" not in spoken["PolicyAssignment"]
    assert all(names["categories"] == ["trimwheel"] for kind, names in spoken.items()
               if kind not in ("PolicyAssignment", "PolicyJournal"))  # fmt: skip


def test_a_rollout_changes_only_by_pause_and_abort():
    spec = schema("PolicyRollout")["properties"]["spec"]
    rules = " ".join(rule["rule"] for rule in spec["x-kubernetes-validations"])
    free = set(spec["properties"]) - {"paused", "abort"}
    assert set(FROZEN) | {"steps", "onBehalfOf"} == free
    assert all(f"self.{field} == oldSelf.{field}" in rules for field in free)


@pytest.mark.parametrize("kind", ["AdaptivePolicy", "TuningRun", "PolicyApproval"])
def test_immutable_kinds_say_so(kind):
    rules = schema(kind)["properties"]["spec"]["x-kubernetes-validations"]
    assert {"self == oldSelf"} == {rule["rule"] for rule in rules if "oldSelf" in rule["rule"]}


def test_strings_that_rules_compare_are_bounded():
    """The API server refuses a rule whose worst case is too dear: unbounded strings are."""
    for kind in CRDS:
        for path, part in walk(schema(kind)["properties"]["spec"], kind):
            if part.get("type") == "string" and "enum" not in part and "PolicyRollout" in path:
                assert "maxLength" in part, path


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "no unions"),
        ({"type": "array", "prefixItems": []}, "prefixItems"),
        ({"type": "number", "exclusiveMinimum": 0}, "exclusiveMinimum"),
        ({"type": "string", "surprise": 1}, "unknown schema keyword 'surprise'"),
    ],
)
def test_what_a_crd_cannot_express_is_refused_by_field(bad, why):
    with pytest.raises(ValueError, match=f"^there.*{why}"):
        structural(bad, {}, "there")


def test_every_default_of_a_schema_is_one_that_its_model_makes():
    made = AdaptivePolicySpec(model="m").model_dump(by_alias=True)
    for name, part in schema("AdaptivePolicy")["properties"]["spec"]["properties"].items():
        if "default" in part:
            assert part["default"] == made[name], name
