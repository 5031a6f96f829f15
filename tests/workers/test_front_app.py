"""HTTP without an engine: probes, metadata, refusals; and what a worker counts of them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimwheel_api.policy import DENSE, parse_policy
from trimwheel_api.worker_config import WorkerConfig
from trimwheel_workers.arms import ModelShape, Snapshot, resident
from trimwheel_workers.engine.frames import Decoder, Kind, encode
from trimwheel_workers.engine.status import Status
from trimwheel_workers.front.app import make_app
from trimwheel_workers.front.dispatch import FRAME_BYTES
from trimwheel_workers.front.metrics import WorkerMetrics
from trimwheel_workers.front.worker import STALL_SECONDS, Worker

SHAPE = ModelShape("sha256:m", "sha256:s", 4, (1, 2, 3), 4, 2, 2, ("a", "b"))
INFER = "/v2/models/m/infer"


@pytest.fixture
def worker() -> Worker:
    config = WorkerConfig(model="m", namespace="n", model_digest="sha256:" + "a" * 64)
    return Worker(config, WorkerMetrics("m", 0.25), None)


@pytest.fixture
async def client(worker: Worker) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=make_app(worker))
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as made:
        yield made


def in_force(worker: Worker) -> None:
    """As if an engine had applied the dense policy."""
    worker.engine_ready(SHAPE)
    worker.engine.ready = True
    worker.engine.shape = SHAPE
    snapshot = Snapshot(1, 1, "salt", 0, 0.0, resident(DENSE, SHAPE), None)
    worker._guards.reside("salt", {"stable": DENSE.digest})
    worker.requests.target = worker.requests.serving = snapshot


async def test_before_an_engine_and_a_policy_it_is_live_but_not_ready(
    client: httpx.AsyncClient, make: Any
) -> None:
    assert (await client.get("/v2/health/live")).status_code == 200
    for path in ("/v2/health/ready", "/v2/models/m/ready"):
        assert (await client.get(path)).status_code == 503
    answer = await client.post(INFER, json=make.body("x"))
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert answer.json()["details"]["field"] == "worker"


async def test_it_is_ready_with_both_and_not_while_it_drains(
    client: httpx.AsyncClient, worker: Worker
) -> None:
    in_force(worker)
    assert (await client.get("/v2/health/ready")).status_code == 200
    worker.draining = True
    assert (await client.get("/v2/health/ready")).status_code == 503
    assert (await client.get("/v2/health/live")).status_code == 200


async def test_it_says_what_it_is(client: httpx.AsyncClient, worker: Worker) -> None:
    in_force(worker)
    server = (await client.get("/v2")).json()
    assert server["name"] == "trimwheel" and server["device"] == "cpu"
    model = (await client.get("/v2/models/m")).json()
    assert model["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert [output["name"] for output in model["outputs"]][:2] == ["label", "probability"]


REFUSALS = {
    "another model": ("POST", "/v2/models/x/infer", b"{}", {}, 404, "model"),
    "another model's metadata": ("GET", "/v2/models/x", b"", {}, 404, "model"),
    "another version": ("POST", "/v2/models/m/versions/7/infer", b"{}", {}, 404, "version"),
    "another version's state": ("GET", "/v2/models/m/versions/7/ready", b"", {}, 404, "version"),
    "a body that is not gzip": ("POST", INFER, b"{}", {"content-encoding": "gzip"}, 400, "body"),
    "an unknown encoding": ("POST", INFER, b"{}", {"content-encoding": "br"}, 415,
                            "header content-encoding"),
    "no such path": ("GET", "/v3", b"", {}, 404, "path"),
    "a wrong method": ("GET", INFER, b"", {}, 405, "method"),
    "not JSON": ("POST", INFER, b"{", {}, 400, "body"),
    "a body without end": ("POST", INFER, b"x" * (2 << 20), {}, 413, "body"),
    "a session key without end": ("POST", INFER, b"{}", {"x-session-id": "x" * 999}, 400,
                                  "header x-session-id"),
}  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "headers", "code", "field"),
                         REFUSALS.values(), ids=REFUSALS.keys())  # fmt: skip
async def test_a_refusal_has_one_shape(
    client: httpx.AsyncClient, method: str, path: str, body: bytes, headers: dict[str, str],
    code: int, field: str,
) -> None:  # fmt: skip
    answer = await client.request(method, path, content=body, headers=headers)
    assert answer.status_code == code
    told = answer.json()
    assert isinstance(told["error"], str), "stock clients print it"
    assert set(told["details"]) == {"field", "rule", "value"}
    assert told["details"]["field"] == field


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


PLACES: tuple[tuple[str | int, ...], ...] = (
    (), ("id",), ("inputs",), ("inputs", 0), ("inputs", 0, "name"), ("inputs", 0, "datatype"),
    ("inputs", 0, "shape"), ("inputs", 0, "shape", 0), ("inputs", 0, "data"),
    ("inputs", 0, "data", 0), ("outputs",), ("outputs", 0), ("outputs", 0, "name"),
)  # fmt: skip


def with_value(body: Any, place: tuple[str | int, ...], value: Any) -> Any:
    """A good body with another value at one place."""
    if not place:
        return value
    inside = with_value(body[place[0]], place[1:], value)
    if isinstance(body, dict):
        return body | {place[0]: inside}
    return [inside if index == place[0] else one for index, one in enumerate(body)]


def test_no_body_makes_a_server_error(make: Any) -> None:
    """Whatever JSON a client sends, the answer is 200 or names the client's mistake."""
    good = make.body("x", id="r", outputs=[{"name": "label"}])
    seen = set()

    @settings(deadline=None, max_examples=300)
    @given(st.sampled_from(PLACES), JSON)
    def check(place: tuple[str | int, ...], value: Any) -> None:
        body = with_value(good, place, value)
        answer = runner.run(client.post(INFER, content=json.dumps(body)))
        seen.add(answer.status_code)
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 400:
            assert answer.json()["details"]["field"]

    async def serving() -> tuple[Worker, httpx.AsyncClient]:
        config = WorkerConfig(model="m", namespace="n", model_digest="sha256:" + "a" * 64)
        made = Worker(config, WorkerMetrics("m", 0.25), None)
        in_force(made)
        transport = httpx.ASGITransport(app=make_app(made))
        return made, httpx.AsyncClient(transport=transport, base_url="http://worker")

    def answering(_: Any, frame: Any) -> None:
        for row in frame[1]:
            worker.requests.settle([row[0], Status.ANSWERED, 0, 0.5, 1, 2, 0, 3], 0.0)

    with asyncio.Runner() as runner:
        worker, client = runner.run(serving())
        worker.requests._send = answering
        check()
        runner.run(client.aclose())
    assert seen == {200, 400}, "both were met"


