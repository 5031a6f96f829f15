"""Refuses a JSON body by its brackets, before it is parsed: too deep, or too many values.

`protocol` calls this. A megabyte of `[],` holds the event loop for 140 ms in any parser, and depth
costs whoever walks the result. Most bodies are let through by counting bytes; only where the counts
are high are strings taken out and the brackets looked at.
"""

from __future__ import annotations

import re

from trimwheel_api.errors import RequestInvalid
from trimwheel_workers.front.limits import JSON_DEPTH, JSON_VALUES

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+[\\"]?', re.DOTALL)
"""A string, to the end of the body where its end is missing: it always matches, so it never tries
again from within."""
_BRACKET = re.compile(rb"[\[\]{}]")


def check(body: bytes) -> None:
    """Raises RequestInvalid for a body beyond JSON_DEPTH or JSON_VALUES."""
    opened = body.count(b"[") + body.count(b"{")
    if opened <= JSON_DEPTH and opened + body.count(b",") <= JSON_VALUES:
        return
    # A text may hold escaped quotes in any number; the rest begin or end a string.
    if body.count(b'"') - body.count(b'\\"') > 4 * JSON_VALUES:
        raise _too_many()
    bare = _STRING.sub(b"", body)
    if bare.count(b"[") + bare.count(b"{") + bare.count(b",") > JSON_VALUES:
        raise _too_many()
    if _depth(bare) > JSON_DEPTH:
        raise RequestInvalid(
            "body", f"must be nested at most {JSON_DEPTH} deep", f"{_depth(bare)} deep"
        )


def _depth(bare: bytes) -> int:
    deepest = depth = 0
    for bracket in _BRACKET.findall(bare):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _too_many() -> RequestInvalid:
    rule = f"must hold at most {JSON_VALUES} JSON values"
    return RequestInvalid("body", rule, "more", "Send fewer texts, and no parameters that are long")
