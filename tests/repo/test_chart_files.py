"""The chart's files as they lie in the repository; no helm and no cluster needed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from trimwheel_api import generate, names
from trimwheel_api.crd import manifests, structural
from trimwheel_api.kinds import KINDS
from trimwheel_api.policy import MAX_DOCUMENT_BYTES

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "trimwheel"
VALUES = (CHART / "values.yaml").read_text()


# --- generated files --------------------------------------------------------------------------
def test_the_committed_crds_are_what_the_kinds_say() -> None:
    assert generate.stale(ROOT / generate.CRD_FOLDER) == []


def test_a_missing_changed_or_superfluous_crd_is_found(tmp_path: Path) -> None:
    generate.write(tmp_path)
    (tmp_path / "tuningruns.yaml").unlink()
    (tmp_path / "extra.yaml").write_text("a: 1\n")
    with (tmp_path / "policyrollouts.yaml").open("a") as file:
        file.write("# by hand\n")
    assert generate.stale(tmp_path) == [
        "extra.yaml: no kind has this file",
        "policyrollouts.yaml: differs from the kinds",
        "tuningruns.yaml: missing",
    ]
    assert generate.main(["--check", "--folder", str(tmp_path)]) == 1
    assert generate.main(["--folder", str(tmp_path)]) == 0
    assert generate.main(["--check", "--folder", str(tmp_path)]) == 0


def test_keys_that_kubernetes_would_read_as_booleans_are_quoted() -> None:
    """PyYAML leaves `n` plain; the YAML parser of kubectl and Helm takes it for `false`."""
    text = generate.files()["adaptivepolicies.yaml"]
    assert re.search(r"^ +'n':$", text, re.MULTILINE)
    assert not re.search(r"^ *(- )?[yYnN](:|$)", text, re.MULTILINE)


def test_crds_survive_an_uninstall() -> None:
    for manifest in manifests():
        assert manifest["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_every_field_of_every_kind_has_a_description() -> None:
    missing = []
    for manifest in manifests():
        schema = manifest["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        missing += list(_undescribed(schema, manifest["spec"]["names"]["kind"]))
    assert missing == []


def test_no_default_reaches_into_the_policy_document() -> None:
    """A defaulted knob would change the digest of stored objects with an upgrade."""
    policy = next(one for one in manifests() if one["spec"]["names"]["kind"] == "AdaptivePolicy")
    schema = policy["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    document = schema["properties"]["spec"]["properties"]["policy"]
    assert document.keys() == {"type", "description", "x-kubernetes-preserve-unknown-fields"}


@pytest.mark.parametrize(
    "schema", [{"exclusiveMinimum": 0}, {"prefixItems": []}, {"anyOf": [{"type": "string"}] * 2}]
)
def test_what_a_crd_cannot_express_is_an_error_that_names_the_field(schema: Any) -> None:
    with pytest.raises(ValueError, match=r"^Kind\.spec\.field: "):
        structural(schema, {}, "Kind.spec.field")


def _undescribed(schema: dict[str, Any], where: str) -> Iterator[str]:
    for name, part in schema.get("properties", {}).items():
        # What metadata is, the API server says itself; a CRD must not.
        if name != "metadata" or "." in where:
            if not part.get("description"):
                yield f"{where}.{name}"
            yield from _undescribed(part, f"{where}.{name}")
            yield from _undescribed(part.get("items", {}), f"{where}.{name}[]")


# --- values -----------------------------------------------------------------------------------
def comments() -> dict[str, str]:
    """Dotted path of each value -> the comment right above it."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    pending: list[str] = []
    for line in VALUES.splitlines():
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if text.startswith("#"):
            pending.append(text.lstrip("# "))
            continue
        if match := re.match(r"([A-Za-z_]+):", text):
            path = [*(part for part in path if part[0] < indent), (indent, match[1])]
            found[".".join(name for _, name in path)] = " ".join(pending)
        pending = []
    return found


def described(schema: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted path of each value in the schema, and its description."""
    for name, part in schema.get("properties", {}).items():
        yield f"{prefix}{name}", part.get("description", "")
        yield from described(part, f"{prefix}{name}.")


EXAMPLES = {"operator.resources", "pipelines.resources", "tuning.resources"}
"""Below these a value is Kubernetes' own, with names that are not the chart's."""


def test_every_value_has_a_comment_that_editors_show_as_well() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    said = {path: text for path, text in described(schema) if path != "global"}
    inside = tuple(f"{path}." for path in EXAMPLES)
    written = {path: text for path, text in comments().items() if not path.startswith(inside)}
    written.pop("dashboards.labels.grafana_dashboard")
    said = {path: text for path, text in said.items() if not path.startswith(inside)}
    assert written == said
    assert all(text.endswith((".", ":")) or text for text in written.values())


def test_the_schema_refuses_keys_that_it_does_not_know() -> None:
    def closed(schema: dict[str, Any], where: str) -> Iterator[str]:
        for name, part in schema.get("properties", {}).items():
            if "properties" in part and part.get("additionalProperties") is not False:
                yield f"{where}{name}"
            yield from closed(part, f"{where}{name}.")

    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["additionalProperties"] is False
    assert list(closed(schema, "")) == []


def test_the_embedded_shape_names_images_that_are_processes() -> None:
    shape = yaml.safe_load((CHART / "ci" / "embedded-values.yaml").read_text())
    for image in shape["images"].values():
        assert image["repository"].startswith("process.trimwheel.dev/")


# --- templates --------------------------------------------------------------------------------
def test_each_admission_policy_has_a_file_that_says_what_it_is_for() -> None:
    files = {path.stem: path.read_text() for path in (CHART / "templates/admission").glob("*.yaml")}
    assert {f"trimwheel-{stem}" for stem in files} == set(names.ADMISSION_POLICIES)
    for stem, text in files.items():
        assert text.startswith("# "), stem


def test_roles_name_the_kinds_of_the_contract_and_no_others() -> None:
    known = {kind.plural for kind in KINDS}
    for path in (CHART / "templates").rglob("r*.yaml"):
        text = path.read_text()
        for group in re.findall(r"apiGroups: \[trimwheel\.dev\]\n +resources: \[([^]]*)\]", text):
            for resource in group.split(","):
                assert resource.strip().split("/")[0] in known, (path.name, resource)


def test_the_chart_stores_no_document_that_an_assignment_could_not_carry() -> None:
    policy = (CHART / "templates" / "admission" / "certificates.yaml").read_text()
    assert f".size() <= {MAX_DOCUMENT_BYTES}" in policy
    assert f"at most {MAX_DOCUMENT_BYTES} bytes" in policy