def _series(worker: Worker, start: str) -> dict[str, float]:
    lines = worker.metrics.render().decode().splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith(start)
    }


async def test_a_client_fault_is_counted_and_is_no_evidence(
    client: httpx.AsyncClient, worker: Worker
) -> None:
    in_force(worker)
    await client.post(INFER, content=b"{")
    requests = _series(worker, 'trimwheel_requests_total{arm="stable",code="400"')
    assert requests == {
        'trimwheel_requests_total{arm="stable",code="400",exit="none",model="m"}': 1.0
    }
    assert not any(_series(worker, "trimwheel_guard_").values())


async def test_a_full_queue_is_429_and_no_evidence(
    client: httpx.AsyncClient, worker: Worker, make: Any
) -> None:
    in_force(worker)
    worker.requests._limits = type(worker.requests._limits)(queue=0, deadline=2.0, slo=0.25)
    answer = await client.post(INFER, json=make.body("x"))
    assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
    assert not any(_series(worker, "trimwheel_guard_").values())


async def test_a_request_of_several_texts_is_taken_whole_or_not_at_all(
    client: httpx.AsyncClient, worker: Worker, make: Any
) -> None:
    in_force(worker)
    limits = worker.requests._limits
    worker.requests._limits = type(limits)(queue=3, deadline=0.05, slo=0.25)
    sent: list[Any] = []
    worker.requests._send = lambda kind, body: sent.extend(body[1])
    first, second = await asyncio.gather(
        client.post(INFER, json=make.body("x", "y")), client.post(INFER, json=make.body("x", "y"))
    )
    assert (first.status_code, second.status_code) == (503, 429)
    assert second.json()["error"] == "queue full: 2 of 3, the request adds 2" and len(sent) == 2
    assert (await client.post(INFER, json=make.body("x", "y", "z"))).status_code == 503, "it fits"


