"""HTTP: the Open Inference Protocol v2 as a Starlette application.

Called by `server`. Every error has the same body (`error_body`); what is the client's fault is a
4xx that names the field, what will pass is 429 or 503 with Retry-After. Probes of the kubelet and
metrics have a port of their own (`probes`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from trimwheel_api import names, records
from trimwheel_api.errors import InvalidInput, Overloaded, RequestInvalid, Unavailable, quote
from trimwheel_workers.engine.status import Status
from trimwheel_workers.front import openapi, protocol, tensors
from trimwheel_workers.front.access import AUTHORIZATION, Tokens
from trimwheel_workers.front.compression import CONTENT_ENCODING, body_of
from trimwheel_workers.front.dispatch import ENGINE_DOWN, Answer, Caller
from trimwheel_workers.front.error_body import error_body, invalid_body
from trimwheel_workers.front.limits import BODY_BYTES
from trimwheel_workers.front.shares import identity_of
from trimwheel_workers.front.worker import Worker

_JSON = "application/json"
_SESSION = names.SESSION_HEADER.encode()
_TENANT = records.TENANT_HEADER.encode()
_RETRY_SECONDS = 1.0
_CLIENT_CLOSED = 499
_OCTETS = "application/octet-stream"
_FAILURES = {
    Status.EXPIRED: (503, "request", "request was not answered within its deadline"),
    Status.FAILED: (500, "model", "model raised an error in the forward pass"),
    Status.NOT_FINITE: (500, "model", "model produced NaN or Inf"),
    ENGINE_DOWN: (503, "engine", "engine restarted while computing this request"),
}
_LOG = logging.getLogger(__name__)


def make_app(worker: Worker) -> Starlette:
    """The application of one worker."""
    model = worker.config.model
    release = version("trimwheel")
    who = _identifier(worker.config.tokens_path)

    async def server_metadata(_: Request) -> Response:
        shape = worker.engine.shape
        ours = {part: getattr(shape, part, "") for part in ("device", "dtype", "kernels")}
        extensions = [tensors.EXTENSION]
        return _json({"name": "trimwheel", "version": release, "extensions": extensions, **ours})

    async def live(_: Request) -> Response:
        return _json({"live": True})

    async def ready(_: Request) -> Response:
        return _json({"ready": worker.ready}, 200 if worker.ready else 503)

    async def model_metadata(request: Request) -> Response:
        who(request)
        _check_model(request, worker)
        return _json(protocol.model_metadata(model, worker.version))

    async def model_ready(request: Request) -> Response:
        _check_model(request, worker)
        return _json({"name": model, "ready": worker.ready}, 200 if worker.ready else 503)

    async def infer(request: Request) -> Response:
        return await Inference(worker, request, who).respond()

    described = orjson.dumps(openapi.document(release, worker.config.engine.max_batch))

    async def api(_: Request) -> Response:
        return _bytes(described, 200)

    def of_model(prefix: str) -> list[Route]:
        return [
            Route(f"{prefix}/infer", infer, methods=["POST"]),
            Route(f"{prefix}/ready", model_ready),
            Route(prefix, model_metadata),
        ]

    return Starlette(
        routes=[
            *of_model("/v2/models/{model}"),
            *of_model("/v2/models/{model}/versions/{version}"),
            Route("/v2/health/live", live),
            Route("/v2/health/ready", ready),
            Route("/v2", server_metadata),
            Route(openapi.PATH, api),
        ],
        exception_handlers={
            HTTPException: _http_error,  # type: ignore[dict-item]
            InvalidInput: _invalid,  # type: ignore[dict-item]
            Exception: _defect(worker),
        },
    )


class Inference:
    """One infer request from its headers to its response."""

    def __init__(self, worker: Worker, request: Request, who: Callable[[Request], str]) -> None:
        self._worker = worker
        self._request = request
        self._who_is = who
        self._caller = Caller(identity=peer_of(request))

    async def respond(self) -> Response:
        """The response, whatever happens; every end is counted."""
        worker = self._worker
        try:
            identity = self._who_is(self._request)
            _check_model(self._request, worker)
            self._caller = self._keys()._replace(identity=identity)
            headers = self._request.headers
            body = body_of(await self._body(), headers.get("content-encoding", ""))
            most = worker.config.engine.max_batch
            parsed = protocol.parse(body, most, headers.get(tensors.HEADER))
            answers = await worker.infer(parsed.texts, self._caller)
        except RequestInvalid as error:
            return self._refused(_invalid_code(error), invalid_body(error))
        except Overloaded as error:
            return self._refused(429, _sentence("queue", str(error)), error.retry_after)
        except ClientDisconnect:
            # Nobody reads this response; it only ends the request.
            return Response(status_code=_CLIENT_CLOSED)
        except Unavailable as error:
            return self._refused(503, _sentence("worker", str(error)), _RETRY_SECONDS)
        failed = next((a for a in answers if a.status != Status.ANSWERED), None)
        if failed is not None:
            return _failure(failed)
        return self._answered(parsed, answers)

    def _answered(self, parsed: protocol.InferenceRequest, answers: Sequence[Answer]) -> Response:
        worker = self._worker
        classes = worker.engine.shape.classes if worker.engine.shape else ()
        said = [_text_answer(answer, classes) for answer in answers]
        body, head = protocol.response(worker.config.model, worker.version, parsed, said)
        if head is None:
            return Response(body, media_type=_JSON)
        return Response(body, headers={tensors.HEADER: str(head)}, media_type=_OCTETS)

    def _keys(self) -> Caller:
        session = tenant = ""
        for name, value in self._request.scope["headers"]:
            if name == _SESSION:
                session = protocol.key_of(value, names.SESSION_HEADER)
            elif name == _TENANT:
                tenant = protocol.key_of(value, records.TENANT_HEADER)
        return Caller(session, tenant)

    async def _body(self) -> bytes:
        stated = self._request.headers.get("content-length", "")
        if stated.isdigit() and len(stated) < 20:
            _check_size(int(stated))
        parts: list[bytes] = []
        size = 0
        async for part in self._request.stream():
            size += len(part)
            _check_size(size)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _refused(self, code: int, body: bytes, retry: float = 0.0) -> Response:
        """An end without an answer, counted; rows that were in flight count themselves."""
        requests = self._worker.requests
        requests.account(requests.arm_of(self._caller.session), self._caller, code)
        return _bytes(body, code, retry)


def _identifier(tokens_path: str) -> Callable[[Request], str]:
    """Says whose evidence a request is; raises RequestInvalid where a token is wanted."""
    if not tokens_path:
        return peer_of
    tokens = Tokens(Path(tokens_path))
    return lambda request: tokens.subject(request.headers.get("authorization"))


def peer_of(request: Request) -> str:
    """Identity of the other end of the connection; headers are the client's to choose."""
    return identity_of(request.client.host) if request.client else ""


