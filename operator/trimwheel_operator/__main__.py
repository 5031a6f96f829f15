"""`python -m trimwheel_operator`: read the settings, wire the parts, run Kopf until a signal."""

from __future__ import annotations

import logging
import os

import kopf

from trimwheel_operator.app import assemble
from trimwheel_operator.cluster import connect
from trimwheel_operator.handlers import registry
from trimwheel_operator.settings import from_environment

HEALTH_PORT = 8083
CHATTY = ("kopf.objects", "kopf.activities", "aiohttp.access")
"""Loggers that tell of every event and every probe; of these only warnings are of interest."""


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    log_decisions_only()
    settings = from_environment()
    # Pods that share one network namespace each listen on their own address.
    address = os.environ.get("POD_IP") or "0.0.0.0"
    app = assemble(connect(), settings)
    app.metrics.serve(address)
    kopf.run(
        registry=registry(app),
        clusterwide=True,
        standalone=True,
        liveness_endpoint=f"http://{address}:{HEALTH_PORT}/healthz",
    )


def log_decisions_only() -> None:
    """One line for each decision and each trouble; none for a probe or an event."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


if __name__ == "__main__":
    main()
