"""docs/reference/policy.md: every knob with its range, default and marks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from trimwheel_api.policy import DENSE, Policy
from trimwheel_cli.reference.markdown import code, page, table

_INTRO = """\
The policy document is the few kilobytes of knobs that Trimwheel keeps right. The empty document
`{}` is the dense model: every default means full computation. Fractions are decimal strings.

Two marks say what a change of a knob takes:

- **needs** `replay`: judged from audit records alone; `run`: changes hidden states, so it is judged
  by running the model over stored inputs (`audits.inputs: sampled`).
- **scope** `row`: values mix freely within one batch; `batch`: requests with different values are
  computed in different batches."""

_DIGEST = f"""\
## Digest

`sha256:` and the hex digest of the document's RFC 8785 bytes, after decimals are normalised (no
exponent, no trailing zeros, no `-0`) and default values and empty objects are dropped. So
`{{"moe": {{"routerBlend": "0.50"}}, "exit": {{}}}}` and `{{"moe": {{"routerBlend": "0.5"}}}}`
have one digest. The digest of the dense policy is `{DENSE.digest}`.
`trimwheel policy digest FILE` prints it; `trimwheel policy validate FILE` checks a document."""

_EXAMPLE = """\
## Example

```yaml
apiVersion: trimwheel.dev/v1alpha1
kind: AdaptivePolicy
metadata: {name: by-hand, namespace: shop}
spec:
  model: classifier
  policy:
    exit: {enabled: true, score: learned, thresholds: ["0.97", "0.95", "0.93", "0.9", "0.9"]}
    moe: {topK: 1, routerBlend: "1"}
```"""


def render() -> str:
    """The page."""
    schema = Policy.model_json_schema(by_alias=True)
    parts = [_group(name, part, schema["$defs"]) for name, part in schema["properties"].items()]
    return page("Policy document", "trimwheel_api.policy", _INTRO, *parts, _DIGEST, _EXAMPLE)


def _group(name: str, part: dict[str, Any], defs: dict[str, Any]) -> str:
    group = defs[part["$ref"].rsplit("/", 1)[-1]]
    headers = ("knob", "type", "default", "needs", "scope", "meaning")
    description = group["description"].splitlines()[0]
    return f"## {name}\n\n{description}\n\n{table(headers, _knobs(name, group))}"


def _knobs(name: str, group: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for knob, part in group["properties"].items():
        default = part.get("default", [])
        yield (
            code(f"{name}.{knob}"),
            _type(part),
            "unset" if default is None else code(json.dumps(default)),
            code(part["needs"]),
            code(part["scope"]),
            part["description"],
        )


def _type(part: dict[str, Any]) -> str:
    if "anyOf" in part:
        return next(_type(option) for option in part["anyOf"] if option.get("type") != "null")
    if "enum" in part:
        return "one of " + ", ".join(code(value) for value in part["enum"])
    if part["type"] == "array":
        return f"list of {_type(part['items'])}, at most {part['maxItems']}"
    if part["type"] == "integer":
        return f"integer, {part['minimum']} to {part['maximum']}"
    return "decimal string" if "pattern" in part else str(part["type"])
