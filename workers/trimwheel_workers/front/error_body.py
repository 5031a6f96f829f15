"""Error bodies of the HTTP port: `{"error": "one sentence", "details": {field, rule, value}}`.

The protocol wants a string under `error`, and stock clients fail on anything else; programs read
`details`. Used by `app` and, for what is refused before there is a request, by `connections`.
"""

from __future__ import annotations

import orjson

from trimwheel_api.errors import InvalidInput


def error_body(field: str, rule: str, value: object = "", sentence: str = "") -> bytes:
    """JSON of an error; the sentence is `field: rule` unless given."""
    details = {"field": field, "rule": rule, "value": value}
    return orjson.dumps({"error": sentence or f"{field}: {rule}", "details": details})


def invalid_body(error: InvalidInput) -> bytes:
    """JSON of a client's mistake."""
    return orjson.dumps({"error": error.sentence(), "details": error.details()})
