"""Kubernetes Events of our own: one for each decision, named after it, so it is told once."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from trimwheel_api import names
from trimwheel_api.times import to_text
from trimwheel_operator.plan.actions import PostEvent

MAX_MESSAGE = 1024
_MAX_NAME = 253
_OTHER = re.compile(r"[^a-z0-9.-]+")


def body(event: PostEvent) -> dict[str, Any]:
    """The Event object; posting it again is a 409, which says that it has been told."""
    now = to_text(datetime.now(UTC))
    suffix = _OTHER.sub("-", f".{event.uid[:8]}.{event.key}".lower())
    name = event.name[: _MAX_NAME - len(suffix)] + suffix
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": event.namespace},
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": event.kind,
            "namespace": event.namespace,
            "name": event.name,
            "uid": event.uid,
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:MAX_MESSAGE],
        "source": {"component": names.OPERATOR_ACCOUNT},
        "reportingComponent": names.OPERATOR_ACCOUNT,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
