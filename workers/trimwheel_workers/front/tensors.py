"""The protocol's binary tensor extension: tensors as bytes behind the JSON instead of inside it.

`protocol` reads and writes with this. BYTES elements are a length (4 bytes, little-endian) and the
bytes; numbers are little-endian. Stock clients send and ask for it by default.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from trimwheel_api.errors import RequestInvalid

HEADER = "inference-header-content-length"
"""Bytes of JSON before the tensors; in requests and responses."""
EXTENSION = "binary_tensor_data"
"""Name of the extension in the server's metadata."""
_LENGTH = struct.Struct("<I")
_FORMATS = {"FP32": "f", "INT32": "i"}


def split(body: bytes, header: str | None) -> tuple[bytes, bytes]:
    """JSON and tensors of a body. Raises RequestInvalid."""
    if header is None:
        return body, b""
    if not (header.isascii() and header.isdigit() and len(header) < 10 and
            int(header) <= len(body)):  # fmt: skip
        rule = f"must be the bytes of JSON at the start of the body, at most {len(body)}"
        raise RequestInvalid(f"header {HEADER}", rule, header)
    return body[: int(header)], body[int(header) :]


def read_texts(data: bytes, field: str, most: int) -> list[str]:
    """The elements of a BYTES tensor as texts. Raises RequestInvalid."""
    texts: list[str] = []
    place = 0
    while place < len(data):
        here = f"{field}[{len(texts)}]"
        if len(texts) == most:
            rule = f"must hold at most {most} texts"
            raise RequestInvalid(field, rule, "more", "Send several requests")
        if place + _LENGTH.size > len(data):
            raise RequestInvalid(here, "must begin with a length of 4 bytes", data[place:])
        (length,) = _LENGTH.unpack_from(data, place)
        start, end = place + _LENGTH.size, place + _LENGTH.size + length
        if end > len(data):
            rule = f"must have the {length} bytes that its length states"
            raise RequestInvalid(here, rule, f"{len(data) - start} bytes")
        try:
            texts.append(data[start:end].decode())
        except UnicodeDecodeError as error:
            raise RequestInvalid(here, "must be UTF-8", data[start:end]) from error
        place = end
    return texts


def write(datatype: str, values: Sequence[object]) -> bytes:
    """A tensor's bytes."""
    if datatype == "BYTES":
        parts = [str(value).encode() for value in values]
        return b"".join(_LENGTH.pack(len(part)) + part for part in parts)
    return struct.pack(f"<{len(values)}{_FORMATS[datatype]}", *values)
