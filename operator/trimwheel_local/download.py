"""Downloads one file over HTTP: resumed where it stopped, checked against a SHA-256, or an error.

Called by `releases` for checksum files and by `binaries` for releases. What has arrived stays in
`<target>.part` until the whole of it has the right digest, so an interrupted download goes on from
there, in this process or in the next. Standard library alone.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trimwheel_local.errors import DownloadError
from trimwheel_local.reporting import megabytes

SMALL = 1 << 20
LARGEST = 1 << 30
"""No release that we use is this long; an endless answer must not fill the disk."""
CHUNK = 1 << 17

Received = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all, 0 when the server did not say)."""


@dataclass(frozen=True)
class Patience:
    """How long a download is waited for."""

    silence: float = 15.0
    """Seconds without a byte after which a connection counts as lost."""
    attempts: int = 4
    """Connections in a row that bring nothing new."""
    pause: float = 1.0
    """Seconds before the second of them; doubled for each further."""
    slowest: float = 64_000
    """Bytes a second below which a build is faster; 0 accepts every rate."""
    window: float = 20.0
    """Seconds over which that rate is taken."""


class _Lost(Exception):
    """This connection brought no more; another may."""


class _NothingLeft(Exception):
    """The server holds no byte beyond those that are here already (HTTP 416)."""


class _KeepsTls(urllib.request.HTTPRedirectHandler):
    """Origins redirect to their storage; never from https to anything else."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:  # fmt: skip
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise DownloadError(f"{req.full_url} redirects to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def read_small(url: str, timeout: float) -> str:
    """The text behind an address, one attempt. Raises DownloadError."""
    try:
        with _open(url, {}, timeout) as response:
            data: bytes = response.read(SMALL + 1)
    except (_Lost, _NothingLeft, OSError, http.client.HTTPException) as error:
        raise DownloadError(f"{url}: {_reason(error)}") from error
    if len(data) > SMALL:
        raise DownloadError(f"{url}: longer than {megabytes(SMALL)}")
    return data.decode("ascii", errors="replace")


def fetch(
    url: str, target: Path, sha256: str, received: Received, patience: Patience | None = None
) -> None:
    """Download to `target`, which appears once its digest is right.

    Raises DownloadError: the address, what went wrong, and what stays for the next attempt.
    """
    part = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    for resumed in (part.exists(), False):
        _receive_all(url, part, received, patience or Patience())
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest == sha256:
            part.replace(target)
            return
        part.unlink()
        if not resumed:
            break
    raise DownloadError(
        f"{url}: its SHA-256 is {digest}, but {sha256} is published beside it; nothing was kept"
    )


def _receive_all(url: str, part: Path, received: Received, patience: Patience) -> None:
    """Connections until the whole file is there; each goes on where the last one stopped."""
    fruitless = 0
    while True:
        before = _length(part)
        try:
            _receive(url, part, received, patience)
            return
        except _NothingLeft:
            return  # the digest decides whether that was the whole file
        except (_Lost, OSError, http.client.HTTPException) as error:
            reason = _reason(error)
        fruitless = 0 if _length(part) > before else fruitless + 1
        if fruitless >= patience.attempts:
            kept = megabytes(_length(part))
            raise DownloadError(f"{url}: {reason}, {fruitless} times; {kept} are kept")
        time.sleep(patience.pause * 2 ** max(fruitless - 1, 0))


def _receive(url: str, part: Path, received: Received, patience: Patience) -> None:
    start = _length(part)
    headers = {"Range": f"bytes={start}-"} if start else {}
    with _open(url, headers, patience.silence) as response:
        if start and not _continues(response, start, part):
            start = 0
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else 0
        if total > LARGEST:
            raise DownloadError(f"{url}: {megabytes(total)}, longer than any release")
        with part.open("ab" if start else "wb") as file:
            _copy(url, response, file, start, total, received, patience)


def _copy(
    url: str, response: Any, file: IO[bytes], start: int, total: int, received: Received,
    patience: Patience,
) -> None:  # fmt: skip
    size, opened = start, time.monotonic()
    received(size, total)
    while data := response.read1(CHUNK):
        file.write(data)
        size += len(data)
        received(size, total)
        elapsed = time.monotonic() - opened
        if elapsed > patience.window and (size - start) / elapsed < patience.slowest:
            rate = (size - start) / elapsed / 1000
            raise DownloadError(f"{url}: {rate:.0f} kB/s is too slow; {megabytes(size)} are kept")
        if size > LARGEST:
            raise DownloadError(f"{url}: longer than any release")
    if total and size < total:
        raise _Lost(f"the connection ended after {size} of {total} bytes")


def _open(url: str, headers: dict[str, str], timeout: float) -> Any:
    opener = urllib.request.build_opener(_KeepsTls)
    request = urllib.request.Request(url, headers={"User-Agent": "trimwheel", **headers})
    try:
        return opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            raise _NothingLeft from error
        if error.code in (408, 425, 429) or error.code >= 500:
            raise _Lost(f"HTTP {error.code} {error.reason}") from error
        raise DownloadError(f"{url}: HTTP {error.code} {error.reason}") from error
    except ValueError as error:  # an address that urllib cannot read
        raise DownloadError(f"{url}: {error}") from error


def _continues(response: Any, start: int, part: Path) -> bool:
    """Whether the answer goes on at `start`; a server may send the whole file instead."""
    if response.status != 206:
        return False
    place = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if place is None or int(place[1]) != start:
        part.unlink()
        raise _Lost("the server answered with another range than was asked for")
    return True


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _reason(error: BaseException) -> str:
    """The sentence of the innermost cause, `Connection refused`, without wrappers."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        return _reason(error.reason)
    if isinstance(error, TimeoutError):
        return "no byte for too long"
    strerror = error.strerror if isinstance(error, OSError) else None
    return strerror or str(error) or type(error).__name__
