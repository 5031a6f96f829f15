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


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for chatty in ("kopf.objects", "kopf.activities", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
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


if __name__ == "__main__":
    main()
