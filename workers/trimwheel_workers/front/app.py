"""HTTP: the Open Inference Protocol v2, probes and /metrics as a Starlette application.

Called by `server`. Every error has the same body, `{"error": {field, rule, value, message}}`; what
is the client's fault is a 4xx that names the field, what will pass is 429 or 503 with Retry-After.
"""

from __future__ import annotations

import asyncio
import math
from importlib.metadata import version
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from trimwheel_api import names, records
from trimwheel_api.errors import InvalidInput, Overloaded, RequestInvalid, Unavailable
from trimwheel_workers.engine.status import Status
from trimwheel_workers.front import protocol
from trimwheel_workers.front.dispatch import ENGINE_DOWN, Answer
from trimwheel_workers.front.metrics import CONTENT_TYPE
from trimwheel_workers.front.worker import Worker

_JSON = "application/json"
_SESSION = names.SESSION_HEADER.encode()
_TENANT = records.TENANT_HEADER.encode()
_RETRY_SECONDS = 1.0
_CLIENT_CLOSED = 499
_FAILURES = {
    Status.EXPIRED: (503, "request", "was not answered within its deadline"),
    Status.FAILED: (500, "model", "the forward pass failed"),
    Status.NOT_FINITE: (500, "model", "the answer is not made of numbers"),
    ENGINE_DOWN: (503, "engine", "died while it had this request"),
}


def make_app(worker: Worker) -> Starlette:
    """The application of one worker."""
    model = worker.config.model
    release = version("trimwheel")

    async def server_metadata(_: Request) -> Response:
        shape = worker.engine.shape
        ours = {"device": shape.device if shape else "", "dtype": shape.dtype if shape else ""}
        return _json({"name": "trimwheel", "version": release, "extensions": [], **ours})

    async def live(_: Request) -> Response:
        return _json({"live": True})

    async def ready(_: Request) -> Response:
        return _json({"ready": worker.ready}, 200 if worker.ready else 503)

    async def model_metadata(request: Request) -> Response:
        _check_model(request, model)
        return _json(protocol.model_metadata(model, worker.version))

    async def model_ready(request: Request) -> Response:
        _check_model(request, model)
        return _json({"name": model, "ready": worker.ready}, 200 if worker.ready else 503)

    async def infer(request: Request) -> Response:
        return await Inference(worker, request).respond()

    async def metrics(_: Request) -> Response:
        # A thousand lines take milliseconds; probes and answers need not wait for them.
        text = await asyncio.to_thread(worker.metrics.render)
        return Response(text, media_type=CONTENT_TYPE)

    return Starlette(
        routes=[
            Route("/v2/models/{model}/infer", infer, methods=["POST"]),
            Route("/v2/health/live", live),
            Route("/v2/health/ready", ready),
            Route("/metrics", metrics),
            Route("/v2", server_metadata),
            Route("/v2/models/{model}", model_metadata),
            Route("/v2/models/{model}/ready", model_ready),
        ],
        exception_handlers={HTTPException: _http_error, InvalidInput: _invalid},  # type: ignore[dict-item]
    )


class Inference:
    """One infer request from its headers to its response."""

    def __init__(self, worker: Worker, request: Request) -> None:
        self._worker = worker
        self._request = request
        self._session = ""

    async def respond(self) -> Response:
        """The response, whatever happens; every end is counted."""
        worker = self._worker
        try:
            _check_model(self._request, worker.config.model)
            session, tenant = self._keys()
            self._session = session
            parsed = protocol.parse(await self._body(), worker.config.engine.max_batch)
            answers = await worker.infer(parsed.texts, session, tenant)
        except RequestInvalid as error:
            return self._refused(_invalid_code(error), error.as_body())
        except Overloaded as error:
            return self._refused(429, _body("queue", str(error)), error.retry_after)
        except ClientDisconnect:
            # Nobody reads this response; it only ends the request.
            return Response(status_code=_CLIENT_CLOSED)
        except Unavailable as error:
            return self._refused(503, _body("worker", str(error)), _RETRY_SECONDS)
        failed = next((a for a in answers if a.status != Status.ANSWERED), None)
        if failed is not None:
            return _failure(failed)
        classes = worker.engine.shape.classes if worker.engine.shape else ()
        said = [_text_answer(answer, classes) for answer in answers]
        return Response(
            protocol.response(worker.config.model, worker.version, parsed, said), media_type=_JSON
        )

    def _keys(self) -> tuple[str, str]:
        session = tenant = ""
        for name, value in self._request.scope["headers"]:
            if name == _SESSION:
                session = protocol.key_of(value, names.SESSION_HEADER)
            elif name == _TENANT:
                tenant = protocol.key_of(value, records.TENANT_HEADER)
        return session, tenant

    async def _body(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in self._request.stream():
            size += len(part)
            if size > protocol.MAX_BODY_BYTES:
                rule = f"must have at most {protocol.MAX_BODY_BYTES} bytes"
                raise RequestInvalid("body", rule, f"{size} bytes or more", "Send fewer texts")
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _refused(self, code: int, error: dict[str, object], retry: float = 0.0) -> Response:
        """An end without an answer, counted; rows that were in flight count themselves."""
        requests = self._worker.requests
        requests.account(requests.arm_of(self._session), self._session, code)
        return _json({"error": error}, code, retry)


def _text_answer(answer: Answer, classes: tuple[str, ...]) -> protocol.TextAnswer:
    snapshot = answer.snapshot
    on_stable = answer.arm == names.ARM_STABLE or snapshot.candidate is None
    policy = snapshot.stable if on_stable else snapshot.candidate
    assert policy is not None, "an arm that answered has a policy"
    return protocol.TextAnswer(
        classes[answer.prediction], answer.probability, answer.exit, answer.layers, answer.arm,
        policy.digest,
    )  # fmt: skip


def _failure(answer: Answer) -> Response:
    code, field, message = _FAILURES[answer.status]
    retry = _RETRY_SECONDS if code == 503 else 0.0
    return _json({"error": _body(field, message)}, code, retry)


def _check_model(request: Request, model: str) -> None:
    asked = request.path_params["model"]
    if asked != model:
        raise RequestInvalid("model", f'must be "{model}", which this worker serves', asked)


def _invalid_code(error: InvalidInput) -> int:
    if error.field == "model":
        return 404
    too_large = error.field == "body" and "bytes" in error.rule
    return 413 if too_large else 400


def _body(field: str, message: str) -> dict[str, object]:
    return {"field": field, "rule": message, "value": "", "message": f"{field}: {message}"}


def _json(value: Any, code: int = 200, retry: float = 0.0) -> Response:
    headers = {"retry-after": str(math.ceil(retry))} if retry else None
    return Response(orjson.dumps(value), code, headers, _JSON)


async def _http_error(request: Request, error: HTTPException) -> Response:
    """What the router raises: 404 and 405, in our shape."""
    path = request.url.path
    body = {
        "field": "path" if error.status_code == 404 else "method",
        "rule": error.detail,
        "value": path if error.status_code == 404 else request.method,
        "message": f"{request.method} {path}: {error.detail}",
    }
    return Response(
        orjson.dumps({"error": body}), error.status_code, dict(error.headers or {}), _JSON
    )


async def _invalid(_: Request, error: InvalidInput) -> Response:
    return _json({"error": error.as_body()}, _invalid_code(error))
