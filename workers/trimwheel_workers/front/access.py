"""Bearer tokens: who may ask, and who that is. Called by `app` where the model has a tokens Secret.

Each key of the Secret is a subject, its value that subject's token. Files are looked at again every
few seconds, so that a token ends without a restart. Tokens are compared by their digests and never
repeated in an error or a log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from trimwheel_api.errors import RequestInvalid

_LOG = logging.getLogger(__name__)
AUTHORIZATION = "header authorization"
_REREAD_SECONDS = 5.0
_SHORTEST_TOKEN = 16


class Tokens:
    """The tokens of one worker, from the folder that the Secret is mounted at."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._read_at = float("-inf")
        self._subjects: dict[bytes, str] = {}

    def subject(self, header: str | None) -> str:
        """Who sends this Authorization header. Raises RequestInvalid (401)."""
        if header is None:
            raise RequestInvalid(AUTHORIZATION, "must be given, as Bearer TOKEN", "none")
        scheme, _, token = header.partition(" ")
        subject = self._known().get(sha256(token.strip().encode()).digest())
        if scheme.lower() != "bearer" or subject is None:
            raise RequestInvalid(
                AUTHORIZATION, "must be Bearer and a token of this model", "another"
            )
        return subject

    def _known(self) -> dict[bytes, str]:
        now = self._clock()
        if now - self._read_at >= _REREAD_SECONDS:
            self._read_at = now
            self._subjects = _read(self._folder)
        return self._subjects


def _read(folder: Path) -> dict[bytes, str]:
    """Subjects by the digest of their token; nobody when the folder cannot be read."""
    try:
        files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        pairs = [(path.name, path.read_text("utf-8").strip()) for path in files]
    except (OSError, UnicodeDecodeError) as error:
        _LOG.error("tokens cannot be read, so nobody is let in: %s", error)
        return {}
    for name, token in pairs:
        if len(token) < _SHORTEST_TOKEN:
            _LOG.error("the token of %s is shorter than %d characters and not let in", name,
                       _SHORTEST_TOKEN)  # fmt: skip
    return {
        sha256(token.encode()).digest(): name
        for name, token in pairs
        if len(token) >= _SHORTEST_TOKEN
    }
