"""TLS of the HTTP port, from the folder that a kubernetes.io/tls Secret is mounted at.

Called by `server`. A renewed certificate is taken for new connections without a restart.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

from trimwheel_api.errors import SetupFailed

_LOG = logging.getLogger(__name__)
CERTIFICATE, KEY = "tls.crt", "tls.key"
_LOOK_SECONDS = 30.0


class Certificate:
    """The certificate of one server."""

    def __init__(self, folder: Path) -> None:
        """Raises SetupFailed when the files are no certificate with its key."""
        self._folder = folder
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            self._load()
        except (OSError, ssl.SSLError) as error:
            raise SetupFailed(
                f"{folder} must hold {CERTIFICATE} and {KEY} that fit: {error}"
            ) from error

    async def watch(self) -> None:
        """Take renewed files until cancelled; broken ones leave the former certificate."""
        seen = self._stamp()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            stamp = self._stamp()
            if stamp == seen:
                continue
            seen = stamp
            try:
                self._load()
                _LOG.info("the certificate was renewed")
            except (OSError, ssl.SSLError) as error:
                _LOG.error("the renewed certificate cannot be used: %s", error)

    def _load(self) -> None:
        self.context.load_cert_chain(self._folder / CERTIFICATE, self._folder / KEY)

    def _stamp(self) -> tuple[int, int]:
        try:
            status = (self._folder / CERTIFICATE).stat()
        except OSError:
            return 0, 0
        return status.st_mtime_ns, status.st_ino
