"""The engine's process as the front runs it: starts that fail, stops that come at any moment."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trimwheel_api.worker_config import WorkerConfig
from trimwheel_workers.engine.config import EngineConfig
from trimwheel_workers.front import engine_client
from trimwheel_workers.front.engine_client import EngineClient
from trimwheel_workers.front.server import _Serving
from trimwheel_workers.settings import Settings


class Deaf:
    """Hears what the engine says and does nothing."""

    def engine_ready(self, shape: Any) -> None: ...

    def engine_frame(self, kind: Any, body: Any) -> None: ...

    def engine_down(self) -> None: ...


@pytest.fixture
def config(tiny_model: tuple[Path, str], tmp_path: Path) -> WorkerConfig:
    model, digest = tiny_model
    return WorkerConfig.model_validate({
        "model": "m", "namespace": "n", "modelDigest": digest, "modelPath": str(model),
        "statePath": str(tmp_path / "state"), "recordsUri": str(tmp_path / "records"), "port": 1,
    })  # fmt: skip


@pytest.fixture
def client(config: WorkerConfig) -> EngineClient:
    return EngineClient(EngineConfig.of_worker(config), Deaf())


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not what():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("executable", ["/bin/false", "/nowhere/python"])
async def test_a_stop_does_not_wait_for_the_next_start(
    client: EngineClient,
    executable: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(engine_client, "_FIRST_RETRY", 60.0)
    monkeypatch.setattr(sys, "executable", executable)
    running = asyncio.create_task(client.run())
    await until(lambda: "another starts in 60.0 s" in caplog.text)
    assert not running.done(), "a start that fails is tried again"
    await client.stop(1.0)
    async with asyncio.timeout(2):
        await running


async def test_an_engine_that_starts_while_it_is_stopped_is_ended(
    client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn, spawned, go_on = asyncio.create_subprocess_exec, asyncio.Event(), asyncio.Event()

    async def slowly(*arguments: Any, **keywords: Any) -> asyncio.subprocess.Process:
        process = await spawn(*arguments, **keywords)
        spawned.set()
        await go_on.wait()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slowly)
    running = asyncio.create_task(client.run())
    await spawned.wait()
    await client.stop(1.0)
    go_on.set()
    async with asyncio.timeout(5):
        await running


async def test_however_the_engine_ends_a_drain_stores_the_records(
    config: WorkerConfig, tmp_path: Path
) -> None:
    class Nothing:
        should_exit = False

        def stop(self) -> None: ...

    serving = _Serving(config, Settings(drain_notice=0.0))
    writer = serving._worker.writer
    assert writer is not None
    writer.start()
    writer.lost(3)
    http: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    http.set_result(None)
    engine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    engine.set_exception(RuntimeError("a defect"))
    ends: Any = (Nothing(), http, engine, Nothing())
    with pytest.raises(RuntimeError, match="a defect"):
        await serving._drain(*ends)
    assert len(list((tmp_path / "records").rglob("*-lost3.parquet"))) == 1
