"""JSON of the API server, however deep somebody nested it: one object never hides the others.

Called by the operator's client (`cluster`) and, through `connection`, by every other. Kubernetes
stores objects 10,000 levels deep, Python's parser raises RecursionError at 1,000, and a list is one
document: two kilobytes of one tenant would end it for everybody. What is deeper than anything
that we read is therefore replaced before the second try. Leaves out what an object means.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from kubernetes import client

MOST_KEPT = 200
"""Levels of an answer that are decoded when not all of them can be."""
MOST_READ = 64
"""Levels of an object that is read as its kind: ours have about a dozen."""
LEFT_OUT = b'"nested too deep: left out"'
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]|[\]}]', re.DOTALL)


def decode(data: bytes | str) -> Any:
    """The document. Raises ValueError when it is no JSON, and never RecursionError."""
    try:
        return json.loads(data)
    except RecursionError:
        return json.loads(cut(data.encode() if isinstance(data, str) else data))


def cut(data: bytes, most: int = MOST_KEPT) -> bytes:
    """The same document with every list and map below `most` levels replaced by a sentence."""
    kept: list[bytes] = []
    depth = begun = 0
    for token in _TOKEN.finditer(data):
        mark = data[token.start()]
        if mark in b"[{":
            depth += 1
            if depth == most + 1:
                kept.append(data[begun : token.start()])
        elif mark in b"]}":
            if depth == most + 1:
                kept.append(LEFT_OUT)
                begun = token.end()
            depth -= 1
    rest = data[begun:] if depth <= most else b""
    return b"".join((*kept, rest))


def is_deeper(value: Any, most: int = MOST_READ) -> bool:
    """Whether lists and maps are nested more than `most` levels; asks level by level."""
    level = _nested([value])
    for _ in range(most):
        level = [inner for one in level for inner in _nested(_values(one))]
    return bool(level)


def _values(one: Any) -> Iterable[Any]:
    return one.values() if isinstance(one, dict) else one


def _nested(values: Iterable[Any]) -> list[Any]:
    return [one for one in values if isinstance(one, (dict, list))]


class Client(client.ApiClient):  # type: ignore[misc]
    """The library's client; a list in which an object is too deep is a list all the same."""

    def deserialize(self, response: Any, *how: Any) -> Any:
        """As the library does it, of what can be decoded."""
        try:
            return super().deserialize(response, *how)
        except RecursionError:
            if isinstance(response, str):
                return super().deserialize(_shallow(response), *how)
            response.data = _shallow(response.data)
            return super().deserialize(response, *how)


def _shallow(text: str) -> str:
    return cut(text.encode()).decode()
