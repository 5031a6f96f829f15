"""The probe loop by a fake clock, and each kind of check against the real thing."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from trimwheel_local.node import probes
from trimwheel_local.node.probes import EAGER, Timing, check_of, port_number, verdicts
from trimwheel_local.node.runtime import Launch

LAUNCH = Launch([], {"PATH": os.environ["PATH"], "WORD": "yes"}, Path("/"))


class Time:
    """A clock that `asyncio.sleep` moves, so that minutes pass at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.real = asyncio.sleep
        monkeypatch.setattr(probes.asyncio, "sleep", self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await self.real(0)

    def __call__(self) -> float:
        return self.now


async def observe(
    time: Time, timing: Timing, healthy_when: range | list[range], until: float
) -> list[tuple[float, bool]]:
    """(time, verdict) of a check that is healthy in some spans of whole seconds."""
    spans = [healthy_when] if isinstance(healthy_when, range) else healthy_when

    async def check() -> str:
        if time.now > until:
            raise asyncio.CancelledError
        return "" if any(span.start <= time.now < span.stop for span in spans) else "sick"

    found = []
    try:
        async for healthy, _ in verdicts(timing, check, time):
            found.append((round(time.now, 1), healthy))
    except asyncio.CancelledError:
        pass
    return found


def timing(**fields: float) -> Timing:
    base = {"delay": 0, "period": 10, "timeout": 1, "successes": 1, "failures": 3, "eager": False}
    return Timing(**{**base, **fields})  # type: ignore[arg-type]


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


async def test_failures_are_counted_once_a_period(time: Time) -> None:
    found = await observe(time, timing(), range(0, 15), until=100)
    assert found == [(0.0, True), (40.0, False)]


async def test_the_delay_comes_first(time: Time) -> None:
    assert await observe(time, timing(delay=7), range(0, 99), until=50) == [(7, True)]


async def test_successes_in_a_row_are_needed(time: Time) -> None:
    found = await observe(time, timing(successes=3), range(0, 99), until=90)
    assert found == [(20.0, True)]


async def test_recovery_is_reported(time: Time) -> None:
    found = await observe(time, timing(failures=1), [range(0, 5), range(25, 99)], until=80)
    assert found == [(0.0, True), (10.0, False), (30.0, True)]


async def test_an_eager_probe_sees_the_first_success_early(time: Time) -> None:
    [(when, healthy)] = await observe(time, timing(eager=True), range(3, 99), until=50)
    assert healthy
    assert 3 <= when <= 3 + EAGER


async def test_an_eager_probe_does_not_fail_faster(time: Time) -> None:
    eager = await observe(time, timing(eager=True), range(0, 0), until=60)
    plain = await observe(Time(pytest.MonkeyPatch()), timing(), range(0, 0), until=60)
    assert eager == plain == [(20.0, False)]


@pytest.fixture
async def server() -> AsyncIterator[int]:
    """An HTTP server on 127.0.0.1; its path is the status it answers with."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=int(request.match_info["code"]))

    application = web.Application()
    application.router.add_get("/{code}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@pytest.mark.parametrize(
    ("code", "healthy"), [(200, True), (399, True), (404, False), (503, False)]
)
async def test_http_status_decides(server: int, code: int, healthy: bool) -> None:
    probe = {"httpGet": {"path": f"/{code}", "port": server}}
    why = await check_of(probe, {}, "127.0.0.1", LAUNCH)()
    assert (why == "") is healthy
    assert healthy or str(code) in why


async def test_tcp_probes_connect(server: int) -> None:
    container = {"ports": [{"name": "web", "containerPort": server}]}
    probe = {"tcpSocket": {"port": "web"}}
    assert await check_of(probe, container, "127.0.0.1", LAUNCH)() == ""
    refused = {"tcpSocket": {"port": 1}}
    assert "TCP probe of 127.0.0.1:1 failed" in await check_of(refused, {}, "127.0.0.1", LAUNCH)()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("import os; assert os.environ['WORD'] == 'yes'", ""),
        ("print('no'); raise SystemExit(4)", "exec probe exited 4: no"),
    ],
)
async def test_exec_probes_run_in_the_containers_surroundings(script: str, why: str) -> None:
    probe = {"exec": {"command": [sys.executable, "-c", script]}}
    assert await check_of(probe, {}, "", LAUNCH)() == why


async def test_an_exec_probe_out_of_time_is_killed(tmp_path: Path) -> None:
    script = f"""
import os, pathlib, time
pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()))
time.sleep(60)
"""
    probe = {"exec": {"command": [sys.executable, "-c", script]}}
    check = check_of(probe, {}, "", LAUNCH)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(check(), 1)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return
        await asyncio.sleep(0.02)
    pytest.fail("the probe's process still runs")


def test_ports_by_name_or_number() -> None:
    container = {"ports": [{"name": "http", "containerPort": 8080}]}
    assert port_number("http", container) == 8080
    assert port_number("9000", container) == 9000
