"""The few blocking requests that `Cluster` and the supervisor make, as the cluster's admin.

Standard library only: readiness is asked often and early, when loading a client library would
cost more than the answer.
"""

from __future__ import annotations

import http.client
import json
import ssl
from http import HTTPStatus
from typing import Any

from trimwheel_local.layout import Layout

TIMEOUT = 5.0


def get(layout: Layout, path: str) -> tuple[int, bytes]:
    """(status, body) of a GET as admin. Raises OSError when nobody answers."""
    context = ssl.create_default_context(cafile=f"{layout.pki}/ca.crt")
    context.load_cert_chain(f"{layout.pki}/admin.crt", f"{layout.pki}/admin.key")
    connection = http.client.HTTPSConnection(
        "127.0.0.1", layout.api_port, context=context, timeout=TIMEOUT
    )
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as error:
        raise OSError(f"GET {path}: {error!r}") from error
    finally:
        connection.close()


def readyz(layout: Layout) -> bool:
    """Whether the API server says that it is ready."""
    try:
        return get(layout, "/readyz")[0] == HTTPStatus.OK
    except OSError:
        return False


def find(layout: Layout, path: str) -> dict[str, Any] | None:
    """The object at `path`, or None when there is none (yet) or nobody answers."""
    try:
        status, body = get(layout, path)
    except OSError:
        return None
    if status != HTTPStatus.OK:
        return None
    found: dict[str, Any] = json.loads(body)
    return found
