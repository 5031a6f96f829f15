"""Puts the watch loop together from the process's settings, and stops it on SIGTERM.

Called by `__main__ run`. The ledger is opened between passes: a database that is away at start
delays the ledger, not the watch over drift.
"""

from __future__ import annotations

import logging
import signal
import threading
import time

from trimwheel_api import names
from trimwheel_api.errors import Unavailable
from trimwheel_pipelines import kube
from trimwheel_pipelines.exposition import Heartbeat, PipelinesMetrics, serve
from trimwheel_pipelines.ledger import Ledger
from trimwheel_pipelines.loop import HANG_LIMIT, Loop
from trimwheel_pipelines.open_runs import OpenRuns
from trimwheel_pipelines.promotion import Aliases
from trimwheel_pipelines.registry import registry_of
from trimwheel_pipelines.settings import Settings
from trimwheel_telemetry.client import Prometheus

log = logging.getLogger(__name__)

STALE_SCRAPES = 4.0
"""Telemetry older than this many scrape intervals is stale."""
LEDGER_RETRY = 5.0


def run(settings: Settings) -> None:
    """Watch until SIGTERM or SIGINT; the pass that is under way is finished first."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    exposed, heartbeat = PipelinesMetrics(), Heartbeat(HANG_LIMIT)
    server = serve(settings.bind, settings.port, exposed, heartbeat)
    loop = loop_of(settings, exposed, heartbeat)
    log.info("Watching. Metrics and health on %s:%d.", settings.bind, settings.port)
    opened = 0.0
    try:
        while not stop.is_set():
            started = time.monotonic()
            if loop.ledger is None and settings.ledger_url and started - opened > LEDGER_RETRY:
                opened = started
                attach_ledger(loop, settings)
            loop.once()
            stop.wait(max(0.0, settings.interval - (time.monotonic() - started)))
    finally:
        log.info("Stopping.")
        server.shutdown()
        server.server_close()
        loop.close()


def loop_of(settings: Settings, exposed: PipelinesMetrics, heartbeat: Heartbeat) -> Loop:
    """The loop with everything but its ledger."""
    stale = max(STALE_SCRAPES * settings.scrape_interval, 10.0)
    url = settings.prometheus_url
    return Loop(
        objects=kube.connect(),
        records_uri=settings.records_uri,
        prometheus=Prometheus(url, stale_after=stale) if url else None,
        ledger=None,
        aliases=None,
        exposed=exposed,
        heartbeat=heartbeat,
        keep_deleted=settings.keep_deleted,
        release_namespace=settings.release_namespace,
        operator_user=names.service_account_user(
            settings.release_namespace, names.OPERATOR_ACCOUNT
        ),
    )


def attach_ledger(loop: Loop, settings: Settings) -> None:
    """Open the ledger and, with it, what may only move when it is written down."""
    try:
        loop.ledger = Ledger(settings.ledger_url)
    except Unavailable as error:
        log.warning("%s. Trying again.", error)
        return
    registry = registry_of(settings)
    if registry is not None:
        loop.aliases = Aliases(registry, loop.ledger)
        loop.open_runs = OpenRuns(registry)
