"""What the API server, or the network before it, answers in place of what was asked.

`translated` gives callers one tree of errors (`trimwheel_api.errors`) with the server's own words.
Operator and workers decide by other classes (what is worth another try depends on who asks) and
use `words_of` and `NETWORK` alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import urllib3
from kubernetes.client import ApiException

from trimwheel_api.errors import (
    Conflict,
    Refused,
    SetupFailed,
    SpecInvalid,
    TrimwheelError,
    Unavailable,
)

NETWORK = (urllib3.exceptions.HTTPError, OSError)
"""What the client raises when no answer came."""


class NotFound(SpecInvalid):
    """The API server knows no such object."""


@contextmanager
def translated(server: str) -> Iterator[None]:
    """Run requests; whatever goes wrong comes out as a TrimwheelError."""
    try:
        yield
    except ApiException as error:
        raise error_of(error) from error
    except NETWORK as error:
        raise Unavailable(f"the API server at {server} does not answer ({error})") from error
    except (ValueError, RecursionError) as error:  # HTML, bytes: the client takes any for JSON
        raise no_kubernetes(server, error) from error


def no_kubernetes(server: str, error: object) -> Unavailable:
    """What answers there is no API server, or something before it answers in its place."""
    said = " ".join(str(error).split())[:200]
    return Unavailable(
        f"{server} does not answer as an API server of Kubernetes does ({said}): is that its "
        "address, and is nothing between, such as a proxy that wants a login?"
    )


def checked_object(server: str, answer: Any) -> dict[str, Any]:
    """An answer that has to be one object. Raises Unavailable when it is none."""
    made: dict[str, Any] = answer if isinstance(answer, dict) else {}
    meta = made.get("metadata")
    if not isinstance(meta, dict) or not isinstance(meta.get("name"), str):
        raise no_kubernetes(server, f"{type(answer).__name__} without metadata.name")
    return made


def checked_items(server: str, answer: Any) -> list[dict[str, Any]]:
    """The objects of an answer that has to be a list. Raises Unavailable when it is none."""
    items = answer.get("items") if isinstance(answer, dict) else None
    if not isinstance(items, list):
        raise no_kubernetes(server, f"{type(answer).__name__} without items")
    return [checked_object(server, item) for item in items]


def words_of(error: ApiException) -> str:
    """The server's own message."""
    return str(_body(error).get("message") or error.reason)


def error_of(error: ApiException) -> TrimwheelError:
    """The Trimwheel error of an answer; the message stays the server's."""
    message, details = words_of(error), _body(error).get("details")
    details = details if isinstance(details, dict) else {}
    status = int(error.status or 0)
    if status == HTTPStatus.NOT_FOUND:
        return _not_found(details)
    # A refusal of an admission policy is Invalid too, but names no field of the schema.
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) or (
        "ValidatingAdmissionPolicy" in message
    ):
        return Refused(message)
    if status == HTTPStatus.CONFLICT:
        return Conflict(message)
    if status == HTTPStatus.UNPROCESSABLE_ENTITY:
        causes = details.get("causes")
        first = causes[0] if isinstance(causes, list) and causes else {}
        cause = first if isinstance(first, dict) else {}
        field = cause.get("field") or "object"
        return SpecInvalid(field, cause.get("message") or message, details.get("name"))
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Unavailable(f"the API server answered {status}: {message}")
    return SpecInvalid("request", f"the API server answered {status}: {message}")


def _body(error: ApiException) -> dict[str, Any]:
    try:
        found = json.loads(error.body or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _not_found(details: dict[str, Any]) -> TrimwheelError:
    kind, name = details.get("kind"), details.get("name")
    if not name:
        return SetupFailed(
            "the API server does not know Trimwheel's kinds: install the chart "
            "(helm install trimwheel charts/trimwheel -n trimwheel-system --create-namespace)"
        )
    return NotFound("NAME", f"must name one of the {kind} of the namespace", name)
