"""Real worker processes: swap under load, overload, drain, crash, audits; the whole path."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from typing import Any

import httpx
import orjson
import pyarrow.parquet as pq
import pytest

from trimwheel_api.cohorts import in_candidate
from trimwheel_api.policy import DENSE
from trimwheel_api.records import parse_segment_name
from trimwheel_workers.front.worker import STALL_SECONDS

pytestmark = pytest.mark.slow

Start = Callable[..., Any]


async def load(
    url: str, rate: float, seconds: float, body: dict[str, Any], **limits: Any
) -> list[tuple[int, float, dict[str, Any]]]:
    """Open loop: `rate` requests a second whatever comes back; (status, latency, body) of each."""
    pool = httpx.Limits(max_connections=200, max_keepalive_connections=200)
    async with httpx.AsyncClient(timeout=15.0, limits=pool) as client:

        async def one(number: int) -> tuple[int, float, dict[str, Any]]:
            sent = time.monotonic()
            headers = {"x-session-id": f"s{number}"}
            answer = await client.post(url, json=body, headers=headers)
            return answer.status_code, time.monotonic() - sent, answer.json()

        tasks = []
        start = time.monotonic()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
            tasks.append(asyncio.create_task(one(number)))
        return list(await asyncio.gather(*tasks))


def test_it_answers_and_says_who_answered(start_worker: Start, make: Any) -> None:
    candidate = make.policy("0.6", "0.55", "0.5")
    worker = start_worker(
        make.assignment(1, DENSE, candidate, weight=5000, salt="x", leaseSeconds=3600)
    )
    answered = worker.infer("import os", **{"x-session-id": "s1"}).json()
    arm = "candidate" if in_candidate("s1", "x", 5000) else "stable"
    assert answered["parameters"]["trimwheel_arm"] == arm
    assert answered["outputs"][0]["data"][0] in make.classes
    both = worker.infer("import os", "class A: pass").json()
    assert [output["shape"] for output in both["outputs"]] == [[2]] * 4
    assert worker.metric("trimwheel_requests_total", code="200") == 3
    assert worker.metric("trimwheel_policy_epoch") == 1
    assert worker.client.get("/v2").json()["device"] == "cpu"
    assert "no GPU" in worker.log()


async def test_a_swap_under_load_loses_nothing_and_changes_the_digest(
    start_worker: Start, make: Any
) -> None:
    first, second = DENSE, make.policy("0.6", "0.55", "0.5")
    worker = start_worker(make.assignment(1, first, auditRate="0.5"))
    running = asyncio.create_task(load(worker.url, 100, 3.0, make.body("def f(x): return x")))
    for epoch in range(2, 8):
        await asyncio.sleep(0.4)
        worker.assign(make.assignment(epoch, second if epoch % 2 == 0 else first, auditRate="0.5"))
    ended = await running
    assert [status for status, *_ in ended].count(200) == 300
    digests = {body["parameters"]["trimwheel_policy_digest"] for *_, body in ended}
    assert digests == {first.digest, second.digest}


async def test_overload_is_answered_at_once_and_never_piles_up(
    start_worker: Start, make: Any
) -> None:
    worker = start_worker(
        make.assignment(1, DENSE, auditRate="0"),
        engine={"queueLimit": 4, "maxBatch": 2, "maxWait": "1ms", "deadline": "10s"},
    )
    pid = worker.engine_pid()
    os.kill(pid, signal.SIGSTOP)  # an engine that is busy for as long as we like
    running = asyncio.create_task(load(worker.url, 1e6, 60e-6, make.body("import os")))

    def refused_so_far() -> bool:
        return worker.metric("trimwheel_requests_total", code="429") == 54

    await asyncio.to_thread(worker.wait, refused_so_far, 8.0)
    assert worker.client.get("/v2/health/live").status_code == 200
    os.kill(pid, signal.SIGCONT)
    ended = await running
    codes = [status for status, *_ in ended]
    assert (codes.count(200), codes.count(429)) == (6, 54), "queueLimit + maxBatch are let in"
    refused = [latency for status, latency, _ in ended if status == 429]
    assert max(refused) < 8.0, "while the engine did nothing"


def test_a_killed_engine_is_replaced_and_nobody_waits_for_it(
    start_worker: Start, make: Any
) -> None:
    worker = start_worker(make.assignment(3, DENSE, auditRate="1"))
    assert worker.infer("import os").status_code == 200
    dead = worker.engine_pid()
    os.kill(dead, signal.SIGKILL)
    worker.wait(lambda: not worker.ready(), 5)
    answer = worker.infer("import os")
    assert answer.status_code == 503 and answer.headers["retry-after"]
    worker.wait(worker.ready)
    assert worker.engine_pid() != dead
    answered = worker.infer("import os").json()
    assert answered["parameters"]["trimwheel_policy_digest"] == DENSE.digest
    assert worker.metric("trimwheel_engine_restarts_total") == 1
    assert worker.metric("trimwheel_policy_epoch") == 3


def test_requests_in_flight_when_the_engine_dies_get_503(start_worker: Start, make: Any) -> None:
    worker = start_worker(make.assignment(1, DENSE))
    pid = worker.engine_pid()
    os.kill(pid, signal.SIGSTOP)

    async def ask_then_kill() -> list[tuple[int, float, dict[str, Any]]]:
        running = asyncio.create_task(load(worker.url, 100, 0.1, make.body("import os")))
        await asyncio.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        return await running

    ended = asyncio.run(ask_then_kill())
    assert [status for status, *_ in ended] == [503] * 10
    assert all(latency < 2.0 for _, latency, _ in ended)


async def test_a_drain_answers_what_is_in_flight_and_stores_every_record(
    start_worker: Start, make: Any
) -> None:
    worker = start_worker(make.assignment(1, DENSE, auditRate="1"), notice="6s", keepInputs=True)
    running = asyncio.create_task(load(worker.url, 100, 0.6, make.body("import os")))
    await asyncio.sleep(0.3)
    stopping = asyncio.create_task(asyncio.to_thread(worker.stop, 30.0))
    await asyncio.sleep(0.1)
    assert not worker.ready(), "routers are told first"
    ended = await running
    assert await stopping == 0, worker.log()
    answered = [body for status, _, body in ended if status == 200]
    assert len(answered) == 60, worker.log()
    rows = [row for path in worker.records.rglob("*.parquet") for row in
            pq.read_table(path).to_pylist()]  # fmt: skip
    assert len(rows) == len(answered)
    assert {row["text"] for row in rows} == {"import os"}
    assert all(row["u"] < row["propensity"] == 1.0 for row in rows)
    assert sum(parse_segment_name(p.name)[4] for p in worker.records.rglob("*.parquet")) == 0


def test_parity_holds_and_every_record_can_be_replayed(start_worker: Start, make: Any) -> None:
    from trimwheel_api.decide import decide

    stable = make.policy("0.6", "0.55", "0.5")
    candidate = make.policy("0.7", "0.6", "0.5", topK=1)
    worker = start_worker(
        make.assignment(
            1, stable, candidate, weight=5000, salt="x", auditRate="1", leaseSeconds=3600
        )
    )
    for number in range(40):
        headers = {"x-session-id": f"s{number % 20}"}
        assert worker.infer(f"def f{number}(x): return {number}", **headers).status_code == 200
    worker.wait(lambda: worker.metric("trimwheel_records_written_total") == 40)
    trials = worker.metric("trimwheel_guard_trials_total", guard="parity")
    assert trials == 20 and worker.metric("trimwheel_guard_events_total", guard="parity") == 0
    for arm in ("stable", "candidate"):
        found = worker.metric("trimwheel_guard_trials_total", guard="disagreement", arm=arm)
        assert found == 20, "every audit judges both, once a session"
    rows = [row for path in worker.records.rglob("*.parquet") for row in
            pq.read_table(path).to_pylist()]  # fmt: skip
    thresholds = [0.6, 0.55, 0.5]
    for row in rows:
        exit_index = decide(row["scores"], thresholds)
        assert row["stable_exit"] == exit_index
        assert row["stable_prediction"] == row["predictions"][exit_index]
        assert row["candidate_digest"] == candidate.digest
        served = row["arm"]
        assert row["digest"] == (stable if served == "stable" else candidate).digest
        assert (row["exit"], row["prediction"]) == (
            row[f"{served}_exit"],
            row[f"{served}_prediction"],
        )
    assert {row["arm"] for row in rows} == {"stable", "candidate"}
    assert sum(row["first_in_session"] for row in rows) == 20


def test_an_unsupported_policy_is_refused_and_the_last_good_one_serves(
    start_worker: Start, make: Any
) -> None:
    good = make.policy("0.6", "0.55", "0.5")
    worker = start_worker(make.assignment(1, good))
    worker.assign(make.assignment(2, make.policy("0.6")))
    worker.wait(lambda: worker.metric("trimwheel_assignment_refusals_total", arm="stable") == 1)
    served = worker.infer("import os").json()["parameters"]["trimwheel_policy_digest"]
    assert served == good.digest and worker.ready()
    assert "policy.exit.thresholds" in worker.log()
    worker.assign(make.assignment(3, DENSE, make.policy("0.6"), weight=5000, leaseSeconds=60))
    worker.wait(lambda: worker.metric("trimwheel_policy_epoch") == 3)
    assert worker.metric("trimwheel_assignment_refusals_total", arm="candidate") == 1
    arms = {
        worker.infer("x", **{"x-session-id": f"s{n}"}).json()["parameters"]["trimwheel_arm"]
        for n in range(10)
    }
    assert arms == {"stable"}


def test_a_silent_operator_ends_the_canary(start_worker: Start, make: Any) -> None:
    candidate = make.policy("0.6", "0.55", "0.5")
    worker = start_worker(make.assignment(1, DENSE))
    worker.assign(make.assignment(2, DENSE, candidate, weight=10_000, leaseSeconds=5))

    def arm() -> str:
        told: str = worker.infer("x").json()["parameters"]["trimwheel_arm"]
        return told

    worker.wait(lambda: arm() == "candidate", 4)
    worker.wait(lambda: arm() == "stable", 10)
    assert worker.metric("trimwheel_tripwire_total", reason="LeaseExpired") == 1
    worker.assign(make.assignment(2, DENSE, candidate, weight=10_000, leaseSeconds=5, renewals=1))
    worker.wait(lambda: arm() == "candidate", 4)


def test_another_digest_than_configured_ends_the_worker(start_worker: Start, make: Any) -> None:
    worker = start_worker(make.assignment(1, DENSE), wait=False, modelDigest="sha256:" + "0" * 64)
    assert worker.process.wait(30) == 1
    assert "model.digest" in worker.log()


def test_without_an_assignment_it_is_not_ready_and_from_disk_it_is(
    start_worker: Start, make: Any
) -> None:
    first = start_worker(make.assignment(4, DENSE))
    first.stop()
    kept = json.loads((first.folder / "state" / "assignment.json").read_text())
    assert kept["spec"]["epoch"] == 4
    again = start_worker({"spec": {}}, wait=False)
    again.wait(again.ready)
    assert again.metric("trimwheel_policy_epoch") == 4
    again.stop()
    (first.folder / "state" / "assignment.json").unlink()
    never = start_worker({"spec": {}}, wait=False)
    never.wait(lambda: never.client.get("/v2/health/live").status_code == 200)
    never.wait(lambda: bool(never.client.get("/v2").json()["device"]))
    assert not never.ready(), "a model alone does not make it ready"


def test_an_engine_never_outlives_its_front(start_worker: Start, make: Any) -> None:
    worker = start_worker(make.assignment(1, DENSE))
    engine = worker.engine_pid()
    worker.process.kill()
    worker.process.wait()
    end = time.monotonic() + 5
    while os.path.exists(f"/proc/{engine}/cmdline") and time.monotonic() < end:
        if open(f"/proc/{engine}/stat").read().split()[2] == "Z":
            return
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{engine}")


def test_an_idle_worker_uses_next_to_no_processor(start_worker: Start, make: Any) -> None:
    worker = start_worker(make.assignment(1, DENSE))

    def ticks() -> float:
        total = 0.0
        for pid in (worker.process.pid, worker.engine_pid()):
            fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return total

    before = ticks()
    time.sleep(3.0)
    assert ticks() - before < 0.15
    status = open(f"/proc/{worker.process.pid}/status").read()
    rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert rss < 130_000, "kilobytes of the front"


async def _timed(client: httpx.AsyncClient, url: str) -> tuple[int, float]:
    started = time.monotonic()
    answer = await client.get(url)
    return answer.status_code, time.monotonic() - started


async def _flood(url: str, content: bytes, connections: int, until: float, codes: set[int]) -> None:
    async def one() -> None:
        async with httpx.AsyncClient(timeout=30.0) as client:
            while time.monotonic() < until:
                codes.add((await client.post(url, content=content)).status_code)

    await asyncio.gather(*(one() for _ in range(connections)))


def _emoji() -> bytes:
    """786 KB that are 196,608 characters: with 100 clients more than a frame may hold."""
    return orjson.dumps(
        {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [3],
                     "data": ["\U0001f600" * 65_536] * 3}]}
    )  # fmt: skip


FLOODS = {
    "786 KB of emoji": (100, _emoji, {200, 429, 503}),
    "15 words of 65,536 letters": (
        15,
        lambda: orjson.dumps(
            {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [15],
                         "data": ["ab" * 32_768] * 15}]}
        ),
        {200, 429, 503},
    ),
    "a megabyte of empty lists": (6, lambda: b"[" + b"[]," * 349_000 + b"[]]", {400}),
    "a megabyte that is quoted": (6, lambda: b'{"inputs":[' + b"1," * 4000 + b'"' +
                                  b"x" * 1_000_000 + b'"]}', {400}),
    "a megabyte that is no JSON": (6, lambda: b"{" * 1_000_000, {400}),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOODS)
async def test_a_tiny_text_and_the_probes_are_answered_beside_hostile_bodies(
    start_worker: Start, make: Any, name: str
) -> None:
    connections, content, expected = FLOODS[name]
    worker = start_worker(make.assignment(1, DENSE))
    engine = worker.engine_pid()
    codes: set[int] = set()
    flood = asyncio.create_task(
        _flood(worker.url, content(), connections, time.monotonic() + 4, codes)
    )
    ready, tiny = [], []
    async with httpx.AsyncClient(timeout=30.0) as client:
        await asyncio.sleep(0.5)
        while not flood.done():
            url = f"http://127.0.0.1:{worker.probes_port}/v2/health/ready"
            ready.append(await _timed(client, url))
            started = time.monotonic()
            answer = await client.post(worker.url, json=make.body("import os"))
            tiny.append((answer.status_code, time.monotonic() - started))
            await asyncio.sleep(0.1)
    await flood
    assert codes <= expected, codes
    assert worker.engine_pid() == engine and worker.metric("trimwheel_engine_restarts_total") == 0
    assert {code for code, _ in ready} == {200}
    assert {code for code, _ in tiny} <= {200, 429}, "a full queue says so at once"
    slowest = max(seconds for _, seconds in ready), max(seconds for _, seconds in tiny)
    assert slowest < (1.0, 4.0), "3.1 s for the probes before"
    assert slowest[1] < 4.0
    assert worker.infer("import os").status_code == 200


def test_an_idle_engine_is_not_killed_over_a_slow_first_batch(
    start_worker: Start, make: Any
) -> None:
    worker = start_worker(make.assignment(1, DENSE), engine={"deadline": "500ms"})
    pid = worker.engine_pid()
    worker.client.timeout = 30.0
    time.sleep(STALL_SECONDS + 1)
    os.kill(pid, signal.SIGSTOP)
    assert worker.infer("import os").status_code == 503, "its deadline passed"
    time.sleep(1.0)
    os.kill(pid, signal.SIGCONT)
    worker.wait(lambda: worker.infer("import os").status_code == 200, 10)
    assert worker.engine_pid() == pid and worker.metric("trimwheel_engine_restarts_total") == 0


def test_probes_and_metrics_have_a_port_of_their_own(start_worker: Start, make: Any) -> None:
    worker = start_worker(make.assignment(1, DENSE))
    assert worker.probe("/v2/health/live").json() == {"live": True}
    assert worker.probe("/v2/health/ready").json() == {"ready": True}
    answer = worker.probe("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "# TYPE trimwheel_requests_total counter" in answer.text
    assert worker.probe("/v2/models/m/infer").status_code == 404
    assert worker.client.get("/metrics").status_code == 404, "not for clients"


def test_an_artifact_that_cannot_serve_ends_the_worker_with_one_sentence(
    start_worker: Start, make: Any, tiny_model: tuple[Any, str], tmp_path: Any
) -> None:
    """It was Ready before, or an engine that restarted for ever with a traceback."""
    from trimwheel_workers.model.digest import digest_of

    folder = tmp_path / "odd"
    shutil.copytree(tiny_model[0], folder)
    stored = json.loads((folder / "config.json").read_text())
    stored["encoder"]["heads"] = 0
    (folder / "config.json").write_text(json.dumps(stored))
    worker = start_worker(
        make.assignment(1, DENSE), wait=False, modelPath=str(folder), modelDigest=digest_of(folder)
    )
    assert worker.process.wait(60) == 1
    log = worker.log()
    assert "heads must be a whole number from 1 to 1024, but is 0" in log
    assert "Traceback" not in log and "another starts" not in log
