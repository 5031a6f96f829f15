"""A real HTTP server that stands in for the origins of releases, with the faults that origins have.

Used by the tests of downloads. It serves every artifact below the name of its host, as a mirror
does, with the checksum file beside it; `faults` says per path what goes wrong, `asked` what was
asked for.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from trimwheel_local import releases

PROGRAM = b"#!/bin/sh\necho released\n" + b"#" * 300_000


@dataclass
class Fault:
    """What an origin does to the first `times` answers of a path."""

    status: int = 0
    """Answer with this status and no body."""
    cut: int = 0
    """End the connection after so many bytes."""
    pause: float = 0.0
    """Seconds before each kilobyte."""
    lie: bytes = b""
    """Answer with these bytes instead."""
    ignores_range: bool = False
    no_length: bool = False
    location: str = ""
    times: int = 10**9


@dataclass
class Origin:
    """The server's files and faults, and what it was asked for."""

    url: str
    files: dict[str, bytes]
    faults: dict[str, Fault] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """(path, Range header)"""
    sent: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Bytes of bodies by path."""


@contextmanager
def origin() -> Iterator[Origin]:
    """A server that holds the release of every pinned binary."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    place = Origin(f"http://127.0.0.1:{server.server_port}", _released())
    server.place = place  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield place
    finally:
        server.shutdown()
        server.server_close()


def _released() -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    sums: dict[str, list[str]] = defaultdict(list)
    for artifact in releases.artifacts():
        content = _content(artifact)
        files[artifact.path] = content
        digest = hashlib.sha256(content).hexdigest()
        # dl.k8s.io publishes bare digests, the others lists with names.
        alone = artifact.path.startswith("dl.k8s.io/")
        sums[artifact.checksums].append(digest if alone else f"{digest}  {artifact.file}")
    files |= {path: "\n".join([*lines, ""]).encode() for path, lines in sums.items()}
    return files


def _content(artifact: releases.Artifact) -> bytes:
    if not artifact.members[0][1]:
        return PROGRAM
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=0) as archive:
        for _, path in (("", "README.md"), *artifact.members):
            entry = tarfile.TarInfo(path)
            entry.size = len(PROGRAM)
            archive.addfile(entry, io.BytesIO(PROGRAM))
    return buffer.getvalue()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        place: Origin = self.server.place  # type: ignore[attr-defined]
        path = self.path.lstrip("/")
        place.asked.append((path, self.headers.get("Range", "")))
        fault = place.faults.get(path, Fault())
        fault.times -= 1
        if fault.times < 0:
            fault = Fault()
        self.close_connection = True
        if path not in place.files or fault.status:
            return self._empty(fault.status or 404, fault.location)
        self._send(place, path, fault)

    def _empty(self, status: int, location: str = "") -> None:
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, place: Origin, path: str, fault: Fault) -> None:
        body = fault.lie or place.files[path]
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if start >= len(body) and start:
            return self._empty(416)
        if start and not fault.ignores_range:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            start = 0
            self.send_response(200)
        if not fault.no_length:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        part = body[start:]
        if fault.cut:
            part = part[: fault.cut]
        step = 1000 if fault.pause else len(part)
        for at in range(0, len(part), max(step, 1)):
            time.sleep(fault.pause)
            try:
                self.wfile.write(part[at : at + step])
                self.wfile.flush()
            except OSError:
                return
            place.sent[path] += len(part[at : at + step])
