"""The Prometheus client against an HTTP server that answers as Prometheus does, and as it fails."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import pytest

from trimwheel_api.errors import InvalidInput
from trimwheel_telemetry import client as client_module
from trimwheel_telemetry.answers import (
    Empty,
    NotANumber,
    Ok,
    Partial,
    Stale,
    Unreachable,
    series_of,
)
from trimwheel_telemetry.client import Prometheus

Form = dict[str, str]
Reply = Callable[[str, Form], tuple[int, object]]
NOW = 1_700_000_000.0


class FakeServer:
    """A real socket whose answers a test chooses; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Form]] = []
        self.reply: Reply = lambda path, form: (200, body([]))
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"])).decode()
                form = {name: values[0] for name, values in parse_qs(raw).items()}
                outer.asked.append((self.path, form))
                status, content = outer.reply(self.path, form)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


def body(result: object, kind: str = "matrix", **extra: object) -> dict[str, object]:
    return {"status": "success", "data": {"resultType": kind, "result": result}, **extra}


def matrix(*lines: tuple[dict[str, str], list[tuple[float, str]]]) -> list[dict[str, object]]:
    return [{"metric": labels, "values": points} for labels, points in lines]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(client_module.time, "time", lambda: NOW)
    fake = FakeServer()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


def connect(server: FakeServer, **changes: float) -> Prometheus:
    return Prometheus(server.url, **({"timeout": 2.0, "retries": 0} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("points", "extra", "expected"),
    [
        pytest.param([(NOW - 1, "3")], {}, Ok, id="fresh"),
        pytest.param([], {}, Empty, id="no-series"),
        pytest.param([(NOW - 1, "NaN")], {}, NotANumber, id="only-nan"),
        pytest.param([(NOW - 2, "1"), (NOW - 1, "NaN")], {}, Partial, id="some-nan"),
        pytest.param([(NOW - 61, "3")], {}, Stale, id="stale"),
        pytest.param([(NOW - 1, "3")], {"warnings": ["shard 2 away"]}, Partial, id="warnings"),
        pytest.param([], {"warnings": ["all shards away"]}, Partial, id="warnings-and-no-data"),
    ],
)
def test_raw_samples_say_what_is_wrong_with_them(
    server: FakeServer, points: list[tuple[float, str]], extra: dict[str, object], expected: type
) -> None:
    rows = matrix(({"pod": "a"}, points)) if points else []
    server.reply = lambda path, form: (200, body(rows, **extra))
    answer = connect(server).raw("up", NOW - 100, NOW)
    assert isinstance(answer, expected)
    assert bool(series_of(answer)) is (expected is Ok)
    assert bool(answer.reason) is (expected is not Ok)


def test_warnings_of_one_answer_do_not_leak_into_the_next(server: FakeServer) -> None:
    rows = matrix(({}, [(NOW, "1")]))
    prometheus = connect(server)
    server.reply = lambda path, form: (200, body(rows, warnings=["slow"]))
    assert isinstance(prometheus.raw("up", NOW - 9, NOW), Partial)
    server.reply = lambda path, form: (200, body(rows))
    assert isinstance(prometheus.raw("up", NOW - 9, NOW), Ok)


def test_long_queries_travel_in_the_body_with_a_server_side_timeout(server: FakeServer) -> None:
    selector = 'up{pod=~"' + "|".join(f"pod-{i}" for i in range(5_000)) + '"}'
    connect(server).raw(selector, NOW - 60, NOW)
    path, form = server.asked[0]
    assert path == "/api/v1/query"
    assert form["query"] == f"{selector}[60000ms]"
    assert form["timeout"] == "2000ms"


def test_a_timeout_of_a_fraction_is_a_duration_that_prometheus_reads(server: FakeServer) -> None:
    connect(server, timeout=2.5).instant("up")
    [(_, form)] = server.asked
    assert form["timeout"] == "2500ms", "it refuses 2.5s"


def test_long_raw_windows_are_cut_and_joined_without_doubling(server: FakeServer) -> None:
    server.reply = lambda path, form: (
        200,
        body(matrix(({"pod": "a"}, [(float(form["time"]), "1")]))),
    )
    answer = connect(server).raw("up", NOW - 25_000, NOW)
    assert isinstance(answer, Ok)
    assert answer.series[0].times.tolist() == [NOW - 15_000, NOW - 5_000, NOW]
    assert [form["query"] for _, form in server.asked] == [
        "up[10000000ms]",
        "up[10000000ms]",
        "up[5000000ms]",
    ]


def test_ranges_stay_below_the_point_limit_and_keep_their_grid(server: FakeServer) -> None:
    def reply(path: str, form: Form) -> tuple[int, object]:
        first, last, step = (float(form[name]) for name in ("start", "end", "step"))
        count = round((last - first) / step) + 1
        assert count <= 10_000
        points = [(first + i * step, "2") for i in range(count)]
        return 200, body(matrix(({}, points)))

    server.reply = reply
    answer = connect(server).range("sum(up)", NOW - 24_999.5, NOW, 0.5)
    assert isinstance(answer, Ok)
    assert len(server.asked) == 5
    assert len(answer.series[0].times) == 50_000
    assert answer.series[0].times[0] == pytest.approx(NOW - 24_999.5)


def test_instant_answers_vectors_and_scalars(server: FakeServer) -> None:
    rows = [{"metric": {"arm": "stable"}, "value": [NOW, "0.5"]}]
    server.reply = lambda path, form: (200, body(rows, "vector"))
    answer = connect(server).instant("x", at=NOW)
    assert isinstance(answer, Ok)
    assert [(s.labels["arm"], s.value) for s in answer.samples] == [("stable", 0.5)]
    server.reply = lambda path, form: (200, body([NOW, "3"], "scalar"))
    scalar = connect(server).instant("3")
    assert isinstance(scalar, Ok) and scalar.samples[0].value == 3
    nan_row = [{"metric": {}, "value": [NOW, "NaN"]}]
    server.reply = lambda path, form: (200, body(nan_row, "vector"))
    assert isinstance(connect(server).instant("0/0"), NotANumber)


@pytest.mark.parametrize(
    ("status", "content", "says"),
    [
        (503, {"status": "error", "error": "query timed out"}, "timed out"),
        (422, {"status": "error", "error": "too many samples"}, "too many samples"),
        (200, b"<html>not a prometheus</html>", "does not answer like a Prometheus"),
        (200, {"hello": "world"}, "does not answer like a Prometheus"),
        (200, [1, 2], "does not answer like a Prometheus"),
    ],
)
def test_every_way_of_not_answering_is_unreachable_with_its_reason(
    server: FakeServer, status: int, content: object, says: str
) -> None:
    server.reply = lambda path, form: (status, content)
    answer = connect(server).raw("up", NOW - 10, NOW)
    assert isinstance(answer, Unreachable)
    assert says in answer.reason


def test_a_closed_port_and_a_silent_server_are_unreachable_soon(server: FakeServer) -> None:
    gone = Prometheus("http://127.0.0.1:1", timeout=0.3, retries=0)
    assert isinstance(gone.instant("up"), Unreachable)
    assert not gone.reachable()

    def never(path: str, form: Form) -> tuple[int, object]:
        time.sleep(1.0)
        return 200, body([])

    server.reply = never
    started = time.monotonic()
    assert isinstance(connect(server, timeout=0.2).instant("up"), Unreachable)
    assert time.monotonic() - started < 0.9


def test_a_passing_failure_is_retried_once(server: FakeServer) -> None:
    replies = iter([(503, body([])), (200, body(matrix(({}, [(NOW, "1")]))))])
    server.reply = lambda path, form: next(replies)
    assert isinstance(connect(server, retries=1).raw("up", NOW - 10, NOW), Ok)


def test_a_query_that_does_not_parse_is_our_defect_and_raises(server: FakeServer) -> None:
    server.reply = lambda path, form: (400, {"status": "error", "error": "parse error"})
    with pytest.raises(InvalidInput, match="must be PromQL"):
        connect(server).instant("sum(")