def _check_size(size: int) -> None:
    if size > BODY_BYTES:
        rule = f"must have at most {BODY_BYTES} bytes"
        raise RequestInvalid("body", rule, size, "Send fewer texts")


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
    code, field, sentence = _FAILURES[answer.status]
    retry = _RETRY_SECONDS if code == 503 else 0.0
    return _bytes(_sentence(field, sentence), code, retry)


def _check_model(request: Request, worker: Worker) -> None:
    """Raises RequestInvalid unless the path names what this worker serves."""
    asked, version = request.path_params["model"], request.path_params.get("version")
    model = worker.config.model
    if asked != model:
        raise RequestInvalid("model", f'must be "{model}", which this worker serves', asked)
    if version is not None and version != worker.version:
        rule = f'must be "{worker.version}", which this worker serves'
        raise RequestInvalid("version", rule, version)


def _invalid_code(error: InvalidInput) -> int:
    if error.field in ("model", "version"):
        return 404
    if error.field == AUTHORIZATION:
        return 401
    if error.field == CONTENT_ENCODING:
        return 415
    too_large = error.field == "body" and "bytes" in error.rule
    return 413 if too_large else 400


def _sentence(field: str, sentence: str) -> bytes:
    return error_body(field, sentence, sentence=sentence)


def _bytes(body: bytes, code: int, retry: float = 0.0) -> Response:
    headers = {"retry-after": str(math.ceil(retry))} if retry else {}
    if code == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(body, code, headers, _JSON)


def _json(value: Any, code: int = 200) -> Response:
    return _bytes(orjson.dumps(value), code)


async def _http_error(request: Request, error: HTTPException) -> Response:
    """What the router raises: 404 and 405, in our shape."""
    path = request.url.path
    unknown = error.status_code == 404
    body = error_body(
        "path" if unknown else "method", error.detail, quote(path if unknown else request.method),
        f"{request.method} {quote(path)}: {error.detail}",
    )  # fmt: skip
    return Response(body, error.status_code, dict(error.headers or {}), _JSON)


async def _invalid(_: Request, error: InvalidInput) -> Response:
    return _bytes(invalid_body(error), _invalid_code(error))


def _defect(worker: Worker) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Answers what should never be raised: 500, counted, with the cause in the log alone."""

    async def answer(request: Request, error: Exception) -> Response:
        _LOG.error("%s %s raised", request.method, quote(request.url.path), exc_info=error)
        worker.requests.refused(500)
        return _bytes(_sentence("worker", "the worker failed at this request; see its log"), 500)

    return answer
