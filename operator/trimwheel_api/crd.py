"""Turns the kinds into CustomResourceDefinition manifests.

Called by `make generate`, which writes them into the chart. A pydantic JSON schema is not a
Kubernetes structural schema; `structural` rewrites the one into the other and raises on what a CRD
cannot express, so that a model never silently loses a rule.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, NoDefault
from pydantic_core.core_schema import WithDefaultSchema

from trimwheel_api import loosening, names
from trimwheel_api.kinds import KINDS, Kind, dump

_DROPPED = {"title", "needs", "scope", "discriminator"}
_PASSED = {
    "type", "description", "default", "enum", "pattern", "format", "minLength", "maxLength",
    "minimum", "maximum", "minItems", "maxItems", "maxProperties", "required", "nullable",
}  # fmt: skip

Column = tuple[str, str, str, int]
_PRINTER: dict[str, tuple[Column, ...]] = {
    "AdaptiveModel": (
        ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
        ("Stable", "string", ".status.stable.digest", 0),
        ("Candidate", "string", ".status.candidate.rollout", 0),
        ("Certificate", "string", ".status.certificate.state", 0),
        ("Drift", "string", ".status.drift.verdict", 0),
        ("Degraded", "string", '.status.conditions[?(@.type=="Degraded")].status', 1),
        ("Replicas", "integer", ".status.readyReplicas", 1),
        ("Endpoint", "string", ".status.endpoint", 1),
    ),
    "AdaptivePolicy": (
        ("Model", "string", ".spec.model", 0),
        ("Digest", "string", ".status.digest", 0),
        ("Certified", "string", '.status.conditions[?(@.type=="Certified")].status', 0),
        ("Active", "string", '.status.conditions[?(@.type=="Active")].status', 0),
        ("Expires", "string", ".spec.certificate.expiresAt", 1),
    ),
    "TuningRun": (
        ("Model", "string", ".spec.model", 0),
        ("Reason", "string", ".spec.reason", 0),
        ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
        ("Phase", "string", ".status.phase", 0),
        ("Outcome", "string", ".status.outcome", 0),
        ("Trials", "integer", ".status.trialsDone", 0),
        ("Cost", "string", ".status.bestCost", 1),
        ("Risk", "string", ".status.bestRisk", 1),
        ("MLflow", "string", ".status.mlflowURL", 1),
    ),
    "PolicyRollout": (
        ("Model", "string", ".spec.model", 0),
        ("Type", "string", ".spec.type", 0),
        ("Phase", "string", ".status.phase", 0),
        ("Weight", "integer", ".status.weightBasisPoints", 0),
        ("Verdict", "string", ".status.verdict", 0),
        ("Digest", "string", ".spec.policyDigest", 1),
        ("RequestedBy", "string", ".spec.requestedBy", 1),
    ),
    "PolicyApproval": (
        ("Rollout", "string", ".spec.rollout", 0),
        ("Decision", "string", ".spec.decision", 0),
        ("Approver", "string", ".spec.approver", 0),
    ),
    "PolicyAssignment": (
        ("Epoch", "integer", ".spec.epoch", 0),
        ("Stable", "string", ".spec.stable.digest", 0),
        ("Weight", "integer", ".spec.weightBasisPoints", 0),
        ("Hold", "boolean", ".spec.hold", 0),
    ),
    "PolicyJournal": (
        ("Namespace", "string", ".spec.namespace", 0),
        ("Model", "string", ".spec.model", 0),
        ("Sequence", "integer", ".spec.sequence", 0),
        ("Copied", "integer", ".status.cursor", 0),
    ),
}
_AGE: Column = ("Age", "date", ".metadata.creationTimestamp", 0)


class _WithFactories(GenerateJsonSchema):
    """Takes defaults from factories as well, so that `kubectl get` shows what is in force.

    A section of a spec defaults to `{}`, and the API server then fills its fields one by one.
    What is empty without a default (lists, maps, sections of optional fields) stays unset.
    """

    def get_default_value(self, schema: WithDefaultSchema) -> Any:
        if "default_factory" not in schema:
            return super().get_default_value(schema)
        value = schema["default_factory"]()  # type: ignore[call-arg]
        if isinstance(value, BaseModel):
            return {} if dump(value) else NoDefault
        return [dump(one) if isinstance(one, BaseModel) else one for one in value] or NoDefault


def manifests() -> list[dict[str, Any]]:
    """All CRDs, in the order of the table of kinds."""
    return [_manifest(kind) for kind in KINDS]


def _manifest(kind: Kind) -> dict[str, Any]:
    version: dict[str, Any] = {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _object_schema(kind)},
        "additionalPrinterColumns": [_column(c) for c in (*_PRINTER[kind.name], _AGE)],
    }
    if kind.has_status:
        version["subresources"] = {"status": {}}
    if kind.name == "AdaptiveModel":
        version["subresources"]["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    spoken: dict[str, Any] = {
        "kind": kind.name,
        "listKind": f"{kind.name}List",
        "plural": kind.plural,
        "singular": kind.singular,
    }
    if kind.short:
        spoken |= {"shortNames": [kind.short], "categories": [names.CATEGORY]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{kind.plural}.{names.GROUP}",
            "annotations": {"helm.sh/resource-policy": "keep"},
            "labels": {names.LABEL_PART_OF: names.PART_OF},
        },
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": spoken,
            "versions": [version],
        },
    }


def _column(column: Column) -> dict[str, Any]:
    name, kind, path, priority = column
    printed: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path}
    return printed | ({"priority": priority} if priority else {})


def _object_schema(kind: Kind) -> dict[str, Any]:
    schema = kind.model.model_json_schema(by_alias=True, schema_generator=_WithFactories)
    defs = schema.get("$defs", {})
    properties = schema["properties"]
    kept: dict[str, Any] = {
        "apiVersion": {"type": "string", "description": f"{names.API_VERSION}."},
        "kind": {"type": "string", "description": f"{kind.name}."},
        "metadata": {"type": "object"},
        "spec": structural(properties["spec"], defs, f"{kind.name}.spec"),
    }
    # What is being created has no generation yet; without -1 a waiter sees "ready before seen".
    if kind.has_status:
        kept["status"] = structural(properties["status"], defs, f"{kind.name}.status")
        if "observedGeneration" in kept["status"]["properties"]:
            kept["status"]["default"] = {"observedGeneration": -1}
    rules = schema.get("x-kubernetes-validations")
    return {
        "type": "object",
        "description": (kind.model.__doc__ or "").strip(),
        "properties": kept,
        "required": ["spec"],
        **({"x-kubernetes-validations": rules} if rules else {}),
    }


def structural(schema: dict[str, Any], defs: dict[str, Any], where: str) -> dict[str, Any]:
    """A JSON schema of pydantic's as a structural schema.

    Raises ValueError naming the field for tuples, real unions and other things a CRD lacks.
    """
    schema = _resolved(schema, defs, where)
    if schema.pop("x-kubernetes-preserve-unknown-fields", False):
        return _scalars(schema, where) | {
            "type": "object",
            "x-kubernetes-preserve-unknown-fields": True,
        }
    out = _scalars(schema, where)
    if "properties" in schema:
        out["properties"] = {
            name: structural(part, defs, f"{where}.{name}")
            for name, part in schema["properties"].items()
        }
    elif isinstance(schema.get("additionalProperties"), dict):
        part = structural(schema["additionalProperties"], defs, f"{where}.*")
        out["additionalProperties"] = part
    if "items" in schema:
        out["items"] = structural(schema["items"], defs, f"{where}[]")
    if out.get("type") == "integer":
        out["format"] = "int64"
    for said in (_limits(out) if ".spec." in where else "", _authority(where)):
        if said:
            out["description"] = f"{out.get('description', '').rstrip('.')}. {said}".lstrip(". ")
    return out


def _authority(where: str) -> str:
    """Who may change a field of an AdaptiveModel, where not everybody who edits it may."""
    kind, _, path = where.partition(".spec.")
    return loosening.sentence(path) if kind == "AdaptiveModel" else ""


def _limits(schema: dict[str, Any]) -> str:
    """Range and default as a sentence: `kubectl explain` prints neither by itself."""
    low, high, default = (schema.get(key) for key in ("minimum", "maximum", "default"))
    parts = []
    if low is not None and high is not None:
        parts.append(f"{low} to {high}")
    elif low:
        parts.append(f"at least {low}")
    if isinstance(default, bool):
        parts.append(f"default {str(default).lower()}")
    elif isinstance(default, int) or (isinstance(default, str) and default):
        parts.append(f"default {default}")
    text = ", ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _resolved(schema: dict[str, Any], defs: dict[str, Any], where: str) -> dict[str, Any]:
    """Inline `$ref` and turn `X | None` into an optional X; keywords beside a `$ref` win."""
    schema = dict(schema)
    if "$ref" in schema:
        target = defs[schema.pop("$ref").rsplit("/", 1)[-1]]
        return _resolved(target | schema, defs, where)
    if "anyOf" in schema:
        options = [option for option in schema.pop("anyOf") if option.get("type") != "null"]
        if len(options) != 1:
            raise ValueError(f"{where}: a CRD has no unions, but got {len(options)} alternatives")
        if schema.get("default", ...) is None:
            del schema["default"]
        return _resolved(options[0] | schema, defs, where)
    if "const" in schema:
        schema["enum"] = [schema.pop("const")]
    return schema


def _scalars(schema: dict[str, Any], where: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _PASSED or key.startswith("x-kubernetes-"):
            out[key] = value
        elif key in ("exclusiveMinimum", "exclusiveMaximum", "prefixItems", "uniqueItems", "oneOf",
                     "allOf", "not"):  # fmt: skip
            raise ValueError(f"{where}: a CRD cannot express {key!r}, but got {value!r}")
        elif key not in _DROPPED | {"properties", "additionalProperties", "items"}:
            raise ValueError(f"{where}: unknown schema keyword {key!r}")
    if isinstance(out.get("description"), str):
        out["description"] = " ".join(out["description"].split())
    return out
