"""Verbs that need no cluster: digest and validate policy documents, print the CRDs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import yaml

from trimwheel_api.crd import manifests
from trimwheel_api.errors import InvalidInput, PolicyInvalid
from trimwheel_api.policy import Policy, parse_policy
from trimwheel_cli.verbs import COMMANDS
from trimwheel_console import NEGATIVE, emit, output_option
from trimwheel_console.exits import error_body

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
@click.option("--exits", type=click.IntRange(1), help="Number of exits of the model.")
@click.option("--experts", type=click.IntRange(1), help="Number of experts of the model.")
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
    try:
        with click.open_file(file) as stream:
            content = _parsed(stream.read())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("FILE", f"must be a readable text file ({error})", file) from error
    except yaml.YAMLError as error:
        told = " ".join(str(error).split())
        raise PolicyInvalid("policy", f"must be JSON or YAML ({told})", Path(file).name) from error
    if isinstance(content, dict) and content.get("kind") == "AdaptivePolicy":
        return (content.get("spec") or {}).get("policy", {})
    return content


def _parsed(text: str) -> Any:
    """JSON where it is JSON (YAML refuses its tabs), otherwise YAML; keys given twice refused."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError:
        return yaml.load(text, _StrictLoader)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [key for key, _ in pairs]
    twice = next((key for key in names if names.count(key) > 1), None)
    if twice is not None:
        raise PolicyInvalid("policy", f"key {twice!r} is given twice", dict(pairs)[twice])
    return dict(pairs)


def _described(document: Policy) -> str:
    kind = "the dense policy" if document.is_dense else "a policy"
    return f"valid: {kind}, {document.digest}"


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice: which one would count is a guess."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
