"""`policy digest`, `policy validate` and `crds`: no cluster needed."""

from __future__ import annotations

import json

import pytest
import yaml
from click.testing import CliRunner

from trimwheel_api.policy import DENSE
from trimwheel_cli.main import cli
from trimwheel_console import NEGATIVE, OK, USAGE

POLICY = {"exit": {"enabled": True, "thresholds": ["0.90", "0.8"]}, "moe": {"topK": 1}}


def run(*arguments: str, stdin: str | None = None):
    return CliRunner().invoke(cli, list(arguments), input=stdin)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(POLICY),
        json.dumps(POLICY, indent="\t"),
        yaml.safe_dump(POLICY),
        yaml.safe_dump({"kind": "AdaptivePolicy", "spec": {"model": "m", "policy": POLICY}}),
    ],
    ids=["json", "json with tabs", "yaml", "manifest"],
)
def test_every_way_to_write_a_policy_has_one_digest(tmp_path, text):
    file = tmp_path / "policy"
    file.write_text(text)
    done = run("policy", "digest", str(file), "-o", "json")
    assert done.exit_code == OK, done.output
    value = json.loads(done.stdout)
    assert value["document"]["exit"]["thresholds"] == ["0.9", "0.8"]
    assert run("policy", "digest", str(file)).stdout.strip() == value["digest"]


def test_a_manifest_without_a_document_is_the_dense_policy():
    done = run("policy", "digest", "-", stdin="kind: AdaptivePolicy\nspec: {model: m}")
    assert done.stdout.strip() == DENSE.digest


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"exit": {"enabled": true, "enabled": true}}', "given twice"),
        ("exit: {enabled: true, enabled: false}", "given twice"),
        ("exit: [", "JSON or YAML"),
        ('{"exit": {"thresholds": [0.9]}}', "policy.exit.thresholds.0"),
        ("[]", "must be an object"),
        ("", "must be an object"),
    ],
)
def test_a_broken_document_is_invalid_and_says_why(text, told):
    done = run("policy", "validate", "-", stdin=text)
    assert done.exit_code == NEGATIVE
    assert told in done.stdout
    digest = run("policy", "digest", "-", stdin=text)
    assert digest.exit_code == USAGE
    assert told in digest.stderr


def test_validation_knows_the_shape_of_the_model():
    text = json.dumps(POLICY)
    assert (
        run("policy", "validate", "-", "--exits", "2", "--experts", "4", stdin=text).exit_code == 0
    )
    done = run("policy", "validate", "-", "--exits", "5", "-o", "json", stdin=text)
    assert done.exit_code == NEGATIVE
    told = json.loads(done.stdout)
    assert told["valid"] is False
    assert told["error"]["field"] == "policy.exit.thresholds"


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path):
    done = run("policy", "digest", str(tmp_path / "none.yaml"))
    assert done.exit_code == USAGE
    assert "none.yaml" in done.stderr


def test_the_crds_are_yaml_documents_and_a_json_list():
    documents = list(yaml.safe_load_all(run("crds").stdout))
    listed = json.loads(run("crds", "-o", "json").stdout)["items"]
    assert documents == listed
    assert {crd["kind"] for crd in documents} == {"CustomResourceDefinition"}
