"""docs/reference/kinds.md: every kind and field, from the CRDs as they are installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from trimwheel_api.crd import manifests
from trimwheel_api.names import API_VERSION, CATEGORY
from trimwheel_cli.reference.markdown import code, page, table

_LIMITS = (
    ("minimum", "at least {}"),
    ("maximum", "at most {}"),
    ("minLength", "at least {} characters"),
    ("maxLength", "at most {} characters"),
    ("minItems", "at least {} items"),
    ("maxItems", "at most {} items"),
    ("pattern", "matches `{}`"),
)


def render() -> str:
    """The page."""
    intro = (
        f"All kinds are namespaced, of `{API_VERSION}`. `kubectl get {CATEGORY}` lists those that "
        "people write; `kubectl explain KIND.spec --recursive` shows the same as this page. "
        "Numbers in specs are decimal strings, durations look like `1h30m`, percentages like `5%`."
    )
    return page("Kinds", "trimwheel_api.kinds", intro, *(_kind(crd) for crd in manifests()))


def _kind(crd: dict[str, Any]) -> str:
    spoken = crd["spec"]["names"]
    version = crd["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    called = [spoken["plural"], *spoken.get("shortNames", [])]
    parts = [
        f"## {spoken['kind']}",
        f"{schema['description'].splitlines()[0]} Names: {', '.join(map(code, called))}.",
    ]
    for section in ("spec", "status"):
        if section in schema["properties"]:
            part = schema["properties"][section]
            headers = ("field", "type", "default", "limits", "meaning")
            parts += [f"### {spoken['kind']} {section}", table(headers, _fields(part, section))]
            parts += _rules(part, section)
    columns = ", ".join(column["name"] for column in version["additionalPrinterColumns"])
    parts.append(f"Columns of `kubectl get`: {columns}.")
    return "\n\n".join(parts)


def _fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, ...]]:
    required = schema.get("required", [])
    for name, part in schema.get("properties", {}).items():
        where = f"{path}.{name}"
        default = "required" if name in required else _default(part)
        yield code(where), _type(part), default, _limits(part), part.get("description", "")
        inner = part.get("items", part)
        yield from _fields(inner, f"{where}[]" if "items" in part else where)


def _type(part: dict[str, Any]) -> str:
    if "items" in part:
        return f"list of {_type(part['items'])}"
    if "additionalProperties" in part:
        return f"map to {_type(part['additionalProperties'])}"
    if part.get("x-kubernetes-int-or-string"):
        return "integer or string"
    if part.get("x-kubernetes-preserve-unknown-fields"):
        return "free object"
    return str(part.get("type", "object"))


def _default(part: dict[str, Any]) -> str:
    if "default" not in part:
        return ""
    value = part["default"]
    # A whole object's default repeats those of its fields, which have rows of their own.
    if isinstance(value, dict) and part.get("properties"):
        return ""
    return code(json.dumps(value, ensure_ascii=False))


def _limits(part: dict[str, Any]) -> str:
    said = [text.format(part[key]) for key, text in _LIMITS if key in part]
    if "enum" in part:
        said.insert(0, "one of " + ", ".join(code(value) for value in part["enum"]))
    if "items" in part and (inner := _limits(part["items"])):
        said.append(f"each {inner}")
    return "; ".join(said)


def _rules(schema: dict[str, Any], path: str) -> list[str]:
    found = [f"- {message}" for message in _messages(schema)]
    return [f"Rules the API server checks on {code(path)}:\n\n" + "\n".join(found)] if found else []


def _messages(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Messages of an object name their fields; that of one value is put after its path."""
    for rule in schema.get("x-kubernetes-validations", []):
        whole = schema.get("type") == "object"
        yield rule["message"] if whole else f"{code(path)} {rule['message']}"
    for name, part in schema.get("properties", {}).items():
        inner = f"{path}.{name}".lstrip(".")
        yield from _messages(part, inner)
        yield from _messages(part.get("items", {}), f"{inner}[]")
