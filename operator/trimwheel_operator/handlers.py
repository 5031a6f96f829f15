"""The Kopf side: every event of our kinds marks the model that it is about, and nothing more.

Only `on.event` is used. Kopf's timers, daemons and deletion handlers put finalizers on users'
objects and its creation handlers an annotation; events put nothing, so the operator's Role needs
no right to change what users wrote. What follows from an event is decided in `plan`, from the
state as it is and not from the event.
"""

from __future__ import annotations

from typing import Any

import kopf

from trimwheel_api import names
from trimwheel_api.kinds import KINDS
from trimwheel_operator.app import App


def registry(app: App) -> kopf.OperatorRegistry:
    """All handlers of one operator."""
    found = kopf.OperatorRegistry()
    _lifecycle(found, app)
    for kind in KINDS:
        if kind.name == "PolicyJournal":
            continue  # the operator's own memory, read with each pass
        if kind.name == "PolicyApproval":
            kopf.on.event(names.GROUP, names.VERSION, kind.plural, registry=found)(_approval(app))
        else:
            kopf.on.event(names.GROUP, names.VERSION, kind.plural, registry=found)(
                _of_model(app, named_after_model=kind.name in ("AdaptiveModel", "PolicyAssignment"))
            )
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


def _of_model(app: App, *, named_after_model: bool) -> Any:
    async def mark(name: str, namespace: str, spec: Any, **_: Any) -> None:
        app.mark((namespace, name if named_after_model else str(spec.get("model", ""))))

    return mark


def _approval(app: App) -> Any:
    """An approval names a rollout, which names the model; whoever waits is looked at."""

    async def mark(namespace: str, **_: Any) -> None:
        app.mark_namespace(namespace)

    return mark
