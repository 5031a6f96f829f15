"""Compressed request bodies, within the same limit as plain ones. Called by `app`.

Stock clients offer gzip and deflate. A kilobyte may unfold to a megabyte, so unfolding stops there.
"""

from __future__ import annotations

import zlib

from trimwheel_api.errors import RequestInvalid
from trimwheel_workers.front.limits import BODY_BYTES

CONTENT_ENCODING = "header content-encoding"
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


def body_of(data: bytes, encoding: str) -> bytes:
    """The body as its client made it. Raises RequestInvalid."""
    if encoding in ("", "identity"):
        return data
    window = _WINDOWS.get(encoding)
    if window is None:
        rule = f"must be one of {', '.join(_WINDOWS)}, or absent"
        raise RequestInvalid(CONTENT_ENCODING, rule, encoding)
    stream = zlib.decompressobj(window)
    try:
        plain = stream.decompress(data, BODY_BYTES + 1)
    except zlib.error as error:
        raise RequestInvalid("body", f"must be {encoding} ({error})", data[:64]) from None
    if len(plain) > BODY_BYTES:
        rule = f"must have at most {BODY_BYTES} bytes, unfolded"
        raise RequestInvalid("body", rule, "more", "Send fewer texts")
    if not stream.eof:
        raise RequestInvalid("body", f"must be {encoding}, whole", f"{len(data)} bytes")
    return plain
