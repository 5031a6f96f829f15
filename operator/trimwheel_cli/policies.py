"""Verbs that need no cluster: digest and validate policy documents, print the CRDs."""

from __future__ import annotations

from typing import Any

import click
import yaml

from trimwheel_api.crd import manifests
from trimwheel_api.errors import PolicyInvalid
from trimwheel_api.policy import MAX_EXITS, MAX_EXPERTS, Policy, parse_policy
from trimwheel_cli.verbs import COMMANDS
from trimwheel_console import NEGATIVE, documents, emit, output_option
from trimwheel_console.exits import error_body
from trimwheel_console.ranges import Whole

_file_argument = click.argument("file", type=click.Path(allow_dash=True, dir_okay=False))


@click.group("policy", short_help=COMMANDS["policy"].summary)
def policy() -> None:
    """Digest and validate policy documents.

    FILE holds a policy document (JSON or YAML) or a whole AdaptivePolicy; - is standard input.
    """


@policy.command("digest")
@_file_argument
@output_option
def digest(file: str, output: str) -> None:
    """Print the digest of a policy document.

    The digest names the document's meaning: key order, trailing zeros and default values do not
    change it. It is what spec.policyDigest of a PolicyRollout must hold.

    \b
      trimwheel policy digest policy.yaml
      echo '{}' | trimwheel policy digest -
    """
    document = parse_policy(read_document(file))
    value = {"digest": document.digest, "document": document.document()}
    emit(value, output, table=document.digest)


@policy.command("validate")
@_file_argument
@click.option("--exits", type=Whole(1, MAX_EXITS), help="Number of exits of the model.")
@click.option("--experts", type=Whole(1, MAX_EXPERTS), help="Number of experts of the model.")
@output_option
def validate(file: str, exits: int | None, experts: int | None, output: str) -> None:
    """Check a policy document as the operator does; exits 1 when it breaks a rule.

    Naming the model's shape also checks what only fits some models.

    \b
      trimwheel policy validate policy.yaml --exits 5 --experts 4
    """
    try:
        document = parse_policy(read_document(file), exits=exits, experts=experts)
    except PolicyInvalid as error:
        emit({"valid": False} | error_body(error), output, table=f"invalid: {error}")
        click.get_current_context().exit(NEGATIVE)
    value = {"valid": True, "digest": document.digest, "document": document.document()}
    emit(value, output, table=_described(document))


@click.command("crds", short_help=COMMANDS["crds"].summary)
@output_option
def crds(output: str) -> None:
    """Print the CustomResourceDefinitions, as the chart installs them.

    \b
      trimwheel crds | kubectl apply --server-side --dry-run=server -f -
      trimwheel crds -o json | jq '.items[].metadata.name'
    """
    made = manifests()
    value = {"apiVersion": "v1", "kind": "List", "items": made}
    emit(value, output, table=lambda: yaml.safe_dump_all(made, sort_keys=False), newline=False)


def read_document(file: str) -> Any:
    """The policy document in a file: the whole content, or `.spec.policy` of an AdaptivePolicy.

    Raises InvalidInput when the file cannot be read or is neither JSON nor YAML.
    """
    content = documents.read_document(file, "FILE", PolicyInvalid)
    if not isinstance(content, dict) or content.get("kind") != "AdaptivePolicy":
        return content
    spec = {} if content.get("spec") is None else content["spec"]
    if not isinstance(spec, dict):
        raise PolicyInvalid("spec", "must be an object in an AdaptivePolicy", spec)
    return spec.get("policy", {})


def _described(document: Policy) -> str:
    kind = "the dense policy" if document.is_dense else "a policy"
    return f"valid: {kind}, {document.digest}"
