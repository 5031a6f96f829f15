"""Probes: one check of each kind, and the loop that turns checks into verdicts.

The loop is the kubelet's (delay, period, thresholds) with one change: until the first success,
readiness and startup are looked at several times a period, so that a pod is Ready within a
fraction of a second of being so. Failures still count once a period.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp

from trimwheel_local.node.runtime import Launch

Object = dict[str, Any]
Check = Callable[[], Awaitable[str]]
"""One look: '' when healthy, else why not."""

EAGER = 0.2
OUTPUT_LIMIT = 1024


@dataclass(frozen=True)
class Timing:
    """The numbers of a probe, in seconds and counts, with the API's defaults."""

    delay: float
    period: float
    timeout: float
    successes: int
    failures: int
    eager: bool

    @classmethod
    def of(cls, probe: Object, *, eager: bool) -> Timing:
        return cls(
            delay=float(probe.get("initialDelaySeconds", 0)),
            period=float(probe.get("periodSeconds", 10)),
            timeout=float(probe.get("timeoutSeconds", 1)),
            successes=int(probe.get("successThreshold", 1)),
            failures=int(probe.get("failureThreshold", 3)),
            eager=eager,
        )


async def verdicts(
    timing: Timing, check: Check, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[tuple[bool, str]]:
    """(healthy, why not), once at the first verdict and at each change; it never ends."""
    await asyncio.sleep(timing.delay)
    healthy: bool | None = None
    good, failing_since = 0, None
    eager = timing.eager
    while True:
        why = await _in_time(check, timing.timeout)
        now = clock()
        if why:
            good = 0
            failing_since = now if failing_since is None else failing_since
            failures = int((now - failing_since) / timing.period + 1e-3) + 1
            if failures >= timing.failures and healthy is not False:
                healthy = False
                yield False, why
        else:
            good, failing_since = good + 1, None
            if good >= timing.successes and healthy is not True:
                healthy, eager = True, False
                yield True, ""
        await asyncio.sleep(min(EAGER, timing.period) if eager else timing.period)


async def _in_time(check: Check, timeout: float) -> str:
    try:
        return await asyncio.wait_for(check(), timeout)
    except TimeoutError:
        return f"no answer within {timeout:g} s"


def check_of(probe: Object, container: Object, address: str, launch: Launch) -> Check:
    """The check that a probe (or a preStop hook) describes."""
    if "httpGet" in probe:
        return lambda: _http(probe["httpGet"], container, address)
    if "tcpSocket" in probe:
        return lambda: _tcp(probe["tcpSocket"], container, address)
    return lambda: _execute(probe["exec"]["command"], launch)


async def _http(action: Object, container: Object, address: str) -> str:
    scheme = action.get("scheme", "HTTP").lower()
    host = action.get("host") or address
    port = port_number(action["port"], container)
    url = f"{scheme}://{host}:{port}/{action.get('path', '/').lstrip('/')}"
    headers = {one["name"]: one["value"] for one in action.get("httpHeaders", [])}
    headers.setdefault("User-Agent", "kube-probe/trimwheel")
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.get(url, headers=headers, ssl=False) as response,
        ):
            if response.status < 400:
                return ""
            return f"HTTP probe of {url} failed with status code {response.status}"
    except (aiohttp.ClientError, OSError) as error:
        return f"HTTP probe of {url} failed: {error}"


async def _tcp(action: Object, container: Object, address: str) -> str:
    host, port = action.get("host") or address, port_number(action["port"], container)
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        return f"TCP probe of {host}:{port} failed: {error}"
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return ""


async def _execute(command: list[str], launch: Launch) -> str:
    """Run the command where the container runs; it dies with the probe's time."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=launch.folder,
            env=launch.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return f"exec probe {command[0]}: {error}"
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    text = output[:OUTPUT_LIMIT].decode(errors="replace").strip()
    return f"exec probe exited {process.returncode}: {text}" if process.returncode else ""


def port_number(port: int | str, container: Object) -> int:
    """A port by number or by the name that the container gives it."""
    for one in container.get("ports", []):
        if one.get("name") == port:
            return int(one["containerPort"])
    return int(port)
