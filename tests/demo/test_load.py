"""The load generator against a real HTTP server: on schedule, honest about what it saw."""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path

import pytest
from aiohttp import web
from click.testing import CliRunner

from trimwheel_api.errors import InvalidInput, SetupFailed
from trimwheel_cli.main import cli
from trimwheel_demo import load
from trimwheel_demo.corpus import Corpus, Snippet

_SNIPPETS = (Snippet("import os\nimport re", "a"), Snippet("x = 1\ny = 2", "b"))
POOLS = Corpus(("a", "b"), {"heldout": _SNIPPETS, "comments": _SNIPPETS})


@pytest.fixture
async def server() -> AsyncIterator[tuple[str, list[dict[str, object]]]]:
    """Answers like a worker; every tenth request is refused."""
    seen: list[dict[str, object]] = []

    async def infer(request: web.Request) -> web.Response:
        body = await request.json()
        seen.append({"session": request.headers["x-session-id"], "body": body})
        if len(seen) % 10 == 0:
            return web.json_response({"error": {}}, status=429)
        parameters = {"trimwheel_arm": "stable", "trimwheel_layers": 2,
                      "trimwheel_policy_digest": "sha256:x"}  # fmt: skip
        return web.json_response({"parameters": parameters})

    app = web.Application()
    app.router.add_post("/v2/models/m/infer", infer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    yield f"http://127.0.0.1:{port}", seen
    await runner.cleanup()


async def test_it_sends_at_the_rate_and_counts_what_came_back(
    server: tuple[str, list[dict[str, object]]], tmp_path: Path
) -> None:
    import asyncio

    endpoint, seen = server
    folder = load.Folder(tmp_path)
    folder.write_control(load.Control(endpoint, "m", rate=50))
    generator = load.Generator(folder, POOLS)
    running = asyncio.create_task(generator.run())
    await asyncio.sleep(2.6)
    generator.stopping.set()
    await running
    rows = load.windows(folder)
    total = load.summary(rows)
    assert 60 <= len(seen) <= 140
    assert total["codes"]["429"] == pytest.approx(total["sent"] / 10, abs=2)
    assert total["digests"] == {"sha256:x": total["answered"]}
    assert total["p50_ms"] is not None and total["p50_ms"] < 500


async def test_a_changed_control_file_changes_a_running_load(
    server: tuple[str, list[dict[str, object]]], tmp_path: Path
) -> None:
    import asyncio

    endpoint, _ = server
    folder = load.Folder(tmp_path)
    folder.write_control(load.Control(endpoint, "m", rate=20))
    generator = load.Generator(folder, POOLS)
    running = asyncio.create_task(generator.run())
    await asyncio.sleep(0.5)
    folder.write_control(load.Control(endpoint, "m", rate=20, mix="drifted"))
    await asyncio.sleep(0.6)
    assert generator.control.mix == "drifted"
    generator.stopping.set()
    await running


@pytest.mark.slow
def test_a_server_that_is_away_is_counted_not_raised(tmp_path: Path) -> None:
    folder = load.Folder(tmp_path)
    control = load.Control("http://127.0.0.1:9", "m", rate=20)
    pid = load.start(folder, control)
    try:
        deadline = time.monotonic() + 20
        while not load.windows(folder) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert folder.running() == pid
        assert load.summary(load.windows(folder))["codes"].get(load.UNANSWERED, 0) > 0
    finally:
        assert load.stop(folder)
    assert folder.running() is None
    assert not load.stop(folder)


def test_sessions_are_one_to_three_requests_long() -> None:
    keys = list(islice(load.sessions(random.Random(1)), 3000))
    lengths = [keys.count(key) for key in set(keys[:-3])]
    assert set(lengths) <= {1, 2, 3}


def test_windows_can_be_cut_by_time_and_ignore_a_half_written_line(tmp_path: Path) -> None:
    folder = load.Folder(tmp_path)
    rows = [{"start": float(i), "sent": 1, "skipped": 0, "codes": {}, "digests": {},
             "milliseconds": []} for i in range(5)]  # fmt: skip
    folder.windows.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"start": 9')
    assert [row["start"] for row in load.windows(folder, 1, 4)] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), 0, -1, 1e9, True, "100", None])
def test_a_rate_that_no_schedule_has_is_refused_before_the_generator_sees_it(rate: object) -> None:
    """NaN sent without a pause, and took 34 MB of memory a second."""
    with pytest.raises(InvalidInput, match="rate: must be from 0.1 to 5000"):
        load.Control("http://127.0.0.1:9", "m", rate=rate)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", ["NaN", "Infinity", "-1", '"fast"', "1e400", "null"])
def test_a_generator_does_not_follow_such_a_rate_either(rate: str, tmp_path: Path) -> None:
    folder = load.Folder(tmp_path)
    folder.control.write_text(f'{{"endpoint": "http://x", "model": "m", "rate": {rate}}}')
    with pytest.raises(SetupFailed, match=r"control.json cannot be read \(rate: must be"):
        folder.read_control()


def window(start: float) -> str:
    empty = {"sent": 7, "skipped": 0, "codes": {"200": 7}, "digests": {}, "milliseconds": [5.0]}
    return json.dumps({"start": start} | empty) + "\n"


@pytest.mark.parametrize(
    ("ages", "code", "seen"),
    [
        ([3.2, 2.2, 1.2], 0, 3),
        ([302.2, 301.2], 1, 0),
        ([302.2, 301.2, 1.2], 0, 1),
        ([], 1, 0),
    ],
)
def test_status_shows_the_last_seconds_and_says_how_old_they_are(
    ages: list[float], code: int, seen: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of five minutes ago were shown as those of now."""
    monkeypatch.setenv("TRIMWHEEL_STATE", str(tmp_path))
    monkeypatch.setenv("TRIMWHEEL_INDEX", "0")
    monkeypatch.setattr(load.Folder, "running", lambda self: 7)
    folder = load.Folder(tmp_path / "demo-0" / "load")
    folder.write_control(load.Control("http://x", "m"))
    now = time.time()
    spoilt = "{half\n[]\n" + '{"start": "x"}\n'
    folder.windows.write_text(spoilt + "".join(window(now - age) for age in ages))
    done = CliRunner().invoke(cli, ["load", "status", "-o", "json"])
    value = json.loads(done.stdout)
    assert (done.exit_code, value["seconds"], value["sent"]) == (code, seen, 7 * seen)
    assert value["age_seconds"] == (pytest.approx(0.2, abs=2.0) if seen else None)
    text = CliRunner().invoke(cli, ["load", "status"]).stdout
    assert ("nothing was reported in the last 10 s" in text) is (seen == 0)
