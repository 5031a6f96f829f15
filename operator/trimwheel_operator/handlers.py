"""The Kopf side: the process's life, its credentials and probes, and events of models.

Kopf starts and stops the parts, and marks a model whose declaration changed. Everything that a
plan reads comes from `informers`, which keep it in one store by model; Kopf would run a task for
each object of each kind, and thousands of them would make everyone wait.

Only `on.event` is used. Kopf's timers, daemons and deletion handlers put finalizers on users'
objects and its creation handlers an annotation; events put nothing, so the operator's Role needs
no right to change what users wrote. What follows from an event is decided in `plan`, from the
state as it is and not from the event.
"""

from __future__ import annotations

from typing import Any

import kopf

from trimwheel_api import names
from trimwheel_api.kinds import PLURALS
from trimwheel_operator.app import App


def registry(app: App) -> kopf.OperatorRegistry:
    """All handlers of one operator."""
    found = kopf.OperatorRegistry()
    _lifecycle(found, app)
    kind = PLURALS["AdaptiveModel"]
    kopf.on.event(names.GROUP, names.VERSION, kind, registry=found)(_model(app))
    return found


def _lifecycle(found: kopf.OperatorRegistry, app: App) -> None:
    @kopf.on.startup(registry=found)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure(settings)
        app.start()

    @kopf.on.cleanup(registry=found)
    async def stop(**_: Any) -> None:
        await app.stop()

    @kopf.on.login(registry=found)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_via_client(**kwargs)

    @kopf.on.probe(id="reconciler", registry=found)
    def alive(**_: Any) -> str:
        return app.health()


def configure(settings: kopf.OperatorSettings) -> None:
    """What Kopf shall not do: no peering, no scan for CRDs, Events only of its own warnings."""
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.posting.level = 30  # logging.WARNING
    settings.watching.server_timeout = 60
    settings.watching.client_timeout = 75


def _model(app: App) -> Any:
    async def mark(name: str, namespace: str, **_: Any) -> None:
        app.mark((namespace, name))

    return mark
