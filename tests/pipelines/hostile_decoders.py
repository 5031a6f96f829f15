"""What a decoder does that a segment has taken over. Each runs in place of `decode`."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trimwheel_api.errors import InvalidInput
from trimwheel_pipelines.segment_decoding import Claim, Decoded, SegmentLimits, decode

TRIES: dict[str, Callable[[], Any]] = {
    "read a file": lambda: Path("/etc/hostname").read_text(),
    "read the account's token": lambda: (
        Path("/var/run/secrets/kubernetes.io").stat()
        and os.listdir("/var/run/secrets/kubernetes.io/serviceaccount")
    ),
    "read its parent's environment": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
    "open a connection": lambda: socket.create_connection(("127.0.0.1", 1), 1),
    "open a socket": lambda: socket.socket(socket.AF_UNIX),
    "make a pipe": os.pipe,
    "start a program": lambda: subprocess.run(["/bin/true"], check=True),
    "raise its limits": lambda: __import__("resource").setrlimit(
        __import__("resource").RLIMIT_NOFILE, (16, 16)
    ),
}


def _answer(value: Any) -> Decoded:
    """Hand a value out, as the only thing that a refusal can carry."""
    raise InvalidInput("probe", json.dumps(value))


def tries(data: bytes, claim: Claim, limits: SegmentLimits) -> Decoded:
    """What of `TRIES` works, by name, and what it is told of its surroundings."""
    worked = []
    for name, attempt in TRIES.items():
        if name == "raise its limits" and os.geteuid() == 0:
            continue  # root may; pods are not root
        try:
            attempt()
        except OSError:
            continue
        except ValueError:
            continue
        worked.append(name)
    return _answer({"worked": worked, "environment": sorted(os.environ)})


def crash(data: bytes, claim: Claim, limits: SegmentLimits) -> Decoded:
    ctypes.string_at(0)
    raise AssertionError


def hang(data: bytes, claim: Claim, limits: SegmentLimits) -> Decoded:
    time.sleep(3600)
    raise AssertionError


def devour(data: bytes, claim: Claim, limits: SegmentLimits) -> Decoded:
    held = [bytes(1 << 28) for _ in range(64)]
    raise AssertionError(len(held))


def leave(data: bytes, claim: Claim, limits: SegmentLimits) -> Decoded:
    os._exit(0)


def stop_the_nursery(data: bytes, claim: Claim, limits: SegmentLimits) -> Decoded:
    os.kill(os.getppid(), signal.SIGSTOP)
    time.sleep(3600)
    raise AssertionError


def babble(data: bytes, claim: Claim, limits: SegmentLimits) -> Decoded:
    """An answer that is none: bytes of its own on the one descriptor that is left."""
    [answer] = [number for number in range(3, 64) if _is_open(number)]
    os.write(answer, b"T" + b"\\xff" * 1000)
    os._exit(0)


def flood(data: bytes, claim: Claim, limits: SegmentLimits) -> Decoded:
    [answer] = [number for number in range(3, 64) if _is_open(number)]
    while True:
        os.write(answer, bytes(1 << 20))


def more_rows(data: bytes, claim: Claim, limits: SegmentLimits) -> Decoded:
    """Rows that nobody claimed."""
    decoded = decode(data, claim, limits)
    import pyarrow as pa

    return Decoded(pa.concat_tables([decoded.table] * 1000), decoded.losses)


def spoil_the_next(data: bytes, claim: Claim, limits: SegmentLimits) -> Decoded:
    """The first segment leaves something for the second."""
    if "spoilt" in globals():
        raise AssertionError("the second segment met what the first left")
    globals()["spoilt"] = True
    return decode(data, claim, limits)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