async def test_an_engine_that_is_away_is_503_and_evidence_of_an_error(
    client: httpx.AsyncClient, worker: Worker, make: Any
) -> None:
    in_force(worker)
    worker.engine.ready = False
    for _ in range(2):
        headers = {"x-session-id": "s1"}
        answer = await client.post(INFER, json=make.body("x"), headers=headers)
        assert answer.status_code == 503
    events = _series(worker, "trimwheel_guard_events_total")
    assert sum(events.values()) == 1.0, "one event for the session"


async def test_rows_that_the_engine_never_gives_back_are_given_up(
    client: httpx.AsyncClient, worker: Worker, make: Any
) -> None:
    in_force(worker)
    limits = worker.requests._limits
    worker.requests._limits = type(limits)(queue=9, deadline=0.05, slo=0.25)
    worker.requests._send = lambda kind, body: None
    answer = await client.post(INFER, json=make.body("x"))
    assert answer.status_code == 503 and answer.json()["details"]["field"] == "request"
    assert worker.requests.in_flight == 0


async def test_an_engine_is_given_its_time_from_when_it_owes_an_answer(
    client: httpx.AsyncClient, worker: Worker, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that was idle for long is not late with its first batch, but a dead one is."""
    in_force(worker)
    killed: list[bool] = []
    monkeypatch.setattr(worker.engine, "kill", lambda: killed.append(True))
    limits = worker.requests._limits
    worker.requests._limits = type(limits)(queue=9, deadline=0.05, slo=0.25)
    worker.requests._send = lambda kind, body: None
    worker.engine.heard_at = time.monotonic() - 1000
    assert (await client.post(INFER, json=make.body("x"))).status_code == 503
    assert not killed, "it has had 0.3 s"
    worker.requests.owing_since -= STALL_SECONDS
    assert (await client.post(INFER, json=make.body("x"))).status_code == 503
    assert killed, "it still owes the first answer"


async def test_requests_of_one_moment_make_frames_that_the_engine_can_read(
    worker: Worker, make: Any
) -> None:
    in_force(worker)
    frames: list[bytes] = []
    worker.requests._send = lambda kind, body: frames.append(encode(kind, body))
    text = "\U0001f600" * 65_536
    for _ in range(30):
        worker.requests.submit([text] * 15)
    worker.requests.flush()
    assert max(map(len, frames)) <= FRAME_BYTES + 6 * len(text)
    decoder = Decoder()
    rows = [row for frame in frames for _, body in decoder.feed(frame) for row in body[1]]
    assert len(rows) == 450 and {row[1] for row in rows} == {text}
    worker.requests.serving_lost()


async def test_a_defect_is_an_answer_and_counted(
    client: httpx.AsyncClient, worker: Worker, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_force(worker)

    async def broken(*_: Any) -> Any:
        raise RecursionError

    monkeypatch.setattr(worker, "infer", broken)
    transport = httpx.ASGITransport(app=make_app(worker), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as made:
        answer = await made.post(INFER, json=make.body("x"))
    assert answer.status_code == 500 and "log" in answer.json()["error"]
    assert sum(_series(worker, 'trimwheel_requests_total{arm="stable",code="500"').values()) == 1


async def test_a_snapshot_on_the_wire_does_not_undo_a_trip(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_force(worker)
    monkeypatch.setattr(worker.engine, "send", lambda *_: None)
    candidate = resident(parse_policy({"moe": {"topK": 1}}), SHAPE)
    for version, weight in ((2, 1000), (3, 5000)):
        snapshot = Snapshot(
            version, version, "salt", weight, 0.0, resident(DENSE, SHAPE), candidate
        )
        worker.requests.retarget(snapshot)
        worker._send_snapshot(snapshot)
    worker.engine_frame(Kind.APPLIED, {"version": 2})
    worker.engine_frame(Kind.TRIPPED, {"version": 2, "digest": candidate.digest})
    worker.engine_frame(Kind.APPLIED, {"version": 3})
    assert worker.requests.serving is not None and worker.requests.target is not None
    assert (worker.requests.serving.version, worker.requests.serving.weight) == (3, 0)
    assert worker.requests.target.weight == 0


def test_the_front_never_imports_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; import trimwheel_workers.front.server; "
        "import trimwheel_workers.assignment.kubernetes_source; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
