"""The node's HTTPS port, as far as `kubectl logs` and status tools need a kubelet.

Only the API server's own client certificate is let in: whoever may read logs was decided there.
exec, attach and port-forward answer 501 with a sentence.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from aiohttp import web

from trimwheel_local.layout import Layout
from trimwheel_local.names import KUBELET_CLIENT
from trimwheel_local.node import logs, runtime
from trimwheel_local.node.pods import Pods

PODS = web.AppKey("pods", Pods)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def serve(layout: Layout, pods: Pods) -> web.AppRunner:
    """Start serving on 127.0.0.1; the caller cleans the runner up."""
    application = web.Application(middlewares=[_only_api_server])
    application[PODS] = pods
    application.router.add_get("/healthz", _healthz)
    application.router.add_get("/pods", _pods)
    application.router.add_get("/containerLogs/{namespace}/{pod}/{container}", _logs)
    for verb in ("exec", "attach", "portForward", "run"):
        application.router.add_route("*", f"/{verb}/{{rest:.*}}", _not_offered)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=f"{layout.pki}/ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(f"{layout.pki}/kubelet.crt", f"{layout.pki}/kubelet.key")
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", layout.kubelet_port, ssl_context=context).start()
    return runner


@web.middleware
async def _only_api_server(request: web.Request, handler: Handler) -> web.StreamResponse:
    """People's certificates come from the same authority, so the name has to be looked at."""
    transport = request.transport
    certificate = transport.get_extra_info("peercert") if transport else None
    parts = [pair for group in (certificate or {}).get("subject", ()) for pair in group]
    if ("commonName", KUBELET_CLIENT) not in parts:
        raise web.HTTPForbidden(text="only the API server may use this port\n")
    return await handler(request)


async def _healthz(_: web.Request) -> web.Response:
    return web.Response(text="ok")


async def _pods(request: web.Request) -> web.Response:
    items = [worker.pod for worker in request.app[PODS].workers.values()]
    body = {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items}
    return web.Response(text=json.dumps(body), content_type="application/json")


async def _not_offered(request: web.Request) -> web.Response:
    what = request.path.split("/")[1]
    text = f"{what} is not offered: pods are local processes of this machine, and a shell on it"
    raise web.HTTPNotImplemented(text=f"{text} reaches them, their files and their addresses\n")


async def _logs(request: web.Request) -> web.StreamResponse:
    attempt = _attempt(request)
    query = request.query
    try:
        selection = selection_of(dict(query), datetime.now(UTC))
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"{error}\n") from error
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    left = selection.limit_bytes
    if query.get("follow") in ("true", "1"):
        async for line in logs.follow(attempt.log, selection, attempt.running):
            if not await _write(response, line, left):
                break
            left = None if left is None else left - len(line)
    else:
        text = b"".join(logs.lines(attempt.log, selection))
        await response.write(text if left is None else text[:left])
    await response.write_eof()
    return response


async def _write(response: web.StreamResponse, line: bytes, left: int | None) -> bool:
    """Whether there is room for more."""
    await response.write(line if left is None else line[:left])
    return left is None or left > len(line)


def _attempt(request: web.Request) -> runtime.Attempt:
    info = request.match_info
    worker = request.app[PODS].find(info["namespace"], info["pod"])
    loop = worker.container(info["container"]) if worker else None
    if loop is None:
        raise web.HTTPNotFound(text=f"container {info['container']} of {info['pod']} not found\n")
    kept = runtime.attempts(loop.folder)
    if request.query.get("previous") in ("true", "1"):
        if len(kept) < 2:
            text = f"previous terminated container {info['container']!r} not found\n"
            raise web.HTTPBadRequest(text=text)
        return kept[-2]
    if not kept:
        waiting = loop.status.state.get("waiting", {}).get("reason", "ContainerCreating")
        text = f"container {info['container']!r} is waiting to start: {waiting}\n"
        raise web.HTTPBadRequest(text=text)
    return kept[-1]


def selection_of(query: dict[str, str], now: datetime) -> logs.Selection:
    """What the query parameters of a log request select. Raises ValueError."""
    since = query.get("sinceTime", "")
    if seconds := query.get("sinceSeconds"):
        since = (now - timedelta(seconds=int(seconds))).isoformat()
    if since:
        moment = datetime.fromisoformat(since.replace("Z", "+00:00")).astimezone(UTC)
        since = moment.strftime("%Y-%m-%dT%H:%M:%S.%f")
    return logs.Selection(
        tail=int(query["tailLines"]) if query.get("tailLines") else None,
        since=since,
        timestamps=query.get("timestamps") in ("true", "1"),
        limit_bytes=int(query["limitBytes"]) if query.get("limitBytes") else None,
    )
