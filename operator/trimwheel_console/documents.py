"""Files that people name: one JSON or YAML document, read with limits, or an error in a sentence.

Used by every verb that takes a file. What comes back is JSON's own values and nothing else: no
dates, sets, NaN or keys that are numbers, which YAML would let through. Says nothing about what
the document has to hold.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click
import yaml

from trimwheel_api.errors import InvalidInput

MAX_BYTES = 1 << 20
"""What etcd takes of one object; every document that we read is far below."""
MAX_DEPTH = 64
MAX_VALUES = 100_000
"""More than a file within `MAX_BYTES` has, unless YAML aliases multiply it."""


def read_text(file: str | Path, field: str) -> str:
    """A text file, `-` for standard input. Raises InvalidInput."""
    try:
        with click.open_file(str(file), "rb") as stream:
            data: bytes = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidInput(field, f"must be a readable text file ({reason})", str(file)) from error
    if len(data) > MAX_BYTES:
        raise InvalidInput(field, f"must be at most {MAX_BYTES:,} bytes long", str(file))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(field, f"must be a readable text file ({error})", str(file)) from error


def read_document(file: str | Path, field: str, invalid: type[InvalidInput] = InvalidInput) -> Any:
    """The document in a file; `invalid` is raised when its content is no document."""
    return parse_document(read_text(file, field), field, Path(file).name, invalid)


def read_object(file: str | Path, field: str) -> dict[str, Any]:
    """The document in a file, which has to be an object. Raises InvalidInput."""
    value = read_document(file, field)
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else type(value).__name__
        raise InvalidInput(field, f"must hold an object, not {kind}", str(file))
    return value


def parse_document(
    text: str, field: str, shown: object, invalid: type[InvalidInput] = InvalidInput
) -> Any:
    """JSON where it is JSON (YAML refuses its tabs), otherwise YAML; keys given twice refused."""
    try:
        value = _parsed(text)
        _check(value)
    except _Broken as error:
        raise invalid(field, str(error), shown) from error
    except RecursionError as error:
        raise invalid(field, f"must not nest deeper than {MAX_DEPTH} levels", shown) from error
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        told = " ".join(str(error).split())
        raise invalid(field, f"must be JSON or YAML ({told[:300]})", shown) from error
    return value


class _Broken(Exception):
    """The document breaks a rule of ours; the message is the rule."""


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError:
        return yaml.load(text, _StrictLoader)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise _Broken(f"key {twice!r} is given twice")
    return made


def _check(document: Any) -> None:
    """Raise _Broken for what JSON does not know; without recursion, and each alias counted."""
    waiting = [(document, 1)]
    seen = 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > MAX_DEPTH:
            raise _Broken(f"must not nest deeper than {MAX_DEPTH} levels")
        if seen > MAX_VALUES:
            raise _Broken(f"must hold at most {MAX_VALUES:,} values")
        if isinstance(value, dict):
            waiting += [(item, depth + 1) for item in value.values()]
            odd = next((key for key in value if not isinstance(key, str)), None)
            if odd is not None or None in value:
                raise _Broken(f"keys must be text, but one is {odd!r}")
        elif isinstance(value, list):
            waiting += [(item, depth + 1) for item in value]
        else:
            _check_scalar(value)


def _check_scalar(value: Any) -> None:
    if not isinstance(value, (str, int, float, bool, type(None))):
        kind = type(value).__name__
        raise _Broken(f"must hold text, numbers, lists and objects only, but there is a {kind}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _Broken(f"numbers must be finite, but one is {value}")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise _Broken("whole numbers must fit into 64 bits")


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice: which one would count is a guess."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.append(key)
        return super().construct_mapping(node, deep)
